"""Formulas of convolutions under every name, and of their backward."""

import gzip
import json
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812  # its usual name

from flopprof.formulas import Work
from flopprof.formulas.ops._shapes import PLACES
from tests.formulas._calls import formula, ones, outermost, places, torch_counts, total
from tests.formulas._walk import _op_call, roots, work_of

X, W = (2, 4, 9, 7), (6, 2, 3, 3)  # two groups of 2 channels
# Stride 2, padding 1, dilation 1: ⌊(9+2−3)/2⌋+1 = 5 by ⌊(7+2−3)/2⌋+1 = 4, so 2·6·5·4 = 240 outputs;
# × 2·3·3 taps = 4320 multiply-adds. Bytes: 4·(504 + 108 + 6 + 240) = 3432, without a bias 3408.
VALUES = {"stride": "[2, 2]", "padding": "[1, 1]", "dilation": "[1, 1]", "groups": "2"}
ORDERS = [
    ("aten::conv2d", "x w b stride padding dilation groups", 240),
    ("aten::convolution", "x w b stride padding dilation False [0,0] groups", 240),
    ("aten::_convolution", "x w b stride padding dilation False [0,0] groups _ _ _ _", 240),
    ("aten::convolution_overrideable", "x w b stride padding dilation False [0,0] groups", 240),
    ("aten::mkldnn_convolution", "x w b padding stride dilation groups", 240),
    ("aten::miopen_convolution", "x w b padding stride dilation groups _ _", 240),
    ("aten::miopen_depthwise_convolution", "x w b padding stride dilation groups _ _", 240),
    ("aten::_mps_convolution", "x w b padding stride dilation groups", 240),
    ("mkldnn::_convolution_pointwise", "x w b padding stride dilation groups _ _ _", 240),
    ("aten::cudnn_convolution", "x w padding stride dilation groups _ _ _", 0),
    ("aten::cudnn_convolution_relu", "x w b stride padding dilation groups", 480),
    ("aten::miopen_convolution_relu", "x w b stride padding dilation groups", 480),
]


def by_order(op, order, shapes, values):
    words = order.split()
    numbered = {f"_{i}": values.get(word, word) for i, word in enumerate(words)}
    args = [shapes.get(word) for word in words]
    return formula(op, *args, **{k: v for k, v in numbered.items() if v not in ("_", *shapes)})


@pytest.mark.parametrize(("op", "order", "vector"), ORDERS)
def test_every_name_of_a_convolution_counts_the_same(op, order, vector):
    work = by_order(op, order, {"x": X, "w": W, "b": (6,)}, VALUES)

    assert work == Work(8640, vector, 3432 if " b " in order else 3408)


@pytest.mark.parametrize(
    ("op", "order"),
    [
        ("aten::thnn_conv2d", "x w kernel b stride padding"),
        ("aten::_slow_conv2d_forward", "x w kernel b stride padding"),
        ("aten::slow_conv_dilated2d", "x w kernel b stride padding dilation"),
        ("aten::_conv_depthwise2d", "x w kernel b stride padding dilation"),
        ("aten::_nnpack_spatial_convolution", "x w b padding stride"),
    ],
)
def test_ops_without_groups_take_them_from_the_filter(op, order):
    # 2·6·5·4 = 240 outputs × 4·3·3 taps = 8640 multiply-adds; 4·(504 + 216 + 6 + 240) bytes.
    work = by_order(op, order, {"x": X, "w": (6, 4, 3, 3), "b": (6,)}, VALUES)

    assert work == Work(17280, 240, 3864)


