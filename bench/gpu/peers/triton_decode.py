#!/usr/bin/env python3
"""One decode step of OLMoE-1B-7B's shape by PyTorch, its mixture by fused Triton kernels, captured in one CUDA graph.

    python3 bench/gpu/peers/triton_decode.py [--device cuda|cpu] [--tiny]

One token behind 512, from its id to its logits, random bf16 weights. The mixture is three kernels: the choice of the
experts, gate and up with SwiGLU for those chosen, down with the weighted sum. All else is PyTorch with a static cache
of keys and values, in two ways, of which the faster one counts:
  plain     as it is
  compiled  a layer by torch.compile, which fuses what is around the kernels
Before that small models must have the logits of a mixture in plain PyTorch. On the CPU Triton's interpreter runs the
kernels and nothing is captured. Exit status 77: no GPU, no torch or no Triton.
"""
import os
import sys
from dataclasses import dataclass

import measure

args = measure.options(__doc__)
if args.device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

torch = measure.need("torch")
triton = measure.need("triton")
tl = measure.need("triton.language")
F = torch.nn.functional


@triton.jit
def choose_kernel(logits, chosen, gates, E: tl.constexpr, K: tl.constexpr):
    """The K experts of the largest probability, and these."""
    at = tl.arange(0, E)
    score = tl.load(logits + at).to(tl.float32)
    score = tl.exp(score - tl.max(score, 0))
    total = tl.sum(score, 0)
    for k in tl.static_range(K):
        best = tl.max(score, 0)
        which = tl.min(tl.where(score == best, at, E), 0)
        tl.store(chosen + k, which)
        tl.store(gates + k, best / total)
        score = tl.where(at == which, -1.0, score)


@triton.jit
def gate_up_kernel(x, weights, chosen, hidden, D: tl.constexpr, FFN: tl.constexpr, ROWS: tl.constexpr,
                   COLS: tl.constexpr):
    """hidden[k] = silu(gate x) * (up x), some rows of the k-th chosen expert. weights (E, 2 FFN, D): gates, ups."""
    k = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    expert = tl.load(chosen + k).to(tl.int64)
    gate_at = weights + expert * (2 * FFN * D) + row[:, None] * D
    gate = tl.zeros((ROWS, COLS), tl.float32)
    up = tl.zeros((ROWS, COLS), tl.float32)
    for start in tl.range(0, D, COLS):
        col = start + tl.arange(0, COLS)
        value = tl.load(x + col).to(tl.float32)[None, :]
        gate += tl.load(gate_at + col[None, :]).to(tl.float32) * value
        up += tl.load(gate_at + FFN * D + col[None, :]).to(tl.float32) * value
    g = tl.sum(gate, 1)
    tl.store(hidden + k * FFN + row, g / (1 + tl.exp(-g)) * tl.sum(up, 1))


@triton.jit
def down_kernel(hidden, weights, chosen, gates, x, out, D: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr,
                ROWS: tl.constexpr, COLS: tl.constexpr):
    """out = x + the sum over k of gates[k] * (down hidden[k]): some rows, of all K experts. weights (E, D, FFN)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for k in tl.static_range(K):
        expert = tl.load(chosen + k).to(tl.int64)
        gate = tl.load(gates + k)
        from_row = weights + expert * (D * FFN) + row[:, None] * FFN
        for start in tl.range(0, FFN, COLS):
            col = start + tl.arange(0, COLS)
            value = tl.load(hidden + k * FFN + col) * gate
            total += tl.load(from_row + col[None, :]).to(tl.float32) * value[None, :]
    y = tl.load(x + row).to(tl.float32) + tl.sum(total, 1)
    tl.store(out + row, y.to(out.dtype.element_ty))


@dataclass
class Shape:
    """Multiples of the kernels' blocks; experts a power of two."""
    layers: int = 16
    dim: int = 2048
    heads: int = 16
    experts: int = 64
    top: int = 8
    ffn: int = 1024
    vocab: int = 50304
    context: int = 512


