"""Rarer ops of ONNX, those of ONNX Runtime, loops and branches; each number by hand."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flopprof import count_flops
from tests.capture.test_graph import branch, info, node, save, weight

I32, I64, BOOL = TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL
MS = "com.microsoft"


def runtime(op, inputs, **attributes):
    return helper.make_node(op, inputs, ["y"], name=f"the_{op}", domain=MS, **attributes)


def number(name, value, dtype=np.int64):
    return numpy_helper.from_array(np.array(value, dtype), name)


X = info("x", 2, 6, 8)  # 2 × 6 tokens of 8
IMAGE = info("x", 2, 3, 8, 8)
CASES = {
    # transposed: [8,6] by [8,5]: 2·6·5 outputs of 8; each scaled by alpha
    "fused_matmul": (
        runtime("FusedMatMul", ["x", "w"], transA=1, alpha=0.5),
        [info("x", 2, 8, 6)], [weight("w", 8, 5)], (2 * 60 * 8, 60),
    ),
    # 2·5·6·6 outputs of 27; bias and activation
    "fused_conv": (
        runtime("FusedConv", ["x", "w", "b"], activation="Relu"),
        [IMAGE], [weight("w", 5, 3, 3, 3), weight("b", 5)], (2 * 360 * 27, 2 * 360),
    ),
    "gelu": (runtime("Gelu", ["x"]), [X], [], (0, 96)),
    "bias_gelu": (runtime("BiasGelu", ["x", "b"]), [X], [weight("b", 8)], (0, 2 * 96)),
    # the skip's add, 5 of the normalisation, scale, shift and a bias
    "skip_norm": (
        runtime("SkipLayerNormalization", ["x", "x", "g", "b", "c"]),
        [X], [weight(name, 8) for name in "gbc"], (0, 9 * 96),
    ),
    # the skip's add, 3 of RMS norm, scale
    "skip_rms": (
        runtime("SkipSimplifiedLayerNormalization", ["x", "x", "g"]),
        [X], [weight("g", 8)], (0, 5 * 96),
    ),
    # q, k, v: 12 rows of 8 by 24, biased; 2 sequences × 2 heads × 6·6 scores, each of 4, twice;
    # softmax 5 and scale 1 for each score
    "attention": (
        runtime("Attention", ["x", "w", "b"], num_heads=2),
        [X], [weight("w", 8, 24), weight("b", 24)],
        (2 * 12 * 8 * 24 + 2 * 144 * (4 + 4), 12 * 24 + 6 * 144),
    ),
    # 2 × 2 heads × 6 queries × 9 keys, of 4 and of 4
    "multi_head": (
        runtime("MultiHeadAttention", ["x", "k", "k"], num_heads=2),
        [X, info("k", 2, 9, 8)], [], (2 * 216 * 8, 6 * 216),
    ),
    # 4 heads of 2, 2 for keys: 3 past and 6 new keys; rotary on 12 rows of (4 + 2)·2, 3 each
    "grouped": (
        runtime(
            "GroupQueryAttention", ["x", "k", "k", "p", "p"], num_heads=4, kv_num_heads=2,
            do_rotary=1,
        ),
        [X, info("k", 2, 6, 4), info("p", 2, 2, 3, 2)], [],
        (2 * (2 * 4 * 6 * 9) * (2 + 2), 6 * (2 * 4 * 6 * 9) + 3 * 12 * 12),
    ),
    # 12 rows by 8 × 5; two for each weight to unpack it
    "packed_matmul": (
        runtime("MatMulNBits", ["x", "w", "s"], K=8, N=5, bits=4, block_size=16),
        [X], [weight("w", 5, 1, 8), weight("s", 5)], (2 * 12 * 8 * 5, 2 * 40),
    ),
    # 60 outputs scaled back by 2; 96 elements: minimum, maximum, two to quantise
    "dynamic_matmul": (
        runtime("DynamicQuantizeMatMul", ["x", "w", "s"]),
        [X], [weight("w", 8, 5), weight("s", 1)], (2 * 60 * 8, 2 * 60 + 4 * 96),
    ),
    "quick_gelu": (runtime("QuickGelu", ["x"]), [X], [], (0, 96)),
    "rotary": (node("RotaryEmbedding", ["x", "c", "c"]), [info("x", 2, 2, 6, 4)],
               [weight("c", 2, 6, 2)], (0, 3 * 96)),
    # 4 frames of 16, every 8 of 40: 16 window products, and half of 5·16·4
    "stft": (
        node("STFT", ["x", "step", "window"]), [info("x", 2, 40, 1)],
        [number("step", 8), weight("window", 16)], (0, 2 * 4 * (16 + 160)),
    ),
    # 2·16 complex numbers, 16 long: 5·32·4
    "dft": (node("DFT", ["x", "", "axis"]), [info("x", 2, 16, 2)], [number("axis", 1)], (0, 640)),
    # bij,bjk → bik, then by kl: 2·6·8·5 and 2·6·5·3 multiply-adds, as runtimes go from the left
    "einsum_of_three": (
        node("Einsum", ["x", "a", "b"], equation="bij,jk,kl->bil"),
        [X], [weight("a", 8, 5), weight("b", 5, 3)], (2 * 480 + 2 * 180, 0),
    ),
    # 2 × heads of "..." : [6,8] by [8,5]
    "einsum_ellipsis": (
        node("Einsum", ["x", "a"], equation="...ij,jk->...ik"),
        [X], [weight("a", 8, 5)], (2 * 480, 0),
    ),
    "einsum_sum": (node("Einsum", ["x"], equation="bij->bi"), [X], [], (0, 96)),
    # bilinear 9 for 2·3·4·4 outputs; 4 for each of 2·4·4·2 coordinates
    "grid_sample": (
        node("GridSample", ["x", "g"], mode="linear"),
        [IMAGE, info("g", 2, 4, 4, 2)], [], (0, 9 * 96 + 4 * 64),
    ),
    # along one axis a lerp, 3, for each of 2·3·4 outputs; 4 for each of 2·4 coordinates
    "grid_sample_of_one_axis": (
        node("GridSample", ["x", "g"], mode="linear"),
        [info("x", 2, 3, 8), info("g", 2, 4, 1)], [], (0, 3 * 24 + 4 * 8),
    ),
    # 2·5·6·6 outputs of 3·9; 2·3·9·36 samples of 9; 2·18·36 offsets added
    "deformed": (
        node("DeformConv", ["x", "w", "o"]),
        [IMAGE, info("o", 2, 18, 6, 6)], [weight("w", 5, 3, 3, 3)],
        (2 * 360 * 27, 9 * 1944 + 1296),
    ),
    # 4 boxes × 3 channels × 2·2 bins × 2·2 samples, 10 each
    "roi_align": (
        node("RoiAlign", ["x", "r", "n"], output_height=2, output_width=2, sampling_ratio=2),
        [IMAGE, info("r", 4, 4), info("n", 4, dtype=I64)], [], (0, 10 * 4 * 3 * 4 * 4),
    ),
    "top_k": (
        helper.make_node("TopK", ["x", "k"], ["y", "places"]), [X],
        [numpy_helper.from_array(np.array([2]), "k")], (0, 0),
    ),
    "quantised_conv": (
        node("ConvInteger", ["x", "w"]), [info("x", 2, 3, 8, 8, dtype=TensorProto.UINT8)],
        [numpy_helper.from_array(np.zeros((5, 3, 3, 3), np.uint8), "w")], (2 * 360 * 27, 0),
    ),
    "quantised_matmul": (
        node("MatMulInteger", ["x", "w"]), [info("x", 2, 6, 8, dtype=TensorProto.UINT8)],
        [numpy_helper.from_array(np.zeros((8, 5), np.uint8), "w")], (2 * 60 * 8, 0),
    ),
    "dynamic_quantisation": (
        helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"]), [X], [], (0, 4 * 96),
    ),
    # 5 steps of 2: one gate of 3 from 4 + 3; an add and tanh
    "rnn": (
        helper.make_node("RNN", ["x", "w", "r"], ["", "y"], hidden_size=3),
        [info("x", 5, 2, 4)], [weight("w", 1, 3, 4), weight("r", 1, 3, 3)],
        (2 * 10 * 3 * 7, 10 * 3 * 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_node_counts_what_its_definition_says(name, tmp_path):
    made, inputs, weights, expected = CASES[name]
    path = save(tmp_path / "m.onnx", [made], inputs, weights, domains=[MS])
    model = onnx.load(path)
    model.opset_import[0].version = 23
    model.graph.output[0].type.Clear()  # some are of integers
    onnx.save(model, path)

    count = count_flops(path)

    assert (count.matmul_flops, count.vector_flops) == expected
    assert not count.run.unknown_ops


def test_shapes_go_on_behind_a_runtimes_op(tmp_path):
    nodes = [
        helper.make_node("FusedMatMul", ["x", "w"], ["h"], domain=MS),
        helper.make_node("QuickGelu", ["h"], ["g"], domain=MS),
        node("MatMul", ["g", "v"]),
    ]
    weights = [weight("w", 8, 5), weight("v", 5, 3)]

    count = count_flops(save(tmp_path / "m.onnx", nodes, [X], weights, domains=[MS]))

    assert count.matmul_flops == 2 * 12 * 8 * 5 + 2 * 12 * 5 * 3


def test_a_branch_that_a_value_decides_is_bounded_by_both(tmp_path):
    nodes = [node("If", ["c"], then_branch=branch("high", 8), else_branch=branch("low", 4))]
    inputs = [info("x", 2, 3), info("c", dtype=BOOL)]

    run = count_flops(save(tmp_path / "m.onnx", nodes, inputs)).run

    # [2,3] by [3,4] at least, by [3,8] at most
    assert run.totals.flops == 2 * 2 * 3 * 4
    assert run.totals.flops_at_most == 2 * 2 * 3 * 8
    assert any("decides which body of If the_If" in t for t in run.provenance.warning_texts)


def test_branches_that_cost_the_same_are_exact(tmp_path):
    nodes = [node("If", ["c"], then_branch=branch("one", 4), else_branch=branch("two", 4))]
    inputs = [info("x", 2, 3), info("c", dtype=BOOL)]

    count = count_flops(save(tmp_path / "m.onnx", nodes, inputs))

    assert count.flops == count.flops_at_most == 2 * 2 * 3 * 4


def loop(condition_nodes, *, limit="m", carried=()):
    """Return a Loop that multiplies x by w each time, and the body's condition."""
    names = [name for name, *_ in carried]
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["step"]), *condition_nodes],
        "body",
        [info("i", dtype=I64), info("c", dtype=BOOL), *(info(n, dtype=I64) for n in names)],
        [info("c_out", dtype=BOOL), *(info(f"{n}_out", dtype=I64) for n in names),
         info("step", 2, 4)],
    )  # fmt: skip
    starts = [start for _, start in carried]
    ends = [f"{name}_end" for name in names]
    return helper.make_node(
        "Loop", [limit, "true", *starts], [*ends, "y"], name="the_Loop", body=body
    )


