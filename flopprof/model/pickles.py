"""Read pickles inertly: what they name is never looked up, so nothing of it can run."""

import io
import json
import math
import os
import pickle
import re
import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from flopprof import dtypes
from flopprof.errors import RefusedError
from flopprof.model.detect import zip_members
from flopprof.units import safe_text, shape_text

_MAX_OPCODES = 1_500_000  # a tensor takes about 60; an empty set 1, and 216 bytes of memory
MAX_BYTES = 64 << 20  # of a pickle or a header
_MAX_GLOBALS = 5_000
_MAX_DIMS = 64
MAX_SIZE = 1 << 48  # elements of one dimension, more than any disk holds
_SHOWN_DANGERS = 4
# A zip member's header, by PKWARE's APPNOTE.TXT (4.3.7): its end, without name and extra field.
_ZIP_LENGTHS_AT = 26  # bytes into it, the lengths of those two
_ZIP_HEADER_BYTES = 30
_ARRAY = re.compile(r"numpy\._?core\.multiarray\._reconstruct")
_ARRAY_OF_BYTES = re.compile(r"numpy\._?core\.numeric\._frombuffer")
# What names in files mean: wrapper keys, harmless globals, element types.
NAMES: dict[str, Any] = json.loads(Path(__file__).with_name("names.json").read_text("utf-8"))


class TensorInfo(NamedTuple):
    """A tensor's shape and dtype."""

    shape: tuple[int, ...]
    dtype: str


class PlacedTensor(TensorInfo):
    """A tensor of a pickle, which says where its values lie.

    Attributes:
        storage: The key of the storage that holds them.
        start: The first of them, counted in elements.
        stride: Elements from one to the next, by dimension.
    """

    storage: str = ""
    start: int = 0
    stride: tuple[int, ...] = ()


class PackedTensor(TensorInfo):
    """A tensor whose elements are packed in blocks, as llama.cpp's quantised types are.

    Attributes:
        size_bytes: Of all its blocks.
    """

    size_bytes: int = 0


class TooLargeError(ValueError):
    """A pickle that is larger than any model's, and may be whole."""


class Pickled(NamedTuple):
    """What the pickle of a file holds, as stubs, and where its storages lie."""

    root: Any
    globals: tuple[str, ...]  # every name that unpickling would import
    positions: dict[str, int]  # of each storage's first byte in the file


def dangers(names: Iterable[str]) -> tuple[str, ...]:
    """Return those names that are no model's: Python's own modules, but for containers."""
    stdlib = sys.stdlib_module_names | {"commands"}  # the last of Python 2
    return tuple(
        name
        for name in names
        if (name.partition(".")[0] in stdlib and not re.fullmatch(NAMES["harmless"], name))
        or re.fullmatch(NAMES["torch_runs"], name)
    )


def by_risk(names: Iterable[str]) -> list[str]:
    """Return the names, those first that say most of what loading them would do."""
    dangerous = set(dangers(names))

    def risk(name: str) -> tuple[int, str]:
        if name in dangerous:
            return 0, name
        if re.fullmatch(NAMES["plain"], name) or re.fullmatch(NAMES["harmless"], name):
            return 3, name
        return (2 if name.startswith("torch.") else 1), name

    return sorted(names, key=risk)


@dataclass(eq=False, slots=True)
class Stub:
    """Stands for a class or function that is not imported, and for what it would make."""

    origin: str
    args: list[Any] = field(default_factory=list)
    state: Any = None

    def __setitem__(self, _key: Any, _value: Any) -> None: ...
    def append(self, _item: Any) -> None: ...  # noqa: D102

    extend = add = append


