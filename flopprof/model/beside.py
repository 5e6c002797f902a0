"""Find what lies beside a named weights file and belongs to it: a config.json, the other parts."""

import re
from dataclasses import replace
from pathlib import Path

from flopprof.errors import FlopprofError, LoadError
from flopprof.model.contents import Contents, file_kind, read_contents
from flopprof.model.folders import NUMBERED, read_json
from flopprof.model.pickles import TensorInfo
from flopprof.units import safe_text

_LIBRARIES_NAME = re.compile(
    r"(diffusion_pytorch_model|pytorch_model|adapter_model|model)(\.fp16)?"
    r"(-\d+-of-\d+)?\.(safetensors|bin)"
)
_KINDS = ("state_dict", "safetensors")
_MAX_PARTS = 1000  # of one checkpoint


def with_neighbours(contents: Contents) -> Contents:
    """Return the contents of a weights file with those of its neighbours that belong to it.

    A file by the name that a library saves weights under has the config.json beside it, and one of
    several numbered parts has the others.
    """
    path = contents.path
    if contents.kind not in _KINDS or contents.shards or not is_by_library(path):
        return contents
    return _with_config(_with_parts(contents))


def is_by_library(path: Path) -> bool:
    """Return whether a file has a name that libraries save weights under, beside a config.json."""
    return bool(_LIBRARIES_NAME.fullmatch(path.name))


def _with_parts(contents: Contents) -> Contents:
    match = NUMBERED.fullmatch(contents.path.name)
    if match is None or int(match["total"]) < 2:
        return contents
    count = int(match["total"])
    width = len(match["number"])
    parts = []
    for number in range(1, min(count, _MAX_PARTS) + 1):
        name = f"{match['stem']}-{number:0{width}}-of-{match['total']}{match['suffix']}"
        parts.append(contents.path.with_name(name))
    absent = [part.name for part in parts if not part.is_file()]
    if absent or len(parts) < count:
        note = f"it is one of {count} parts, and {len(absent)} of them are not beside it"
        return replace(contents, notes=(*contents.notes, note))
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        tensors |= read_contents(part, file_kind(part)).tensors
    note = f"it is one of {count} parts: all of them were read"
    return Contents(
        contents.path,
        "sharded",
        tensors,
        globals=contents.globals,
        shards=tuple(parts),
        notes=(*contents.notes, note),
    )


def _with_config(contents: Contents) -> Contents:
    folder = contents.path.parent
    try:
        config = read_json(folder / "config.json")
        adapter = {}
        if contents.path.name.startswith("adapter_model"):
            adapter = read_json(folder / "adapter_config.json")
    except (LoadError, OSError) as error:
        reason = error.problem if isinstance(error, FlopprofError) else safe_text(error)
        return replace(contents, notes=(*contents.notes, f"not used: {reason}"))
    if adapter:
        return replace(contents, kind="adapter", config=config, adapter=adapter)
    if "_class_name" in config:
        return replace(contents, kind="diffusers", config=config)
    if "model_type" in config or "architecture" in config or "hidden_size" in config:
        return replace(contents, kind="huggingface", config=config)
    return contents


def base_folder(path: Path) -> Path:
    """Return the folder that a model's files lie in: itself, or that of a named file."""
    return path if path.is_dir() else path.parent
