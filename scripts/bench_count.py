"""Time counting beside torch's FlopCounterMode: same model, same device, one process, in turn.

usage: python scripts/bench_count.py [--repeats N] [--cpu] [--output FILE] [MODEL …]

Prints CPU time per model: median and range of both, and of the ratio turn by turn. Imports are paid
before. Shapes met before are not worked out again, by flopprof; "forgetful" is flopprof without
that memory. Model and inputs are on the meta device, where a count takes place; with --cpu they
are on the CPU, and FlopCounterMode runs the model's arithmetic.
"""

import argparse
import csv
import datetime
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import flopprof
from flopprof.capture import meta as shapes
from flopprof.trace.signatures import forget_signatures

CLASSIFIERS = ("resnet50", "vit_b_16", "swin_t", "mobilenet_v3_large", "efficientnet_b0")
LLAMA = {
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 1024,
    "vocab_size": 1000,
}
COLUMNS = ("model", "device", "flopprof_ms", "forgetful_ms", "flopcounter_ms", "ratio", "forgetful")


def main() -> None:
    """Time each model in turn, the counters alternating."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="which (default: all)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cpu", action="store_true", help="model and inputs on the CPU")
    parser.add_argument("--output", type=Path, help="write a CSV file, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    device = "cpu" if args.cpu else "meta"
    moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    made_by = (
        f"scripts/bench_count.py {' '.join(sys.argv[1:])}; torch {torch.__version__}, flopprof "
        f"{flopprof.__version__}, {args.repeats} repeats, {moment}; CPU time: median (min-max)"
    )
    print(f"{made_by}\n" + " ".join(f"{name:>22}" for name in COLUMNS))
    rows = []
    for name, (model, inputs) in models(device, args.models):
        row = [name, device, *(spread(*each) for each in timed(model, inputs, args.repeats))]
        print(" ".join(f"{value:>22}" for value in row), flush=True)
        rows.append(row)
    if args.output:
        with args.output.open("w", encoding="utf-8", newline="") as file:
            file.write(f"# {made_by}\n")
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def timed(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], repeats: int
) -> list[tuple[list[float], int]]:
    """Return times in ms of the three and two ratios, each with the decimals to show."""
    ours = partial(flopprof.count_flops, model, inputs)
    theirs = partial(by_torch, model, inputs)
    milliseconds(ours)  # imports, and fills caches
    milliseconds(theirs)
    ours_ms: list[float] = []
    forgetful_ms: list[float] = []
    theirs_ms: list[float] = []
    for _ in range(repeats):
        ours_ms.append(milliseconds(ours))
        theirs_ms.append(milliseconds(theirs))
        shapes._KNOWN.clear()
        forget_signatures()
        forgetful_ms.append(milliseconds(ours))
    return [
        (ours_ms, 1),
        (forgetful_ms, 1),
        (theirs_ms, 1),
        (ratios(ours_ms, theirs_ms), 2),
        (ratios(forgetful_ms, theirs_ms), 2),
    ]


def ratios(mine: list[float], theirs: list[float]) -> list[float]:
    """Return the ratios turn by turn."""
    return [one / other for one, other in zip(mine, theirs, strict=True)]


def models(device: str, wanted: list[str]) -> Iterator[tuple[str, tuple[nn.Module, Any]]]:
    """Yield the models and their inputs, each on the device."""
    import transformers

    image = (torch.zeros(1, 3, 224, 224, device=device),)
    ids = (torch.zeros(1, 128, dtype=torch.long, device=device),)
    builders: dict[str, tuple[Callable[[], nn.Module], tuple[torch.Tensor, ...]]] = {
        name: (partial(torchvision.models.get_model, name), image) for name in CLASSIFIERS
    }
    builders |= {
        "gpt2": (partial(language_model, transformers.GPT2Config()), ids),
        "llama x 12": (partial(language_model, transformers.LlamaConfig(**LLAMA)), ids),
        "lstm": (
            partial(nn.LSTM, 64, 128, 2, batch_first=True),
            (torch.zeros(4, 50, 64, device=device),),
        ),
    }
    for name in wanted or builders:
        make, inputs = builders[name]
        with torch.device(device):
            yield name, (make().eval(), inputs)


def language_model(config: Any) -> nn.Module:
    """Return the model of a configuration of transformers, with random weights."""
    import transformers

    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    return model


def by_torch(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> int:
    """Return FlopCounterMode's total."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops()


def milliseconds(call: Callable[[], object]) -> float:
    """Return how much CPU time one call takes."""
    start = time.process_time()
    call()
    return (time.process_time() - start) * 1e3


def spread(values: list[float], decimals: int) -> str:
    """Return median and range as text."""
    middle = statistics.median(values)
    return f"{middle:.{decimals}f} ({min(values):.{decimals}f}-{max(values):.{decimals}f})"


if __name__ == "__main__":
    main()
