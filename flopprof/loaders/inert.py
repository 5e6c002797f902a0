"""Read a model file's keys, shapes, dtypes and classes; import, execute and load nothing."""

import hashlib
import io
import json
import math
import os
import pickle
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
_MAX_GLOBALS = 5_000
_MAX_TUPLES = 2_000  # in a tuple: hashing it recurses into all of them, in C and unchecked
_MAX_PARTS, _MAX_KEY = 500_000, 1_000  # attributes of a module's modules; a tensor's dotted name
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


class TensorInfo(NamedTuple):
    """A tensor's shape and dtype."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds.

    Attributes:
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

    def sha256(self) -> str:
        """Return the file's checksum."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class _Storage(NamedTuple):
    dtype: str
    size_bytes: int


class _Stub:
    """Stands for a class or function that is not imported, and for what it would make."""

    __slots__ = ("args", "entries", "origin", "state")

    def __init__(self, origin: str, args: tuple[Any, ...] = ()) -> None:
        self.origin, self.args = origin, args
        self.entries: dict[Any, Any] = {}
        self.state: Any = None

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, _item: Any) -> None: ...

    extend = add = append


class _Tuple(tuple[Any, ...]):
    """A tuple that is not too deep, or too often the same ones, to be hashed."""

    def __init__(self, items: list[Any]) -> None:
        self.tuples = 1 + sum(item.tuples for item in items if isinstance(item, _Tuple))
        if self.tuples > _MAX_TUPLES:
            raise ValueError(f"it nests tuples: more than {_MAX_TUPLES} in one")


def _call(made_by: Any, args: Any) -> Any:
    """Return what stands for the result of a call: a tensor, or a stub with its arguments."""
    if not isinstance(made_by, _Stub) or not isinstance(args, tuple):
        raise ValueError("it calls what is no class or function")
    module, _, name = made_by.origin.rpartition(".")
    if module.startswith("torch") and name.endswith(("Storage", "Tensor")):
        raise ValueError(f"it calls {made_by.origin}, which can ask for any amount of memory")
    tensor = _rebuild(name, args) if module in ("torch._utils", "torch._tensor") else None
    return tensor or _Stub(made_by.origin, args)


def _rebuild(name: str, args: tuple[Any, ...]) -> TensorInfo | None:
    """Return what torch's function `name` would make a tensor of; None if it is none we know."""
    if name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor"):
        storage, (start, *shape) = args[0], _sizes((args[1], *_sizes(args[2])))
        dtype = args[6].origin.removeprefix("torch.") if name.endswith("v3") else storage.dtype
        steps = sum((n - 1) * step for n, step in zip(shape, _sizes(args[3]), strict=True))
        end_bytes = (start + steps + 1) * (dtypes.itemsize(dtype) or 1)
        if 0 not in shape and end_bytes > storage.size_bytes:
            raise ValueError(f"a tensor of shape {shape} reaches outside its storage")
        return TensorInfo(tuple(shape), dtype)
    if name == "_rebuild_meta_tensor_no_storage":
        return TensorInfo(_sizes(args[1]), args[0].origin.removeprefix("torch."))
    if name == "_rebuild_sparse_tensor":
        return TensorInfo(_sizes(args[1][2]), args[1][1].dtype)
    made = _call(args[0], args[2]) if name == "_rebuild_from_type_v2" else args[0]
    return made if isinstance(made, TensorInfo) else None


def _sizes(value: Any) -> tuple[int, ...]:
    sizes = value.args[0] if isinstance(value, _Stub) else value  # torch.Size((2, 3))
    if len(sizes) > 64 or not all(type(s) is int and 0 <= s < 1 << 48 for s in sizes):
        raise ValueError("a tensor's shape, stride or offset is no list of sizes")
    return tuple(sizes)


class _Opcodes(dict[int, Any]):
    """Handlers by opcode, for so many opcodes and no more."""

    left = _MAX_OPCODES

    def __getitem__(self, code: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"its pickle has more than {_MAX_OPCODES} opcodes")
        return super().__getitem__(code)


