"""Which host node a kernel belongs to: the innermost around its launch, whatever its name."""

import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest

from flopprof.api import analyse_traces
from flopprof.formulas import OP_FORMULAS, OpCall, Work, op_formula
from flopprof.run import Run
from flopprof.trace.read import Trace, read_trace
from tests.events import ADDMM, kernel, launch, op, with_shapes, write_trace


def read(tmp_path: Path, *events: Any, **header: Any) -> Trace:
    return read_trace(write_trace(tmp_path / "trace.json", *events, **header))


def analyse(tmp_path: Path, *events: Any, **header: Any) -> Run:
    return analyse_traces(write_trace(tmp_path / "trace.json", *events, **header))


NORM = {"Input Dims": [[8, 16], [16]], "Input type": ["c10::BFloat16", "c10::BFloat16"]}


def test_a_custom_function_that_launches_kernels_is_an_extension_with_shapes_and_module(tmp_path):
    run = analyse(
        tmp_path,
        op("nn.Module: RMSNorm_0", 0, 50) | {"cat": "python_function"},
        with_shapes(op("MyFusedNormFunction", 5, 20), NORM),
        launch(1, 10),
        kernel(1, 100, 30, name="norm_fwd"),
    )

    (site,) = run.sites.itertuples()
    assert (site.op, site.verdict, site.phase) == ("MyFusedNormFunction", "extension", "forward")
    assert (site.input_shapes, site.dtype) == ("8x16, 16", "bfloat16")
    assert site.module_path == "RMSNorm_0"
    assert site.time_us == 30
    assert site.flops != site.flops  # unknown, not zero
    assert "norm_fwd" in site.reason


def test_a_formula_for_a_custom_function_by_its_name_counts_it(tmp_path):
    @op_formula("MyCountedFunction")
    def formula(call: OpCall) -> Work:
        rows, width = call.shape(0)
        return Work(vector_flops=4 * rows * width)

    try:
        run = analyse(
            tmp_path,
            with_shapes(op("MyCountedFunction", 5, 20), NORM),
            launch(1, 10),
            kernel(1, 100, 30),
        )
    finally:
        del OP_FORMULAS._items["MyCountedFunction"]

    assert list(run.sites["vector_flops"]) == [4 * 8 * 16]
    assert list(run.sites["verdict"]) == ["formula_only"]


ENGINE = "autograd::engine::evaluate_function: "


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("MyFnBackward", "extension"),
        ("torch::autograd::CppNode<MyCudaFunction>", "extension"),
        ("CompiledFunctionBackward", "fused"),
    ],
)
def test_a_backward_node_that_launches_kernels_is_a_row_of_the_backward(tmp_path, name, verdict):
    run = analyse(
        tmp_path,
        op("flopprof:block", 0, 10),
        with_shapes(op("aten::addmm", 1, 5, Sequence_number=4), ADDMM),
        op(ENGINE + name, 20, 30, tid=2, Sequence_number=4),
        with_shapes(op(name, 22, 20, tid=2, Sequence_number=4), NORM),
        launch(1, 25, tid=2),
        kernel(1, 100, 30, name="their_kernel"),
    )

    site = run.sites.set_index("op").loc[name]
    assert (site["verdict"], site["phase"], site["time_us"]) == (verdict, "backward", 30)
    assert site["module_path"] == "block"
    assert "their_kernel" in site["reason"]


@pytest.mark.parametrize(
    "name",
    [
        "CompiledFunction",
        "## Call CompiledFxGraph fabc ##",
        "fused_mul_add_relu_123",
        "Torch-Compiled Region: 0/1",
    ],
)
def test_compiled_code_that_launches_kernels_is_fused_and_names_them(tmp_path, name):
    run = analyse(
        tmp_path,
        op(name, 0, 50),
        launch(1, 10),
        kernel(1, 100, 30, name="triton_one"),
        launch(2, 20),
        kernel(2, 140, 10, name="gemm_two"),
    )

    (site,) = run.sites.itertuples()
    assert (site.verdict, site.time_us, site.calls) == ("fused", 40, 1)
    assert "triton_one 75.0 %; gemm_two 25.0 %" in site.reason


def test_a_graph_replayed_by_compiled_code_is_fused(tmp_path):
    run = analyse(
        tmp_path,
        op("CompiledFunction", 0, 50),
        launch(2, 20) | {"name": "cudaGraphLaunch"},
        *(kernel(2, 30 + 10 * n, 3 + n, name=name) for n, name in enumerate(("gemm", "relu"))),
    )

    (site,) = run.sites.itertuples()
    assert (site.op, site.verdict, site.time_us) == ("CompiledFunction", "fused", 7)
    assert "relu 57.1 %; gemm 42.9 %" in site.reason


