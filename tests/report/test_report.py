"""Reports: golden texts of a recorded run, and what the formats promise."""

import csv
import io
import json
import re
from pathlib import Path

import pytest

from flopprof.api import analyse_traces
from flopprof.cli import main
from flopprof.errors import UsageError
from flopprof.report.rows import top_sites
from flopprof.report.text import fitting
from flopprof.run import Run
from flopprof.tables import SITES, TABLES
from tests.builders import make_run
from tests.events import ADDMM, op, with_shapes, write_trace

HERE = Path(__file__).parents[1]
RUNS = sorted((HERE / "runs").glob("*.flopprof"))
FORMATS = {"txt": "text", "md": "md", "json": "json", "csv": "csv"}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_recorded_run_reads_as_it_did(path, suffix):
    # After a change that is meant: scripts/golden, and read its diff.
    golden = (HERE / "golden" / f"{path.stem}.{suffix}").read_text()

    assert Run.load(path).report(FORMATS[suffix]) == golden


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_the_text_fits_its_columns(path):
    assert max(map(len, Run.load(path).report("text").splitlines())) <= 120


def test_the_csv_is_the_table_of_sites():
    run = Run.load(HERE / "runs" / "small.flopprof")

    rows = list(csv.DictReader(io.StringIO(run.report("csv"))))

    assert list(rows[0]) == SITES.names
    assert len(rows) == len(run.sites)
    unknown = next(row for row in rows if row["op"] == "mylib::twice")
    assert (unknown["flops"], unknown["verdict"]) == ("", "extension")  # empty: not known


def test_the_json_has_null_for_what_is_unknown_and_no_other_constant():
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    run = Run.load(HERE / "runs" / "small.flopprof")
    found = json.loads(run.report("json"), parse_constant=refuse)

    # conv 2·16·27·64² + head 2·16·10 + matmul 2·16·16; what mylib::twice does is not known.
    assert found["matmul_flops"] == 2 * 16 * 27 * 64**2 + 2 * 16 * 10 + 2 * 16 * 16
    assert found["flops_at_most"] > found["flops"]
    assert found["verdicts"]["extension"] == {
        "sites": 1,
        "time_frac": pytest.approx(0.1, abs=0.1),
        "matmul_flops": None,
    }
    assert found["never_called"] == ["spare"]


def test_an_unknown_format_lists_the_known_ones():
    with pytest.raises(UsageError, match="no report format 'yaml'") as caught:
        Run.load(HERE / "runs" / "small.flopprof").report("yaml")

    assert "markdown" in caught.value.remedy or "md" in caught.value.remedy


def test_telemetry_is_a_line_with_flops_per_joule():
    telemetry = {
        "sm_clock_mhz": {"median": 1760.0, "p5": 1700.0, "p95": 1980.0},
        "power_w": {"median": 350.5, "p5": 300.0, "p95": 400.0},
        "temperature_c": None,
        "energy_j": 2.0,
        "throttle_reasons": ["idle", "power cap"],
        "peak_memory_bytes": 1_500_000_000,
        "calls": 10,
    }
    run = make_run(telemetry=telemetry)

    text = " ".join(run.report("text").split())
    found = json.loads(run.report("json"))

    # 528 known FLOPs × 10 calls in 2 J.
    assert "sm clock 1.76 GHz, power 350 W, energy 2.00 J, peak memory 1.50 GB" in text
    assert "clocks held by power cap, 2.64 kFLOP/J" in text
    assert found["flops_per_j"] == 528 * 10 / 2
    assert found["telemetry"]["power_w"]["median"] == 350.5


def test_without_energy_there_is_no_rate_per_joule():
    run = make_run(telemetry={"energy_j": None, "sm_clock_mhz": None, "calls": 10})

    assert json.loads(run.report("json"))["flops_per_j"] is None
    assert "Telemetry not available" in " ".join(run.report("text").split())


@pytest.mark.parametrize(("slowdown_frac", "told"), [(0.99, False), (1.01, True)])
def test_times_are_told_as_too_long_where_tracing_takes_longer_than_the_call(slowdown_frac, told):
    text = " ".join(make_run(slowdown_frac=slowdown_frac).report("text").split())

    assert f"tracing added {100 * slowdown_frac:+.0f} %" in text
    assert ("sites' times are too long" in text) == told


