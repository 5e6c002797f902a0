"""The workbook: opened as a spreadsheet program would, with numbers as numbers."""

import io
import re
import sys
from pathlib import Path

import openpyxl
import pandas as pd
import pytest

from flopprof.cli import main
from flopprof.errors import UsageError
from flopprof.report.xlsx import header_of, xlsx_report
from flopprof.run import Run
from flopprof.tables import SITES

SMALL = Path(__file__).parents[1] / "runs" / "small.flopprof"
NAMES = ["summary", "sites", "modules", "ops", "misses"]


@pytest.fixture(scope="module")
def small():
    return Run.load(SMALL)


def opened(content):
    return openpyxl.load_workbook(io.BytesIO(content))


def table(sheet):
    """Return a sheet as rows by header; None is an empty cell."""
    head, *rows = sheet.iter_rows(values_only=True)
    return [dict(zip(head, row, strict=True)) for row in rows]


@pytest.fixture(scope="module")
def book(small):
    return opened(xlsx_report(small))


def test_each_table_is_a_sheet_with_a_frozen_header_and_filters(book):
    assert book.sheetnames == NAMES
    for sheet in book:
        assert sheet.freeze_panes == "A2"
        assert sheet.auto_filter.ref.startswith("A1:")
        assert sheet["A1"].font.bold
        assert all(8 <= sheet.column_dimensions[c].width <= 65 for c in ("A", "B"))


def test_sites_are_all_there_with_numbers_as_numbers_and_unknown_empty(book, small):
    rows = table(book["sites"])

    assert len(rows) == len(small.sites)
    assert list(rows[0]) == [header_of(name) for name in small.sites.columns]
    # The first site of the recorded run: a convolution of 3,538,944 + 65,536 FLOPs.
    first = rows[0]
    assert (first["op"], first["module path"]) == ("aten::conv2d", "stem.0")
    assert (first["matmul FLOPs"], first["vector FLOPs"], first["FLOPs"]) == (
        3_538_944,
        65_536,
        3_604_480,
    )
    assert first["time (µs)"] == pytest.approx(433.123, abs=0.001)
    unknown = [row for row in rows if row["verdict"] == "extension"]
    assert unknown[0]["FLOPs"] is None
    assert isinstance(unknown[0]["FLOPs at most"], int)
    share = book["sites"].cell(2, list(small.sites.columns).index("time_share_frac") + 1)
    assert share.number_format == "0.0%"
    assert share.value == pytest.approx(0.4494, abs=1e-4)


@pytest.mark.parametrize(
    ("column", "header"),
    [
        ("time_us", "time (µs)"),
        ("self_matmul_flops", "self matmul FLOPs"),
        ("flops_at_most", "FLOPs at most"),
        ("vector_flops_at_least", "vector FLOPs at least"),
        ("achieved_flops_per_s", "achieved (FLOP/s)"),
        ("intensity_flops_per_byte", "intensity (FLOPs/byte)"),
        ("time_share_frac", "time share (%)"),
        ("min_bytes", "min bytes"),
        ("flops_source", "flops source"),
    ],
)
def test_a_header_has_the_unit(column, header):
    assert header_of(column) == header


def test_the_summary_has_the_figures_of_json_with_their_meanings(book):
    rows = {row["what"]: row for row in table(book["summary"])}

    assert rows["FLOPs"]["text"].startswith("matmul 3.")
    assert (
        rows["flops"]["number"] == rows["matmul_flops"]["number"] + rows["vector_flops"]["number"]
    )
    assert rows["vector_flops"]["meaning"] == "All other FLOPs that were counted."


def test_ops_add_up_to_the_sites_and_misses_say_what_to_do(book, small):
    ops = {row["op"]: row for row in table(book["ops"])}
    known = small.sites[small.sites["flops"].notna()]

    assert sum(row["FLOPs"] or 0 for row in ops.values()) == known["flops"].sum()
    assert ops["mylib::twice"]["FLOPs"] is None
    assert ops["mylib::twice"]["unknown sites"] == 1
    miss = next(row for row in table(book["misses"]) if row["op"] == "mylib::twice")
    assert "--stub" in miss["advice"]


EVIL = [
    "=1+1",
    "@SUM(A1)",
    "http://x.y/z",
    "+1",
    "-1",
    "{=1}",
    "1e5",
    "a\x1b[31m\x00",
    "",
]


def test_names_are_texts_and_never_formulas_links_or_numbers(small):
    row = small.sites.iloc[0].to_dict()
    sites = [row | {"site_id": i, "op": name, "module_path": name} for i, name in enumerate(EVIL)]
    run = small.replaced(sites=SITES.from_rows([*sites, row | {"op": "x" * 40_000}]))

    sheet = opened(xlsx_report(run))["sites"]

    cells = [sheet.cell(i, 2) for i in range(2, 2 + len(EVIL))]
    assert {cell.data_type for cell in cells} <= {"s", "n"}  # an empty cell is of type n
    assert [cell.value for cell in cells][:7] == EVIL[:7]
    assert [cell.value for cell in cells][7:] == ["a\ufffd[31m\ufffd", None]
    assert not any(cell.hyperlink for cell in cells)
    assert len(sheet.cell(2 + len(EVIL), 2).value) == 32_767


def test_an_infinite_number_is_told_and_no_error(small):
    sites = small.sites.copy()
    sites.loc[0, "intensity_flops_per_byte"] = float("inf")

    rows = table(opened(xlsx_report(small.replaced(sites=sites)))["sites"])

    assert rows[0]["intensity (FLOPs/byte)"] == "∞"


def test_a_run_without_sites_has_all_sheets(small):
    empty = small.replaced(sites=SITES.empty(), ops=small.ops.iloc[:0])

    assert opened(xlsx_report(empty)).sheetnames == NAMES


def test_equal_runs_are_equal_files(small):
    assert xlsx_report(small) == xlsx_report(Run.load(SMALL))


def test_the_command_writes_it_by_suffix_and_prints_no_bytes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    assert main(["report", str(SMALL), "-o", "x.xlsx"]) == 0
    assert capsys.readouterr().out == ""
    assert len(pd.read_excel("x.xlsx", sheet_name="sites")) == len(Run.load(SMALL).sites)
    assert main(["report", str(SMALL), "--format", "xlsx"]) == 2
    assert "-o report.xlsx" in capsys.readouterr().err
    assert main(["report", str(SMALL), "--format", "md", "-o", "x.xlsx"]) == 2


def test_help_lists_every_format(capsys):
    with pytest.raises(SystemExit):
        main(["report", "--help"])

    listed = " ".join(capsys.readouterr().out.split()).partition(" (default:")[0]
    for name in ("csv", "html", "json", "md", "text", "xlsx"):
        assert re.search(rf"\b{name}\b", listed), name


def test_without_the_library_the_extra_is_named(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "xlsxwriter", None)

    with pytest.raises(UsageError, match="XlsxWriter") as refused:
        xlsx_report(small)

    assert "flopprof[xlsx]" in refused.value.remedy
