"""Read the header of a GGUF file, as llama.cpp keeps weights: names, shapes, types, metadata.

The layout is that of the specification beside ggml (docs/gguf.md), versions 1 to 3, of either byte
order. No tensor's data is read. ggml_types.csv has the element types: how many elements a block
has, in how many bytes.
"""

import csv
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from flopprof.model.pickles import MAX_SIZE, PackedTensor, TensorInfo

_MAX_HEADER_BYTES = 1 << 30  # tokens and merges of the largest vocabularies take a hundredth
_MAX_TENSORS = 200_000
_MAX_PAIRS = 10_000
_MAX_KEY_BYTES = 1_000  # llama.cpp itself takes names of 64 bytes
_MAX_DIMS = 8  # ggml itself has 4
_KEPT_ITEMS = 64  # of an array, such as the key-value heads of each layer
_KEPT_BYTES = 2_000  # of a text
_MAX_NESTED = 4  # arrays in arrays
_ALIGNMENT = 32  # bytes, unless general.alignment says otherwise
_MAX_ALIGNMENT = 1 << 20

# The specification's types of metadata: numbers, as struct spells them, texts and arrays.
_NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_TEXT = 8
_ARRAY = 9


@dataclass(frozen=True, slots=True)
class _ElementType:
    """How tensors of one type are stored."""

    dtype: str
    block_elements: int
    block_bytes: int


def _read_types() -> dict[int, _ElementType]:
    """Return the element types of ggml_types.csv by their numbers in a file."""
    with Path(__file__).with_name("ggml_types.csv").open(encoding="utf-8", newline="") as file:
        return {
            int(row["number"]): _ElementType(
                row["dtype"], int(row["block_elements"]), int(row["block_bytes"])
            )
            for row in csv.DictReader(file)
        }


_TYPES = _read_types()


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says before its data.

    Attributes:
        tensors: By name; shapes are in PyTorch's order, the reverse of the file's.
        metadata: Numbers and texts, such as "llama.context_length"; of long arrays their length.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, Any]


class _Reader:
    """Reads the header's values one after the other, and no more bytes than the file has."""

    def __init__(self, file: BinaryIO, file_bytes: int) -> None:
        self.file = file
        self.file_bytes = file_bytes
        self.order = "<"
        self.is_first_version = False

    def take(self, count_bytes: int) -> bytes:
        """Return the next bytes; raise ValueError where the file has no more."""
        content = self.file.read(count_bytes) if count_bytes <= _MAX_HEADER_BYTES else b""
        if len(content) < count_bytes:
            raise ValueError("its header ends too soon: truncated")
        return content

    def skip(self, count_bytes: int) -> None:
        """Go on behind the next bytes; raise ValueError where the file has no more."""
        place = self.file.tell() + count_bytes
        if place > min(self.file_bytes, _MAX_HEADER_BYTES):
            raise ValueError("its header ends too soon: truncated")
        self.file.seek(place)

    def number(self, code: str) -> Any:
        """Return the next number, of a type as struct spells it."""
        (value,) = struct.unpack(self.order + code, self.take(struct.calcsize("<" + code)))
        return value

    def length(self) -> int:
        """Return the next count or length: of 8 bytes, in the first version of 4."""
        return int(self.number("I" if self.is_first_version else "Q"))

    def text(self, most_bytes: int) -> str:
        """Return the next text, of which no more than `most_bytes` are kept."""
        length_bytes = self.length()
        text_bytes = self.take(min(length_bytes, most_bytes))
        self.skip(length_bytes - len(text_bytes))
        return text_bytes.decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """Return the next value of metadata; of a long array a text that says how long it is."""
        if kind in _NUMBERS:
            number = self.number(_NUMBERS[kind])
            has_no_json = isinstance(number, float) and not math.isfinite(number)
            return str(number) if has_no_json else number
        if kind == _TEXT:
            return self.text(_KEPT_BYTES)
        if kind != _ARRAY:
            raise ValueError(f"its metadata has a value of type {kind}, which GGUF does not have")
        if depth > _MAX_NESTED:
            raise ValueError(f"its metadata has arrays more than {_MAX_NESTED} deep")
        inner = int(self.number("I"))
        count = self.length()
        if count > _KEPT_ITEMS:
            self.skip_items(inner, count, depth)
            return f"{count} values"
        return [self.value(inner, depth + 1) for _ in range(count)]

    def skip_items(self, kind: int, count: int, depth: int) -> None:
        """Go on behind the items of a long array."""
        if kind in _NUMBERS:
            self.skip(count * struct.calcsize("<" + _NUMBERS[kind]))
            return
        if count * 4 > self.file_bytes:  # each has its length, of 4 bytes at least
            raise ValueError("its header ends too soon: truncated")
        for _ in range(count):
            if kind == _TEXT:
                self.skip(self.length())
            else:
                self.value(kind, depth + 1)


