"""The one reader: every trap of trace files on a small trace of our own, and real GPU traces."""

import gzip
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flopprof.api import analyse_traces
from flopprof.assemble import as_call
from flopprof.capture.record import record_trace
from flopprof.devices import find_device
from flopprof.errors import FlopprofError, LoadError, UsageError
from flopprof.judge.reconcile import reconcile
from flopprof.tables import MODULE_CALLS, ROOFLINES
from flopprof.trace.read import Trace, read_trace
from tests.events import ADDMM, LINEAR, kernel, launch, op, with_shapes, write_trace


def read(tmp_path: Path, *events: Any, **header: Any) -> Trace:
    return read_trace(write_trace(tmp_path / "trace.json", *events, **header))


def test_an_op_below_a_counted_one_keeps_its_count_and_is_not_counted_again(tmp_path):
    trace = read(
        tmp_path,
        with_shapes(op("aten::linear", 0, 10), LINEAR),
        with_shapes(op("aten::addmm", 2, 6), ADDMM),
    )

    ops = trace.ops.set_index("op")
    # [4,5] @ [5,6]: 4·6·5 multiply-adds × 2 = 240; 4·6 = 24 bias adds.
    assert ops["matmul_flops"].to_dict() == {"aten::linear": 240, "aten::addmm": 240}
    assert ops["vector_flops"].to_dict() == {"aten::linear": 24, "aten::addmm": 24}
    assert ops["counted"].to_dict() == {"aten::linear": True, "aten::addmm": False}
    assert ops["parent_op_id"].to_dict() == {"aten::linear": -1, "aten::addmm": 0}
    assert ops["self_cpu_us"].to_dict() == {"aten::linear": 4, "aten::addmm": 6}


def test_ops_find_their_module_by_the_nearest_range(tmp_path):
    trace = read(
        tmp_path,
        op("flopprof:", 0, 100),
        op("flopprof:fc", 10, 50),
        with_shapes(op("aten::linear", 20, 10), LINEAR),
        op("aten::relu", 70, 5),
    )

    assert list(trace.ops["module_path"]) == ["fc", ""]
    assert list(trace.ops["call_id"]) == [1, 0]


def test_gaps_are_what_lies_in_no_op_of_each_range(tmp_path):
    trace = read(
        tmp_path,
        op("flopprof:", 0, 100),
        op("flopprof:fc", 10, 50),
        op("aten::relu", 20, 10),
        op("aten::neg", 25, 2),
    )

    gaps = sorted(zip(trace.gaps["module_path"], trace.gaps["duration_us"], strict=True))
    # Before and behind fc: 10 and 40; in it, around relu: 10 and 30. None inside an op.
    assert gaps == [("", 10), ("", 40), ("fc", 10), ("fc", 30)]


def test_kernels_belong_to_the_innermost_op_around_their_launch(tmp_path):
    trace = read(
        tmp_path,
        with_shapes(op("aten::linear", 0, 10), LINEAR),
        with_shapes(op("aten::addmm", 2, 6), ADDMM),
        launch(5, 4),
        kernel(5, 100, 30),
        op("aten::relu", 20, 5, tid=2),  # same time, another thread
        launch(6, 21),
        kernel(6, 200, 7),
    )

    assert list(trace.kernels["op_id"]) == [1, -1]
    assert list(trace.ops["device_us"]) == [30, 30, 0]
    assert trace.info["unlinked_kernel_us"] == 7


def test_many_kernels_of_one_op_are_one_flop_count_over_the_sum_of_their_times(tmp_path):
    trace = read(
        tmp_path,
        with_shapes(op("aten::addmm", 0, 10), ADDMM),
        *(launch(n, 2 + n) for n in range(3)),
        kernel(0, 100, 30),
        kernel(1, 130, 20),
        kernel(2, 150, 5, name="Memset (Device)", cat="gpu_memset"),
    )

    assert list(trace.ops["device_us"]) == [50]  # the memset is kept apart
    assert list(trace.kernels["kind"]) == ["compute", "compute", "memset"]


