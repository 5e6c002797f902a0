"""The chart says what the other reports say."""

from typing import Any

import msgspec
import pytest

from flopprof.provenance import ProgramOp
from flopprof.report.chart import draw_figure
from flopprof.report.chart.compare import compare_data
from flopprof.report.chart.data import chart_data
from tests.builders import called, make_run


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


def program(name, **facts):
    return ProgramOp(op=name, dtype="float32", calls=1, **facts)


def test_the_chart_of_a_compiled_run_is_the_compiled_program_alone():
    run = make_run(
        compiled={"mode": "default", "min_bytes": 400.0, "eager_min_bytes": 800.0, "kernels": []},
        eager_wall_us={"median": 200.0, "p5": 190.0, "p95": 210.0},
    )
    ops = (
        program("aten::addmm", kind="matmul", time_us=30.0, matmul_flops=480.0, vector_flops=48.0,
                min_bytes=592.0),
        program("graph_0_cpp_fused_gelu_2", is_generated=True, time_us=10.0),
    )  # fmt: skip
    before = called(run).compiled
    assert before is not None
    facts = msgspec.structs.replace(before, program=ops)
    run = run.replaced(provenance=msgspec.structs.replace(run.provenance, compiled=facts))

    data = chart_data(run)

    # No eager site is among the points: one library call, and one kernel of unknown FLOPs.
    assert data.points["name"].tolist() == ["addmm"]
    assert data.points["achieved_flops_per_s"].tolist() == [pytest.approx(528 / 30e-6)]
    assert data.merged["place"].tolist() == ["unknown"]
    assert data.merged["share_frac"].tolist() == [pytest.approx(0.25)]
    # Both stars do the mathematics' 528 FLOPs: in 50 µs over Inductor's 400 bytes, in 200 over 800.
    assert data.run["place"].tolist() == ["run", "eager"]
    assert data.run["time_us"].tolist() == [50.0, 200.0]
    assert data.run["intensity_flops_per_byte"].tolist() == [528 / 400, 528 / 800]
    assert data.finding.endswith("; compiled, eager took 200 µs")
    texts = " ".join(text.get_text() for text in draw_figure(run).axes[0].texts)
    assert "eager run: 2.64 MFLOP/s" in texts
    assert "run: 10.6 MFLOP/s" in texts
    assert len(compare_data({"a": run, "b": run}).run) == 2


def test_a_chart_of_one_point_alone_is_drawn():
    run = make_run(sites((10.0, "agrees")))

    assert "point-1" in run.report("html")
    assert chart_data(run).table["known_by"].tolist() == [0]
