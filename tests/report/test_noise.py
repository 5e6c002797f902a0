"""What is a change of time, and what is noise."""

import math

import msgspec
import pytest

from flopprof.provenance import Warned
from flopprof.report.diff import compared
from flopprof.report.noise import (
    Timed,
    described,
    floor_frac,
    significance,
    tied_at_top,
    visible_frac,
)
from tests.builders import make_run

# Many samples: percentiles count as they are.
BEFORE = Timed(100.0, 90.0, 110.0, None, "call")


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (Timed(100.0, 90.0, 110.0, None, "call"), "noise"),
        (Timed(120.0, 109.0, 130.0, None, "call"), "noise"),  # 109 lies below 110: they touch
        (Timed(120.0, 110.0, 130.0, None, "call"), "noise"),
        (Timed(120.0, 111.0, 130.0, None, "call"), "slower"),
        (Timed(80.0, 75.0, 89.0, None, "call"), "faster"),
        (Timed(80.0, 75.0, 91.0, None, "call"), "noise"),
        (Timed(200.0, math.nan, math.nan, None, "call"), "unknown"),
        (Timed(200.0, 200.0, 200.0, 1, "call"), "unknown"),  # one call has no spread
        (Timed(math.nan, math.nan, math.nan, 5, "call"), "unknown"),
        (Timed(200.0, 190.0, 210.0, None, "step"), "unknown"),  # another thing was timed
    ],
)
def test_a_change_counts_where_the_spreads_do_not_touch(after, told):
    assert significance(BEFORE, after) == told


def test_what_is_not_beyond_the_floor_is_noise_however_narrow_the_spreads():
    before = Timed(100.0, 99.9, 100.1, None, "call")

    assert significance(before, Timed(104.9, 104.8, 105.0, None, "call")) == "noise"
    assert significance(before, Timed(105.1, 105.0, 105.2, None, "call")) == "slower"
    # Of the smaller one: from 100 to 95.1 are 5.2 % of 95.1 less, to 95.3 4.9 %.
    assert significance(before, Timed(95.1, 95.0, 95.2, None, "call")) == "faster"
    assert significance(before, Timed(95.3, 95.2, 95.4, None, "call")) == "noise"


def test_percentiles_of_few_samples_are_widened():
    # 5 samples: 1 + 3/5 = 1.6 times as far. Before reaches 100 + 1.6·10 = 116.
    before = Timed(100.0, 90.0, 110.0, 5, "call")

    # After begins at 130 − 1.6·8 = 117.2, or at 130 − 1.6·9 = 115.6.
    assert significance(before, Timed(130.0, 122.0, 140.0, 5, "call")) == "slower"
    assert significance(before, Timed(130.0, 121.0, 140.0, 5, "call")) == "noise"


def test_the_least_slowdown_that_would_be_seen_is_that_of_both_spreads():
    # 110 % of the median above, 90 % below: 1.1 / 0.9 − 1 = 22.2 %.
    assert visible_frac(BEFORE, BEFORE, 0.05) == pytest.approx(0.2222, abs=1e-4)
    assert visible_frac(BEFORE, BEFORE, 0.3) == 0.3
    assert math.isnan(visible_frac(BEFORE, Timed(math.nan), 0.05))


def warned_of(run, code):
    provenance = run.provenance
    warnings = (Warned(code=code, text="the machine was busy"),)
    return run.replaced(provenance=msgspec.structs.replace(provenance, warnings=warnings))


def test_the_floor_rises_on_a_busy_machine_and_with_a_run_s_own_drift():
    run = make_run()
    drifted = make_run(observer={"changed_ops": None, "drift_frac": -0.4})
    busy = warned_of(run, "load")

    assert floor_frac(run, run) == 0.05
    assert floor_frac(run, drifted) == 0.4
    assert floor_frac(busy, run) == 0.3
    assert floor_frac(run, busy, of_sites=True) == 1.0
    assert floor_frac(run, warned_of(run, "roof")) == 0.05
    assert compared(run, busy)["doubts"] == {"before": [], "after": ["the machine was busy"]}