def test_a_wrong_external_id_does_not_mislead(tmp_path):
    trace = read(
        tmp_path,
        op("aten::relu", 0, 10, External_id=5),
        op("aten::neg", 20, 10, External_id=6),
        launch(1, 22),
        with_shapes(kernel(1, 40, 3), {"External id": 5}),
    )

    assert list(trace.kernels["op_id"]) == [1]


def test_launches_by_hip_and_by_a_driver_are_launches(tmp_path):
    trace = read(
        tmp_path,
        op("aten::relu", 0, 10),
        launch(1, 2) | {"name": "hipExtModuleLaunchKernel"},
        kernel(1, 20, 3),
        launch(2, 4) | {"name": "cuLaunchKernelEx", "cat": "cuda_driver"},
        kernel(2, 30, 3),
    )

    assert list(trace.kernels["op_id"]) == [0, 0]


def test_attention_counts_the_same_in_either_layout(tmp_path):
    wrapper = [[2, 4, 16, 32]] * 3  # batch, heads, length, width
    inner = [[2, 16, 4, 32]] * 3  # batch, length, heads, width
    types = {"Input type": ["c10::BFloat16"] * 3}
    trace = read(
        tmp_path,
        with_shapes(
            op("aten::scaled_dot_product_attention", 0, 20), {"Input Dims": wrapper} | types
        ),
        with_shapes(op("aten::_flash_attention_forward", 5, 9), {"Input Dims": inner} | types),
    )

    # 2·4 heads × 16·16 scores × 2·32 multiply-adds × 2.
    assert list(trace.ops["matmul_flops"]) == [2 * 4 * 256 * 64 * 2] * 2
    assert list(trace.ops["counted"]) == [True, False]


def test_busy_time_is_the_union_of_overlapping_kernels(tmp_path):
    trace = read(
        tmp_path,
        op("aten::relu", 0, 10),
        *(launch(n, n) for n in range(4)),
        kernel(0, 100, 50),
        kernel(1, 110, 10),
        kernel(2, 140, 30),
        kernel(3, 200, 10),
    )

    # 100…170 and 200…210.
    assert trace.info["device_busy_us"] == 80
    assert trace.info["kernel_time_us"] == 100


def test_collectives_are_no_compute(tmp_path):
    trace = read(
        tmp_path,
        op("aten::relu", 0, 10),
        launch(1, 1),
        kernel(1, 20, 40, name="ncclDevKernel_AllReduce_Sum_f32"),
    )

    assert list(trace.kernels["kind"]) == ["communication"]
    assert list(trace.ops["device_us"]) == [0]


def test_header_keys_may_follow_the_events(tmp_path):
    path = tmp_path / "trace.json"
    events = json.dumps([op("aten::relu", 0, 1)])
    path.write_text(f'{{"traceEvents": {events}, "deviceProperties": [{{"name": "X"}}], "a": 1}}')

    assert read_trace(path).devices == [{"name": "X"}]


def test_a_gzipped_trace_is_known_by_its_content(tmp_path):
    path = tmp_path / "trace.json"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": [op("aten::relu", 0, 1)]}).encode()))

    assert len(read_trace(path).ops) == 1


def test_the_bare_array_form_is_read(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps([op("aten::relu", 0, 1)]))

    assert len(read_trace(tmp_path / "t.json").ops) == 1


def test_the_schema_of_2021_is_read(tmp_path):
    event = op("aten::mm", 10, 0, tid="99", Input_dims=[[4, 5], [5, 6]], Input_type=["Float"] * 2)
    trace = read(tmp_path, event | {"cat": "Operator"}, kernel(1, 20, 0, cat="Kernel"))

    assert list(trace.ops["matmul_flops"]) == [240]
    assert list(trace.ops["dtype"]) == ["float32"]
    assert list(trace.kernels["duration_us"]) == [0]


