"""The chart says what the other reports say."""

from typing import Any

import pytest

from flopprof.report.chart.data import chart_data
from tests.builders import make_run


def sites(*shares: tuple[float, str]) -> list[dict[str, Any]]:
    """Return sites of these times and verdicts; the first is large, the others below 0.5 %."""
    known = make_run().sites.to_dict("records")[0]
    return [
        known
        | {"site_id": n, "time_us": us, "verdict": verdict, "module_path": f"m{n}", "op": f"op{n}"}
        for n, (us, verdict) in enumerate(shares)
    ]


def test_all_that_is_known_is_all_on_the_chart_too():
    # 0.1 + 0.2 + … in one order and in another differ in the last digit: no 99.9 % of it.
    run = make_run(sites(*((0.1 * n, "agrees") for n in range(1, 40))))

    assert run.totals.coverage_frac == 1.0
    assert chart_data(run).coverage_frac == 1.0


def test_the_row_of_small_points_is_known_by_what_most_of_its_time_is():
    # Three small ones of 3, 3 and 1 µs beside 2,000 µs: 6 of 7 µs agree, which is rank 0.
    run = make_run(sites((2000.0, "agrees"), (3.0, "agrees"), (3.0, "agrees"), (1.0, "functional")))

    table = chart_data(run).table
    other = table[table["place"] == "other"].iloc[0]
    assert other["known_by"] == 0


def test_the_chart_of_a_compiled_run_is_of_the_eager_call_and_says_so():
    compiled = {"mode": "default", "min_bytes": 100.0, "kernels": []}
    run = make_run(compiled=compiled, eager_wall_us={"median": 200.0, "p5": 190.0, "p95": 210.0})

    data = chart_data(run)

    # Points, bytes and star are the eager call's (200 µs); the compiled one took 50 µs.
    assert data.run["time_us"].tolist() == [200.0]
    assert data.run["name"].tolist() == ["whole eager run (wall time)"]
    assert data.run["achieved_flops_per_s"].tolist() == [pytest.approx(528 / 200e-6)]
    assert data.finding.endswith("; eager, compiled in 50.0 µs of 200 µs")


def test_a_chart_of_one_point_alone_is_drawn():
    run = make_run(sites((10.0, "agrees")))

    assert "point-1" in run.report("html")
    assert chart_data(run).table["known_by"].tolist() == [0]
