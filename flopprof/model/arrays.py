"""Read the headers of NumPy's files and of Flax's msgpack: names, shapes, types; no values."""

import math
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from flopprof import dtypes
from flopprof.model.detect import zip_members
from flopprof.model.pickles import MAX_SIZE, TensorInfo

_MAX_ARRAYS = 100_000
_MAX_HEADER_BYTES = 10_000  # as numpy itself takes of a header that is not trusted
_MAX_DIMS = 64  # as NumPy itself has
_MAX_DEPTH = 64  # of nested maps
_MAX_VALUES = 2_000_000  # of a msgpack
_MAX_KEY_BYTES = 1_000
_NDARRAY = 1  # Flax's code of an array among msgpack's extensions


class Arrays(NamedTuple):
    """What a file of arrays holds.

    Attributes:
        tensors: Shapes and element types, by name.
        left_out: Names of what is no array of numbers: objects, which are pickles, and texts.
        plain: Numbers and texts beside the arrays.
    """

    tensors: dict[str, TensorInfo]
    left_out: list[str]
    plain: dict[str, str | int | float]


def read_npz(path: Path) -> Arrays:
    """Return the arrays of an archive by numpy.savez, of each its header.

    Raises:
        ValueError: It does not hold together.
    """
    members = zip_members(path) or {}
    if len(members) > _MAX_ARRAYS:
        raise ValueError(f"it holds {len(members)} arrays")
    arrays = Arrays({}, [], {})
    with zipfile.ZipFile(path) as archive:
        for info in members.values():
            with archive.open(info) as file:
                name = info.filename.removesuffix(".npy")
                _add_npy(arrays, name, file, info.file_size)
    return arrays


def read_npy(path: Path) -> Arrays:
    """Return the one array of a file by numpy.save, by its header, under the file's name.

    Raises:
        ValueError: It does not hold together.
    """
    arrays = Arrays({}, [], {})
    with path.open("rb") as file:
        _add_npy(arrays, path.stem, file, path.stat().st_size)
    return arrays


def _add_npy(arrays: Arrays, name: str, file: Any, size_bytes: int) -> None:
    """Add an array, whose header is read from `file`, or its name where it holds no numbers."""
    import numpy as np
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"{name!r} is of version {version}: NumPy's 1.0 and 2.0 are read")
    with warnings.catch_warnings(action="ignore"):  # of a header by Python 2
        shape, _, dtype = read(file, max_header_size=_MAX_HEADER_BYTES)
    if dtype.hasobject or dtype.kind not in "biufc":
        arrays.left_out.append(name)
        return
    if any(not 0 <= size < MAX_SIZE for size in shape) or len(shape) > _MAX_DIMS:
        raise ValueError(f"the shape of {name!r} is no list of sizes")
    if math.prod(shape) * np.dtype(dtype).itemsize > size_bytes - file.tell():
        raise ValueError(f"the data of {name!r} is shorter than its shape: truncated")
    arrays.tensors[name] = TensorInfo(tuple(map(int, shape)), dtype.name)


def read_msgpack(path: Path) -> Arrays:
    """Return the arrays of a msgpack as flax.serialization writes it, by the keys to them.

    Raises:
        ValueError: It does not hold together.
    """
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        reader = _Msgpack(file, file_bytes)
        arrays = Arrays({}, [], {})
        for keys, value in reader.leaves():
            name = ".".join(keys)
            if isinstance(value, TensorInfo):
                arrays.tensors[name] = value
            elif isinstance(value, str | int | float) and not isinstance(value, bool):
                arrays.plain[name[:100]] = value
        if file.tell() != file_bytes:
            raise ValueError("bytes follow its end")
    return arrays


