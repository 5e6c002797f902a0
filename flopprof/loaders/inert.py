"""Read a model file's keys, shapes, dtypes and classes; import, execute and load nothing."""

import hashlib
import io
import json
import math
import mmap
import os
import pickle
import pickletools
import re
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from flopprof import dtypes
from flopprof.errors import LoadError, UsageError
from flopprof.loaders.detect import FileKind, damaged, safe_text, zip_members

_MAX_OPCODES = 1_500_000  # a tensor takes about 60; an empty set 1, and 216 bytes of memory
_MAX_BYTES = 64 << 20  # of a pickle or a header
_MAX_GLOBALS = 5_000  # a stand-in class takes 1 KB
_MAX_DEPTH = 500  # of tuples in tuples: hashing them recurses in C, unchecked
_MAX_MODULES, _MAX_TENSORS, _MAX_KEY = 50_000, 200_000, 1_000
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "ema", "model_ema", "state_dict_ema",
             "module", "network", "weights", "params", "params_ema")  # fmt: skip
_HARMLESS = re.compile(
    r"(collections|argparse|datetime|decimal|enum|uuid|_codecs|copyreg|pathlib)\..*|builtins\.(set|"
    r"frozenset|list|dict|tuple|int|float|bool|str|bytes|complex|slice|range|object|unicode|long)"
)
_TORCH_RUNS = re.compile(r"torch\.(hub|jit|load|serialization|package|utils\.cpp_extension)\b")
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_STDLIB = sys.stdlib_module_names | {"commands"}  # the last of Python 2
_STORAGE_DTYPES = {"ComplexFloat": "complex64", "ComplexDouble": "complex128", "QInt8": "qint8",
                   "QUInt8": "quint8", "QInt32": "qint32", "Untyped": "uint8"}  # fmt: skip
SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
                      "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
                      "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
                      "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}  # fmt: skip
# Where torch._utils' functions take storage, offset, shape, stride and dtype; None: nowhere.
_REBUILD: dict[str, tuple[int | None, int, int, int, int | None]] = {
    "_rebuild_tensor": (0, 1, 2, 3, None),
    "_rebuild_tensor_v2": (0, 1, 2, 3, None),
    "_rebuild_tensor_v3": (0, 1, 2, 3, 6),
    "_rebuild_qtensor": (0, 1, 2, 3, None),
    "_rebuild_meta_tensor_no_storage": (None, 0, 1, 2, 0),
    "_rebuild_wrapper_subclass": (None, 0, 2, 3, 1),
}


class TensorInfo(NamedTuple):
    """A tensor's shape and dtype."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds.

    Attributes:
        path: The file.
        kind: state_dict, pickled_module, torchscript, safetensors, or object: anything else.
        tensors: Parameters and buffers by key, below the wrapper keys.
        top_class: Class of the pickled module or object; '' for plain containers.
        globals: Every name that unpickling would import.
        wrapper_keys: Where in a checkpoint the weights lie: ("state_dict",).
        metadata: A checkpoint's plain values, such as the epoch.
    """

    path: Path
    kind: str
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    top_class: str = ""
    globals: tuple[str, ...] = ()
    wrapper_keys: tuple[str, ...] = ()
    metadata: dict[str, str | int | float] = field(default_factory=dict)

    @property
    def dangerous(self) -> tuple[str, ...]:
        """Return those globals that are no model's: Python's own modules, but for containers."""
        return tuple(
            name
            for name in self.globals
            if _TORCH_RUNS.match(name)
            or (name.partition(".")[0] in _STDLIB and not _HARMLESS.fullmatch(name))
        )

    @property
    def elements(self) -> int:
        """Return the number of elements of all tensors, buffers included."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    def sha256(self) -> str:
        """Return the file's checksum."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class _Storage(NamedTuple):
    dtype: str
    size_bytes: int


class _Stub:
    """Stands for an object whose class or function is not imported."""

    __slots__ = ("args", "entries", "state")
    origin = ""
    args: tuple[Any, ...]
    entries: dict[Any, Any]
    state: Any

    def __new__(cls, *args: Any, **_kwargs: Any) -> Any:
        module, _, name = cls.origin.rpartition(".")
        if module.startswith("torch") and name.endswith(("Storage", "Tensor")):
            raise ValueError(f"it calls {cls.origin}, which can ask for any amount of memory")
        if module in ("torch._utils", "torch._tensor") and (tensor := _rebuild(name, args)):
            return tensor
        self = super().__new__(cls)
        self.args, self.entries, self.state = args, {}, None
        return self

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def __call__(self, *_args: Any, **_kwargs: Any) -> "_Stub":
        return self

    def append(self, _item: Any) -> None: ...

    extend = add = append