@pytest.mark.parametrize(
    ("op", "order", "biased"),
    [
        ("aten::conv_transpose2d", "x w b stride padding extra groups dilation", 1),
        ("aten::convolution", "x w b stride padding dilation True extra groups", 1),
        ("aten::miopen_convolution_transpose", "x w b padding extra stride dilation groups _ _", 1),
        ("aten::cudnn_convolution_transpose", "x w padding extra stride dilation groups _ _ _", 0),
        ("aten::_mps_convolution_transpose", "x w padding extra stride dilation groups", 0),
    ],
)
def test_every_name_of_a_transposed_convolution_counts_the_same(op, order, biased):
    # 504 inputs × 3·3·3 taps of their group's 3 channels = 13608. Outputs of stride 2, padding 1,
    # output padding 1: (9−1)·2−2+2+1+1 = 18 by (7−1)·2+2 = 14: 2·6·18·14 = 3024.
    values = VALUES | {"extra": "[1, 1]"}
    work = by_order(op, order, {"x": X, "w": (4, 3, 3, 3), "b": (6,)}, values)

    assert work == Work(27216, 3024 * biased, 4 * (504 + 108 + 6 * biased + 3024))


def test_arguments_are_where_the_schemas_have_them():
    names = {
        "input": "input|self|X|qx",
        "filter": "weight|W|qw",
        "bias": "bias|B",
        **{name: name for name in ("stride", "padding", "dilation", "groups")},
        **{name: name for name in ("transposed", "output_padding")},
        "other": "z|other|qaccum",
        "factor": "alpha",
        "result_type": "output_dtype",
    }
    for row in PLACES["convolution"]:
        for op in row["ops"].split():
            full = op if "::" in op else f"aten::{op}"
            if "pointwise" in op:
                continue  # overloads: below, with real calls
            expected = [row[n] if row[n] != "always" else 99 for n in names]
            assert places(full, *names.values()) == expected, op
    for row in PLACES["convolution_backward"]:
        wanted = "grad_output", "input|self", "transposed", "output_mask"
        expected = [row[n] for n in ("grad", "input", "transposed", "mask")]
        found = places(f"aten::{row['ops']}", *wanted)
        assert found == [99 if at == "always" else at for at in expected]


def test_a_fused_add_and_activation_are_one_flop_each_and_a_factor_one_more():
    order = "x w z alpha b stride padding dilation groups"
    shapes = {"x": X, "w": W, "z": (2, 6, 5, 4), "b": (6,)}
    # 240 outputs: bias, z, relu; twice z too. 240 elements of z are read.
    for alpha, each in (("1", 3), ("2.", 4)):
        work = by_order(
            "aten::cudnn_convolution_add_relu", order, shapes, VALUES | {"alpha": alpha}
        )
        assert work == Work(8640, 240 * each, 3432 + 960)


def test_unrecorded_strides_or_string_paddings_leave_a_convolution_undetermined():
    assert formula("aten::conv2d", X, W, None, None, None, None, None) is None
    assert formula("aten::conv2d", X, W, None, None, None, None, None, _3="[1, 1]") is None
    assert formula("aten::cudnn_convolution", X, W, *[None] * 7) is None


def test_an_integer_pads_or_strides_every_axis():
    # 2·6·7·5 = 420 outputs × 18 taps.
    work = formula(
        "aten::conv2d", X, W, None, None, None, None, None, _3="[1]", _4="[0]", _5="[1]", _6="2"
    )

    assert work is not None
    assert work.matmul_flops == 2 * 420 * 18


def test_a_complex_convolution_is_eight_flops_per_multiply_add_and_two_per_bias():
    x, w = ones(1, 2, 4).to(torch.complex64), ones(3, 2, 2).to(torch.complex64)

    op, work = outermost(lambda: F.conv1d(x, w, torch.ones(3, dtype=torch.complex64)))

    # 3·3 = 9 outputs × 2·2 taps = 36 multiply-adds; 8 B each of 8 + 12 + 3 + 9 elements.
    assert (op, work) == ("aten::conv1d", Work(288, 18, 256))


def test_conv_tbc_is_one_axis_with_channels_last():
    # [5 + 2 − 2 + 1 = 6 steps, 2, 4] = 48 outputs × 2·3 taps = 288; 4·(30 + 24 + 4 + 48) bytes.
    work = formula("aten::conv_tbc", (5, 2, 3), (2, 3, 4), (4,), None, _3="1")

    assert work == Work(576, 48, 424)


