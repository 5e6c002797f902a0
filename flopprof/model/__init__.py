"""Turn a file into a module ready to call, without running its code."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopprof import dtypes
from flopprof.errors import (
    FlopprofError,
    LoadError,
    RefusedError,
    UnknownArchitectureError,
    UsageError,
)
from flopprof.model.account import weights_object
from flopprof.model.beside import with_neighbours
from flopprof.model.contents import Contents, read_contents
from flopprof.model.detect import FileKind, detect
from flopprof.model.pickles import by_risk
from flopprof.model.recognise import Entry
from flopprof.model.spelling import parse_code_name, with_arguments
from flopprof.model.trusted import Trust
from flopprof.registry import Registry, import_all
from flopprof.units import counted, safe_text

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Take:
    """How well weights and code must fit."""

    strict: bool = False  # choose no architecture where weights fit several
    partial: bool = False  # weights may lack keys of the model, or have others


@dataclass(frozen=True, slots=True)
class Request:
    """What a format is asked to load: the file's contents, read inertly, and the user's wishes."""

    contents: Contents
    arch: str | None
    trust: Trust | None  # leave to run the file's code
    meta: bool
    take: Take = Take()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to call, in eval mode; what a loader leaves out, `load_model` fills in."""

    model: "nn.Module"
    architecture: str  # its code: "torchvision:resnet18", "my_net.py:build", a class
    source: str  # what the file is: "state_dict of", "pickled nn.Module of"
    weights: str = "file"  # or "random"; "meta": shapes only
    parameters: int = 0
    input_hint: str | None = None  # the architecture's own input, "1x3x224x224"
    dtype: str = "float32"  # of the parameters, and what floating inputs should have
    recognised_by: str = "the file"  # what said which architecture it is, unless --arch did
    alternatives: tuple[Entry, ...] = ()  # other architectures with equal keys and shapes
    warnings: tuple[str, ...] = ()  # where the model differs from what its name promises
    missing: tuple[str, ...] = ()  # keys of the model that the file lacks


CODE = re.compile(r"(.+?\.py|[A-Za-z_]\w*(\.\w+)*):[A-Za-z_][\w.-]*(\(.*\))?", re.DOTALL)
"""A model that is no file but code, as `--arch` names it."""

SHOWN = 6  # names that a refusal tells, the riskiest first
_SHOWN_DANGERS = 4  # names of those that would do harm
Loader = Callable[[Request], Loaded]
LOADERS: Registry[Loader] = Registry("model format")


def loader(*kinds: str) -> Callable[[Loader], Loader]:
    """Register a loader for the kinds of `Contents` it takes, such as "state_dict"."""
    return LOADERS.register(*kinds)