def tuned(kernel, key, shape):
    """The kernel with its blocks chosen by time on a GPU; for small shapes with one choice."""
    blocks = [(r, c, w) for r in (1, 2, 4, 8, 16) for c in (256, 512, 1024) for w in (2, 4, 8)
              if 8 <= r * c // (32 * w) <= 32]
    if shape.dim < 1024:
        blocks = [(4, 64, 1)]
    if args.device == "cpu":  # there is nothing to choose
        rows, cols, _ = blocks[0]
        return lambda grid, *values, **sizes: kernel[grid({"ROWS": rows})](*values, ROWS=rows, COLS=cols, **sizes)
    configs = [triton.Config({"ROWS": r, "COLS": c}, num_warps=w) for r, c, w in blocks]
    chosen = triton.autotune(configs, key=key)(kernel)
    return lambda grid, *values, **sizes: chosen[grid](*values, **sizes)


def triton_mixture(shape):
    gate_up = tuned(gate_up_kernel, ["D", "FFN"], shape)
    down = tuned(down_kernel, ["D", "FFN"], shape)
    D, N, E, K = shape.dim, shape.ffn, shape.experts, shape.top

    def mixture(x, h, w):
        logits = F.linear(h, w["router"])
        chosen = torch.empty(K, dtype=torch.int32, device=x.device)
        gates, hidden = (torch.empty(n, dtype=torch.float32, device=x.device) for n in (K, K * N))
        out = torch.empty_like(x)
        choose_kernel[(1,)](logits, chosen, gates, E=E, K=K, num_warps=1)
        gate_up(lambda meta: (K, N // meta["ROWS"]), h, w["gate_up"], chosen, hidden, D=D, FFN=N)
        down(lambda meta: (D // meta["ROWS"],), hidden, w["down"], chosen, gates, x, out, D=D, FFN=N, K=K)
        return out

    return mixture


def plain_mixture(shape):
    """The same without kernels of our own."""
    def mixture(x, h, w):
        gates, chosen = F.linear(h, w["router"])[0].float().softmax(-1).topk(shape.top)
        gate, up = (w["gate_up"][chosen].float() @ h[0].float()).chunk(2, -1)
        y = (w["down"][chosen].float() @ (F.silu(gate) * up)[:, :, None])[:, :, 0]
        return x + (gates @ y).to(x.dtype)

    return mixture


class Model:
    def __init__(self, shape, dtype):
        torch.manual_seed(1)
        self.shape = s = shape
        self.dtype = dtype
        self.layers = [{"qkv": self.draw(3 * s.dim, s.dim), "out": self.draw(s.dim, s.dim),
                        "router": self.draw(s.experts, s.dim), "gate_up": self.draw(s.experts, 2 * s.ffn, s.dim),
                        "down": self.draw(s.experts, s.dim, s.ffn),
                        "norms": torch.ones(4, s.dim, dtype=dtype, device=args.device)}
                       for _ in range(s.layers)]
        self.embedding, self.head = self.draw(s.vocab, s.dim), self.draw(s.vocab, s.dim)
        self.norm = torch.ones(s.dim, dtype=dtype, device=args.device)
        d = s.dim // s.heads
        slots = s.context + 8
        self.cache = [[self.draw(1, s.heads, slots, d) for _ in range(2)] for _ in range(s.layers)]
        angles = torch.outer(torch.arange(slots), 10000.0 ** (-torch.arange(0, d, 2) / d)).to(args.device)
        self.cos, self.sin = angles.cos(), angles.sin()
        self.slot = torch.arange(slots, device=args.device)

    def draw(self, *extents):
        return torch.randn(*extents, dtype=self.dtype, device=args.device) * extents[-1] ** -0.5

    def layer(self, mixture, x, w, cache, position, rotation, seen):
        """x (1, dim). Writes the token's keys and values."""
        s = self.shape
        norms = w["norms"].unbind()
        h = F.rms_norm(x, (s.dim,), norms[0], 1e-5)
        q, k, v = F.linear(h, w["qkv"]).chunk(3, -1)
        q, k = F.rms_norm(q, (s.dim,), norms[1], 1e-5), F.rms_norm(k, (s.dim,), norms[2], 1e-5)
        cos, sin = rotation

        def rotate(t):
            a, b = t.view(1, s.heads, 1, -1).float().chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)

        keys, values = cache
        keys[:, :, position] = rotate(k)
        values[:, :, position] = v.view(1, s.heads, 1, -1)
        y = F.scaled_dot_product_attention(rotate(q), keys, values, attn_mask=seen)
        x = x + F.linear(y.view(1, s.dim), w["out"])
        return mixture(x, F.rms_norm(x, (s.dim,), norms[3], 1e-5), w)

    def step(self, layer, mixture, token, position):
        """Logits (1, vocab) of a token, a tensor of one id, at a position, too."""
        x = F.embedding(token, self.embedding)
        rotation = self.cos[position], self.sin[position]
        seen = torch.zeros_like(self.slot, dtype=self.dtype).masked_fill(self.slot > position, float("-inf"))
        seen = seen[None, None, None]
        for w, cache in zip(self.layers, self.cache):
            x = layer(mixture, x, w, cache, position, rotation, seen)
        return F.linear(F.rms_norm(x, (self.shape.dim,), self.norm, 1e-5), self.head)


def apart(a, b):
    return float((a.float() - b.float()).norm() / b.float().norm())


def check():
    """The kernels against plain PyTorch: whole steps in f32, where hardly two experts are near a tie."""
    shape = Shape(layers=2, dim=128, heads=4, experts=16, top=4, ffn=64, vocab=512, context=24)
    model = Model(shape, torch.float32)
    worst = 0.0
    for token in range(1 if args.tiny else 8):
        at = torch.tensor([token + 3], device=args.device), torch.tensor([shape.context - token], device=args.device)
        expected = model.step(model.layer, plain_mixture(shape), *at)
        worst = max(worst, apart(model.step(model.layer, triton_mixture(shape), *at), expected))
    print(f"small models: logits {worst:.2g} of their norm from plain PyTorch's", file=sys.stderr)
    if not worst < 1e-4:
        sys.exit("failed: the kernels do not compute what plain PyTorch does")


def check_block(model, mixture):
    """The mixture of one layer of the model that is timed: both see the same input, so both choose the same experts."""
    h = torch.randn(1, model.shape.dim, device=args.device).to(model.dtype)
    nothing = torch.zeros_like(h)
    far = apart(mixture(nothing, h, model.layers[0]), plain_mixture(model.shape)(nothing, h, model.layers[0]))
    print(f"one mixture: {far:.2g} of its norm from plain PyTorch's", file=sys.stderr)
    if not far < 0.02:
        sys.exit("failed: the kernels do not compute what plain PyTorch does")


def decode(model, mixture, layer):
    """Tokens per second."""
    token, position = (torch.tensor([n], device=args.device) for n in (7, model.shape.context))
    step = lambda: model.step(layer, mixture, token, position)
    step()
    if args.device == "cuda":
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what is compiled, tuned and allocated once is not captured
            for _ in range(3):
                expected = step()
        torch.cuda.current_stream().wait_stream(aside)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        graph.replay()
        far = apart(captured, expected)
        if not far < 0.5:
            raise ArithmeticError(f"the graph's logits are {far:.2g} of their norm from those before it")
        step = graph.replay
    return 1 / measure.median_time(step, args, runs=50, warm_up=10)


def main():
    print(f"torch {torch.__version__}, Triton {triton.__version__}", file=sys.stderr)
    with torch.no_grad():
        check()
        shape = Shape()
        if args.tiny:
            shape = Shape(layers=2, dim=128, heads=2, experts=8, top=2, ffn=64, vocab=256, context=16)
        model = Model(shape, torch.bfloat16)
        mixture = triton_mixture(model.shape)
        check_block(model, mixture)
        compiled = torch.compile(model.layer, dynamic=False, fullgraph=True,
                                 options={"coordinate_descent_tuning": True})
        best = 0
        for way, layer in ("plain", model.layer), ("compiled", compiled):
            if way == "compiled" and args.device == "cpu":  # interpreted kernels are none to a compiler
                way, mixture = "compiled, without the kernels", plain_mixture(model.shape)
            rate = measure.attempt(f"Triton decode, {way}", lambda: decode(model, mixture, layer))
            if rate:
                measure.line(f"Triton decode, {way}", rate, "tokens/s")
            if rate and rate > best:
                best = rate
                measure.line("peer Triton decode", best, "tokens/s")
    if not best:
        measure.failed("peer Triton decode", "no way of decoding ran")
        sys.exit(1)


if __name__ == "__main__":
    main()