class _Unpickler(pickle._Unpickler):
    """Builds stubs: what the stream names is never looked up, so nothing of it can run.

    In Python, since a memo of C's takes 8 bytes for the highest index that the stream names.
    """

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, stream: io.BytesIO, sizes_bytes: Mapping[str, int] | None = None) -> None:
        super().__init__(stream, encoding="latin-1")
        self.sizes_bytes = sizes_bytes
        self.stubs: dict[str, _Stub] = {}
        self.storages: dict[str, int] = {}
        self.dispatch = _Opcodes(_HANDLERS)  # type: ignore[misc]  # counts for this one

    def find_class(self, module: str, name: str) -> Any:
        origin = f"{_PYTHON_2.get(module, module)}.{name}"
        if len(self.stubs) >= _MAX_GLOBALS:
            raise ValueError(f"it names more than {_MAX_GLOBALS} classes")
        return self.stubs.setdefault(origin, _Stub(origin))

    def persistent_load(self, pid: Any) -> Any:
        tag, kind, key = pid[:3]
        if tag == "module" and isinstance(kind, _Stub):  # a class, with its source
            return kind
        if tag != "storage" or not isinstance(kind, _Stub) or not isinstance(key, str):
            raise ValueError("a persistent id is not torch's")
        name = kind.origin.rpartition(".")[2].removesuffix("Storage")
        dtype = _STORAGE_DTYPES.get(name) or dtypes.parse_dtype(name)
        (elements,) = _sizes((pid[4],))
        size_bytes = elements * (dtypes.itemsize(dtype) or 1)
        if self.sizes_bytes is not None and size_bytes > self.sizes_bytes.get(f"data/{key}", -1):
            raise ValueError(f"storage {key} is missing or shorter than its {size_bytes} bytes")
        self.storages[key] = size_bytes
        return _Storage(dtype, size_bytes)

    def _instantiate(self, made_by: Any, args: list[Any]) -> None:  # by INST and OBJ
        self.stack.append(_call(made_by, tuple(args)))

    def get_extension(self, _code: int) -> None:
        raise ValueError("it uses copyreg's extension codes")

    def load_call(self) -> None:
        args, made_by = self.stack.pop(), self.stack.pop()
        self.stack.append(_call(made_by, args))

    def load_call_with_keywords(self) -> None:
        self.stack.pop()
        self.load_call()

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], _Stub):
            self.stack[-1].state = state

    def load_tuple(self) -> None:
        self.stack.append(_Tuple(self.pop_mark()))

    def load_short_tuple(self, size: int) -> None:
        self.stack[-size:] = [_Tuple(self.stack[-size:])]


_HANDLERS: dict[int, Any] = {
    **pickle._Unpickler.dispatch,
    **dict.fromkeys((*pickle.REDUCE, *pickle.NEWOBJ), _Unpickler.load_call),
    pickle.NEWOBJ_EX[0]: _Unpickler.load_call_with_keywords,
    pickle.BUILD[0]: _Unpickler.load_build,
    pickle.TUPLE[0]: _Unpickler.load_tuple,
    pickle.TUPLE1[0]: lambda self: self.load_short_tuple(1),
    pickle.TUPLE2[0]: lambda self: self.load_short_tuple(2),
    pickle.TUPLE3[0]: lambda self: self.load_short_tuple(3),
    # As bytes: Python's own asks for the memory before it looks whether there are as many.
    pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]],
}


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
    except EOFError as error:
        raise damaged(path, "its pickle ends too soon, or is longer than any model's") from error
    except Exception as error:  # a hostile stream may raise anything; all mean the same
        raise damaged(path, str(error) or type(error).__name__) from error