def _rebuild(name: str, args: tuple[Any, ...]) -> TensorInfo | None:
    """Return what torch's function `name` would make a tensor of; None if it is none we know."""
    made: Any = None
    if name in _REBUILD:
        store, offset, shape, stride, dtype = _REBUILD[name]
        at, *_ = _sizes((args[offset],)) if store is not None else (0,)
        kind = None if dtype is None else args[dtype].origin.removeprefix("torch.")
        storage = None if store is None else args[store]
        made = _tensor(storage, at, _sizes(args[shape]), _sizes(args[stride]), kind)
    elif name == "_rebuild_sparse_tensor":
        made = TensorInfo(_sizes(args[1][2]), args[1][1].dtype)
    elif name.startswith("_rebuild_parameter"):
        made = args[0]
    elif name == "_rebuild_from_type_v2" and isinstance(args[0], type):
        made = args[0](*args[2])
    return made if isinstance(made, TensorInfo) else None


def _sizes(value: Any) -> tuple[int, ...]:
    sizes = value.args[0] if isinstance(value, _Stub) else value  # torch.Size((2, 3))
    if len(sizes) > 64 or not all(type(s) is int and 0 <= s < 1 << 48 for s in sizes):
        raise ValueError("a tensor's shape, stride or offset is no list of sizes")
    return tuple(sizes)


def _tensor(
    storage: _Storage | None,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: str | None,
) -> TensorInfo:
    if storage is not None:
        dtype = dtype or storage.dtype
        steps = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        end_bytes = (offset + steps + 1) * (dtypes.itemsize(dtype) or 1)
        if 0 not in shape and end_bytes > storage.size_bytes:
            raise ValueError(f"a tensor of shape {shape} reaches outside its storage")
    return TensorInfo(shape, dtype or "")


class _Unpickler(pickle.Unpickler):
    """Builds stand-ins: what the stream names is never looked up, so nothing of it can run."""

    def __init__(self, data: bytes, sizes_bytes: Mapping[str, int] | None = None) -> None:
        super().__init__(io.BytesIO(data), encoding="latin-1")
        self.sizes_bytes = sizes_bytes
        self.stubs: dict[str, type[_Stub]] = {}
        self.storages: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        origin = f"{_PYTHON_2.get(module, module)}.{name}"
        if origin not in self.stubs:
            if len(self.stubs) >= _MAX_GLOBALS:
                raise ValueError(f"it names more than {_MAX_GLOBALS} classes")
            self.stubs[origin] = type("Stub", (_Stub,), {"origin": origin, "__slots__": ()})
        return self.stubs[origin]

    def persistent_load(self, pid: Any) -> Any:
        tag, kind, key = pid[:3]
        if tag == "module" and isinstance(kind, type):  # a class, with its source
            return kind
        if tag != "storage" or not isinstance(kind, type) or not isinstance(key, str):
            raise ValueError("a persistent id is not torch's")
        name = getattr(kind, "origin", "").rpartition(".")[2].removesuffix("Storage")
        dtype = _STORAGE_DTYPES.get(name) or dtypes.parse_dtype(name)
        (elements,) = _sizes((pid[4],))
        size_bytes = elements * (dtypes.itemsize(dtype) or 1)
        if self.sizes_bytes is not None and size_bytes > self.sizes_bytes.get(f"data/{key}", -1):
            raise ValueError(f"storage {key} is missing or shorter than its {size_bytes} bytes")
        self.storages[key] = size_bytes
        return _Storage(dtype, size_bytes)


# Opcode → length of its argument, objects it takes from the stack (below the mark, if it takes
# all down to one), whether that is so, objects it puts there.
_EFFECTS = {
    ord(op.code): (
        op.arg.n if op.arg else 0,
        next((i for i, o in enumerate(op.stack_before) if o.name == "mark"), len(op.stack_before)),
        any(item.name == "mark" for item in op.stack_before),
        len(op.stack_after),
    )
    for op in pickletools.opcodes
}
_NEST, _GET, _PUT = b"t\x85\x86\x87\x91", b"ghj", b"pqr"  # TUPLE*, FROZENSET; GET*; PUT*
_MARK, _POP, _STOP, _MEMOIZE, _EXT = 0x28, 0x30, 0x2E, 0x94, b"\x82\x83\x84"