class _Tuple(list[Any]):
    """A tuple without its hash, which recurses into all that is in it, in C and unchecked."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def is_tuple(value: Any) -> bool:
    """Return whether the pickle says that this is a tuple."""
    return type(value) is _Tuple


def _call(made_by: Any, args: Any) -> Any:
    """Return what stands for the result of a call: a tensor, or a stub with its arguments."""
    if not isinstance(made_by, Stub) or not isinstance(args, _Tuple):
        raise ValueError("it calls what is no class or function")
    module, _, name = made_by.origin.rpartition(".")
    if module.startswith("torch") and name.endswith(("Storage", "Tensor")):
        raise ValueError(f"it calls {made_by.origin}, which can ask for any amount of memory")
    if made_by.origin == "collections.OrderedDict" and not args:
        return {}
    tensor = _rebuild(name, args) if module in ("torch._utils", "torch._tensor") else None
    return tensor if isinstance(tensor, TensorInfo) else Stub(made_by.origin, args)


def _rebuild(name: str, args: list[Any]) -> Any:
    """Return what torch's function `name` would make a tensor of, or None."""
    if name.startswith("_rebuild_parameter"):
        return args[0]
    if name == "_rebuild_from_type_v2":
        return _call(args[0], args[2])
    if name not in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
        return None
    storage = args[0]
    (start,) = sizes((args[1],))
    shape = sizes(args[2])
    stride = sizes(args[3])
    dtype = args[6].origin.removeprefix("torch.") if name.endswith("v3") else storage.dtype
    (storage_bytes,) = storage.shape
    steps = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    end_bytes = (start + steps + 1) * (dtypes.itemsize(dtype) or 1)
    if 0 not in shape and end_bytes > storage_bytes:
        raise ValueError(f"a tensor of shape {list(shape)} reaches outside its storage")
    tensor = PlacedTensor(shape, dtype)
    tensor.storage = storage.storage
    tensor.start = start
    tensor.stride = stride
    return tensor


def sizes(value: Any) -> tuple[int, ...]:
    """Return a shape, stride or offset; raise ValueError where it is none."""
    numbers = value.args[0] if isinstance(value, Stub) else value  # torch.Size((2, 3))
    are_sizes = all(type(number) is int and 0 <= number < MAX_SIZE for number in numbers)
    if len(numbers) > _MAX_DIMS or not are_sizes:
        raise ValueError("a tensor's shape, stride or offset is no list of sizes")
    return tuple(numbers)


class _Unpickler(pickle._Unpickler):
    """Builds stubs: what the stream names is never looked up, so nothing of it can run."""

    def __init__(self, stream: io.BytesIO, sizes_bytes: Mapping[str, int] | None = None) -> None:
        super().__init__(stream, encoding="latin-1")
        self.dispatch = self  # type: ignore[misc,assignment]  # looks up what to do by opcode
        self.opcodes_left = _MAX_OPCODES
        self.stack: list[Any] = []
        self.sizes_bytes = sizes_bytes
        self.globals: set[str] = set()
        self.storages: dict[str, int] = {}

    def __getitem__(self, opcode: int) -> Any:
        self.opcodes_left -= 1
        if self.opcodes_left < 0:
            raise TooLargeError(f"its pickle has more than {_MAX_OPCODES:,} opcodes")
        if self.stack and type(self.stack[-1]) is tuple:
            self.stack[-1] = _Tuple(self.stack[-1])
        return _HANDLERS[opcode]

    def find_class(self, module: str, name: str) -> Any:
        stub = Stub(f"{NAMES['python_2'].get(module, module)}.{name}")
        self.globals.add(stub.origin)
        if len(self.globals) > _MAX_GLOBALS:
            raise ValueError(f"it names more than {_MAX_GLOBALS} classes")
        return stub

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, str):
            raise ValueError(
                "its pickle is of protocol 0, which keeps only the names of its tensors' storages: "
                "torch cannot load it either"
            )
        tag, kind, key = pid[:3]
        if tag == "module" and isinstance(kind, Stub):  # a class, with its source
            return kind
        if type(key) is int:  # as torch.package numbers them
            key = str(key)
        if tag != "storage" or not isinstance(kind, Stub) or not isinstance(key, str):
            raise ValueError("a persistent id is not torch's")
        name = kind.origin.rpartition(".")[2].removesuffix("Storage")
        dtype = NAMES["storages"].get(name) or dtypes.parse_dtype(name)
        (elements,) = sizes((pid[4],))
        size_bytes = elements * (dtypes.itemsize(dtype) or 1)
        if self.sizes_bytes is not None and size_bytes > self.sizes_bytes.get(f"data/{key}", -1):
            raise ValueError(f"storage {key} is missing or shorter than its {size_bytes} bytes")
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("a storage is part of another, as before PyTorch 0.4")
        if self.storages.setdefault(key, size_bytes) != size_bytes:
            raise ValueError(f"storage {key} is of two sizes")
        storage = PlacedTensor((size_bytes,), dtype)
        storage.storage = key
        return storage

    def load_call(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], args)

    def load_call_with_keywords(self) -> None:
        self.stack.pop()
        self.load_call()

    def load_inst(self) -> None:
        readline: Callable[[], bytes] = self.readline  # type: ignore[attr-defined]
        module = readline()[:-1].decode("ascii")
        name = readline()[:-1].decode("ascii")
        args = _Tuple(self._pop_to_mark())
        self.stack.append(_call(self.find_class(module, name), args))

    def load_obj(self) -> None:
        made_by, *args = self._pop_to_mark()
        self.stack.append(_call(made_by, _Tuple(args)))

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = self.pop_mark()  # type: ignore[attr-defined]
        return items

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Stub):
            self.stack[-1].state = state


