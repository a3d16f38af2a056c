#!/usr/bin/env python3
"""Training steps of a MoE in PyTorch: tokens/s of the best way by grouped products, and its share of limits.py's.

    python3 bench/gpu/peers/torch_training.py [--device cuda|cpu] [--tiny]

12 layers, dim 768, 12 heads, 16 experts top-2 of 512, vocabulary of 50304, embedding and head apart, 8 sequences of
1024; weights in f32, bf16 autocast; the losses of our default router, gradients clipped, fused AdamW. The ways:
  loop      expert by expert, each with the rows that chose it; the fallback
  grouped   rows sorted by expert, one grouped product for all experts, its offsets on the device
  compiled  grouped, layers and loss by torch.compile
  captured  compiled, the whole step in one CUDA graph
FLOP: matrix products and causal attention, twice as many backward. Exit status 77: no GPU or no torch.
"""
import sys
import time
from dataclasses import dataclass

import measure

torch = measure.need("torch")
from limits import matmul_rate

F, nn = torch.nn.functional, torch.nn
BALANCE, Z = 0.01, 0.001
GROUPED = "peer torch train, grouped_mm"


@dataclass
class Shape:
    layers: int = 12
    dim: int = 768
    heads: int = 12
    experts: int = 16
    top: int = 2
    ffn: int = 512
    vocab: int = 50304
    context: int = 1024
    sequences: int = 8

    def flop_per_token(self):
        attention = 4 * self.dim ** 2 + self.dim * (self.context + 1)  # a token sees half of the context, and itself
        mixture = self.dim * self.experts + 3 * self.top * self.dim * self.ffn
        return 6 * (self.layers * (attention + mixture) + self.dim * self.vocab)


def grouped_product(rows, weights, ends):
    """rows (N, in) sorted by expert, weights (E, out, in), ends (E): where each expert's rows end."""
    product = getattr(F, "grouped_mm", None) or torch._grouped_mm
    return product(rows, weights.transpose(1, 2), offs=ends)


class Layer(nn.Module):
    def __init__(self, shape, grouped):
        super().__init__()
        self.shape, self.grouped = shape, grouped
        D, N, E = shape.dim, shape.ffn, shape.experts
        to_stream = (2 * shape.layers) ** -0.5
        draw = lambda *extents: nn.Parameter(torch.randn(*extents) * extents[-1] ** -0.5)
        self.norm1, self.norm2 = nn.Parameter(torch.ones(D)), nn.Parameter(torch.ones(D))
        self.qkv, self.out, self.router = draw(3 * D, D), draw(D, D), draw(E, D)
        self.gate_up, self.down = draw(E, 2 * N, D), draw(E, D, N)
        for weights in (self.out, self.down):
            weights.data *= to_stream

    def expert_by_expert(self, h, chosen, gates):
        y = torch.zeros_like(h)
        for gate_up, down, e in zip(self.gate_up.unbind(), self.down.unbind(), range(self.shape.experts)):
            row, which = (chosen == e).nonzero(as_tuple=True)
            a, b = F.linear(h[row], gate_up).chunk(2, -1)
            y = y.index_add(0, row, (F.linear(F.silu(a) * b, down) * gates[row, which, None]).to(y.dtype))
        return y

    def all_experts(self, h, chosen, gates):
        order = chosen.flatten().argsort(stable=True)
        ends = F.one_hot(chosen, self.shape.experts).sum((0, 1)).cumsum(0).to(torch.int32)
        rows = h.to(torch.bfloat16).index_select(0, order // self.shape.top)
        a, b = grouped_product(rows, self.gate_up.to(torch.bfloat16), ends).chunk(2, -1)
        y = grouped_product(F.silu(a) * b, self.down.to(torch.bfloat16), ends)
        back = torch.empty_like(order)
        back[order] = torch.arange(order.numel(), device=order.device)
        return (y.index_select(0, back).view(*chosen.shape, -1) * gates[:, :, None]).sum(1)

    def forward(self, x, cos, sin):
        s = self.shape
        q, k, v = F.linear(F.rms_norm(x, (s.dim,), self.norm1, 1e-5), self.qkv).chunk(3, -1)
        q, k, v = (t.view(s.sequences, s.context, s.heads, -1).transpose(1, 2) for t in (q, k, v))

        def rotate(t):
            a, b = t.float().chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(v.dtype)

        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        x = x + F.linear(y.transpose(1, 2).flatten(2), self.out)
        h = F.rms_norm(x, (s.dim,), self.norm2, 1e-5).flatten(0, 1)
        logits = F.linear(h, self.router).float()
        likely = logits.softmax(-1)
        gates, chosen = likely.topk(s.top)
        gates = gates / gates.sum(-1, keepdim=True)
        load = F.one_hot(chosen, s.experts).float().mean((0, 1))
        extra = BALANCE * s.experts * (load * likely.mean(0)).sum() + Z * logits.logsumexp(-1).square().mean()
        experts = self.all_experts if self.grouped else self.expert_by_expert
        return x + experts(h, chosen, gates).view_as(x), extra


class Model(nn.Module):
    def __init__(self, shape, grouped):
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.randn(shape.vocab, shape.dim))
        self.layers = nn.ModuleList(Layer(shape, grouped) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.dim))
        self.head = nn.Parameter(torch.randn(shape.vocab, shape.dim) * shape.dim ** -0.5)
        d = shape.dim // shape.heads
        angles = torch.outer(torch.arange(shape.context), 10000.0 ** (-torch.arange(0, d, 2) / d))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def loss(self, x, targets):
        logits = F.linear(F.rms_norm(x, (self.shape.dim,), self.norm, 1e-5), self.head)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def forward(self, tokens, targets):
        x, extra = F.embedding(tokens, self.embedding), 0.0
        for layer in self.layers:
            x, more = layer(x, self.cos, self.sin)
            extra = extra + more / self.shape.layers
        return self.loss(x, targets) + extra


