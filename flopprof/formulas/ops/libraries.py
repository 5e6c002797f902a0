"""Formulas of vector work in serving, training and quantisation libraries.

Where a library's schemas differ by version, arguments are found by what they are. Products and
attention are in places.json.
"""

from dataclasses import replace
from functools import partial

from flopprof import dtypes
from flopprof.formulas import OpCall, Work
from flopprof.formulas.ops import _elements as el

op_formula = partial(el.formula_for, kind="other")
norm_formula = partial(el.formula_for, kind="normalisation")


@op_formula("_C::silu_and_mul _C::gelu_and_mul _C::gelu_tanh_and_mul")
@op_formula("sgl_kernel::silu_and_mul sgl_kernel::gelu_and_mul sgl_kernel::gelu_tanh_and_mul")
def gated(call: OpCall) -> Work:
    """(output, input of twice its width): of each output an activation and a product."""
    size = min(el.elements(call, 0), el.elements(call, 1))
    return el.vector_work(call, 2 * size, 0, 1)


@norm_formula("_C::rms_norm sgl_kernel::rmsnorm aiter::rms_norm_cu")
def rms_norm_into(call: OpCall) -> Work:
    """(output, input, weight): square, sum, scale, weight."""
    return el.vector_work(call, 4 * el.elements(call, 1), 0, 1, 2)


@norm_formula("aiter::rms_norm aiter::rmsnorm2d_fwd vllm::rocm_aiter_rms_norm")
@norm_formula("vllm::rocm_aiter_rms_norm_impl")
def rms_norm(call: OpCall) -> Work:
    """(input, weight): square, sum, scale, weight."""
    return el.vector_work(call, 4 * el.elements(call, 0), 0, 0, 1)


@norm_formula("_C::fused_add_rms_norm sgl_kernel::fused_add_rmsnorm")
@norm_formula("aiter::fused_add_rms_norm_cu aiter::add_rmsnorm")
def add_rms_norm_in_place(call: OpCall) -> Work:
    """(input, residual, weight), both written: their sum 1, and its norm 4."""
    return el.vector_work(call, 5 * el.elements(call, 0), 0, 1, 2, 0, 1)


@norm_formula("aiter::rmsnorm2d_fwd_with_add aiter::rmsnorm2d_fwd_with_add_ck")
def add_rms_norm(call: OpCall) -> Work:
    """(output, input, residual, residual's output, weight): the sum 1, and its norm 4."""
    return el.vector_work(call, 5 * el.elements(call, 1), *range(5))


@norm_formula("vllm::rocm_aiter_rmsnorm2d_fwd_with_add")
def add_rms_norm_returned(call: OpCall) -> Work:
    """(input, residual, weight), returning both: the sum 1, and its norm 4."""
    return el.vector_work(call, 5 * el.elements(call, 0), 0, 1, 2, 0, 1)


@norm_formula("aiter::{,_}groupnorm_run")
def group_norm(call: OpCall) -> Work:
    """Mean, subtract, square, sum, scale: 5 of each element; weight and bias one each.

    The first argument is the input, or the output of its shape; weight and bias have one element
    per channel.
    """
    channels = call.shape(0)[1:2]
    affine = [i for i in range(1, len(call.shapes)) if call.has(i) and call.shape(i) == channels]
    return el.vector_work(call, (5 + len(affine)) * el.elements(call, 0), 0, 0, *affine)


@op_formula("_C::rotary_embedding sgl_kernel::rotary_embedding")
@op_formula("sgl_kernel::apply_rope_pos_ids_cos_sin_cache aiter::rotary_embedding_fwd")
@op_formula("aiter::rope_cached_positions_2c_fwd_impl")
def rotary(call: OpCall) -> Work:
    """Of each element of query and key two products and a sum: `x·cos ± y·sin`.

    At most all elements: only the first of a head may be rotated. Before them may be positions,
    which are integers, or in their place two outputs of their shapes.
    """
    positions_first = not el.counts(OpCall("", (), 4, (call.dtype(0),)))
    first = 1 if positions_first else 0
    size = el.elements(call, first) + el.elements(call, first + 1)
    read = (first, first + 1, first, first + 1)
    return el.vector_work(call, 0, *read, at_most=3 * size)


@op_formula("aiter::rope_fwd_impl")
def rotary_of_one(call: OpCall) -> Work:
    """(output, input, angles): two products and a sum of each element, at most of all."""
    return el.vector_work(call, 0, 0, 1, at_most=3 * el.elements(call, 1))


@op_formula("torchao::dequantize_affine")
def dequantize_affine(call: OpCall) -> Work:
    """(input, block sizes, scale, zero point): subtract the zero point, where there is one; scale.

    The input is of integers that stand for real numbers.
    """
    return _quantised(call, 1 + call.count(3), 2, 3)


@op_formula("torchao::quantize_affine")
def quantize_affine(call: OpCall) -> Work:
    """(input, block sizes, scale, zero point): divide, add the zero point; two clamps."""
    return _quantised(call, 3 + call.count(3), 2, 3)


@op_formula("torchao::quantize_affine_float8 torchao::dequantize_affine_float8")
def float8(call: OpCall) -> Work:
    """(input, scale): a product; quantising, two clamps."""
    return _quantised(call, 1 if "dequantize" in call.op else 3, 1)


@op_formula("torchao::choose_qparams_affine torchao::choose_scale_float8")
def choose_scale(call: OpCall) -> Work:
    """A minimum and a maximum, or the absolute value and a maximum, of each element."""
    return el.vector_work(call, 2 * el.elements(call, 0), 0)


