"""Formulas of products of matrices and vectors: two FLOPs per multiply-add, eight if complex.

`beta·bias + alpha·a@b` adds one FLOP per output element for the bias, and one for each factor
other than 1; a beta of 0 leaves the bias out. A product with a sparse operand, which a trace shows
as a shape without strides, is bounded by the dense one: its stored values are not recorded.
"""

from math import prod

from flopprof.formulas import OpCall, Shape, Work
from flopprof.formulas.ops._elements import broadcast, elements, formula_for, rows
from flopprof.formulas.ops._shapes import bounded, contraction, factor, flags, is_sparse


@formula_for("einsum chain_matmul linalg_multi_dot _trilinear _foreach_mm")
@formula_for("_sparse_mm _sparse_addmm smm hspmm")
def glue(_call: OpCall) -> None:
    """Not determined by the call (no equation is recorded): the products below are counted."""


@formula_for("mm")
def mm(call: OpCall) -> Work | None:
    """`a @ b`: every element of a meets every column of b; sparse ones go on to `addmm`."""
    return None if is_sparse(call, 0, 1) else _product(call)


@formula_for("bmm _int_mm quantized::matmul")
def bmm(call: OpCall) -> Work:
    """`a @ b`, of batches or of integers."""
    work = _product(call)
    return bounded(Work(min_bytes=work.min_bytes), work) if is_sparse(call, 0, 1) else work


def _product(call: OpCall) -> Work:
    a, b = call.shapes[:2]
    written = prod(a[:-1]) * b[-1]
    work = contraction(call, prod(a) * b[-1], written, (0, 1), result_type_at=2)
    if call.op != "aten::_int_mm":
        return work
    return Work(work.matmul_flops, 0, work.min_bytes + 3 * written)  # int8 in, int32 out


def _beta_alpha(call: OpCall) -> tuple[float, float]:
    """Return the factors of the bias and of the product, which follow three tensors.

    Between them may come a result type; after them, of `_addmm_activation`, which activation.
    """
    at = [index for index in range(3, len(call.shapes)) if not call.has(index)]
    if len(at) == 3 and not call.op.endswith("_activation"):
        del at[0]
    beta, alpha, *_ = (*(factor(call, index) for index in at), 1.0, 1.0)
    return beta, alpha


def _biased(call: OpCall, multiply_adds: int, written: int, *, activations: int = 0) -> Work:
    """Return the work of `beta·bias + alpha·product`, the arguments 0, 1 and 2."""
    beta, alpha = _beta_alpha(call)
    adds = 1 if beta != 0 else 0
    scalings = (beta not in (0, 1)) + (alpha != 1)
    work = contraction(
        call,
        multiply_adds,
        written,
        (1, 2, 0) if adds else (1, 2),
        adds=(adds + activations) * written,
        scalings=scalings * written,
    )
    sparse = is_sparse(call, 0, 1, 2)
    return bounded(Work(min_bytes=work.min_bytes), work) if sparse else work


@formula_for("addmm~ baddbmm~ _addmm_activation sparse_sampled_addmm sspaddmm")
def addmm(call: OpCall) -> Work:
    """`bias + a @ b`, also of batches, perhaps with an activation: one FLOP per output."""
    _, a, b = call.shapes[:3]
    fused = call.op.endswith("_activation")
    return _biased(call, prod(a) * b[-1], prod(a[:-1]) * b[-1], activations=fused)


@formula_for("addbmm~")
def addbmm(call: OpCall) -> Work:
    """`bias + Σ a[i] @ b[i]`: the sum over the batch belongs to the contraction."""
    _, (batch, m, k), (_, _, n) = call.shapes[:3]
    return _biased(call, batch * m * k * n, m * n)


@formula_for("addmv~")
def addmv(call: OpCall) -> Work:
    """`bias + a @ v`."""
    m, k = call.shape(1)
    return _biased(call, m * k, m)


@formula_for("addr~")
def addr(call: OpCall) -> Work:
    """`bias + v ⊗ w`: one product and one add per output, nothing is contracted."""
    written = elements(call, 1) * elements(call, 2)
    beta, alpha = _beta_alpha(call)
    scalings = 1 + (alpha != 1) + (beta not in (0, 1))
    read = (1, 2, 0) if beta != 0 else (1, 2)
    adds = written * (beta != 0)
    return contraction(call, 0, written, read, adds=adds, scalings=scalings * written)


@formula_for("matmul linalg_matmul mv")
def matmul(call: OpCall) -> Work | None:
    """Vectors, matrices and batches, broadcast: every output element sums k multiply-adds."""
    a, b = call.shape(0), call.shape(1)
    if not a or not b or is_sparse(call, 0, 1):
        return None
    left, right = a if len(a) > 1 else (1, *a), b if len(b) > 1 else (*b, 1)
    written = prod(broadcast(left[:-2], right[:-2])) * left[-2] * right[-1]
    return contraction(call, written * left[-1], written, (0, 1))