def _read_zip(path: Path) -> Contents:
    members = zip_members(path)
    sizes_bytes = {name: info.compress_size for name, info in members.items()}
    if any(i.compress_type for name, i in members.items() if name.startswith("data")):
        raise ValueError("its tensors are compressed, which torch.save never does")
    if sum(sizes_bytes.values()) > path.stat().st_size or sizes_bytes["data.pkl"] > _MAX_BYTES:
        raise ValueError("its members are larger than the file, or its pickle than any model's")
    with path.open("rb") as file:
        file.seek(members["data.pkl"].header_offset + 26)  # two lengths close the local header
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
        unpickler = _Unpickler(io.BytesIO(file.read(sizes_bytes["data.pkl"])), sizes_bytes)
    kind = "torchscript" if "constants.pkl" in members else ""
    return _contents(path, unpickler.load(), unpickler, kind)


def _read_legacy(path: Path) -> Contents:
    with path.open("rb") as file:
        stream = io.BytesIO(file.read(_MAX_BYTES))
    for _ in range(3):  # magic number, version, machine
        _Unpickler(stream).load()
    unpickler = _Unpickler(stream)
    root = unpickler.load()
    _Unpickler(stream).load()  # the storages' keys
    stored_bytes = sum(8 + size_bytes for size_bytes in unpickler.storages.values())
    if stored_bytes > path.stat().st_size - stream.tell():
        raise ValueError("its storages end too soon: truncated")
    return _contents(path, root, unpickler)


def _read_pickle(path: Path) -> Contents:
    with path.open("rb") as file:
        unpickler = _Unpickler(io.BytesIO(file.read(_MAX_BYTES)))
    return replace(_contents(path, unpickler.load(), unpickler), kind="object")


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
    header: dict[str, Any] = json.loads(text, object_pairs_hook=_unique)
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
    is_module = "_modules" in _attributes(node)
    tensors = _module_tensors(node) if kind or is_module else _tensors(node)
    plain = {k: v for k, v in _entries(root).items() if isinstance(v, str | int | float)}
    return Contents(
        path,
        kind or ("pickled_module" if is_module else "state_dict" if tensors else "object"),
        tensors,
        node.origin if isinstance(node, _Stub) else "",
        tuple(sorted(unpickler.stubs)),
        wrapper_keys,
        {str(k)[:100]: v[:200] if isinstance(v, str) else v for k, v in [*plain.items()][:50]},
    )


def _attributes(node: Any) -> dict[Any, Any]:
    state = node.state if isinstance(node, _Stub) else None
    return state if isinstance(state, dict) else {}


def _entries(node: Any) -> dict[Any, Any]:
    """Return what a dict, or the stub of an OrderedDict, holds."""
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
        others = [key for key in entries if isinstance(key, str) and key not in inside][:50]
        inside += sorted(others, key=lambda key: -len(_tensors(entries[key])))[:1]
    for key in inside if depth < 3 else ():
        node, keys = _unwrap(entries[key], depth + 1)
        if _tensors(node) or "_modules" in _attributes(node):
            return node, (key, *keys)
    return root, ()


def _module_tensors(root: Any) -> dict[str, TensorInfo]:
    """Return a pickled module's parameters and persistent buffers by key."""
    tensors: dict[str, TensorInfo] = {}
    pending, parts = [("", root)], 0
    while pending:
        prefix, node = pending.pop()
        state = _attributes(node)
        held = [_entries(state.get(part)) for part in ("_parameters", "_buffers", "_modules")]
        children = {k: v for part in held for k, v in part.items()} or state
        hidden = state.get("_non_persistent_buffers_set", ())
        hidden = hidden.args[0] if isinstance(hidden, _Stub) and hidden.args else hidden
        parts += 1 + len(children)
        if parts > _MAX_PARTS:
            raise ValueError(f"it holds more than {_MAX_PARTS} modules and attributes")
        for key, value in children.items():
            name = f"{prefix}{key}"
            if len(name) > _MAX_KEY:
                raise ValueError("it nests its modules deeper than any model")
            if isinstance(value, TensorInfo) and (isinstance(hidden, _Stub) or key not in hidden):
                tensors[name] = value
            elif _attributes(value):
                pending.append((f"{name}.", value))
    return tensors
