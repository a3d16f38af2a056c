#!/usr/bin/env python3
"""Decoding of one MoE, here and in Hugging Face transformers: the same weights, prompts and threads, in turn.

    bench/peers/decode_vs_transformers.py build/cpu-release/examples/moeskip MODEL --text FILE
                                          [--draft FILE] [--prompts N] [--tokens N] [--json FILE]

MODEL is a checkpoint of the default policies with a mixture in every layer (`./run study baseline …`): it is a Mixtral, and
transformers' MixtralForCausalLM gets its weights. Greedy, so that both must write the same text; how much of it is the same is
in the table. Ways of transformers:
  plain          generate()
  lookup         prompt_lookup_num_tokens
  early exit     assistant_early_exit: the model's own layers draft (its exits need to be trained: else few drafts stand)
  small model    assistant_model: DRAFT, a dense checkpoint of the default policies, as a Llama
Weights are bf16 in both; transformers computes in f32 and in bf16. Time is that of the new tokens: in transformers that of
generate() with all tokens less that with one.
Needs torch, transformers and safetensors. Prints a table; with --json one object a line: name, value, unit, of.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM


def load(path, dtype):
    """The checkpoint as a transformers model: a Mixtral, or a Llama where no layer is a mixture."""
    with safe_open(path, "pt") as file:
        meta = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    size = {key[6:]: value for key, value in meta.items() if key.startswith("sizes.")}
    for key, expected in (("router", "top_k<2>"), ("router.renormalise", "true"), ("router.order", "0"),
                          ("shared_expert", "none"), ("exit_head", "shared"), ("sizes.head_dim", "0"), ("sizes.tied", "false")):
        if meta.get(key) != expected:
            sys.exit(f"{path}: {key}: expected {expected}, got {meta.get(key)}: only models of the default policies")
    mixture = size["moe_every"] == "1"
    if not mixture and size["moe_every"] != "0":
        sys.exit(f"{path}: sizes.moe_every: expected 0 or 1, got {size['moe_every']}")
    common = dict(vocab_size=int(size["vocab"]), hidden_size=int(size["dim"]), num_hidden_layers=int(size["layers"]),
                  num_attention_heads=int(size["heads"]), num_key_value_heads=int(size["kv_heads"]),
                  rms_norm_eps=float(size["norm_eps"]), max_position_embeddings=int(size["context"]) + 1,
                  rope_parameters={"rope_type": "default", "rope_theta": float(size["rope_theta"])},
                  tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    if mixture:
        experts = int(size["experts"])
        model = MixtralForCausalLM(MixtralConfig(intermediate_size=int(size["ffn"]), num_local_experts=experts,
                                                 num_experts_per_tok=2, sliding_window=None, **common))
        for layer in range(common["num_hidden_layers"]):  # transformers 5 keeps the experts of a layer in two tensors
            of = f"model.layers.{layer}.mlp.experts."
            take = lambda kind: torch.stack([tensors.pop(f"{of}{e}.{kind}_proj.weight") for e in range(experts)])
            tensors[of + "gate_up_proj"] = torch.cat([take("gate"), take("up")], 1)
            tensors[of + "down_proj"] = take("down")
    else:
        model = LlamaForCausalLM(LlamaConfig(intermediate_size=int(size["dense_ffn"]), **common))
    model.load_state_dict(tensors)
    return model.to(dtype).eval(), int(size["context"])


class Theirs:
    def __init__(self, model, **options):
        self.model, self.options = model, options

    def generate(self, prompt, tokens):
        ids = torch.tensor([list(prompt)])
        start = time.perf_counter()
        with torch.inference_mode():
            out = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
                                      do_sample=False, use_cache=True, **self.options)
        return time.perf_counter() - start, bytes(out[0, len(prompt):].tolist())

    def __call__(self, prompt, tokens):
        first, _ = self.generate(prompt, 1)
        took, text = self.generate(prompt, tokens)
        return (tokens - 1) / max(1e-9, took - first), text


class Ours:
    def __init__(self, program, model, decoder, threads):
        self.command = [program, "generate", "--model", model, "--decoder", decoder, "--threads", str(threads), "--json"]

    def __call__(self, prompt, tokens):
        with tempfile.NamedTemporaryFile() as file:
            file.write(prompt), file.flush()
            out = subprocess.run(self.command + ["--prompt-file", file.name, "--tokens", str(tokens)], check=True,
                                 capture_output=True)
        told = json.loads(out.stdout)
        return told["tokens_per_second"], bytes(t["id"] for t in told["tokens"])


def prompts_of(path, count, length):
    """Pieces that are whole characters, spread over the text."""
    text = open(path, "rb").read()
    found = []
    for i in range(count):
        at = i * (len(text) - 2 * length) // count
        while True:
            try:
                text[at:at + length].decode()
                break
            except UnicodeDecodeError:
                at += 1
        found.append(text[at:at + length])
    return found


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("program", help="moeskip")
    args.add_argument("model")
    args.add_argument("--text", required=True)
    args.add_argument("--draft")
    args.add_argument("--prompts", type=int, default=8)
    args.add_argument("--tokens", type=int, default=0, help="what the context has room for")
    args.add_argument("--json", help="file to append to")
    args = args.parse_args()
    threads = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
    torch.set_num_threads(threads)
    runs = {"ours.plain": Ours(args.program, args.model, "plain", threads),
            "ours.speculative": Ours(args.program, args.model, "speculative", threads)}
    context = 0
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        model, context = load(args.model, dtype)
        ways = {"plain": {}, "lookup": {"prompt_lookup_num_tokens": 4},
                "early_exit": {"assistant_early_exit": model.config.num_hidden_layers // 2}}
        if args.draft:
            ways["small_model"] = {"assistant_model": load(args.draft, dtype)[0]}
        for way, options in ways.items():
            runs[f"transformers.{way}.{name}"] = Theirs(model, **options)
    length = min(64, context // 4)
    tokens = args.tokens or context - length
    prompts = prompts_of(args.text, args.prompts, length)
    for name, run in list(runs.items()):
        try:
            run(prompts[0], min(8, tokens))
        except Exception as e:
            print(f"{name}: cannot run: {str(e).splitlines()[0] if str(e) else type(e).__name__}")
            del runs[name]
    rates, same = {name: [] for name in runs}, {name: [] for name in runs}
    for prompt in prompts:
        plain = None
        for name, run in runs.items():
            time.sleep(0.05)  # the threads of the one before go to sleep
            rate, text = run(prompt, tokens)
            plain = text if plain is None else plain
            rates[name].append(rate)
            same[name].append(sum(a == b for a, b in zip(plain, text)) / len(plain))
    print(f"{args.prompts} prompts of {length} bytes, {tokens} new ones, {threads} threads")
    print(f"{'':32}{'tokens/s':>10}{'of ours':>9}{'same text':>11}")
    out = open(args.json, "a") if args.json else None
    for name in runs:
        ratio = statistics.median(a / b for a, b in zip(rates[name], rates["ours.plain"]))
        print(f"{name:32}{statistics.median(rates[name]):10.0f}{ratio:9.2f}{100 * statistics.mean(same[name]):9.0f} %")
        if out:
            line = {"name": f"decode.{name}", "value": statistics.median(rates[name]), "unit": "tokens/s", "ratio": ratio,
                    "of": "ours.plain", "same_text": statistics.mean(same[name])}
            out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