@formula_for("linear")
def linear(call: OpCall) -> Work | None:
    """`x @ wᵀ + bias`: in_features multiply-adds per output, one add with bias."""
    x, weight = call.shape(0), call.shape(1)
    if not x or not weight or is_sparse(call, 0, 1):
        return None
    written = prod(x[:-1]) * (weight[0] if len(weight) > 1 else 1)
    adds = written * call.has(2)
    return contraction(call, written * x[-1], written, (0, 1, *[2] * call.has(2)), adds=adds)


# Where weight, bias and second operand are, of ops with so many arguments; else (x, weight, bias).
_PACKED = {
    ("mkl::_mkl_linear", 5): (2, 3, 99),
    ("mkldnn::_linear_pointwise", 5): (2, 3, 1),
    ("onednn::qlinear_pointwise", 13): (3, 6, 99),
    ("onednn::qlinear_pointwise", 18): (3, 7, 6),
}


@formula_for("mkldnn_linear onednn::linear_dynamic_fp16 mkl::_mkl_linear mkldnn::_linear_pointwise")
@formula_for("quantized::linear_dynamic_fp16_unpacked_weight onednn::qlinear_pointwise")
def packed_linear(call: OpCall) -> Work:
    """A linear on a weight in a library's own format, or of 8 bits, perhaps `+ other`.

    Fused activations (their names are not recorded) and scaling to and from integers are left out.
    """
    weight_at, *more = _PACKED.get((call.op, len(call.shapes)), (1, 2, 99))
    added = [index for index in more if call.has(index)]
    x, weight = call.shape(0), elements(call, weight_at)
    positions, written = prod(x[:-1]), prod(x[:-1]) * (weight // max(x[-1], 1))
    quantised = call.op.startswith("onednn::q")
    return contraction(
        call,
        positions * weight,
        written,
        (0, weight_at, *added),
        adds=written * len(added),
        result_type_at=more[0] + 3 if quantised else None,
        quantised=quantised,
    )


@formula_for("linear_backward mkldnn_linear_backward")
def linear_backward(call: OpCall) -> Work | None:
    """(x, grad_output, weight, mask): a product for x and the weight each, the bias one add."""
    wanted = flags(call, 3)
    if wanted is None:
        return None
    of_x, of_weight, of_bias = wanted
    grad, weight = elements(call, 1), elements(call, 2)
    width = call.shape(1)[-1]
    written = elements(call, 0) * of_x + weight * of_weight + width * of_bias
    multiply_adds = grad * call.shape(2)[-1] * (of_x + of_weight)
    read = (1, *[0] * (of_weight or of_bias), *[2] * of_x)
    return contraction(call, multiply_adds, written, read, adds=grad * of_bias)


@formula_for("dot vdot linalg_vecdot")
def dot(call: OpCall) -> Work:
    """Σ a·b over one axis, the last where none is named."""
    shape = broadcast(call.shape(0), call.shape(1))
    depth = shape[-1 if (named := call.integer(2)) is None else named]
    return contraction(call, prod(shape), prod(shape) // max(depth, 1), (0, 1))


@formula_for("inner")
def inner(call: OpCall) -> Work | None:
    """The last axes of both are summed over; all others meet all others."""
    a, b = call.shape(0), call.shape(1)
    if not a or not b:
        return None  # a number: it multiplies
    written = prod(a[:-1]) * prod(b[:-1])
    return contraction(call, written * a[-1], written, (0, 1))


@formula_for("tensordot")
def tensordot(call: OpCall) -> Work | None:
    """The axes named are summed over; all others meet all others."""
    a, b, axes, others = call.shape(0), call.shape(1), call.integers(2), call.integers(3)
    if axes is None or others is None:
        return None
    summed, summed_too = [a[axis] for axis in axes], [b[axis] for axis in others]
    if summed != summed_too:
        return None  # an axis of one is broadcast: the other's is summed before
    written = prod(_without(a, axes)) * prod(_without(b, others))
    return contraction(call, written * prod(summed), written, (0, 1))


def _without(shape: Shape, axes: Shape) -> Shape:
    named = {axis % len(shape) for axis in axes}
    return tuple(size for axis, size in enumerate(shape) if axis not in named)


@formula_for("bilinear")
def bilinear(call: OpCall) -> Work:
    """x₁ᵀ·W·x₂ per row and output: in₁·in₂ multiply-adds, then in₂."""
    x, (out, in1, in2) = call.shape(0), call.shape(2)
    written = prod(x[:-1]) * out
    read = (0, 1, 2, *[3] * call.has(3))
    return contraction(call, written * (in1 + 1) * in2, written, read, adds=written * call.has(3))


# first factor | bias | result type | ends of the groups | names; "-" for none
_SCALED = """
0 | 4 | 6 | - | _scaled_mm
0 | 8 | 9 | - | _scaled_mm_v2
1 | 0 | - | - | _scaled_addmm~
0 | 3 | 4 | 2 | _grouped_mm
0 | 5 | 7 | 4 | _scaled_grouped_mm
0 | 9 | 10 | 8 | _scaled_grouped_mm_v2
"""


def _register_scaled(first: int, bias: int, result_type: int, ends: int) -> None:
    def formula(call: OpCall) -> Work:
        """One scale per output element, where there are scales; a scale per block is left out.

        With groups, of [rows, k] @ [g, k, n] and [g, m, k] @ [k, columns] each row or column meets
        one group; [m, rows] @ [rows, n] makes one [m, n] per group; the ends are values, and
        what lies behind the last one counts. FP4 packs two elements in one.
        """
        a, b = call.shape(first), call.shape(first + 1)
        matrices = len(a) == len(b) == 2
        groups = prod(call.shape(ends)) if matrices else 1
        rows_of_a = a[-2] if len(b) == 2 else prod(a[:-1])
        packed = 2 if call.dtype(first).endswith("_x2") else 1
        written = rows_of_a * b[-1] * groups
        biased = call.has(bias)
        return contraction(
            call,
            rows_of_a * a[-1] * b[-1] * packed,
            written,
            (first, first + 1, *[bias] * biased),
            adds=written * biased,
            scalings=written * ("scaled" in call.op),
            result_type_at=result_type,
        )

    formula_for(_names)(formula)


for _columns, _names in rows(_SCALED):
    _register_scaled(*(int(text) if text != "-" else 99 for text in _columns))  # 99: no argument


@formula_for("_weight_int8pack_mm")
def weight_int8pack_mm(call: OpCall) -> Work:
    """`x @ wᵀ` with 8-bit weights, one scale per output element."""
    (m, k), (n, _) = call.shapes[:2]
    return contraction(call, m * k * n, m * n, (0, 1, 2), scalings=m * n)


@formula_for("_weight_int4pack_mm _weight_int4pack_mm_for_cpu quantized::int4mm_packed_weight_cpu")
def weight_int4pack_mm(call: OpCall) -> Work:
    """`x @ wᵀ`, each packed weight shifted and scaled: 2·k·n. Scales are [groups, n, 2]."""
    (m, k), n = call.shape(0), call.shape(3)[1]
    return contraction(call, m * k * n, m * n, (0, 1, 3), adds=k * n, scalings=k * n)


@formula_for("_dyn_quant_matmul_4bit")
def dyn_quant_matmul_4bit(call: OpCall) -> Work | None:
    """(x, packed weight, block size, k, n); scaling is left out."""
    k, n, positions = call.integer(3), call.integer(4), prod(call.shape(0)[:-1])
    if k is None or n is None:
        return None
    return contraction(call, positions * k * n, positions * n, (0, 1))


# stored values | dense factor | bias | names
_SEMI_STRUCTURED = """
0 | 2 | 9 | _sparse_semi_structured_mm
1 | 3 | 0 | _sparse_semi_structured_addmm
1 | 0 | 3 | _sparse_semi_structured_linear
0 | 1 | 2 | _cslt_sparse_mm
"""


def _register_semi_structured(stored_at: int, dense_at: int, bias_at: int) -> None:
    def formula(call: OpCall) -> Work:
        """Two of four values are stored, [m, k ÷ 2]; each meets every column, of a linear row.

        With their places cuSPARSELt stores 9/16 of the dense matrix, 10/16 of 8-bit elements.
        """
        stored, dense = elements(call, stored_at), call.shape(dense_at)
        compressed = call.op == "aten::_cslt_sparse_mm"
        if compressed:
            stored = stored * 8 // (10 if call.itemsize_of(stored_at) == 1 else 9)
        depth, columns = (
            (dense[-1], prod(dense[:-1])) if call.op.endswith("_linear") else dense[-2:]
        )
        written, biased = 2 * stored // depth * columns, call.has(bias_at)
        read = (stored_at, dense_at, *[bias_at] * biased, *[stored_at + 1] * (not compressed))
        scalings = written * (compressed and call.has(3))
        return contraction(
            call, stored * columns, written, read, adds=written * biased, scalings=scalings
        )

    formula_for(_names)(formula)


for _columns, _names in rows(_SEMI_STRUCTURED):
    _register_semi_structured(*map(int, _columns))
