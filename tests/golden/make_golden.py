#!/usr/bin/env python3
"""Writes the golden files of tests/test_golden.cpp: small models computed a second time, in PyTorch.

Everything is computed in float64 from float32 weights and stored as float32 (losses: float64), so the files carry no
rounding noise of their own: each stored number is the exact result to within half a float32 unit.
Where PyTorch has the function (norm, attention, cross-entropy, AdamW, every derivative), it is PyTorch's; the rest is
written from the formulas of the papers. Nothing here follows the library's loops.

Letters: S sequences, C tokens each, N = S*C rows, D dim, H heads, G key/value heads, d head_dim, F ffn, E experts,
K experts per token, V vocab.
"""
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as fn
from safetensors.torch import save

K = 2
EXACT = torch.float64


def single(x: float) -> float:
    """A setting as the model holds it: rounded to float32."""
    return torch.tensor(x, dtype=torch.float32).item()


@dataclass
class Case:
    """A model, its data and its training. Sizes and router carry the names of the checkpoint's metadata."""
    name: str
    seed: int
    sizes: dict
    router: dict
    exit_head: str        # "shared" or "own"
    exits: list           # layers after which logits are taken, besides the top
    exit_weights: list    # of the gradient check, by exit layer from 1: none is zero
    training: dict = field(default_factory=dict)
    router_name: str = f"top_k<{K}>"  # or "biased<sigmoid_top_k<K>>"
    bias_rate: float = 0.0            # of the selection biases
    shared_expert: str = "none"       # or "always", "gated"
    sequences: int = 3
    length: int = 9       # 27 rows: more than the 16 that decoding runs at a time

    @property
    def sigmoid(self):
        return "sigmoid" in self.router_name

    def is_moe(self, layer):
        return (layer + 1) % self.sizes["moe_every"] == 0


TRAINING = {"training.steps": 10, "training.warmup": 3, "training.floor": 0.1,
            "optimizer.lr": 0.01, "optimizer.beta1": 0.9, "optimizer.beta2": 0.95, "optimizer.weight_decay": 0.1,
            # Large enough to show where epsilon stands, and far above the rounding noise of float32 gradients, which
            # would otherwise move weights whose gradient is almost nothing by a full step in a random direction.
            "optimizer.epsilon": 1e-5}

CASES = [
    Case(name="two_layer_moe", seed=58,
         sizes=dict(layers=2, dim=20, heads=4, kv_heads=2, head_dim=6, ffn=12, experts=5, vocab=23, context=16,
                    moe_every=1, dense_ffn=0, shared_ffn=0, tied=False, norm_eps=1e-5, rope_theta=10000.0),
         router=dict(order=0, renormalise=True, balance_loss=0.05, z_loss=0.02),
         exit_head="shared", exits=[1], exit_weights=[0.3, 0.7],
         training=TRAINING | {"training.exit_scale": 0.2, "training.clip": 1.0}),
    # Three layers: LayerSkip's weights give the exit after the first layer nothing, so two layers would train the top
    # only. Small theta and large epsilon, because they hardly show at their usual values.
    Case(name="moe_every_2nd_own_heads", seed=2,
         sizes=dict(layers=3, dim=16, heads=6, kv_heads=2, head_dim=4, ffn=14, experts=6, vocab=19, context=16,
                    moe_every=2, dense_ffn=22, shared_ffn=10, tied=True, norm_eps=1e-2, rope_theta=100.0),
         router=dict(order=0, renormalise=False, balance_loss=0.01, z_loss=0.1), shared_expert="gated",
         exit_head="own", exits=[1, 2], exit_weights=[0.2, 0.3, 0.5],
         training=TRAINING | {"training.exit_scale": 0.5, "training.clip": 3.0}),
    # DeepSeek-V3's routing: the best two of three pairs of experts are open, a bias moves at every step.
    Case(name="sigmoid_biased", seed=3,
         sizes=dict(layers=2, dim=18, heads=3, kv_heads=3, head_dim=6, ffn=10, experts=6, vocab=21, context=16,
                    moe_every=1, dense_ffn=0, shared_ffn=14, tied=False, norm_eps=1e-5, rope_theta=10000.0),
         router=dict(groups=3, best_groups=2, renormalise=True, scale=1.75, balance_loss=0.03, z_loss=0.01),
         bias_rate=0.02,
         router_name=f"biased<sigmoid_top_k<{K}>>", shared_expert="always",
         exit_head="shared", exits=[1], exit_weights=[0.4, 0.6],
         training=TRAINING | {"training.exit_scale": 0.5, "training.clip": 1.0}),
]


