"""Time counting beside torch's FlopCounterMode: same model, same meta device, one run.

usage: python scripts/bench_count.py [--repeats N]

Prints, per model, the median and spread of both and their ratio. Imports are paid before. Shapes
met before are not worked out again, by flopprof; "forgetful" is flopprof without that memory.
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
from flopprof.capture import meta as shapes
from flopprof.trace.signatures import forget_signatures


def main() -> None:
    """Time each model in turn, the two counters alternating."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, flopprof {flopprof.__version__}, {args.repeats} repeats")
    columns = ("flopprof ms (min–max)", "forgetful ms", "FlopCounterMode ms")
    print(f"{'model':16}", *(f"{column:>24}" for column in columns), " ratios")
    for name, (model, x) in models().items():
        calls = (partial(flopprof.count_flops, model, x), partial(by_torch, model, x))
        times: list[list[float]] = [[], [], []]
        for _ in range(args.repeats + 1):
            times[0].append(milliseconds(calls[0]))
            shapes._KNOWN.clear()
            forget_signatures()
            times[1].append(milliseconds(calls[0]))
            times[2].append(milliseconds(calls[1]))
        times = [each[1:] for each in times]  # the first call of each imports and fills caches
        ours, forgetful, theirs = map(statistics.median, times)
        print(f"{name:16}", *(f"{spread(each):>24}" for each in times), end="")
        print(f"  {ours / theirs:.2f} {forgetful / theirs:.2f}")


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