def test_a_triton_kernel_of_the_users_is_an_extension_even_without_a_namespace(tmp_path):
    triton = {"kernel_hash": "c7", "kernel_file": "/x/k.py", "kernel_backend": "triton"}
    run = analyse(
        tmp_path,
        op("Torch-Compiled Region: 0/0", 0, 50),
        with_shapes(op("rope_kernel_0", 5, 20), NORM | triton),
        launch(1, 10),
        kernel(1, 100, 30, name="rope_kernel"),
    )

    sites = run.sites.set_index("op")
    assert sites.loc["rope_kernel_0", "verdict"] == "extension"
    assert sites.loc["rope_kernel_0", "time_us"] == 30


def test_a_node_that_only_wraps_ops_is_no_op(tmp_path):
    trace = read(
        tmp_path,
        op("MyFunction", 0, 30),
        with_shapes(op("aten::addmm", 5, 10), ADDMM),
        launch(1, 6),
        kernel(1, 100, 30),
    )

    assert list(trace.ops["op"]) == ["aten::addmm"]
    assert list(trace.kernels["op_id"]) == [0]


def test_an_optimizer_of_a_library_that_launches_its_own_kernels_is_a_row(tmp_path):
    trace = read(
        tmp_path,
        op("Optimizer.step#FusedAdam.step", 0, 30) | {"cat": "user_annotation"},
        op("aten::empty", 2, 1),
        launch(1, 6),
        kernel(1, 100, 30, name="multi_tensor_apply"),
    )

    ops = trace.ops.set_index("op")
    assert ops.loc["Optimizer.step#FusedAdam.step", "phase"] == "optimizer"
    assert ops.loc["Optimizer.step#FusedAdam.step", "device_us"] == 30
    assert ops.loc["aten::empty", "phase"] == "optimizer"


def test_a_step_of_the_profiler_launches_nothing_itself(tmp_path):
    trace = read(
        tmp_path,
        op("ProfilerStep#3", 0, 100),
        op("aten::relu", 5, 10),
        launch(1, 50),
        kernel(1, 100, 30),
    )

    assert list(trace.ops["op"]) == ["aten::relu"]
    assert list(trace.kernels["op_id"]) == [-1]


def test_a_launch_without_correlation_is_linked_by_its_external_id(tmp_path):
    bare = {"args": {"External id": 5}}
    trace = read(
        tmp_path,
        op("aten::relu", 0, 10, External_id=5),
        op("aten::neg", 20, 10, External_id=6),
        launch(0, 2) | bare,
        kernel(0, 40, 3) | bare,
        kernel(0, 50, 4) | {"args": {"External id": 6, "correlation": 77}},
    )

    assert list(trace.kernels["op_id"]) == [0, 1]
    assert any("2 kernels share no correlation id" in text for text in trace.info["warnings"])


def test_an_external_id_of_two_ops_or_of_a_later_op_links_nothing(tmp_path):
    trace = read(
        tmp_path,
        op("aten::relu", 0, 10, External_id=5),
        op("aten::neg", 20, 10, External_id=5),
        op("aten::neg", 90, 10, External_id=6),
        kernel(0, 40, 3) | {"args": {"External id": 5}},
        kernel(0, 50, 4) | {"args": {"External id": 6}},
    )

    assert list(trace.kernels["op_id"]) == [-1, -1]


def test_external_ids_that_the_correlations_disprove_link_nothing(tmp_path):
    trace = read(
        tmp_path,
        op("aten::relu", 0, 10, External_id=5),
        op("aten::neg", 20, 10, External_id=6),
        launch(1, 22),
        with_shapes(kernel(1, 40, 3), {"External id": 5}),  # launched by neg, says relu
        with_shapes(kernel(9, 50, 3), {"External id": 6}),
    )

    assert list(trace.kernels["op_id"]) == [1, -1]


@pytest.mark.parametrize(
    ("said", "op_id"),
    [
        ((5, 5), 2),  # one of two launches is where the External id says: half, and trusted
        ((5, 5, 5), -1),  # one of three
        ((5, 6, 6), 2),
    ],
)
def test_external_ids_count_where_half_of_the_correlations_confirm_them(tmp_path, said, op_id):
    # The first launch is in relu (5), the others in neg (6); the last kernel has none.
    launches = [launch(n, ts) for n, ts in enumerate((2, 22, 24)[: len(said)], start=1)]
    kernels = [
        with_shapes(kernel(n, 100 + n, 1), {"External id": external})
        for n, external in enumerate(said, start=1)
    ]

    trace = read(
        tmp_path,
        op("aten::relu", 0, 10, External_id=5),
        op("aten::neg", 20, 10, External_id=6),
        op("aten::abs", 40, 10, External_id=7),
        *launches,
        *kernels,
        with_shapes(kernel(9, 200, 3), {"External id": 7}),
    )

    assert trace.kernels["op_id"].iloc[-1] == op_id


