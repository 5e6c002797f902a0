"""Read a model file's keys, shapes, dtypes and classes; import, execute and load nothing."""

import io
import json
import math
import os
import pickle
import re
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from flopprof import dtypes
from flopprof.errors import LoadError
from flopprof.model.detect import FileKind, damaged, detect, zip_members
from flopprof.units import safe_text

_MAX_OPCODES = 1_500_000  # a tensor takes about 60; an empty set 1, and 216 bytes of memory
_MAX_BYTES = 64 << 20  # of a pickle or a header
_MAX_GLOBALS = 5_000
_MAX_PARTS, _MAX_KEY = 500_000, 1_000  # attributes of a module's modules; a tensor's dotted name
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # of a Hugging Face folder
# What names in files mean: wrapper keys, harmless globals, element types.
NAMES: dict[str, Any] = json.loads(Path(__file__).with_name("names.json").read_text("utf-8"))


class TensorInfo(NamedTuple):
    """A tensor's shape and dtype."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds."""

    path: Path
    kind: str  # state_dict, pickled_module, torchscript, safetensors, or object: anything else
    tensors: dict[str, TensorInfo]  # parameters and buffers, by key below the wrapper keys
    top_class: str = ""  # of the pickled module or object; '' for plain containers
    globals: tuple[str, ...] = ()  # every name that unpickling would import
    wrapper_keys: tuple[str, ...] = ()  # where in a checkpoint the weights lie: ("state_dict",)
    metadata: dict[str, str | int | float] = field(default_factory=dict)  # such as the epoch
    shards: tuple[Path, ...] = ()  # the files that hold the tensors, where they are several
    modules: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)  # pickled ones:
    # path → class and plain attributes, such as stride
    config: dict[str, Any] = field(default_factory=dict)  # the config.json beside the weights

    @property
    def texts(self) -> tuple[str, ...]:
        """Return what may name the model: the file's name, and the texts beside its weights."""
        return (self.path.name, *(t for t in self.metadata.values() if isinstance(t, str)))

    @property
    def dangerous(self) -> tuple[str, ...]:
        """Return those globals that are no model's: Python's own modules, but for containers."""
        stdlib = sys.stdlib_module_names | {"commands"}  # the last of Python 2
        return tuple(
            name
            for name in self.globals
            if (name.partition(".")[0] in stdlib and not re.fullmatch(NAMES["harmless"], name))
            or re.fullmatch(NAMES["torch_runs"], name)
        )


@dataclass(eq=False, slots=True)
class _Stub:
    """Stands for a class or function that is not imported, and for what it would make."""

    origin: str
    args: list[Any] = field(default_factory=list)
    state: Any = None

    def __setitem__(self, _key: Any, _value: Any) -> None: ...
    def append(self, _item: Any) -> None: ...

    extend = add = append


class _Tuple(list[Any]):
    """A tuple without its hash, which recurses into all that is in it, in C and unchecked."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def _call(made_by: Any, args: Any) -> Any:
    """Return what stands for the result of a call: a tensor, or a stub with its arguments."""
    if not isinstance(made_by, _Stub) or not isinstance(args, _Tuple):
        raise ValueError("it calls what is no class or function")
    module, _, name = made_by.origin.rpartition(".")
    if module.startswith("torch") and name.endswith(("Storage", "Tensor")):
        raise ValueError(f"it calls {made_by.origin}, which can ask for any amount of memory")
    if made_by.origin == "collections.OrderedDict" and not args:
        return {}
    made = _rebuild(name, args) if module in ("torch._utils", "torch._tensor") else None
    return made if isinstance(made, TensorInfo) else _Stub(made_by.origin, args)


def _rebuild(name: str, args: list[Any]) -> Any:
    """Return what torch's function `name` would make a tensor of, or None."""
    if name.startswith("_rebuild_parameter"):
        return args[0]
    if name == "_rebuild_from_type_v2":
        return _call(args[0], args[2])
    if name not in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
        return None
    ((room_bytes,), dtype), (start, *shape) = args[0], _sizes((args[1], *_sizes(args[2])))
    dtype = args[6].origin.removeprefix("torch.") if name.endswith("v3") else dtype
    steps = sum((n - 1) * step for n, step in zip(shape, _sizes(args[3]), strict=True))
    end_bytes = (start + steps + 1) * (dtypes.itemsize(dtype) or 1)
    if 0 not in shape and end_bytes > room_bytes:
        raise ValueError(f"a tensor of shape {shape} reaches outside its storage")
    return TensorInfo(tuple(shape), dtype)


