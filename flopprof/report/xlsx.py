"""The report as an Excel workbook: a sheet per table, numbers as numbers, units in the headers."""

import datetime
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from flopprof.errors import UsageError
from flopprof.report import report_format
from flopprof.report.answer import schema
from flopprof.report.json import to_object
from flopprof.report.misses import to_rows
from flopprof.report.rows import kernel_sums, module_sums
from flopprof.report.summary import summary
from flopprof.run import Run
from flopprof.units import clean_text

if TYPE_CHECKING:
    from xlsxwriter.format import Format
    from xlsxwriter.workbook import Workbook

MOST_ROWS = 2**20 - 1  # of a sheet in Excel, below the header
MOST_LETTERS = 32_767  # of a cell in Excel
NARROWEST = 8  # columns of letters: room for the filter's arrow
NUMBERS_WIDTH = 14  # columns of numbers, at least: "−1.23E+12" and more
WIDEST = 60  # columns of letters: a longer text is cut by the cell, not by the file
LOOKED_AT = 500  # rows whose texts decide how wide a column is

# What a column's name ends in, the same in its header, and how Excel shows its numbers.
_ENDINGS = (
    ("_flops_per_byte", " (FLOPs/byte)", "0.00"),
    ("_flops_per_s", " (FLOP/s)", "0.00E+00"),
    ("_bytes_per_s", " (B/s)", "0.00E+00"),
    ("_per_s", " (1/s)", "#,##0.00"),
    ("_bytes", " bytes", "#,##0"),
    ("_frac", " (%)", "0.0%"),
    ("_us", " (µs)", "#,##0.000"),
    ("_j", " (J)", "0.00"),
    ("flops", "FLOPs", "#,##0"),
    ("flops_at_most", "FLOPs at most", "#,##0"),
    ("flops_at_least", "FLOPs at least", "#,##0"),
)


@report_format("xlsx", ".xlsx")
def xlsx_report(run: Run) -> bytes:
    """Return the run as a workbook: summary, sites, modules, ops, kernels and misses.

    What is not known is an empty cell. Names from files are texts, never formulas or links.

    Raises:
        UsageError: XlsxWriter is not installed.
    """
    try:
        import xlsxwriter
    except ImportError:
        raise UsageError(
            "a workbook is written with XlsxWriter, which is not installed",
            remedy="pip install 'flopprof[xlsx]'",
        ) from None
    tables = {
        "summary": _summary(run),
        "sites": run.sites,
        "modules": module_sums(run),
        "ops": _by_op(run),
        "kernels": kernel_sums(run),
        "misses": _misses(run),
    }
    content = io.BytesIO()
    options = {
        "in_memory": True,
        "strings_to_formulas": False,
        "strings_to_urls": False,
        "strings_to_numbers": False,
    }
    with xlsxwriter.Workbook(content, options) as book:
        book.set_properties({"created": datetime.datetime(1980, 1, 1)})  # equal runs, equal files
        for name, table in tables.items():
            if len(table) or name != "kernels":
                _write_sheet(book, name, table)
    return content.getvalue()


def _summary(run: Run) -> pd.DataFrame:
    """Return the lines of the summary, then every number of `--json` with what it means."""
    lines: list[tuple[str, str, float | None, str]] = []
    for label, text in summary(run):
        lines.append((label, text, None, ""))
    meanings = schema()["$defs"]["Answer"]["properties"]
    for name, value in to_object(run).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            lines.append((name, "", value, meanings[name].get("description", "")))
    return pd.DataFrame(lines, columns=["what", "text", "number", "meaning"])


def _by_op(run: Run) -> pd.DataFrame:
    """Return sums over the sites of each op, most time first; one unknown part makes no sum."""
    names = ["calls", "matmul_flops", "vector_flops", "flops", "flops_at_most", "min_bytes"]
    groups = run.sites.groupby("op", sort=False, observed=True)
    sums = groups[names].agg(lambda values: values.sum(skipna=False))
    sums["time_us"] = groups["time_us"].sum(min_count=1)
    sums["time_share_frac"] = groups["time_share_frac"].sum(min_count=1)
    seconds = sums["time_us"].where(sums["time_us"] > 0) / 1e6
    sums["achieved_flops_per_s"] = sums["flops"] / seconds
    sums["unknown_sites"] = run.sites["flops"].isna().groupby(run.sites["op"]).sum()
    return sums.sort_values("time_us", ascending=False, kind="stable").reset_index()


def _misses(run: Run) -> pd.DataFrame:
    """Return what hooks or formulas missed, a row per verdict and op, with what to do."""
    rows = [
        row | {name: ", ".join(row[name]) for name in ("modules", "shapes")}
        for row in to_rows(run.misses)
    ]
    columns = ["verdict", "op", "sites", "calls", "time_frac", "flops", "flops_at_most"]
    return pd.DataFrame(rows, columns=[*columns, "modules", "shapes", "reason", "advice"])


def header_of(column: str) -> str:
    """Return a column's header, with its unit: "time_us" is "time (µs)"."""
    ending, words, _ = _ending_of(column)
    return (column.removesuffix(ending) + words).replace("_", " ")


def _ending_of(column: str) -> tuple[str, str, str]:
    """Return the row of `_ENDINGS` of a column; empty texts where it is of none."""
    for row in _ENDINGS:
        if column.endswith(row[0]):
            return row
    return "", "", ""


def _write_sheet(book: "Workbook", name: str, table: pd.DataFrame) -> None:
    """Write a table with a header that stays, filters, and columns as wide as their content."""
    sheet = book.add_worksheet(name)
    bold = book.add_format({"bold": True, "text_wrap": True, "valign": "top"})
    rows = table.head(MOST_ROWS)
    for position, column in enumerate(map(str, table.columns)):
        header = header_of(column)
        values = rows[column].tolist()
        number_format = _ending_of(column)[2]
        shown = book.add_format({"num_format": number_format or "General"})
        width = _width(header, values, is_number=number_format != "")
        sheet.set_column(position, position, width, shown)
        sheet.write_string(0, position, header, bold)
        for row, value in enumerate(values, start=1):
            _write_cell(sheet, row, position, value, shown)
    sheet.freeze_panes(1, 0)
    sheet.autofilter(0, 0, max(len(rows), 1), len(table.columns) - 1)


def _write_cell(sheet: Any, row: int, column: int, value: object, shown: "Format") -> None:
    """Write a number as a number and a text as a text; what is not known stays empty."""
    if value is None or value != value:
        return
    if isinstance(value, bool):
        sheet.write_boolean(row, column, value)
    elif isinstance(value, int | float):
        if math.isinf(value):
            sheet.write_string(row, column, "∞")
        else:
            sheet.write_number(row, column, value, shown)
    elif value != "":
        sheet.write_string(row, column, clean_text(value)[:MOST_LETTERS])


def _width(header: str, values: Sequence[object], *, is_number: bool) -> int:
    """Return how many letters wide a column is."""
    if is_number:
        return max(len(header) // 2, NUMBERS_WIDTH)  # a header may take two lines
    longest = max((len(str(value)) for value in values[:LOOKED_AT]), default=0)
    return min(max(longest, len(header), NARROWEST) + 2, WIDEST)
