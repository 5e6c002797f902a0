"""Say what a model file or folder holds; import, execute and load nothing of it."""

import json
import math
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from flopprof import dtypes
from flopprof.errors import FlopprofError, LoadError
from flopprof.model.detect import FileKind, damaged, detect
from flopprof.model.folders import read_json, weight_files
from flopprof.model.frameworks import KINDS as FOREIGN_KINDS
from flopprof.model.frameworks import read_foreign
from flopprof.model.pickles import (
    MAX_BYTES,
    NAMES,
    PlacedTensor,
    Stub,
    TensorInfo,
    TooLargeError,
    array_info,
    attributes,
    dangers,
    entries,
    is_tuple,
    read_pickle,
    sizes,
)
from flopprof.model.plainly import configuration
from flopprof.units import safe_text

_MAX_PARTS = 500_000  # attributes of a module's modules
_MAX_KEY = 1_000  # letters of a tensor's dotted name
_MAX_DEPTH = 12  # of a checkpoint, in which weights are looked for
_MAX_CONTAINERS = 20_000  # of it, too
_MAX_PIPELINE = 100  # entries of a pipeline's index
_MODULE = 1_000_000  # tensors that a pickled module counts as where a file holds several things
_STATE = re.compile("(?i)optim|sched|scaler|rng|grad|loops|callbacks")  # no weights of a model


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
    positions: dict[str, int] = field(default_factory=dict)  # in the file, of a pickle's storages
    others: dict[str, dict[str, TensorInfo]] = field(default_factory=dict)  # weights: where, which
    copies: tuple[str, ...] = ()  # where the same keys and shapes lie again: an average, say
    aside: tuple[str, ...] = ()  # a trainer's state, of no model: the optimizer's, say
    configuration: dict[str, Any] = field(default_factory=dict)  # nested, beside the weights
    notes: tuple[str, ...] = ()  # what of it was left aside, in words
    shards: tuple[Path, ...] = ()  # the files that hold the tensors, where they are several
    modules: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)  # pickled ones:
    # path → class and plain attributes, such as stride
    config: dict[str, Any] = field(default_factory=dict)  # the config.json beside the weights
    adapter: dict[str, Any] = field(default_factory=dict)  # the adapter_config.json beside them
    parts: dict[str, "Contents"] = field(default_factory=dict)  # the models of a pipeline

    @property
    def texts(self) -> tuple[str, ...]:
        """Return what may name the model: the file's name, and the texts beside its weights."""
        return (self.path.name, *(t for t in self.metadata.values() if isinstance(t, str)))

    @property
    def beside(self) -> dict[str, int]:
        """Return how many tensors other weights have, by where they lie; one or two are none."""
        return {place: len(some) for place, some in self.others.items() if len(some) > 2}

    @property
    def dangerous(self) -> tuple[str, ...]:
        """Return those globals that are no model's."""
        return dangers(self.globals)


def read_contents(path: Path, kind: FileKind) -> Contents:
    """Return what the file or folder of this kind holds; nothing is imported, run or loaded.

    Raises:
        LoadError: It is damaged, or not what a model is kept in.
        RefusedError: It is damaged, and would run code.
    """
    try:
        if kind.name == "pipeline":
            return _read_pipeline(path)
        if kind.name in ("sharded", "huggingface", "adapter"):
            return _read_folder(path, kind.name)
        if kind.name == "safetensors":
            tensors = {key: info for key, (info, _) in read_safetensors(path).items()}
            return _without_counters(Contents(path, kind.name, tensors))
        if kind.name in ("torch_zip", "torchscript", "torch_legacy", "pickle"):
            return _without_counters(_read_pickled(path, kind.name))
        if kind.name in FOREIGN_KINDS:
            return _read_foreign(path, kind.name)
        if not kind.remedy:  # its loader alone reads it, such as a program by torch.export
            return Contents(path, kind.name, {})
    except FlopprofError:
        raise
    except TooLargeError as error:
        fact = f"{safe_text(path)} is {kind.what}, and {error}: no model's weights"
        raise LoadError(fact, remedy=kind.remedy or "name the file with the weights") from error
    except Exception as error:  # a hostile stream may raise anything; all mean the same
        fact = str(error) or "its pickle ends too soon, or is longer than any model's"
        raise damaged(path, fact) from error
    raise LoadError(f"{safe_text(path)} is {kind.what}", remedy=kind.remedy)


