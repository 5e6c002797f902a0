"""Recognise every torchvision and timm model from keys and shapes; write results/recognition.csv.

usage: python scripts/bench_recognise.py [--every N] [--update]

Bare, with a `module.` prefix and in a Lightning wrapper: all models of the index, by look-up. With
a head of 7 classes, and with its own fingerprint taken out of the index (leave one out): every N-th
model of timm and all of torchvision (default 6), candidates built and compared as for a file.
A choice is right if it is the model, or counts the same; one that weights cannot tell apart from
plainer ones may be named among the alternatives. "named": the file has the model's name, which
decides between equal weights. `--update` keeps the look-ups of the last table.
"""

import argparse
import csv
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

import flopprof
import flopprof.model.recognise as index
from flopprof.errors import FlopprofError
from flopprof.model import Request
from flopprof.model.architectures import build, find_architecture, input_hint
from flopprof.model.contents import Contents
from flopprof.model.identify import recognise_weights
from flopprof.model.inputs import make_inputs, parse_input
from flopprof.model.pickles import TensorInfo
from flopprof.model.recognise import Entry, named_first, recognise

TARGET = Path(__file__).resolve().parents[1] / "results" / "recognition.csv"
Shapes = dict[str, tuple[int, ...]]


def main() -> None:
    """Try each model in each way and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=6)
    parser.add_argument("--update", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    entries, _ = index._index()
    rows = []
    before = {}
    if args.update:
        with TARGET.open(newline="") as file:
            before = {each["model"]: each for each in csv.DictReader(file)}
    for number, entry in enumerate(entries):
        print(f"\r\x1b[K{number}/{len(entries)} {entry.name}", end="", file=sys.stderr, flush=True)
        built = number % args.every == 0 or entry.name.startswith("torchvision:")
        rows.append(row(entry, before.get(entry.name), built=built))
    print("\r\x1b[K", end="", file=sys.stderr)
    for way in COLUMNS[1:]:
        outcomes = [each[way] for each in rows if each[way]]
        counts = {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
        print(f"{way:10} {len(outcomes)} models: {counts}")
    with TARGET.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def row(entry: Entry, before: dict[str, str] | None, *, built: bool) -> dict[str, str]:
    """Return what is said of one model in each way; '' where it was not tried."""
    if before and not built:
        return before | {"head_of_7": "", "left_out": ""}
    try:
        model = build(find_architecture(entry.name), meta=True)
    except Exception as error:  # the library's own faults
        return dict.fromkeys(COLUMNS, "") | {"model": entry.name, "bare": f"fault: {error!r:.60}"}
    shapes = {key: info.shape for key, info in tensors_of(model).items()}
    wrapped = {f"model.{key}": shape for key, shape in shapes.items()}
    outcomes = dict.fromkeys(COLUMNS, "") | {
        "model": entry.name,
        "bare": looked_up(entry, shapes),
        "module": looked_up(entry, {f"module.{key}": shape for key, shape in shapes.items()}),
        "lightning": looked_up(entry, wrapped),
        "named": looked_up(entry, shapes, f"{entry.name.partition(':')[2]}-1a2b3c4d.pth"),
    }
    if built:
        outcomes["head_of_7"] = with_head(entry)
        outcomes["left_out"] = left_out(entry, model)
    return outcomes


def looked_up(entry: Entry, shapes: Shapes, file: str = "weights.pth") -> str:
    """Return how right the first exact match is."""
    match = recognise(shapes)
    if match is None or not match.exact:
        return "not recognised"
    chosen, *others = named_first(match.candidates, [file])
    return judged(entry, chosen, tuple(others))


def judged(entry: Entry, chosen: Entry, others: tuple[Entry, ...]) -> str:
    """Return whether the choice is right."""
    if chosen.name == entry.name:
        return "right"
    if chosen.gflops == entry.gflops:
        return "right: equal FLOPs"
    return "named as an alternative" if entry in others else "WRONG"


def with_head(entry: Entry) -> str:
    """Return what is said of the model with a head of 7 classes."""
    try:
        model = build(find_architecture(entry.name), meta=True, num_classes=7)
    except Exception:
        return "has no head to change"
    return tried(entry, model)


def left_out(entry: Entry, model: nn.Module) -> str:
    """Return what is said of the model when the index knows nothing of its fingerprint."""
    entries, sketches = index._index()
    kept = [place for place, other in enumerate(entries) if other.fingerprint != entry.fingerprint]
    kept_entries = [entries[place] for place in kept]
    real = index._index
    index._index = lambda: (kept_entries, sketches[kept])  # type: ignore[assignment]
    try:
        said = tried(entry, model)
    finally:
        index._index = real
    return "refused" if said == "not recognised" else said


def tried(entry: Entry, model: nn.Module) -> str:
    """Return what loading a file with this model's weights says."""
    contents = Contents(Path("weights.pth"), "state_dict", tensors_of(model))
    try:
        built, fitted, others = recognise_weights(Request(contents, None, trust=False, meta=True))
    except FlopprofError:
        return "not recognised"
    if fitted.architecture.text == entry.name:
        return "right"
    hint = input_hint(fitted.architecture, built, fitted.overrides)
    with suppress(FlopprofError):  # a detector cannot run without values
        if hint and entry.input and counted(built, hint) == counted(model, entry.input):
            return "right: equal FLOPs"
        if hint and entry.input and counted(built, entry.input) == counted(model, entry.input):
            return "the same network, another input size"  # another library's port of it
    return "named as an alternative" if entry in others else "WRONG"


def counted(model: nn.Module, spec: str) -> tuple[str, int]:
    """Return the input and the matmul FLOPs there."""
    inputs, _ = make_inputs([parse_input(text) for text in spec.split()], device="meta")
    return spec, flopprof.count_flops(model, inputs).matmul_flops


def tensors_of(model: nn.Module) -> dict[str, TensorInfo]:
    """Return the shapes and types in the model's state_dict, by key."""
    return {
        key: TensorInfo(tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for key, value in model.state_dict().items()
        if isinstance(value, torch.Tensor)
    }


COLUMNS = ["model", "bare", "module", "lightning", "named", "head_of_7", "left_out"]

if __name__ == "__main__":
    main()
