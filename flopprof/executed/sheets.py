"""Find the table of counters in a file, whatever stands around it."""

import codecs
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flopprof.errors import LoadError, UsageError
from flopprof.units import safe_text

LARGEST_BYTES = 2_000_000_000
"""A text larger than that holds no counters that anybody would read whole."""

_KINDS = {  # the columns that tell a table's form; lower case, without spaces and underscores
    "ncu long": ("id", "kernelname", "metricname", "metricvalue"),
    "ncu wide": ("id", "kernelname", "context"),
    "rocprofv3 long": ("kernelname", "dispatchid", "countername", "countervalue"),
    "rocprof wide": ("kernelname", "dispatchid", "gridsize"),
    "rocprof v1": ("kernelname", "index", "gpu-id", "grd"),
}
_KEYS = {  # the column that numbers the rows
    "ncu long": ("id",),
    "ncu wide": ("id",),
    "rocprofv3 long": ("dispatchid",),
    "rocprof wide": ("dispatchid",),
    "rocprof v1": ("index",),
}
_PEAKS = ("hbmbw", "l2bw")  # columns of rocprof-compute's roofline.csv
_PERMISSION = "ERR_NVGPUCTRPERM"
_ERROR = re.compile(r"^==ERROR==\s*(.*)")


@dataclass
class Sheet:
    """A table as it stands in a file.

    Attributes:
        kind: Its form, a key of `_KINDS`.
        header: Its columns' names.
        rows: Its rows, each as (number of the line, cells).
        errors: What the profiler said of errors, anywhere in the file.
    """

    kind: str
    header: list[str]
    rows: list[tuple[int, list[str]]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def plain_name(column: str) -> str:
    """Return a column's name so that forms of one name are equal: "Kernel_Name", "Kernel Name"."""
    return re.sub(r"[ _]", "", column.strip().lower())


def read_text(path: Path) -> str:
    """Return a file's text, whatever encoding its first bytes say.

    Raises:
        UsageError: There is no such file.
        LoadError: It is too large, or no text.
    """
    try:
        if path.is_dir() or not path.exists():
            fact = "is a folder" if path.is_dir() else "is not there"
            raise UsageError(f"{safe_text(path)} {fact}", remedy="name a file of counters")
        if not path.is_file() or path.stat().st_size > LARGEST_BYTES:
            fact = f"{safe_text(path)} is no file, or one of more than {LARGEST_BYTES} bytes"
            raise LoadError(fact, remedy="name a file of counters")
        content = path.read_bytes()
    except OSError as error:
        fact = f"{safe_text(path)} cannot be read: {str(error.strerror).lower()}"
        raise UsageError(fact, remedy="name a file of counters that can") from error
    return decode(content, path)


def decode(content: bytes, path: Path) -> str:
    """Return bytes as text: UTF-8 or UTF-16 (which Windows shells write), with or without a mark.

    Raises:
        LoadError: They are no text.
    """
    for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        if content.startswith(mark):
            return content.decode("utf-16", errors="replace")
    if content.startswith(b"SQLite format 3"):
        raise LoadError(
            f"{safe_text(path)} is a database of rocprofv3",
            remedy="write CSV: rocprofv3 --output-format csv …",
        )
    if b"\0" in content[:4096]:
        raise LoadError(
            f"{safe_text(path)} is binary, and no report of Nsight Compute",
            remedy=_expected(),
        )
    return content.decode("utf-8-sig", errors="replace")


def find_sheets(text: str, path: Path) -> list[Sheet]:
    """Return the tables in a text; a header that is repeated begins another.

    Raises:
        LoadError: There is none, or a row that has more cells than its header.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    errors = [match.group(1).strip() for line in lines if (match := _ERROR.match(line))]
    sheets: list[Sheet] = []
    for number, cells, is_header in _records(lines):
        if is_header:
            sheets.append(Sheet(_kind(cells), [cell.strip() for cell in cells], [], errors))
        elif sheets:
            _add_row(sheets[-1], number, cells, path)
    if not sheets:
        raise _no_table(text, lines, errors, path)
    return sheets


def _records(lines: list[str]) -> Iterator[tuple[int, list[str], bool]]:
    """Yield each record: the number of its first line, its cells, whether it is a header."""
    delimiter = ""
    at = 0
    while at < len(lines):
        line = lines[at].removeprefix("\ufeff")
        new_delimiter = _header_delimiter(line)
        if new_delimiter:
            delimiter = new_delimiter
        if not delimiter or line.startswith("==") or not line.strip():
            at += 1
            continue
        first = at
        is_row = bool(new_delimiter) or line[:1] == '"' or line[:1].isdigit()
        while is_row and line.count('"') % 2 and at + 1 < len(lines):  # a cell of several lines
            at += 1
            line += "\n" + lines[at]
        at += 1
        cells = next(csv.reader([line], delimiter=delimiter), [])
        yield first + 1, cells, bool(new_delimiter)


def _header_delimiter(line: str) -> str:
    """Return what separates the columns of a header; "" where the line is none."""
    if "ernel" not in line:
        return ""
    for delimiter in (",", ";", "\t"):
        if _kind(next(csv.reader([line], delimiter=delimiter), [])):
            return delimiter
    return ""


def _kind(cells: list[str]) -> str:
    names = {plain_name(cell) for cell in cells}
    for kind, needed in _KINDS.items():
        if names.issuperset(needed):
            return kind
    return ""


def _add_row(sheet: Sheet, number: int, cells: list[str], path: Path) -> None:
    """Add a row, which may be shorter than the header; text between rows is passed over."""
    width = len(sheet.header)
    at = next(i for i, name in enumerate(sheet.header) if plain_name(name) in _KEYS[sheet.kind])
    key = cells[at].strip() if len(cells) > at else "-"
    is_units = sheet.kind == "ncu wide" and not key and not sheet.rows
    if not is_units and not key.replace(",", "").isdecimal():
        return  # what the program printed
    # In a page with rules, the rest of a number that was torn stands in the place of a rule.
    rule = next((i for i, name in enumerate(sheet.header) if plain_name(name) == "rulename"), width)
    is_torn = len(cells) > rule and cells[rule].strip()[:3].isdecimal()
    if is_torn or any(cell.strip() for cell in cells[width:]):
        raise LoadError(
            f"line {number} of {safe_text(path)} has {len(cells)} cells, its header {width}: a "
            "number with separators of thousands that is not in quotes?",
            remedy="save the file with quotes, or write it again with ncu --print-fp",
        )
    sheet.rows.append((number, cells[:width] + [""] * (width - len(cells))))


def _expected() -> str:
    return (
        "expected is what one of these writes: ncu --import FILE.ncu-rep --page raw --csv "
        "--print-units base --print-fp; rocprofv3 --output-format csv; rocprof-compute "
        "(pmc_perf.csv)"
    )


def _no_table(text: str, lines: list[str], errors: list[str], path: Path) -> LoadError:
    """Return the error that says why a text holds no table of counters."""
    name = safe_text(path)
    if _PERMISSION in text:
        return permission_error(f"{name} says so")
    if errors:
        return LoadError(
            f"{name} holds no counters: {safe_text(errors[-1], 200)}", remedy="profile again"
        )
    columns = {plain_name(cell) for cell in (lines[0] if lines else "").split(",")}
    if columns.issuperset(_PEAKS):
        return LoadError(
            f"{name} holds measured peaks of a device, no counters", remedy="name pmc_perf.csv"
        )
    if not text.strip():
        return LoadError(f"{name} is empty", remedy=_expected())
    return LoadError(f"{name} holds no table of counters", remedy=_expected())


def permission_error(source: str) -> LoadError:
    """Return the error for a driver that lets only the administrator read counters."""
    return LoadError(
        f"the driver refused access to the GPU's counters ({_PERMISSION}): {source}",
        remedy="run as root, with CAP_SYS_ADMIN, or load the driver with "
        "NVreg_RestrictProfilingToAdminUsers=0; DCGM's profiling must be paused",
    )
