"""What counter files say, launch by launch: as text, and as one JSON object."""

import json
import math
import textwrap
from typing import Annotated, Any

import pandas as pd
from msgspec import UNSET, Meta, UnsetType

from flopprof._version import __version__
from flopprof.jobfacts import Part
from flopprof.report.answer import Count, Share, Time, Whole, described_by, json_object
from flopprof.report.executed import (
    NUMERIC,
    ExecutedSums,
    executed_lines,
    executed_object,
    executed_table,
)
from flopprof.report.json import to_object
from flopprof.report.rows import short_op
from flopprof.report.text import aligned
from flopprof.run import SCHEMA_VERSION, Run, to_json, whole
from flopprof.tables import LAUNCHES, SITES
from flopprof.units import clean_text, duration, shorten, si, text_width

_HEADER = ["kernel", "grid", "matmul", "vector", "int ops", "DRAM", "L2", "L1", "time", "by"]
_NUMERIC = frozenset(_HEADER[2:9])
_AS_JSON = ("metrics", "executed_by_dtype")  # columns whose texts are JSON
_REASONS = 8  # reasons that a text lists


@described_by(LAUNCHES)
class Launch(Part, frozen=True, kw_only=True):
    """A row of the table `launches`. What the table has as NaN, -1 or '' is null."""

    launch_id: Whole
    file: str
    kernel: str
    grid: str | None
    block: str | None
    stream: Whole | None
    device_index: Whole | None
    arch: str | None
    range_id: Whole | None
    range_op: str | None
    duration_us: Time
    executed_matmul_flops: Count
    executed_vector_flops: Count
    executed_fma_flops: Count
    executed_half_at_most_flops: Count
    executed_int_ops: Whole | None
    executed_by_dtype: dict[str, dict[str, Whole | None]]
    dram_bytes: Whole | None
    dram_read_bytes: Whole | None
    dram_write_bytes: Whole | None
    l2_bytes: Whole | None
    l1_bytes: Whole | None
    executed_source: str | None
    flops_source: str | None
    metrics: dict[str, list[str]]
    reason: str | None
    op_id: Whole | UnsetType | None = UNSET
    kernel_id: Whole | UnsetType | None = UNSET
    joined_by: str | UnsetType | None = UNSET


@described_by(SITES)
class VerifiedSite(Part, frozen=True, kw_only=True):
    """A row of the table `sites` of which something was executed. NaN and '' are null."""

    site_id: Whole
    op: str
    module_path: str
    phase: str
    input_shapes: str | None
    dtype: str | None
    calls: Whole
    verdict: str
    matmul_flops: Count
    vector_flops: Count
    flops: Count
    min_bytes: Whole | None
    time_us: Time
    executed_flops: Count
    executed_matmul_flops: Count
    executed_vector_flops: Count
    executed_fma_flops: Count
    executed_int_ops: Whole | None
    useful_frac: Count
    dram_bytes: Whole | None
    l2_bytes: Whole | None
    l1_bytes: Whole | None
    executed_source: str | None
    joined_by: str | None
    executed_reason: str | None


@json_object
class VerifiedAnswer(Part, frozen=True, kw_only=True):
    """What `verify --counters` prints, and `verify` of a model that is saved or run under ncu.

    Attributes:
        schema_version: Version of this object.
        flopprof: Version of flopprof.
        launches: Launches in the counter files, in their order; none where ops were stepped.
        coverage_frac: This and all below: not of counters alone. Share of time in sites whose FLOPs
            are counted.
        matmul_flops: FLOPs of contractions that were counted.
        vector_flops: All other FLOPs that were counted.
        flops: Sum of both. What was executed is in none of the three.
        executed: Sums of what was executed.
        warnings: What makes figures doubtful.
        sites: Sites of which something was executed, by time.
        files: Files written.
    """

    schema_version: Annotated[int, Meta(extra_json_schema={"const": SCHEMA_VERSION})]
    flopprof: str
    launches: tuple[Launch, ...]
    coverage_frac: Share | UnsetType = UNSET
    matmul_flops: Whole | UnsetType = UNSET
    vector_flops: Whole | UnsetType = UNSET
    flops: Whole | UnsetType = UNSET
    executed: ExecutedSums | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET
    sites: tuple[VerifiedSite, ...] | UnsetType = UNSET
    files: list[str] | UnsetType = UNSET


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
    """Return a row of table LAUNCHES, or of SITES, as JSON has it."""
    values: dict[str, Any] = {}
    for name, value in row.items():
        if name in _AS_JSON:
            value = json.loads(value or "{}")
        elif isinstance(value, float):
            is_count = name.endswith(("_flops", "_ops", "_bytes"))
            value = whole(value) if is_count and not math.isnan(value) else value
        elif value in ("", -1) and name != "module_path":  # "" is the model itself
            value = None
        values[str(name)] = value
    cleaned: dict[str, Any] = to_json(values)
    return cleaned