def load_model(
    path: str | Path,
    *,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    trust: bool | Trust = False,
    device: str = "cpu",
    dtype: str | None = None,
    meta: bool = False,
    take: Take = Take(),
) -> Loaded:
    """Return the model in the file at `path`, in eval mode on `device`, its floats as `dtype`.

    `path` may also name code, "torchvision:resnet18": the model then has random weights.
    `arch_args` are keyword arguments, literals, for the code that `arch` or `path` names. A file is
    first read inertly; only then, if it is sound, is torch imported. With `meta` no tensor's data
    is read: the model has shapes and dtypes, checked against the file, on meta.

    `take` says how well weights and code must fit.

    The file's own code runs only with `trust`: True lets it run in this process; a `Trust` may name
    the file's checksum, and ask for a child process with limits.
    """
    check_floating(dtype)
    if names_code(path):
        from flopprof.model.architectures import load_code

        loaded = load_code(with_arguments(arch or str(path), arch_args), meta=meta)
    else:
        if arch_args and not arch:
            fact = "--arch-args is given, and nothing names the code that takes them"
            raise UsageError(fact, remedy="name it as well: --arch package.module:Class")
        arch = with_arguments(arch, arch_args) if arch else None
        loaded = _from_file(Path(path), arch=arch, trust=_as_trust(trust), meta=meta, take=take)
    import torch

    model = _in_eval_mode(loaded.model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model.to(device="meta" if meta else device, dtype=getattr(torch, dtype) if dtype else None)
    tensors = [*model.parameters(), *model.buffers()]
    floating_dtypes = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
    own_dtype = next(floating_dtypes, torch.get_default_dtype())
    return replace(
        loaded,
        parameters=parameters,
        dtype=str(own_dtype).removeprefix("torch."),
        weights="meta" if meta else loaded.weights,
    )


def names_code(path: str | Path) -> bool:
    """Return whether `path` is no file but names code."""
    return bool(CODE.fullmatch(str(path))) and not Path(path).exists()


def check_floating(dtype: str | None) -> None:
    """Refuse what a model's floating parameters cannot be cast to.

    Raises:
        UsageError: It is no floating element type.
    """
    if dtype is not None and not (dtypes.itemsize(dtype) and dtypes.is_floating(dtype)):
        raise UsageError(f"{dtype!r} is no floating dtype", remedy="--dtype float32 or bfloat16")


def model_name(model: str | Path) -> str:
    """Return what runs of a model are called after: its file's stem, or the name in its code.

    Raises:
        UsageError: It is no file, or none that may be read.
    """
    if names_code(model):
        return parse_code_name(str(model)).name
    detect(Path(model))
    return Path(model).stem


def _as_trust(trust: bool | Trust) -> Trust | None:
    if isinstance(trust, Trust):
        return trust
    return Trust() if trust else None


def _from_file(
    path: Path, *, arch: str | None, trust: Trust | None, meta: bool, take: Take
) -> Loaded:
    kind = detect(path)
    alone = read_contents(path, kind)
    contents = with_neighbours(alone)
    import_all("flopprof.model")
    load = LOADERS.get(contents.kind)
    if load is None or (kind.remedy and contents.kind != "array_pickle"):
        raise _no_model(kind, contents)
    try:
        loaded = load(Request(contents, arch, trust, meta, take))
    except FlopprofError as error:
        if contents.kind != alone.kind and not contents.shards and isinstance(error, LoadError):
            load_alone = LOADERS.require(alone.kind)  # the config.json beside is another's
            return load_alone(Request(alone, arch, trust, meta, take))
        if contents.tensors and not isinstance(error, UsageError):
            error.details["weights"] = weights_object(contents)
        raise
    return replace(loaded, warnings=(*loaded.warnings, *_notes(contents)))


def _no_model(kind: FileKind, contents: Contents) -> FlopprofError:
    """Return the error for what was read and is no model: what it is, and what it would do."""
    if contents.tensors and not contents.dangerous:
        return _no_code(kind, contents)
    inside = f"; it holds {contents.top_class}" if contents.top_class else ", without weights"
    what = f"{safe_text(contents.path)} is {kind.what}{safe_text(inside)}"
    fact = "; ".join([what, *contents.notes])
    if contents.dangerous:
        remedy = "do not load it; get the model from its author"
        return RefusedError(fact + _dangers(contents), remedy=remedy)
    return LoadError(fact, remedy=kind.remedy or "name a file with a model or a state_dict")


def _no_code(kind: FileKind, contents: Contents) -> FlopprofError:
    """Return the error for weights of which no module can be made: what they say is in it."""
    name = contents.metadata.get("general.architecture")
    of_model = f" of the architecture {safe_text(name, 60)}" if name else ""
    count = counted(len(contents.tensors), "tensor")
    fact = (
        f"{safe_text(contents.path)} is {kind.what}, with {count}{of_model}; "
        "PyTorch's modules are not made of it"
    )
    error = UnknownArchitectureError("; ".join([fact, *contents.notes]), remedy=kind.remedy)
    error.details["weights"] = weights_object(contents)
    return error


def _notes(contents: Contents) -> list[str]:
    """Return what a user should know of a file besides its model."""
    notes = list(contents.notes)
    if contents.dangerous:
        shown = safe_text(", ".join(contents.dangerous[:_SHOWN_DANGERS]))
        notes.append(f"DANGEROUS: torch.load would call {shown}; nothing of the file was run")
    for place, count in contents.beside.items():
        where = ".".join(contents.wrapper_keys) or "the top"
        notes.append(
            f"the file holds {count} other tensors under {safe_text(place)!r}: this is the model "
            f"under {safe_text(where)!r} alone"
        )
    return notes


def refuse_code(request: Request, description: str) -> None:
    """Raise `RefusedError` unless the file's code may run here and now.

    Whatever runs code of a file asks here right before.
    """
    contents = request.contents
    if request.trust:
        request.trust.check(contents.path)
        return
    names = by_risk(contents.globals)
    shown = safe_text(", ".join(names[:SHOWN]))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    wants = f"; it wants {len(names)} names: {shown}{more}" if shown else ""
    raise RefusedError(
        f"{safe_text(contents.path)} is {safe_text(description)}, and loading it runs its code"
        f"{wants}{_dangers(contents)}",
        remedy="if you trust its author: --trust; else ask for a state_dict",
    )


def _dangers(contents: Contents) -> str:
    names = ", ".join(contents.dangerous[:_SHOWN_DANGERS])
    return f"; DANGEROUS: {safe_text(names)}" if names else ""


def _in_eval_mode(model: "nn.Module") -> "nn.Module":
    try:
        return model.eval()
    except NotImplementedError:  # an exported program is of the mode that it was exported in
        return model
