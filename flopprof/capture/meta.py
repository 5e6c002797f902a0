"""Run a model on the meta device quickly: the shapes of each distinct op call are found once."""

from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DispatchKey, DispatchKeySet
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from flopprof.formulas import FREE_OPS, LOOKS_BELOW, OP_FORMULAS, load_op_formulas

_Shape = tuple[Any, ...]
_META = DispatchKeySet(DispatchKey.Meta)
_MOST_KNOWN = 100_000  # calls: about 100 MB
# Default dtype → call → what it returns. Kept: the next count of like layers finds it here.
_KNOWN: dict[torch.dtype, dict[_Shape, tuple[type, list[_Shape]]]] = {}


class ShapesOnce(TorchDispatchMode):
    """Repeats results on the meta device, where only shapes are computed, slowly and in Python.

    A profiler sees the same ops, but nothing inside those that have a formula or are free: all that
    lies there belongs to them. Ops that alias or change their arguments run each time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        load_op_formulas()
        self._known = _KNOWN.setdefault(torch.get_default_dtype(), {})
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        self._traits: dict[OpOverload, tuple[bool, bool]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: _Shape = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        traits = self._traits.get(func)
        if traits is None:
            traits = self._traits[func] = _traits(func)
        is_whole, is_functional = traits
        if not is_whole:
            return _call_on_meta(func, args, kwargs)
        key = None
        if is_functional:
            try:
                key = (func, _key(args), _key(tuple(kwargs.items())))
                known = self._known.get(key)
            except TypeError:  # an argument that is no shape, or cannot be looked up
                key = known = None
            if known is not None:
                kind, results = known
                made = [torch.empty_strided(s, t, dtype=d, device="meta") for s, t, d in results]
                return made[0] if kind is Tensor else kind(made)
        torch.autograd._enable_record_function(False)  # type: ignore[attr-defined]
        try:
            result = func(*args, **kwargs)
        finally:
            torch.autograd._enable_record_function(True)  # type: ignore[attr-defined]
        made = [result] if type(result) is Tensor else result
        if key is not None and type(made) in (tuple, list) and all(map(_is_plain, made)):
            shapes = [(r.shape, r.stride(), r.dtype) for r in made]
            self._known[key] = type(result), shapes
        return result


def _traits(func: OpOverload) -> tuple[bool, bool]:
    """Return whether nothing inside the op is of interest, and whether it only makes results."""
    name, schema = func._schema.name, func._schema
    formula = OP_FORMULAS.get(name)
    is_range = name.startswith("profiler::")  # begins or ends in it, and is to be recorded
    is_known = name in FREE_OPS or (formula is not None and name not in LOOKS_BELOW)
    is_whole = is_known and not is_range
    aliases = any(a.alias_info for a in (*schema.arguments, *schema.returns))
    return is_whole, is_whole and not aliases and torch.Tag.data_dependent_output not in func.tags


def _call_on_meta(func: OpOverload, args: _Shape, kwargs: dict[str, Any]) -> Any:
    """Call past the dispatcher, which would show the call to a profiler a second time."""
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    if tensors and all(type(t) in (Tensor, nn.Parameter) and t.is_meta for t in tensors):
        return func.redispatch(_META, *args, **kwargs)
    return func(*args, **kwargs)


def _is_plain(tensor: Any) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.is_meta
        and tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def _key(value: Any) -> _Shape:
    """Return what decides an op's result: shapes, types, and the values of what is no tensor."""
    kind = type(value)
    if isinstance(value, Tensor):
        if not _is_plain(value):
            raise TypeError("not a plain tensor on the meta device")
        return (value.shape, value.stride(), value.dtype)
    if kind is tuple or kind is list:
        return tuple([_key(item) for item in value])
    return (kind, value)
