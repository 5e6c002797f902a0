"""Several traced calls: each site has the median of its times and their spread."""

import itertools
import math
import time

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import flopprof
from flopprof.capture import record
from flopprof.capture.load import HostLoad, busy_warning
from flopprof.judge.reconcile import reconcile
from flopprof.judge.spread import TracedCall, own_frac, spread
from flopprof.tables import GAPS, KERNELS, MODULE_CALLS, OPS, ROOFLINES

LINEAR = {
    "op": "aten::linear",
    "kind": "matmul",
    "phase": "forward",
    "dtype": "float32",
    "counted": True,
    "matmul_flops": 240.0,
    "vector_flops": 24.0,
    "min_bytes": 320.0,
}


def ops(*times_us: float, **more: object) -> pd.DataFrame:
    rows = [
        LINEAR | {"op_id": n, "cpu_us": us, "self_cpu_us": us, "start_us": 1e4 * n} | more
        for n, us in enumerate(times_us)
    ]
    return OPS.from_rows(rows)


def traced(frame: pd.DataFrame, *gaps: tuple[str, float]) -> TracedCall:
    rows = [
        {"module_path": path, "call_id": n, "start_us": 0.0, "duration_us": us, "before_op": ""}
        for n, (path, us) in enumerate(gaps)
    ]
    return TracedCall(frame, GAPS.from_rows(rows), KERNELS.empty())


def judged(first: TracedCall, *others: TracedCall) -> pd.DataFrame:
    traced = [first, *others]
    return reconcile(MODULE_CALLS.empty(), traced, ROOFLINES.empty(), dtype="float32").sites


def test_a_sites_time_is_the_median_of_the_traced_calls_with_its_spread():
    calls = [traced(ops(us)) for us in (30.0, 10.0, 20.0, 50.0, 40.0)]

    site = judged(*calls).iloc[0]

    # Of 10, 20, 30, 40, 50: the median is 30, p5 10 + 0.2 · 10 = 12, p95 40 + 0.8 · 10 = 48.
    assert site["time_us"] == 30.0
    assert site["time_p5_us"] == pytest.approx(12.0)
    assert site["time_p95_us"] == pytest.approx(48.0)
    assert (site["samples"], site["calls"], site["flops"]) == (5, 1, 264)
    assert site["achieved_flops_per_s"] == pytest.approx(264 / 30e-6)


def test_calls_and_flops_are_of_one_call_of_the_model_times_of_all_its_ops():
    # Two calls of one op: 10 + 20 µs in one trace, 30 + 40 in the next.
    site = judged(traced(ops(10.0, 20.0)), traced(ops(30.0, 40.0))).iloc[0]

    assert (site["calls"], site["flops"], site["samples"]) == (2, 528, 2)
    assert site["time_us"] == (30.0 + 70.0) / 2


def test_one_sample_has_no_spread():
    site = judged(traced(ops(30.0))).iloc[0]

    assert (site["time_us"], site["samples"]) == (30.0, 1)
    assert math.isnan(site["time_p5_us"])
    assert math.isnan(site["time_p95_us"])


def test_a_site_that_is_not_in_every_traced_call_has_fewer_samples():
    relu = {"op": "aten::relu", "kind": "elementwise"}
    with_relu = pd.concat([ops(10.0), ops(5.0, **relu).assign(op_id=1)], ignore_index=True)

    sites = judged(traced(with_relu), traced(ops(20.0)), traced(with_relu)).set_index("op")

    assert dict(sites["samples"]) == {"aten::linear": 3, "aten::relu": 2}
    assert dict(sites["time_us"]) == {"aten::linear": 10.0, "aten::relu": 5.0}


def test_where_another_call_ran_an_op_more_often_its_sample_is_for_as_many_calls():
    # 10 µs of one call here; 3 calls of 20 µs there: one takes 20.
    site = judged(traced(ops(10.0)), traced(ops(20.0, 20.0, 20.0))).iloc[0]

    assert (site["calls"], site["time_us"]) == (1, 15.0)


# A gap of 50 ms in a run of some 100 ms, ordinary gaps of 10 µs.
ORDINARY = [("", 10.0)] * 5
LONG = [*ORDINARY, ("block", 50_000.0)]