def test_a_convolution_without_recorded_stride_is_unknown_not_zero(tmp_path):
    shapes = {"Input Dims": [[1, 3, 8, 8], [4, 3, 3, 3]], "Input type": ["float", "float"]}
    trace = read(tmp_path, with_shapes(op("aten::conv2d", 0, 1), shapes))

    assert trace.ops["matmul_flops"].isna().all()
    assert not trace.ops["counted"].any()


def test_engine_and_optimizer_events_are_no_ops_and_tell_the_phase(tmp_path):
    name = "autograd::engine::evaluate_function: AddmmBackward0"
    trace = read(
        tmp_path,
        op("flopprof:fc", 0, 10),
        with_shapes(op("aten::linear", 1, 5, Sequence_number=3), LINEAR),
        op(name, 20, 10, tid=2, Sequence_number=3),
        op("AddmmBackward0", 21, 8, tid=2),
        op("aten::mm", 22, 4, tid=2),
        op("Optimizer.step#SGD.step", 40, 10),
        op("aten::add_", 42, 4),
    )

    ops = trace.ops.set_index("op")
    assert list(ops.index) == ["aten::linear", "aten::add_", "aten::mm"]
    assert ops["phase"].to_dict() == {
        "aten::linear": "forward",
        "aten::mm": "backward",
        "aten::add_": "optimizer",
    }
    assert ops.loc["aten::mm", "module_path"] == "fc"  # by the sequence number


def test_what_an_optimizer_calls_as_its_closure_is_no_part_of_the_optimizer(tmp_path):
    trace = read(
        tmp_path,
        op("Optimizer.step#LBFGS.step", 0, 100),
        op("flopprof:fc", 5, 10),
        with_shapes(op("aten::linear", 6, 5, Sequence_number=3), LINEAR),
        op("aten::mean", 20, 5, Sequence_number=4),  # the loss
        op("autograd::engine::evaluate_function: AddmmBackward0", 30, 10, Sequence_number=3),
        op("AddmmBackward0", 31, 8),
        op("aten::mm", 32, 4),
        op("aten::dot", 60, 4),
    )

    phases = trace.ops.set_index("op")["phase"].to_dict()
    assert phases["aten::linear"] == phases["aten::mean"] == "forward"
    assert phases["aten::mm"] == "backward"
    assert phases["aten::dot"] == "optimizer"
    assert trace.ops.set_index("op").loc["aten::mm", "module_path"] == "fc"


def test_a_backward_node_tells_the_phase_though_no_range_of_the_engine_is_around_it(tmp_path):
    trace = read(
        tmp_path,
        op("aten::mm", 0, 5),
        op("AddmmBackward0", 20, 8, tid=2),
        op("aten::mm", 22, 4, tid=2),
    )

    assert sorted(trace.ops["phase"]) == ["backward", "forward"]


def test_generated_kernels_without_a_namespace_are_ops(tmp_path):
    trace = read(
        tmp_path, op("triton_poi_fused_relu_0", 0, 5), op("Torch-Compiled Region: 0/0", 9, 1)
    )

    assert list(trace.ops["op"]) == ["triton_poi_fused_relu_0", "inductor::compiled_region"]


def test_an_autograd_function_with_a_formula_is_an_op_with_its_kernels(tmp_path):
    shapes = {"Input Dims": [[2, 8, 4, 32]] * 3, "Input type": ["c10::Half"] * 3}
    trace = read(
        tmp_path,
        with_shapes(op("FlashAttnFunc", 0, 10), shapes),
        launch(1, 2),
        kernel(1, 20, 5),
    )

    # 2·4 heads, 8·8 scores of 2·32 multiply-adds.
    assert list(trace.ops["matmul_flops"]) == [2 * 4 * 64 * 64 * 2]
    assert list(trace.kernels["op_id"]) == [0]


def test_modules_of_a_foreign_trace_come_from_its_python_events(tmp_path):
    outer = op("nn.Module: Block_0", 0, 50) | {"cat": "python_function"}
    inner = op("nn.Module: Linear_3", 5, 20) | {"cat": "python_function"}
    trace = read(tmp_path, outer, inner, with_shapes(op("aten::linear", 6, 5), LINEAR))

    assert list(trace.ops["module_path"]) == ["Block_0.Linear_3"]
    assert trace.module_types["Block_0.Linear_3"] == "Linear"