class _Msgpack:
    """Reads a msgpack as a stream: maps are walked, arrays' data is skipped, all else is plain."""

    def __init__(self, file: BinaryIO, file_bytes: int) -> None:
        self.file = file
        self.file_bytes = file_bytes
        self.values_left = _MAX_VALUES

    def leaves(self) -> Iterator[tuple[tuple[str, ...], Any]]:
        """Yield what is no map or list, with the keys to it."""
        yield from self._below((), 0)

    def _below(self, keys: tuple[str, ...], depth: int) -> Iterator[tuple[tuple[str, ...], Any]]:
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested over {_MAX_DEPTH} deep")
        kind, count = self._head()
        if kind == "map":
            for _ in range(count):
                key_kind, key_bytes = self._head()
                if key_kind not in ("text", "number"):
                    raise ValueError("a key of it is no text")
                key = str(key_bytes) if key_kind == "number" else self._text(int(key_bytes))
                yield from self._below((*keys, key), depth + 1)
        elif kind == "list":
            for place in range(count):
                yield from self._below((*keys, str(place)), depth + 1)
        else:
            yield keys, self._leaf(kind, count)

    def _leaf(self, kind: str, size: Any) -> Any:
        """Return a text, a number, an array's shape and type; None for all else, skipped."""
        if kind == "number":
            return size if not isinstance(size, float) or math.isfinite(size) else str(size)
        if kind == "text":
            return self._text(size)
        if kind == "extension":
            length_bytes, code = size
            return self._array(length_bytes) if code == _NDARRAY else self._skip(length_bytes)
        return self._skip(size)

    def _array(self, length_bytes: int) -> TensorInfo:
        """Return shape and type of an array, which Flax packs as a list of shape, type and data.

        Raises:
            ValueError: It is no such list, or the data does not fit the shape.
        """
        end = self.file.tell() + length_bytes
        if end > self.file_bytes:
            raise ValueError("an array ends behind the file: truncated")
        if self._head() != ("list", 3):
            raise ValueError(_MISFIT)
        shape = self._shape()
        kind, name_bytes = self._head()
        name = self._text(name_bytes) if kind == "text" else ""
        dtype = name.removeprefix("<").removeprefix("|")
        itemsize = dtypes.itemsize(dtype)
        if not itemsize or self._head() != ("bytes", math.prod(shape) * itemsize):
            raise ValueError(_MISFIT)
        self.file.seek(end)
        return TensorInfo(shape, dtype)

    def _shape(self) -> tuple[int, ...]:
        kind, dims = self._head()
        if kind != "list" or dims > _MAX_DIMS:
            raise ValueError(_MISFIT)
        sizes = []
        for _ in range(dims):
            _, size = self._head()
            if type(size) is not int or not 0 <= size < MAX_SIZE:
                raise ValueError(_MISFIT)
            sizes.append(size)
        return tuple(sizes)

    def _head(self) -> tuple[str, Any]:
        """Return the kind of the next value and its size; a number is its own size.

        The first byte tells them, by https://github.com/msgpack/msgpack/blob/master/spec.md.
        """
        self.values_left -= 1
        if self.values_left < 0:
            raise ValueError(f"it holds over {_MAX_VALUES} values")
        first = self._take(1)[0]
        if first < 0x80:
            return "number", first
        if first < 0x90:
            return "map", first & 0x0F
        if first < 0xA0:
            return "list", first & 0x0F
        if first < 0xC0:
            return "text", first & 0x1F
        if first >= 0xE0:
            return "number", first - 0x100
        entry = _HEADS.get(first)
        if entry is None:
            raise ValueError(f"it has a byte {first:#x}, which msgpack does not have")
        kind, code, size_bytes = entry
        if kind == "nothing":
            return kind, 0
        if kind == "fixed":
            return "extension", (size_bytes, self._take(1)[0])
        (number,) = struct.unpack(">" + code, self._take(size_bytes))
        if kind == "extension":
            return kind, (number, self._take(1)[0])
        return kind, number

    def _text(self, length_bytes: int) -> str:
        text_bytes = self._take(min(length_bytes, _MAX_KEY_BYTES))
        self._skip(length_bytes - len(text_bytes))
        return text_bytes.decode("utf-8", "replace")

    def _take(self, count_bytes: int) -> bytes:
        content = self.file.read(count_bytes)
        if len(content) < count_bytes:
            raise ValueError("it ends too soon: truncated")
        return content

    def _skip(self, count_bytes: int) -> None:
        place = self.file.tell() + count_bytes
        if place > self.file_bytes:
            raise ValueError("it ends too soon: truncated")
        self.file.seek(place)


_MISFIT = "an array's data does not fit its shape"

# By the first byte: kind, how its size or number is spelled in struct, and in how many bytes.
_HEADS: Mapping[int, tuple[str, str, int]] = {
    0xC0: ("nothing", "", 0), 0xC2: ("nothing", "", 0), 0xC3: ("nothing", "", 0),
    0xC4: ("bytes", "B", 1), 0xC5: ("bytes", "H", 2), 0xC6: ("bytes", "I", 4),
    0xC7: ("extension", "B", 1), 0xC8: ("extension", "H", 2), 0xC9: ("extension", "I", 4),
    0xCA: ("number", "f", 4), 0xCB: ("number", "d", 8),
    0xCC: ("number", "B", 1), 0xCD: ("number", "H", 2),
    0xCE: ("number", "I", 4), 0xCF: ("number", "Q", 8),
    0xD0: ("number", "b", 1), 0xD1: ("number", "h", 2),
    0xD2: ("number", "i", 4), 0xD3: ("number", "q", 8),
    0xD4: ("fixed", "", 1), 0xD5: ("fixed", "", 2), 0xD6: ("fixed", "", 4),
    0xD7: ("fixed", "", 8), 0xD8: ("fixed", "", 16),
    0xD9: ("text", "B", 1), 0xDA: ("text", "H", 2), 0xDB: ("text", "I", 4),
    0xDC: ("list", "H", 2), 0xDD: ("list", "I", 4), 0xDE: ("map", "H", 2), 0xDF: ("map", "I", 4),
}  # fmt: skip
