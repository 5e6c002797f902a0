"""Compare a model with what torch.compile makes of it: time, kernels, bytes, graph breaks.

usage: python scripts/compare_compile.py MODEL [--input SPEC] [--arch CODE] [--mode default]
           [--device cuda] [--repeats N]

MODEL is what `flopprof run` takes: a file, "torchvision:resnet18", "my_net.py:build".
"""

import argparse
import sys

import flopprof
from flopprof.units import duration, percent, si

MOST_KERNELS = 10  # printed, those of most time


def main(arguments: list[str] | None = None) -> None:
    """Profile the model, compiled and not, and print both beside each other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--input")
    parser.add_argument("--arch")
    parser.add_argument("--mode", default="default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args(arguments)
    try:
        run = flopprof.profile(
            args.model,
            input=args.input,
            arch=args.arch,
            compile=args.mode,
            device=args.device,
            repeats=args.repeats,
            progress=lambda stage: print(stage, file=sys.stderr),
        )
    except flopprof.FlopprofError as error:
        sys.exit(f"error: {error.problem}\n{error.remedy}")
    timing = run.provenance.timing
    compiled = run.provenance.compiled
    eager_us = timing.eager_wall_us.median
    compiled_us = timing.wall_us.median
    print(f"eager     {duration(eager_us)}")
    print(f"compiled  {duration(compiled_us)}, {eager_us / compiled_us:.2f} times as fast")
    print(f"MFU       {percent(run.figures.mfu_frac)} compiled")
    print(f"bytes     {si(compiled.eager_min_bytes, 'B')} eager, {si(compiled.min_bytes, 'B')}")
    print(f"graphs    {compiled.graphs}, compiled again {compiled.recompilations} times")
    for reason, times in compiled.graph_breaks.items():
        print(f"break     {times} ×: {reason}")
    for kernel in compiled.kernels[:MOST_KERNELS]:
        print(f"kernel    {kernel.calls} × {kernel.kernel}: {', '.join(kernel.fuses)}")


if __name__ == "__main__":
    main()
