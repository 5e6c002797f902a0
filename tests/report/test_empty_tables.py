"""Every report and chart of runs that lack a table's rows, whichever way pandas holds texts."""

import json
from pathlib import Path

import msgspec
import pandas as pd
import pytest

from flopprof.cli import main
from flopprof.report.chart import draw_figure, write_points
from flopprof.report.chart.data import GROUPS, chart_data
from flopprof.run import Run
from flopprof.tables import TABLES
from tests.builders import make_run

SMALL = Path(__file__).parents[1] / "runs" / "small.flopprof"
NAMES = ("module_calls", "ops", "kernels", "rooflines", "sites")
NO_DEVICE = ("kernels", "rooflines")
LACKING = [(), *((name,) for name in NAMES), NO_DEVICE, NAMES[:4], ("module_calls", "sites"), NAMES]
TIMED = [(), ("rooflines",), NAMES[:4]]


@pytest.fixture(params=["python", "pyarrow"])
def text_storage(request):
    """Hold texts as pandas does without pyarrow, and with it."""
    if request.param == "pyarrow":
        pytest.importorskip("pyarrow")
    if pd.__version__ < "3":
        pytest.skip("pandas before 3 holds texts as objects")
    with pd.option_context("mode.string_storage", request.param):
        yield request.param


def lacking(run: Run, names: tuple[str, ...]) -> Run:
    """Return `run` with empty tables of these names, all its texts in the storage that is set."""
    frames = {}
    for name in NAMES:
        table, old = TABLES[name], getattr(run, name).head(0 if name in names else 1000)
        frames[name] = table.frame({column: old[column].tolist() for column in table.names})
    provenance = msgspec.structs.replace(run.provenance, totals=None)
    return run.replaced(**frames, provenance=provenance)


def test_the_storage_is_what_the_tables_have(text_storage):
    sites = lacking(make_run(), ()).sites

    assert sites["op"].dtype.storage == text_storage


@pytest.mark.parametrize("source", ["small", "made"])
@pytest.mark.parametrize("names", LACKING, ids=lambda names: "+".join(names) or "nothing")
def test_a_run_that_lacks_tables_has_every_report(names, source, text_storage):
    run = lacking(Run.load(SMALL) if source == "small" else make_run(), names)

    for form in ("text", "md", "csv"):
        assert run.report(form)
    assert json.loads(run.report("json"))
    assert len(run.by_module()) == len(
        {*run.sites["module_path"], *run.module_calls["module_path"]}
    )


@pytest.mark.parametrize("names", TIMED, ids="+".join)
def test_a_run_that_lacks_tables_has_its_chart_in_every_grouping(names, text_storage):
    run = lacking(Run.load(SMALL), names)

    for group in (name for name in GROUPS if name != "kernel"):  # those are of a GPU
        data = chart_data(run, group_by=group)
        assert data.table["share_frac"].sum() == pytest.approx(1)


@pytest.mark.parametrize("names", TIMED[1:], ids="+".join)
def test_a_run_that_lacks_tables_is_drawn_and_compared(names, text_storage, tmp_path, capsys):
    run = lacking(Run.load(SMALL), names)
    saved = str(run.save(tmp_path / "run.flopprof"))

    assert "<svg" in run.report("html")
    draw_figure({"one": run, "two": run})
    assert write_points(run, tmp_path / "points.csv").stat().st_size > 0
    assert main(["report", saved, "-o", str(tmp_path / "page.html")]) == 0
    assert main(["diff", saved, saved]) == 0
    assert main(["misses", saved]) == 0
    assert main(["check", saved, "--min-coverage", "0.1"]) == 0


def test_a_run_of_nothing_at_all_has_a_page(text_storage):
    page = lacking(make_run(), NAMES).report("html")

    assert "No chart: the run has no times." in page


@pytest.mark.filterwarnings("default")
def test_a_picture_that_cannot_be_drawn_takes_no_page_along(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise TypeError("no <such> letter")

    monkeypatch.setattr("flopprof.report.html.draw_chart", fail)
    saved = str(make_run().save(tmp_path / "run.flopprof"))
    page = tmp_path / "page.html"

    code = main(["report", saved, "-o", str(page)])

    assert code == 0
    assert "it could not be drawn (no &lt;such&gt; letter)" in page.read_text()
    assert "aten::mystery" in page.read_text()
    assert "warning: no chart was drawn: no <such> letter" in capsys.readouterr().err