@pytest.mark.parametrize(
    ("spelling", "name", "size"),
    [
        ("float", "float32", 4),
        ("double", "float64", 8),
        ("c10::BFloat16", "bfloat16", 2),
        ("c10::Half", "float16", 2),
        ("c10::Float8_e4m3fn", "float8_e4m3fn", 1),
        ("unsigned char", "uint8", 1),
    ],
)
def test_dtypes_as_traces_spell_them(tmp_path, spelling, name, size):
    shapes = {"Input Dims": [[4, 5], [5, 6]], "Input type": [spelling, spelling]}
    trace = read(tmp_path, with_shapes(op("aten::mm", 0, 1), shapes))

    assert list(trace.ops["dtype"]) == [name]
    assert list(trace.ops["min_bytes"]) == [(20 + 30 + 24) * size]


def test_bytes_of_an_unknown_dtype_are_unknown(tmp_path):
    shapes = {"Input Dims": [[[2, 3], [2, 3]], []], "Input type": ["TensorList", "Scalar"]}
    trace = read(tmp_path, with_shapes(op("aten::cat", 0, 1), shapes))

    assert trace.ops["min_bytes"].isna().all()
    assert list(trace.ops["input_shapes"]) == ["[2x3, 2x3]"]


def test_odd_events_are_left_out_and_reported(tmp_path):
    trace = read(
        tmp_path,
        op("aten::relu", 0, 1),
        op("aten::relu", -5, -3),
        op("aten::relu", "soon", 1),
        op("aten::relu", math.nan, 1) | {"ts": None},
        "no event",
        {"ph": "i"},
    )

    assert len(trace.ops) == 1
    assert trace.info["warnings"] == ["3 events without finite times were left out"]


def test_duplicate_ids_and_orphans_are_no_error(tmp_path):
    events = [op("aten::relu", n, 1, External_id=7) for n in range(3)]
    trace = read(tmp_path, *events, launch(1, 0), launch(1, 1), kernel(1, 5, 1), kernel(9, 6, 1))

    assert len(trace.ops) == 3
    assert trace.kernels["op_id"].iloc[1] == -1


def test_profiler_flops_join_by_external_id_and_zero_is_unknown(tmp_path):
    path = tmp_path / "t.json"
    events = [op("aten::relu", n, 1, External_id=n) for n in (1, 2, 3)]
    path.write_text(json.dumps({"traceEvents": events}))

    flops = read_trace(path, profiler_flops={1: 64.0, 2: 0.0}).ops["profiler_flops"]

    assert flops[0] == 64
    assert flops[1:].isna().all()


def test_the_order_of_events_changes_nothing(tmp_path):
    events = [
        op("flopprof:", 0, 100, External_id=1),
        with_shapes(op("aten::linear", 10, 20, External_id=2), LINEAR),
        with_shapes(op("aten::addmm", 10, 20, External_id=3), ADDMM),  # equal times: id decides
        op("aten::relu", 40, 5, External_id=4),
    ]
    straight = read(tmp_path, *events)
    random.Random(0).shuffle(events)

    assert read(tmp_path, *events).ops.equals(straight.ops)


def test_a_kernel_in_tf32_makes_its_op_one_of_tf32(tmp_path):
    trace = read(
        tmp_path,
        with_shapes(op("aten::addmm", 0, 10), ADDMM),
        launch(1, 2),
        kernel(1, 100, 5, name="cutlass_80_tensorop_s1688gemm_128x128_16x5_nn_align4"),
        with_shapes(op("aten::addmm", 20, 10), ADDMM),
        launch(2, 22),
        kernel(2, 110, 5, name="ampere_sgemm_128x64_nn"),
    )

    assert list(trace.ops["dtype"]) == ["tfloat32", "float32"]