@pytest.mark.parametrize(("share_frac", "listed"), [(0.004, False), (0.006, True)])
def test_what_does_no_flops_is_listed_from_half_a_percent_of_the_time_on(share_frac, listed):
    view = {"op": "aten::view", "phase": "forward", "calls": 1, "verdict": "free", "flops": 0.0}
    view |= {"matmul_flops": 0.0, "vector_flops": 0.0, "time_us": 1.0}
    run = make_run([view | {"time_share_frac": share_frac, "reason": ""}])

    _, rows = top_sites(run)

    assert [row[1] for row in rows] == (["view"] if listed else [])


HOSTILE = "слой.blöck_" + "very_long_name." * 30 + "<b>|`__x__`[y](z)\\|\n# heading"


def hostile_run():
    """Return a run of names that are long, not ASCII, or markup, half of it of unknown FLOPs."""
    site = {
        "op": "lib_of_somebody::" + "o" * 200,
        "module_path": HOSTILE,
        "module_type": "a.b." + "T" * 200,
        "phase": "forward",
        "input_shapes": "8x3x224x224, " * 50,
        "dtype": "float32",
        "calls": 1_000_000,
        "kind": "unknown",
        "flops_source": "none",
        "time_us": 1e9,
        "time_share_frac": 0.5,
        "verdict": "extension",
        "reason": "because " * 100 + "x" * 300,
    }
    known = {"site_id": 1, "flops": 1e18, "matmul_flops": 1e18, "vector_flops": 0.0, "bound": "x"}
    return make_run([site | {"site_id": 0}, site | known], model=HOSTILE, input=HOSTILE)


def test_long_and_foreign_names_fit_them_too():
    text = hostile_run().report("text")

    assert max(map(len, text.splitlines())) <= 120
    assert "–" in text  # unknown FLOPs
    assert "1.00 E" in text


def test_names_do_not_act_as_markdown():
    text = hostile_run().report("md")

    rows = [line for line in text.splitlines() if line.startswith("| слой")]
    # A site twice (10 cells: module, op, calls, FLOPs, time, FLOP/s, FLOP/B, roof, bound, verdict)
    # and its module (7). A bar in a name has an odd number of backslashes before it.
    bars = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) - 1 for row in rows]
    assert bars == [10, 10, 7]
    assert all(r"&lt;b>\|\`\_\_x\_\_\`\[y\](z)\\\| # heading" in row for row in rows)
    assert text.count("\n# ") == 0


def test_markdown_explains_each_column_and_bounds_what_is_missed():
    text = Run.load(HERE / "runs" / "small.flopprof").report("md")

    header = next(line for line in text.splitlines() if line.startswith("| module | op"))
    for name in header.strip("| ").split(" | "):
        assert f"- **{name}**: " in text
    # The extension took 110 µs; at the matmul ceiling of 105 GFLOP/s that is 11.5 MFLOPs.
    assert "- **extension**: 1 site, 11.4 % of the time, – known, at most 11.5 MFLOPs" in text


def test_every_column_of_every_table_is_explained():
    for table in TABLES.values():
        assert all(column.doc.endswith((".", "…")) for column in table.columns), table.name


def test_a_format_that_does_not_fit_its_file_is_refused(tmp_path, capsys):
    folder = str(make_run().save(tmp_path / "x.flopprof"))

    assert main(["report", folder, "--format", "md", "-o", str(tmp_path / "x.html")]) == 2
    assert "--format md does not fit" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()
    assert main(["report", folder, "--format", "md", "-o", "-"]) == 0
    assert capsys.readouterr().out.startswith("# flopprof")


@pytest.mark.parametrize("name", ["x.tex", "x.html", "x.txt", "x.csv", "x.log"])
def test_a_suffix_that_is_not_the_format_s_is_refused(name, tmp_path, capsys):
    folder = str(make_run().save(tmp_path / "x.flopprof"))

    assert main(["report", folder, "--format", "md", "-o", str(tmp_path / name)]) == 2

    assert "--format md does not fit" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_a_suffix_without_a_format_lists_those_there_are(tmp_path, capsys):
    folder = str(make_run().save(tmp_path / "x.flopprof"))

    assert main(["report", folder, "-o", str(tmp_path / "x.tex")]) == 2
    remedy = capsys.readouterr().err.partition("end it in one of ")[2]
    assert {".csv", ".html", ".json", ".md", ".txt"} <= set(re.findall(r"\.\w+", remedy))
    assert main(["report", folder, "-o", str(tmp_path / "plain")]) == 0
    assert (tmp_path / "plain").read_text().startswith("Model")
    assert main(["report", folder, "--format", "md", "-o", str(tmp_path / "x.MD")]) == 0


