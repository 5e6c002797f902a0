"""Formulas of losses: an elementwise part, and a reduction of n where there is one."""

from dataclasses import replace
from functools import partial
from math import prod

from flopprof.formulas import OpCall, Work
from flopprof.formulas.ops import _elements as el

op_formula = partial(el.formula_for, kind="other")


def _reduced(call: OpCall, flops: int, losses: int, reduction_at: int, *read: int) -> Work:
    """Return `flops`, and one more for each of `losses` unless they stay as they are ("none")."""
    reduction = call.integer(reduction_at)
    written = losses if reduction == 0 else 1
    at_most = flops + losses if reduction is None else None
    reduced = flops + (losses if reduction else 0)
    return el.vector_work(call, reduced, *read, written=written, at_most=at_most)


def elementwise_loss(call: OpCall, flops: int, operands: int, reduction_at: int) -> Work:
    """Return the work of `flops` for each element that the operands broadcast to, and the rest.

    Cross entropy has a weight; with logits `(w − 1)·t + 1`, and its product. Poisson's is
    `exp x − t·x`, or `x − t·log(x + ε)`, and Stirling's series.
    """
    if call.op.startswith("aten::binary_cross_entropy"):
        flops += call.count(2)
    if call.op == "aten::binary_cross_entropy_with_logits":
        flops += 3 * call.count(3)
    if call.op == "aten::poisson_nll_loss":
        flops += 1 if call.flag(2) is False else 0
        flops += 9 if call.flag(3) else 0
    size = el.size_of(call, operands)
    return _reduced(call, flops * size, size, reduction_at, *range(reduction_at))


@op_formula("multi_margin_loss")
def multi_margin_loss(call: OpCall) -> Work:
    """`Σ max(0, (margin − x[t]) + x)/C` of N rows: 3n + 2N; + n where p = 2, + n with weights."""
    size = el.elements(call, 0)
    losses = el.elements(call, 1)
    cost = (4 if el.number(call, 2) == 2 else 3) + call.count(4)
    return _reduced(call, cost * size + 2 * losses, losses, 5, 0, 1, 4)


@op_formula("multilabel_margin_loss multilabel_margin_loss_forward")
def multilabel_margin_loss(call: OpCall) -> Work:
    """Subtract, add, clamp and sum of every label with every other class: at most C² of each row.

    How many labels a row has is in the values.
    """
    *rest, classes = call.shape(0)
    at_most = prod(rest) * (4 * classes * classes + classes + 1)
    return el.vector_work(call, 0, 0, 1, at_most=at_most)


@op_formula("triplet_margin_loss")
def triplet_margin_loss(call: OpCall) -> Work | None:
    """Two distances (swap: three) of 4n: subtract, add ε, norm 2; subtract, add, clamp of each.

    The swap takes the smaller of two distances: one more of each.
    """
    if not el.is_real(call, 2):
        return None
    size = el.elements(call, 0)
    losses = prod(call.shape(0)[:-1])
    swaps = 1 if call.flag(6) else 0
    flops = (8 + 4 * swaps) * size + (3 + swaps) * losses
    return _reduced(call, flops, losses, 7, 0, 1, 2)


@op_formula("cosine_embedding_loss")
def cosine_embedding_loss(call: OpCall) -> Work | None:
    """Three dot products of 2n; and nine operations on each of the N pairs.

    Two ε, product, root and quotient; 1 − cos; cos − margin, clamp; their sum.
    """
    if not el.is_real(call, 2):
        return None
    size = el.elements(call, 0)
    losses = el.elements(call, 2)
    return _reduced(call, 6 * size + 9 * losses, losses, 4, 0, 1, 2)


@op_formula("cosine_similarity")
def cosine_similarity(call: OpCall) -> Work | None:
    """A dot product 2n, two norms 4n; two maxima with ε, their product and the quotient of each."""
    axis = call.integer(2)
    size = el.size_of(call, 2)
    if axis is None or not any(call.shapes[:2]):
        return None
    if axis >= 0:
        axis -= max(map(len, call.shapes[:2]))  # counted from the last
    length = max(shape[axis] for shape in call.shapes[:2] if len(shape) >= -axis)
    pairs = size // max(length, 1)
    return el.vector_work(call, 6 * size + 4 * pairs, 0, 1, written=pairs)


_MEAN = 1  # PyTorch's number for this reduction; "none" is 0, "sum" 2


def _per_target(call: OpCall) -> int:
    """Return FLOPs per target: negate; with weights (argument 2) multiply, and sum for a mean."""
    if not call.has(2):
        return 1
    return 3 if call.integer(3) == _MEAN else 2


