"""Formulas of normalisation not in per_element.csv; n is the number of elements of the input.

Terms per channel or row (a root, an update of running statistics) are left out, as in the
conventions of ARCHITECTURE.md.
"""

from functools import partial

from flopprof.formulas import OpCall, Work
from flopprof.formulas.ops import _elements as el

op_formula = partial(el.formula_for, kind="normalisation")


@op_formula("{,native_,cudnn_,miopen_}batch_norm _native_batch_norm_legit{,_functional}")
@op_formula("_batch_norm_impl_index instance_norm")
def batch_norm(call: OpCall) -> Work:
    """On the batch's statistics 5n, + n with weight, + n with bias; on running ones 2n (folded).

    `training` (instance norm: `use_input_stats`) is argument 5, or 3 without running statistics.
    """
    training = call.flag(5) if call.flag(5) is not None else call.flag(3)
    size = el.elements(call, 0)
    trained = 5 + call.count(1, 2)
    at_most = trained * size if training is None else None
    return el.vector_work(call, size * (trained if training else 2), 0, 1, 2, 0, at_most=at_most)


def _gradients(call: OpCall, index: int, gradients: int) -> list[bool]:
    """Return which gradients the output mask at `index` asks for: all where it is not known."""
    mask = [part.strip() in ("True", "true", "1") for part in call.value(index)[1:-1].split(",")]
    return mask if len(mask) == gradients else [True] * gradients


@op_formula("native_batch_norm_backward batch_norm_backward _batch_norm_impl_index_backward")
def batch_norm_backward(call: OpCall) -> Work:
    """In training 9n, in eval n; where only γ's or β's gradient is wanted 4n and n; see there.

    x̂ = (x − μ)/σ costs 2, g·x̂ 1, the sums of g·x̂ (γ's gradient) and of g (β's) 1 each, and
    `γ/σ·(g − Σg/m − x̂·Σg·x̂/m)` a multiply, two subtracts and a scale, all that is left in eval.
    """
    impl = call.op.startswith("aten::_batch_norm_impl")
    first = 1 if impl else 0  # argument 0 is the implementation's number
    x, gamma, beta = _gradients(call, first + 9, 3)
    train = call.flag(first + 7)
    size = el.elements(call, first)
    moved = [first, first + 1, first + 2]
    if x:
        moved.append(first)
    if train is None:
        return el.vector_work(call, size, *moved, at_most=9 * size)
    cost = (1 if x else 0) + (4 if gamma else 0) + (1 if beta else 0)
    if train and x:
        cost = 9
    return el.vector_work(call, size * cost, *moved)


@op_formula("native_layer_norm_backward native_group_norm_backward")
def layer_norm_backward(call: OpCall) -> Work:
    """9n, + n with weight, and for its gradient 2n, for the bias's n.

    g·γ (with weight), x̂ 2, g·x̂ 1, two sums, multiply, two subtracts, scale. γ's gradient sums over
    other axes: multiply, sum, and x̂'s 2 where the input's gradient has not made it.
    """
    layer = "layer" in call.op
    weight = 5 if layer else 4
    x, gamma, beta = _gradients(call, 7 if layer else 9, 3)
    moved = [0, 1, weight]
    cost = 0
    if x:
        moved.append(0)
        cost += 9 + call.count(weight)
    if gamma and call.has(weight):
        cost += 2 if x else 4
    if beta and (not layer or call.has(6)):
        cost += 1
    return el.vector_work(call, cost * el.elements(call, 0), *moved)


@op_formula("_fused_rms_norm_backward")
def rms_norm_backward(call: OpCall) -> Work:
    """6n, + n with weight, and for its gradient 2n.

    g·γ (with weight), x̂ = x/rms, g·x̂, sum, multiply, subtract, scale; γ's: multiply, sum.
    """
    x, gamma = _gradients(call, 5, 2)
    moved = [0, 1, 4]
    cost = 0
    if x:
        moved.append(0)
        cost += 6 + call.count(4)
    if gamma and call.has(4):
        cost += 2 if x else 3
    return el.vector_work(call, cost * el.elements(call, 0), *moved)