_HANDLERS: dict[int, Any] = {
    **pickle._Unpickler.dispatch,
    **dict.fromkeys(pickle.REDUCE + pickle.NEWOBJ, _Unpickler.load_call),
    pickle.NEWOBJ_EX[0]: _Unpickler.load_call_with_keywords,
    pickle.INST[0]: _Unpickler.load_inst,
    pickle.OBJ[0]: _Unpickler.load_obj,
    pickle.BUILD[0]: _Unpickler.load_build,
    # Its own handler takes the memory before it looks whether there are as many bytes.
    pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]],
}


def read_pickle(path: Path, kind: str) -> Pickled:
    """Return what the pickle of a file by torch.save, or a plain one, holds.

    Raises:
        RefusedError: It does not hold together, and names what no model does.
        TooLargeError: It is larger than any model's.
        ValueError: It does not hold together; a hostile pickle may raise others.
    """
    is_zip = kind in ("torch_zip", "torchscript")
    members = (zip_members(path) if is_zip else None) or {}
    sizes_bytes = {name: info.compress_size for name, info in members.items()}
    if any(info.compress_type for name, info in members.items() if name.startswith("data")):
        raise ValueError("its tensors are compressed, which torch.save never does")
    file_bytes = path.stat().st_size
    length_bytes = sizes_bytes.get("data.pkl", MAX_BYTES)
    if sum(sizes_bytes.values()) > file_bytes or length_bytes > MAX_BYTES:
        raise ValueError("its members are larger than the file, or its pickle than any model's")
    with path.open("rb") as file:
        if members:
            file.seek(_first_byte(file, members["data.pkl"].header_offset))
        stream = io.BytesIO(file.read(length_bytes))
        unpickler = _Unpickler(stream, sizes_bytes if members else None)
        try:
            if kind == "torch_legacy":
                for _ in ("magic number", "version", "machine"):  # a pickle each
                    _Unpickler(stream).load()
            root = unpickler.load()
            if kind == "torch_legacy":
                positions = _legacy_positions(file, stream, unpickler.storages)
            else:
                positions = {
                    key: _first_byte(file, members[f"data/{key}"].header_offset)
                    for key in unpickler.storages
                }
        except Exception as error:
            if dangerous := dangers(sorted(unpickler.globals)):
                shown = safe_text(", ".join(dangerous[:_SHOWN_DANGERS]))
                fact = f"{safe_text(path)} does not hold together, and wants {shown}: DANGEROUS"
                remedy = "do not load it; get the model from its author"
                raise RefusedError(fact, remedy=remedy) from error
            raise
    return Pickled(root, tuple(sorted(unpickler.globals)), positions)


