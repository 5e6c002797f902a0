"""The chart and the reports of a run with measured bytes."""

import math

import numpy as np
import pytest

from flopprof.api import analyse_traces
from flopprof.errors import UsageError
from flopprof.executed.attach import join_counters
from flopprof.report.chart import draw_figure
from flopprof.report.chart.data import chart_data
from flopprof.run import Run
from tests.events import write_trace
from tests.executed.sheets import wide_text
from tests.executed.test_join import EVENTS, launches


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose launches moved 1,000 + 24 + n bytes each, launch n of 0 to 4."""
    folder = tmp_path_factory.mktemp("measured")
    rows = [row | {"lts__t_bytes.sum": "4096"} for row in launches()]
    (folder / "counters.csv").write_text(wide_text(rows))
    return join_counters(
        analyse_traces(write_trace(folder / "trace.json", *EVENTS)), folder / "counters.csv"
    )


def test_points_are_at_counted_flops_over_measured_bytes(run):
    measured = chart_data(run, measured=True).measured

    assert [*measured["level"].unique()] == ["DRAM", "L2"]  # no counter tells L1
    largest = measured[measured["compulsory"] == 65_536 / 14_336]
    # 2·64·32·16 FLOPs over 1,025 bytes of DRAM, and 4,096 of L2; compulsory: 14,336 bytes.
    assert [*largest["intensity_flops_per_byte"]] == [65_536 / 1025, 16.0]
    assert [*largest["achieved_flops_per_s"]] == [pytest.approx(65_536 / 10e-6)] * 2


def test_each_measured_point_is_drawn_with_a_line_to_the_compulsory_one(run):
    figure = draw_figure(run, measured=True)

    lines = figure.axes[0].lines
    drawn = [line for line in lines if str(line.get_gid()).startswith("measured-1-DRAM")]
    places = [np.column_stack([np.asarray(d) for d in line.get_data()]) for line in drawn]
    (way,) = [place for place in places if len(place) == 2]
    (mark,) = [place for place in places if len(place) == 1]
    (point,) = [line for line in lines if line.get_gid() == "point-1"]
    its_x, its_y = (float(np.asarray(d)[0]) for d in point.get_data())
    assert way[0] == pytest.approx([its_x, its_y])
    assert way[1] == pytest.approx(mark[0])
    assert way[1][1] == its_y  # the same rate
    texts = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert "at measured L2 bytes" in texts


def test_without_measured_bytes_there_is_nothing_to_draw(run, tmp_path):
    plain = analyse_traces(write_trace(tmp_path / "trace.json", *EVENTS))

    with pytest.raises(UsageError, match="no measured bytes") as caught:
        chart_data(plain, measured=True)
    assert "flopprof verify" in caught.value.remedy
    with pytest.raises(UsageError, match="of one run"):
        draw_figure({"a": run, "b": run}, measured=True)
    assert len(chart_data(run).measured) == 0


def test_the_report_says_how_much_traffic_exceeds_the_compulsory(run):
    text = " ".join(run.report("text").split())

    # Sites of known bytes: 1,024 + 1,025 + 1,026 of DRAM over 2,240 + 14,336 + 8,192.
    assert "DRAM 3.08 kB, 0.124 × the compulsory 24.8 kB" in text
    assert "L2 12.3 kB, 0.496 ×" in text
    assert "## Executed, by counters" in run.report("md")


def test_modules_have_what_was_measured_inside_them(run):
    (row,) = run.by_module().to_dict("records") or [{}]

    # Launches 0 to 4: 1,024 + 1,025 + 1,026 + 1,027 + 1,028 bytes; 2·65,536 + 5,120 + 4,396 FLOPs.
    assert row["dram_bytes"] == 5130
    assert row["executed_flops"] == 140_588
    assert math.isnan(row["l1_bytes"])


def test_names_in_the_markdown_table_are_escaped_once(run, tmp_path):
    run.save(tmp_path / "run.flopprof")
    sites = (tmp_path / "run.flopprof" / "sites.csv").read_text()
    (tmp_path / "run.flopprof" / "sites.csv").write_text(sites.replace("mylib::own", "mylib::_own"))

    report = Run.load(tmp_path / "run.flopprof").report("md")

    table = report.partition("## Executed, by counters")[2].partition("## What was missed")[0]
    assert "mylib::\\_own" in table
    assert "mylib::\\\\" not in table
