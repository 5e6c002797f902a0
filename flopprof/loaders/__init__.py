"""Turn a file into a module ready to call, without running its code."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flopprof import dtypes
from flopprof.errors import LoadError, RefusedError, UsageError
from flopprof.loaders.detect import detect, safe_text
from flopprof.loaders.inert import Contents, read_contents
from flopprof.registry import Registry, import_all

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Request:
    """What a format is asked to load: the file's contents, read inertly, and the user's wishes."""

    contents: Contents
    arch: str | None
    trust: bool
    meta: bool


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to call.

    Attributes:
        model: In eval mode.
        architecture: Where its code came from: "torchvision:resnet18", "my_net.py:build", a class.
        source: What the file is: "state_dict", "pickled nn.Module", "TorchScript archive".
        weights: "file", or "meta": shapes only.
        parameters: Number of elements of its parameters.
        input_hint: The architecture's own input as a spec, "1x3x224x224"; None if not known.
        dtype: The parameters' first floating dtype: what floating inputs should have.
        warnings: What makes the model differ from what the file's name promises.
    """

    model: "nn.Module"
    architecture: str
    source: str
    weights: str
    parameters: int
    input_hint: str | None = None
    dtype: str = "float32"
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """What a format returns: the model on CPU or meta, and the rest of `Loaded`."""

    model: "nn.Module"
    architecture: str
    source: str
    input_hint: str | None = None
    warnings: tuple[str, ...] = ()


Loader = Callable[[Request], Made]
LOADERS: Registry[Loader] = Registry("model format")


def loader(*kinds: str) -> Callable[[Loader], Loader]:
    """Register a loader for the kinds of `Contents` it takes, such as "state_dict"."""
    return LOADERS.register(*kinds)


def load_model(
    path: str | Path,
    *,
    arch: str | None = None,
    trust: bool = False,
    device: str = "cpu",
    dtype: str | None = None,
    meta: bool = False,
) -> Loaded:
    """Return the model in the file at `path`, in eval mode on `device`, its floats as `dtype`.

    The file is first read inertly; only then, if it is sound, is torch imported. With `meta` no
    tensor's data is read: the model has shapes and dtypes, checked against the file, on meta.

    Raises:
        UsageError: No such path, or keys and shapes that do not fit `arch`.
        LoadError: The file is no model, is damaged, or of a kind that cannot be profiled.
        RefusedError: It would run code, and `trust` is not given.
        UnknownArchitectureError: It holds weights alone, and `arch` is not given.
        ModelError: The code that `arch` names raised.
    """
    if dtype is not None and not (dtypes.itemsize(dtype) and dtypes.is_floating(dtype)):
        raise UsageError(
            f"{dtype!r} is no floating dtype", remedy="--dtype float32, bfloat16 or float16"
        )
    path = Path(path)
    kind = detect(path)
    contents = read_contents(path, kind)
    import_all("flopprof.loaders")
    load = LOADERS.get(contents.kind)
    if load is None or kind.remedy:
        inside = f"; it holds {contents.top_class}" if contents.top_class else ", without weights"
        raise LoadError(
            f"{safe_text(path)} is {kind.what}{safe_text(inside)}{_dangers(contents)}",
            remedy=kind.remedy or "name a file with a model or a state_dict",
        )
    made = load(Request(contents, arch, trust, meta))
    return _ready(made, "meta" if meta else device, dtype, "meta" if meta else "file")


def _ready(made: Made, device: str, dtype: str | None, weights: str) -> Loaded:
    import torch

    model = made.model.eval()
    model.to(device=device, dtype=getattr(torch, dtype) if dtype else None)
    parameters = list(model.parameters())
    floats = [t.dtype for t in [*parameters, *model.buffers()] if t.is_floating_point()]
    return Loaded(
        model=model,
        architecture=made.architecture,
        source=made.source,
        weights=weights,
        parameters=sum(parameter.numel() for parameter in parameters),
        input_hint=made.input_hint,
        dtype=str((floats or [torch.get_default_dtype()])[0]).removeprefix("torch."),
        warnings=made.warnings,
    )


def refuse_code(request: Request, what: str) -> None:
    """Raise unless the user trusts the file, of which loading runs code.

    Raises:
        RefusedError: With the file, what it is and what it would import.
    """
    if not request.trust:
        contents = request.contents
        names = contents.dangerous or contents.globals
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        raise RefusedError(
            f"{safe_text(contents.path)} is {safe_text(what)}, and loading it runs its code; it "
            f"wants {len(contents.globals)} names: {safe_text(shown)}{_dangers(contents)}",
            remedy="if you trust its author: --trust; else ask for a state_dict",
        )


def _dangers(contents: Contents) -> str:
    found = ", ".join(contents.dangerous[:4])
    return f"; DANGEROUS: {safe_text(found)}" if found else ""