def test_a_backward_thread_that_comes_first_in_the_file_finds_its_forward_module(tmp_path):
    name = "autograd::engine::evaluate_function: AddmmBackward0"
    trace = read(
        tmp_path,
        op(name, 20, 10, tid=2, Sequence_number=3),
        op("aten::mm", 22, 4, tid=2),
        op("flopprof:fc", 0, 10),
        with_shapes(op("aten::linear", 1, 5, Sequence_number=3), LINEAR),
    )

    assert trace.ops.set_index("op")["module_path"].to_dict() == {
        "aten::linear": "fc",
        "aten::mm": "fc",
    }


def test_modules_come_from_user_annotations_where_nothing_better_is_there(tmp_path):
    annotation = {"cat": "user_annotation"}
    trace = read(
        tmp_path,
        op("ProfilerStep#3", 0, 100) | annotation,
        op("encoder", 5, 50) | annotation,
        with_shapes(op("aten::linear", 6, 5), LINEAR),
        op("nccl:all_reduce", 20, 10) | annotation,
        op("aten::relu", 21, 5),
        op("aten::neg", 70, 5),
    )

    assert list(trace.ops["module_path"]) == ["encoder", "encoder", ""]
    assert trace.info["steps"] == [("ProfilerStep#3", -5, 100)]  # from the first op or range


def test_steps_are_the_hosts_alone(tmp_path):
    trace = read(
        tmp_path,
        op("ProfilerStep#3", 10, 100),  # 2021: an operator
        op("ProfilerStep#3", 20, 90, tid=7) | {"cat": "gpu_user_annotation"},
        op("aten::neg", 70, 5),
    )

    assert trace.info["steps"] == [("ProfilerStep#3", 0, 100)]


def test_replays_of_a_graph_are_grouped_by_its_id_or_by_equal_kernels(tmp_path):
    replay = {"name": "hipGraphLaunch"}
    trace = read(
        tmp_path,
        op("aten::neg", 0, 5),
        with_shapes(kernel(1, 10, 1), {"graph id": 4}),
        launch(2, 20) | replay,
        *(kernel(2, 20 + n, 1, name=name) for n, name in enumerate("ab")),
        launch(3, 30) | replay,
        *(kernel(3, 30 + n, 1, name=name) for n, name in enumerate("ab")),
        launch(5, 40) | replay,
        kernel(5, 40, 1, name="c"),
        with_shapes(kernel(6, 50, 1), {"graph id": 0}),  # 0 stands for none
    )

    assert list(trace.kernels["graph_id"]) == [4, 1, 1, 1, 1, 2, -1]


def test_a_convolution_of_2021_gets_its_output_from_what_the_next_op_takes(tmp_path):
    shapes = {"Input Dims": [[2, 3, 8, 8], [4, 3, 3, 3], [4]], "Input type": ["float"] * 3}
    norm = {"Input Dims": [[2, 4, 4, 4], [4]], "Input type": ["float"] * 2}
    trace = read(
        tmp_path,
        with_shapes(op("aten::conv2d", 0, 10), shapes),
        with_shapes(op("aten::cudnn_convolution", 2, 5), shapes),
        with_shapes(op("aten::batch_norm", 20, 5), norm),
    )

    # 2 images × 4 channels × 4·4 outputs × 3·3·3 taps × 2; a bias each.
    assert trace.ops["matmul_flops"][0] == 2 * 4 * 16 * 27 * 2
    assert trace.ops["vector_flops"][0] == 2 * 4 * 16
    assert list(trace.ops["counted"][:2]) == [True, False]


