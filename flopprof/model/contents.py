"""Say what a model file or folder holds; import, execute and load nothing of it."""

import math
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from flopprof.errors import FlopprofError, LoadError
from flopprof.model.detect import FileKind, damaged, detect
from flopprof.model.folders import read_json, weight_files
from flopprof.model.frameworks import KINDS as FOREIGN_KINDS
from flopprof.model.frameworks import read_foreign
from flopprof.model.pickles import (
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
)
from flopprof.model.plainly import configuration
from flopprof.model.safetensors import read_safetensors
from flopprof.units import safe_text

_MAX_PARTS = 500_000  # attributes of a module's modules
_MAX_KEY = 1_000  # letters of a tensor's dotted name
_MAX_DEPTH = 12  # of a checkpoint, in which weights are looked for
_MAX_CONTAINERS = 20_000  # of it, too
_MAX_PIPELINE = 100  # entries of a pipeline's index
_MODULE = 1_000_000  # tensors that a pickled module counts as where a file holds several things
_STATE = re.compile("(?i)optim|sched|scaler|rng|grad|loops|callbacks")  # no weights of a model
_COUNTERS = re.compile(r"(.*\.)?total_(ops|params)")  # that thop leaves behind in a model
_MAX_HIDDEN = 100  # buffers of one module that its state_dict does not have
_MAX_STATES = 1000  # entries of a checkpoint that are looked through for a trainer's state
_MAX_METADATA = 50  # entries, no longer than is useful to read
_MAX_METADATA_KEY = 100
_MAX_METADATA_TEXT = 200


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
        texts = [value for value in self.metadata.values() if isinstance(value, str)]
        return (self.path.name, *texts)

    @property
    def beside(self) -> dict[str, int]:
        """Return how many tensors other weights have, by where they lie; one or two are none."""
        return {place: len(tensors) for place, tensors in self.others.items() if len(tensors) > 2}

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
    """Return what a pickle holds: a module, a state_dict, or an object that is neither.

    Args:
        path: The file.
        kind: What `detect` calls it: "torchscript", "torch_zip", "torch_legacy" or "pickle".
    """
    pickled = read_pickle(path, kind)
    root = pickled.root
    is_script = kind == "torchscript"
    chosen = _Choice(root, (), {}, (), "") if is_script else _choose(root)
    node = chosen.node
    is_module = is_script or "_modules" in attributes(node)
    modules: dict[str, tuple[str, dict[str, Any]]] = {}
    tensors = _module_tensors(node, modules) if is_module else _tensors(node)
    if is_script:
        kind_of_contents = "torchscript"
    elif kind == "pickle":
        kind_of_contents = _kind_of_plain(tensors, is_module=is_module)
    elif is_module:
        kind_of_contents = "pickled_module"
    else:
        kind_of_contents = "state_dict" if tensors else "object"
    return Contents(
        path,
        kind_of_contents,
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


def _kind_of_plain(tensors: dict[str, TensorInfo], *, is_module: bool) -> str:
    """Return what a plain pickle is called: "array_pickle" if it holds NumPy's arrays alone."""
    has_torch_tensors = any(isinstance(info, PlacedTensor) for info in tensors.values())
    return "array_pickle" if tensors and not has_torch_tensors and not is_module else "object"


def _aside(root: Any) -> tuple[str, ...]:
    """Return where a trainer keeps its state, such as the optimizer's averages."""
    pairs = entries(root).items()
    return tuple(
        key[:_MAX_METADATA_KEY]
        for key, value in islice(pairs, _MAX_STATES)
        if isinstance(key, str) and _STATE.search(key) and isinstance(value, dict | list | Stub)
    )


def _metadata(root: Any) -> dict[str, str | int | float]:
    """Return the numbers and texts beside the weights, such as the epoch, no longer than useful."""
    named = {key: value for key, value in entries(root).items() if isinstance(key, str)}
    metadata: dict[str, str | int | float] = {}
    for key, value in islice(named.items(), _MAX_METADATA):
        name = key[:_MAX_METADATA_KEY]
        if isinstance(value, str):
            metadata[name] = value[:_MAX_METADATA_TEXT]
        elif isinstance(value, int):
            metadata[name] = value if abs(value) < 1 << 63 else "a number of many digits"
        elif isinstance(value, float):
            metadata[name] = value if math.isfinite(value) else str(value)
    return metadata


class _Choice(NamedTuple):
    """Where in a checkpoint the weights are, and what weights are beside them."""

    node: Any  # the module, or the mapping with the weights
    keys: tuple[str, ...]  # to it
    others: dict[str, dict[str, TensorInfo]]  # other weights, by where they lie
    copies: tuple[str, ...]  # where the same weights lie again
    note: str  # '' where everything was looked at


def _choose(root: Any) -> _Choice:
    """Return the module or mapping with the weights, the keys to it, and what is beside it.

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
        inside = {key: value for key, value in entries(node).items() if isinstance(key, str)}
    for key, value in inside.items():
        is_tensor = isinstance(value, TensorInfo)
        is_container = isinstance(value, dict | list | tuple | Stub) and not is_tensor
        if is_container and not _STATE.search(key):
            yield key, value


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
    """Return the attributes that are numbers, texts or tuples of them, but for `training`."""
    plain_values = {}
    for name, value in state.items():
        plain = tuple(value) if is_tuple(value) else value
        parts = plain if isinstance(plain, tuple) else (plain,)
        is_plain = all(type(part) in (int, float, bool, str) for part in parts)
        if is_plain and name != "training":
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
        children: dict[Any, Any] = {}
        for registry in ("_parameters", "_buffers", "_modules"):
            children |= entries(state.get(registry))
        hidden = _hidden_buffers(state)
        below: list[tuple[str, Any]] = []
        for key, value in (children or state).items():
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


def _hidden_buffers(state: dict[str, Any]) -> set[Any]:
    """Return the names of a module's buffers that its state_dict does not have."""
    names = state.get("_non_persistent_buffers_set", ())
    if isinstance(names, Stub):  # a set, pickled as a call with a list of its items
        names = names.args[0] if names.args else ()
    return set(islice(names, _MAX_HIDDEN))
