"""Load what files hold: weights alone, or modules whose code the user trusts."""

import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from flopprof.errors import LoadError
from flopprof.model import Loaded, Request, loader, refuse_code
from flopprof.model.fit import fit_weights
from flopprof.model.rebuild import rebuild
from flopprof.model.weights import read_weights
from flopprof.units import safe_text, shape_text

_RESAVE = "save its state_dict again: torch.save(model.state_dict(), 'model.pth')"


@loader("state_dict", "npz")
def load_state_dict(request: Request) -> Loaded:
    """Return the model that `--arch` names or that is recognised, with the file's weights."""
    keys = ".".join(request.contents.wrapper_keys)
    source = f"state_dict under {keys!r} of" if keys else "state_dict of"
    if request.contents.kind == "npz":
        source = "NumPy arrays by"
    return fit_weights(request, safe_text(source), partial(read_weights, request.contents))


@loader("array_pickle")
def load_array_pickle(request: Request) -> Loaded:
    """Return the model that `--arch` names or that is recognised, of the arrays' shapes.

    Raises:
        LoadError: Their values are wanted, which unpickling alone would give.
    """

    def read() -> Mapping[str, torch.Tensor]:
        path = safe_text(request.contents.path)
        raise LoadError(
            f"{path} is a plain pickle of NumPy arrays, whose values are not read",
            remedy="flopprof count needs none; to run it, save the arrays with numpy.savez",
        )

    return fit_weights(request, "pickled NumPy arrays by", read)


@loader("torch_export")
def load_exported(request: Request) -> Loaded:
    """Return an exported program's module, and the input that it was exported with."""
    refuse_code(request, "a program by torch.export")
    with request.contents.path.open("rb") as file:  # a path must end in .pt2
        program = _run_code(request, lambda _path, **_: torch.export.load(file))
    args, kwargs = program.example_inputs or ((), {})
    specs = [_spec(tensor) for tensor in args]
    specs += [f"{name}={_spec(tensor)}" for name, tensor in kwargs.items()]
    are_tensors = not any(spec.endswith("?") for spec in specs)
    hint = " ".join(specs) if specs and are_tensors else None
    name = safe_text(request.contents.path.name)
    return Loaded(program.module(), name, "exported program of", input_hint=hint)


def _spec(value: Any) -> str:
    """Return an example input as a spec; "?" for what is no tensor."""
    if not isinstance(value, torch.Tensor):
        return "?"
    return f"{shape_text(tuple(value.shape))}:{str(value.dtype).removeprefix('torch.')}"


@loader("safetensors", "sharded")
def load_safetensors(request: Request) -> Loaded:
    """Return the model of weights in one or several files, mapped into memory."""
    files = len(request.contents.shards)
    source = f"{files} files of weights by" if files else "safetensors weights of"
    return fit_weights(request, source, partial(read_weights, request.contents))


@loader("pickled_module")
def load_pickled(request: Request) -> Loaded:
    """Return the module that the file unpickles to."""
    name = safe_text(request.contents.top_class)
    if request.arch is not None:
        source = "pickled nn.Module, read without its code, of"
        return fit_weights(request, source, partial(read_weights, request.contents))
    if not request.trust and (rebuilt := rebuild(request)):
        return rebuilt
    refuse_code(request, f"a pickled nn.Module ({name})")
    model = _load_pickle(request)
    if not isinstance(model, nn.Module):
        fact = f"{safe_text(request.contents.path)} unpickles to {type(model).__name__}"
        raise LoadError(f"{fact}, which is no nn.Module", remedy=_RESAVE)
    return Loaded(model, name, "pickled nn.Module of")


@loader("torchscript")
def load_torchscript(request: Request) -> Loaded:
    """Return the archive's module."""
    refuse_code(request, "a TorchScript archive")
    device = "meta" if request.meta else "cpu"
    model = _run_code(request, torch.jit.load, map_location=device)
    name = re.sub(r"__torch__\.|___torch_mangle_\d+\.", "", request.contents.top_class)
    return Loaded(model, safe_text(name), "TorchScript archive of")


def _load_pickle(request: Request) -> Any:
    """Return what lies at the file's wrapper keys, its tensors mapped where that is possible."""
    with request.contents.path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    return _run_code(request, torch.load, map_location="cpu", weights_only=False, mmap=is_zip)


def _run_code(request: Request, load: Callable[..., Any], **options: Any) -> Any:
    """Return what `load`, which runs the file's code, makes of it, below the wrapper keys.

    Raises:
        LoadError: Whatever the code raised.
    """
    path = request.contents.path
    try:
        with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated, not gone
            loaded = load(path, **options)
        for key in request.contents.wrapper_keys:
            loaded = loaded[int(key) if isinstance(loaded, list | tuple) else key]
        return loaded
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the file's code may raise anything, sys.exit's too
        first_line = safe_text(str(error).strip().partition("\n")[0])
        remedy = _RESAVE
        if isinstance(error, AttributeError | ImportError):
            remedy = "make the classes that it names importable (PYTHONPATH)"
        fact = f"{safe_text(path)}: torch's loader raised {type(error).__name__}: {first_line}"
        raise LoadError(fact, remedy=remedy) from error