@op_formula("nll_loss{,2d}{,_forward} nll_loss_nd")
def nll_loss(call: OpCall) -> Work:
    """Of each of N targets: negate (with class weights multiply), and their mean.

    A weighted mean divides by the sum of the weights: N more.
    """
    targets = el.elements(call, 1)
    flops = targets * _per_target(call)
    work = _reduced(call, flops, targets, 3, 1, 2)
    one_score_each = targets * call.itemsize_of(0)
    return replace(work, min_bytes=work.min_bytes + one_score_each)


@op_formula("nll_loss_backward nll_loss2d_backward")
def nll_loss_backward(call: OpCall) -> Work:
    """Of each of N targets: the negated gradient over N (with class weights multiplied)."""
    flops = (1 + call.count(3)) * el.elements(call, 2)
    return el.vector_work(call, flops, 0, 1, 2, 3)


@op_formula("cross_entropy_loss")
def cross_entropy_loss(call: OpCall) -> Work:
    """Log-softmax 5n; of N targets negate (with weights multiply, and sum the weights), mean.

    Smoothing the labels adds the sum of the n log-probabilities, N negations, their mean, and
    three operations that blend the two. Targets given as probabilities: multiply, sum, 2n (with
    weights 3n), then negate and mean; smoothing them 2n.
    """
    size = el.elements(call, 0)
    smooth = bool(el.number(call, 5))
    weights = call.count(2)
    if call.shape(0) == call.shape(1):
        classes_at = min(1, len(call.shape(0)) - 1)
        targets = prod(call.shape(0)[:classes_at] + call.shape(0)[classes_at + 1 :])
        flops = (7 + weights) * size + targets
        flops += 2 * size if smooth else 0
    else:
        targets = el.elements(call, 1)
        flops = 5 * size + _per_target(call) * targets
        if smooth:
            blend = targets + 3 if call.integer(3) else 3 * targets
            flops += (1 + weights) * size + targets + blend
    return _reduced(call, flops, targets, 3, 0, 1, 2)


_LABEL_TYPES = ("int64", "int32", "uint8")


@op_formula("torch_nn::_linear_cross_entropy_batch_chunked{,_no_reduction}")
def chunked_linear_cross_entropy(call: OpCall) -> Work | None:
    """The loss of N rows of scores `x @ wᵀ + bias`, n = N·C in all, and the gradients at once.

    A product 2·n·F, bias n, log-softmax 5n, of N targets negate and mean. With gradients N and 4n
    for that of the scores; for those of x and of w another product each, for that of the bias n.
    (x, w, targets, bias, class weights, …): not determined with class weights, smoothed labels, and
    probabilities for targets, nor for versions with other arguments.
    """
    reduces = not call.op.endswith("_no_reduction")
    if len(call.shapes) != (15 if reduces else 9):
        return None
    if call.dtype(2) not in _LABEL_TYPES or call.has(4) or (reduces and el.number(call, 7) != 0):
        return None
    (rows, width), classes = call.shape(0), call.shape(1)[0]
    scores = rows * classes
    flops = (5 + call.count(3)) * scores + (2 if reduces else 1) * rows
    gradients = [False, False, False]  # of x, weight and bias: made along
    if reduces:
        gradients = [call.flag(index) is True for index in (12, 13, 14)]
    of_x, of_weight, of_bias = gradients
    if any(gradients):
        flops += rows + 4 * scores
    if of_bias:
        flops += scores
    products = 1 + gradients[:2].count(True)
    written = rows * width if of_x else 0
    written += classes * width if of_weight else 0
    work = el.vector_work(call, flops, 0, 1, 2, 3, written=written)
    return replace(work, matmul_flops=2 * scores * width * products)


@op_formula("ctc_loss _ctc_loss _ctc_loss_backward")
def ctc_loss(call: OpCall) -> Work | None:
    """α of the T·(2S + 1) states of each sequence: 13; backward 22 of each, and 6 of each score.

    A state: logsumexp of three (2 maxima, 3 subtractions, 3 exp, 2 sums, log, add) and its own
    log-probability. Backward: as much for β, α + β, and a logsumexp of two (8) into the class; then
    of each score exp, add, subtract, exp, subtract, multiply. A mean divides each sequence's loss
    by its length first.
    """
    backward = call.op.endswith("backward")
    first = 1 if backward else 0  # behind the gradient
    inputs = call.integers(first + 2)
    targets = call.integers(first + 3)
    if inputs is None or targets is None:
        return None
    states = sum(steps * (2 * labels + 1) for steps, labels in zip(inputs, targets, strict=True))
    scores = el.elements(call, first)
    if backward:
        flops = 22 * states + 6 * scores
        return el.vector_work(call, flops, first, first + 1, written=scores)
    flops = 13 * states
    if call.op == "aten::ctc_loss":
        reduction = (call.integer(5) or 0) % 3
        flops += {0: 0, _MEAN: 2, 2: 1}[reduction] * len(inputs)
    return el.vector_work(call, flops, first, first + 1, written=states)
