"""While counting, the sizes of sparse tensors are at hand: note them where no trace has them."""

import threading
from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from flopprof.capture.hooks import unrecorded
from flopprof.formulas import OpCall

if TYPE_CHECKING:
    from flopprof.capture.call import Inputs


_NAMES = ("product", "softmax", "softmax_backward", "sum")
_PENDING = threading.local()  # what the next op of ours on this thread runs
_LIBRARY = torch.library.Library("stored", "DEF")  # for as long as Python runs


def _run_pending(*_sizes: Tensor) -> None:
    _PENDING.result = _PENDING.call()


for _name in _NAMES:
    _LIBRARY.define(f"{_name}(Tensor a, Tensor b, Tensor c, Tensor d) -> ()")
    _LIBRARY.impl(_name, _run_pending, "CompositeExplicitAutograd")


class StoredElements(TorchDispatchMode):
    """Records an op `stored::…` around ops on sparse tensors, whose arguments are the sizes.

    It runs on the device itself, and nothing is timed. Its formulas are in `formulas/ops/sparse`.
    """

    supports_higher_order_operators = True  # torch.cond and its like, and flex_attention

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):  # what it calls is recorded, if not noted
            return func(*args, **kwargs)
        noted = None
        if has_sparse(args):
            noted = _noted(func._schema.name.removeprefix("aten::"), args, kwargs)
        if noted is None:
            return func(*args, **kwargs)
        name, sizes, dtype = noted
        return _recorded(name, sizes, dtype, lambda: func(*args, **kwargs))


def _recorded(
    name: str, sizes: list[tuple[int, ...]], dtype: torch.dtype, call: Callable[[], Any]
) -> Any:
    """Return what `call` returns; it runs inside an op with arguments of these shapes."""
    sizes = [*sizes, (0,), (0,), (0,)][:4]
    with unrecorded():
        shapes_only = [torch.empty(size, dtype=dtype, device="meta") for size in sizes]
    _PENDING.call = call
    getattr(torch.ops.stored, name)(*shapes_only)
    result = _PENDING.result
    del _PENDING.call, _PENDING.result
    return result


def has_sparse(args: tuple[Any, ...]) -> bool:
    """Return whether one of the arguments of an op is a sparse tensor."""
    return any(isinstance(arg, Tensor) and is_sparse(arg) for arg in args)


def stored_call(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> OpCall | None:
    """Return the call of `stored::…` that is recorded around a call on sparse tensors; or None."""
    noted = _noted(op.removeprefix("aten::"), args, kwargs) if has_sparse(args) else None
    if noted is None:
        return None
    name, sizes, dtype = noted
    shapes = tuple([*sizes, (0,), (0,), (0,)][:4])
    dtypes = (str(dtype).removeprefix("torch."),) * len(shapes)
    return OpCall(f"stored::{name}", shapes=shapes, dtypes=dtypes)


def is_sparse(tensor: Tensor) -> bool:
    """Return whether the tensor stores some of its elements only."""
    return tensor.layout not in (torch.strided, torch._mkldnn)  # type: ignore[attr-defined]


def holds_sparse(model: torch.nn.Module, inputs: "Inputs") -> bool:
    """Return whether a tensor of the model or the inputs is sparse."""
    from flopprof.capture.twin import tensors_held

    return any(is_sparse(each) for each in (*tensors_held(model), *inputs.tensors))


# Where the two factors of a product are.
_PRODUCTS = {
    "mm": 0, "mv": 0, "bmm": 0, "_sparse_mm_reduce_impl": 0, "_sparse_sparse_matmul": 0,
    "addmm": 1, "addmv": 1, "_sparse_addmm": 1, "sspaddmm": 1, "hspmm": 0, "smm": 0,
}  # fmt: skip
# What there is of each stored element, and the argument whose elements they are.
_EACH = {
    "_sparse_softmax": ("softmax", 0),
    "_sparse_log_softmax": ("softmax", 0),
    "_sparse_softmax_backward_data": ("softmax_backward", 1),
    "_sparse_log_softmax_backward_data": ("softmax_backward", 1),
    "_sparse_sum": ("sum", 0),
    "_sparse_csr_sum": ("sum", 0),
}


def _noted(
    op: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, list[tuple[int, ...]], torch.dtype] | None:
    """Return what to record: a name, the shapes of its arguments, their element type."""
    if op in _EACH:
        name, place = _EACH[op]
        return name, [(_stored(args[place]),)], args[place].dtype
    if op == "sparse_sampled_addmm":
        pattern, a, _ = args[:3]
        stored = _stored(pattern)
        return (
            "product",
            [(stored, a.shape[-1]), (stored,), *_scales(args, kwargs, stored)],
            a.dtype,
        )
    first = _PRODUCTS.get(op)
    if first is None:
        return None
    a = args[first]
    b = args[first + 1]
    if is_sparse(a) and is_sparse(b):
        return None  # which stored elements meet, the places decide
    columns = b.shape[-1] if b.dim() > 1 else 1
    times = (_stored(a), columns) if is_sparse(a) else (_stored(b), a.shape[-2])
    result = (*a.shape[:-1], columns)
    sizes = [times, result]
    if first == 1:
        sizes += _scales(args, kwargs, prod(result))
    return "product", sizes, a.dtype


def _scales(args: tuple[Any, ...], kwargs: dict[str, Any], size: int) -> list[tuple[int, ...]]:
    """Return the adds of `beta·bias + alpha·product`, and the products by its factors."""
    scalars = args[3:]
    beta = kwargs.get("beta", scalars[0] if scalars else 1)
    alpha = kwargs.get("alpha", scalars[1] if len(scalars) > 1 else 1)
    factors = int(beta not in (0, 1)) + int(alpha != 1)
    return [(size if beta != 0 else 0,), (size, factors)]


def _stored(tensor: Tensor) -> int:
    """Return the elements that the tensor stores, whole blocks included."""
    with unrecorded():
        values = tensor._values() if tensor.layout is torch.sparse_coo else tensor.values()
        return values.numel()
