"""Formulas of normalisation not in per_element.csv; n is the number of elements of the input.

Terms per channel or row (a root, an update of running statistics) are left out, as in the
conventions of ARCHITECTURE.md.
"""

from flopprof.formulas import OpCall, Work
from flopprof.formulas.ops import _elements as el


@el.formula_for("{,native_,cudnn_,miopen_}batch_norm _native_batch_norm_legit{,_functional}")
@el.formula_for("_batch_norm_impl_index instance_norm")
def batch_norm(call: OpCall) -> Work:
    """On the batch's statistics 5n, + n with weight, + n with bias; on running ones 2n (folded).

    `training` (instance norm: `use_input_stats`) is argument 5, or 3 without running statistics.
    """
    training = call.flag(5) if call.flag(5) is not None else call.flag(3)
    size, trained = el.elements(call, 0), 5 + call.has(1) + call.has(2)
    at_most = trained * size if training is None else None
    return el.vector_work(call, size * (trained if training else 2), 0, 1, 2, 0, at_most=at_most)


def _wanted(call: OpCall, index: int, gradients: int) -> list[bool]:
    """Return which gradients the output mask at `index` asks for: all where it is not known."""
    known = [part.strip() in ("True", "true", "1") for part in call.value(index)[1:-1].split(",")]
    return known if len(known) == gradients else [True] * gradients


@el.formula_for("native_batch_norm_backward batch_norm_backward _batch_norm_impl_index_backward")
def batch_norm_backward(call: OpCall) -> Work:
    """In training 9n, in eval n; where only γ's or β's gradient is wanted 4n and n; see there.

    x̂ = (x − μ)/σ costs 2, g·x̂ 1, the sums of g·x̂ (γ's gradient) and of g (β's) 1 each, and
    `γ/σ·(g − Σg/m − x̂·Σg·x̂/m)` a multiply, two subtracts and a scale, all that is left in eval.
    """
    first = int(call.op.startswith("aten::_batch_norm_impl"))  # follows the implementation's number
    x, gamma, beta = _wanted(call, first + 9, 3)
    train, size = call.flag(first + 7), el.elements(call, first)
    cost = 1 if train is None else 9 if train and x else x + 4 * gamma + beta
    moved = (first, first + 1, first + 2, *[first] * x)
    at_most = 9 * size if train is None else None
    return el.vector_work(call, size * cost, *moved, at_most=at_most)


@el.formula_for("native_layer_norm_backward native_group_norm_backward")
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
    return el.vector_work(call, cost * el.elements(call, 0), 0, 1, weight, *[0] * x)


@el.formula_for("_fused_rms_norm_backward")
def rms_norm_backward(call: OpCall) -> Work:
    """6n, + n with weight, and for its gradient 2n.

    g·γ (with weight), x̂ = x/rms, g·x̂, sum, multiply, subtract, scale; γ's: multiply, sum.
    """
    x, gamma = _wanted(call, 5, 2)
    cost = (6 + call.has(4)) * x + (2 if x else 3) * (gamma and call.has(4))
    return el.vector_work(call, cost * el.elements(call, 0), 0, 1, 4, *[0] * x)
