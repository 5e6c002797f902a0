"""Which ops count where an op and what it calls have other shapes (counting rule 4)."""

import json
import math

import pytest

from flopprof.api import analyse_traces
from flopprof.report.summary import busy_rate
from tests.events import kernel, launch, op, with_shapes, write_trace


def shaped(name, start, length, *shapes, kind="float"):
    return with_shapes(
        op(name, start, length),
        {"Input Dims": list(shapes), "Input type": [kind] * len(shapes)},
    )


def analysed(tmp_path, *events):
    return analyse_traces(write_trace(tmp_path / "trace.json", *events))


def test_the_last_op_counts_though_a_tensor_without_data_was_made_in_no_op(tmp_path):
    run = analysed(
        tmp_path,
        shaped("aten::empty_strided", 0, 10, []),
        shaped("aten::empty_strided", 2, 5, []),
        shaped("aten::mm", 20, 30, [64, 64], [64, 64]),
    )

    assert run.totals.matmul_flops == 2 * 64 * 64 * 64


def test_the_local_product_of_a_sharded_tensor_counts(tmp_path):
    whole = [64, 1024], [1024, 1024]
    run = analysed(
        tmp_path,
        shaped("aten::linear", 0, 100, *whole),
        shaped("aten::mm", 5, 90, *whole),
        shaped("aten::mm", 10, 50, [64, 1024], [1024, 512]),
        launch(1, 20),
        kernel(1, 30, 10),
    )

    # 64 · 1024 · 512 multiply-adds × 2; the kernel's 10 µs are of it.
    assert run.totals.matmul_flops == 67_108_864
    site = run.sites.query("matmul_flops > 0").iloc[0]
    assert site["input_shapes"] == "64x1024, 1024x512"
    assert site["time_us"] == 10
    assert "local shapes of a sharded tensor" in site["reason"]


def test_a_product_that_a_sharded_tensor_tries_without_data_does_not_count(tmp_path):
    whole = [64, 1024], [1024, 1024]
    run = analysed(
        tmp_path,
        shaped("aten::mm", 0, 100, *whole),
        op("aten::empty_strided", 5, 10),
        op("aten::empty_strided", 6, 5),  # what makes it one without data
        shaped("aten::mm", 20, 30, *whole),
        shaped("aten::mm", 22, 20, *whole),
        shaped("prims::unheard_of", 25, 5, *whole),
        shaped("aten::mm", 60, 30, [64, 1024], [1024, 512]),
    )

    assert run.totals.matmul_flops == 67_108_864  # 64 · 1024 · 512 multiply-adds, as above
    assert not run.unknown_ops
    assert run.ops["cpu_us"].tolist() == [100, 10, 5, 30, 20, 5, 30]  # its time is still there


@pytest.mark.parametrize("is_without_data", [True, False])
def test_a_replicated_product_counts_once_if_the_first_was_tried(tmp_path, is_without_data):
    product = [4, 8], [8, 2]
    made = [op("aten::empty_strided", 5, 10)]
    if is_without_data:
        made.append(op("aten::empty_strided", 6, 5))
    run = analysed(
        tmp_path,
        shaped("aten::mm", 0, 100, *product),
        *made,
        shaped("aten::mm", 20, 30, *product),
        shaped("aten::mm", 60, 30, *product),
    )

    # 4 · 2 · 8 multiply-adds: a subclass of one's own that has a buffer of its own does both.
    assert run.totals.matmul_flops == (128 if is_without_data else 256)


def test_a_local_product_right_below_a_linear_counts(tmp_path):
    run = analysed(
        tmp_path,
        shaped("aten::linear", 0, 100, [64, 1024], [1024, 1024]),
        shaped("aten::mm", 10, 50, [64, 1024], [1024, 512]),
    )

    assert run.totals.matmul_flops == 67_108_864


def test_elementwise_work_on_a_shard_counts_the_shard(tmp_path):
    run = analysed(
        tmp_path,
        shaped("aten::relu", 0, 100, [64, 1024]),
        shaped("aten::relu", 10, 50, [64, 512]),
        shaped("aten::clamp_min", 20, 30, [64, 512]),
    )

    assert run.totals.vector_flops == 64 * 512


def test_attention_on_a_shard_of_the_heads_counts_the_shard(tmp_path):
    whole = [[2, 8, 16, 32]] * 3
    name = "aten::_scaled_dot_product_flash_attention"
    run = analysed(
        tmp_path,
        shaped("aten::scaled_dot_product_attention", 0, 100, *whole),
        shaped(name, 5, 80, *whole),
        shaped(name, 10, 50, *[[2, 4, 16, 32]] * 3),
    )

    # 2 · 4 heads, 16 × 16 scores, 32 wide, two products: 2·4·16·16·32 × 2 × 2.
    assert run.totals.matmul_flops == 262_144


