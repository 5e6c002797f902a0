"""Formulas of optimizers that run as one op; the unfused ones are made of elementwise ops."""

from functools import partial

from flopprof.formulas import OpCall, Work
from flopprof.formulas.ops import _elements as el

op_formula = partial(el.formula_for, kind="other")


def _update(call: OpCall, flops: int, lists: int, maximize_at: int, scale_at: int) -> Work:
    """Return `flops` per parameter, + 1 to maximise, + 1 to divide by a gradient scale.

    The gradients (argument 1) are read, the parameters and each further list read and written.
    """
    flops += _if_set(call, maximize_at, 1) + call.count(scale_at)
    traffic = [*range(lists), *(index for index in range(lists) if index != 1)]
    return el.vector_work(call, flops * el.elements(call, 0), *traffic)


def _if_set(call: OpCall, flag_at: int, flops: int) -> int:
    return flops if call.flag(flag_at) else 0


@op_formula("_fused_adam~ _fused_adamw~")
def adam(call: OpCall) -> Work | None:
    """13 per parameter p with gradient g, of rates known per step.

    m ← m + (1 − β₁)(g − m) 3; v ← β₂·v + (1 − β₂)·g·g 4; √v/c + ε 3; p ← p − r·m/(that) 3.
    Weight decay: g ← g + λp 2, of AdamW p ← (1 − rλ)p 1. AMSGrad: a maximum 1.
    """
    decay = el.number(call, 9)
    if decay is None:
        return None
    flops = 13 + _if_set(call, 11, 1)
    if decay:
        flops += 1 if "adamw" in call.op else 2
    return _update(call, flops, 5, 12, 13)


@op_formula("_fused_sgd~")
def sgd(call: OpCall) -> Work | None:
    """`p ← p − r·g` 2; decay `g + λp` 2; momentum and Nesterov's step 2 each.

    Momentum is b ← μ·b + (1 − τ)·g: 3 if dampened (τ ≠ 0), a copy on the first step. Nesterov's:
    g + μ·b.
    """
    decay, momentum, dampening = (el.number(call, index) for index in (3, 4, 6))
    if decay is None or momentum is None:
        return None
    flops = 4 if decay else 2
    if momentum:
        flops += _if_set(call, 7, 2)
        if not call.flag(9):  # the first step
            flops += 3 if dampening else 2
    return _update(call, flops, 3, 8, 10)


@op_formula("_fused_adagrad~")
def adagrad(call: OpCall) -> Work | None:
    """`s ← s + g·g` 2; `p ← p − r·g/(√s + ε)` 5; decay `g + λp` 2."""
    decay = el.number(call, 6)
    if decay is None:
        return None
    return _update(call, 9 if decay else 7, 3, 8, 9)