def test_onednn_ops_of_compiled_models_count():
    mkldnn = torch.ops.mkldnn
    x, w = torch.randn(2, 4, 6, 6), torch.randn(8, 2, 3, 3)
    unit = [0, 0], [1, 1], [1, 1], 2
    packed = mkldnn._reorder_convolution_weight(w, *unit, [2, 4, 6, 6])
    transposed = mkldnn._reorder_convolution_transpose_weight(
        torch.randn(4, 3, 3, 3), [0, 0], [0, 0], [2, 2], [1, 1], 2, [2, 4, 6, 6]
    )
    b, other = torch.zeros(8), torch.zeros(2, 8, 4, 4)
    fused: Any = "add", None, None, [], None
    transposed_at: Any = None, [0, 0], [0, 0], [2, 2], [1, 1], 2, "none", [], ""

    # 2·8·4·4 = 256 outputs × 2·9 taps = 4608; each with a bias, some with an add.
    assert total(lambda: mkldnn._convolution_pointwise(x, packed, b, *unit, "none", [], "")) == (
        9216,
        256,
    )
    assert total(
        lambda: mkldnn._convolution_pointwise.binary(x, other, packed, b, *unit, *fused)
    ) == (9216, 512)
    assert total(
        lambda: mkldnn._convolution_pointwise_.binary(other, x, packed, b, *unit, *fused)
    ) == (9216, 512)
    # 288 inputs × 3·9 taps = 7776: the filter is stored as [6, 2, 3, 3].
    assert total(
        lambda: mkldnn._convolution_transpose_pointwise(x, transposed, *transposed_at)
    ) == (15552, 0)


def test_a_quantised_convolution_counts_like_the_real_one():
    onednn = torch.ops.onednn
    scale, zero = torch.ones(8), torch.zeros(8, dtype=torch.int64)
    where = [1, 1], [0, 0], [1, 1], 2
    w = torch.ones(8, 2, 3, 3, dtype=torch.int8)
    w = onednn.qconv_prepack(w, scale, 1.0, 0, *where, [2, 4, 6, 6])
    x = torch.ones(2, 4, 6, 6, dtype=torch.uint8)
    result: Any = 1.0, 0, torch.float32, "none", [], ""

    op, work = outermost(
        lambda: onednn.qconv_pointwise(x, 1.0, 0, w, scale, zero, torch.zeros(8), *where, *result)
    )

    # 256 outputs × 18 taps; bytes: 288 + 144 of one, 8 + 256 of four.
    assert (op, work) == ("onednn::qconv_pointwise", Work(9216, 256, 288 + 144 + 4 * 264))


def test_a_quantised_filter_along_one_axis_is_packed_as_if_along_two():
    onednn = torch.ops.onednn
    scale, zero = torch.ones(8), torch.zeros(8, dtype=torch.int64)
    where = [1], [0], [1], 1
    w = torch.ones(8, 4, 3, dtype=torch.int8)
    w = onednn.qconv_prepack(w, scale, 1.0, 0, *where, [2, 4, 6])
    assert w.shape == (8, 4, 1, 3)
    x = torch.ones(2, 4, 6, dtype=torch.uint8)
    result: Any = 1.0, 0, torch.float32, "none", [], ""

    op, work = outermost(
        lambda: onednn.qconv_pointwise(x, 1.0, 0, w, scale, zero, torch.zeros(8), *where, *result)
    )

    # 2·8·4 = 64 outputs × 4·3 taps × 2; a bias each; bytes: 48 + 96 of one, 8 + 64 of four.
    assert (op, work) == ("onednn::qconv_pointwise", Work(1536, 64, 48 + 96 + 4 * 72))