def read_gguf(path: Path) -> GgufHeader:
    """Return what the header of a GGUF file says.

    Raises:
        ValueError: It does not hold together, or is of a version that is not known.
    """
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        reader = _Reader(file, file_bytes)
        tensor_count, pair_count = _begin(reader)
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = reader.text(_MAX_KEY_BYTES)
            if key in metadata:
                raise ValueError("its metadata names a key twice")
            metadata[key] = reader.value(int(reader.number("I")))
        tensors: dict[str, TensorInfo] = {}
        end_bytes = 0
        for _ in range(tensor_count):
            name, info, tensor_end_bytes = _tensor(reader)
            if name in tensors:
                raise ValueError("it names a tensor twice")
            tensors[name] = info
            end_bytes = max(end_bytes, tensor_end_bytes)
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT:
            raise ValueError(f"its general.alignment is {alignment}")
        start_bytes = math.ceil(file.tell() / alignment) * alignment
    if tensors and start_bytes + end_bytes > file_bytes:
        raise ValueError(
            f"its tensors end at byte {start_bytes + end_bytes:,}, and it has {file_bytes:,}"
        )
    return GgufHeader(tensors, metadata)


def _begin(reader: _Reader) -> tuple[int, int]:
    """Read magic and version; return how many tensors and pairs of metadata there are."""
    reader.take(4)  # the magic, by which the file was known
    version = reader.number("I")
    if version & 0xFFFF == 0:  # written in the other byte order
        reader.order = ">"
        version >>= 24
    if version not in (1, 2, 3):
        raise ValueError(f"its version is {version}; 1 to 3 are known")
    reader.is_first_version = version == 1
    tensor_count = reader.length()
    pair_count = reader.length()
    if tensor_count > _MAX_TENSORS or pair_count > _MAX_PAIRS:
        raise ValueError(f"it holds {tensor_count} tensors and {pair_count} keys of metadata")
    return tensor_count, pair_count


def _tensor(reader: _Reader) -> tuple[str, TensorInfo, int]:
    """Return a tensor's name, what it is, and where its data ends, counted from the data's start.

    Raises:
        ValueError: Its shape or type is none.
    """
    name = reader.text(_MAX_KEY_BYTES)
    dims = int(reader.number("I"))
    if dims > _MAX_DIMS:
        raise ValueError(f"a tensor has {dims} dimensions")
    file_order = [reader.length() for _ in range(dims)]
    kind = int(reader.number("I"))
    start_bytes = int(reader.number("Q"))
    element = _TYPES.get(kind)
    if element is None:
        raise ValueError(f"a tensor is of the type {kind}, which is not known")
    if any(size >= MAX_SIZE for size in file_order):
        raise ValueError("a tensor's shape is no list of sizes")
    elements = math.prod(file_order)
    if elements % element.block_elements:
        raise ValueError(f"{elements} elements make no whole blocks of {element.dtype}")
    size_bytes = elements // element.block_elements * element.block_bytes
    info = PackedTensor(tuple(reversed(file_order)), element.dtype)
    info.size_bytes = size_bytes
    return name, info, start_bytes + size_bytes
