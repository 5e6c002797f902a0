"""A copy of a model on the meta device: the same layers, tensors without values."""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

_ATOMS = frozenset((type(None), bool, int, float, str))
_PLAIN_WAYS = (nn.Module.__setstate__, _ConvNd.__setstate__)
"""How a layer takes on its attributes where it takes them as they are."""


def tensors_held(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the tensors in the attributes of a model's modules, however nested."""
    for module in model.modules():
        for value in vars(module).values():
            if type(value) in _ATOMS:
                continue
            values = value.values() if type(value) is dict else (value,)
            for item in values:
                if isinstance(item, torch.Tensor):
                    yield item
                elif type(item) not in _ATOMS and not isinstance(item, nn.Module):
                    yield from (t for t in tree_leaves(item) if isinstance(t, torch.Tensor))


def meta_twin(model: nn.Module) -> nn.Module | None:
    """Return a copy of the model on the meta device, or None where none can be made."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return None  # it copies its tensors where they are, and no longer as parameters
    memo: dict[int, Any] = {}
    for tensor in tensors_held(model):
        if id(tensor) in memo:
            continue
        if type(tensor) not in (torch.Tensor, nn.Parameter):
            return None  # a subclass or uninitialised parameter knows more than its shape
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    for module in reversed(list(model.modules())):  # children come before what holds them
        _copy_layer(module, memo)
    try:
        return copy.deepcopy(model, memo)
    except Exception:  # whatever a foreign __deepcopy__ raises: the model itself is counted
        return None


def _copy_layer(module: nn.Module, memo: dict[int, Any]) -> None:
    """Put a copy of one of torch's plain layers into deepcopy's memo, which would take longer.

    Not of one that holds more than numbers, texts, and what the memo has already.
    """
    kind = type(module)
    if not kind.__module__.startswith("torch.nn.modules."):
        return
    if hasattr(kind, "__deepcopy__") or kind.__setstate__ not in _PLAIN_WAYS:
        return
    fields: dict[str, Any] = {}
    for name, value in vars(module).items():
        if type(value) in (dict, OrderedDict):
            if any(item is not None and id(item) not in memo for item in value.values()):
                return
            inside = [(key, memo.get(id(item))) for key, item in value.items()]
            fields[name] = type(value)(inside)
        elif type(value) is set and _is_plain(value):
            fields[name] = set(value)
        elif type(value) in _ATOMS or (type(value) is tuple and _is_plain(value)):
            fields[name] = value
        else:
            return
    twin = kind.__new__(kind)
    vars(twin).update(fields)
    memo[id(module)] = twin


def _is_plain(values: Iterable[Any]) -> bool:
    """Return whether all of these are numbers and texts, which need no copy."""
    return all(type(value) in _ATOMS for value in values)
