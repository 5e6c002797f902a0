"""Write flopprof/trace/keeps_result.json: the ops whose derivative needs what they return.

Such an op saves its result when it has done its work; others save their inputs alone, before.

usage: python scripts/make_keeps_result.py
"""

import json
from pathlib import Path

import torch
import torchgen
from torchgen.packaged.autograd.load_derivatives import load_derivatives

TARGET = Path(__file__).parents[1] / "flopprof" / "trace" / "keeps_result.json"


def main() -> None:
    """Ask torch's own table of derivatives which results they use."""
    packaged = Path(torchgen.__file__).parent / "packaged"
    derivatives, _ = load_derivatives(
        str(packaged / "autograd" / "derivatives.yaml"),
        str(packaged / "ATen" / "native" / "native_functions.yaml"),
        str(packaged / "ATen" / "native" / "tags.yaml"),
    )
    names = set()
    for schema, by_dispatch in derivatives.items():
        if any(info.all_saved_outputs for info in by_dispatch.values()):
            names.add(f"aten::{schema.name.name.base}")
    TARGET.write_text(json.dumps(sorted(names), indent=0) + "\n")
    print(f"{len(names)} ops, torch {torch.__version__}: {TARGET}")


if __name__ == "__main__":
    main()