@pytest.mark.parametrize(("is_terminal", "width"), [(True, 200), (True, 60), (False, 200)])
def test_the_text_takes_the_terminal_s_width(is_terminal, width, monkeypatch):
    path = "model." + "a_long_name." * 9 + "layers.0.norm"
    sites = make_run().sites.to_dict("records")
    run = make_run([site | {"module_path": path} for site in sites])
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    monkeypatch.setenv("COLUMNS", str(width))

    widest = max(map(len, run.report("text").splitlines()))

    # 120 columns where stdout is no terminal; at least 80, which the numbers take.
    assert widest <= (max(width, 80) if is_terminal else 120)
    assert (path in run.report("text")) == (is_terminal and width == 200)


def test_the_list_of_misses_says_first_whether_the_count_is_complete():
    sites = make_run().sites.to_dict("records")
    functional = make_run([sites[0] | {"verdict": "functional"}])

    assert "The count is not complete: the FLOPs of 1 site (25.0 % of the time)" in (
        make_run().report("text")
    )
    for form in ("text", "md", "html"):
        assert "The count is complete: formulas know what the hooks missed" in (
            functional.report(form)
        )
    assert "The count is complete: the hooks missed nothing." in make_run(sites[:1]).report("text")


@pytest.mark.parametrize(("slowdown", "told"), [(12.71, True), (1.01, True), (1.0, False)])
def test_what_tracing_cost_has_its_consequence(slowdown, told):
    text = " ".join(make_run(slowdown_frac=slowdown).report("text").split())

    assert f"tracing added {100 * slowdown:+.0f} %" in text
    assert ("sites' times are too long" in text) == told


def test_times_too_short_for_a_rate_are_no_trouble(tmp_path):
    # A damaged trace may have them: 240 FLOPs in 1e-310 µs are more than a number holds.
    short = with_shapes(op("aten::addmm", 0, 1e-310), ADDMM)
    path = write_trace(tmp_path / "t.json", short)

    entry = json.loads(analyse_traces(path).report("json"))["ops"]["aten::addmm"]

    assert entry["matmul_flops"] == 240
    assert entry["achieved_flops_per_s"] is None


def test_columns_give_way_to_names_where_a_terminal_is_narrow():
    header = ["module", "op", "calls", "FLOPs", "time", "FLOP/B", "verdict"]
    row = ["encoder.layer.11.attention", "linear", "12", "1.81 G", "15.1 %", "24.0", "agrees"]

    wide, none = fitting([header, row], 200)
    narrow, left_out = fitting([header, row], 64)

    assert (wide, none) == ([header, row], [])
    # Of 64: names 26 + 6; calls 5, FLOPs 6, time 6, FLOP/B 6, verdict 7 and six gaps of 2 leave
    # 22; without FLOP/B 30; without calls 37, where 32 are asked for.
    assert left_out == ["FLOP/B", "calls"]
    assert narrow[0] == ["module", "op", "FLOPs", "time", "verdict"]
    assert narrow[1] == ["encoder.layer.11.attention", "linear", "1.81 G", "15.1 %", "agrees"]


def test_sites_of_one_name_are_told_apart_by_their_shapes():
    known = make_run().sites.to_dict("records")[0]
    rows = [
        known | {"site_id": n, "op": "aten::mm", "module_path": "", "input_shapes": shapes}
        for n, shapes in enumerate(["4x8, 8x16", "4x16, 16x8"])
    ]
    other = known | {"site_id": 2, "op": "aten::bmm", "module_path": "", "input_shapes": "2x2x2"}

    _, table = top_sites(make_run([*rows, other]))

    assert [row[1] for row in table] == ["mm 4x8, 8x16", "mm 4x16, 16x8", "bmm"]