def _read_foreign(path: Path, kind: str) -> Contents:
    """Return what a file in another library's format holds."""
    foreign = read_foreign(path, kind)
    return Contents(
        path,
        kind if foreign.tensors else "object",
        foreign.tensors,
        metadata=foreign.metadata,
        configuration=foreign.configuration,
        config=foreign.config,
        notes=foreign.notes,
    )


def _read_folder(path: Path, kind: str) -> Contents:
    """Return what the files of a folder, or of an index, hold together."""
    shards = weight_files(path)
    if kind == "sharded" and not shards:
        raise damaged(path, "it holds no weights")
    folder = path if path.is_dir() else path.parent
    config = read_json(folder / "config.json")
    tensors: dict[str, TensorInfo] = {}
    names: set[str] = set()
    notes: dict[str, None] = {}
    if note := _of_absent(path, shards, config):
        notes[note] = None
        shards = []
        kind = "huggingface"
    for shard in shards:
        part = read_contents(shard, file_kind(shard))
        tensors |= part.tensors
        names |= {*part.globals}
        notes |= dict.fromkeys(part.notes)
    adapter = read_json(folder / "adapter_config.json") if path.is_dir() else {}
    if kind == "huggingface" and "_class_name" in config:
        kind = "diffusers"
    return Contents(
        path,
        kind,
        tensors,
        globals=tuple(sorted(names)),
        shards=tuple(shards),
        config=config,
        adapter=adapter,
        notes=tuple(notes),
    )


def _of_absent(path: Path, shards: list[Path], config: dict[str, Any]) -> str:
    """Return a note where none of the files that hold the weights is here, and a config.json is.

    Raises:
        LoadError: Some are here and others not; or nothing tells what model it is.
    """
    absent = [shard for shard in shards if not shard.exists() and not shard.is_symlink()]
    if not absent:
        return ""
    is_told = "model_type" in config or "_class_name" in config
    if len(absent) == len(shards) and is_told:
        return (
            f"none of the {len(shards)} files of its weights is here: config.json alone is counted"
        )
    shown = safe_text(", ".join(shard.name for shard in absent[:3]))
    more = ", …" if len(absent) > 3 else ""
    fact = (
        f"{safe_text(path)} names {len(shards)} files of weights, of which {len(absent)} are not "
        f"here: {shown}{more}"
    )
    raise LoadError(fact, remedy="download them; or flopprof count FOLDER with config.json alone")


def _read_pipeline(path: Path) -> Contents:
    """Return what the models of a pipeline of diffusers hold, their keys behind the parts' names.

    Raises:
        LoadError: None of its models is there, or one is damaged.
    """
    index = read_json(path / "model_index.json")
    parts: dict[str, Contents] = {}
    for name, library_and_class in islice(index.items(), _MAX_PIPELINE):
        is_part = isinstance(library_and_class, list) and Path(name).name == name
        if is_part and (path / name / "config.json").is_file():
            parts[name] = _read_folder(path / name, "huggingface")
    if not parts:
        fact = f"{safe_text(path)} is a diffusers pipeline of which no model is here"
        raise LoadError(fact, remedy="download its folders, unet or transformer at least")
    tensors = {
        f"{name}.{key}": info for name, part in parts.items() for key, info in part.tensors.items()
    }
    return Contents(
        path,
        "pipeline",
        tensors,
        globals=tuple(sorted({name for part in parts.values() for name in part.globals})),
        config=index,
        shards=tuple(shard for part in parts.values() for shard in part.shards),
        notes=tuple(f"{name}: {note}" for name, part in parts.items() for note in part.notes),
        parts=parts,
    )


def file_kind(path: Path) -> FileKind:
    """Return the kind of one of a folder's weight files.

    Raises:
        LoadError: It is a folder itself, a pipe, or holds no weights.
    """
    kind = detect(path)
    if kind.where == "folder" or not kind.is_readable or kind.name == "sharded":
        fact = f"{safe_text(path)} is {kind.what}, not weights"
        raise LoadError(fact, remedy=kind.remedy or "download the folder again")
    return kind