G = (2, 6, 5, 4)
BACKWARD = [
    # Each product is the forward's 4320 multiply-adds; the bias's gradient 240 adds. Read are the
    # gradient 240 and, for the filter's, x 504, for x's the filter 108.
    ("[True, True, True]", Work(17280, 240, 4 * (240 + 504 + 108 + 504 + 108 + 6))),
    ("[False, True, True]", Work(8640, 240, 4 * (240 + 504 + 108 + 6))),
    ("[True, False, False]", Work(8640, 0, 4 * (240 + 108 + 504))),
    ("[False, False, True]", Work(0, 240, 4 * (240 + 6))),
]


@pytest.mark.parametrize(("mask", "expected"), BACKWARD)
def test_backward_counts_the_gradients_asked_for(mask, expected):
    nothing = [None] * 8
    work = formula("aten::convolution_backward", G, X, W, *nothing, _7="False", _10=mask)
    other = formula(
        "aten::convolution_backward_overrideable", G, X, W, *nothing[1:], _6="False", _9=mask
    )

    assert work == other == expected
    assert formula("aten::_slow_conv2d_backward", G, X, W, *nothing[4:], _6=mask) == expected
    assert formula("aten::mps_convolution_backward", X, G, W, *nothing[3:], _7=mask) == expected


@pytest.mark.parametrize(
    ("grad", "taps", "values", "expected"),
    [
        # Transposed, stride 2, two groups: each product is the forward's 504 inputs × 3·9 taps.
        (
            (2, 6, 18, 14),
            (4, 3, 3, 3),
            {"_7": "True", "_10": "[True, True, False]"},
            Work(4 * 13608, 0, 4 * (3024 + 504 + 108 + 504 + 108)),
        ),
        # … its filter's gradient alone.
        (
            (2, 6, 18, 14),
            (4, 3, 3, 3),
            {"_7": "True", "_10": "[False, True, True]"},
            Work(2 * 13608, 3024, 4 * (3024 + 504 + 108 + 6)),
        ),
        # Depthwise: 504 outputs × 9 taps = 4536 for each product; 504 adds for the bias.
        (X, (4, 1, 3, 3), {"_10": "[True, True, True]"}, Work(18144, 504, 4 * (3 * 504 + 76))),
        # … without the input's gradient.
        (X, (4, 1, 3, 3), {"_10": "[False, True, True]"}, Work(9072, 504, 4 * (2 * 504 + 40))),
    ],
)
def test_backward_knows_transposed_and_depthwise_filters(grad, taps, values, expected):
    given_values = {"_7": "False"} | values

    assert formula("aten::convolution_backward", grad, X, taps, *[None] * 8, **given_values) == (
        expected
    )


def test_the_first_layer_makes_no_gradient_of_its_input():
    # Two groups: 4·5·5 = 100 outputs × 2·9 taps: 1800 forward and for the filter.
    conv = nn.Conv2d(4, 4, 3, groups=2)

    matmul, _ = total(lambda: conv(torch.zeros(1, 4, 7, 7)).sum().backward())

    assert matmul == 2 * 1800 + 2 * 1800


def test_backward_without_values_is_bounded():
    # One product at least; at most two, each from the larger side (504 inputs), and the bias.
    work = formula("aten::convolution_backward", G, X, W, *[None] * 8)

    assert work is not None
    assert (work.matmul_flops, work.flops_at_most) == (2 * 240 * 18, 2 * 2 * 504 * 18 + 240)


def test_backward_names_of_old_leave_it_to_the_ops_below():
    assert formula("aten::cudnn_convolution_backward", X, G, W, *[None] * 8) is None
    types = ["GenericList", "float32", "float32"]
    work = formula("aten::cudnn_convolution_backward_input", None, G, W, dtypes=types)

    assert work is not None
    assert work.matmul_flops == 8640