def test_a_convolution_of_2021_gets_its_output_from_its_backward(tmp_path):
    shapes = {"Input Dims": [[2, 3, 8, 8], [4, 3, 3, 3]], "Input type": ["float"] * 2}
    taken = {"Input Dims": [[2, 4, 9, 9]], "Input type": ["float"]}  # padded by something unseen
    back = [[2, 3, 8, 8], [2, 4, 4, 4], [4, 3, 3, 3]]
    trace = read(
        tmp_path,
        with_shapes(op("aten::conv2d", 0, 10, Sequence_number=7), shapes),
        with_shapes(op("aten::relu", 20, 5), taken),
        op("CudnnConvolutionBackward", 50, 40, tid=2, Sequence_number=7),
        with_shapes(op("aten::cudnn_convolution_backward", 51, 30, tid=2), {"Input Dims": back}),
        with_shapes(
            op("aten::cudnn_convolution_backward_weight", 55, 5, tid=2),
            {"Input Dims": [[], [2, 4, 4, 4], [2, 3, 8, 8]], "Input type": ["", "float", "float"]},
        ),
    )

    flops = trace.ops.set_index("op")["matmul_flops"]
    assert flops["aten::conv2d"] == 2 * 4 * 16 * 27 * 2
    # Each gradient element meets the 27 taps of its output once.
    assert flops["aten::cudnn_convolution_backward_weight"] == 2 * 4 * 16 * 27 * 2
    assert set(trace.ops["phase"]) == {"forward", "backward"}


@pytest.mark.parametrize("number", [10**30, -(1 << 63), (1 << 64) - 1, "²", "9" * 40])
def test_ids_that_fit_no_integer_are_no_error(tmp_path, number):
    trace = read(
        tmp_path,
        op("aten::relu", 0, 5, External_id=number, Sequence_number=number),
        launch(number, 1),
        kernel(number, 10, 5),
    )

    assert list(trace.ops["external_id"]) == [-1]
    assert list(trace.kernels["op_id"]) == [-1]


@pytest.mark.parametrize(
    "args",
    [
        [1, 2],
        {"Input Dims": "x", "Input type": 5, "Concrete Inputs": {"a": 1}},
        {"Input Dims": [[-1, 2], ["a"]], "Input type": ["float", 3]},
        {"Input Dims": [[10**18] * 20, [10**18] * 20], "Input type": ["float", "float"]},
        {"Input Dims": [[[[[[1]]]]]], "Input type": ["float"]},
        {"Input Dims": json.loads("[" * 900 + "]" * 900)},
    ],
)
def test_arguments_of_no_known_form_leave_an_op_unknown(tmp_path, args):
    event = op("aten::mm", 0, 5) | {"args": args}
    odd = [op("aten::neg", 20, 1) | {"pid": [1], "tid": {"a": 1}}, op("a", 1, 1) | {"cat": [1]}]
    trace = read(tmp_path, op("aten::relu", 10, 1), event, *odd, distributedInfo={"rank": "zero"})

    assert "aten::relu" in list(trace.ops["op"])
    assert trace.ops.query("op == 'aten::mm'")["matmul_flops"].isna().all()
    assert trace.info["rank"] == 0


def test_ops_that_overlap_in_a_cycle_are_read(tmp_path):
    events = [op(f"aten::op{n}", n, 1000) for n in range(5000)]  # each begins in the last, ends out

    trace = read(tmp_path, *events, *reversed(events))

    assert len(trace.ops) == 10_000


def bad(path: Path) -> FlopprofError:
    with pytest.raises(FlopprofError) as caught:
        read_trace(path)
    assert str(path) in caught.value.problem
    return caught.value


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"  \n",
        b"not a trace",
        b'{"a": 1}',
        b'{"traceEvents": [{"ph": "X", "name": "aten::re',
        b'{"traceEvents": [{"ph": "X"}, {"ph": "X"}',
        b'{"traceEvents": []}',
        b'{"x": oops, "traceEvents": []}',
        gzip.compress(b'{"traceEvents": [' + bytes(range(32, 90)) * 1000)[:-20],
        b'{"traceEvents": [' + b'{"a":' * 100_000,
        b'{"traceEvents": [{"ph": "X", "name": "a", "ts": NaN, "dur": 1}]}',
        b'{"traceEvents": [' + b"[" * 100_000 + b"]" * 100_000 + b"]}",
    ],
)
def test_a_damaged_file_is_refused_with_a_message(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content)

    assert isinstance(bad(path), LoadError)


