"""Formulas of products of matrices and vectors: two FLOPs per multiply-add, eight if complex.

`beta·bias + alpha·a@b` adds one FLOP per output element for the bias, and one for each factor
other than 1; a beta of 0 leaves the bias out. A product with a sparse operand, which a trace shows
as a shape without strides, is bounded by the dense one: its stored values are not recorded.
"""

from functools import partial
from math import isqrt, prod

from flopprof.formulas import OpCall, Work
from flopprof.formulas.ops._elements import broadcast, elements, formula_for
from flopprof.formulas.ops._shapes import (
    Places,
    bounded,
    contraction,
    factor,
    flags,
    formula_with_places,
    is_sparse,
)

op_formula = partial(formula_for, kind="matmul")


@op_formula("einsum chain_matmul linalg_multi_dot _trilinear _foreach_mm", looks_below=True)
@op_formula("linalg_pinv linalg_matrix_sqrth linalg_polar", looks_below=True)
@op_formula("_sparse_mm _sparse_addmm smm hspmm", looks_below=True)
def glue(_call: OpCall) -> None:
    """Not determined by the call (no equation is recorded): the products below are counted."""


@op_formula("linalg_matrix_exp")
def matrix_exponential(_call: OpCall) -> None:
    """Not determined by the call: values decide the series, whose sums of powers run in no op."""


@formula_with_places("linear_of_packed_weight", kind="matmul")
def packed_weight(_call: OpCall, _at: Places) -> None:
    """Not determined by the call: a trace shows nothing of a weight packed with its bias."""


def _at_most(call: OpCall, work: Work) -> Work:
    """Return `work`; as a bound where one of the first three arguments is sparse."""
    return bounded(Work(min_bytes=work.min_bytes), work) if is_sparse(call, 0, 1, 2) else work


@op_formula("mm bmm matmul linalg_matmul mv _int_mm quantized::matmul")
def matmul(call: OpCall) -> Work | None:
    """2·m·n·k for [m, k] and [k, n], for each batch, broadcast; vectors 2·k per output element.

    Numbers multiply. Sparse operands bound it; the ops below may say more.
    """
    a = call.shape(0)
    b = call.shape(1)
    if not a or not b:
        return None
    left = a if len(a) > 1 else (1, *a)
    right = b if len(b) > 1 else (*b, 1)
    written = prod(broadcast(left[:-2], right[:-2])) * left[-2] * right[-1]
    work = contraction(call, written * left[-1], written, (0, 1), result_type_at=2)
    if call.op == "aten::_int_mm":
        return Work(work.matmul_flops, 0, work.min_bytes + 3 * written)  # int8 in, int32 out
    return _at_most(call, work)


def _beta_alpha(call: OpCall) -> tuple[float, float]:
    """Return the factors of the bias and of the product, which follow three tensors.

    Between them may come a result type; after them, of `_addmm_activation`, which activation.
    """
    at = [index for index in range(3, len(call.shapes)) if not call.has(index)]
    if len(at) == 3 and not call.op.endswith("_activation"):
        del at[0]
    beta = factor(call, at[0]) if at else 1.0
    alpha = factor(call, at[1]) if len(at) > 1 else 1.0
    return beta, alpha


def _biased(call: OpCall, multiply_adds: int, written: int, *, products: int = 0) -> Work:
    """Return the work of `beta·bias + alpha·product`, the arguments 0, 1 and 2.

    `products` are the multiplications per output element of a product that contracts nothing.
    """
    beta, alpha = _beta_alpha(call)
    operands: tuple[int, ...] = (1, 2)
    adds = 0
    scalings = products
    if beta != 0:
        operands = (1, 2, 0)
        adds += 1
    if call.op.endswith("_activation"):
        adds += 1
    if beta not in (0, 1):
        scalings += 1
    if alpha != 1:
        scalings += 1
    work = contraction(
        call, multiply_adds, written, operands, adds=adds * written, scalings=scalings * written
    )
    return _at_most(call, work)


@op_formula("addmm~ baddbmm~ addmv~ addbmm~ _addmm_activation sparse_sampled_addmm sspaddmm")
def addmm(call: OpCall) -> Work:
    """`bias + a @ b`, [m, k] and [k, n]: 2·m·n·k, bias m·n, an activation m·n; batches, a vector.

    In `addbmm` the sum over the batch belongs to the contraction.
    """
    a = call.shape(1)
    b = call.shape(2)
    rows = a[1] if call.op.startswith("aten::addbmm") else prod(a[:-1])
    columns = b[-1] if len(b) > 1 else 1
    return _biased(call, prod(a) * columns, rows * columns)