def test_a_real_trace_without_values_knows_the_gradients_of_inputs(gpu_traces):
    with gzip.open(gpu_traces / "v100_resnet50_train_2021.json.gz") as file:
        events = json.load(file)["traceEvents"]

    def works(op):
        return [work_of(_op_call(event)) for event in events if event.get("name") == op]

    assert set(works("aten::conv2d")) == set(works("aten::cudnn_convolution_backward")) == {None}
    # Six steps of the 52 convolutions whose input needs a gradient. The last is 1×1, 512 to 2048
    # channels: 32·2048·7·7 gradients × 512 multiply-adds.
    found = works("aten::cudnn_convolution_backward_input")
    assert len(found) == 312
    assert found[0].matmul_flops == 3288334336


CASES = [
    (nn.Conv1d(4, 6, 3, stride=2, groups=2), (2, 4, 9)),
    (nn.Conv1d(4, 4, 3, padding="same", groups=4), (2, 4, 9)),
    (nn.Conv2d(4, 6, 3, dilation=2, padding=1), (2, 4, 9, 7)),
    (nn.Conv2d(4, 8, (3, 1), padding="same", bias=False), (2, 4, 9, 7)),
    (nn.Conv2d(4, 6, 1, padding="valid"), (4, 9, 7)),
    (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 9, 7)),
    (nn.Conv2d(4, 6, 3), (4, 9, 7)),
    (nn.Conv3d(2, 4, 2, stride=2), (1, 2, 4, 4, 4)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), (2, 4, 5)),
    (nn.ConvTranspose2d(4, 6, 3, padding=1, output_padding=1, stride=2), (2, 4, 5, 5)),
    (nn.ConvTranspose3d(2, 4, 2), (1, 2, 3, 3, 3)),
]


@pytest.mark.parametrize(("module", "shape"), CASES)
def test_real_convolutions_agree_with_pytorchs_counter(module, shape):
    x = torch.zeros(shape)

    def run():
        with torch.no_grad():
            module(x)

    matmul, _ = total(run)

    assert matmul == torch_counts(run) > 0


def test_every_op_below_a_convolution_counts_the_same():
    def works(node):
        found = work_of(node.call)
        return [found] * (found is not None) + [w for child in node.children for w in works(child)]

    run = nn.Conv2d(4, 6, 3, groups=2)
    with torch.no_grad():
        below = [w.matmul_flops for root in roots(lambda: run(torch.zeros(X))) for w in works(root)]

    # 420 outputs × 18 taps, on conv2d, convolution, _convolution and mkldnn_convolution.
    assert [count for count in below if count] == [15120] * 4


sizes = st.integers(1, 3)


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, sizes, sizes, sizes, st.integers(0, 2), st.integers(4, 7))
def test_the_formula_agrees_with_loops_over_every_output_and_tap(
    groups, deep, wide, stride, dilation, padding, length
):
    taps = 2
    out = range(0, length + 2 * padding - dilation * (taps - 1), stride)
    loops = product(range(2), range(groups), range(wide), out, range(deep), range(taps))
    multiply_adds = sum(1 for _ in loops)
    values = {"_3": f"[{stride}]", "_4": f"[{padding}]", "_5": f"[{dilation}]", "_6": f"{groups}"}

    work = formula(
        "aten::conv1d",
        (2, groups * deep, length),
        (groups * wide, deep, taps),
        *[None] * 5,
        **values,
    )

    assert work is not None
    assert work.matmul_flops == 2 * multiply_adds


@settings(max_examples=12, deadline=None)
@given(sizes, sizes, sizes, sizes, st.booleans())
def test_a_convolution_of_ones_sums_to_its_multiply_adds_forward_and_backward(
    groups, deep, wide, stride, transposed
):
    x = ones(2, groups * deep, 5)
    w = ones(groups * deep, wide, 2) if transposed else ones(groups * wide, deep, 2)
    convolve = F.conv_transpose1d if transposed else F.conv1d
    out = convolve(x, w, stride=stride, groups=groups)
    out.sum().backward()

    matmul, _ = total(lambda: convolve(x, w, stride=stride, groups=groups).sum().backward())

    assert x.grad is not None
    assert w.grad is not None
    # The gradients of both runs have been added up.
    assert matmul == 2 * out.sum() + x.grad.sum() + w.grad.sum()
