"""The panel alone: as wide as it was asked for, small, with its roofs; refusals."""

from pathlib import Path

import numpy as np
import pytest

from flopprof.cli import main
from flopprof.errors import UsageError
from flopprof.report.chart import plot_paper
from flopprof.report.chart.data import chart_data
from flopprof.report.chart.paper import draw_paper
from flopprof.run import Run

SMALL = Path(__file__).parents[1] / "runs" / "small.flopprof"
PNG_SIZE = slice(16, 24)  # width and height, in the file's header


@pytest.fixture(scope="module")
def run():
    return Run.load(SMALL)


@pytest.mark.parametrize("inches", [3.3, 7.0])
def test_a_picture_has_its_width_at_300_dots_per_inch(run, tmp_path, inches):
    (path,) = plot_paper(run, tmp_path / "paper.png", width=inches)

    data = path.read_bytes()
    assert int.from_bytes(data[PNG_SIZE][:4], "big") == pytest.approx(300 * inches, abs=1)
    assert len(data) < 200_000


def test_formats_are_those_of_papers_and_equal_runs_give_equal_files(run, tmp_path):
    names = [tmp_path / f"one.{form}" for form in ("pdf", "svg")]

    first = [path.read_bytes() for path in plot_paper(run, names)]
    again = [path.read_bytes() for path in plot_paper(run, names)]

    assert first == again
    assert all(len(data) < 200_000 for data in first)


def test_points_roofs_and_star_are_those_of_the_chart(run):
    data = chart_data(run)
    axes = draw_paper(data).axes[0]

    offsets = [np.asarray(marks.get_offsets()) for marks in axes.collections]
    dots = [tuple(map(float, offset)) for offset in np.concatenate(offsets)]
    expected = [
        *zip(data.points["intensity_flops_per_byte"], data.points["achieved_flops_per_s"],
             strict=True),
        *zip(data.run["intensity_flops_per_byte"], data.run["achieved_flops_per_s"], strict=True),
    ]  # fmt: skip
    assert sorted(dots) == sorted(tuple(map(float, pair)) for pair in expected)
    assert any("fp32 105 GFLOP/s" in text.get_text() for text in axes.texts)


@pytest.mark.parametrize("width", [0.5, -1.0, 100.0, float("nan")])
def test_a_width_that_no_paper_has_is_refused(run, tmp_path, width):
    with pytest.raises(UsageError, match="--width"):
        plot_paper(run, tmp_path / "paper.png", width=width)


def test_the_command_draws_it(tmp_path, capsys):
    path = tmp_path / "column.svg"

    assert main(["plot", str(SMALL), "--chart-only", "-o", str(path)]) == 0
    assert path.read_text().startswith("<?xml")
    assert main(["plot", str(SMALL), "--width", "7", "-o", str(path)]) == 2
    assert "--chart-only" in capsys.readouterr().err
    assert main(["plot", str(SMALL), "--chart-only", "-o", str(tmp_path / "p.csv")]) == 2


@pytest.mark.parametrize(("command", "name"), [("report", "small.md"), ("plot", "small.csv")])
def test_what_was_written_is_said_on_stderr(command, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    assert main([command, str(SMALL), "-o", name]) == 0

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"written: {name}\n"