@op_formula("addr~")
def addr(call: OpCall) -> Work:
    """`bias + v ⊗ w`: one product and one add per output, nothing is contracted."""
    return _biased(call, 0, elements(call, 1) * elements(call, 2), products=1)


@op_formula("linear inner")
def linear(call: OpCall) -> Work | None:
    """`x @ wᵀ + bias`: 2·rows·in·out, and with bias rows·out."""
    x = call.shape(0)
    weight = call.shape(1)
    if not x or not weight:
        return None
    written = prod(x[:-1]) * prod(weight[:-1])
    work = contraction(call, written * x[-1], written, (0, 1, 2), adds=written * call.count(2))
    return _at_most(call, work)


@formula_with_places("packed_linear", kind="matmul")
def packed_linear(call: OpCall, at: Places) -> Work | None:
    """2·rows·in·out: a linear on a weight in a library's format, or of 8 bits; `+ other` 1 each.

    Fused activations (their names are not recorded) and scaling to and from integers are left out.
    """
    x = call.shape(0)
    weight = elements(call, at["weight"])
    positions = prod(x[:-1])
    written = positions * (weight // max(x[-1], 1))
    return contraction(
        call,
        positions * weight,
        written,
        (0, at["weight"], at["bias"], at["other"]),
        adds=written * call.count(at["bias"], at["other"]),
        result_type_at=at["result_type"],
        quantised="result_type" in at,
    )


@op_formula("linear_backward mkldnn_linear_backward")
def linear_backward(call: OpCall) -> Work | None:
    """2·rows·in·out for the gradient of x, and of the weight; of the bias one add per output."""
    gradients = flags(call, 3)
    if gradients is None:
        return None
    of_x, of_weight, of_bias = gradients
    grad = elements(call, 1)
    weight = elements(call, 2)
    width = call.shape(1)[-1]
    read = [1]
    written = 0
    products = 0
    if of_weight or of_bias:
        read.append(0)
    if of_x:
        read.append(2)
        written += elements(call, 0)
        products += 1
    if of_weight:
        written += weight
        products += 1
    if of_bias:
        written += width
    multiply_adds = products * grad * call.shape(2)[-1]
    return contraction(call, multiply_adds, written, tuple(read), adds=grad if of_bias else 0)


@op_formula("dot vdot linalg_vecdot")
def dot(call: OpCall) -> Work:
    """Σ a·b over one axis of n, the last where none is named: 2n."""
    shape = broadcast(call.shape(0), call.shape(1))
    axis = call.integer(2)
    depth = shape[-1 if axis is None else axis]
    return contraction(call, prod(shape), prod(shape) // max(depth, 1), (0, 1))


@op_formula("tensordot")
def tensordot(call: OpCall) -> Work | None:
    """2·k·(others of a)·(others of b), k the product of the axes named."""
    a = call.shape(0)
    b = call.shape(1)
    axes = call.integers(2)
    others = call.integers(3)
    if axes is None or others is None:
        return None
    summed = [a[axis] for axis in axes]
    if summed != [b[axis] for axis in others]:
        return None  # an axis of one is broadcast: the other's is summed before
    depth = max(prod(summed), 1)
    columns = prod(b) // depth
    return contraction(call, prod(a) * columns, prod(a) // depth * columns, (0, 1))


@op_formula("bilinear")
def bilinear(call: OpCall) -> Work:
    """x₁ᵀ·W·x₂: 2·rows·out·(in₁·in₂ + in₂)."""
    x = call.shape(0)
    out, in1, in2 = call.shape(2)
    written = prod(x[:-1]) * out
    multiply_adds = written * (in1 + 1) * in2
    return contraction(call, multiply_adds, written, (0, 1, 2, 3), adds=written * call.count(3))


@formula_with_places("scaled", kind="matmul")
def scaled_mm(call: OpCall, at: Places) -> Work:
    """One scale per output element, where there are scales; a scale per block is left out.

    With groups, of [rows, k] @ [g, k, n] and [g, m, k] @ [k, columns] each row or column meets
    one group; [m, rows] @ [rows, n] makes one [m, n] per group; the ends are values, and
    what lies behind the last one counts. FP4 packs two elements in one.
    """
    first = at["first"]
    a = call.shape(first)
    b = call.shape(first + 1)
    groups = prod(call.shape(at["ends"])) if len(a) == len(b) == 2 else 1
    rows = a[-2] if len(b) == 2 else prod(a[:-1])
    packed = 2 if call.dtype(first).endswith("_x2") else 1
    written = rows * b[-1] * groups
    return contraction(
        call,
        rows * a[-1] * b[-1] * packed,
        written,
        (first, first + 1, at["bias"]),
        adds=written * call.count(at["bias"]),
        scalings=written if "scaled" in call.op else 0,
        result_type_at=at["result_type"],
    )


@op_formula("_weight_int8pack_mm")
def weight_int8pack_mm(call: OpCall) -> Work:
    """2·rows·in·out: `x @ wᵀ` with 8-bit weights, and one scale per output element."""
    (m, k), (n, _) = call.shapes[:2]
    return contraction(call, m * k * n, m * n, (0, 1, 2), scalings=m * n)


@op_formula("_weight_int4pack_mm _weight_int4pack_mm_for_cpu quantized::int4mm_packed_weight_cpu")
def weight_int4pack_mm(call: OpCall) -> Work:
    """`x @ wᵀ`, each packed weight shifted and scaled: 2·k·n. Scales are [groups, n, 2]."""
    m, k = call.shape(0)
    n = call.shape(3)[1]
    return contraction(call, m * k * n, m * n, (0, 1, 3), adds=k * n, scalings=k * n)


@op_formula("_dyn_quant_matmul_4bit")
def dyn_quant_matmul_4bit(call: OpCall) -> Work | None:
    """2·rows·k·n: (x, packed weight, block size, k, n); scaling is left out."""
    k = call.integer(3)
    n = call.integer(4)
    positions = prod(call.shape(0)[:-1])
    if k is None or n is None:
        return None
    return contraction(call, positions * k * n, positions * n, (0, 1))


@formula_with_places("semi_structured", kind="matmul")
def semi_structured(call: OpCall, at: Places) -> Work:
    """2·(stored values, m·k ÷ 2)·n: each stored value meets every column, of a linear every row.

    With their places cuSPARSELt stores 9/16 of the dense matrix, 10/16 of 8-bit elements.
    """
    stored = elements(call, at["stored"])
    dense = call.shape(at["dense"])
    compressed = call.op == "aten::_cslt_sparse_mm"
    if compressed:
        stored = stored * 8 // (10 if call.itemsize_of(at["stored"]) == 1 else 9)
    if call.op.endswith("_linear"):
        depth = dense[-1]
        columns = prod(dense[:-1])
    else:
        depth, columns = dense[-2:]
    written = 2 * stored // depth * columns
    read = [at["stored"], at["dense"], at["bias"]]
    scalings = 0
    if not compressed:
        read.append(at["stored"] + 1)  # where the stored values stand
    elif call.has(3):
        scalings = written
    return contraction(
        call,
        stored * columns,
        written,
        tuple(read),
        adds=written * call.count(at["bias"]),
        scalings=scalings,
    )


@formula_with_places("library_linear", kind="matmul")
def library_linear(call: OpCall, at: Places) -> Work | None:
    """A product of a serving or training library: 2·rows·k·n; scaling by blocks is left out.

    n is the last but one size of the weight [n, k], or the last of [k, n] or of its scales.
    """
    x = call.shape(at["input"])
    weight = call.shape(at["weight"])
    if len(x) < 2 or len(weight) < 2:
        return None
    written = prod(x[:-1]) * weight[at.get("columns", -2)]
    return contraction(
        call,
        written * x[-1] * at.get("packed", 1),
        written,
        (at["input"], at["weight"], at["bias"]),
        adds=written * call.count(at["bias"]),
    )


@formula_with_places("experts", kind="matmul")
def experts(call: OpCall, at: Places) -> Work | None:
    """A mixture's experts: 2·tokens·chosen·k·n for both products of each expert chosen for a token.

    [tokens, k] with weights [experts, gates, k] and [experts, k, n]; the activation is left out.
    """
    x, first, second = (call.shape(at[name]) for name in ("input", "first", "second"))
    if len(x) != 2 or len(first) != 3 or len(second) != 3:
        return None
    packed = x[1] // max(first[2], 1)  # of 4-bit weights, two in a byte
    pairs = prod(call.shape(at["chosen"]))
    read = (at["input"], at["first"], at["second"])
    return contraction(call, pairs * packed * (prod(first[1:]) + prod(second[1:])), prod(x), read)


@op_formula("tex_ts::te_gemm_ts")
def te_gemm(call: OpCall) -> Work:
    """Of A (0), B (5) and D (10), one being [m, k], [k, n] and [m, n], m·k·n is √(A·B·D)."""
    sizes = [elements(call, index) for index in (0, 5, 10)]
    return contraction(call, isqrt(prod(sizes)), sizes[2], (0, 5))
