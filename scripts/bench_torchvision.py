"""Count torchvision's classifiers, and time them if asked: one row a model.

usage: python scripts/bench_torchvision.py [NAME …] [--time] [--size 224] [--device cuda]

Without names all are counted, on the meta device, without weights. GMACs are half of GFLOPs.
"""

import argparse
import sys

import torch
from torchvision import models

import flopprof

OWN_SIZES = {"inception_v3": 299}
"""Models that were made for other pictures than the rest."""


def main(arguments: list[str] | None = None) -> None:
    """Print each model's row as it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--time", action="store_true", help="profile each, not only count")
    parser.add_argument("--size", type=int, help="of the picture (default: 224, or the model's)")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(arguments)
    classifiers = models.list_models(module=models)
    if unknown := sorted(set(args.names) - set(classifiers)):
        parser.error(f"torchvision has no classifier {unknown[0]!r}")
    timed = f"{'ms':>9}{'GFLOP/s':>9}{'coverage':>10}" if args.time else ""
    print(f"{'model':28}{'Mparams':>9}{'matmul GFLOPs':>15}{'all GFLOPs':>12}{timed}")
    for name in args.names or classifiers:
        side = args.size or OWN_SIZES.get(name, 224)
        with torch.device("cpu" if args.time else "meta"):
            model = models.get_model(name, weights=None).eval()
        try:
            print(row(name, model, (1, 3, side, side), args), flush=True)
        except flopprof.FlopprofError as error:
            print(f"{name:28}error: {error.problem}", file=sys.stderr)


def row(name: str, model: torch.nn.Module, size: tuple[int, ...], args: argparse.Namespace) -> str:
    """Return a model's row."""
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    if not args.time:
        count = flopprof.count_flops(model, size)
        return f"{name:28}{millions:9.2f}{count.matmul_flops / 1e9:15.3f}{count.flops / 1e9:12.3f}"
    totals = flopprof.profile(model.to(args.device), size).totals
    rate = totals.flops / totals.wall_us / 1e3
    counts = f"{totals.matmul_flops / 1e9:15.3f}{totals.flops / 1e9:12.3f}"
    times = f"{totals.wall_us / 1e3:9.2f}{rate:9.1f}{totals.coverage_frac:10.1%}"
    return f"{name:28}{millions:9.2f}{counts}{times}"


if __name__ == "__main__":
    main()
