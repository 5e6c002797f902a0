"""Run a model on the meta device quickly: the shapes of each distinct op call are found once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DispatchKey, DispatchKeySet
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._ops import HigherOrderOperator, OpOverload
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode

from flopprof.capture.hooks import innermost, unrecorded
from flopprof.formulas import FREE_OPS, OP_FORMULAS, OpCall, load_op_formulas
from flopprof.formulas.ops._elements import scalar_type

_Shape = tuple[Any, ...]
_META = DispatchKeySet(DispatchKey.Meta)
_NUMBER_OF_DTYPE = {scalar_type(number): number for number in range(16)}
_MOST_KNOWN = 100_000  # calls: about 100 MB
# Default dtype → call → what it returns. Kept: the next count of like layers finds it here.
_KNOWN: dict[torch.dtype, dict[_Shape, tuple[type, list[_Shape]]]] = {}
_record_ops = torch.autograd._enable_record_function  # type: ignore[attr-defined]


class ShapesOnce(TorchDispatchMode):
    """Repeats results on the meta device, where only shapes are computed, slowly and in Python.

    A profiler sees the same ops, but nothing inside those that have a formula or are free: all that
    lies there belongs to them. Ops that alias or change their arguments run each time.
    """

    supports_higher_order_operators = True  # torch.cond and its like, and flex_attention

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        load_op_formulas()
        self._known = _KNOWN.setdefault(torch.get_default_dtype(), {})
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        self._traits: dict[OpOverload, _Traits] = {}
        self._settled: set[_Shape] = set()  # calls whose FLOPs the op's formula knows
        self._open: set[_Shape] = set()  # calls whose FLOPs are those of the ops inside
        self._changed: set[_Shape] = set()  # calls that changed no shape of their first argument

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Go without a wrapper that keeps Dynamo out: a count compiles nothing."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: _Shape = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):  # what it calls is recorded
            return func(*args, **kwargs)
        traits = self._traits.get(func)
        if traits is None:
            traits = self._traits[func] = _traits(func)
        if traits.is_composite:  # they come here under inference_mode only
            with self:
                return func.decompose(*args, **kwargs)
        if not traits.is_whole:
            return _call_on_meta(func, args, kwargs)
        key = None
        if traits.is_functional or not traits.is_free:
            try:
                key = (func, _key(args), _key(tuple(kwargs.items())))
                repeated = self._known.get(key) if traits.is_functional else None
                is_open = key in self._open
            except TypeError:  # an argument that is no shape, or cannot be looked up
                key = repeated = None
                is_open = not traits.is_free
            if repeated is not None:
                return _made_again(*repeated)
            if traits.changes_first and key in self._changed:
                return args[0]
            if is_open or not (traits.is_free or self._settles(key, func, args, kwargs)):
                return _call_on_meta(func, args, kwargs)
        with unrecorded():
            result = func(*args, **kwargs)
        if traits.changes_first and key is not None and args:
            self._changed.add(key)
        outputs = [result] if type(result) is Tensor else result
        can_repeat = traits.is_functional and type(outputs) in (tuple, list)
        if key is not None and can_repeat and all(map(_is_plain, outputs)):
            shapes = [(r.shape, r.stride(), r.dtype) for r in outputs]
            self._known[key] = type(result), shapes
        return result

    def _settles(
        self, key: _Shape | None, func: OpOverload, args: _Shape, kwargs: dict[str, Any]
    ) -> bool:
        """Return whether the op's formula knows this call; else the ops inside it count."""
        if key in self._settled:
            return True
        try:
            formula = OP_FORMULAS.require(func._schema.name)
            is_known = formula(recorded_call(func, args, kwargs)) is not None
        except (LookupError, ValueError, TypeError, ArithmeticError, AttributeError):
            is_known = False  # as the trace's reader takes it
        if key is not None:
            (self._settled if is_known else self._open).add(key)
        return is_known