def test_a_trace_of_launches_alone_says_how_to_record_ops(tmp_path):
    error = bad(write_trace(tmp_path / "t.json", launch(1, 2)))

    assert "without ops" in error.problem
    assert "ProfilerActivity.CPU" in error.remedy


@pytest.mark.parametrize("dims", [[1, 2], [[4, 5], 7], ["x", [5, 6]], [None, [1]], [{"a": 1}]])
def test_shapes_that_are_no_lists_are_left_out_with_a_warning(tmp_path, dims):
    args = {"Input Dims": dims, "Input type": ["float", "float"]}
    trace = read(tmp_path, op("aten::neg", 10, 1), with_shapes(op("aten::mm", 0, 5), args))

    assert trace.ops.query("op == 'aten::mm'")["matmul_flops"].isna().all()
    assert any("the shapes of aten::mm are" in text for text in trace.info["warnings"])


def test_strides_that_are_no_lists_change_nothing(tmp_path):
    strides = {"Input Strides": [1, 1]}
    trace = read(tmp_path, with_shapes(op("aten::addmm", 0, 5), ADDMM | strides))

    assert list(trace.ops["matmul_flops"]) == [240]


@pytest.mark.parametrize(
    "properties",
    [
        [{"name": 5}],
        [{"name": None, "numSms": "many"}],
        [{"id": [0], "name": ["H100"]}],
        {"name": 5},
        "H100",
        [[1]],
        [{"name": "H100", "totalGlobalMem": {}}],
        [{"warpSize": "64", "name": {}}],
    ],
)
def test_device_properties_of_no_known_form_are_left_out_with_a_warning(tmp_path, properties):
    events = [op("aten::neg", 0, 5), launch(1, 2), kernel(1, 10, 5)]
    path = write_trace(tmp_path / "t.json", *events, deviceProperties=properties)

    run = analyse_traces(path)

    assert any(
        "deviceProperties are of no known form" in text for text in run.provenance.warning_texts
    )
    assert run.report("text")


def test_one_endless_string_is_refused_in_bounded_memory(tmp_path):
    path = tmp_path / "long.json.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"traceEvents": [{"ph": "X", "name": "')
        for _ in range(100):
            file.write(b"a" * (1 << 20))

    assert "no whole event" in bad(path).problem


def test_a_missing_file_is_a_usage_error(tmp_path):
    assert isinstance(bad(tmp_path / "nothing.json"), UsageError)


def test_a_live_trace_joins_the_profilers_flops(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 5)).eval()
    x = torch.ones(2, 3, 8, 8)
    with torch.no_grad():
        model(x)
        recording = record_trace(
            model, lambda: model(x), tmp_path / "t.json", device=find_device("cpu"), attempts=1
        )

    ops = read_trace(recording.path, profiler_flops=recording.profiler_flops).ops
    by_name = ops.drop_duplicates("op").set_index("op")
    # 2 images × 4 channels × 6 × 6 outputs × 3·3·3 taps × 2; 2 rows × 144 × 5 × 2.
    assert by_name.loc["aten::conv2d", "profiler_flops"] == 2 * 4 * 36 * 27 * 2
    assert by_name.loc["aten::conv2d", "matmul_flops"] == 2 * 4 * 36 * 27 * 2
    assert by_name.loc["aten::addmm", "profiler_flops"] == 2 * 144 * 5 * 2
    assert list(ops.loc[ops["counted"], "module_path"]) == ["0", "1", "2"]


# Real traces recorded by others, where they are.


def sites_of(trace: Trace) -> Any:
    empty = ROOFLINES.empty()
    return reconcile(MODULE_CALLS.empty(), [as_call(trace)], empty, dtype="bfloat16").sites


