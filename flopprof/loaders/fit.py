"""Fit weights of known keys and shapes to an architecture."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from flopprof import dtypes
from flopprof.errors import UnknownArchitectureError, UsageError
from flopprof.loaders import Made, Request
from flopprof.loaders.build import Architecture, build, find_architecture, is_real
from flopprof.loaders.detect import safe_text
from flopprof.loaders.inert import TensorInfo
from flopprof.units import shape_text

# Keys as torchvision's older files spell them: densenet's, and those of a ViT's MLP.
_OLD_KEYS = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
_COUNTERS = re.compile(r"(.*\.)?total_(ops|params)")  # left in models by FLOP counters


@dataclass(frozen=True, slots=True)
class _Fit:
    """How a file's tensors lie on a model's: `names` maps the model's keys to the file's."""

    names: dict[str, str]
    missing: list[str]
    unexpected: list[str]
    misshaped: dict[str, tuple[torch.Tensor, TensorInfo]]
    left_out: int

    @property
    def whole(self) -> bool:
        return not (self.missing or self.unexpected or self.misshaped)


def fit_weights(
    request: Request, source: str, read: Callable[[], Mapping[str, torch.Tensor]]
) -> Made:
    """Return the model that `--arch` names with the file's weights; on meta, `read` is not called.

    Raises:
        UnknownArchitectureError: No architecture is named.
        UsageError: The keys or shapes do not fit it.
    """
    tensors, path = request.contents.tensors, safe_text(request.contents.path)
    if request.arch is None:
        raise UnknownArchitectureError(
            f"{path} holds {len(tensors)} tensors (a state_dict) and no code to run them with",
            remedy=f"flopprof run {path} --arch torchvision:resnet18, or with your own function or "
            "class: --arch my_net.py:build",
        )
    architecture = find_architecture(request.arch)
    model = build(architecture)
    overrides: dict[str, Any] = {}
    fit = first = _compare(model, tensors, architecture)
    if not first.whole and architecture.adapts:
        overrides = _overrides(model, first)
        model = _widened(build(architecture, **overrides), tensors, architecture)
        fit = _compare(model, tensors, architecture)
    if not fit.whole:
        raise _misfit(path, architecture, first)
    found = _shapes_only(tensors) if request.meta else read()
    _assign(model, fit, found)
    if not request.meta and not is_real(model):
        model = _widened(build(architecture, real=True, **overrides), tensors, architecture)
        _assign(model, fit, found)
    notes = [f"{name} = {value}, as the weights say" for name, value in overrides.items()]
    if fit.left_out:
        notes.append(f"{fit.left_out} of the file's tensors are not this model's and were left out")
    return Made(model, architecture.text, source, _hint(architecture, model), tuple(notes))


def _compare(
    model: nn.Module, tensors: Mapping[str, TensorInfo], architecture: Architecture
) -> _Fit:
    state = model.state_dict(keep_vars=True)
    expected = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    spelled = {}  # the file's keys as the model would spell them, but for a prefix
    for key in tensors:
        plain = key.replace("_orig_mod.", "")  # by torch.compile
        for pattern, new in _OLD_KEYS if architecture.adapts else ():
            plain = pattern.sub(new, plain)
        if plain in expected or not _COUNTERS.fullmatch(plain):
            spelled[plain] = key
    anchors = sorted(expected, key=len)[-20:]  # long keys: few of the file's end in them by chance
    prefixes = {k.removesuffix(a) for a in anchors for k in spelled if k.endswith("." + a)}
    prefix = max(["", *sorted(prefixes)], key=lambda p: sum(p + k in spelled for k in expected))
    names = {k: spelled[prefix + k] for k in expected if prefix + k in spelled}
    inside = [key for key in spelled if key.startswith(prefix)]
    if len(spelled) - len(inside) > len(names):  # the model is the smaller part of the file
        inside = list(spelled)
    given = {id(expected[key]) for key in names}  # a tied parameter may be saved once
    missing = [
        key
        for key, tensor in expected.items()
        if key not in names and id(tensor) not in given and not key.endswith("num_batches_tracked")
    ]
    unexpected = [key for key in inside if key.removeprefix(prefix) not in expected]
    pairs = {key: (expected[key], tensors[name]) for key, name in names.items()}
    misshaped = {key: pair for key, pair in pairs.items() if not _takes(*pair)}
    return _Fit(names, missing, unexpected, misshaped, len(tensors) - len(inside))


def _takes(tensor: torch.Tensor, info: TensorInfo) -> bool:
    floats = tensor.is_floating_point() or tensor.is_complex()
    return dtypes.is_floating(info.dtype) == floats and (
        is_lazy(tensor) or tuple(tensor.shape) == info.shape
    )


def _overrides(model: nn.Module, fit: _Fit) -> dict[str, Any]:
    """Return what torchvision's builders can be told, so that the shapes come out as saved."""
    overrides: dict[str, Any] = {}
    shapes = {key: (tuple(want.shape), info.shape) for key, (want, info) in fit.misshaped.items()}
    heads = [found[0] for want, found in shapes.values() if found and found[1:] == want[1:]]
    if heads:
        overrides["num_classes"] = min(heads)  # a detector's box head has four for each class
    if "encoder.pos_embedding" in shapes and isinstance(patch := model.patch_size, int):
        _, tokens, _ = shapes["encoder.pos_embedding"][1]
        overrides["image_size"] = patch * math.isqrt(tokens - 1)
    if fit.missing and all(key.startswith(("aux1.", "aux2.", "AuxLogits.")) for key in fit.missing):
        overrides["aux_logits"] = False
    if fit.unexpected and all(key.startswith("aux_classifier.") for key in fit.unexpected):
        overrides["aux_loss"] = True
    return overrides