# ---- weights and data

def shapes(case):
    """Name -> shape of every weight; matrices are (out, in)."""
    s = case.sizes
    D, V, q, kv = s["dim"], s["vocab"], s["heads"] * s["head_dim"], s["kv_heads"] * s["head_dim"]
    out = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not s["tied"]:
        out["lm_head.weight"] = (V, D)
    if case.exit_head == "own":
        for e in case.exits:
            out |= {f"model.exits.{e}.norm.weight": (D,), f"model.exits.{e}.head.weight": (V, D)}

    def mlp(prefix, F):
        return {prefix + "gate_proj.weight": (F, D), prefix + "up_proj.weight": (F, D),
                prefix + "down_proj.weight": (D, F)}

    for l in range(s["layers"]):
        p = f"model.layers.{l}."
        out |= {p + "input_layernorm.weight": (D,), p + "post_attention_layernorm.weight": (D,),
                p + "self_attn.q_proj.weight": (q, D), p + "self_attn.k_proj.weight": (kv, D),
                p + "self_attn.v_proj.weight": (kv, D), p + "self_attn.o_proj.weight": (D, q)}
        if case.is_moe(l):
            out[p + "mlp.gate.weight"] = (s["experts"], D)
            if case.sigmoid:
                out[p + "mlp.gate.e_score_correction_bias"] = (s["experts"],)
            if case.shared_expert != "none":
                out |= mlp(p + "mlp.shared_expert.", s["shared_ffn"] or s["ffn"])
            if case.shared_expert == "gated":
                out[p + "mlp.shared_expert_gate.weight"] = (1, D)
            for e in range(s["experts"]):
                out |= mlp(p + f"mlp.experts.{e}.", s["ffn"])
        else:
            out |= mlp(p + "mlp.", s["dense_ffn"] or s["ffn"])
    return out


def is_bias(name):
    """Selection biases are moved by a rule of their own, not by a gradient."""
    return name.endswith("e_score_correction_bias")


def draw_weights(case, random):
    """Norms around 1, biases around 0, matrices of variance 1/in; the router's wider, so that probabilities differ
    clearly."""
    weights = {}
    for name, shape in shapes(case).items():
        x = torch.randn(shape, generator=random, dtype=EXACT)
        if is_bias(name):
            x = 0.1 * x
        elif len(shape) == 1:
            x = 1 + 0.2 * x
        else:
            x = x * (2.0 if name.endswith("mlp.gate.weight") else 1.0) / math.sqrt(shape[-1])
        weights[name] = x.to(torch.float32)
    return weights


# ---- the model

