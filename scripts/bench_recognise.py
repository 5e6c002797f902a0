"""Recognise every torchvision and timm model from keys and shapes; write results/recognition.csv.

usage: python scripts/bench_recognise.py [--every N]

Bare, with a `module.` prefix and in a Lightning wrapper: all models of the index, by look-up. With
a head of 7 classes, and with its own fingerprint taken out of the index (leave one out): every N-th
model of timm and all of torchvision (default 6), candidates built and compared as for a file.
A choice is right if it is the model, or one of equal FLOPs at an equal input; a model that weights
cannot tell apart from a plainer one is right if it is named among the alternatives.
"""

import argparse
import csv
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import flopprof.recognise as index
from flopprof.errors import FlopprofError
from flopprof.loaders import Request
from flopprof.loaders.build import build, find_architecture, recognise_weights
from flopprof.loaders.inert import Contents, TensorInfo
from flopprof.recognise import Entry, alternatives, recognise

TARGET = Path(__file__).resolve().parents[1] / "results" / "recognition.csv"
Shapes = dict[str, tuple[int, ...]]


def main() -> None:
    """Try each model in each way and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=6)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    entries, _ = index._index()
    rows = []
    for number, entry in enumerate(entries):
        print(f"\r\x1b[K{number}/{len(entries)} {entry.name}", end="", file=sys.stderr, flush=True)
        built = number % args.every == 0 or entry.name.startswith("torchvision:")
        rows.append(row(entry, built=built))
    print("\r\x1b[K", end="", file=sys.stderr)
    for way in ("bare", "module", "lightning", "head_of_7", "left_out"):
        found = [r[way] for r in rows if r[way]]
        counts = {what: found.count(what) for what in sorted(set(found))}
        print(f"{way:10} {len(found)} models: {counts}")
    with TARGET.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def row(entry: Entry, *, built: bool) -> dict[str, str]:
    """Return what is said of one model in each way; '' where it was not tried."""
    try:
        shapes = shapes_of(build(find_architecture(entry.name), meta=True))
    except Exception as error:  # the library's own faults
        return dict.fromkeys(COLUMNS, "") | {"model": entry.name, "bare": f"fault: {error!r:.60}"}
    wrapped = {f"model.{key}": shape for key, shape in shapes.items()}
    found = dict.fromkeys(COLUMNS, "") | {
        "model": entry.name,
        "bare": looked_up(entry, shapes),
        "module": looked_up(entry, {f"module.{key}": shape for key, shape in shapes.items()}),
        "lightning": looked_up(entry, wrapped),
    }
    if built:
        found["head_of_7"] = with_head(entry)
        found["left_out"] = left_out(entry, shapes)
    return found


def looked_up(entry: Entry, shapes: Shapes) -> str:
    """Return how right the first exact match is."""
    match = recognise(shapes)
    if match is None or not match.exact:
        return "not recognised"
    return judged(entry, match.candidates[0], match.candidates[1:])


def judged(entry: Entry, chosen: Entry, others: tuple[Entry, ...]) -> str:
    """Return whether the choice is right."""
    if chosen.name == entry.name:
        return "right"
    if (chosen.gflops, chosen.input) == (entry.gflops, entry.input):
        return "right: equal FLOPs"
    return "named as an alternative" if entry in others else "WRONG"


def with_head(entry: Entry) -> str:
    """Return what is said of the model with a head of 7 classes."""
    try:
        model = build(find_architecture(entry.name), meta=True, num_classes=7)
    except Exception:
        return "has no head to change"
    return tried(entry, shapes_of(model))


def left_out(entry: Entry, shapes: Shapes) -> str:
    """Return what is said of the model when the index knows nothing of its fingerprint."""
    entries, sketches = index._index()
    kept = [i for i, e in enumerate(entries) if e.fingerprint != entry.fingerprint]
    real = index._index
    index._index = lambda: ([entries[i] for i in kept], sketches[kept])  # type: ignore[assignment]
    try:
        said = tried(entry, shapes)
    finally:
        index._index = real
    return "refused" if said == "not recognised" else said


def tried(entry: Entry, shapes: Shapes) -> str:
    """Return what loading a file with these weights says."""
    tensors = {key: TensorInfo(shape, "float32") for key, shape in shapes.items()}
    contents = Contents(Path("weights.pth"), "state_dict", tensors)
    try:
        _, fitted, _ = recognise_weights(Request(contents, None, trust=False, meta=True))
    except FlopprofError:
        return "not recognised"
    chosen = index.find_entry(fitted.architecture.text)
    if chosen is None:
        return "WRONG"
    return judged(entry, chosen, alternatives(chosen))


def shapes_of(model: nn.Module) -> Shapes:
    """Return the shapes in the model's state_dict, by key."""
    state: dict[str, Any] = model.state_dict()
    return {k: tuple(v.shape) for k, v in state.items() if isinstance(v, torch.Tensor)}


COLUMNS = ["model", "bare", "module", "lightning", "head_of_7", "left_out"]

if __name__ == "__main__":
    main()
