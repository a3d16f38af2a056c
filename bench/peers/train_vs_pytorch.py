#!/usr/bin/env python3
"""Training steps of the same MoE, here and in PyTorch, in turn: one of ours, one of each PyTorch way, and again.

    python3 bench/peers/train_vs_pytorch.py build/cpu-release/bench/peer_train_step [--pairs N] [--json FILE]

PyTorch runs eager and compiled, in f32 and under bf16 autocast, with as many threads. The model: 8 layers, dim 512,
8 heads on 2 key/value heads, 8 experts top-2 of width 1024, 8 sequences of 256 bytes; AdamW. Experts are visited one by
one, each with the rows that chose it, which is the fastest plain PyTorch does at this size on a CPU.
Needs torch. Prints a table; with --json one object a line: name, value, unit, of.
"""
import argparse
import json
import os
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F
from torch import nn

L, D, H, G, FFN, E, K, V, C, S = 8, 512, 8, 2, 1024, 8, 2, 256, 256, 8
d = D // H


def rope(x, angles):
    """x (S, heads, C, d); angles (C, d/2)."""
    a, b = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.Parameter(torch.ones(D)), nn.Parameter(torch.ones(D))
        self.qkv = nn.Parameter(torch.randn((H + 2 * G) * d, D) / D ** 0.5)
        self.out = nn.Parameter(torch.randn(D, D) / D ** 0.5 / 4)
        self.router = nn.Parameter(torch.randn(E, D) / D ** 0.5)
        # A parameter for each expert: the gradient of a slice of one would be as large as the whole.
        self.gate_up = nn.ParameterList(torch.randn(2 * FFN, D) / D ** 0.5 for _ in range(E))
        self.down = nn.ParameterList(torch.randn(D, FFN) / FFN ** 0.5 / 4 for _ in range(E))

    def forward(self, x, angles):
        h = F.rms_norm(x, (D,), self.norm1, 1e-5)
        q, k, v = F.linear(h, self.qkv).split([H * d, G * d, G * d], -1)
        q, k, v = (t.unflatten(-1, (-1, d)).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(rope(q, angles), rope(k, angles), v, is_causal=True, enable_gqa=True)
        x = x + F.linear(y.transpose(1, 2).flatten(-2), self.out)
        h = F.rms_norm(x, (D,), self.norm2, 1e-5).flatten(0, 1)  # (N, D)
        logits = F.linear(h, self.router).float()
        p = logits.softmax(-1)
        gate, chosen = p.topk(K)
        gate = gate / gate.sum(-1, keepdim=True)
        load = F.one_hot(chosen, E).float().mean((0, 1))
        losses = 0.01 * E * (load * p.mean(0)).sum() + 0.001 * logits.logsumexp(-1).square().mean()
        out = torch.zeros_like(h)
        for e in range(E):
            row, which = (chosen == e).nonzero(as_tuple=True)
            a, b = F.linear(h[row], self.gate_up[e]).chunk(2, -1)
            y = F.linear(F.silu(a) * b, self.down[e]) * gate[row, which, None]
            out = out.index_add(0, row, y.to(out.dtype))
        return x + out.view_as(x), losses


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        self.layers = nn.ModuleList(Layer() for _ in range(L))
        self.norm, self.head = nn.Parameter(torch.ones(D)), nn.Parameter(torch.randn(V, D) / D ** 0.5)
        frequency = 10000.0 ** (-torch.arange(0, d, 2) / d)
        self.register_buffer("angles", torch.outer(torch.arange(C).float(), frequency))

    def forward(self, tokens, targets):
        x, extra = self.embedding(tokens), 0.0
        for layer in self.layers:
            x, losses = layer(x, self.angles)
            extra = extra + losses / L
        logits = F.linear(F.rms_norm(x, (D,), self.norm, 1e-5), self.head)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()) + extra


class Peer:
    """A PyTorch model that makes one step at a time."""

    def __init__(self, compiled, bf16):
        torch.manual_seed(1)
        self.model, self.bf16 = Model(), bf16
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        self.run = torch.compile(self.model) if compiled else self.model
        text = torch.arange(1 << 20)
        self.text = text * text // 91 % 256

    def step(self):
        at = torch.randint(len(self.text) - C - 1, (S,)).tolist()
        tokens = torch.stack([self.text[i:i + C] for i in at])
        targets = torch.stack([self.text[i + 1:i + C + 1] for i in at])
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.run(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return time.perf_counter() - start


class Ours:
    def __init__(self, program, kind):
        self.process = subprocess.Popen([program, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.flops, self.peak = map(float, self.process.stdout.readline().split())

    def step(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("program", help="peer_train_step")
    args.add_argument("--pairs", type=int, default=7)
    args.add_argument("--json", help="file to append to")
    args = args.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    runs = {"ours.f32": Ours(args.program, "f32"), "ours.bf16": Ours(args.program, "bf16"),
            "pytorch.eager.f32": Peer(False, False), "pytorch.eager.bf16": Peer(False, True)}
    for name, bf16 in (("pytorch.compiled.f32", False), ("pytorch.compiled.bf16", True)):
        peer = Peer(True, bf16)
        try:
            peer.step()
            runs[name] = peer
        except Exception as e:  # without a C++ compiler, say
            print(f"{name}: cannot be compiled: {str(e).splitlines()[0]}")
    seconds = {name: [] for name in runs}
    for pair in range(-2, args.pairs):  # two rounds to warm up
        for name, run in runs.items():
            time.sleep(0.05)  # the threads of the one before go to sleep
            took = run.step()
            if pair >= 0:
                seconds[name].append(took)

    lines = []

    def line(name, value, unit, of=None):
        print(f"{name:36} {value:12.4g} {unit}" + (f" of {of}" if of else ""))
        lines.append({"name": name, "value": value, "unit": unit} | ({"of": of} if of else {}))

    for name in runs:
        line(f"train.{name}.tokens_per_second", S * C / statistics.median(seconds[name]), "tokens/s")

    def ratio(ours, theirs):
        """How much faster ours is: the median over the rounds."""
        return statistics.median(min(t) / o for o, *t in zip(seconds[ours], *(seconds[name] for name in theirs)))

    f32 = [name for name in runs if name.startswith("pytorch") and name.endswith("f32")]
    every = [name for name in runs if name.startswith("pytorch")]
    best = min(("ours.f32", "ours.bf16"), key=lambda name: statistics.median(seconds[name]))
    line("train.vs_pytorch.f32", ratio("ours.f32", f32), "ratio", "PyTorch's best, f32")
    line("train.vs_pytorch", ratio(best, every), "ratio", "PyTorch's best of any type")
    ours = runs["ours.f32"]
    line("train.large.peak_fraction", ours.flops / statistics.median(seconds["ours.f32"]) / ours.peak, "ratio", "fma.peak")
    if args.json:
        with open(args.json, "a") as file:
            file.writelines(json.dumps(x) + "\n" for x in lines)


if __name__ == "__main__":
    main()
