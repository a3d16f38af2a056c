#!/usr/bin/env python3
"""Runs a published PyTorch port of OpenMoE with the weights of pretrained/openmoe, in float32 on the CPU, and compares its
logits with golden.safetensors, which make_pretrained.py computes from the formulas.

    python3 tests/golden/check_openmoe.py PORT

PORT: a checkout of hpcaitech/ColossalAI (12e7c28d5; imports contexttimer, einops, fabric, psutil, pydantic and rich), or of
pingzhili/openmoe-pt (b03ca28). Both need torch and transformers 4.36.2: transformers 5 refuses a width that is no multiple
of the heads. No process group is set up, so that experts are not spread. Both run as they are, but for what keeps the first
from a CPU: a table of rotations is not moved to a GPU, and experts get no weights of its own before they get ours.
Numbers are the largest difference over the largest logit. Fails where the port should agree and does not. The lines
behind those say what the port does otherwise, and what the comparison would notice.
"""
import importlib
import json
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file

warnings.filterwarnings("ignore")
FOLDER = Path(__file__).parent / "pretrained" / "openmoe"
CONFIG = json.loads((FOLDER / "config.json").read_text())
GOLDEN = load_file(FOLDER / "golden.safetensors")
DROPLESS = CONFIG["num_experts"] / CONFIG["router_topk"]  # the factor at which an expert has room for every token
TOLERANCE = 1e-5


class ColossalAI:
    FILE = "examples/language/openmoe/model/modeling_openmoe.py"
    FIRST = 0  # in the mask: its decoding counts on a pad before the text, which is masked, and which it sees all the same

    def __init__(self, checkout):
        sys.path[:0] = [str(checkout), str(checkout / self.FILE.rpartition("/")[0])]
        torch.Tensor.cuda = lambda tensor, *_, **__: tensor
        self.port = importlib.import_module("modeling_openmoe")
        importlib.import_module("colossalai.moe.experts").MLPExperts.reset_parameters = lambda _: None

    def model(self, numbers):
        config = importlib.import_module("transformers").LlamaConfig(**numbers)
        here = self.port.set_openmoe_args.__code__
        self.port.set_openmoe_args(config, **{k: v for k, v in numbers.items() if k in here.co_varnames[:here.co_argcount]})
        return self.port.OpenMoeForCausalLM(config)

    def weights(self, weights):
        return weights


class OpenMoePt:
    FILE, FIRST = "hf_openmoe/modeling_hf_openmoe.py", 1

    def __init__(self, checkout):
        sys.path.insert(0, str(checkout))
        self.port = importlib.import_module("hf_openmoe")

    def model(self, numbers):
        return self.port.HFOpenMoeForCausalLM(self.port.HFOpenMoeConfig(**numbers))

    def weights(self, weights):
        """Experts one by one, output-major."""
        out = {}
        for name, w in weights.items():
            layer, _, matrix = name.partition("experts.")
            if matrix:
                own = {"wi_gate": "gate_proj", "wi_up": "up_proj", "wo": "down_proj"}[matrix]
                out |= {f"{layer}experts.{e}.{own}.weight": one.T.contiguous() for e, one in enumerate(w)}
            else:
                out[name.replace("gate_weight", "gate.weight")] = w
        return out


def build(port, weights, factor, **more):
    numbers = {k: v for k, v in CONFIG.items() if k not in ["architectures", "model_type"]}
    model = port.model(numbers | dict(router_capacity_factor_eval=factor, pretraining_tp=1) | more).eval()
    model.load_state_dict(port.weights(weights))  # strict: every weight has its place, none is left over
    return model


def at_once(model):
    return model(GOLDEN["inputs"], use_cache=False, return_dict=True).logits


def in_runs(model, length):
    """With the cache, `length` tokens a call, positions and mask left to the port."""
    past, logits = None, []
    for part in GOLDEN["inputs"].split(length, 1):
        out = model(part, past_key_values=past, use_cache=True, return_dict=True)
        past = out.past_key_values
        logits.append(out.logits)
    return torch.cat(logits, 1)


def one_by_one(model, first):
    """With the cache, as generate() calls it: two tokens, then one a call. first: what the mask says of the first token."""
    past, logits, inputs = None, [], GOLDEN["inputs"]
    for end in range(2, inputs.shape[1] + 1):
        mask = torch.ones(inputs.shape[0], end, dtype=torch.long)
        mask[:, 0] = first
        out = model(**model.prepare_inputs_for_generation(inputs[:, :end], past_key_values=past, attention_mask=mask,
                                                          use_cache=True), return_dict=True)
        past = out.past_key_values
        logits.append(out.logits)
    return torch.cat(logits, 1)


