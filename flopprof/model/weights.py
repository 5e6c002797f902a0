"""Read the tensors that files hold, mapped into memory; no pickle is loaded for it."""

import math
from pathlib import Path

import numpy as np
import torch

from flopprof.errors import LoadError
from flopprof.model.contents import Contents, file_kind, read_contents
from flopprof.model.pickles import PlacedTensor
from flopprof.model.safetensors import read_safetensors
from flopprof.units import safe_text

_ALIGNED = 16  # bytes, as an allocator of memory gives at least


def read_weights(contents: Contents) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, or of all the files of a folder, by key."""
    tensors: dict[str, torch.Tensor] = {}
    for path in contents.shards or (contents.path,):
        kind = file_kind(path)
        if kind.name == "safetensors":
            tensors |= _map_safetensors(path)
        elif kind.name == "npz":
            tensors |= _read_npz(path, contents)
        else:
            part = read_contents(path, kind) if contents.shards else contents
            tensors |= _map_pickled(part)
    return tensors


def _map(path: Path) -> torch.Tensor:
    """Return the bytes of the file; what is written to them does not reach it."""
    size_bytes = path.stat().st_size
    return torch.from_file(str(path), shared=False, size=size_bytes, dtype=torch.uint8)


def _map_safetensors(path: Path) -> dict[str, torch.Tensor]:
    file_bytes = _map(path)
    tensors = {}
    for key, (info, start) in read_safetensors(path).items():
        size = math.prod(info.shape)
        tensors[key] = _elements(file_bytes, start, size, info.dtype).reshape(info.shape)
    return tensors


def _read_npz(path: Path, contents: Contents) -> dict[str, torch.Tensor]:
    """Return the arrays of numbers in an archive of NumPy's; none is unpickled."""
    with np.load(path, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in contents.tensors}


def _map_pickled(contents: Contents) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by torch.save, each where its pickle says that it lies.

    That all lie inside the file was seen when it was read.
    """
    file_bytes = _map(contents.path)
    tensors = {}
    for key, info in contents.tensors.items():
        if not isinstance(info, PlacedTensor) or info.storage not in contents.positions:
            fact = f"{safe_text(contents.path)}: nothing says where {safe_text(key)} lies"
            raise LoadError(fact, remedy="save its state_dict again with torch.save")
        if 0 in info.shape:
            tensors[key] = torch.empty(info.shape, dtype=getattr(torch, info.dtype))
            continue
        last = sum((size - 1) * step for size, step in zip(info.shape, info.stride, strict=True))
        itemsize = getattr(torch, info.dtype).itemsize
        start = contents.positions[info.storage] + info.start * itemsize
        values = _elements(file_bytes, start, last + 1, info.dtype)
        tensors[key] = values.as_strided(info.shape, info.stride)
    return tensors


def _elements(file_bytes: torch.Tensor, start: int, size: int, dtype_name: str) -> torch.Tensor:
    """Return `size` elements from byte `start` on; copied where the writer did not align them.

    Kernels may add in another order where data is not aligned: results would differ in last bits.
    """
    dtype = getattr(torch, dtype_name)
    raw = file_bytes[start : start + size * dtype.itemsize]
    if start % _ALIGNED:
        raw = raw.clone()
    return raw.view(dtype)
