"""Say which of a folder's files hold a model's weights; every file is checked before it is read."""

import json
import re
import stat
from pathlib import Path
from typing import Any

from flopprof.errors import LoadError
from flopprof.model.detect import damaged
from flopprof.units import safe_text

_MAX_BYTES = 64 << 20  # of a folder's JSON
_MAX_FILES = 10_000
_NAMES = (  # under which libraries save, the most complete first
    "model", "diffusion_pytorch_model", "open_clip_model", "pytorch_model",
    "open_clip_pytorch_model", "adapter_model", "consolidated",
)  # fmt: skip
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<total>\d+)(?P<suffix>\.[a-z]+)")
_SLICE = re.compile(r"consolidated\.(\d+)\.(pth|pt)")
_BESIDE = re.compile(  # what trainers leave beside the weights
    r"(training_args|optimizer|scheduler|scaler|rng_state.*|random_states.*|args|trainer_state)\..*"
)


def check_regular(path: Path) -> None:
    """Raise unless `path` is a file on disk that can be read.

    Raises:
        LoadError: It is a pipe, a device, a folder or a link that leads nowhere.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        fact = f"{safe_text(path)} cannot be read: {reason.lower()}"
        raise LoadError(fact, remedy="download the folder again") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        fact = f"{safe_text(path)} is {kind}, not a file"
        raise LoadError(fact, remedy="download the folder again")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a folder's file; {} where there is none.

    Raises:
        LoadError: It is no file on disk, or holds something else.
    """
    if not path.exists() and not path.is_symlink():
        return {}
    check_regular(path)
    size_bytes = path.stat().st_size
    if size_bytes > _MAX_BYTES:
        raise damaged(path, f"it has {size_bytes} bytes, more than any model's")
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"it is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise damaged(path, "it is no JSON object")
    return value


def weight_files(path: Path) -> list[Path]:
    """Return the files that hold the weights of a folder, or of the index at `path`.

    Raises:
        LoadError: Some of them are missing, or it is not clear which they are.
    """
    if not path.is_dir():
        return _indexed(path)
    names = _names(path)
    indices = [name for name in names if name.endswith(".index.json")]
    indices.sort(key=lambda name: "safetensors" not in name)
    for name in indices:
        files = _indexed(path / name)
        if name == indices[-1] or all(file.name in names for file in files):
            return files
    for base in _NAMES:
        for suffix in _SUFFIXES:
            if base + suffix in names:
                return [path / (base + suffix)]
    if numbered := _numbered(path, names):
        return numbered
    return _only_one(path, names)


def _names(folder: Path) -> list[str]:
    try:
        names = sorted(item.name for item in folder.iterdir())
    except OSError as error:
        fact = f"{safe_text(folder)} cannot be read: {str(error.strerror).lower()}"
        raise LoadError(fact, remedy="name a folder that you may read") from error
    if len(names) > _MAX_FILES:
        fact = f"{safe_text(folder)} holds {len(names)} files, more than any model's"
        raise LoadError(fact, remedy="name the file with the weights")
    return names


def _indexed(index: Path) -> list[Path]:
    """Return the files that an index names, all beside it."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(index, "its index names no files")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise damaged(index, "its index names what is no file")
    names = set(weight_map.values())
    if any(Path(name).name != name or name in (".", "..") or "\\" in name for name in names):
        raise damaged(index, "its index names files outside its folder")
    return sorted(index.parent / name for name in names)


def _numbered(folder: Path, names: list[str]) -> list[Path]:
    """Return the parts of a checkpoint whose index is not there: all of them, or an error."""
    matches = [match for name in names if (match := NUMBERED.fullmatch(name))]
    weights = [match for match in matches if match["suffix"] in _SUFFIXES]
    if not weights:
        return []
    first = weights[0]
    parts = [
        match for match in weights if match.group("stem", "suffix") == first.group("stem", "suffix")
    ]
    total = int(first["total"])
    if len(parts) != total:
        fact = f"{safe_text(folder)} holds {len(parts)} of {total} parts of a checkpoint"
        raise LoadError(fact, remedy="download the others")
    return [folder / match[0] for match in parts]


def _only_one(folder: Path, names: list[str]) -> list[Path]:
    """Return the one file of a folder that can be its weights, by its suffix; [] for none.

    Raises:
        LoadError: There are several, or the slices of a checkpoint cut for several GPUs.
    """
    slices = [name for name in names if _SLICE.fullmatch(name)]
    if len(slices) > 1:
        fact = f"{safe_text(folder)} holds a checkpoint cut for {len(slices)} GPUs ({slices[0]}, …)"
        raise LoadError(fact, remedy="name a folder with whole weights, as transformers saves them")
    files = [name for name in names if name.endswith(_SUFFIXES) and not _BESIDE.fullmatch(name)]
    files = [name for name in files if name.endswith(".safetensors")] or files
    if len(files) > 1:
        shown = safe_text(", ".join(files[:4]))
        fact = f"{safe_text(folder)} holds {len(files)} files that may be its weights: {shown}"
        raise LoadError(fact, remedy=f"name one of them, such as {safe_text(folder / files[0])}")
    return [folder / name for name in files]