def _widened(
    model: nn.Module, tensors: Mapping[str, TensorInfo], architecture: Architecture
) -> nn.Module:
    """Return the model with its first convolution taking as many channels as the weights do."""
    convs = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    misshaped = _compare(model, tensors, architecture).misshaped
    for path, conv in convs[:1]:
        want, info = misshaped.get(f"{path}.weight", (conv.weight, None))
        if info is not None and len(info.shape) == 4 and info.shape[2:] == want.shape[2:]:
            conv.in_channels = info.shape[1]
            conv.weight = nn.Parameter(torch.empty(info.shape, device=want.device))
    return model


def _shapes_only(tensors: Mapping[str, TensorInfo]) -> dict[str, torch.Tensor]:
    return {
        key: torch.empty(info.shape, dtype=getattr(torch, info.dtype), device="meta")
        for key, info in tensors.items()
    }


def _assign(model: nn.Module, fit: _Fit, found: Mapping[str, torch.Tensor]) -> None:
    """Give the model the file's tensors; parameters that are one stay one."""
    state = model.state_dict(keep_vars=True)  # with the versions that its modules' code is of
    wanted = {key: want for key, want in state.items() if isinstance(want, torch.Tensor)}
    given: dict[int, torch.Tensor] = {}
    for key, name in fit.names.items():
        tensor = found[name].detach()
        if isinstance(want := wanted[key], nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=want.requires_grad)
        given.setdefault(id(want), tensor)
    for key, want in wanted.items():
        if id(want) not in given:  # a counter that old files lack: a whole fit lacks no more
            given[id(want)] = torch.zeros(want.shape, dtype=want.dtype)
        state[key] = given[id(want)]
    model.load_state_dict(state, assign=True)


def _hint(architecture: Architecture, model: nn.Module) -> str | None:
    size = getattr(model, "image_size", None) or architecture.image_size
    convs = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    channels = next((conv.in_channels for conv in convs), 3)
    return f"1x{channels}x{size}x{size}" if architecture.image_size else None


def _misfit(path: str, architecture: Architecture, fit: _Fit) -> UsageError:
    shapes = [
        f"{key} is {shape_text(info.shape)} {info.dtype}, not {shape_text(tuple(want.shape))}"
        for key, (want, info) in fit.misshaped.items()
    ]
    parts = [
        f"{len(found)} {what} ({safe_text(', '.join(found[:3]))}{', …' if len(found) > 3 else ''})"
        for what, found in (
            ("missing", fit.missing),
            ("unexpected", fit.unexpected),
            ("of another shape or type", shapes),
        )
        if found
    ]
    return UsageError(
        f"{path} does not fit {architecture.text}: of its keys are {'; '.join(parts)}",
        remedy="name the architecture that was saved; a changed one as --arch my_net.py:build",
    )
