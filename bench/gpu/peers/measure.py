"""What the peers share: options, a clock, and the lines they print. Exit status 77: no GPU, or a package is missing.

Each line leaves at once: run.sh stops a peer at its limit, and what it printed before counts.
"""
import argparse
import importlib
import json
import statistics
import sys
import time
import traceback

started = time.perf_counter()
SECONDS = 530  # run.sh's limit


def skip(why):
    print(why, file=sys.stderr)
    sys.exit(77)


def need(package):
    try:
        return importlib.import_module(package)
    except (ImportError, OSError) as e:
        skip(f"{package} cannot be imported: {e}")


def options(doc):
    args = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args.add_argument("--tiny", action="store_true", help="smallest sizes, one repetition")
    args = args.parse_args()
    if args.device == "cuda" and not need("torch").cuda.is_available():
        skip("no GPU: torch finds no CUDA device")
    return args


def line(what, value, unit):
    """One result: an object on stdout, and for people on stderr."""
    print(json.dumps({"what": what, "value": float(f"{value:.6g}"), "unit": unit}), flush=True)
    print(f"{what:52} {value:12.4g} {unit}", file=sys.stderr, flush=True)


def failed(what, reason):
    """A result that is missing, and why. Quotes and backslashes of a reason interest nobody."""
    reason = reason.replace('"', "'").replace("\\", "/").encode("ascii", "replace").decode()
    print(json.dumps({"what": what, "failed": reason}), flush=True)
    print(f"{what:52} failed: {reason}", file=sys.stderr, flush=True)


def attempt(what, work):
    """What work() returns; None where it fails, which is told and loses nothing else."""
    try:
        return work()
    except Exception as e:
        told = str(e).strip().splitlines()
        failed(what, f"{type(e).__name__}: {told[0] if told else ''}")
        traceback.print_exc()
        return None


def time_left(seconds):
    """Whether so many seconds are left before the limit."""
    return time.perf_counter() - started + seconds < SECONDS


def median_time(work, args, runs=9, warm_up=3):
    """Seconds of one work(), behind a warm-up; on a GPU between two events, nothing else in its queue."""
    torch = need("torch")
    if args.tiny:
        runs = warm_up = 1
    times = []
    for i in range(warm_up + runs):
        if args.device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            work()
            end.record()
            torch.cuda.synchronize()
            took = begin.elapsed_time(end) / 1000
        else:
            start = time.perf_counter()
            work()
            took = time.perf_counter() - start
        if i >= warm_up:
            times.append(took)
    return statistics.median(times)
