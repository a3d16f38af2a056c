#!/usr/bin/env python3
"""What the machine allows, by PyTorch: bf16 products of 8192³ (cuBLAS), and reading 8 GiB once.

    python3 bench/gpu/peers/limits.py [--device cuda|cpu] [--tiny]

The reading is the faster one of a sum and a maximum of floats. Medians; exit status 77: no GPU or no torch.
"""
import measure

torch = measure.need("torch")


def matmul_rate(args):
    """FLOP/s, two per multiply-add."""
    n = 128 if args.tiny else 8192
    a, b = (torch.randn(n, n, device=args.device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * n ** 3 / measure.median_time(lambda: torch.mm(a, b, out=out), args, runs=20, warm_up=10)


def read_rate(args):
    """Bytes per second."""
    numbers = torch.rand(1 << (16 if args.tiny else 31), device=args.device)
    seconds = min(measure.median_time(reduction, args) for reduction in (numbers.sum, numbers.amax))
    return numbers.numel() * numbers.element_size() / seconds


def main():
    args = measure.options(__doc__)
    for what, rate, scale, unit in (("peer torch read", read_rate, 1e9, "GB/s"),
                                    ("peer cuBLAS bf16 matmul", matmul_rate, 1e12, "TFLOP/s")):
        measured = measure.attempt(what, lambda: rate(args))
        if measured:
            measure.line(what, measured / scale, unit)


if __name__ == "__main__":
    main()
