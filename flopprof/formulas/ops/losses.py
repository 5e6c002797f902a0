"""Formulas of losses: an elementwise part, and a reduction of n where there is one."""

from math import prod

from flopprof.formulas import OpCall, OpFormula, Work
from flopprof.formulas.ops._elements import (
    broadcast,
    counts,
    elements,
    formula_for,
    moved_bytes,
    number,
    per_output,
    rows,
)

# FLOPs per element | operands | argument with the reduction | names. d = x − t throughout.
# mse: d, square. l1: d, |d|. smooth l1: |d| (2), compare, ½·d²/β (3), |d| − ½β; huber: ½·d² and
# δ·(|d| − ½δ), as many. soft margin: negate, multiply, exp, log1p. kl: t·log t, t·x, subtract.
# Hinge: subtract, clamp, select. Margin ranking: negate, subtract, multiply, add, clamp. Cross
# entropy: two logs, two differences from one, two products, add, negate; with logits: 1 − t,
# multiply, log-sigmoid, subtract. Poisson: exp x, t·x, subtract.
_LOSSES = """
    2 | 2 | 2 | mse_loss l1_loss
    3 | 2 | 2 | kl_div
    4 | 2 | 2 | soft_margin_loss
    7 | 2 | 2 | smooth_l1_loss huber_loss
    8 | 2 | 3 | binary_cross_entropy
    4 | 2 | 4 | binary_cross_entropy_with_logits
    3 | 2 | 3 | hinge_embedding_loss
    5 | 3 | 4 | margin_ranking_loss
    3 | 2 | 5 | poisson_nll_loss
"""
# Arguments: gradient, x, t. mse: 2·d·g/n. smooth l1, huber: d, compare, scale, multiply. Cross
# entropy: d/(x·(1 − x))·g. soft margin: −t·z/(1 + z)·g with z = exp(−t·x), whose product it reuses.
per_output(
    __name__,
    """
    3 | 3 | | mse_loss_backward
    4 | 3 | | smooth_l1_loss_backward huber_loss_backward
    5 | 3 | | binary_cross_entropy_backward soft_margin_loss_backward
    """,
)


def _reduced(call: OpCall, flops: int, items: int, reduction_at: int, *read: int) -> Work:
    """Return `flops`, and one more for each of `items` unless they stay as they are ("none")."""
    reduction = call.integer(reduction_at)
    written = call.itemsize_of(0) * (items if reduction == 0 else 1)
    return Work(
        vector_flops=flops + (items if reduction else 0),
        min_bytes=moved_bytes(call, *read) + written,
        flops_at_most=flops + items if reduction is None else None,
    )


def _loss(flops: int, operands: int, reduction_at: int) -> OpFormula:
    def formula(call: OpCall) -> Work:
        size = prod(broadcast(*(call.shape(index) for index in range(operands))))
        per_element = flops
        if call.op.startswith("aten::binary_cross_entropy"):
            per_element += call.has(2)  # weight
        if call.op == "aten::binary_cross_entropy_with_logits":
            per_element += 3 * call.has(3)  # (w − 1)·t + 1, and its product
        if call.op == "aten::poisson_nll_loss":  # exp x − t·x, or x − t·log(x + ε), and Stirling:
            per_element += (call.flag(2) is False) + 9 * bool(call.flag(3))
        return _reduced(call, per_element * size, size, reduction_at, *range(reduction_at))

    return formula


for _columns, _names in rows(_LOSSES):
    formula_for(_names)(_loss(*map(int, _columns)))


@formula_for("multi_margin_loss")
def multi_margin_loss(call: OpCall) -> Work:
    """`Σ max(0, (margin − x[t]) + x)/C` of N rows: 3n + 2N; + n where p = 2, + n with weights."""
    size, items = elements(call, 0), elements(call, 1)
    cost = 3 + (number(call, 2) == 2) + call.has(4)
    return _reduced(call, cost * size + 2 * items, items, 5, 0, 1, 4)


@formula_for("multilabel_margin_loss multilabel_margin_loss_forward")
def multilabel_margin_loss(call: OpCall) -> Work:
    """Subtract, add, clamp and sum of every label with every other class: at most C² of each row.

    How many labels a row has is in the values.
    """
    *rest, classes = call.shape(0)
    at_most = prod(rest) * (4 * classes * classes + classes + 1)
    return Work(min_bytes=moved_bytes(call, 0, 1), flops_at_most=at_most)


@formula_for("triplet_margin_loss")
def triplet_margin_loss(call: OpCall) -> Work:
    """Two distances (swap: three) of 4n: subtract, add ε, norm 2; subtract, add, clamp of each.

    The swap takes the smaller of two distances: one more of each.
    """
    size, swap = elements(call, 0), bool(call.flag(6))
    items = prod(call.shape(0)[:-1])
    return _reduced(call, (8 + 4 * swap) * size + (3 + swap) * items, items, 7, 0, 1, 2)


