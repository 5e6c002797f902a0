"""`flopprof inspect`: what a file is and holds, without running or loading any of it."""

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopprof.cli import Handler, command, print_json

if TYPE_CHECKING:
    from flopprof.model.contents import Contents
    from flopprof.model.detect import FileKind

GLOBALS = 8  # named in the text
FILES = 100_000  # of a folder whose sizes are added up


@command("inspect")
def inspect(parser: ArgumentParser) -> Handler:
    """Say what a file or folder is and holds; nothing of it is imported, executed or loaded.

    example: flopprof inspect model.pth
    """
    parser.add_argument("file", metavar="FILE", help="any file, or a folder")

    def handle(args: Namespace) -> int:
        from flopprof.model.contents import read_contents
        from flopprof.model.detect import detect
        from flopprof.units import safe_text

        path = Path(args.file)
        kind = detect(path)
        contents = read_contents(path, kind) if kind.is_readable else None
        found = _found(path, kind, contents)
        if args.json:
            print_json(found)
            return 0
        for label, text in _lines(found):
            print(f"{label:10}{safe_text(text)}")
        return 0

    return handle


def _found(path: Path, kind: "FileKind", contents: "Contents | None") -> dict[str, Any]:
    """Return what is known of the file."""
    from flopprof.model.configs import text
    from flopprof.model.pickles import by_risk
    from flopprof.model.recognise import LIBRARIES, alternatives, named_first, recognise

    files: Iterable[Path] = contents.shards if contents and contents.shards else (path,)
    if path.is_dir() and not (contents and contents.shards):
        files = islice(path.rglob("*"), FILES)
    found: dict[str, Any] = {
        "schema_version": 1,
        "file": str(path),
        "kind": contents.kind if contents else kind.name,
        "what": kind.what,
        "remedy": kind.remedy or None,
        "size_bytes": sum(map(_size_bytes, files)),
        "files": len(contents.shards) if contents and contents.shards else 1,
    }
    if contents is None:
        return found
    parameters: Counter[str] = Counter()
    for info in contents.tensors.values():
        parameters[info.dtype] += prod(info.shape)
    match = recognise({key: info.shape for key, info in contents.tensors.items()})
    best = named_first(match.candidates, contents.texts)[0] if match else None
    others = alternatives(best) if match and match.exact and best else ()
    return found | {
        "tensors": None if contents.kind in ("torch_export", "object") else len(contents.tensors),
        "parameters": dict(parameters.most_common()),
        "class": contents.top_class or None,
        "wrapper_keys": list(contents.wrapper_keys),
        "metadata": contents.metadata,
        "beside": contents.beside,
        "notes": list(contents.notes),
        "globals": by_risk(contents.globals),
        "dangerous": list(contents.dangerous),
        "runs_code": contents.kind in ("pickled_module", "torchscript", "torch_export"),
        "rebuilds": contents.top_class.startswith(LIBRARIES),
        "architecture": best.name if match and match.exact and best else None,
        "nearest": [entry.name for entry in match.candidates] if match and not match.exact else [],
        "alternatives": [
            {"architecture": e.name, "input": e.input or None, "gflops": e.gflops} for e in others
        ],
        "model_type": text(contents.config, "model_type") or None,
        "diffusers_class": text(contents.config, "_class_name") or None,
        "adapter_of": text(contents.adapter, "base_model_name_or_path") or None,
        "input": (best.input or None) if match and match.exact and best else None,
        "input_source": "registry" if match and match.exact else None,
    }


def _size_bytes(path: Path) -> int:
    """Return a file's size; 0 for what is none, or may not be looked at."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines for people."""
    from flopprof.units import si

    several = f" in {found['files']} files" if found["files"] > 1 else ""
    lines = [
        ("File", f"{found['file']}, {si(float(found['size_bytes']), 'B')}{several}"),
        ("Kind", found["what"] + (f": {found['class']}" if found.get("class") else "")),
    ]
    lines += [("To do", found["remedy"])] * bool(found["remedy"])
    if "tensors" not in found:
        return lines
    sizes = (
        (dtype, si(float(n), "") if n >= 1000 else n) for dtype, n in found["parameters"].items()
    )
    held = "not read" if found["tensors"] is None else f"{found['tensors']}"
    lines += [("Tensors", ", ".join([held, *(f"{n} {dtype}" for dtype, n in sizes)]))]
    if found["wrapper_keys"]:
        lines += [("Under", ".".join(found["wrapper_keys"]))]
    lines += [("Beside", f"{n} tensors under {key}") for key, n in found["beside"].items()]
    lines += [("Note", note) for note in found["notes"]]
    lines += [("Metadata", f"{key} = {value}") for key, value in found["metadata"].items()]
    names = found["globals"]
    if names:
        more = f" and {len(names) - GLOBALS} more" if len(names) > GLOBALS else ""
        lines += [("Globals", ", ".join(names[:GLOBALS]) + more)]
    if found["dangerous"]:
        lines += [("DANGEROUS", ", ".join(found["dangerous"]))]
    if found["runs_code"]:
        asks = "flopprof rebuilds it from the library's own code, else asks for --trust"
        asks = asks if found["rebuilds"] else "flopprof asks for --trust"
        lines += [("Loading", f"runs code of the file's choice; {asks}")]
    if found["diffusers_class"]:
        lines += [("Config", f"_class_name {found['diffusers_class']} (diffusers)")]
    if found["adapter_of"]:
        lines += [("Adapter", f"of {found['adapter_of']}")]
    if found["model_type"]:
        lines += [("Config", f"model_type {found['model_type']} (transformers)")]
    if found["architecture"]:
        same = [other["architecture"] for other in found["alternatives"]]
        lines += [("Model", found["architecture"] + (f", or {', '.join(same)}" if same else ""))]
        if found["input"]:
            lines += [("Input", f"{found['input']} (its registry's)")]
    elif found["nearest"] and not found["model_type"]:
        nearest = f"{', '.join(found['nearest'][:3])}, with another head, input or layers"
        lines += [("Nearest", f"{nearest}: flopprof count builds and compares")]
    elif found["tensors"] and not found["model_type"]:
        lines += [("Model", "not recognised: no model of the index is alike")]
    return lines