def _quantised(call: OpCall, flops: int, *read: int) -> Work:
    """Return so much of each element of argument 0, whatever its type."""
    size = el.elements(call, 0)
    work = el.vector_work(call, flops * size, 0, *read)
    wider = max(call.itemsize_of(index) for index in (0, *read))
    return replace(work, min_bytes=work.min_bytes + size * wider)


@op_formula("fbgemm::FloatToFP8RowwiseQuantized fbgemm::quantize_fp8_per_{row,tensor,col}")
def to_fp8(call: OpCall) -> Work:
    """Absolute value, maximum and scale of each element, which becomes a byte."""
    return _to_bytes(call, 3)


@op_formula("fbgemm::{Float,Half,FloatOrHalf}ToFused8BitRowwiseQuantized")
def to_fused_8bit(call: OpCall) -> Work:
    """Minimum, maximum, subtract and scale of each element, which becomes a byte."""
    return _to_bytes(call, 4)


@op_formula("fbgemm::FloatToHFP8Quantized")
def to_hfp8(call: OpCall) -> Work:
    """Each element clamped; below the smallest normal number something is added, too."""
    size = el.elements(call, 0)
    return replace(_to_bytes(call, 1), flops_at_most=2 * size)


def _to_bytes(call: OpCall, flops: int) -> Work:
    size = el.elements(call, 0)
    return Work(vector_flops=flops * size, min_bytes=el.moved_bytes(call, 0) + size)


@op_formula("fbgemm::FP8RowwiseQuantizedToFloat fbgemm::HFP8QuantizedToFloat")
@op_formula("fbgemm::Fused8BitRowwiseQuantizedToFloat")
def rows_to_float(call: OpCall) -> Work:
    """(rows of bytes, their scale at the end of each): a product of each element, at most a shift.

    Which of the bytes are elements, the version decides: all of them at most.
    """
    size = el.elements(call, 0)
    work = el.vector_work(call, 0, 0, at_most=2 * size)
    return replace(work, min_bytes=work.min_bytes + 4 * size)


_OPTIMIZERS = (
    "{,approx_}rowwise_adagrad{,_with_counter,_with_weight_decay} {approx_,}sgd adagrad adam lamb "
    "lars_sgd partial_rowwise_{adam,lamb} none"
)


def _names(pattern: str) -> str:
    """Return the names of a pattern with OPTIMIZER in it, of each."""
    return " ".join(pattern.replace("OPTIMIZER", name) for name in _OPTIMIZERS.split())


@op_formula("fbgemm::split_embedding_codegen_forward_{un,}weighted{,_vbe}{,_pt2,_cuda,_cpu}")
@op_formula(_names("fbgemm::split_embedding_codegen_lookup_OPTIMIZER_function{,_pt2,_cpu}"))
def embedding_lookup(call: OpCall) -> Work | None:
    """Each index looked up adds a row to its bag: one per element, two if weighted.

    A mean scales each bag. Tables may be of several widths, and which one an index is of, its place
    decides: then at most the widest, at least nothing. Two numbers in a row are the sum of the
    widths and the widest; indices, their offsets, the kind of pooling and weights follow.
    """
    places = range(len(call.shapes))
    at = next((i for i in places if call.integer(i) and call.integer(i + 1)), None)
    if at is None:
        return None
    total = call.integer(at) or 0
    widest = call.integer(at + 1) or 0
    tables = el.elements(call, at - 1) - 1  # the widths' offsets
    indices_at = _first_integers(call, at + (4 if "lookup" in call.op else 2))
    if indices_at is None:
        return None
    indices = el.elements(call, indices_at)
    bags = el.elements(call, indices_at + 1) - 1
    pooling = call.integer(indices_at + 2)
    weights_at = indices_at + 3
    is_weighted = dtypes.is_floating(call.dtype(weights_at))
    is_weighted = is_weighted and el.elements(call, weights_at) == indices
    rows = 2 if "_weighted" in call.op or is_weighted else 1
    flops = rows * indices * widest
    if pooling == _MEAN:
        flops += bags * widest
    if pooling == _NO_POOLING:
        flops = 0
    if tables * widest == total:
        return Work(vector_flops=flops, min_bytes=indices * widest * call.itemsize)
    return Work(flops_at_most=flops)


_MEAN = 1  # fbgemm's numbers for kinds of pooling; a sum is 0
_NO_POOLING = 2


def _first_integers(call: OpCall, index: int) -> int | None:
    """Return the place of the first tensor of integers from argument `index` on."""
    places = range(index, len(call.shapes))
    return next((at for at in places if call.dtype(at) in ("int64", "int32")), None)


# LAMB is the dearest: the gradient weighted and summed 2, moments 3 and 4, their corrections 2,
# root, ε, quotient 3, decay 2, squares of both norms summed 4, step 3; stochastic rounding 1.
_MOST_OF_AN_UPDATE = 24


@op_formula(
    _names("fbgemm::split_embedding_backward_codegen_OPTIMIZER_{un,}weighted_exact{,_vbe}_cuda")
)
def embedding_backward(call: OpCall) -> Work | None:
    """Rows of gradients are summed and update the rows looked up: how many, the values decide.

    At most each index its own row, of the widest table; the widest stands before the indices.
    """
    at = next((i for i in range(len(call.shapes)) if call.integer(i)), None)
    if at is None:
        return None
    indices_at = _first_integers(call, at + 3)
    if indices_at is None:
        return None
    updated = el.elements(call, indices_at) * (call.integer(at) or 0)
    return Work(flops_at_most=_MOST_OF_AN_UPDATE * updated)
