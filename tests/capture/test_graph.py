"""ONNX graphs are counted from their shapes, by hand-derived numbers; nothing is executed."""

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flopprof import count_flops
from flopprof.cli import main
from flopprof.errors import LoadError, UsageError

F = TensorProto.FLOAT


def info(name, *shape, dtype=F):
    return helper.make_tensor_value_info(name, dtype, shape)


def weight(name, *shape):
    return numpy_helper.from_array(np.zeros(shape, np.float32), name)


def save(path, nodes, inputs, weights=(), outputs=("y",), domains=()):
    found = [helper.make_tensor_value_info(name, F, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", inputs, found, list(weights))
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(d, 1) for d in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    return path


def node(op, inputs, output="y", **attributes):
    return helper.make_node(op, inputs, [output], name=f"the_{op}", **attributes)


X = info("x", 2, 3, 8, 8)
CASES = {
    # 2·5·6·6 outputs of 3·3·3 multiply-adds; a bias add for each
    "conv": (
        node("Conv", ["x", "w", "b"]),
        [X],
        [weight("w", 5, 3, 3, 3), weight("b", 5)],
        (2 * 360 * 27, 360),
    ),
    # each of 3 channels by itself: 2·3·6·6 outputs of 9 multiply-adds
    "depthwise": (
        node("Conv", ["x", "w"], group=3),
        [X],
        [weight("w", 3, 1, 3, 3)],
        (2 * 216 * 9, 0),
    ),
    # 2·3·8·8 inputs, each into 4 channels of 2·2; 2·4·16·16 outputs with a bias
    "transposed": (
        node("ConvTranspose", ["x", "w", "b"], strides=[2, 2]),
        [X],
        [weight("w", 3, 4, 2, 2), weight("b", 4)],
        (2 * 384 * 16, 2048),
    ),
    # [4,6] by [6,5]: 20 outputs of 6; C added
    "gemm": (
        node("Gemm", ["x", "w", "c"], transA=1),
        [info("x", 6, 4)],
        [weight("w", 6, 5), weight("c", 5)],
        (2 * 20 * 6, 20),
    ),
    "gemm_scaled": (  # scaled by alpha, C by beta and added: three for each output
        node("Gemm", ["x", "w", "c"], alpha=0.5, beta=2.0),
        [info("x", 4, 6)],
        [weight("w", 6, 5), weight("c", 5)],
        (240, 60),
    ),
    "matmul": (node("MatMul", ["x", "w"]), [info("x", 7, 4, 6)], [weight("w", 6, 5)], (1680, 0)),
    "einsum": (
        node("Einsum", ["x", "w"], equation="bij,jk->bik"),
        [info("x", 7, 4, 6)],
        [weight("w", 6, 5)],
        (2 * 7 * 4 * 6 * 5, 0),
    ),
    # 5 steps of 2: 4 gates of 3 from 4 + 3; 13 and with biases 8 more for each of the 3
    "lstm": (
        helper.make_node("LSTM", ["x", "w", "r", "b"], ["", "y"], hidden_size=3),
        [info("x", 5, 2, 4)],
        [weight("w", 1, 12, 4), weight("r", 1, 12, 3), weight("b", 1, 24)],
        (2 * 10 * 12 * 7, 10 * 3 * 21),
    ),
    "gru_both_ways": (
        helper.make_node(
            "GRU", ["x", "w", "r"], ["", "y"], hidden_size=3, direction="bidirectional"
        ),
        [info("x", 5, 2, 4)],
        [weight("w", 2, 9, 4), weight("r", 2, 9, 3)],
        (2 * 20 * 9 * 7, 20 * 3 * 11),
    ),
    "relu": (node("Relu", ["x"]), [X], [], (0, 384)),
    "softmax": (node("Softmax", ["x"]), [X], [], (0, 5 * 384)),
    "broadcast_add": (node("Add", ["x", "w"]), [info("x", 4, 1)], [weight("w", 6)], (0, 24)),
    "max_pool": (node("MaxPool", ["x"], kernel_shape=[2, 2], strides=[2, 2]), [X], [], (0, 384)),
    "layer_norm": (
        node("LayerNormalization", ["x", "w", "b"]),
        [info("x", 4, 6)],
        [weight("w", 6), weight("b", 6)],
        (0, 7 * 24),
    ),
    "transpose": (node("Transpose", ["x"]), [X], [], (0, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_node_counts_what_its_definition_says(name, tmp_path):
    made, inputs, weights, expected = CASES[name]

    count = count_flops(save(tmp_path / "m.onnx", [made], inputs, weights))

    assert (count.matmul_flops, count.vector_flops) == expected
    assert not count.run.unknown_ops


def test_arithmetic_of_integers_is_no_flops(tmp_path):
    nodes = [node("Add", ["x", "x"], "h"), node("Cast", ["h"], to=F)]

    count = count_flops(save(tmp_path / "m.onnx", nodes, [info("x", 4, dtype=TensorProto.INT64)]))

    assert (count.flops, count.run.unknown_ops) == (0, [])


def test_each_node_is_a_row_under_its_name_and_unknown_ones_are_named(tmp_path):
    nodes = [node("MatMul", ["x", "w"], "h"), helper.make_node("Odd", ["h"], ["y"], domain="me")]
    inputs, weights = [info("x", 2, 3)], [weight("w", 3, 4)]
    path = save(tmp_path / "m.onnx", nodes, inputs, weights, domains=["me"])

    run = count_flops(path).run

    assert run.totals.matmul_flops == 2 * 8 * 3
    assert run.unknown_ops == ["me::Odd"]
    assert "the_MatMul" in set(run.sites["module_path"])
    assert np.isnan(run.totals.flops_at_most)
    assert any("1 of 2 nodes" in text for text in run.provenance.warning_texts)


def test_sizes_that_are_open_are_asked_for_by_name(tmp_path):
    inputs, weights = [info("x", "batch", "words", 3)], [weight("w", 3, 4)]
    path = save(tmp_path / "m.onnx", [node("MatMul", ["x", "w"])], inputs, weights)

    with pytest.raises(UsageError, match="x is batch × words × 3") as caught:
        count_flops(path)
    assert "--input x=1x128x3" in caught.value.remedy
    assert count_flops(path, "x=2x5x3").matmul_flops == 2 * 2 * 5 * 4 * 3
    assert count_flops(path, (2, 5, 3)).matmul_flops == 2 * 2 * 5 * 4 * 3
    with pytest.raises(UsageError, match="no input 'z'; it has x"):
        count_flops(path, "z=2x5x3")
    with pytest.raises(UsageError, match="the input x is batch × words × 3, not"):
        count_flops(path, "x=2x5x4")


def test_a_batch_that_alone_is_open_is_one(tmp_path):
    inputs, weights = [info("x", "n", 3)], [weight("w", 3, 4)]

    count = count_flops(save(tmp_path / "m.onnx", [node("MatMul", ["x", "w"])], inputs, weights))

    assert count.matmul_flops == 2 * 4 * 3
    assert count.run.provenance.called.input_source == "the graph's own, batch 1"


def branch(name, width):
    result = helper.make_tensor_value_info(f"{name}_y", F, None)
    product = helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_y"])
    return helper.make_graph([product], name, [], [result], [weight(f"{name}_w", 3, width)])


def test_the_branch_is_counted_that_a_given_value_takes(tmp_path):
    rate = numpy_helper.from_array(np.array(16000, np.int64), "rate")
    nodes = [
        node("Equal", ["sr", "rate"], "is_high"),
        node("If", ["is_high"], then_branch=branch("high", 8), else_branch=branch("low", 4)),
    ]
    inputs = [info("x", 2, 3), info("sr", dtype=TensorProto.INT64)]
    path = save(tmp_path / "m.onnx", nodes, inputs, [rate])

    assert count_flops(path, "sr=16000").matmul_flops == 2 * 2 * 3 * 8
    assert count_flops(path, "sr=8000").matmul_flops == 2 * 2 * 3 * 4
    unsettled = count_flops(path)
    assert unsettled.run.unknown_ops == ["onnx::If (body)"]
    assert any("body of If the_If" in text for text in unsettled.run.provenance.warning_texts)


def test_a_scan_counts_its_body_for_each_step(tmp_path):
    state, step = info("s", 3), info("e", 3)
    body = helper.make_graph(
        [node("Add", ["s", "e"], "t"), node("Relu", ["t"], "o")],
        "body",
        [state, step],
        [info("t", 3), info("o", 3)],
    )
    scan = helper.make_node("Scan", ["s0", "x"], ["last", "y"], num_scan_inputs=1, body=body)

    path = save(tmp_path / "m.onnx", [scan], [info("s0", 3), info("x", 7, 3)])

    assert count_flops(path).vector_flops == 7 * (3 + 3)  # an add and a relu of 3, 7 times


@pytest.mark.parametrize("cut", [30, 60, 90])
def test_a_damaged_graph_is_told_by_its_code(cut, tmp_path, capsys):
    path = save(tmp_path / "m.onnx", *([CASES["gemm"][0]], *CASES["gemm"][1:3]))
    path.write_bytes(path.read_bytes()[:cut])

    assert main(["count", str(path)]) == LoadError.exit_code


def test_without_onnx_the_extra_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "m.onnx", [CASES["relu"][0]], [X])
    monkeypatch.setitem(sys.modules, "onnx", None)

    with pytest.raises(UsageError) as caught:
        count_flops(path)

    assert caught.value.remedy == "pip install 'flopprof[onnx]'"
