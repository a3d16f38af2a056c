#!/usr/bin/env python3
"""Training steps of the same MoE, here and in PyTorch, in turn: one of ours, one of each PyTorch way, and again.

    python3 bench/peers/train_vs_pytorch.py build/cpu-release/bench/peer_train_step [--pairs N] [--json FILE]

PyTorch runs in f32 and under bf16 autocast, with as many threads, in three ways, of which the fastest counts:
  loop      expert by expert, each with the rows that chose it
  grouped   rows sorted by expert, one grouped product for all experts
  compiled  grouped, by torch.compile, layer by layer; a loop's rows, whose number depends on the data, break the graph
The model: 8 layers, dim 512, 8 heads on 2 key/value heads, 8 experts top-2 of width 1024, 8 sequences of 256 bytes; AdamW.
malloc is told to keep what PyTorch frees: fresh pages would cost it at each step what the kernel takes to clear them.
Needs torch 2.10 or later. Prints a table; with --json one object a line: name, value, unit, of.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
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
    def __init__(self, grouped):
        super().__init__()
        self.experts = self.all_experts if grouped else self.each_expert
        self.norm1, self.norm2 = nn.Parameter(torch.ones(D)), nn.Parameter(torch.ones(D))
        self.qkv = nn.Parameter(torch.randn((H + 2 * G) * d, D) / D ** 0.5)
        self.out = nn.Parameter(torch.randn(D, D) / D ** 0.5 / 4)
        self.router = nn.Parameter(torch.randn(E, D) / D ** 0.5)
        gate_up, down = torch.randn(E, 2 * FFN, D) / D ** 0.5, torch.randn(E, D, FFN) / FFN ** 0.5 / 4
        # In the loop a parameter for each expert: the gradient of a slice of one would be as large as the whole.
        self.gate_up = nn.Parameter(gate_up) if grouped else nn.ParameterList(gate_up.unbind())
        self.down = nn.Parameter(down) if grouped else nn.ParameterList(down.unbind())

    def each_expert(self, h, chosen, gate):
        out = torch.zeros_like(h)
        for e in range(E):
            row, which = (chosen == e).nonzero(as_tuple=True)
            a, b = F.linear(h[row], self.gate_up[e]).chunk(2, -1)
            y = F.linear(F.silu(a) * b, self.down[e]) * gate[row, which, None]
            out = out.index_add(0, row, y.to(out.dtype))
        return out

    def all_experts(self, h, chosen, gate):
        order = chosen.flatten().argsort(stable=True)
        row, ends = order // K, F.one_hot(chosen, E).sum((0, 1)).cumsum(0).to(torch.int32)
        kind = torch.bfloat16 if torch.is_autocast_enabled("cpu") else h.dtype  # autocast leaves grouped_mm alone
        gate_up, down = self.gate_up.to(kind).transpose(1, 2), self.down.to(kind).transpose(1, 2)
        a, b = torch._grouped_mm(h.index_select(0, row).to(kind), gate_up, offs=ends).chunk(2, -1)
        y = torch._grouped_mm(F.silu(a) * b, down, offs=ends) * gate.flatten().index_select(0, order)[:, None]
        return torch.zeros_like(h).index_add(0, row, y.to(h.dtype))

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
        return x + self.experts(h, chosen, gate).view_as(x), losses


class Model(nn.Module):
    def __init__(self, grouped):
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        self.layers = nn.ModuleList(Layer(grouped) for _ in range(L))
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

    def __init__(self, way, bf16):
        torch.manual_seed(1)
        self.model, self.bf16 = Model(way != "loop"), bf16
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        for layer in self.model.layers if way == "compiled" else ():
            layer.compile()
        text = torch.arange(1 << 20)
        self.text = text * text // 91 % 256

    def step(self):
        at = torch.randint(len(self.text) - C - 1, (S,)).tolist()
        tokens = torch.stack([self.text[i:i + C] for i in at])
        targets = torch.stack([self.text[i + 1:i + C + 1] for i in at])
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.model(tokens, targets)
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
    runs = {"ours.f32": Ours(args.program, "f32"), "ours.bf16": Ours(args.program, "bf16")}
    for way in ("loop", "grouped", "compiled"):
        for kind in ("f32", "bf16"):
            peer = Peer(way, kind == "bf16")
            try:
                peer.step()
                runs[f"pytorch.{way}.{kind}"] = peer
            except Exception as e:  # without a C++ compiler, say
                print(f"pytorch.{way}.{kind}: cannot run: {str(e).splitlines()[0]}")
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

    def fastest(whose, kind=""):
        names = [name for name in runs if name.startswith(whose) and name.endswith(kind)]
        return min(names, key=lambda name: statistics.median(seconds[name]))

    for name, kind in (("train.vs_pytorch.f32", "f32"), ("train.vs_pytorch", "")):
        ours, theirs = fastest("ours", kind), fastest("pytorch", kind)
        pairs = sorted(t / o for o, t in zip(seconds[ours], seconds[theirs]))
        line(name, statistics.median(pairs), "ratio", f"{theirs}, by {ours}; from {pairs[0]:.3g} to {pairs[-1]:.3g}")
    ours = runs["ours.f32"]
    line("train.large.peak_fraction", ours.flops / statistics.median(seconds["ours.f32"]) / ours.peak, "ratio", "fma.peak")
    if args.json:
        with open(args.json, "a") as file:
            file.writelines(json.dumps(x) + "\n" for x in lines)


if __name__ == "__main__":
    keep = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
    if not keep.items() <= os.environ.items():  # malloc reads them when a program starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | keep)
    main()