def test_h100_vit_inference(gpu_traces):
    trace = read_trace(gpu_traces / "h100_vit_infer.json.gz")
    addmm = trace.ops[trace.ops["op"] == "aten::addmm"]

    assert len(addmm) == 73
    assert addmm["matmul_flops"].sum() == pytest.approx(1.339e11, rel=0.001)
    assert addmm["device_us"].sum() == pytest.approx(735, abs=1)
    assert (trace.kernels["op_id"] >= 0).all()
    sites = sites_of(trace)
    assert sites.loc[sites["flops"].notna(), "time_us"].sum() >= 0.97 * sites["time_us"].sum()


def test_h100_training_of_two_ranks(gpu_traces):
    for rank in (0, 1):
        trace = read_trace(gpu_traces / f"h100_nanogpt_train_rank{rank}.json.gz")
        mm = trace.ops[trace.ops["op"] == "aten::mm"]
        scaled = trace.ops[trace.ops["op"] == "aten::_scaled_mm"]

        assert (len(mm), len(scaled)) == (636, 12)
        assert mm["matmul_flops"].sum() == pytest.approx(2.969e13, rel=0.001)
        assert scaled["matmul_flops"].sum() == pytest.approx(1.519e13, rel=0.001)
        assert set(trace.kernels["rank"]) == {rank}
        assert trace.info["unlinked_kernel_us"] > 0
        if rank == 0:
            assert mm["device_us"].sum() == pytest.approx(42_900, rel=0.001)
            assert scaled["device_us"].sum() == pytest.approx(10_846, rel=0.001)
        attention = sites_of(trace).query("op == 'flash_attn_3::fwd'")
        assert attention["flops"].isna().all()  # packed: bounded, not zero
        assert (attention["flops_at_most"] > 0).all()


def test_mi300x_device_ids_differ_and_kernels_are_linked(gpu_traces):
    trace = read_trace(gpu_traces / "mi300x_bert_small_infer.json.gz")

    assert set(trace.kernels["device_index"]) == {2}
    assert (trace.kernels.query("kind == 'compute'")["op_id"] >= 0).all()


def test_v100_of_2021_has_kernels_of_no_length(gpu_traces):
    trace = read_trace(gpu_traces / "v100_resnet50_train_2021.json.gz")

    assert (trace.kernels["duration_us"] == 0).sum() > 600
    assert set(trace.ops["phase"]) >= {"forward", "backward"}
    forward = trace.ops[trace.ops["op"] == "aten::conv2d"]
    # 6 steps × 32 images × ResNet-50's published 4.089 GMACs, which include 0.05 % of linear.
    assert forward["matmul_flops"].sum() == pytest.approx(6 * 32 * 2 * 4.089e9, rel=0.01)
    backward = trace.ops[trace.ops["op"].str.contains("convolution_backward_")]
    # Two products each, but for the first convolution, whose input needs no gradient.
    first = 6 * 32 * 2 * 64 * 112 * 112 * 3 * 7 * 7
    expected = 2 * forward["matmul_flops"].sum() - first
    assert backward["matmul_flops"].sum() == pytest.approx(expected, rel=1e-9)
    assert (backward["device_us"] > 0).any()


HALVES = {"Input Dims": [[6], [4, 5], [5, 6]], "Input type": ["c10::BFloat16"] * 3}


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ([with_shapes(op("aten::addmm", 10, 50), HALVES)], "bfloat16"),
        ([with_shapes(op("aten::addmm", 10, 50), ADDMM)], "float32"),
        ([with_shapes(op("aten::to", 10, 50), HALVES)], "float32"),
        # Not the whole work: a product of another size is another product.
        (
            [
                with_shapes(
                    op("aten::addmm", 10, 50), HALVES | {"Input Dims": [[6], [4, 2], [2, 6]]}
                )
            ],
            "float32",
        ),
    ],
    ids=["autocast", "same", "a cast alone", "part of it"],
)
def test_a_product_has_the_element_type_that_autocast_ran_it_in(tmp_path, inner, expected):
    outer = with_shapes(op("aten::linear", 0, 100), LINEAR)

    ops = read_trace(write_trace(tmp_path / "trace.json", outer, *inner)).ops

    assert ops.set_index("op").loc["aten::linear", "dtype"] == expected
