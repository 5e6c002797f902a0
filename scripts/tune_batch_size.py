"""Say which batch size to take: throughput and latency of each, in a process of its own.

usage: python scripts/tune_batch_size.py MODEL [--batch 1,2,4,8] [--input SPEC] [--arch CODE]
           [--device cuda] [--repeats N] [-o DIR]

MODEL is what `flopprof run` takes: a file, "torchvision:resnet18", "my_net.py:build". With -o the
cells are kept, and a run that was stopped goes on.
"""

import argparse
import sys

import flopprof


def main(arguments: list[str] | None = None) -> None:
    """Sweep over the batch sizes; print the table and the recommendation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--batch", default="1,2,4,8,16,32")
    parser.add_argument("--input")
    parser.add_argument("--arch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("-o", "--output")
    args = parser.parse_args(arguments)
    try:
        sizes = [int(size) for size in args.batch.split(",")]
    except ValueError:
        parser.error(f"--batch is {args.batch!r}: give whole numbers, such as 1,2,4")
    try:
        swept = flopprof.sweep(
            args.model,
            {"device": [args.device], "batch": sizes},
            output=args.output,
            progress=lambda stage: print(stage, file=sys.stderr),
            input=args.input,
            arch=args.arch,
            repeats=args.repeats,
        )
    except flopprof.FlopprofError as error:
        sys.exit(f"error: {error.problem}\n{error.remedy}")
    columns = ["batch", "status", "latency_p50_us", "samples_per_s", "mfu_frac", "bound"]
    print(swept.table[columns].to_string(index=False))
    if swept.recommendation is not None:
        print(swept.recommendation.text)


if __name__ == "__main__":
    main()
