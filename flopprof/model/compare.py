"""Compare a model's keys and shapes with a file's, as torch would load them."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from flopprof import dtypes
from flopprof.model.pickles import NAMES, TensorInfo
from flopprof.model.recognise import PREFIXES
from flopprof.model.torchload import Loads, has_hooks, old_spelling, what_torch_loads
from flopprof.units import shape_text

_SHOWN_PARTS = 6  # named in words
_ENOUGH_FRAC = 0.5  # of the model's parameters, or of the file's, that must belong together
_ANCHORS = 20  # of the model's keys that a prefix is looked for with


@dataclass(frozen=True, slots=True)
class Fit:
    """How weights and a model compare, key by key.

    Attributes:
        pairs: By the model's key: its tensor, the file's shape and type, and the file's key; '' for
            what a load hook of the model makes out of several.
        missing: Keys of the model without a tensor.
        unexpected: Keys of the file that the model does not take.
        misshaped: Keys of both whose shapes or types differ, in words.
        left_out: How many of the file's tensors lie beside the model.
        part: Path of the module that the file's keys begin at, where it is not the whole model.
        load: Returns the tensors by the model's keys, given those of the file, where hooks rename.
    """

    pairs: dict[str, tuple[torch.Tensor, TensorInfo, str]]
    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]
    left_out: int = 0
    part: str = ""
    load: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]] | None = None

    @property
    def wrong(self) -> dict[str, list[str]]:
        """Return keys, in words, by what is wrong with them."""
        return {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape or type": self.misshaped,
        }

    @property
    def faults(self) -> int:
        """Return how many keys are wrong."""
        return len(self.missing) + len(self.unexpected) + len(self.misshaped)


def compare(model: nn.Module, tensors: Mapping[str, TensorInfo]) -> Fit:
    """Return how the tensors of a file fit the model, by the reading that fits best."""
    expected = _expected(model)
    spelled = _spelled(model, tensors)
    prefix = _prefix(expected, spelled)
    fit = _by_name(expected, spelled, tensors, prefix)
    if not fit.missing and not fit.unexpected:
        return fit
    if has_hooks(model):
        for shared_prefix in dict.fromkeys((prefix, _shared(spelled))):
            hooked = _by_hooks(model, expected, spelled, tensors, shared_prefix)
            if hooked is not None and hooked.faults < fit.faults:
                fit = hooked
    if fit.load is None and not fit.pairs:
        return _as_part(model, expected, spelled, tensors) or fit
    return fit


def give_weights(fit: Fit, weights: Mapping[str, torch.Tensor] | None) -> None:
    """Give a model the weights, by the file's keys; on meta, where there are none, their types."""
    converted = fit.load(weights) if fit.load is not None and weights is not None else {}
    for key, (tensor, info, name) in fit.pairs.items():  # as data: tied parameters stay one
        if weights is None:
            tensor.data = _empty(info)
        else:
            tensor.data = (converted[key] if key in converted else weights[name]).detach()