@pytest.mark.parametrize(("having", "hidden"), [(5, 1), (3, 1), (2, 0), (1, 0)])
def test_hidden_time_counts_only_if_it_is_there_in_most_traced_calls(having, hidden):
    calls = [traced(ops(100.0), *(LONG if n < having else ORDINARY)) for n in range(5)]

    sites = judged(*calls)

    assert (sites["verdict"] == "hidden").sum() == hidden
    if hidden:
        [gap] = sites[sites["verdict"] == "hidden"].itertuples()
        assert (gap.module_path, gap.time_us, gap.samples) == ("block", 50_000.0, having)
        assert f"in {having} of 5 traced calls" in gap.reason


def test_hidden_time_in_half_of_the_traced_calls_is_not_in_most_of_them():
    calls = [traced(ops(100.0), *(LONG if n < 2 else ORDINARY)) for n in range(4)]

    assert "hidden" not in set(judged(*calls)["verdict"])


def test_hidden_time_that_the_kept_trace_lacks_is_there_if_most_others_have_it():
    calls = [traced(ops(100.0), *ORDINARY), *[traced(ops(100.0), *LONG)] * 2]

    assert "hidden" in set(judged(*calls)["verdict"])


def test_two_hidden_places_are_each_judged_for_themselves():
    other = [*ORDINARY, ("other", 50_000.0)]
    calls = [traced(ops(100.0), *gaps) for gaps in (LONG, other, LONG)]

    hidden = judged(*calls).query("verdict == 'hidden'")

    assert list(hidden["module_path"]) == ["block"]


@pytest.mark.parametrize(("waited_us", "hidden"), [(0.0, 1), (4_000.0, 1), (8_000.0, 0), (1e6, 0)])
def test_a_gap_no_longer_than_a_turn_that_another_had_on_the_core_is_no_hidden_work(
    waited_us, hidden
):
    call = traced(ops(100.0), *ORDINARY, ("block", 8_000.0))  # beyond 1 ms and 4 ms of waiting

    sites = judged(call._replace(waited_us=waited_us))

    assert (sites["verdict"] == "hidden").sum() == hidden


def test_work_that_takes_longer_than_a_turn_is_hidden_though_the_machine_is_busy():
    call = traced(ops(100.0), *LONG)  # 50 ms; the call waited a second in all

    assert "hidden" in set(judged(call._replace(waited_us=1e6))["verdict"])


def test_percentiles_are_those_of_the_samples_that_are_there():
    samples = np.array([[1.0, 2.0, np.nan], [7.0, np.nan, np.nan], [np.nan] * 3])

    found = spread(samples)

    # Of 1 and 2: p5 is 1.05, p95 1.95.
    assert list(found["samples"]) == [2, 1, 0]
    assert found["time_us"][:2] == pytest.approx([1.5, 7.0])
    assert found["time_p5_us"][0] == pytest.approx(1.05)
    assert found["time_p95_us"][0] == pytest.approx(1.95)
    assert np.isnan(found["time_p95_us"][1:]).all()
    assert np.isnan(found["time_us"][2])


def traces_of(run):
    return run.provenance.timing.traces