def _sizes(value: Any) -> tuple[int, ...]:
    sizes = value.args[0] if isinstance(value, _Stub) else value  # torch.Size((2, 3))
    if len(sizes) > 64 or not all(type(s) is int and 0 <= s < 1 << 48 for s in sizes):
        raise ValueError("a tensor's shape, stride or offset is no list of sizes")
    return tuple(sizes)


class _Unpickler(pickle._Unpickler):
    """Builds stubs: what the stream names is never looked up, so nothing of it can run."""

    def __init__(self, stream: io.BytesIO, sizes_bytes: Mapping[str, int] | None = None) -> None:
        super().__init__(stream, encoding="latin-1")
        self.dispatch = self  # type: ignore[misc,assignment]  # looks up what to do by opcode
        self.left = _MAX_OPCODES
        self.stack: list[Any] = []
        self.sizes_bytes = sizes_bytes
        self.globals: set[str] = set()
        self.storages: dict[str, int] = {}

    def __getitem__(self, opcode: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"its pickle has more than {_MAX_OPCODES} opcodes")
        if self.stack and type(self.stack[-1]) is tuple:
            self.stack[-1] = _Tuple(self.stack[-1])
        return _HANDLERS[opcode]

    def find_class(self, module: str, name: str) -> Any:
        stub = _Stub(f"{NAMES['python_2'].get(module, module)}.{name}")
        self.globals.add(stub.origin)
        if len(self.globals) > _MAX_GLOBALS:
            raise ValueError(f"it names more than {_MAX_GLOBALS} classes")
        return stub

    def persistent_load(self, pid: Any) -> Any:
        tag, kind, key = pid[:3]
        if tag == "module" and isinstance(kind, _Stub):  # a class, with its source
            return kind
        if tag != "storage" or not isinstance(kind, _Stub) or not isinstance(key, str):
            raise ValueError("a persistent id is not torch's")
        name = kind.origin.rpartition(".")[2].removesuffix("Storage")
        dtype = NAMES["storages"].get(name) or dtypes.parse_dtype(name)
        (elements,) = _sizes((pid[4],))
        size_bytes = elements * (dtypes.itemsize(dtype) or 1)
        if self.sizes_bytes is not None and size_bytes > self.sizes_bytes.get(f"data/{key}", -1):
            raise ValueError(f"storage {key} is missing or shorter than its {size_bytes} bytes")
        self.storages[key] = size_bytes
        return TensorInfo((size_bytes,), dtype)

    def load_call(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], args)

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], _Stub):
            self.stack[-1].state = state


_HANDLERS: dict[int, Any] = {
    **pickle._Unpickler.dispatch,
    **dict.fromkeys(pickle.REDUCE + pickle.NEWOBJ, _Unpickler.load_call),
    pickle.BUILD[0]: _Unpickler.load_build,
    # Its own handler takes the memory before it looks whether there are as many bytes.
    pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]],
}


def read_contents(path: Path, kind: FileKind) -> Contents:
    """Return what the file of this kind holds; nothing of it is imported, run or loaded."""
    try:
        if kind.name == "torch_export":  # its graph is JSON, its loader unpickles what lies beside
            return Contents(path, kind.name, {})
        if kind.name in ("sharded", "huggingface"):
            return _read_shards(path, kind.name)
        if kind.name == "safetensors":
            found = read_safetensors(path)
            return Contents(path, kind.name, {key: info for key, (info, _) in found.items()})
        if kind.name in ("torch_zip", "torchscript", "torch_legacy", "pickle"):
            return _read_pickled(path, kind.name)
    except LoadError:
        raise
    except Exception as error:  # a hostile stream may raise anything; all mean the same
        fact = str(error) or "its pickle ends too soon, or is longer than any model's"
        raise damaged(path, fact) from error
    raise LoadError(f"{safe_text(path)} is {kind.what}", remedy=kind.remedy)