def _scan(data: Any, start: int = 0) -> int:
    """Return where the pickle that starts at `start` ends, after checking its bounds.

    Of the stack it follows only how deep tuples are nested.

    Raises:
        ValueError: It ends too soon, or has too many opcodes, memo slots, bytes or levels.
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    pos, last = start, min(len(data), start + _MAX_BYTES)
    for _ in range(_MAX_OPCODES):
        if pos >= last:
            raise ValueError("its pickle ends too soon, or is longer than any model's")
        code = data[pos]
        length, pops, marked, pushes = _EFFECTS[code]
        argument = pos = pos + 1
        if length >= 0:
            pos += length
        elif length == pickletools.UP_TO_NEWLINE:
            for _line in range(2 if code in b"ci" else 1):
                pos = data.find(b"\n", pos, last) + 1 or last
        else:  # a length of 1, 4 or 8 bytes, then as many bytes
            width = {-2: 1, -3: 4, -4: 4, -5: 8}[length]
            pos += width + int.from_bytes(data[pos : pos + width], "little")
        if code == _STOP:
            return pos
        if code in _EXT:
            raise ValueError("it uses copyreg's extension codes")
        if code == _MARK:
            marks.append(len(stack))
            continue
        if code == _POP and marks and marks[-1] == len(stack):
            marks.pop()
            continue
        base = (marks.pop() if marked else len(stack)) - pops
        depth = stack[base] if pops else 0  # most opcodes put back what they found, changed
        if code in _NEST:
            depth = 1 + max(stack[base:], default=0)
        elif code in _GET or code in _PUT:
            raw = data[argument:pos]
            slot = int(raw) if length < 0 else int.from_bytes(raw, "little")
            if slot > _MAX_OPCODES:
                raise ValueError(f"its memo has a slot {slot}")
            if code in _PUT:
                memo[slot] = stack[-1]
            depth = memo.get(slot, 0)
        elif code == _MEMOIZE:
            memo[len(memo)] = depth
        if depth > _MAX_DEPTH or base < 0:
            raise ValueError(f"it nests tuples over {_MAX_DEPTH} deep, or takes what is not there")
        del stack[base:]
        stack += [depth] * pushes
    raise ValueError(f"its pickle has more than {_MAX_OPCODES} opcodes")


def read_contents(path: Path, kind: FileKind) -> Contents:
    """Return what the file of this kind holds; nothing of it is imported, run or loaded.

    Raises:
        LoadError: It is damaged or out of bounds, or of a kind that has no such contents.
    """
    if kind.name not in _READERS:
        raise LoadError(f"{safe_text(path)} is {kind.what}", remedy=kind.remedy)
    try:
        return _READERS[kind.name](path)
    except LoadError:
        raise
    except OSError as error:
        raise UsageError(f"{safe_text(path)}: {error}", remedy="name a readable file") from error
    except Exception as error:  # a hostile stream may raise anything; all mean the same
        raise damaged(path, str(error) or type(error).__name__) from error


def _read_zip(path: Path) -> Contents:
    members = zip_members(path) or {}
    sizes_bytes = {name: info.compress_size for name, info in members.items()}
    if any(i.compress_type for name, i in members.items() if name.startswith("data")):
        raise ValueError("its tensors are compressed, which torch.save never does")
    if sum(sizes_bytes.values()) > path.stat().st_size or sizes_bytes["data.pkl"] > _MAX_BYTES:
        raise ValueError("its members are larger than the file, or its pickle than any model's")
    with path.open("rb") as file:
        file.seek(members["data.pkl"].header_offset + 26)  # two lengths close the local header
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
        data = file.read(sizes_bytes["data.pkl"])
    _scan(data)
    unpickler = _Unpickler(data, sizes_bytes)
    kind = "torchscript" if "constants.pkl" in members else ""
    return _contents(path, unpickler.load(), unpickler, kind)


def _read_legacy(path: Path) -> Contents:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        ends = [0]
        for _ in range(5):  # magic number, version, machine, the object, the storages' keys
            ends.append(_scan(data, ends[-1]))
        unpickler = _Unpickler(data[ends[3] : ends[4]])
        root = unpickler.load()
        stored_bytes = sum(8 + size_bytes for size_bytes in unpickler.storages.values())
        if stored_bytes > len(data) - ends[5]:
            raise ValueError("its storages end too soon: truncated")
    return _contents(path, root, unpickler)


def _read_pickle(path: Path) -> Contents:
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES)
    _scan(data)
    unpickler = _Unpickler(data)
    root = unpickler.load()
    return replace(_contents(path, root, unpickler), kind="object")


def _read_safetensors(path: Path) -> Contents:
    header, start = safetensors_header(path)
    tensors, room_bytes = {}, path.stat().st_size - start
    for key, entry in header.items():
        shape, dtype = _sizes(entry["shape"]), SAFETENSORS_DTYPES[entry["dtype"]]
        first, last = _sizes(entry["data_offsets"])
        if last > room_bytes or last - first != math.prod(shape) * (dtypes.itemsize(dtype) or 1):
            raise ValueError(f"the data of {key!r} lies outside the file or does not fit its shape")
        tensors[key] = TensorInfo(shape, dtype)
    return Contents(path, "safetensors", tensors)


def safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return a safetensors file's entries by key, and where the data begins."""
    with path.open("rb") as file:
        size_bytes = int.from_bytes(file.read(8), "little")
        text = file.read(size_bytes) if size_bytes <= _MAX_BYTES else b""
    if len(text) < size_bytes or not text:
        raise ValueError(f"its header of {size_bytes} bytes ends too soon, or is too long")
    pairs: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=_unique)
    header = dict(pairs)
    header.pop("__metadata__", None)
    return header, 8 + size_bytes


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("its header names a key twice")
    return dict(pairs)


