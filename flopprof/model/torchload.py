"""Find out which of a file's tensors torch would load where, by torch's own hooks; load nothing.

Modules rename, join and split what they are given in `_load_from_state_dict` and in hooks before
it: new weight normalisation takes the keys of the old one so, for example.
"""

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

_PARAMETRISED = re.compile(r"(.*?)parametrizations\.(\w+)\.(original[01]?)")
_OLD = {"original0": "_g", "original1": "_v", "original": "_orig"}


@dataclass(slots=True)
class Loads:
    """What torch would load.

    Attributes:
        loaded: The tensor for each of the model's keys: one of the file's, or what a hook made.
        unexpected: Keys that no module takes.
    """

    loaded: dict[str, torch.Tensor] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)


def old_spelling(key: str) -> str:
    """Return a parametrised weight's key as `torch.nn.utils.weight_norm` spelled it before."""
    match = _PARAMETRISED.fullmatch(key)
    return f"{match[1]}{match[2]}{_OLD[match[3]]}" if match else key


def has_hooks(model: nn.Module) -> bool:
    """Return whether loading runs code of the model's own, which may rename what it is given."""
    if type(model).load_state_dict is not nn.Module.load_state_dict:
        return True
    return any(
        module._load_state_dict_pre_hooks
        or not type(module)._load_from_state_dict.__module__.startswith("torch.nn.modules")
        for module in model.modules()
    )


def what_torch_loads(model: nn.Module, state: Mapping[str, torch.Tensor]) -> Loads | None:
    """Return what `model.load_state_dict(state)` would load; None where its code raises.

    The model stays as it is: each module's own hooks run, and nothing is copied.
    """
    loads = Loads()
    offered = OrderedDict(state)
    versions = getattr(model.state_dict(keep_vars=True), "_metadata", None)
    if versions is not None:  # a file by torch.save keeps them as an attribute, which is not read
        vars(offered)["_metadata"] = versions
    try:
        with _recording(loads):
            model.load_state_dict(offered, strict=False)
    except Exception:  # whatever the model's own code makes of tensors without values
        return None
    return loads


@contextmanager
def _recording(loads: Loads) -> Iterator[None]:
    """Let modules record what they are given in place of taking it."""

    def record(
        self: nn.Module,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for hook in self._load_state_dict_pre_hooks.values():
            hook(
                state_dict, prefix, local_metadata, strict,
                missing_keys, unexpected_keys, error_msgs,
            )  # fmt: skip
        own = {**self._parameters, **self._buffers}
        for name in own:
            value = state_dict.get(prefix + name)
            if isinstance(value, torch.Tensor):
                loads.loaded[prefix + name] = value
        for key in state_dict:
            if not key.startswith(prefix):
                continue
            first, _, rest = key[len(prefix) :].partition(".")
            is_own = first in self._modules if rest else first in own or first == "_extra_state"
            if not is_own:
                loads.unexpected.append(key)

    original = nn.Module._load_from_state_dict
    nn.Module._load_from_state_dict = record  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._load_from_state_dict = original  # type: ignore[method-assign]
