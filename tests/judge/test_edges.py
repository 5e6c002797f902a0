"""Thresholds that decide what a user reads: a case on both sides of each edge."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from flopprof.api import analyse_traces
from flopprof.capture.passes import observer_effect
from flopprof.capture.record import Recording
from flopprof.cli import main
from flopprof.devices import find_device
from flopprof.judge.hidden import hidden_gaps
from flopprof.judge.roofs import kernel_units
from flopprof.judge.spread import TracedCall
from flopprof.judge.verdicts import OPAQUE_TYPES, judge_alone
from flopprof.judge.walk import OpFacts
from flopprof.tables import GAPS, KERNELS, OPS
from tests.events import ADDMM, LINEAR, kernel, launch, op, with_shapes, write_trace


@pytest.mark.parametrize(("long_us", "hidden"), [(1_500.0, 0), (2_500.0, 1)])
def test_a_gap_is_hidden_beyond_twenty_times_the_median_gap(long_us, hidden):
    # Median 100 µs: 20 × is 2 ms; 1 % of a run of 50 ms is 0.5 ms, and the least is 1 ms.
    gaps = GAPS.from_rows([{"duration_us": us} for us in [100.0] * 5 + [long_us]])
    ops = OPS.from_rows([{"cpu_us": 50_000.0, "start_us": 0.0}])

    call = TracedCall(ops, gaps.assign(start_us=0.0), KERNELS.empty())

    assert len(hidden_gaps(call)) == hidden


@pytest.mark.parametrize(("long_us", "hidden"), [(900.0, 0), (1_100.0, 1)])
def test_a_gap_is_hidden_beyond_one_percent_of_the_run(long_us, hidden):
    # 1 % of 110 ms is 1.1 ms less a little; 20 × the median of 1 µs is 20 µs.
    gaps = GAPS.from_rows([{"duration_us": us, "start_us": 0.0} for us in [1.0] * 5 + [long_us]])
    ops = OPS.from_rows([{"cpu_us": 105_000.0, "start_us": 0.0}])

    assert len(hidden_gaps(TracedCall(ops, gaps, KERNELS.empty()))) == hidden


@pytest.mark.parametrize(
    ("of_gemv", "unit"), [(0.4, ""), (0.6, "vector"), (0.9, "vector"), (0.5, "")]
)
def test_a_product_is_of_vector_units_where_most_of_its_kernel_time_is(of_gemv, unit):
    rows = [
        {"kernel_id": n, "op_id": 0, "kernel": name, "kind": "compute", "duration_us": us}
        for n, (name, us) in enumerate([("gemv2T", 100 * of_gemv), ("nvjet", 100 * (1 - of_gemv))])
    ]
    first = pd.Series([0]).to_numpy()

    number, names = kernel_units(first, first, KERNELS.from_rows(rows))

    assert names[number[0]] == unit


@pytest.mark.parametrize(("of_winograd", "unit"), [(0.04, ""), (0.06, "fast"), (0.9, "fast")])
def test_a_product_is_fast_from_a_twentieth_of_its_kernel_time_on(of_winograd, unit):
    times_us = {"winograd_fwd": 100 * of_winograd, "nvjet": 100 * (1 - of_winograd)}
    rows = [
        {"kernel_id": n, "op_id": 0, "kernel": name, "kind": "compute", "duration_us": us}
        for n, (name, us) in enumerate(times_us.items())
    ]
    first = pd.Series([0]).to_numpy()

    number, names = kernel_units(first, first, KERNELS.from_rows(rows))

    assert names[number[0]] == unit


@pytest.mark.parametrize(
    ("end_us", "matmul"),
    [
        # kineto prints nanoseconds of rounded floats: a child may end a few behind its parent.
        (10.501, 240),
        (10.6, 480),  # that is another call: both count
    ],
)
def test_a_child_that_ends_a_nanosecond_late_lies_in_its_parent(tmp_path, end_us, matmul):
    path = write_trace(
        tmp_path / "late.json",
        with_shapes(op("aten::linear", 0.5, 10.0), LINEAR),
        with_shapes(op("aten::addmm", 1.5, end_us - 1.5), ADDMM),
    )

    # [4,5] @ [5,6]: 4·6·5 multiply-adds × 2 = 240, once or twice.
    assert analyse_traces(path).totals.matmul_flops == matmul


def test_an_op_that_is_bounded_only_is_not_free(tmp_path):
    shapes = {"Input Dims": [[4, 5], [5, 6]], "Input type": ["float", "float"]}
    path = write_trace(
        tmp_path / "sparse.json",
        with_shapes(op("aten::_sparse_sparse_matmul", 0, 100), shapes),
        launch(1, 10),
        kernel(1, 20, 50),
    )

    [site] = analyse_traces(path).sites.itertuples()

    assert site.kind != "free"
    assert site.verdict != "free"
    assert math.isnan(site.flops)
    # No more than the dense product: 4·6·5 multiply-adds × 2.
    assert analyse_traces(path).ops["flops_at_most"].max() == 240


@pytest.mark.parametrize(("again_us", "told"), [(190.0, 0), (250.0, 1)])
def test_bare_calls_that_take_twice_as_long_after_tracing_are_told_of(monkeypatch, again_us, told):
    monkeypatch.setattr("flopprof.capture.record.time_calls", lambda *_, **__: [again_us])
    device = find_device("cpu")
    recording = Recording(path=Path(), profiler_flops={}, traced_us=100.0, changed_ops={})

    _, doubts = observer_effect(recording, [100.0], lambda: None, device, device.describe())

    assert len([doubt for doubt in doubts if doubt.code == "drift"]) == told


@pytest.mark.parametrize(
    "module_type",
    [
        "torch.jit._script.RecursiveScriptModule",
        "torch._dynamo.eval_frame.OptimizedModule",
        "torch.export.unflatten.InterpreterModule",
        "torch._export.Something",
        "torch._inductor.package.package.AOTICompiledModel",
    ],
)
def test_a_plain_op_inside_what_hooks_cannot_enter_is_opaque(module_type):
    assert module_type.startswith(OPAQUE_TYPES)
    facts: dict[str, Any] = dict.fromkeys(OpFacts._fields, math.nan)
    facts |= {"op": "aten::mm", "kind": "matmul", "phase": "forward", "module_path": "net"}
    row = OpFacts(**facts | {"counted": True, "profiler_differs": False, "matmul_flops": 240.0})

    judged = judge_alone(row, hooked=True, types={"net": module_type}, never=())
    plain = judge_alone(row, hooked=True, types={"net": "torch.nn.Linear"}, never=())

    assert (judged.verdict, judged.code) == ("opaque", "closed_module")
    assert (plain.verdict, plain.code) == ("functional", "no_hook_count")


@pytest.mark.parametrize(
    ("beside", "code"),
    [
        ((5, 0), 0),  # ResNet-18 has 122 tensors: 5 of 127 are 4 %
        ((6, 6), 0),  # 12 of 134 are 9 %
        ((10, 10), 5),  # 20 of 142 are 14 %, though each prefix is of nine tenths of what has it
        ((16, 0), 5),
    ],
)
def test_a_model_is_recognised_with_a_tenth_of_other_tensors_beside_it_and_not_with_more(
    tmp_path, capsys, beside, code
):
    torchvision = pytest.importorskip("torchvision")
    state = {f"module.model.{k}": v for k, v in torchvision.models.resnet18().state_dict().items()}
    state |= {f"module.loss.w{number}": torch.zeros(3) for number in range(beside[0])}
    state |= {f"other.w{number}": torch.zeros(3) for number in range(beside[1])}
    torch.save(state, tmp_path / "net.pth")

    assert main(["count", str(tmp_path / "net.pth")]) == code