PASSED_ON = [helper.make_node("Identity", ["c"], ["c_out"])]
COUNTED = [
    helper.make_node("Add", ["n", "one"], ["n_out"]),
    helper.make_node("Less", ["n_out", "five"], ["c_out"]),
]
WEIGHTS = [weight("w", 3, 4), number("true", True, np.bool_)]
BODY = 2 * 2 * 3 * 4


def test_a_loop_runs_as_often_as_its_limit_says(tmp_path):
    made = loop(PASSED_ON)

    path = save(tmp_path / "m.onnx", [made], [info("x", 2, 3)], [*WEIGHTS, number("m", 7)])

    assert count_flops(path).flops == count_flops(path).flops_at_most == 7 * BODY


def test_a_loop_whose_condition_counts_is_followed(tmp_path):
    made = loop(COUNTED, limit="", carried=[("n", "zero")])
    numbers = [number("zero", 0), number("one", 1), number("five", 5)]

    path = save(tmp_path / "m.onnx", [made], [info("x", 2, 3)], [*WEIGHTS, *numbers])

    assert count_flops(path).flops == 5 * BODY  # n is 1, 2, 3, 4 and 5, which is not less


def test_a_loop_that_a_value_ends_is_bounded_by_its_limit(tmp_path):
    ends = [
        helper.make_node("ReduceSum", ["step"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["c_out"], to=BOOL),
    ]
    made = loop(ends)

    path = save(tmp_path / "m.onnx", [made], [info("x", 2, 3)], [*WEIGHTS, number("m", 7)])
    run = count_flops(path).run

    assert run.totals.flops == 0
    assert run.totals.flops_at_most == 7 * (BODY + 8)  # and 8 adds of the sum
    assert any("at most 7 times" in text for text in run.provenance.warning_texts)


def test_what_a_value_decides_of_boxes_is_bounded(tmp_path):
    made = node("NonMaxSuppression", ["x", "s"])
    inputs = [info("x", 1, 10, 4), info("s", 1, 3, 10)]

    run = count_flops(save(tmp_path / "m.onnx", [made], inputs)).run

    assert run.totals.flops_at_most == 13 * 3 * 45  # 45 pairs of 10 boxes, of 3 classes


def test_an_older_graphs_shapes_are_worked_out(tmp_path):
    nodes = [
        node("Shape", ["x"], "s"),
        node("Gather", ["s", "zero"], "n"),
        node("Unsqueeze", ["n"], "m", axes=[0]),  # an attribute until opset 13
        node("Concat", ["m", "rest"], "shape", axis=0),
        node("Reshape", ["x", "shape"], "flat"),
        node("MatMul", ["flat", "w"]),
    ]
    numbers = [number("zero", 0), number("rest", [48])]
    path = save(tmp_path / "m.onnx", nodes, [X], [weight("w", 48, 5), *numbers])
    model = onnx.load(path)
    model.opset_import[0].version = 11
    onnx.save(model, path)

    assert count_flops(path).matmul_flops == 2 * 2 * 48 * 5


def test_a_lone_number_is_given_where_a_list_of_one_is_asked_for(tmp_path):
    nodes = [node("Mul", ["x", "x"])]
    inputs = [info("x", "n", 3), info("length", "n", dtype=I64)]
    path = save(tmp_path / "m.onnx", nodes, inputs)

    assert count_flops(path, "x=2x3 length=5").vector_flops == 6
    assert count_flops(path, "x=2x3 length=2:int64").vector_flops == 6