_READERS: dict[str, Callable[[Path], Contents]] = {
    "torch_zip": _read_zip,
    "torchscript": _read_zip,
    "torch_legacy": _read_legacy,
    "pickle": _read_pickle,
    "safetensors": _read_safetensors,
}


def _contents(path: Path, root: Any, unpickler: _Unpickler, kind: str = "") -> Contents:
    node, wrapper_keys = (root, ()) if kind else _unwrap(root)
    is_module = isinstance(node, _Stub) and "_modules" in _attributes(node)
    tensors = _module_tensors(node) if kind or is_module else _tensors(node)
    plain = {k: v for k, v in _entries(root).items() if isinstance(v, str | int | float)}
    return Contents(
        path,
        kind or ("pickled_module" if is_module else "state_dict" if tensors else "object"),
        tensors,
        "" if isinstance(node, dict) or not isinstance(node, _Stub) else node.origin,
        tuple(sorted(unpickler.stubs)),
        wrapper_keys,
        {str(k)[:100]: v[:200] if isinstance(v, str) else v for k, v in [*plain.items()][:50]},
    )


def _attributes(node: Any) -> dict[Any, Any]:
    state = node.state if isinstance(node, _Stub) else None
    return state if isinstance(state, dict) else {}


def _entries(node: Any) -> dict[Any, Any]:
    """Return what a dict, or the stand-in of an OrderedDict, holds."""
    if isinstance(node, _Stub):
        from_pairs = node.origin == "collections.OrderedDict" and node.args  # by Python 2
        return node.entries or (dict(node.args[0]) if from_pairs else {})
    return node if isinstance(node, dict) else {}


def _tensors(node: Any) -> dict[str, TensorInfo]:
    found = _entries(node).items()
    return {k: v for k, v in found if isinstance(k, str) and isinstance(v, TensorInfo)}


def _unwrap(root: Any, depth: int = 0) -> tuple[Any, tuple[str, ...]]:
    """Return the module or the mapping with the weights below `root`, and the keys to it."""
    entries = _entries(root)
    inside = [key for key in _WRAPPERS if key in entries]
    if not _tensors(root):  # else the one with the most tensors, whatever its name
        others = [key for key in entries if isinstance(key, str) and key not in inside]
        inside += sorted(others, key=lambda key: -len(_tensors(entries[key])))[:1]
    for key in inside if depth < 3 else ():
        node, keys = _unwrap(entries[key], depth + 1)
        if _tensors(node) or "_modules" in _attributes(node):
            return node, (key, *keys)
    return root, ()


def _module_tensors(root: Any) -> dict[str, TensorInfo]:
    """Return a pickled module's parameters and persistent buffers by key."""
    tensors: dict[str, TensorInfo] = {}
    pending = [("", root)]
    for _ in range(_MAX_MODULES):
        if not pending:
            return tensors
        prefix, node = pending.pop()
        state = _attributes(node)
        held = [state.get(part) for part in ("_parameters", "_buffers", "_modules")]
        children = {k: v for part in held for k, v in _entries(part).items()} or state
        hidden = state.get("_non_persistent_buffers_set", ())
        hidden = hidden.args[0] if isinstance(hidden, _Stub) and hidden.args else hidden
        for key, value in children.items():
            name = f"{prefix}{key}"
            if len(name) > _MAX_KEY or len(tensors) > _MAX_TENSORS:
                raise ValueError("it nests its modules deeper, or shares them more, than any model")
            if isinstance(value, TensorInfo) and (isinstance(hidden, _Stub) or key not in hidden):
                tensors[name] = value
            elif _attributes(value):
                pending.append((f"{name}.", value))
    raise ValueError(f"it holds more than {_MAX_MODULES} modules")