def belongs_together(fit: Fit, model: nn.Module, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether most of the model is in the file, or most of the file in the model."""
    fitting = sum(math.prod(info.shape) for _, info, _ in fit.pairs.values())
    of_model = sum(tensor.numel() for tensor in _expected(model).values())
    of_file = sum(math.prod(info.shape) for info in tensors.values())
    return fitting >= _ENOUGH_FRAC * min(of_model, of_file) and fitting > 0


def whole_parts(model: nn.Module, fit: Fit) -> list[str]:
    """Return the outermost modules all of whose tensors the file has; six at most, and "…"."""
    missing = fit.missing
    parts: list[str] = []
    for path, _ in model.named_modules():
        inside = f"{path}."
        is_below = any(path.startswith(f"{part}.") for part in parts)
        has_tensors = any(key.startswith(inside) for key in fit.pairs)
        is_whole = has_tensors and not any(key.startswith(inside) for key in missing)
        if path and is_whole and not is_below:
            parts.append(path)
    return parts[:_SHOWN_PARTS] + (["…"] if len(parts) > _SHOWN_PARTS else [])


def _expected(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the model's tensors by key; extra state, of other types, is left out."""
    state = model.state_dict(keep_vars=True)
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


def _spelled(model: nn.Module, tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Return the file's keys by how the model would spell them, but for a prefix."""
    is_torchvision = type(model).__module__.startswith("torchvision.")
    is_parametrised = any("parametrizations." in key for key, _ in model.named_parameters())
    spelled = {}
    for key in tensors:
        plain = key.replace("_orig_mod.", "")  # by torch.compile
        for pattern, new in NAMES["torchvision_keys"] if is_torchvision else ():
            plain = re.sub(pattern, new, plain)  # as its own checkpoints of densenet and ViT spell
        spelled[plain if is_parametrised else old_spelling(plain)] = key
    return spelled


def _prefix(expected: Mapping[str, torch.Tensor], spelled: Mapping[str, str]) -> str:
    """Return what lies before the model's keys in the file: "module.", say."""
    longest = sorted(expected, key=len)[-_ANCHORS:]  # few of the file's end in them by chance
    prefixes: set[str] = set()
    for anchor in (*longest, *map(old_spelling, longest)):
        prefixes |= {key.removesuffix(anchor) for key in spelled if key.endswith(f".{anchor}")}

    def count_common(prefix: str) -> int:
        return sum(
            prefix + key in spelled or prefix + old_spelling(key) in spelled for key in expected
        )

    return max(["", *sorted(prefixes)], key=count_common)


def _shared(spelled: Mapping[str, str]) -> str:
    """Return the wrapper's names that all keys begin with: "module.", say."""
    shared = ""
    while True:
        rests = {key.removeprefix(shared) for key in spelled}
        first_parts = {rest.partition(".")[0] for rest in rests}
        if len(first_parts) != 1:
            return shared
        wrapper = f"{first_parts.pop()}."
        if wrapper not in PREFIXES:
            return shared
        shared += wrapper


def _by_name(
    expected: Mapping[str, torch.Tensor],
    spelled: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
    prefix: str,
) -> Fit:
    """Return the fit of equal keys."""
    name_of_key = {key: spelled[prefix + key] for key in expected if prefix + key in spelled}
    pairs = {key: (expected[key], tensors[name], name) for key, name in name_of_key.items()}
    inside = [key for key in spelled if key.startswith(prefix)]
    if len(spelled) - len(inside) > len(pairs):  # the model is the smaller part of the file
        inside = list(spelled)
    unexpected = [key for key in inside if key.removeprefix(prefix) not in expected]
    left_out = len(tensors) - len(inside)
    return Fit(pairs, _missing(expected, pairs), unexpected, _misshaped(pairs), left_out)


def _missing(expected: Mapping[str, torch.Tensor], pairs: Mapping[str, Any]) -> list[str]:
    fitted_ids = {id(expected[key]) for key in pairs}  # a tied parameter may be saved once
    absent = [key for key, tensor in expected.items() if id(tensor) not in fitted_ids]
    return [key for key in absent if not key.endswith("num_batches_tracked")]


def _misshaped(pairs: Mapping[str, tuple[torch.Tensor, TensorInfo, str]]) -> list[str]:
    return [
        f"{key} is {shape_text(info.shape)} {info.dtype}, not {shape_text(tensor.shape)} "
        f"{str(tensor.dtype).removeprefix('torch.')}"
        for key, (tensor, info, _) in pairs.items()
        if tensor.shape != info.shape
        or (
            dtypes.is_floating(info.dtype) != (tensor.is_floating_point() or tensor.is_complex())
            and not key.endswith("num_batches_tracked")  # which half() of a whole file casts too
        )
    ]


def _by_hooks(
    model: nn.Module,
    expected: Mapping[str, torch.Tensor],
    spelled: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
    prefix: str,
) -> Fit | None:
    """Return the fit after the model's own load hooks; None where they raise or do nothing."""
    plain = {
        key.removeprefix(prefix): name for key, name in spelled.items() if key.startswith(prefix)
    }
    offered = {key: _empty(tensors[name]) for key, name in plain.items()}
    loads = what_torch_loads(model, offered)
    if loads is None:
        return None
    names = {id(tensor): plain[key] for key, tensor in offered.items()}
    pairs = {}
    for key, tensor in loads.loaded.items():
        if key in expected:
            dtype = str(tensor.dtype).removeprefix("torch.")
            info = TensorInfo(tuple(tensor.shape), dtype)
            pairs[key] = (expected[key], info, names.get(id(tensor), ""))
    return Fit(
        pairs,
        _missing(expected, pairs),
        loads.unexpected,
        _misshaped(pairs),
        len(tensors) - len(plain),
        load=partial(_load, model, plain),
    )


def _empty(info: TensorInfo) -> torch.Tensor:
    return torch.empty(info.shape, dtype=getattr(torch, info.dtype), device="meta")


def _load(
    model: nn.Module, plain: Mapping[str, str], weights: Mapping[str, torch.Tensor]
) -> Mapping[str, torch.Tensor]:
    """Return what the model's hooks make of the weights, by its keys."""
    offered = {key: weights[name] for key, name in plain.items()}
    return (what_torch_loads(model, offered) or Loads()).loaded


def _as_part(
    model: nn.Module,
    expected: Mapping[str, torch.Tensor],
    spelled: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
) -> Fit | None:
    """Return the fit of a file with one part of the model, a backbone; None where it has none."""
    best: Fit | None = None
    for path, _ in model.named_modules():
        inside = {
            key.removeprefix(f"{path}."): tensor
            for key, tensor in expected.items()
            if path and key.startswith(f"{path}.")
        }
        if not inside or not spelled.keys() & inside.keys():
            continue
        fit = _by_name(inside, spelled, tensors, "")
        if not fit.misshaped and (best is None or fit.faults < best.faults):
            best = replace(fit, part=path)
    if best is None or len(best.unexpected) > len(best.pairs):
        return None
    pairs = {f"{best.part}.{key}": pair for key, pair in best.pairs.items()}
    return replace(best, pairs=pairs, missing=_missing(expected, pairs))
