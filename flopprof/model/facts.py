"""What is known of a file or folder without running it: kind, tensors, architecture, dangers."""

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

from flopprof.model.account import weights_object
from flopprof.model.beside import with_neighbours
from flopprof.model.configs import text
from flopprof.model.contents import Contents, read_contents
from flopprof.model.detect import detect
from flopprof.model.inside import inside
from flopprof.model.pickles import by_risk
from flopprof.model.recognise import (
    LIBRARIES,
    alternatives,
    named_first,
    near_by_steps,
    recognise,
    same_order,
)

_MAX_FILES = 100_000  # of a folder whose sizes are added up
_NO_STATE = ("torch_export", "object")  # kinds whose tensors are not read
_RUNS_CODE = ("pickled_module", "torchscript", "torch_export")


def file_facts(path: Path) -> dict[str, Any]:
    """Return what a file or folder is and holds, as `flopprof inspect --json` prints it.

    Raises:
        UsageError: It cannot be read.
        LoadError: It is damaged.
    """
    kind = detect(path)
    contents = with_neighbours(read_contents(path, kind)) if kind.is_readable else None
    shards = contents.shards if contents else ()
    files: Iterable[Path] = shards or [path]
    if path.is_dir() and not shards:
        files = islice(path.rglob("*"), _MAX_FILES)
    facts = {
        "schema_version": 1,
        "file": str(path),
        "kind": contents.kind if contents else kind.name,
        "what": kind.what,
        "remedy": kind.remedy or None,
        "size_bytes": sum(map(_size_bytes, files)),
        "files": len(shards) or 1,
    }
    if contents is None:
        archive = inside(path, kind.name)
        return facts | {"inside": archive} if archive else facts
    weights = weights_object(contents) if contents.tensors else None
    return facts | _of_contents(contents) | _of_architecture(contents) | {"weights": weights}


def _of_contents(contents: Contents) -> dict[str, Any]:
    parameters: Counter[str] = Counter()
    for info in contents.tensors.values():
        parameters[info.dtype] += prod(info.shape)
    return {
        "tensors": len(contents.tensors) if _is_read(contents) else None,
        "parameters": dict(parameters.most_common()),
        "class": contents.top_class or None,
        "wrapper_keys": list(contents.wrapper_keys),
        "metadata": contents.metadata,
        "beside": contents.beside,
        "notes": list(contents.notes),
        "globals": by_risk(contents.globals),
        "dangerous": list(contents.dangerous),
        "runs_code": contents.kind in _RUNS_CODE,
        "rebuilds": contents.top_class.startswith(LIBRARIES),
    }


def _is_read(contents: Contents) -> bool:
    return bool(contents.tensors) or contents.kind not in _NO_STATE


def _of_architecture(contents: Contents) -> dict[str, Any]:
    """Return which model the weights are of, by the index or the config beside them."""
    shapes = {key: info.shape for key, info in contents.tensors.items()}
    match = recognise(shapes)
    is_exact = match is not None and match.exact
    candidates = match.candidates if match else ()
    best = named_first(candidates, contents.texts)[0] if candidates and is_exact else None
    others = alternatives(best) if best else ()
    near = [] if is_exact else [*same_order(shapes), *candidates] or near_by_steps(shapes)
    return {
        "architecture": best.name if best else None,
        "nearest": list(dict.fromkeys(entry.name for entry in near)),
        "alternatives": [
            {"architecture": other.name, "input": other.input or None, "gflops": other.gflops}
            for other in others
        ],
        "model_type": text(contents.config, "model_type") or None,
        "diffusers_class": text(contents.config, "_class_name") or None,
        "adapter_of": text(contents.adapter, "base_model_name_or_path") or None,
        "input": (best.input or None) if best else None,
        "input_source": "registry" if is_exact else None,
    }


def _size_bytes(path: Path) -> int:
    """Return a file's size; 0 for what is none, or may not be looked at."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0
