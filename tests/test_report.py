"""Reports: golden texts of a recorded run, and what the formats promise."""

import csv
import io
import json
from pathlib import Path

import pytest

from flopprof.errors import UsageError
from flopprof.run import Run
from flopprof.tables import SITES
from tests.builders import make_run

HERE = Path(__file__).parent
RUNS = sorted((HERE / "runs").glob("*.flopprof"))
FORMATS = {"txt": "text", "md": "md", "json": "json", "csv": "csv"}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_recorded_run_reads_as_it_did(path, suffix):
    # After a change that is meant: scripts/golden, and read its diff.
    golden = (HERE / "golden" / f"{path.stem}.{suffix}").read_text()

    assert Run.load(path).report(FORMATS[suffix]) == golden


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_the_text_fits_a_hundred_columns(path):
    assert max(map(len, Run.load(path).report("text").splitlines())) <= 100


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