def _read_shards(path: Path, kind: str) -> Contents:
    """Return what the files of a folder, or of an index, hold together."""
    folder = path if path.is_dir() else path.parent
    indices = sorted(folder.glob("*.index.json")) if path.is_dir() else [path]
    if indices:
        names = set(map(str, dict(_read_json(indices[0]).get("weight_map") or {}).values()))
        if not names:
            raise ValueError("its index names no files")
        if any("/" in name or "\\" in name for name in names):
            raise ValueError("its index names files outside its folder")
        shards = sorted(folder / name for name in names)
    else:
        shards = [p for p in map(folder.joinpath, _WEIGHT_FILES) if p.exists()][:1]
    tensors: dict[str, TensorInfo] = {}
    names = set()
    for shard in shards:
        found = read_contents(shard, detect(shard))
        tensors |= found.tensors
        names |= {*found.globals}
    config = _read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    return Contents(
        path, kind, tensors, globals=tuple(sorted(names)), shards=tuple(shards), config=config
    )


def _read_json(path: Path) -> dict[str, Any]:
    text = path.read_bytes() if path.stat().st_size <= _MAX_BYTES else b""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return found


def _read_pickled(path: Path, kind: str) -> Contents:
    members = (zip_members(path) if kind in ("torch_zip", "torchscript") else None) or {}
    sizes_bytes = {name: info.compress_size for name, info in members.items()}
    if any(i.compress_type for name, i in members.items() if name.startswith("data")):
        raise ValueError("its tensors are compressed, which torch.save never does")
    file_bytes, length_bytes = path.stat().st_size, sizes_bytes.get("data.pkl", _MAX_BYTES)
    if sum(sizes_bytes.values()) > file_bytes or length_bytes > _MAX_BYTES:
        raise ValueError("its members are larger than the file, or its pickle than any model's")
    with path.open("rb") as file:
        if members:
            file.seek(members["data.pkl"].header_offset + 26)  # ends with the lengths of two names
            file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
        stream = io.BytesIO(file.read(length_bytes))
    for _ in range(3 if kind == "torch_legacy" else 0):  # magic number, version, machine
        _Unpickler(stream).load()
    unpickler = _Unpickler(stream, sizes_bytes if members else None)
    root = unpickler.load()
    if kind == "torch_legacy":
        _Unpickler(stream).load()  # the storages' keys
        stored_bytes = sum(8 + size_bytes for size_bytes in unpickler.storages.values())
        if stored_bytes > file_bytes - stream.tell():
            raise ValueError("its storages end too soon: truncated")
    node, wrapper_keys = (root, ()) if kind == "torchscript" else _unwrap(root)
    is_module = kind == "torchscript" or "_modules" in _attributes(node)
    modules: dict[str, tuple[str, dict[str, Any]]] = {}
    tensors = _module_tensors(node, modules) if is_module else _tensors(node)
    found = "pickled_module" if is_module else "state_dict" if tensors else "object"
    plain = {k: v for k, v in _entries(root).items() if isinstance(k, str)}
    metadata = {
        key[:100]: value[:200] if isinstance(value, str) else value
        for key, value in islice(plain.items(), 50)
        if isinstance(value, str | int | float)
    }
    return Contents(
        path,
        {"torchscript": "torchscript", "pickle": "object"}.get(kind, found),
        tensors,
        node.origin if isinstance(node, _Stub) else "",
        tuple(sorted(unpickler.globals)),
        wrapper_keys,
        metadata,
        modules=modules,
    )


