"""Formulas of normalisation and the softmax family; n is the number of elements of the input.

Terms per channel or row (a root, an update of running statistics) are left out, as in the
conventions of ARCHITECTURE.md.
"""

from flopprof.formulas import OpCall, Work
from flopprof.formulas.ops._elements import (
    elements,
    formula_for,
    moved_bytes,
    per_input,
    per_output,
)

# Maximum, subtract, exp, sum, divide (of log-softmax: log, subtract).
per_output(
    __name__,
    """
    5 | 1 | float | softmax _softmax log_softmax _log_softmax special_softmax special_log_softmax
        _safe_softmax _masked_softmax
    """,
)
# Layer, group and training's batch norm: mean, subtract, square, sum, scale, and one for each of
# weight and bias; RMS norm: square, sum, scale, and one for the weight. On running statistics two.
# Softmax's backward: y·(g − Σ g·y), log-softmax's g − eʸ·Σ g, four each. Synchronised batch norm
# in parts: mean, subtract, square, sum; subtract, scale, weight, bias; backward x̂ (2), g·x̂ and two
# sums; x̂ again, multiply, two subtracts, scale; of every process and channel 13 to merge them
# (variance 3, difference, three for the mean, four for the squares, two weights). Weight
# norm g·v/‖v‖: norm 2, scale; backward Σ g·v 2, multiply, subtract, scale. renorm: norm 2, scale.
# Quantised batch norm is integer work.
per_input(
    __name__,
    """
    5?2?3 | 0 | 0 2 3 0 | layer_norm native_layer_norm group_norm
    5?1?2 | 0 | 0 1 2 0 | native_group_norm _batch_norm_with_update
        _batch_norm_with_update_functional
    3?2 | 0 | 0 2 0 | rms_norm _fused_rms_norm
    2 | 0 | 0 1 2 0 | _batch_norm_no_update _native_batch_norm_legit_no_training
    4 | 0 | 0 1 0 | _softmax_backward_data _log_softmax_backward_data _masked_softmax_backward
    4 | 0 | 0 | batch_norm_stats batch_norm_update_stats
    2?1?2 | 0 | 0 1 2 0 | batch_norm_elemt
    5 | 0 | 0 1 | batch_norm_backward_reduce
    6 | 0 | 0 1 0 | batch_norm_backward_elemt
    13 | 1 | 1 2 | batch_norm_gather_stats batch_norm_gather_stats_with_counts
    9 | 0 | 0 1 2 0 | cudnn_batch_norm_backward miopen_batch_norm_backward
    3 | 0 | 0 1 0 | _weight_norm _weight_norm_interface
    5 | 0 | 0 1 2 0 | _weight_norm_interface_backward
    3 | 0 | 0 0 | renorm~
    0 | 0 | 0 0 | quantized_batch_norm quantized::batch_norm quantized::batch_norm_relu
        quantized::batch_norm1d quantized::batch_norm1d_relu quantized::batch_norm2d
        quantized::batch_norm2d_relu quantized::batch_norm3d quantized::batch_norm3d_relu
        onednn::qbatch_norm2d
    """,
)


@formula_for(
    """
    batch_norm _batch_norm_impl_index native_batch_norm cudnn_batch_norm miopen_batch_norm
    _native_batch_norm_legit _native_batch_norm_legit_functional instance_norm
    """
)
def batch_norm(call: OpCall) -> Work:
    """On the batch's statistics 5n, + n with weight, + n with bias; on running ones 2n (folded).

    `training` (instance norm: `use_input_stats`) is argument 5, or 3 without running statistics.
    """
    training = call.flag(5) if call.flag(5) is not None else call.flag(3)
    size, trained = elements(call, 0), 5 + call.has(1) + call.has(2)
    return Work(
        vector_flops=size * (trained if training else 2),
        min_bytes=moved_bytes(call, 0, 1, 2, 0),
        flops_at_most=trained * size if training is None else None,
    )


def _wanted(call: OpCall, index: int, gradients: int) -> list[bool]:
    """Return which gradients the output mask at `index` asks for: all where it is not known."""
    known = [part.strip() in ("True", "true", "1") for part in call.value(index)[1:-1].split(",")]
    return known if len(known) == gradients else [True] * gradients


@formula_for("native_batch_norm_backward batch_norm_backward _batch_norm_impl_index_backward")
def batch_norm_backward(call: OpCall) -> Work:
    """In training 9n, in eval n; where only γ's or β's gradient is wanted 4n and n; see there.

    x̂ = (x − μ)/σ costs 2, g·x̂ 1, the sums of g·x̂ (γ's gradient) and of g (β's) 1 each, and
    `γ/σ·(g − Σg/m − x̂·Σg·x̂/m)` a multiply, two subtracts and a scale, all that is left in eval.
    """
    first = int(call.op.startswith("aten::_batch_norm_impl"))  # follows the implementation's number
    x, gamma, beta = _wanted(call, first + 9, 3)
    train, size = call.flag(first + 7), elements(call, first)
    cost = 9 if train and x else x + 4 * gamma + beta
    return Work(
        vector_flops=size * (1 if train is None else cost),
        min_bytes=moved_bytes(call, first, first + 1, first + 2, *[first] * x),
        flops_at_most=9 * size if train is None else None,
    )


@formula_for("native_layer_norm_backward native_group_norm_backward")
def layer_norm_backward(call: OpCall) -> Work:
    """9n, + n with weight, and for its gradient 2n, for the bias's n.

    g·γ (with weight), x̂ 2, g·x̂ 1, two sums, multiply, two subtracts, scale. γ's gradient sums over
    other axes: multiply, sum, and x̂'s 2 where the input's gradient has not made it.
    """
    layer = "layer" in call.op
    weight = 5 if layer else 4
    x, gamma, beta = _wanted(call, 7 if layer else 9, 3)
    gamma, beta = gamma and call.has(weight), beta and (not layer or call.has(6))
    cost = (9 + call.has(weight)) * x + (2 if x else 4) * gamma + beta
    moved = moved_bytes(call, 0, 1, weight, *[0] * x)
    return Work(vector_flops=cost * elements(call, 0), min_bytes=moved)


@formula_for("_fused_rms_norm_backward")
def rms_norm_backward(call: OpCall) -> Work:
    """6n, + n with weight, and for its gradient 2n.

    g·γ (with weight), x̂ = x/rms, g·x̂, sum, multiply, subtract, scale; γ's: multiply, sum.
    """
    x, gamma = _wanted(call, 5, 2)
    cost = (6 + call.has(4)) * x + (2 if x else 3) * (gamma and call.has(4))
    moved = moved_bytes(call, 0, 1, 4, *[0] * x)
    return Work(vector_flops=cost * elements(call, 0), min_bytes=moved)