class Peer:
    """A model in training, by one of the ways."""

    def __init__(self, way, shape, args):
        torch.manual_seed(1)
        self.device = args.device
        with torch.device(args.device):
            self.model = Model(shape, way != "loop")
        if way in ("compiled", "captured"):
            torch._dynamo.reset()
            for layer in self.model.layers:
                layer.compile(dynamic=False)
            self.model.loss = torch.compile(self.model.loss, dynamic=False)
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        rest = [p for p in self.model.parameters() if p.dim() == 1]
        self.optimizer = torch.optim.AdamW([{"params": matrices}, {"params": rest, "weight_decay": 0.0}], lr=1e-4,
                                           betas=(0.9, 0.95), weight_decay=0.1, fused=True,
                                           capturable=way == "captured")
        text = torch.randint(shape.vocab, (shape.sequences, shape.context + 1), device=args.device)
        self.tokens, self.targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
        self.step = self.captured() if way == "captured" else self.eager

    def eager(self):
        """One step; its loss stays on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16):
            loss = self.model(self.tokens, self.targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()

    def captured(self):
        if self.device != "cuda":
            raise RuntimeError("only a GPU has graphs")
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                self.eager()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self.eager()

        def replay():
            graph.replay()
            return loss

        return replay


def main():
    args = measure.options(__doc__)
    print(f"torch {torch.__version__}", file=sys.stderr)
    shape = Shape()
    if args.tiny:
        shape = Shape(layers=2, dim=64, heads=2, experts=4, ffn=32, vocab=256, context=32, sequences=2)
    peak = matmul_rate(args)
    rates, losses = {}, {}

    def timed(way):
        start = time.perf_counter()
        peer = Peer(way, shape, args)
        before = float(peer.step())
        rate = shape.sequences * shape.context / measure.median_time(peer.step, args, runs=7)
        after = float(peer.step())
        took = time.perf_counter() - start
        print(f"{way}: loss from {before:.4f} to {after:.4f}, {took:.0f} s in all", file=sys.stderr, flush=True)
        if not after < before:
            raise ArithmeticError("the loss does not fall")
        return rate, before

    def tell(what, way):
        measure.line(what, rates[way], "tokens/s")
        measure.line(f"{what}: share of the product's FLOP/s", rates[way] * shape.flop_per_token() / peak, "")

    for way in ("compiled", "grouped", "captured", "loop"):  # what counts comes first
        what = f"torch train, {way}"
        if not args.tiny and not measure.time_left(150):
            measure.failed(what, "not tried: no time left")
            continue
        result = measure.attempt(what, lambda: timed(way))
        if result:
            rates[way], losses[way] = result
            measure.line(what, rates[way], "tokens/s")
            if way == max(rates, key=rates.get) and way != "loop":
                tell(GROUPED, way)
        if args.device == "cuda":
            torch.cuda.empty_cache()
    if not rates.keys() - {"loop"}:
        measure.failed(GROUPED, "no way with grouped_mm ran")
        sys.exit(1)
    same = [losses[way] for way in losses if way != "captured"]  # that one has made steps before its first
    if max(same, default=0) - min(same, default=0) > 0.02 * max(same, default=0):
        measure.failed(GROUPED, f"the first loss differs between ways: {losses}")
        sys.exit(1)


if __name__ == "__main__":
    main()