def unpickled(stream: io.BytesIO, sizes_bytes: Mapping[str, int]) -> tuple[Any, tuple[str, ...]]:
    """Return what a pickle holds, as stubs, and every name that unpickling would import.

    Args:
        stream: The pickle.
        sizes_bytes: "data/KEY" → bytes of each storage that it may name.
    """
    unpickler = _Unpickler(stream, sizes_bytes)
    root = unpickler.load()
    return root, tuple(sorted(unpickler.globals))


def _first_byte(file: BinaryIO, header_offset: int) -> int:
    """Return where a zip member's data begins: behind its header, which ends with two lengths."""
    file.seek(header_offset + _ZIP_LENGTHS_AT)
    name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
    return header_offset + _ZIP_HEADER_BYTES + int(name_bytes) + int(extra_bytes)


def _legacy_positions(
    file: BinaryIO, stream: io.BytesIO, storages: Mapping[str, int]
) -> dict[str, int]:
    """Return where the storages lie, which follow each other behind a list of their keys."""
    count_bytes = 8  # of the number of elements, before each
    keys = _Unpickler(stream).load()
    stored_bytes = sum(count_bytes + size_bytes for size_bytes in storages.values())
    position = stream.tell()
    if stored_bytes > file.seek(0, os.SEEK_END) - position:
        raise ValueError("its storages end too soon: truncated")
    positions = {}
    for key in keys:
        if key not in storages:
            raise ValueError(f"no tensor is in its storage {key!r}")
        positions[key] = position + count_bytes
        position += count_bytes + storages[key]
    return positions


def array_info(node: Any) -> TensorInfo | None:
    """Return shape and type of a pickled NumPy array of numbers; None for all else.

    Raises:
        ValueError: Its data does not fit its shape.
    """
    if not isinstance(node, Stub):
        return None
    if _ARRAY.fullmatch(node.origin) and isinstance(node.state, list) and len(node.state) == 5:
        _, shape, element, _, data = node.state
    elif _ARRAY_OF_BYTES.fullmatch(node.origin) and len(node.args) == 4:
        data, element, shape, _ = node.args
    else:
        return None
    dtype = _array_dtype(element)
    if dtype is None or not isinstance(data, bytes | bytearray | str | Stub):
        return None
    shape = sizes(shape)
    data = data.args[0] if isinstance(data, Stub) and data.args else data  # of text, encoded
    if isinstance(data, Sized) and math.prod(shape) * (dtypes.itemsize(dtype) or 0) != len(data):
        raise ValueError(f"an array of shape {shape_text(shape)} has {len(data)} bytes of data")
    return TensorInfo(shape, dtype)


def _array_dtype(element: Any) -> str | None:
    """Return the name of a pickled numpy.dtype of numbers; None for objects and all else."""
    if not isinstance(element, Stub) or element.origin != "numpy.dtype" or not element.args:
        return None
    spelled = NAMES["numpy"].get(element.args[0]) if isinstance(element.args[0], str) else None
    return str(spelled) if spelled else None


def attributes(node: Any) -> dict[Any, Any]:
    """Return what an object's `__dict__` would hold; nothing for what is no object."""
    if not isinstance(node, Stub):
        return {}
    state = node.state
    if state is None and node.origin.startswith("torch.fx.graph_module.reduce_"):
        state = next((value for value in node.args if isinstance(value, dict)), None)
    return state if isinstance(state, dict) else {}


def entries(node: Any) -> dict[Any, Any]:
    """Return what a dict or OrderedDict holds; nothing for what is neither."""
    if not isinstance(node, Stub) or node.origin != "collections.OrderedDict":
        return node if isinstance(node, dict) else {}
    pairs = node.args[0] if node.args else []  # as Python 2 writes it
    distinct = dict(pairs)
    if len(distinct) < len(pairs):
        raise ValueError("it holds a dict that names a key twice")
    return distinct
