"""Names that a file chose reach no terminal, page or table as anything but text."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flopprof.cli import main
from flopprof.report import write_report
from flopprof.report.csv import for_people
from flopprof.run import Run
from tests.builders import make_run
from tests.events import ADDMM, kernel, launch, op, with_shapes, write_trace

PLANTED = "\x1b[31m\u202e\u2028\0\r\x9b"
HALVES = "\ud800\udcff"  # lone surrogates: of JSON's \ud800, and of a file's name


def assert_clean(text: str, where: str, *, lines: bool = True) -> None:
    """Assert that nothing of what was planted is in a text."""
    for letter in {*PLANTED, *HALVES} - {*"[31m"}:
        assert letter not in text, (where, letter)
    if lines:
        assert all(c.isprintable() for line in text.split("\n") for c in line), where


def outputs(folder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> dict[str, str]:
    """Return what every reader of a run prints or writes."""
    commands: dict[str, list[str]] = {
        "text": ["report", folder],
        "md": ["report", folder, "--format", "md"],
        "csv": ["report", folder, "--format", "csv"],
        "json": ["report", folder, "--json"],
        "diff": ["diff", folder, folder],
        "misses": ["misses", folder],
        "check": ["check", folder, "--no-verdict", "unknown", "--no-verdict", "extension"],
        "junit": ["check", folder, "--no-verdict", "unknown", "--junit", str(tmp_path / "j.xml")],
        "html": ["report", folder, "-o", str(tmp_path / "x.html")],
        "points": ["plot", folder, "-o", str(tmp_path / "x.csv")],
        "svg": ["plot", folder, "-o", str(tmp_path / "x.svg")],
    }
    texts = {}
    for name, arguments in commands.items():
        assert main(arguments) in (0, 1), name
        printed = capsys.readouterr()
        texts[name] = printed.out
        texts[f"{name}, stderr"] = printed.err
    for name in ("j.xml", "x.html", "x.csv", "x.svg"):
        texts[name] = (tmp_path / name).read_text("utf-8")
    return texts


@pytest.mark.slow
@pytest.mark.filterwarnings("default::UserWarning")
def test_what_is_planted_in_a_trace_is_cleaned_everywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    evil = f"ev{PLANTED}il"
    write_trace(
        tmp_path / "t.json",
        op(f"nn.Module: {evil}_0", 0, 90) | {"cat": "python_function"},
        with_shapes(op("aten::addmm", 0, 10), ADDMM),
        with_shapes(op(f"lib::{evil}", 20, 10), ADDMM),
        launch(1, 2) | {"name": evil},
        kernel(1, 100, 10.0, name=evil),
        launch(2, 22),
        kernel(2, 120, 10.0, name=f"k{evil}"),
    )
    content = json.loads(Path("t.json").read_text())
    content["deviceProperties"] = [{"id": 0, "name": evil, "numSms": 3}]
    Path("t.json").write_text(json.dumps(content))
    name = b"t\xff\x1b.json".decode("utf-8", "surrogateescape")
    Path("t.json").rename(name)

    assert main(["trace", name, "-o", "x.flopprof"]) == 0

    printed = capsys.readouterr()
    assert_clean(printed.out, "stdout")
    assert_clean(printed.err, "stderr")
    assert "\\xff" in printed.out  # shown escaped
    for report in ("report.md", "report.html"):
        assert_clean(Path("x.flopprof", report).read_text("utf-8"), report)
    for where, text in outputs("x.flopprof", capsys, tmp_path).items():
        assert_clean(text, where)


def hostile(letters: str) -> Run:
    evil = f"ev{letters}il"
    sites: list[dict[str, Any]] = make_run().sites.to_dict("records")
    for site in sites:
        site |= {"op": f"lib::{evil}", "module_path": evil, "module_type": evil, "phase": evil}
        site |= {"input_shapes": evil, "dtype": evil, "kind": "other", "reason": evil}
    return make_run(
        sites,
        model=evil,
        architecture=evil,
        architecture_source=evil,
        source=evil,
        input=evil,
        input_source=evil,
        torch=evil,
        command=evil,
        never_called=[evil],
        warnings=[evil],
        alternatives=[{"architecture": evil, "input": evil, "gflops": 1.0}],
        device={"name": evil, "kind": evil, "threads": 2},
    )


@pytest.mark.slow
def test_what_is_planted_in_a_saved_run_is_cleaned_everywhere(tmp_path, capsys):
    folder = hostile(PLANTED).save(tmp_path / "x\x1b.flopprof")

    for where, text in outputs(str(folder), capsys, tmp_path).items():
        assert_clean(text, where)


def test_halves_of_letters_are_shown_escaped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", f"x{HALVES[1]}"]) == 2

    assert "x\\xff" in capsys.readouterr().err
    run = make_run()
    source = msgspec.structs.replace(run.provenance.source, model=f"ev{HALVES}il")
    run = run.replaced(provenance=msgspec.structs.replace(run.provenance, source=source))
    for form in ("text", "md", "html", "csv"):
        text = run.report(form)
        text.encode("utf-8")
        assert_clean(text, form)
    assert "ev\\ud800\\xffil" in run.report("text")
    assert write_report(run, "xlsx")[:2] == b"PK"
    assert Run.load(run.save("y")).provenance.title == "ev\\ud800\\xffil"


NAMES = ["=1+2", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "plain", "a=b", ""]


def test_a_spreadsheet_calculates_no_name(tmp_path):
    site = make_run().sites.to_dict("records")[0]
    sites = [site | {"site_id": n, "op": name, "reason": name} for n, name in enumerate(NAMES)]
    run = make_run(sites)

    rows = list(csv.DictReader(io.StringIO(run.report("csv"))))

    for row, name in zip(rows, NAMES, strict=True):
        assert not row["op"].startswith(("=", "+", "-", "@", "\t", "\r"))
        assert row["op"].endswith(name[-2:])
        assert (row["op"] == name) == (name in ("plain", "a=b", ""))
        assert float(row["flops"]) == 528  # numbers stay numbers
    # What the run itself saves comes back as it was.
    loaded = Run.load(run.save(tmp_path / "x.flopprof"))
    assert loaded.sites["op"].tolist() == NAMES


def test_negative_numbers_are_no_formulas():
    frame = make_run().sites.assign(time_us=-1.0)

    assert for_people(frame)["time_us"].tolist() == [-1.0, -1.0]
