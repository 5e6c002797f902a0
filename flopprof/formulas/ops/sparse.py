"""Formulas of ops on sparse tensors: exact where a count noted the stored elements, else bounds.

A trace shows the shape that a sparse tensor stands for, not how many elements it stores: none at
least, all at most. While counting, `stored::…` is recorded inside such an op, with their number.
"""

from functools import partial
from math import prod

from flopprof.formulas import OpCall, Work
from flopprof.formulas.ops import _elements as el
from flopprof.formulas.ops._shapes import contraction

op_formula = partial(el.formula_for, kind="other")

_EACH = {"softmax": 5, "softmax_backward": 4, "sum": 1}


@op_formula("stored::product")
def product(call: OpCall) -> Work:
    """2 for each stored element and row or column that it meets; adds of a bias, factors.

    Arguments, by their shapes: (stored, times each), the result, the bias, (result, factors).
    """
    multiply_adds = prod(call.shape(0))
    written = prod(call.shape(1))
    adds = prod(call.shape(2)) if call.has(2) else 0
    scalings = prod(call.shape(3)) if call.has(3) else 0
    return contraction(call, multiply_adds, written, (0,), adds=adds, scalings=scalings)


@op_formula("stored::softmax stored::softmax_backward stored::sum")
def each_stored(call: OpCall) -> Work:
    """Of each stored element: softmax 5, its backward 4, a sum 1."""
    each = _EACH[call.op.partition("::")[2]] if el.counts(call) else 0
    return el.vector_work(call, each * el.elements(call, 0), 0, 0)


@op_formula("_sparse_softmax _sparse_log_softmax _sparse_sum _sparse_csr_sum")
@op_formula("_sparse_softmax_backward_data _sparse_log_softmax_backward_data")
def stored_unknown(call: OpCall) -> Work:
    """Of each stored element: softmax 5, its backward 4, a sum 1; at most of all elements."""
    each = 0
    if el.counts(call):
        each = _EACH[_stored_name(call.op)]
    return el.vector_work(call, 0, 0, at_most=each * el.elements(call, 0))


def _stored_name(op: str) -> str:
    if "sum" in op:
        return "sum"
    return "softmax_backward" if "backward" in op else "softmax"


@op_formula("_sparse_mm_reduce_impl _sparse_sparse_matmul")
def sparse_product(call: OpCall) -> Work:
    """2 for each stored element and column: at most the dense product."""
    rows, depth = call.shape(0)
    columns = call.shape(1)[-1]
    work = contraction(call, rows * depth * columns, rows * columns, (0, 1))
    return Work(0, 0, work.min_bytes, flops_at_most=work.matmul_flops)