def _read_pickled(path: Path, kind: str) -> Contents:
    pickled = read_pickle(path, kind)
    root = pickled.root
    chosen = _Choice(root, (), {}, (), "") if kind == "torchscript" else _choose(root)
    node = chosen.node
    is_module = kind == "torchscript" or "_modules" in attributes(node)
    modules: dict[str, tuple[str, dict[str, Any]]] = {}
    tensors = _module_tensors(node, modules) if is_module else _tensors(node)
    kind_of_pickle = "state_dict" if tensors else "object"
    if is_module:
        kind_of_pickle = "pickled_module"
    return Contents(
        path,
        "torchscript" if kind == "torchscript" else _kind_of_plain(tensors, kind_of_pickle, kind),
        tensors,
        node.origin if isinstance(node, Stub) else "",
        pickled.globals,
        chosen.keys,
        _metadata(root),
        modules=modules,
        positions=pickled.positions,
        others=chosen.others,
        copies=chosen.copies,
        aside=_aside(root),
        configuration=configuration(root, without=_STATE),
        notes=(chosen.note,) if chosen.note else (),
    )


def _kind_of_plain(tensors: dict[str, TensorInfo], held: str, kind: str) -> str:
    """Return what a plain pickle is called: one with NumPy's arrays alone is like a state_dict."""
    if kind != "pickle":
        return held
    has_values = any(isinstance(info, PlacedTensor) for info in tensors.values())
    return "array_pickle" if tensors and not has_values and held == "state_dict" else "object"


def _aside(root: Any) -> tuple[str, ...]:
    """Return where a trainer keeps its state, such as the optimizer's averages."""
    pairs = entries(root).items()
    return tuple(
        key[:100]
        for key, value in islice(pairs, 1000)
        if isinstance(key, str) and _STATE.search(key) and isinstance(value, dict | list | Stub)
    )


def _metadata(root: Any) -> dict[str, str | int | float]:
    """Return the numbers and texts beside the weights, such as the epoch, no longer than useful."""
    plain = {k: v for k, v in entries(root).items() if isinstance(k, str)}
    metadata: dict[str, str | int | float] = {}
    for key, value in islice(plain.items(), 50):
        if isinstance(value, str):
            metadata[key[:100]] = value[:200]
        elif isinstance(value, int):
            metadata[key[:100]] = value if abs(value) < 1 << 63 else "a number of many digits"
        elif isinstance(value, float):
            metadata[key[:100]] = value if math.isfinite(value) else str(value)
    return metadata


class _Choice(NamedTuple):
    node: Any  # the module, or the mapping with the weights
    keys: tuple[str, ...]  # to it
    others: dict[str, dict[str, TensorInfo]]
    copies: tuple[str, ...]
    note: str  # '' where everything was looked at


def _choose(root: Any) -> _Choice:
    """Return the module or mapping with the weights, the keys to it, what is beside, and a note.

    Of several, one below keys that wrap weights everywhere ("state_dict", "model", …) goes first,
    then the largest. Beside it is what has other keys or shapes: the D of a GAN, say.
    """
    places, gave_up = _places_of_weights(root)
    note = ""
    if gave_up:
        note = (
            f"weights were looked for in {_MAX_CONTAINERS} containers, {_MAX_DEPTH} deep: "
            "there may be more"
        )
    if not places:
        return _Choice(root, (), {}, (), note)
    most = max(count for _, _, count in places)

    def rank(place: tuple[Any, tuple[str, ...], int]) -> tuple[bool, list[int], int, int]:
        _, keys, count = place
        wrappers = NAMES["wrappers"]
        wraps = bool(keys) and keys[0] in wrappers and count * 10 >= most
        order = [wrappers.index(key) if key in wrappers else len(wrappers) for key in keys]
        return not wraps, order if wraps else [], -count, len(keys)

    node, keys, _ = min(places, key=rank)
    if keys:  # entries of it that are containers themselves are parts, not others
        places = [place for place in places if place[1][: len(keys)] != keys]
    own = _all_tensors(node)
    others: dict[str, dict[str, TensorInfo]] = {}
    copies = []
    for other, other_keys, _ in places:
        if other is node:
            continue
        where = ".".join(other_keys) or "the top"
        tensors = _all_tensors(other)
        if tensors == own:
            copies.append(where)
        else:
            others[where] = tensors
    return _Choice(node, keys, others, tuple(copies), note)


def tensors_of(root: Any) -> dict[str, TensorInfo]:
    """Return the tensors of the weights that a pickle's stubs hold, by key."""
    return _all_tensors(_choose(root).node)


def _all_tensors(node: Any) -> dict[str, TensorInfo]:
    return _tensors(node) or _module_tensors(node, {})