def halves_swapped(name, w):
    return torch.cat([*reversed(w.chunk(2, -1 if "wi_gate" in name else 0))], -1 if "wi_gate" in name else 0)


def renormalise(model):
    for layer in model.model.layers:
        if hasattr(layer, "extra_mlp"):  # the router gives (room used, gates by token, expert and place, mask)
            layer.mlp.router.register_forward_hook(lambda _, __, out: (out[0], out[1] / out[1].sum((1, 2), True), *out[2:]))


def parallel(model):
    """The dense block beside the experts, behind the same norm, as the paper prints it."""
    for layer in model.model.layers:
        if hasattr(layer, "extra_mlp"):
            kept = []
            layer.mlp.register_forward_pre_hook(lambda _, x, kept=kept: kept.append(x[0]))
            layer.extra_mlp.register_forward_pre_hook(lambda _, __, kept=kept: (kept.pop(),))


def main(checkout):
    checkout = Path(checkout).resolve()
    kind = next((k for k in [ColossalAI, OpenMoePt] if (checkout / k.FILE).exists()), None)
    if kind is None:
        sys.exit(f"{checkout}: expected a checkout with {ColossalAI.FILE} or {OpenMoePt.FILE}")
    port, weights = kind(checkout), load_file(FOLDER / "model.safetensors")
    factor, failed = CONFIG["router_capacity_factor_eval"], []

    def compare(what, compute, against="logits", agrees=False):
        try:
            off = (compute().flatten(0, 1) - GOLDEN[against]).abs().max() / GOLDEN[against].abs().max()
            said = f"{off.item():.1e}"
            if agrees and not off <= TOLERANCE:
                failed.append(what)
        except (IndexError, RuntimeError) as e:
            said = f"{type(e).__name__}: {e}"
            if agrees:
                failed.append(what)
        print(f"{what:<76} {said}", flush=True)

    def changed(match, change):
        return {n: change(n, w) if any(m in n for m in match) else w for n, w in weights.items()}

    def after(change):
        model = build(port, weights, DROPLESS)
        change(model)
        return at_once(model)

    print(f"{kind.__name__}, torch {torch.__version__}, transformers {sys.modules['transformers'].__version__}")
    roomy, tight = build(port, weights, DROPLESS), build(port, weights, factor)
    compare("room for every token, all at once: logits", lambda: at_once(roomy), agrees=True)
    compare(f"capacity factor {factor}, all at once: logits_dropping", lambda: at_once(tight), "logits_dropping", True)
    masked = {0: "first token masked", 1: "nothing masked"}
    compare(f"… a token a call, {masked[port.FIRST]}: logits (so few never drop)",
            lambda: one_by_one(tight, port.FIRST), agrees=True)
    print("what the port does otherwise")
    compare(f"a token a call, {masked[1 - port.FIRST]}", lambda: one_by_one(roomy, 1 - port.FIRST))
    compare("5 tokens a call", lambda: in_runs(roomy, 5))
    compare(f"capacity factor {factor}: logits without dropping", lambda: at_once(tight))
    compare("… told not to drop", lambda: at_once(build(port, weights, factor, router_drop_tks=False)))
    compare("… told not to drop: logits_dropping", lambda: at_once(build(port, weights, factor, router_drop_tks=False)),
            "logits_dropping")
    compare("capacity factor 2, as published", lambda: at_once(build(port, weights, 2.0)))
    compare("rope_theta 500 in the config", lambda: at_once(build(port, weights, DROPLESS, rope_theta=500.0)))
    print("what the comparison would notice")
    compare("queries scaled by 1/sqrt(head_dim)", lambda: at_once(build(
        port, changed(["q_proj"], lambda _, w: w * CONFIG["head_dim"] ** -0.5), DROPLESS)))
    compare("SiLU on the first half", lambda: at_once(build(
        port, changed(["gate_proj", "wi_gate"], halves_swapped), DROPLESS)))
    compare("gates renormalised", lambda: after(renormalise))
    compare("the dense block beside the experts", lambda: after(parallel))
    if failed:
        sys.exit("the port does not agree: " + "; ".join(failed))


if __name__ == "__main__":
    with torch.no_grad():
        main(*sys.argv[1:])
