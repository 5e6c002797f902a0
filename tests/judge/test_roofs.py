"""Roofs: one rule for the table, the chart and the annotated trace; each op knows its site."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from flopprof.api import analyse_traces
from flopprof.assemble import as_call
from flopprof.judge.reconcile import reconcile
from flopprof.judge.roofs import OVERHEAD_FRAC, TOLERANCE, Roofline, is_above, site_roofline
from flopprof.report.chart.data import chart_data
from flopprof.report.perfetto import annotate_trace
from flopprof.tables import MODULE_CALLS, ROOFLINES
from flopprof.trace.read import read_trace
from tests.events import kernel, launch, op, with_shapes, write_trace

H100 = {"id": 0, "name": "NVIDIA H100 80GB HBM3", "numSms": 132, "computeMajor": 9}
# [1024, 1024] @ [1024, 1024] + [1024]: 2 · 1024³ multiply-add FLOPs, 1024² additions, in bf16
# 2 · (3 · 1024² + 1024) bytes: 341 FLOPs/B, right of the ridge of either unit.
FLOPS = 2 * 1024**3 + 1024**2
SQUARE = {
    "Input Dims": [[1024], [1024, 1024], [1024, 1024]],
    "Input type": ["c10::BFloat16"] * 3,
}


def one_by_tensor_cores_and_one_by_gemv(folder: Path) -> Path:
    """Write two calls of one addmm with equal shapes, whose kernels are of different units."""
    return write_trace(
        folder / "two.json",
        with_shapes(op("aten::addmm", 0, 10), SQUARE),
        launch(1, 2),
        kernel(1, 100, 5.0, name="nvjet_tst_128x64"),
        with_shapes(op("aten::addmm", 50, 10), SQUARE),
        launch(2, 52),
        kernel(2, 200, 50.0, name="gemv2T_kernel_val"),
        deviceProperties=[H100],
    )


# The H100's ceilings: 989.4 TFLOP/s for bf16 products on tensor cores, 67 TFLOP/s on vector units.
OF_TENSOR = FLOPS / 5e-6 / 989.4e12  # 43.4 %
OF_VECTOR = FLOPS / 50e-6 / 67e12  # 64.1 %


def test_the_table_the_annotated_trace_and_the_chart_tell_two_sites_of_one_shape_apart(tmp_path):
    path = one_by_tensor_cores_and_one_by_gemv(tmp_path)

    run = analyse_traces(path)
    annotate_trace(path, tmp_path / "out.json", run)
    points = chart_data(run, group_by="kernel").points

    # By time: the gemv first.
    assert list(run.sites["efficiency_frac"]) == pytest.approx([OF_VECTOR, OF_TENSOR])
    assert list(run.sites["unit"]) == ["vector", "tensor"]
    events = json.loads((tmp_path / "out.json").read_text())["traceEvents"]
    shares = [e["args"]["% of roof"] for e in events if e.get("name") == "aten::addmm"]
    assert shares == pytest.approx([100 * OF_TENSOR, 100 * OF_VECTOR])
    by_kernel = {e["name"]: e["args"]["% of roof"] for e in events if e.get("cat") == "kernel"}
    assert by_kernel["nvjet_tst_128x64"] == pytest.approx(100 * OF_TENSOR)
    assert by_kernel["gemv2T_kernel_val"] == pytest.approx(100 * OF_VECTOR)
    assert dict(zip(points["name"], points["time_us"], strict=True)) == {
        "gemv2T_kernel_val": 50.0,
        "nvjet_tst_128x64": 5.0,
    }


def test_each_op_knows_its_site_and_what_lies_below_has_that_of_the_op_around_it(tmp_path):
    nothing = {"Input Dims": [[]], "Input type": [""]}
    path = write_trace(
        tmp_path / "nested.json",
        with_shapes(op("aten::no_such_op", 0, 120), nothing),
        with_shapes(op("aten::addmm", 10, 50), SQUARE),
        with_shapes(op("aten::copy_", 20, 10), SQUARE),
        with_shapes(op("aten::relu", 200, 10), SQUARE),
    )

    run = analyse_traces(path)

    site_of = dict(zip(run.sites["op"], run.sites["site_id"], strict=True))
    assert list(run.ops["site_id"]) == [
        site_of["aten::no_such_op"],
        site_of["aten::addmm"],
        site_of["aten::addmm"],
        site_of["aten::relu"],
    ]
    assert site_of["aten::no_such_op"] == 0  # 120 − 50 µs of its own: the longest comes first


def test_a_roofline_says_what_is_attainable_and_which_side_limits():
    roofline = Roofline(peak_flops_per_s=1e12, peak_bytes_per_s=1e11)

    below, ridge, right, unknown = (roofline.at(i) for i in (2.0, 10.0, 30.0, math.nan))

    # The ridge is at 1e12 / 1e11 = 10 FLOPs/B; left of it intensity × bandwidth.
    assert [float(r.attainable_flops_per_s) for r in (below, ridge, right)] == [2e11, 1e12, 1e12]
    assert [str(r.limit) for r in (below, ridge, right)] == ["memory", "compute", "compute"]
    assert math.isnan(unknown.attainable_flops_per_s)
    assert str(unknown.limit) == ""
    assert str(unknown.bound(1e9)) == ""


def test_a_roof_is_exceeded_beyond_the_one_tolerance():
    assert not is_above(1.03)  # a measured ceiling repeats no better
    assert not is_above(TOLERANCE)
    assert is_above(TOLERANCE + 1e-6)
    assert is_above(1.06)
    assert not is_above(math.nan)


@pytest.mark.parametrize(
    ("of_roof", "intensity", "bound"),
    [
        (1.0, 2.0, "memory"),
        (0.11, 2.0, "memory"),
        (0.09, 2.0, "overhead"),
        (0.01, 2.0, "overhead"),
        (0.11, 30.0, "compute"),
        (0.09, 30.0, "overhead"),
    ],
)
def test_far_below_both_roofs_it_is_overhead_that_limits(of_roof, intensity, bound):
    roof = Roofline(peak_flops_per_s=1e12, peak_bytes_per_s=1e11).at(intensity)

    assert str(roof.bound(of_roof * roof.attainable_flops_per_s)) == bound
    assert 0.09 < OVERHEAD_FRAC < 0.11


def test_rooflines_hold_many_sites_at_once():
    roofline = Roofline(np.array([1e12, math.nan]), 1e11)

    roof = roofline.at(np.array([2.0, 2.0]))

    assert list(roof.bound(np.array([1e11, 1e11]))) == ["memory", ""]


@pytest.mark.parametrize(
    ("side", "cache_bytes", "cached"),
    [
        (10_000, math.nan, False),  # 1.2 GB: no device has such a cache
        (1_000, math.nan, True),  # 12 MB: this one's is not known
        (1_000, 50e6, True),
        (1_000, 6e6, False),
        (10_000, 50e6, False),
    ],
)
def test_only_what_fits_the_devices_cache_is_said_to_fit_one(tmp_path, side, cache_bytes, cached):
    shapes = {
        "Input Dims": [[side, side], [side, side], []],
        "Input type": ["float", "float", "Scalar"],
        "Concrete Inputs": ["", "", "1"],
    }
    roof = {
        "dtype": "float32", "unit": "vector", "memory_level": "HBM", "peak_flops_per_s": 1e15,
        "peak_bytes_per_s": 1e9, "ridge_flops_per_byte": 1e6, "kind": "user", "valid": True,
    }  # fmt: skip
    event = with_shapes(op("aten::add", 0, 10), shapes)
    path = write_trace(tmp_path / "t.json", event, launch(1, 2), kernel(1, 20, 15))
    trace = read_trace(path)

    sites = reconcile(
        MODULE_CALLS.empty(), [as_call(trace)], ROOFLINES.from_rows([roof]),
        dtype="float32", cache_bytes=cache_bytes,
    ).sites  # fmt: skip

    # 12 B an element in 15 µs is above 1 GB/s either way.
    assert "above the memory roof" in sites["reason"][0]
    assert ("fit a cache" in sites["reason"][0]) == cached
    assert sites["roof_code"][0] == ("roof_cache" if cached else "roof_no_cache")
    assert sites["reason_code"][0] == "recorded_elsewhere"


SITE = {"dtype": ["float32"], "unit": ["tensor"]}


@pytest.mark.parametrize(("valid", "peak"), [(True, 2e12), (False, 1e12)])
def test_a_ceiling_that_is_not_valid_is_no_roof(valid, peak):
    row = {"dtype": "float32", "unit": "tensor", "memory_level": "DRAM", "peak_bytes_per_s": 1e9}
    row |= {"ridge_flops_per_byte": 1e3, "kind": "measured"}
    first = row | {"peak_flops_per_s": 2e12, "valid": valid}
    second = row | {"peak_flops_per_s": 1e12, "valid": True}

    both = site_roofline(SITE, ROOFLINES.from_rows([first, second]))
    alone = site_roofline(SITE, ROOFLINES.from_rows([first]))

    assert list(both.peak_flops_per_s) == [peak]
    assert list(np.isnan(alone.peak_flops_per_s)) == [not valid]
