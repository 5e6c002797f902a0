"""Read the header of a safetensors file: names, shapes, types, and where the values lie."""

import json
import math
from pathlib import Path
from typing import Any

from flopprof import dtypes
from flopprof.model.pickles import MAX_BYTES, NAMES, TensorInfo, sizes


def read_safetensors(path: Path) -> dict[str, tuple[TensorInfo, int]]:
    """Return a safetensors file's tensors by key, each with the byte where its data begins.

    Raises:
        ValueError: It does not hold together.
    """
    with path.open("rb") as file:
        length_bytes = int.from_bytes(file.read(8), "little")
        text = file.read(length_bytes) if length_bytes <= MAX_BYTES else b""
    if len(text) < length_bytes or not text:
        raise ValueError(f"its header of {length_bytes} bytes ends too soon, or is too long")
    pairs: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=list)
    header = {key: dict(entry) for key, entry in pairs}
    if len(header) < len(pairs):
        raise ValueError("its header names a key twice")
    header.pop("__metadata__", None)
    tensors = {}
    start = 8 + length_bytes
    file_bytes = path.stat().st_size
    for key, entry in header.items():
        info = TensorInfo(sizes(entry["shape"]), NAMES["safetensors"][entry["dtype"]])
        first, last = sizes(entry["data_offsets"])
        size_bytes = math.prod(info.shape) * (dtypes.itemsize(info.dtype) or 1)
        if start + last > file_bytes or last - first != size_bytes:
            raise ValueError(f"the data of {key!r} lies outside the file or does not fit its shape")
        tensors[key] = info, start + first
    return tensors