def read_safetensors(path: Path) -> dict[str, tuple[TensorInfo, int]]:
    """Return a safetensors file's tensors by key, each with where in the file its data begins."""
    with path.open("rb") as file:
        length_bytes = int.from_bytes(file.read(8), "little")
        text = file.read(length_bytes) if length_bytes <= _MAX_BYTES else b""
    if len(text) < length_bytes or not text:
        raise ValueError(f"its header of {length_bytes} bytes ends too soon, or is too long")
    pairs: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=list)
    header = {key: dict(entry) for key, entry in pairs}
    if len(header) < len(pairs):
        raise ValueError("its header names a key twice")
    header.pop("__metadata__", None)
    tensors, start, file_bytes = {}, 8 + length_bytes, path.stat().st_size
    for key, entry in header.items():
        info = TensorInfo(_sizes(entry["shape"]), NAMES["safetensors"][entry["dtype"]])
        first, last = _sizes(entry["data_offsets"])
        size_bytes = math.prod(info.shape) * (dtypes.itemsize(info.dtype) or 1)
        if start + last > file_bytes or last - first != size_bytes:
            raise ValueError(f"the data of {key!r} lies outside the file or does not fit its shape")
        tensors[key] = info, start + first
    return tensors


def _attributes(node: Any) -> dict[Any, Any]:
    state = node.state if isinstance(node, _Stub) else None
    return state if isinstance(state, dict) else {}


def _entries(node: Any) -> dict[Any, Any]:
    if not isinstance(node, _Stub) or node.origin != "collections.OrderedDict":
        return node if isinstance(node, dict) else {}
    pairs = [*node.args, []][0]  # as Python 2 writes it
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("it holds a dict that names a key twice")
    return found


def _tensors(node: Any) -> dict[str, TensorInfo]:
    found = _entries(node).items()
    return {k: v for k, v in found if isinstance(k, str) and isinstance(v, TensorInfo)}


def _plain(state: dict[Any, Any]) -> dict[str, Any]:
    """Return the attributes that are numbers, texts or tuples of numbers, but for the mode."""
    found = {}
    for name, value in state.items():
        plain = tuple(value) if type(value) is _Tuple else value
        parts = plain if isinstance(plain, tuple) else (plain,)
        if name != "training" and all(type(p) in (int, float, bool, str) for p in parts):
            found[str(name)] = plain
    return found


def _unwrap(root: Any, depth: int = 0) -> tuple[Any, tuple[str, ...]]:
    """Return the module or the mapping with the weights below `root`, and the keys to it."""
    entries = _entries(root)
    inside = [key for key in NAMES["wrappers"] if key in entries]
    if not _tensors(root):  # else the one with the most tensors, whatever its name
        others = [key for key in entries if isinstance(key, str) and key not in inside][:50]
        inside += sorted(others, key=lambda key: -len(_tensors(entries[key])))[:1]
    for key in inside if depth < 3 else ():
        node, keys = _unwrap(entries[key], depth + 1)
        if _tensors(node) or "_modules" in _attributes(node):
            return node, (key, *keys)
    return root, ()


def _module_tensors(
    root: Any, modules: dict[str, tuple[str, dict[str, Any]]]
) -> dict[str, TensorInfo]:
    """Return a pickled module's parameters and persistent buffers by key; add its `modules`."""
    tensors: dict[str, TensorInfo] = {}
    pending, count = [("", root)], 0
    while pending:
        prefix, node = pending.pop()
        state = _attributes(node)
        origin = node.origin if isinstance(node, _Stub) else ""
        modules[prefix.removesuffix(".")] = origin, _plain(state)
        parts = (_entries(state.get(f"_{part}")) for part in ("parameters", "buffers", "modules"))
        children = {k: v for part in parts for k, v in part.items()} or state
        hidden = state.get("_non_persistent_buffers_set", ())
        hidden = [*hidden.args, ()][0] if isinstance(hidden, _Stub) else hidden
        hidden = set(islice(hidden, 100))
        for key, value in children.items():
            name = prefix + key
            count += 1
            if count > _MAX_PARTS or len(name) > _MAX_KEY:
                raise ValueError(f"it holds over {_MAX_PARTS} modules, or deeper than any model")
            if isinstance(value, TensorInfo) and key not in hidden:
                tensors[name] = value
            elif _attributes(value):
                pending.append((f"{name}.", value))
    return tensors
