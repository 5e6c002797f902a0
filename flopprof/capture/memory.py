"""What a call needs of memory, from shapes alone: a call on the meta device is watched."""

import math
import weakref
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flopprof.capture.call import Inputs, guarded, home, initialised, unchanged
from flopprof.capture.training import Step, Training
from flopprof.capture.twin import meta_twin
from flopprof.errors import FlopprofError
from flopprof.provenance import Memory

if TYPE_CHECKING:
    from torch import nn

_DEEPEST = 6  # levels that are looked into for the tensors of a cache


class _LiveBytes(TorchDispatchMode):
    """Adds up what is alive of the storages that ops make, and remembers the most.

    Attributes:
        live: Bytes alive now.
        peak: The most that were.
    """

    def __init__(self, counted_apart: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._sizes = {_key(tensor): 0 for tensor in counted_apart}  # theirs is counted apart

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._hold(leaf)
        return result

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


def describe_memory(model: "nn.Module", inputs: Inputs, training: Training | None) -> Memory:
    """Return what a call of the model needs of memory; NaN for what shapes do not tell.

    Args:
        model: The model, on any device; it is left as it was.
        inputs: What it is called with.
        training: How a call trains; None where it does not.
    """
    fixed = _fixed(model, training)
    twin = model if home(model)[0] == "meta" else meta_twin(model)
    own_step = training is not None and training.step is not None
    if twin is None or own_step or not inputs.has_shapes:
        return fixed
    try:
        return _watched(twin, inputs.to("meta"), training, fixed)
    except FlopprofError:  # values decide its path, and the meta device has none
        return fixed


def _fixed(model: "nn.Module", training: Training | None) -> Memory:
    """Return what is known without a call."""
    parameters = initialised(model.parameters())
    gradients = sum(p.nbytes for p in parameters if p.requires_grad) if training else 0
    return Memory(
        parameters_bytes=sum(p.nbytes for p in parameters),
        buffers_bytes=sum(b.nbytes for b in initialised(model.buffers())),
        gradients_bytes=gradients,
        optimizer_bytes=math.nan if training else 0,
        activations_bytes=math.nan if training else 0,
    )


def _watched(
    model: "nn.Module", inputs: Inputs, training: Training | None, fixed: Memory
) -> Memory:
    """Return `fixed` with what one call on the meta device shows."""
    with unchanged(model, inputs, training=training is not None) as snapshot:
        of_call = training.of(model, inputs) if training else inputs
        call = guarded(model, of_call, snapshot)
        if training:
            call()  # an optimizer's first step makes its state
        optimizer_bytes = _state_bytes(of_call)
        counted_apart = [*model.parameters(), *model.buffers(), *inputs.tensors]
        own = {_key(tensor) for tensor in (*model.parameters(), *model.buffers())}
        saved: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if _key(tensor) not in own:
                saved[_key(tensor)] = tensor.untyped_storage().nbytes()
            return tensor

        call.prepare()
        with saved_tensors_hooks(keep, lambda tensor: tensor), _LiveBytes(counted_apart) as watched:
            output = call()
        cache_bytes = _cache_bytes(output, inputs)
    inputs_bytes = sum(tensor.nbytes for tensor in inputs.tensors)
    steady_bytes = fixed.parameters_bytes + fixed.buffers_bytes + optimizer_bytes + inputs_bytes
    return Memory(
        parameters_bytes=fixed.parameters_bytes,
        buffers_bytes=fixed.buffers_bytes,
        gradients_bytes=fixed.gradients_bytes,
        optimizer_bytes=optimizer_bytes,
        activations_bytes=sum(saved.values()) if training else 0,
        kv_cache_bytes=cache_bytes,
        peak_bytes=steady_bytes + watched.peak,
        peak_source="shapes",
    )


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _state_bytes(of_call: Inputs) -> int:
    """Return the bytes of an optimizer's state; 0 where there is none."""
    if not isinstance(of_call, Step) or of_call.optimizer is None:
        return 0
    states = of_call.optimizer.state.values()
    return sum(t.nbytes for state in states for t in state.values() if isinstance(t, torch.Tensor))


def _cache_bytes(output: Any, inputs: Inputs) -> int:
    """Return the bytes of keys and values that a call leaves for the next: of a cache's tensors."""
    cache = _cache_of(output)
    if cache is None:
        cache = next((v for v in inputs.kwargs.values() if "Cache" in type(v).__name__), None)
    tensors = {id(tensor): tensor for tensor in _tensors_of(cache, _DEEPEST)}
    return sum(tensor.nbytes for tensor in tensors.values())


def _cache_of(output: Any) -> Any:
    """Return the cache that a model of transformers gives back; None where it gives none.

    Its outputs are dictionaries. Both names are asked of those that it has: a name that only an
    older version had is answered too, with a warning on stderr.
    """
    if not isinstance(output, dict):
        return getattr(output, "past_key_values", None)
    entries = dict(output.items())
    return entries.get("cache", entries.get("past_key_values"))


def _tensors_of(value: Any, depth: int) -> Iterator[torch.Tensor]:
    """Yield the tensors in an object's attributes and containers, some levels deep."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, list | tuple):
        for each in value:
            yield from _tensors_of(each, depth - 1)
    elif depth and isinstance(value, dict):
        for each in value.values():
            yield from _tensors_of(each, depth - 1)
    elif depth and hasattr(value, "__dict__"):
        for each in vars(value).values():
            yield from _tensors_of(each, depth - 1)