class SleepsOnce(nn.Module):
    """A model that the machine interrupts in one call."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.call = call
        # Counted in C, where nothing looks that puts a model's own state back before each call.
        self.calls = itertools.count(1)
        self.layers = nn.Sequential(*[nn.Linear(8, 8) for _ in range(5)])

    def forward(self, x):
        if next(self.calls) == self.call:
            time.sleep(0.05)
        return self.layers(x)


@pytest.mark.parametrize("call", [3, 4, 7])
def test_an_interruption_of_one_traced_call_is_no_hidden_work(call, monkeypatch):
    monkeypatch.setattr(record, "TRACES_BUDGET_S", math.inf)
    # Called once to warm up, once for its time; from the third call on it is traced.
    model = SleepsOnce(call)

    run = flopprof.profile(model, (torch.ones(2, 8),), repeats=1, warmup=1, ceilings=False)

    assert next(model.calls) > call
    assert "hidden" not in set(run.sites["verdict"])


def test_an_interruption_is_no_hidden_work_though_one_trace_alone_was_asked_for():
    run = flopprof.profile(
        SleepsOnce(3), (torch.ones(2, 8),), repeats=1, warmup=1, traces=1, ceilings=False
    )

    assert "hidden" not in set(run.sites["verdict"])


def test_profile_traces_several_calls_and_keeps_the_one_of_median_time(monkeypatch):
    monkeypatch.setattr(record, "TRACES_BUDGET_S", math.inf)  # the machine may be slow
    run = flopprof.profile(
        nn.Linear(8, 4), (torch.ones(2, 8),), repeats=1, warmup=1, traces=3, ceilings=False
    )

    [site] = run.sites[run.sites["op"] == "aten::linear"].itertuples()
    # 2 rows × 4 outputs × 8 multiply-adds × 2, and 2 × 4 biases: of one call.
    assert (site.calls, site.flops, site.samples) == (1, 136, 3)
    assert site.time_p5_us <= site.time_us <= site.time_p95_us
    assert traces_of(run) == 3
    assert len(run.ops[run.ops["op"] == "aten::linear"]) == 1  # the trace is that of one call


def test_a_slow_call_is_traced_once(monkeypatch):
    monkeypatch.setattr(record, "TRACES_BUDGET_S", 0.0)

    run = flopprof.profile(nn.Linear(8, 4), (2, 8), repeats=1, warmup=1, ceilings=False)

    # Unless it seems to have hidden time; then in two more.
    assert traces_of(run) in (1, 3)
    assert set(run.sites["samples"]) <= {1, 3}


def test_a_busy_machine_is_told_of_and_a_quiet_one_is_not():
    # 2 threads for 1 s are 2 s; they waited 0.3 s for a core: 15 %. Of 0.1 s it is 5 %.
    busy = HostLoad(wall_s=1.0, cpu_s=1.7, waited_s=0.3)
    quiet = HostLoad(wall_s=1.0, cpu_s=1.0, waited_s=0.1)

    assert "15 % of the time taken by others" in busy_warning(busy, 2)
    assert busy_warning(quiet, 2) == ""


def test_where_the_system_tells_no_waiting_cpu_time_far_below_wall_time_is_told_of():
    # 2 threads for 1 s are 2 s, of which they got 0.8: 60 % is lacking.
    assert "60 %" in busy_warning(HostLoad(wall_s=1.0, cpu_s=0.8), 2)
    assert busy_warning(HostLoad(wall_s=1.0, cpu_s=1.9), 2) == ""
    assert busy_warning(HostLoad(), 2) == ""


ROOF = {
    "dtype": "float32", "unit": "tensor", "memory_level": "DRAM", "peak_flops_per_s": 100e6,
    "peak_bytes_per_s": 1e9, "ridge_flops_per_byte": 0.1, "kind": "user", "valid": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("waited_us", "bound"),
    [
        (0.0, "overhead"),  # 264 FLOPs in 60 µs are 4.4 of 100 MFLOP/s, below a tenth
        (80.0, ""),  # of 100 µs 80 were others': the tenth is 2, and 4.4 lies above it
        (20.0, "overhead"),  # the tenth is 8
        (200.0, ""),  # more than there was: nothing can be told
    ],
)
def test_what_is_slow_since_others_had_the_processor_has_no_bound(waited_us, bound):
    call = traced(ops(60.0), ("", 40.0))._replace(waited_us=waited_us)

    sites = reconcile(
        MODULE_CALLS.empty(), [call], ROOFLINES.from_rows([ROOF]), dtype="float32"
    ).sites

    assert sites["bound"].iloc[0] == bound
    assert sites["efficiency_frac"].iloc[0] == pytest.approx(0.044)


def test_the_processors_share_is_the_median_calls_and_counts_outermost_ops_once():
    inner = ops(60.0, 50.0)
    inner["parent_op_id"] = [-1, 0]
    calls = [traced(inner, ("", 40.0))._replace(waited_us=us) for us in (10.0, 90.0, 30.0)]

    assert own_frac(calls) == pytest.approx(0.7)  # 30 of 60 + 40 µs; the inner op is in the outer
    assert own_frac([traced(ops())]) == 1.0