def _places_of_weights(root: Any) -> tuple[list[tuple[Any, tuple[str, ...], int]], bool]:
    """Return every module and mapping of tensors with its keys and size; whether all were seen."""
    places: list[tuple[Any, tuple[str, ...], int]] = []
    pending: deque[tuple[Any, tuple[str, ...]]] = deque([(root, ())])
    seen: set[int] = set()
    gave_up = False
    while pending:
        node, keys = pending.popleft()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if "_modules" in attributes(node):
            places.append((node, keys, _MODULE))
            continue
        if tensors := len(_tensors(node)):
            places.append((node, keys, tensors))
        below = list(islice(_containers(node), _MAX_CONTAINERS))
        if len(keys) >= _MAX_DEPTH or len(seen) + len(pending) + len(below) > _MAX_CONTAINERS:
            gave_up = gave_up or bool(below)
            continue
        pending.extend((value, (*keys, key)) for key, value in below)
    return places, gave_up


def _containers(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield what may hold weights in a dict, list or tuple, by key or place."""
    if isinstance(node, list | tuple) and not isinstance(node, TensorInfo):
        inside = {str(place): value for place, value in enumerate(node[:_MAX_CONTAINERS])}
    else:
        inside = {k: v for k, v in entries(node).items() if isinstance(k, str)}
    for key, value in inside.items():
        is_tensor = isinstance(value, TensorInfo)
        is_container = isinstance(value, dict | list | tuple | Stub) and not is_tensor
        if is_container and not _STATE.search(key):
            yield key, value


_COUNTERS = re.compile(r"(.*\.)?total_(ops|params)")  # that thop leaves behind in a model


def _without_counters(contents: Contents) -> Contents:
    """Return the contents without the counters that thop registers in every module."""
    counters = [
        key
        for key, info in contents.tensors.items()
        if _COUNTERS.fullmatch(key) and math.prod(info.shape) == 1
    ]
    if not counters:
        return contents
    tensors = {key: info for key, info in contents.tensors.items() if key not in set(counters)}
    note = f"{len(counters)} counters that thop left in it (total_ops, total_params) are left out"
    return replace(contents, tensors=tensors, notes=(*contents.notes, note))


def _tensors(node: Any) -> dict[str, TensorInfo]:
    """Return the tensors in a mapping, and NumPy's arrays of numbers, by key."""
    tensors = {}
    for key, value in entries(node).items():
        info = value if isinstance(value, TensorInfo) else array_info(value)
        if isinstance(key, str) and info is not None:
            tensors[key] = info
    return tensors


def _plain(state: dict[Any, Any]) -> dict[str, Any]:
    """Return the attributes that are numbers, texts or tuples of numbers, but for the mode."""
    plain_values = {}
    for name, value in state.items():
        plain = tuple(value) if is_tuple(value) else value
        parts = plain if isinstance(plain, tuple) else (plain,)
        if name != "training" and all(type(p) in (int, float, bool, str) for p in parts):
            plain_values[str(name)] = plain
    return plain_values


def _module_tensors(
    root: Any, modules: dict[str, tuple[str, dict[str, Any]]]
) -> dict[str, TensorInfo]:
    """Return a pickled module's parameters and persistent buffers by key; add its `modules`."""
    tensors: dict[str, TensorInfo] = {}
    pending = [("", root)]
    count = 0
    while pending:
        prefix, node = pending.pop()
        state = attributes(node)
        origin = node.origin if isinstance(node, Stub) else ""
        modules[prefix.removesuffix(".")] = origin, _plain(state)
        parts = (entries(state.get(f"_{part}")) for part in ("parameters", "buffers", "modules"))
        children = {k: v for part in parts for k, v in part.items()} or state
        hidden = state.get("_non_persistent_buffers_set", ())
        hidden = [*hidden.args, ()][0] if isinstance(hidden, Stub) else hidden
        hidden = set(islice(hidden, 100))
        below: list[tuple[str, Any]] = []
        for key, value in children.items():
            name = prefix + key
            count += 1
            if count > _MAX_PARTS or len(name) > _MAX_KEY:
                raise ValueError(f"it holds over {_MAX_PARTS} modules, or deeper than any model")
            if isinstance(value, TensorInfo) and key not in hidden:
                tensors[name] = value
            elif attributes(value):
                below.append((f"{name}.", value))
        pending += reversed(below)  # the first is taken next
    return tensors


def read_safetensors(path: Path) -> dict[str, tuple[TensorInfo, int]]:
    """Return a safetensors file's tensors by key, each with where in the file its data begins."""
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