def _made_again(kind: type, results: list[_Shape]) -> Any:
    """Return what an op returned before, made anew; making it is no op of the model's."""
    _record_ops(False)
    try:
        made = [torch.empty_strided(s, t, dtype=d, device="meta") for s, t, d in results]
    finally:
        _record_ops(True)
    return made[0] if kind is Tensor else kind(made)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Have attention that is differentiated on the meta device run the op that a CPU would choose.

    There is no fused one for that device; its backward pass would have four products where the
    CPU's has five, of which one makes the scores again, and could be differentiated once more,
    which the CPU's refuses. Torch itself chooses, for tensors of these sizes. torch.func comes by
    a key of its own.
    """
    overriding = torch.library.Library("aten", "IMPL")
    for key in ("AutogradMeta", "FuncTorchDynamicLayerFrontMode"):
        overriding.impl("scaled_dot_product_attention", _attention, key)
    try:
        yield
    finally:
        overriding._destroy()


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Any:
    """Be `scaled_dot_product_attention` on the meta device."""
    mask = attn_mask
    if not _would_fuse((query, key, value, mask, dropout_p, is_causal), options):
        whole = torch.ops.aten.scaled_dot_product_attention.default
        return whole.decompose(query, key, value, mask, dropout_p, is_causal, **options)
    if mask is not None and mask.dtype == torch.bool:
        is_in, is_out = (torch.full((), v, dtype=query.dtype, device="meta") for v in (0.0, -inf))
        mask = torch.where(mask, is_in, is_out)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=mask, scale=options.get("scale")
    )[0]


def _would_fuse(arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Return whether a CPU would run one op, whose derivatives are wanted or may be.

    Without, the op counts as a whole, whatever it calls.
    """
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    if not all(_is_plain(innermost(t)) for t in tensors):
        return False
    is_transformed = any(map(is_functorch_wrapped_tensor, tensors))
    has_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if not (is_transformed or has_gradient or any(map(_has_tangent, tensors))):
        return False
    with unrecorded():
        on_cpu: list[Any] = [_on_cpu(a) if isinstance(a, Tensor) else a for a in arguments]
        chosen = torch._fused_sdp_choice(*on_cpu, **options)
    return bool(chosen == SDPBackend.FLASH_ATTENTION.value)


def _has_tangent(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None


def _on_cpu(tensor: Tensor) -> Tensor:
    """Return a tensor of the same sizes, last stride and type, with next to no memory."""
    width = tensor.shape[-1] if tensor.dim() else 1
    stride = tensor.stride(-1) if tensor.dim() else 1
    few = torch.empty(
        max(width * stride, 1), dtype=tensor.dtype, requires_grad=tensor.requires_grad
    )
    strides = (*(0,) * (tensor.dim() - 1), stride)[: tensor.dim()]
    return few.as_strided(tensor.shape, strides)


@dataclass(frozen=True, slots=True)
class _Traits:
    """What decides how an op is run.

    Attributes:
        is_composite: It only calls other ops.
        is_whole: Nothing inside is of interest where its FLOPs are known.
        is_free: It has none.
        is_functional: It only makes its results.
        changes_first: It changes the values of its first argument, which it returns, and no more.
    """

    is_composite: bool
    is_whole: bool
    is_free: bool
    is_functional: bool
    changes_first: bool


def _traits(func: OpOverload) -> _Traits:
    schema = func._schema
    name = schema.name
    formula = OP_FORMULAS.get(name)
    is_range = name.startswith("profiler::")  # begins or ends in it, and is to be recorded
    is_free = name in FREE_OPS
    is_known = is_free or (formula is not None and not formula.looks_below)
    aliased = [a for a in (*schema.arguments, *schema.returns) if a.alias_info]
    first = schema.arguments[:1]
    is_in_place = (
        len(aliased) == 2
        and len(schema.returns) == 1
        and bool(first and first[0].alias_info and first[0].alias_info.is_write)
        and schema.returns[0].alias_info is not None
        and torch.Tag.inplace_view not in func.tags
    )
    return _Traits(
        is_composite=not (is_free or is_range) and func._can_decompose(),
        is_whole=is_known and not is_range,
        is_free=is_free,
        is_functional=not aliased and torch.Tag.data_dependent_output not in func.tags,
        changes_first=is_known and not is_free and is_in_place,
    )


def recorded_call(func: OpOverload, args: _Shape, kwargs: dict[str, Any]) -> OpCall:
    """Return the call as the profiler would record it."""
    arguments_in_order = []
    for index, argument in enumerate(func._schema.arguments):
        if index < len(args):
            arguments_in_order.append(args[index])
        elif argument.name in kwargs:
            arguments_in_order.append(kwargs[argument.name])
        else:
            arguments_in_order.append(argument.default_value)
    shapes, kinds, values = zip(*map(_recorded_argument, arguments_in_order), strict=True)
    return OpCall(func._schema.name, shapes=shapes, dtypes=kinds, values=values)


def _recorded_argument(value: Any) -> tuple[Any, str, str]:
    """Return shape, type and text of an argument."""
    if isinstance(value, Tensor):
        return tuple(value.shape), str(value.dtype).removeprefix("torch."), ""
    if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
        return tuple(tuple(t.shape) for t in value if isinstance(t, Tensor)), "TensorList", ""
    if isinstance(value, list | tuple):
        return (), "ScalarList", str(list(value))
    if isinstance(value, torch.dtype):
        return (), "Scalar", str(_NUMBER_OF_DTYPE.get(str(value).removeprefix("torch."), ""))
    return (), "" if value is None else "Scalar", "" if value is None else str(value)


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
