"""Formulas of products of matrices and vectors: two FLOPs per multiply-add, eight if complex.

Scaling by alpha and beta is left out: it is folded into the product or into the bias.
"""

from math import prod

from flopprof.dtypes import is_complex
from flopprof.formulas import OpCall, Work
from flopprof.formulas.ops._elements import broadcast, elements, formula_for, moved_bytes


def _work(call: OpCall, multiply_adds: int, adds: int, written: int, *operands: int) -> Work:
    """Return a product's work; `operands` are the arguments read, the first gives the type."""
    dtype = call.dtype(operands[0])
    each, parts = (8, 2) if is_complex(dtype) else (2, 1)
    moved = moved_bytes(call, *operands) + written * call.itemsize_of(operands[0])
    return Work(each * multiply_adds, parts * adds, moved)


@formula_for("mm bmm _int_mm mkldnn::_linear mkldnn::_mm")
def mm(call: OpCall) -> Work:
    """`a @ b`, also of batches: every element of a meets every column of b."""
    a, b = call.shapes[:2]
    return _work(call, prod(a) * b[-1], 0, prod(a[:-1]) * b[-1], 0, 1)


@formula_for("addmm~ baddbmm~ sspaddmm _addmm_activation")
def addmm(call: OpCall) -> Work:
    """`bias + a @ b`, also of batches: one add per output element, and the activation if fused."""
    _, a, b = call.shapes[:3]
    written = prod(a[:-1]) * b[-1]
    each = 2 if call.op.endswith("_activation") else 1
    return _work(call, prod(a) * b[-1], each * written, written, 1, 2, 0)


@formula_for("addbmm~")
def addbmm(call: OpCall) -> Work:
    """`bias + Σ a[i] @ b[i]`: the sum over the batch belongs to the contraction."""
    _, (batch, m, k), (_, _, n) = call.shapes[:3]
    return _work(call, batch * m * k * n, m * n, m * n, 1, 2, 0)


@formula_for("matmul linalg_matmul __matmul__")
def matmul(call: OpCall) -> Work:
    """Vectors, matrices and batches, broadcast: every output element sums k multiply-adds."""
    a, b = call.shapes[:2]
    left, right = a if len(a) > 1 else (1, *a), b if len(b) > 1 else (*b, 1)
    written = prod(broadcast(left[:-2], right[:-2])) * left[-2] * right[-1]
    return _work(call, written * left[-1], 0, written, 0, 1)


@formula_for("linear mkldnn_linear mkldnn::_linear_pointwise")
def linear(call: OpCall) -> Work:
    """`x @ wᵀ + bias`: in_features multiply-adds per output, one add with bias."""
    x, weight = call.shape(0), call.shape(1)
    written = prod(x[:-1]) * (weight[0] if len(weight) > 1 else 1)
    return _work(call, written * x[-1], written if call.has(2) else 0, written, 0, 1, 2)


@formula_for("mv")
def mv(call: OpCall) -> Work:
    """A matrix times a vector: one multiply-add per element of the matrix."""
    m, k = call.shape(0)
    return _work(call, m * k, 0, m, 0, 1)


@formula_for("addmv~")
def addmv(call: OpCall) -> Work:
    """`bias + a @ v`."""
    m, k = call.shape(1)
    return _work(call, m * k, m, m, 1, 2, 0)


@formula_for("dot vdot linalg_vecdot")
def dot(call: OpCall) -> Work:
    """Σ a·b over the last axis."""
    shape = broadcast(call.shape(0), call.shape(1))
    return _work(call, prod(shape), 0, prod(shape[:-1]), 0, 1)


@formula_for("inner")
def inner(call: OpCall) -> Work:
    """The last axes of both are summed over; all others meet all others."""
    a, b = call.shapes[:2]
    written = prod(a[:-1]) * prod(b[:-1])
    return _work(call, written * (a[-1] if a else 1), 0, written, 0, 1)


@formula_for("addr~")
def addr(call: OpCall) -> Work:
    """`bias + v ⊗ w`: one multiply-add per output element."""
    written = elements(call, 1) * elements(call, 2)
    return _work(call, written, 0, written, 1, 2, 0)


@formula_for("tensordot")
def tensordot(call: OpCall) -> Work | None:
    """The axes named are summed over; all others meet all others."""
    a, b, axes, other = call.shape(0), call.shape(1), call.integers(2), call.integers(3)
    if axes is None or other is None:
        return None
    depth = prod(a[axis] for axis in axes)
    written = prod(a) * prod(b) // max(depth, 1) ** 2
    return _work(call, written * depth, 0, written, 0, 1)


@formula_for("einsum chain_matmul linalg_multi_dot _trilinear")
def glue(_call: OpCall) -> None:
    """Not determined by the call (no equation is recorded): the products below are counted."""


@formula_for("bilinear")
def bilinear(call: OpCall) -> Work:
    """x₁ᵀ·W·x₂ per row and output: in₁·in₂ multiply-adds, then in₂."""
    x, (out, in1, in2) = call.shape(0), call.shape(2)
    written = prod(x[:-1]) * out
    return _work(call, written * (in1 + 1) * in2, written * call.has(3), written, 0, 1, 2, 3)


@formula_for("_scaled_mm _scaled_mm_v2")
def scaled_mm(call: OpCall) -> Work:
    """An 8-bit (or narrower) product under its own dtype; a bias is one add per output."""
    (m, k), (_, n) = call.shape(0), call.shape(1)
    return _work(call, m * k * n, m * n if call.has(4) else 0, m * n, 0, 1)


@formula_for("_grouped_mm _scaled_grouped_mm _scaled_grouped_mm_v2")
def grouped_mm(call: OpCall) -> Work:
    """Every row (or column, or slice of the sum) belongs to one group: dense but for the groups."""
    a, b = call.shape(0), call.shape(1)
    width = b[-1]
    multiply_adds = prod(a) * width
    written = prod(a[:-1]) * width
    if len(a) == len(b) == 2 and (groups := call.shape(2) or call.shape(4)):
        written *= prod(groups)
    return _work(call, multiply_adds, 0, written, 0, 1)


@formula_for("_weight_int8pack_mm")
def weight_int8pack_mm(call: OpCall) -> Work:
    """`x @ wᵀ` with 8-bit weights, one scale per output channel."""
    (m, k), (n, _) = call.shapes[:2]
    return _work(call, m * k * n, m * n, m * n, 0, 1, 2)