def rope(x, theta):
    """Su et al. 2021, rotate-half convention. x (S, heads, C, d): elements i and i + d/2 are one complex number, turned
    by position * theta^(-2i/d)."""
    C, d = x.shape[-2:]
    frequency = theta ** (-torch.arange(0, d, 2, dtype=EXACT) / d)
    angle = torch.outer(torch.arange(C, dtype=EXACT), frequency)
    turned = torch.complex(x[..., : d // 2], x[..., d // 2:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1)


def norm(case, w, name, x):
    gain = w[name + ".weight"]
    return fn.rms_norm(x, gain.shape, gain, single(case.sizes["norm_eps"]))


def attention(case, w, prefix, x):
    """x (S, C, D). Query head h reads key/value head h * G // H."""
    s = case.sizes

    def heads(name, count):
        return fn.linear(x, w[f"{prefix}{name}_proj.weight"]).unflatten(-1, (count, s["head_dim"])).transpose(1, 2)

    theta = single(s["rope_theta"])
    q, k, v = rope(heads("q", s["heads"]), theta), rope(heads("k", s["kv_heads"]), theta), heads("v", s["kv_heads"])
    y = fn.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return fn.linear(y.transpose(1, 2).flatten(-2), w[prefix + "o_proj.weight"])


def swiglu(w, prefix, x):
    gate, up = fn.linear(x, w[prefix + "gate_proj.weight"]), fn.linear(x, w[prefix + "up_proj.weight"])
    return fn.linear(fn.silu(gate) * up, w[prefix + "down_proj.weight"])


def softmax_choice(case, w, prefix, logits):
    """p (N, E) of the balance loss, what the choice compares (N, E), gates (N, K), chosen (N, K)."""
    p = logits.softmax(-1)
    gate, chosen = p.topk(K)
    if case.router["renormalise"]:
        gate = gate / gate.sum(-1, keepdim=True)
    return p, p, gate, chosen


def sigmoid_choice(case, w, prefix, logits):
    """DeepSeek-V3, section 2.1.2: the bias is in the choice only; a group is worth its two best experts."""
    r, E = case.router, case.sizes["experts"]
    score = logits.sigmoid()
    compared = score + w[prefix + "gate.e_score_correction_bias"]
    grouped = compared.unflatten(-1, (r["groups"], E // r["groups"]))
    best = grouped.topk(2).values.sum(-1).topk(r["best_groups"]).indices  # (N, best_groups)
    open_groups = torch.zeros(logits.shape[0], r["groups"], dtype=torch.bool).scatter(1, best, True)
    compared = compared.masked_fill(~open_groups.repeat_interleave(E // r["groups"], 1), -math.inf)
    chosen = compared.topk(K).indices
    gate = score.gather(1, chosen)
    gate = single(r["scale"]) * (gate / gate.sum(-1, keepdim=True) if r["renormalise"] else gate)
    worth = grouped.topk(2).values.sum(-1).sort(descending=True).values  # how clearly the groups are chosen
    gap = (worth[:, r["best_groups"] - 1] - worth[:, r["best_groups"]]).min()
    return score / score.sum(-1, keepdim=True), compared, gate, chosen, gap


def moe(case, w, prefix, x, router_report):
    """x (S, C, D). Every expert is computed for every row; a row's unchosen experts count 0."""
    E = case.sizes["experts"]
    logits = fn.linear(x, w[prefix + "gate.weight"]).flatten(0, 1)  # (N, E)
    choose = sigmoid_choice if case.sigmoid else softmax_choice
    p, compared, gate, chosen, *gap = choose(case, w, prefix, logits)
    share = torch.zeros_like(p).scatter(1, chosen, gate).unflatten(0, x.shape[:2])
    y = sum(share[..., e:e + 1] * swiglu(w, f"{prefix}experts.{e}.", x) for e in range(E))
    if case.shared_expert != "none":
        more = swiglu(w, prefix + "shared_expert.", x)
        if case.shared_expert == "gated":
            more = fn.linear(x, w[prefix + "shared_expert_gate.weight"]).sigmoid() * more
        y = y + more

    load = fn.one_hot(chosen, E).to(EXACT).mean((0, 1))  # (E): share of all N*K choices
    ordered = compared.detach().sort(descending=True).values
    margin = (ordered[:, K - 1] - ordered[:, K]).min()
    router_report.append({"balance": E * (load * p.mean(0)).sum(),       # Switch Transformer, eq. 4
                          "z": logits.logsumexp(-1).square().mean(),     # ST-MoE, eq. 5
                          "margin": min([margin.item()] + [g.item() for g in gap]),
                          "load_error": load - 1 / E, "prefix": prefix,
                          "unused": int((load == 0).sum())})
    return y


def forward(case, w, tokens):
    """Logits (N, V) by exit layer, and what each MoE layer's router reports."""
    x = w["model.embed_tokens.weight"][tokens]
    logits, routers = {}, []
    for l in range(case.sizes["layers"]):
        p = f"model.layers.{l}."
        x = x + attention(case, w, p + "self_attn.", norm(case, w, p + "input_layernorm", x))
        h = norm(case, w, p + "post_attention_layernorm", x)
        x = x + (moe(case, w, p + "mlp.", h, routers) if case.is_moe(l) else swiglu(w, p + "mlp.", h))
        top = l + 1 == case.sizes["layers"]
        if top or l + 1 in case.exits:
            if case.exit_head == "own" and not top:
                gain, head = f"model.exits.{l + 1}.norm", w[f"model.exits.{l + 1}.head.weight"]
            else:
                gain, head = "model.norm", w["model.embed_tokens.weight" if case.sizes["tied"] else "lm_head.weight"]
            logits[l + 1] = fn.linear(norm(case, w, gain, x), head).flatten(0, 1)
    return logits, routers


def layerskip_weights(case):
    """LayerSkip, eq. 6, by exit layer from 1. Its l counts layers from 0."""
    scale, L = case.training["training.exit_scale"], case.sizes["layers"]
    e = [scale * sum(range(l + 1)) if l + 1 in case.exits else 0.0 for l in range(L - 1)]
    e.append(L - 1 + scale * sum(range(L - 1)))
    return [x / sum(e) for x in e]


def objective(case, w, tokens, targets, exit_weights):
    logits, routers = forward(case, w, tokens)
    losses = {e: fn.cross_entropy(x, targets.flatten()) for e, x in logits.items()}
    balance = sum(r["balance"] for r in routers) / len(routers)
    z = sum(r["z"] for r in routers) / len(routers)
    total = (sum(exit_weights[e - 1] * loss for e, loss in losses.items())
             + single(case.router["balance_loss"]) * balance + single(case.router["z_loss"]) * z)
    return {"total": total, "exits": losses, "balance": balance, "z": z, "logits": logits, "routers": routers}


# ---- training

def rate(case, step):
    """Linear warm-up to the peak, then half a cosine down to `floor` of it."""
    t = case.training
    warmup, steps, floor = t["training.warmup"], t["training.steps"], t["training.floor"]
    if step < warmup:
        return t["optimizer.lr"] * (step + 1) / warmup
    fall = (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
    return t["optimizer.lr"] * (floor + (1 - floor) * fall)


def weights_of(initial):
    return {name: x.to(EXACT).requires_grad_(not is_bias(name)) for name, x in initial.items()}


def train(case, initial, inputs, targets):
    """The weights after all steps, and what each step reported."""
    t = case.training
    w = weights_of(initial)
    learned = {name: x for name, x in w.items() if not is_bias(name)}
    groups = [{"params": [x for x in learned.values() if x.dim() == 2], "weight_decay": t["optimizer.weight_decay"]},
              {"params": [x for x in learned.values() if x.dim() == 1], "weight_decay": 0.0}]  # norms do not decay
    optimizer = torch.optim.AdamW(groups, betas=(t["optimizer.beta1"], t["optimizer.beta2"]),
                                  eps=t["optimizer.epsilon"], foreach=False)
    exit_weights, report = layerskip_weights(case), {"total": [], "norm": [], "rate": [], "margin": []}
    for step in range(t["training.steps"]):
        optimizer.zero_grad(set_to_none=False)
        result = objective(case, w, inputs[step], targets[step], exit_weights)
        result["total"].backward()
        for x in learned.values():  # an exit of weight 0 has zero gradients, not none: its matrices still decay
            x.grad = torch.zeros_like(x) if x.grad is None else x.grad
        size = torch.sqrt(sum(x.grad.square().sum() for x in learned.values())).item()
        clip = min(1.0, t["training.clip"] / size)  # exactly; clip_grad_norm_ would add 1e-6 to the norm
        for x in learned.values():
            x.grad *= clip
        for group in optimizer.param_groups:
            group["lr"] = rate(case, step)
        optimizer.step()
        for r in result["routers"] if case.sigmoid else []:  # Wang et al. 2024, algorithm 1
            w[r["prefix"] + "gate.e_score_correction_bias"] -= single(case.bias_rate) * r["load_error"].sign()
        report["total"].append(result["total"].item())
        report["norm"].append(size)
        report["rate"].append(rate(case, step))
        report["margin"] += [r["margin"] for r in result["routers"]]
    return {name: x.detach() for name, x in w.items()}, report


# ---- the files

def metadata(case):
    def written(value):
        return str(value).lower() if isinstance(value, bool) else repr(value)

    fixed = {"format": "moeskip", "router": case.router_name,
             "shared_expert": case.shared_expert, "expert_dropout": "none", "layer_dropout": "none",
             "exit_head": case.exit_head, "exits": " ".join(map(str, case.exits))}
    return (fixed | {"sizes." + k: written(v) for k, v in case.sizes.items()}
            | {"router." + ("base." if case.sigmoid else "") + k: written(v) for k, v in case.router.items()}
            | ({"router.bias_rate": written(case.bias_rate)} if case.sigmoid else {})
            | {k: written(v) for k, v in case.training.items()})


def sorted_metadata(data):
    """The safetensors package writes metadata in random order; sorted, a second run gives the same bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    return data[:8] + json.dumps(header, separators=(",", ":")).encode().ljust(end - 8) + data[end:]


def make(case, folder):
    random = torch.Generator().manual_seed(case.seed)
    initial = draw_weights(case, random)
    # Two thirds of the text follow a rule (the next token is 3 more), so that training gets somewhere.
    extent = (case.training["training.steps"], case.sequences, case.length + 1)
    tokens = torch.randint(case.sizes["vocab"], extent, generator=random)
    follows = torch.rand(extent, generator=random) < 2 / 3
    for c in range(1, extent[2]):
        tokens[..., c] = torch.where(follows[..., c], (tokens[..., c - 1] + 3) % case.sizes["vocab"], tokens[..., c])
    inputs, targets = tokens[..., :-1].contiguous(), tokens[..., 1:].contiguous()

    w = weights_of(initial)
    first = objective(case, w, inputs[0], targets[0], case.exit_weights)
    first["total"].backward()
    gradients = {name: x.grad for name, x in w.items() if not is_bias(name)}
    for r in first["routers"] if case.sigmoid else []:  # what stands where a gradient would
        gradients[r["prefix"] + "gate.e_score_correction_bias"] = r["load_error"]
    trained, steps = train(case, initial, inputs, targets)

    # What the comparison rests on: choices that rounding cannot flip, every tensor reached, gradients clipped.
    margin = min(steps["margin"] + [r["margin"] for r in first["routers"]])
    assert margin > 2e-4, f"{case.name}: two experts are only {margin} apart: take another seed"
    assert all(r["unused"] == 0 for r in first["routers"]), f"{case.name}: an expert is never chosen"
    assert all(x.abs().max() > 1e-4 for x in gradients.values()), f"{case.name}: a gradient vanishes"
    clipped = [size > case.training["training.clip"] for size in steps["norm"]]
    assert any(clipped), f"{case.name}: nothing is clipped"

    tensors = dict(initial)
    tensors |= {"golden.inputs": inputs, "golden.targets": targets}
    tensors |= {f"golden.logits.{e}": x.detach() for e, x in first["logits"].items()}
    tensors |= {f"golden.gradient.{name}": x for name, x in gradients.items()}
    tensors |= {f"golden.trained.{name}": x for name, x in trained.items()}
    tensors = {name: x.to(torch.float32) if x.dtype == EXACT else x for name, x in tensors.items()}
    by_exit = [first["exits"][e].item() for e in case.exits + [case.sizes["layers"]]]
    exact = {"exit_weights": case.exit_weights, "layerskip_weights": layerskip_weights(case), "exit_losses": by_exit,
             "balance": [first["balance"].item()], "z": [first["z"].item()], "total": [first["total"].item()],
             "steps.total": steps["total"], "steps.gradient_norm": steps["norm"], "steps.rate": steps["rate"]}
    tensors |= {f"golden.{name}": torch.tensor(x, dtype=EXACT) for name, x in exact.items()}

    path = folder / f"{case.name}.safetensors"
    path.write_bytes(sorted_metadata(save(tensors, metadata=metadata(case))))
    print(f"{path.name}: {path.stat().st_size} bytes, exits {by_exit}, total {exact['total'][0]:.6f}, "
          f"training {steps['total'][0]:.4f} -> {steps['total'][-1]:.4f}, gradient norm {min(steps['norm']):.3f} to "
          f"{max(steps['norm']):.3f}, {sum(clipped)} steps clipped, experts at least {margin:.1e} apart")
    return all(clipped)


if __name__ == "__main__":
    torch.set_num_threads(1)
    always_clipped = [make(case, Path(__file__).resolve().parent) for case in CASES]
    assert not all(always_clipped), "every step of every case is clipped"
