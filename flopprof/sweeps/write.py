"""Write a sweep: text for a terminal, Markdown, CSV, a spreadsheet, JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from flopprof.files import explain_os_errors, replacing, write_atomically
from flopprof.report.text import aligned
from flopprof.sweeps.cell import DONE
from flopprof.sweeps.draw import draw_sweep
from flopprof.sweeps.result import Sweep
from flopprof.units import clean_text, shown, three_digits

NAME = "sweep"
_SHOWN = {
    "latency_p50_us": "p50",
    "latency_p95_us": "p95",
    "samples_per_s": "samples/s",
    "tokens_per_s": "tokens/s",
    "achieved_flops_per_s": "FLOP/s",
    "mfu_frac": "MFU",
    "mbu_frac": "MBU",
    "bound": "bound",
    "peak_memory_bytes": "memory",
    "coverage_frac": "known",
}
"""Columns that a terminal has room for, and their headings."""


def text_of(sweep: Sweep) -> str:
    """Return the table, the recommendation, and why cells have no figures."""
    header, rows = _cells(sweep)
    lines = aligned([header, *rows], right=set(header))
    if rows:
        lines.append("")
    lines += [f"{label}: {reason}" for label, reason in _failures(sweep)]
    front = sweep.pareto
    lines.append(f"On the front of latency against throughput: {len(front)} of {len(sweep.done)}")
    if advised := sweep.recommendation:
        lines.append(f"Recommended: {advised.text}")
    return "\n".join(map(clean_text, lines)) + "\n"


def markdown_of(sweep: Sweep) -> str:
    """Return the same as Markdown."""
    header, rows = _cells(sweep)
    lines = [f"# Sweep of {clean_text(sweep.what)}", ""]
    if advised := sweep.recommendation:
        lines += [f"**{clean_text(advised.text)}**", ""]
    lines += [_row(header), _row(["---"] * len(header)), *map(_row, rows), ""]
    lines += [f"- {clean_text(label)}: {clean_text(reason)}" for label, reason in _failures(sweep)]
    return "\n".join(lines).rstrip() + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(clean_text(cell).replace("|", "\\|") for cell in cells) + " |"


def _cells(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Return header and rows as text; figures that no cell has are left out."""
    table = sweep.table
    columns = [name for name in _SHOWN if table[name].notna().any()]
    on_front = set(sweep.pareto.index)
    header = [*(axis.replace("_", " ") for axis in sweep.axes), "status", ""]
    header += [_SHOWN[name] for name in columns]
    rows = []
    for index, cell in zip(table.index, table.to_dict("records"), strict=True):
        mark = "front" if index in on_front else ""
        row = [*(str(cell[axis]) for axis in sweep.axes), str(cell["status"]), mark]
        rows.append(row + [_figure(name, cell[name]) for name in columns])
    return header, rows


def _figure(name: str, value: object) -> str:
    if name in ("samples_per_s", "tokens_per_s") and isinstance(value, float):
        return three_digits(value)
    return shown(name, value)


def _failures(sweep: Sweep) -> list[tuple[str, str]]:
    """Return the cells without figures, with the reason."""
    failed = sweep.table[sweep.table["status"] != DONE]
    return [
        (", ".join(str(row[axis]) for axis in sweep.axes), str(row["reason"]))
        for row in failed.to_dict("records")
    ]


def write_sweep(sweep: Sweep, folder: Path) -> list[Path]:
    """Write table, chart and report of a sweep into its folder, and return the files."""
    from flopprof.report.csv import for_people

    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "csv": for_people(sweep.table).to_csv(index=False),
        "json": json.dumps(sweep.to_object(), indent=1) + "\n",
        "md": markdown_of(sweep),
    }
    files = []
    for suffix, text in texts.items():
        path = folder / f"{NAME}.{suffix}"
        write_atomically(path, text)
        files.append(path)
    if spreadsheet := _write_spreadsheet(sweep, folder / f"{NAME}.xlsx"):
        files.append(spreadsheet)
    if len(sweep.done):
        chart = folder / f"{NAME}.png"
        draw_sweep(sweep, chart)
        files.append(chart)
    return files


def _write_spreadsheet(sweep: Sweep, path: Path) -> Path | None:
    """Write the table as a spreadsheet; None where the library for it is not installed."""
    try:
        import xlsxwriter  # noqa: F401  # what pandas writes with
    except ImportError:
        return None
    options = {"options": {"strings_to_formulas": False, "strings_to_urls": False}}
    with (
        replacing(path) as unfinished,
        pd.ExcelWriter(unfinished, engine="xlsxwriter", engine_kwargs=options) as writer,
    ):
        sweep.table.to_excel(writer, sheet_name=NAME, index=False, freeze_panes=(1, 0))
    return path