def test_of_a_trace_the_steps_are_what_is_timed():
    steps = [{"rank": 0, "step": f"s{n}", "duration_us": us} for n, us in enumerate((10, 20, 30))]
    trace = {"files": ["t.json"], "span_us": 100.0}
    stepped = make_run(wall_us=None, trace=trace, steps=steps)
    plain = make_run(wall_us=None, trace=trace)

    told = described(stepped, stepped)

    assert (told["before"]["of"], told["before"]["median_us"], told["before"]["samples"]) == (
        "step",
        20.0,
        3,
    )
    assert told["significance"] == "noise"
    # One span has no spread, and is no step.
    assert described(plain, plain)["significance"] == "unknown"
    assert math.isnan(described(stepped, plain)["change_frac"])


def site(time_us, p5_us, p95_us, samples=5, **more):
    place = {"op": "aten::mm", "module_path": "a", "phase": "forward", "calls": 1}
    work = {"flops": 8.0, "matmul_flops": 8.0, "vector_flops": 0.0, "verdict": "agrees"}
    times = {"time_us": time_us, "time_p5_us": p5_us, "time_p95_us": p95_us, "samples": samples}
    return place | work | times | more


OTHER = site(900.0, 880.0, 920.0, module_path="b")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (site(100.0, 99.0, 101.0), site(150.0, 149.0, 151.0), "slower"),
        (site(150.0, 149.0, 151.0), site(100.0, 99.0, 101.0), "faster"),
        (site(100.0, 60.0, 140.0), site(150.0, 110.0, 190.0), "noise"),
        (site(100.0, 99.0, 101.0), site(109.0, 108.5, 109.5), "noise"),  # below a site's 10 %
        (site(20.0, 19.9, 20.1), site(30.0, 29.9, 30.1), "noise"),  # 10 of 920 µs: below 2 %
        (site(100.0, math.nan, math.nan, 1), site(150.0, math.nan, math.nan, 1), "unknown"),
    ],
)
def test_a_site_s_time_is_judged_by_its_traced_calls(before, after, told):
    found = compared(make_run([before, OTHER]), make_run([after, OTHER]))

    changes = {one["module_path"]: one["time_change"] for one in found["sites"]}
    assert changes == {"a": told, "b": "noise"}
    assert {one["module_path"]: one["time_change"] for one in found["modules"]} == changes


def ranked(*times, busy=False):
    """Return a run whose sites have these times: median, p5, p95 in µs, of five samples."""
    rows = [
        {"site_id": n, "op": f"x::op{n}", "time_us": us, "time_p5_us": p5, "time_p95_us": p95,
         "samples": 5}
        for n, (us, p5, p95) in enumerate(times)
    ]  # fmt: skip
    run = make_run(rows)
    if busy:
        warnings = (Warned(code="load", text="the machine was busy"),)
        run = run.replaced(provenance=msgspec.structs.replace(run.provenance, warnings=warnings))
    return run


def test_sites_that_cannot_be_told_from_the_first_are_counted():
    # 95 is within 10 % of 100; 80's spread, widened by 1.6 to 80 + 24, reaches into that of 100,
    # which begins at 100 - 3.2; 70 is 43 % less, and its spread ends at 73.2.
    run = ranked((100, 98, 102), (95, 95, 95), (80, 78, 95), (70, 68, 72))

    assert tied_at_top(run) == 2
    assert "the first and 2 others differ by less" in run.report("text")


def test_a_first_site_that_stands_out_is_not_doubted_but_on_a_busy_machine():
    times = ((100, 98, 102), (60, 59, 61), (40, 39, 41))

    assert tied_at_top(ranked(*times)) == 0
    assert "cannot tell which site" not in ranked(*times).report("text")
    # There the first must take twice as long: 100 is 1.7 × 60, and 2.5 × 40.
    assert tied_at_top(ranked(*times, busy=True)) == 1


def test_of_one_traced_call_no_rank_is_judged():
    assert math.isnan(tied_at_top(ranked((100, math.nan, math.nan))))
