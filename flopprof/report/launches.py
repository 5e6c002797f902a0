"""What counter files say, launch by launch: as text, and as one JSON object."""

import json
import math
import textwrap
from typing import Any

import pandas as pd

from flopprof._version import __version__
from flopprof.report.executed import NUMERIC, executed_lines, executed_object, executed_table
from flopprof.report.json import to_object
from flopprof.report.summary import short_op
from flopprof.report.text import aligned
from flopprof.run import SCHEMA_VERSION, Run, to_json, whole
from flopprof.units import clean_text, duration, shorten, si, text_width

_HEADER = ["kernel", "grid", "matmul", "vector", "int ops", "DRAM", "L2", "L1", "time", "by"]
_NUMERIC = frozenset(_HEADER[2:9])
_AS_JSON = ("metrics", "executed_by_dtype")  # columns whose texts are JSON
_REASONS = 8  # reasons that a text lists


def launches_text(launches: pd.DataFrame) -> str:
    """Return the table of launches (table LAUNCHES) for a terminal, and why figures are missing."""
    rows = [_HEADER]
    for launch in launches.itertuples(index=False):
        kernel = clean_text(launch.kernel)
        flops = (launch.executed_matmul_flops, launch.executed_vector_flops)
        moved = (launch.dram_bytes, launch.l2_bytes, launch.l1_bytes)
        rows.append(
            [
                shorten(kernel, 60),
                launch.grid or "?",
                *(si(value, "FLOPs") for value in flops),
                si(launch.executed_int_ops, "ops"),
                *(si(value, "B") for value in moved),
                duration(launch.duration_us),
                launch.executed_source or "?",
            ]
        )
    lines = aligned(rows, right=_NUMERIC)
    reasons = launches.loc[launches["reason"] != "", "reason"].value_counts(sort=False)
    for reason, times in list(reasons.items())[:_REASONS]:
        text = f"{times} × {clean_text(reason)}"
        lines += textwrap.wrap(text, text_width(), subsequent_indent="    ")
    if len(reasons) > _REASONS:
        lines.append(f"… and {len(reasons) - _REASONS} other reasons: see --json")
    return "\n".join(lines)


def launches_object(launches: pd.DataFrame) -> dict[str, Any]:
    """Return what `--json` prints of launches: unknown is null, counts are integers."""
    return {
        "schema_version": SCHEMA_VERSION,
        "flopprof": __version__,
        "launches": [launch_object(row) for row in launches.to_dict("records")],
    }


def verified_text(run: Run) -> str:
    """Return what counters say of a run, for a terminal: a summary, its sites, what did not fit."""
    width = text_width()
    lines = []
    for label, text in executed_lines(run):
        indent = " " * 10
        lines += textwrap.wrap(
            clean_text(text), width, initial_indent=f"{label:<10}", subsequent_indent=indent
        )
    rows = [[clean_text(cell) for cell in row] for row in executed_table(run)]
    if len(rows) > 1:
        lines += ["", *aligned(rows, right=NUMERIC, width=width), ""]
    sites = run.sites
    doubtful = sites[sites["executed_reason"] != ""].head(_REASONS)
    for site in doubtful.itertuples(index=False):
        text = f"{site.module_path or '(model)'}: {short_op(site)}: {site.executed_reason}"
        lines += textwrap.wrap(clean_text(text), width, subsequent_indent="    ")
    return "\n".join(lines)


def verified_object(run: Run, files: list[str]) -> dict[str, Any]:
    """Return what `--json` prints of a run with counters: launches, sites and sums."""
    whole_run = to_object(run, files)
    shared = ("coverage_frac", "matmul_flops", "vector_flops", "flops", "executed", "warnings")
    sites = [launch_object(row) for row in executed_object(run)["sites"]]
    return launches_object(run.launches) | {
        **{name: whole_run[name] for name in shared},
        "sites": sites,
        "files": files,
    }


def launch_object(row: dict[Any, Any]) -> dict[str, Any]:
    """Return a row of table LAUNCHES as JSON has it."""
    values: dict[str, Any] = {}
    for name, value in row.items():
        if name in _AS_JSON:
            value = json.loads(value or "{}")
        elif isinstance(value, float):
            is_count = name.endswith(("_flops", "_ops", "_bytes"))
            value = whole(value) if is_count and not math.isnan(value) else value
        elif value in ("", -1):
            value = None
        values[str(name)] = value
    cleaned: dict[str, Any] = to_json(values)
    return cleaned
