"""Formulas of normalisation and softmax; n = 2·4·3·3 = 72."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812  # its usual name

from flopprof.formulas import OpCall, Work
from tests.formulas._walk import vector_flops, work_of

X = torch.linspace(-1, 1, 72).reshape(2, 4, 3, 3)
C = torch.ones(4)  # one number per channel


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda: X.softmax(1), 5 * 72),
        (lambda: X.log_softmax(1), 5 * 72),
        (lambda: X.softmax(1, torch.float64), 5 * 72),
        (lambda: F.softmin(X, 1), 6 * 72),  # negate, then softmax
        (lambda: F.batch_norm(X, C, C), 2 * 72),
        (lambda: F.batch_norm(X, C, C, C, C), 2 * 72),  # folded: affine costs nothing more
        (lambda: F.batch_norm(X, C.clone(), C.clone(), training=True), 5 * 72),
        (lambda: F.batch_norm(X, None, None, C, C, training=True), 7 * 72),
        (lambda: F.instance_norm(X), 5 * 72),
        (lambda: F.instance_norm(X, weight=C, bias=C), 7 * 72),
        (lambda: F.instance_norm(X, C.clone(), C.clone(), use_input_stats=False), 2 * 72),
        (lambda: F.group_norm(X, 2), 5 * 72),
        (lambda: F.group_norm(X, 2, C, C), 7 * 72),
        (lambda: F.layer_norm(X, [3], C[:3]), 6 * 72),
        (lambda: F.layer_norm(X, [3], C[:3], C[:3]), 7 * 72),
        (lambda: F.rms_norm(X, [3]), 3 * 72),
        (lambda: F.rms_norm(X, [3], C[:3]), 4 * 72),
        (lambda: F.local_response_norm(X, 3), (3 + 5) * 72),
        (lambda: torch.renorm(X, 2, 0, 1.0), 3 * 72),
        (lambda: torch._weight_norm(X, X[:, :1, :1, :1], 0), 3 * 72),
    ],
)
def test_flops_per_element_as_in_the_conventions(run: Callable[[], Any], expected: int) -> None:
    assert vector_flops(run) == expected


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda x, w: x.softmax(1), 4 * 72),
        (lambda x, w: x.log_softmax(1), 4 * 72),
        (lambda x, w: F.batch_norm(x, None, None, w, w, training=True), 9 * 72),
        # one scale; γ: x̂ 2, multiply, sum; β: sum
        (lambda x, w: F.batch_norm(x, C.clone(), C.clone(), w, w), 6 * 72),
        (lambda x, w: F.batch_norm(x, C.clone(), C.clone()), 1 * 72),
        (lambda x, w: F.layer_norm(x, [3]), 9 * 72),
        (lambda x, w: F.layer_norm(x, [3], w[:3], w[:3]), (9 + 1 + 2 + 1) * 72),
        (lambda x, w: F.group_norm(x, 2, w, w), (9 + 1 + 2 + 1) * 72),
    ],
)
def test_backward_follows_its_derivation(run: Callable[..., Any], expected: int) -> None:
    x, weight = X.clone().requires_grad_(), C.clone().requires_grad_()
    y = run(x, weight)

    # w[:3] is a slice, and w is used twice: each then adds one gradient of four elements.
    total = vector_flops(lambda: y.backward(torch.ones_like(y)))
    assert total - expected in (0, 4)


TYPES = ("float32",) * 5


def test_without_values_batch_norm_lies_between_eval_and_training():
    call = OpCall("aten::cudnn_batch_norm", ((2, 4, 3, 3), (4,), (4,), (4,), (4,)), dtypes=TYPES)

    # Folded 2n = 144; statistics with weight and bias 7n = 504. 72 read, 72 written, 4 + 4.
    assert work_of(call) == Work(0, 144, (72 + 72 + 8) * 4, flops_at_most=504)


def test_the_overload_without_running_statistics_has_training_earlier():
    shapes, values = ((2, 4, 3, 3), (), (), (), (), ()), ("", "", "", "True", "0.1", "1e-05")
    types = ("float32", "", "", "Scalar", "Scalar", "Scalar")
    call = OpCall("aten::_native_batch_norm_legit", shapes, dtypes=types, values=values)

    assert work_of(call) == Work(vector_flops=5 * 72, min_bytes=2 * 72 * 4)


def test_layer_norm_s_backward_computes_only_the_gradients_asked_for():
    shapes = ((8, 3), (8, 3), (), (8, 1), (8, 1), (3,), (3,), ())
    types = ("float32", "float32", "ScalarList", *("float32",) * 4, "ScalarList")
    values = ("", "", "[3]", "", "", "", "", "[False, True, True]")
    call = OpCall("aten::native_layer_norm_backward", shapes, dtypes=types, values=values)

    # γ: x̂ 2, multiply, sum; β: sum. 24 elements × 5. Gradient, input and weight are read.
    assert work_of(call) == Work(vector_flops=120, min_bytes=(24 + 24 + 3) * 4)


def test_rms_norm_s_backward():
    shapes = ((8, 3), (8, 3), (), (8, 1), (3,), ())
    types = ("bfloat16", "bfloat16", "ScalarList", "float32", "bfloat16", "ScalarList")
    call = OpCall("aten::_fused_rms_norm_backward", shapes, dtypes=types)

    # Both gradients: 6 + 1 for the weight's product, and its own multiply and sum: 9 × 24.
    assert work_of(call) == Work(vector_flops=216, min_bytes=(24 + 24 + 3 + 24) * 2)