def test_the_batch_below_a_mapped_product_counts(tmp_path):
    run = analysed(
        tmp_path,
        shaped("aten::linear", 0, 100, [5], [7, 5]),
        shaped("aten::matmul", 5, 90, [5], [5, 7]),
        shaped("aten::mm", 10, 80, [1, 5], [5, 7]),
        shaped("aten::matmul", 15, 70, [1000, 1, 5], [5, 7]),
        shaped("aten::mm", 20, 60, [1000, 5], [5, 7]),
    )

    assert run.totals.matmul_flops == 70_000
    assert "shapes of a batch" in run.sites.query("matmul_flops > 0").iloc[0]["reason"]


@pytest.mark.parametrize(
    ("outer", "inner", "flops"),
    [
        # A linear's product in two dimensions: 6 · 5 · 7 × 2.
        (("linear", [2, 3, 5], [7, 5]), ("mm", [6, 5], [5, 7]), 420),
        (("matmul", [2, 3, 5], [2, 5, 7]), ("bmm", [2, 3, 5], [2, 5, 7]), 420),
        # One head dimension, padded from 5 to 8 for the kernel: 1·1·4·4·5 × 4.
        (
            ("scaled_dot_product_attention", *[[1, 1, 4, 5]] * 3),
            ("_scaled_dot_product_flash_attention", *[[1, 1, 4, 8]] * 3),
            320,
        ),
        # Heads and sequence change places below.
        (
            ("_scaled_dot_product_flash_attention", *[[2, 3, 4, 5]] * 3),
            ("_flash_attention_forward", *[[2, 4, 3, 5]] * 3),
            1920,
        ),
    ],
)
def test_an_ordinary_wrapper_counts_itself(tmp_path, outer, inner, flops):
    run = analysed(
        tmp_path,
        shaped(f"aten::{outer[0]}", 0, 100, *outer[1:]),
        shaped(f"aten::{inner[0]}", 10, 50, *inner[1:]),
    )

    counted = run.ops[run.ops["counted"]]
    assert counted["op"].tolist() == [f"aten::{outer[0]}"]
    assert run.totals.matmul_flops == flops


def test_a_complex_product_by_real_ones_counts_as_the_complex_one(tmp_path):
    run = analysed(
        tmp_path,
        shaped("aten::mm", 0, 100, [4, 5], [5, 6], kind="c10::complex<float>"),
        shaped("aten::mm", 10, 20, [4, 5], [5, 6]),
        shaped("aten::mm", 40, 20, [4, 5], [5, 6]),
        shaped("aten::mm", 70, 20, [4, 5], [5, 6]),
    )

    # 4·5·6 complex multiply-adds of eight FLOPs.
    assert run.totals.matmul_flops == 960


def test_an_annotation_inside_a_custom_backward_is_no_recomputation(tmp_path):
    annotation = op("my scale", 20, 40) | {"cat": "user_annotation"}
    run = analysed(
        tmp_path,
        op("autograd::engine::evaluate_function: MyFunctionBackward", 0, 100),
        op("MyFunctionBackward", 10, 80),
        annotation,
        shaped("aten::mm", 30, 10, [4, 5], [5, 6]),
    )

    assert run.ops.set_index("op").loc["aten::mm", "phase"] == "backward"
    assert run.by_phase()["phase"].tolist() == ["backward"]


def test_a_module_called_inside_a_backward_is_a_recomputation(tmp_path):
    module = op("nn.Module: Linear_0", 20, 40) | {"cat": "python_function"}
    run = analysed(
        tmp_path,
        op("autograd::engine::evaluate_function: CheckpointFunctionBackward", 0, 100),
        op("CheckpointFunctionBackward", 10, 80),
        module,
        shaped("aten::mm", 30, 10, [4, 5], [5, 6]),
    )

    assert run.by_phase()["phase"].tolist() == ["recompute"]


@pytest.mark.parametrize(
    "name",
    [
        "torch.distributed.ddp.reducer::copy_bucket_to_grad",
        "torch.distributed.ddp.reducer::search_unused_parameters",
        "torch::distributed::reducer::mul_out",
        "torch::distributed::reducer::copy_",
        "torch::distributed::autograd::backward",
        "torch::jit::InterpreterStateImpl::run",
        "FSDP::root_pre_forward",
        "FullyShardedDataParallel._pre_forward",
    ],
)
def test_a_range_of_pytorchs_own_is_no_op_and_what_it_calls_counts(tmp_path, name):
    run = analysed(
        tmp_path,
        op(name, 0, 100),
        shaped("aten::mul", 10, 50, [4, 5], [4, 5]),
    )

    assert run.ops["op"].tolist() == ["aten::mul"]
    assert run.totals.flops == run.totals.flops_at_most == 20


def test_an_annotation_of_pytorchs_own_names_no_module(tmp_path):
    run = analysed(
        tmp_path,
        op("FSDP::pre_forward (0)", 0, 100) | {"cat": "user_annotation"},
        shaped("aten::mul", 10, 50, [4, 5], [4, 5]),
    )

    assert run.ops["module_path"].tolist() == [""]