@pytest.mark.parametrize(
    ("launching", "running"),
    [
        ("xpu_runtime", "kernel"),
        ("xpu_driver", "kernel"),
        ("privateuse1_runtime", "kernel"),
        ("privateuse1_driver", "kernel"),
        ("mtia_runtime", "mtia_ccp_events"),
        ("MTIA_RUNTIME", "MTIA_CCP_EVENTS"),
        ("hip_runtime", "kernel"),
    ],
)
def test_traces_of_other_vendors_have_ops_kernels_flops_and_times(tmp_path, launching, running):
    run = analyse(
        tmp_path,
        with_shapes(op("aten::addmm", 0, 10), ADDMM),
        launch(1, 2) | {"name": "enqueue", "cat": launching},
        kernel(1, 100, 30, cat=running),
    )

    (site,) = run.sites.itertuples()
    # [4,5] @ [5,6]: 4·6·5 multiply-adds × 2 and 24 additions, in 30 µs.
    assert (site.matmul_flops, site.vector_flops, site.time_us) == (240, 24, 30)
    assert site.attainable_flops_per_s != site.attainable_flops_per_s
    assert run.rooflines.empty or "hip" in launching
    assert any("no ceiling" in text for text in run.provenance.warning_texts)


def test_the_device_of_another_vendor_is_named_by_its_kind(tmp_path):
    run = analyse(
        tmp_path,
        op("aten::relu", 0, 10),
        launch(1, 2) | {"cat": "xpu_runtime"},
        kernel(1, 100, 30),
        deviceProperties=[{"id": 0, "name": "Intel(R) Data Center GPU Max 1550"}],
    )

    assert run.provenance.device.kind == "xpu"
    assert run.provenance.device.name == "Intel(R) Data Center GPU Max 1550"


def test_each_kernels_launch_is_found_in_linear_time(tmp_path):
    depth = 20_000
    nested = [op(f"MyFn{n}", n, 10 * depth - 2 * n) for n in range(depth)]
    # All have ended by the time of these launches: none of them is climbed for each.
    late = [
        event
        for n in range(depth)
        for event in (launch(n, 11 * depth + n), kernel(n, 12 * depth + n, 1))
    ]
    trace = read(tmp_path, *nested, op("aten::relu", 11 * depth, 2 * depth), *late)

    assert list(trace.ops["op"]) == ["aten::relu"]
    assert (trace.kernels["op_id"] == 0).all()


def test_no_hidden_kernel_of_a_real_trace_has_its_launch_in_a_named_node(gpu_traces):
    for path in sorted(gpu_traces.glob("*.json.gz")):
        trace = read_trace(path)
        hidden = trace.kernels[
            (trace.kernels["op_id"] == -1) & (trace.kernels["kind"] == "compute")
        ]
        lost = set(hidden["correlation_id"])
        events = [e for e in raw_events(path) if isinstance(e, dict) and e.get("ph") == "X"]
        launches = [
            e
            for e in events
            if str(e.get("cat")).lower() in ("cuda_runtime", "cuda_driver", "runtime")
            and e["args"].get("correlation") in lost
        ]
        nodes = [e for e in events if str(e.get("cat")).lower() in ("cpu_op", "operator")]
        for one in launches:
            around = {
                node["name"]
                for node in nodes
                if (node["pid"], node["tid"]) == (one["pid"], one["tid"])
                and node["ts"] <= one["ts"] <= node["ts"] + node["dur"]
            }
            assert all(name.startswith("ProfilerStep#") for name in around), (path.name, around)


def raw_events(path: Path) -> list[Any]:
    events: list[Any] = orjson.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return events


def test_a_kernels_duration_is_the_recorded_one_whatever_its_time_stamp(tmp_path):
    late = 4_711_000_000_000.123  # µs since the machine started: 2^-10 µs is what a float resolves
    events = [
        with_shapes(op("aten::addmm", late, 9.0), ADDMM),
        launch(7, late + 1),
        kernel(7, late + 2, 3.086),
    ]

    trace = read_trace(write_trace(tmp_path / "t.json", *events))

    assert trace.kernels["duration_us"].tolist() == [3.086]
    assert trace.ops["device_us"].tolist() == [3.086]


def test_a_kernel_has_grid_and_block_where_the_trace_tells_them(tmp_path):
    sized = kernel(1, 100, 30)
    sized["args"] |= {"grid": [64, 2, 1], "block": [128, 1, 1]}
    odd = kernel(1, 200, 30)
    odd["args"] |= {"grid": ["64", 2], "block": "big"}

    trace = read(tmp_path, op("aten::mm", 5, 20), launch(1, 10), sized, odd, kernel(1, 300, 30))

    assert [*trace.kernels["grid"]] == ["64x2x1", "", ""]
    assert [*trace.kernels["block"]] == ["128x1x1", "", ""]
