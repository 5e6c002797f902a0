"""Time counting beside torch's FlopCounterMode: same model, same meta device, one run.

usage: python scripts/bench_count.py [--repeats N]

Prints, per model, the median and spread of both and their ratio. Imports are paid before.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import flopprof


def main() -> None:
    """Time each model in turn, the two counters alternating."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, flopprof {flopprof.__version__}, {args.repeats} repeats")
    print(f"{'model':16} {'flopprof ms (min–max)':>26} {'FlopCounterMode ms':>26} {'ratio':>6}")
    for name, (model, x) in models().items():
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(args.repeats + 1):
            ours.append(milliseconds(partial(flopprof.count_flops, model, x)))
            theirs.append(milliseconds(partial(by_torch, model, x)))
        ours, theirs = ours[1:], theirs[1:]  # the first call of each fills caches
        ratio = statistics.median(ours) / statistics.median(theirs)
        print(f"{name:16} {spread(ours):>26} {spread(theirs):>26} {ratio:6.2f}")


def models() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Return the models and their inputs, on the meta device."""
    with torch.device("meta"):
        image = torch.empty(1, 3, 224, 224)
        layer = nn.TransformerEncoderLayer(512, 8, batch_first=True)
        return {
            **{
                name: (torchvision.models.get_model(name).eval(), image)
                for name in ("resnet50", "vit_b_16", "swin_t")
            },
            "transformer x 24": (
                nn.TransformerEncoder(layer, 24, enable_nested_tensor=False).eval(),
                torch.empty(1, 128, 512),
            ),
        }


def by_torch(model: nn.Module, x: torch.Tensor) -> int:
    """Return FlopCounterMode's total."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops()


def milliseconds(call: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def spread(values: list[float]) -> str:
    """Return median and range as text."""
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


if __name__ == "__main__":
    main()
