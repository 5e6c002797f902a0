"""Real and hand-made op calls, and what other counters say of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from flopprof.formulas import OP_FORMULAS, OpCall, Work, load_op_formulas
from tests.formulas._walk import counted, roots


def formula(op: str, *shapes: Any, dtypes: Any = "float32", **values: str) -> Work | None:
    """Return what the formula of `op` says of arguments with `shapes`.

    A shape of None is no tensor; values are given by position: `_3="[1, 1]"`. `dtypes` is one type
    for all tensors, those in lists too, or a list with one for each argument.
    """
    list_dtype = dtypes if isinstance(dtypes, str) else ""
    texts = [values.get(f"_{index}", "") for index in range(len(shapes))]
    if isinstance(dtypes, str):
        dtypes = ["" if s is None else _type(s, dtypes) for s in shapes]
    load_op_formulas()
    known = tuple(() if shape is None else shape for shape in shapes)
    call = OpCall(op, known, 4, tuple(dtypes), tuple(texts), list_dtype=list_dtype)
    return OP_FORMULAS.require(op)(call)


def _type(shape: Any, dtype: str) -> str:
    return "TensorList" if shape and isinstance(shape[0], tuple) else dtype


def total(run: Callable[[], Any]) -> tuple[int, int]:
    """Return matmul and vector FLOPs of all counted ops of `run`."""
    works = [work for _, work in counted(roots(run)) if work is not None]
    return sum(w.matmul_flops for w in works), sum(w.vector_flops for w in works)


def outermost(run: Callable[[], Any]) -> tuple[str, Work | None]:
    """Return the first counted op of `run` and its work."""
    load_op_formulas()
    found = ((call.op, work) for call, work in counted(roots(run)))
    return next((op, work) for op, work in found if work is not None and work.matmul_flops)


def torch_counts(run: Callable[[], Any]) -> int:
    """Return what PyTorch's own counter says of `run`."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def places(op: str, *wanted: str) -> list[int]:
    """Return where PyTorch's schema of `op` has each argument; 99 where it has none.

    A wanted argument may go by several names, "attn_mask|attn_bias". Of overloads, the first one
    that is not given the memory of its results. Ask `is_op` first whether this torch has the op.
    """
    schemas = torch._C._jit_get_schemas_for_operator(op)
    schemas = [s for s in schemas if not s.overload_name.endswith(("out", "grad_input"))]
    names = [argument.name for argument in schemas[0].arguments]
    found = ([names.index(n) for n in name.split("|") if n in names] for name in wanted)
    return [indices[0] if indices else 99 for indices in found]


def is_op(op: str) -> bool:
    """Say whether the torch that is installed has `op`; formulas know older and newer ones too."""
    return bool(torch._C._jit_get_schemas_for_operator(op))


def ones(*shape: int) -> torch.Tensor:
    """Return ones: a product of ones adds up to the number of its multiply-adds."""
    return torch.ones(shape, requires_grad=True)
