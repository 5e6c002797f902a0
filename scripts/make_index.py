"""Write flopprof/model/index.csv: the keys and shapes of every torchvision and timm model.

usage: python scripts/make_index.py [torchvision] [timm]

Models are built on the meta device, without weights, and counted at their registry's own input.
Rows that are there already for the installed versions are kept, so it can be stopped and taken up
again. Takes about half an hour.
"""

import csv
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import flopprof
from flopprof.errors import FlopprofError
from flopprof.model.architectures import build, find_architecture, input_hint
from flopprof.model.inputs import make_inputs, parse_input
from flopprof.model.recognise import INDEX, fingerprint, order_mark, sketch, steps_sketch

COLUMNS = [
    "library", "name", "class", "input", "gflops", "fingerprint", "sketch", "order", "steps"
]  # fmt: skip


def main() -> None:
    """Add a row for each model that has none."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    wanted = [
        (library, name) for library, name in names() if library in (sys.argv[1:] or LIBRARIES)
    ]
    versions = "# " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    rows = kept(versions)
    for number, (library, name) in enumerate(wanted):
        print(f"\r\x1b[K{number}/{len(wanted)} {name}", end="", file=sys.stderr, flush=True)
        if (library, name) not in rows:
            try:
                rows[library, name] = row(library, name)
            except Exception as error:  # the registry's own faults: one model the fewer
                print(f"\r\x1b[K{library}:{name}: {error!r:.200}")
            if number % 50 == 0:
                write(versions, rows)
    print("\r\x1b[K", end="", file=sys.stderr)
    write(versions, rows)
    print(f"{len(rows)} models, {INDEX.stat().st_size / 1e3:.0f} kB")


def version(library: str) -> str:
    """Return an installed library's version, without its build."""
    return metadata.version(library).partition("+")[0]


def names() -> Iterator[tuple[str, str]]:
    """Yield every model's library and name."""
    import timm
    import torchvision

    for name in torchvision.models.list_models():
        yield "torchvision", name
    for name in timm.list_models():
        yield "timm", name


def row(library: str, name: str) -> dict[str, Any]:
    """Return one model's row."""
    architecture = find_architecture(f"{library}:{name}")
    model = build(architecture, meta=True).eval()
    cls = type(model)
    spec = input_hint(architecture, model, {}) or ""
    shapes = shapes_of(model)
    return {
        "library": library,
        "name": name,
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "input": spec,
        "gflops": gflops(model, spec) if spec else "",
        "fingerprint": fingerprint(shapes),
        "sketch": sketch(shapes).hex(),
        "order": order_mark(shapes),
        "steps": steps_sketch(shapes).hex(),
    }


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes in the model's state_dict, by key."""
    shapes = {}
    for key, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            shapes[key] = tuple(value.shape)
    return shapes


def gflops(model: nn.Module, spec: str) -> str:
    """Return the matmul FLOPs of one call in 10⁹, four digits; nothing where it fails."""
    inputs, _ = make_inputs([parse_input(text) for text in spec.split()], device="meta", seed=0)
    try:
        return f"{flopprof.count_flops(model, inputs).matmul_flops / 1e9:.4g}"
    except FlopprofError as error:
        print(f"\r\x1b[K{type(model).__name__}: {error}")
        return ""


def kept(versions: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the rows that are there for these versions."""
    if not INDEX.exists() or INDEX.read_text("utf-8").partition("\n")[0] != versions:
        return {}
    with INDEX.open(encoding="utf-8", newline="") as file:
        lines = [line for line in file if not line.startswith("#")]
    return {(row["library"], row["name"]): row for row in csv.DictReader(lines)}


def write(versions: str, rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Write the index in one go."""
    part = Path(f"{INDEX}.part")
    with part.open("w", encoding="utf-8", newline="") as file:
        file.write(f"{versions}\n")
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows))
    part.replace(INDEX)


LIBRARIES = ("torchvision", "timm")

if __name__ == "__main__":
    main()
