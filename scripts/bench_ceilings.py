"""Search GEMM shapes by brute force beside the measured matmul ceiling: same run, same threads.

usage: python scripts/bench_ceilings.py [--threads N] [--dtypes float32 bfloat16] [--quick]

Prints, per dtype, the fastest shapes that a grid of m, k and n holds, with median and spread, and
the ratio of the best rate found to the ceiling; exits with 1 where the ceiling lies below 95 % of
it. Its timing shares no code with the ceilings'.
"""

import argparse
import itertools
import statistics
import sys
import time
from functools import partial

import torch

from flopprof.ceilings.measure import measure_ceilings
from flopprof.devices import find_device

SIZES = (32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
QUICK_SIZES = (64, 128, 256, 512, 1024, 2048)
LEAST_FLOPS = 1e6
MOST_FLOPS = 4e9  # under a tenth of a second a call at 50 GFLOP/s
SCAN_S = 0.03  # a shape's time in the first round
FINAL_S = 0.2  # … and a finalist's in each of the last rounds
FINALISTS = 8
ROUNDS = 5
LEAST_SHARE = 0.95  # of the best rate found, that a ceiling must reach


def main() -> int:
    """Measure both per dtype, print them, and return 1 if a ceiling is too low."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--quick", action="store_true", help="a coarser grid")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cpu = find_device("cpu")
    sizes = QUICK_SIZES if args.quick else SIZES
    all_shapes = itertools.product(sizes, repeat=3)
    shapes = [shape for shape in all_shapes if LEAST_FLOPS <= flops(shape) <= MOST_FLOPS]
    print(f"{cpu.describe()['name']}, torch {torch.__version__}, {args.threads} threads")
    print(f"{len(shapes)} shapes m x k x n; GFLOP/s: best, median (p5–p95), calls")
    too_low = []
    for dtype in args.dtypes:
        notes: list[str] = []
        ceilings = measure_ceilings(
            cpu, [(dtype, "tensor")], notes=notes, progress=lambda _stage: None
        )
        if not ceilings:
            print(f"\n{dtype}: {'; '.join(notes)}")
            continue
        ceiling = ceilings[0]
        busy = "" if ceiling.valid else ", NOT VALID: the machine is busy"
        print(f"\n{dtype}: ceiling{busy}, then the fastest shapes found")
        measurement = ceiling.measurement
        print_row(
            measurement["shape"],
            best=measurement["best_per_s"],
            median=measurement["median_per_s"],
            p5=measurement["p5_per_s"],
            p95=measurement["p95_per_s"],
            calls=measurement["calls"],
        )
        best = brute_force(getattr(torch, dtype), shapes)
        ratio = best / ceiling.per_s
        print(f"{dtype}: best found / ceiling = {ratio:.3f} (at most {1 / LEAST_SHARE:.3f})")
        if ratio > 1 / LEAST_SHARE:
            too_low.append(dtype)
    print(f"\nceiling too low: {', '.join(too_low) or 'none'}")
    return 1 if too_low else 0


def brute_force(dtype: torch.dtype, shapes: list[tuple[int, ...]]) -> float:
    """Time every shape, the fastest ones again in turns; print these and return the best rate."""
    scanned = {shape: max(rates(shape, dtype, SCAN_S)) for shape in shapes}
    finalists = sorted(scanned, key=lambda shape: -scanned[shape])[:FINALISTS]
    timed: dict[tuple[int, ...], list[float]] = {shape: [scanned[shape]] for shape in finalists}
    for _, shape in itertools.product(range(ROUNDS), finalists):
        timed[shape] += rates(shape, dtype, FINAL_S)
    for shape, values in sorted(timed.items(), key=lambda item: -max(item[1])):
        steps = statistics.quantiles(values, n=20, method="inclusive")
        print_row(
            " x ".join(map(str, shape)),
            best=max(values),
            median=statistics.median(values),
            p5=steps[0],
            p95=steps[-1],
            calls=len(values),
        )
    return max(map(max, timed.values()))


def print_row(label: str, *, best: float, median: float, p5: float, p95: float, calls: int) -> None:
    """Print rates in GFLOP/s."""
    spread = f"({p5 / 1e9:.1f}–{p95 / 1e9:.1f})"
    print(f"  {label:22} {best / 1e9:8.1f} {median / 1e9:8.1f} {spread:16} {calls:6}")


def rates(shape: tuple[int, ...], dtype: torch.dtype, seconds: float) -> list[float]:
    """Return FLOP/s of each call of one product, for so long and at least three calls."""
    m, k, n = shape
    # 30 times: most values then differ from zero as int8, too.
    a = (torch.randn(m, k) * 30).to(dtype)
    b = (torch.randn(k, n) * 30).to(dtype)
    call = partial(torch.mm, a, b, out=a @ b)
    if dtype == torch.int8:  # widens to int32, which torch.mm does not
        call = partial(torch._int_mm, a, b)
    per_s: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(per_s) < 3 or time.perf_counter() < deadline:
        start = time.perf_counter()
        call()
        per_s.append(flops(shape) / (time.perf_counter() - start))
    return per_s


def flops(shape: tuple[int, ...]) -> float:
    """Return the FLOPs of an m x k x n product."""
    m, k, n = shape
    return 2.0 * m * k * n


if __name__ == "__main__":
    sys.exit(main())