@formula_for("cosine_embedding_loss")
def cosine_embedding_loss(call: OpCall) -> Work:
    """Three dot products of 2n; and nine operations on each of the N pairs.

    Two ε, product, root and quotient; 1 − cos; cos − margin, clamp; their sum.
    """
    size, items = elements(call, 0), elements(call, 2)
    return _reduced(call, 6 * size + 9 * items, items, 4, 0, 1, 2)


@formula_for("cosine_similarity")
def cosine_similarity(call: OpCall) -> Work | None:
    """A dot product 2n, two norms 4n; two maxima with ε, their product and the quotient of each."""
    shape = broadcast(call.shape(0), call.shape(1))
    axis = call.integer(2)
    if axis is None or not shape:
        return None
    axis %= len(shape)
    size, items = prod(shape), prod(shape[:axis] + shape[axis + 1 :])
    written = items * call.itemsize_of(0)
    return Work(vector_flops=6 * size + 4 * items, min_bytes=moved_bytes(call, 0, 1) + written)


@formula_for("nll_loss nll_loss_nd nll_loss2d nll_loss_forward nll_loss2d_forward")
def nll_loss(call: OpCall) -> Work:
    """Of each of N targets: negate (with class weights multiply), and their mean.

    A weighted mean divides by the sum of the weights: N more.
    """
    items, means = elements(call, 1), call.integer(3) == 1
    work = _reduced(call, (1 + call.has(2) * (1 + means)) * items, items, 3, 1, 2)
    picked = items * call.itemsize_of(0)  # one score of each
    return Work(0, work.vector_flops, work.min_bytes + picked, work.flops_at_most)


@formula_for("nll_loss_backward nll_loss2d_backward")
def nll_loss_backward(call: OpCall) -> Work:
    """Of each of N targets: the negated gradient over N (with class weights multiplied)."""
    flops = (1 + call.has(3)) * elements(call, 2)
    return Work(vector_flops=flops, min_bytes=moved_bytes(call, 0, 1, 2, 3))


@formula_for("cross_entropy_loss")
def cross_entropy_loss(call: OpCall) -> Work:
    """Log-softmax 5n; of N targets negate (with weights multiply, and sum the weights), mean.

    Smoothing the labels adds the sum of the n log-probabilities, N negations, their mean, and
    three operations that blend the two. Targets given as probabilities: multiply, sum, 2n (with
    weights 3n), then negate and mean; smoothing them 2n.
    """
    size, smooth = elements(call, 0), bool(number(call, 5))
    weighted, reduction = call.has(2), call.integer(3)
    if call.shape(0) == call.shape(1) and counts(OpCall("", dtypes=call.dtypes[1:])):
        classes_at = min(1, len(call.shape(0)) - 1)
        items = prod(call.shape(0)[:classes_at] + call.shape(0)[classes_at + 1 :])
        flops = (7 + weighted + 2 * smooth) * size + items
    else:
        items = elements(call, 1)
        blend = size + weighted * size + items + (items + 3 if reduction else 3 * items)
        flops = 5 * size + (1 + weighted * (1 + (reduction == 1))) * items + smooth * blend
    return _reduced(call, flops, items, 3, 0, 1, 2)


@formula_for("ctc_loss _ctc_loss _ctc_loss_backward")
def ctc_loss(call: OpCall) -> Work | None:
    """α of the T·(2S + 1) states of each sequence: 13; backward 22 of each, and 6 of each score.

    A state: logsumexp of three (2 maxima, 3 subtractions, 3 exp, 2 sums, log, add) and its own
    log-probability. Backward: as much for β, α + β, and a logsumexp of two (8) into the class; then
    of each score exp, add, subtract, exp, subtract, multiply. A mean divides each sequence's loss
    by its length first.
    """
    backward = int(call.op.endswith("backward"))
    inputs, targets = call.integers(2 + backward), call.integers(3 + backward)
    if inputs is None or targets is None:
        return None
    reduced = (call.integer(5) or 0) % 3 if call.op == "aten::ctc_loss" else 0
    reduced = (0, 2, 1)[reduced] * len(inputs)  # none, mean, sum
    states = sum(steps * (2 * labels + 1) for steps, labels in zip(inputs, targets, strict=True))
    scores = elements(call, backward)
    return Work(
        vector_flops=(22 if backward else 13) * states + 6 * backward * scores + reduced,
        min_bytes=moved_bytes(call, backward, backward + 1)
        + (scores if backward else states) * call.itemsize_of(backward),
    )