def a_product_that_did_not_run():
    """A bf16 product that was launched without a kernel, then an addition of 5 µs."""
    big = [4096, 4096]
    return (
        shaped("aten::mm", 0, 20, big, big, kind="c10::BFloat16"),
        launch(1, 5),
        shaped("aten::add", 30, 20, big, big, kind="c10::BFloat16"),
        launch(2, 35),
        kernel(2, 60, 5, "elementwise_kernel"),
    )


H100 = {"deviceProperties": [{"id": 0, "name": "NVIDIA H100 80GB HBM3", "numSms": 132}]}


def test_flops_that_did_not_run_stand_apart_and_are_in_no_rate(tmp_path):
    path = write_trace(tmp_path / "trace.json", *a_product_that_did_not_run(), **H100)
    run = analyse_traces(path)

    # 4096³ multiply-adds × 2 were recorded; 4096² additions ran in 5 µs: 3.36 TFLOP/s.
    assert run.totals.untimed_flops == 137_438_953_472
    assert run.totals.flops == 137_438_953_472 + 16_777_216
    assert busy_rate(run) == pytest.approx(16_777_216 / 5e-6)
    site = run.sites.set_index("op").loc["aten::mm"]
    assert site["time_us"] == 0
    assert math.isnan(site["achieved_flops_per_s"])
    assert "no kernel of it is in the trace" in site["reason"]
    assert "137 GFLOPs of them without a kernel" in run.report("text")
    assert json.loads(run.report("json"))["untimed_flops"] == 137_438_953_472


def test_calls_that_ran_are_a_site_apart_from_those_that_did_not(tmp_path):
    sizes = [[64, 64], [64, 64]]
    run = analysed(
        tmp_path,
        shaped("aten::mm", 0, 20, *sizes),
        launch(1, 5),
        shaped("aten::mm", 30, 20, *sizes),
        launch(2, 35),
        kernel(2, 60, 4),
    )

    # 64³ × 2 = 524,288 in 4 µs.
    assert sorted(run.sites["calls"]) == [1, 1]
    rates = run.sites["achieved_flops_per_s"].dropna()
    assert rates.tolist() == [pytest.approx(524_288 / 4e-6)]
    assert run.totals.untimed_flops == 524_288


def test_work_on_the_host_of_a_device_is_in_no_rate(tmp_path):
    run = analysed(
        tmp_path,
        shaped("aten::mul", 0, 20, [100], [100]),
        shaped("aten::add", 30, 20, [50], [50]),
        launch(2, 35),
        kernel(2, 60, 5),
    )

    assert run.totals.untimed_flops == 100
    assert busy_rate(run) == pytest.approx(50 / 5e-6)


def test_a_total_above_its_ceiling_is_told_of(tmp_path):
    big = [4096, 4096]
    run = analyse_traces(
        write_trace(
            tmp_path / "trace.json",
            shaped("aten::mm", 0, 20, big, big, kind="c10::BFloat16"),
            launch(1, 5),
            kernel(1, 60, 5),
            **H100,
        )
    )

    # 137 GFLOPs in 5 µs are 27 PFLOP/s.
    assert any("all FLOPs together" in warning for warning in run.provenance.warning_texts)


def test_a_cpu_trace_has_no_untimed_work(tmp_path):
    assert analysed(tmp_path, shaped("aten::mul", 0, 20, [100], [100])).totals.untimed_flops == 0


def test_waiting_for_modules_on_other_threads_is_no_gap(tmp_path):
    run = analysed(
        tmp_path,
        op("flopprof:", 0, 100_000),
        op("flopprof:a", 50_000, 10_000, tid=2),
        shaped("aten::relu", 50_100, 9_800, [10]) | {"tid": 2},
        op("flopprof:b", 55_000, 10_000, tid=3),
        shaped("aten::relu", 55_100, 9_800, [10]) | {"tid": 3},
        shaped("aten::relu", 99_000, 1_000, [10]),
    )

    # The forward waits 99 ms for two threads, whose own ops are there.
    assert "hidden" not in set(run.sites["verdict"])
    assert run.totals.coverage_frac == 1


def test_a_gap_beside_other_threads_that_no_module_was_handed_to_is_hidden(tmp_path):
    run = analysed(
        tmp_path,
        op("flopprof:", 0, 100_000),
        op("flopprof:a", 1_000, 1_000, tid=2),
        shaped("aten::relu", 1_200, 600, [10]) | {"tid": 2},
        shaped("aten::relu", 3_000, 1_000, [10]),
        shaped("aten::relu", 99_000, 1_000, [10]),
    )

    # From 4 to 99 ms nothing is in the trace.
    assert run.sites.query("verdict == 'hidden'")["time_us"].tolist() == [95_000]
