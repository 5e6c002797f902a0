"""What a step of decoding holds and reads: its cache, and the weights that one token uses."""

import math
import re
from collections.abc import Collection, Iterator
from typing import Any

CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
"""Names that configurations have for how many experts a token goes to."""
_LISTED = re.compile(r"(.*\bexperts)\.\d+(?:\.|$)")  # a module in a list of experts


def bytes_of(cache: Any) -> float:
    """Return the bytes of all keys, values and states that a cache holds."""
    tensors = {id(tensor): tensor for tensor in _tensors_in(cache, set())}
    return float(sum(t.numel() * t.element_size() for t in tensors.values() if t.ndim > 1))


def _tensors_in(value: Any, seen: set[int]) -> Iterator[Any]:
    """Yield the tensors in an object of a cache: in its attributes, lists, tuples and dicts."""
    import torch

    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
        return
    parts: list[Any] = []
    if isinstance(value, list | tuple):
        parts = list(value)
    elif isinstance(value, dict):
        parts = list(value.values())
    elif "cache" in type(value).__module__ or "transformers" in type(value).__module__:
        parts = list(getattr(value, "__dict__", {}).values())
    for part in parts:
        yield from _tensors_in(part, seen)


def weights_of_step(model: Any, called: Collection[str], batch: int) -> tuple[float, float]:
    """Return the bytes of weights that a step reads, and the parameters that a token uses.

    Of experts a token uses those that it is sent to; a batch, at most that many for each example.
    """
    import torch

    chosen = _experts_per_token(model)
    weight_bytes: dict[int, float] = {}
    active: dict[int, float] = {}
    for path, module in model.named_modules():
        if path not in called and not _LISTED.match(path):
            continue
        for parameter in module.parameters(recurse=False):
            share = 1.0
            share_of_batch = 1.0
            experts = _experts_of(model, path, module, parameter)
            if experts:
                share = min(chosen / experts, 1.0) if chosen == chosen else math.nan
                share_of_batch = min(share * batch, 1.0) if share == share else math.nan
            key = id(parameter)  # tied weights are read once
            active[key] = parameter.numel() * share
            size = parameter.numel() * parameter.element_size() * share_of_batch
            if isinstance(module, torch.nn.Embedding) and len(parameter):
                size = size / len(parameter) * min(batch, len(parameter))
            weight_bytes[key] = max(size, weight_bytes.get(key, 0.0))
    return sum(weight_bytes.values()), sum(active.values())


def _experts_per_token(model: Any) -> float:
    config = model.config.get_text_config(decoder=True)
    numbers = (getattr(config, name, None) for name in CHOSEN)
    return next((float(number) for number in numbers if isinstance(number, int)), math.nan)


def _experts_of(model: Any, path: str, module: Any, parameter: Any) -> int:
    """Return among how many experts a parameter is chosen; 0 where every token uses it."""
    listed = _LISTED.match(path)
    if listed:  # a module for each expert
        return len(list(model.get_submodule(listed[1]).children()))
    count = getattr(module, "num_experts", 0)
    is_stack = isinstance(count, int) and parameter.ndim > 2 and len(parameter) == count
    return count if is_stack else 0
