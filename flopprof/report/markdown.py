"""The report as Markdown, for a repository or an issue."""

import re

import pandas as pd

from flopprof.report import report_format
from flopprof.report.executed import executed_table
from flopprof.report.misses import Missed, heading, share_text
from flopprof.report.rows import kernel_sums, module_sums, top_sites
from flopprof.report.summary import summary
from flopprof.run import Run
from flopprof.tables import SITES
from flopprof.units import clean_text, counted, duration, percent, shorten, si

TOP = 30  # sites and kernels listed
EXAMPLES = 3  # ops named of one verdict
_COLUMNS = {  # of the table of sites, as headed there
    "module_path": "module",
    "op": "op",
    "rank": "rank",
    "calls": "calls",
    "flops": "FLOPs",
    "time_share_frac": "time",
    "achieved_flops_per_s": "FLOP/s",
    "intensity_flops_per_byte": "FLOP/B",
    "efficiency_frac": "roof",
    "bound": "bound",
    "verdict": "verdict",
}


@report_format("md", ".md")
def markdown_report(run: Run) -> str:
    """Return summary, top sites, misses, modules, kernels as GitHub-flavoured Markdown."""
    title = run.provenance.title or "model"
    lines = [f"# flopprof: {cell(title)}", "", "| | |", "|---|---|"]
    lines += [f"| {cell(label)} | {cell(text)} |" for label, text in summary(run)]
    header, rows = top_sites(run, TOP)
    lines += ["", "## Top sites", "", *table(header, rows), ""]
    docs = {_COLUMNS[c.name]: c.doc for c in SITES.columns if c.name in _COLUMNS}
    lines += [f"- **{name}**: {docs[name]}" for name in header]
    executed = executed_table(run, TOP)
    if executed:
        lines += ["", "## Executed, by counters", "", *table(executed[0], executed[1:])]
    lines += ["", "## What was missed", "", cell(heading(run))]
    for group in run.misses:
        lines += _missed_lines(group)
    lines += ["", "## Modules", "", *_modules(run)]
    kernels = kernel_sums(run)
    if len(kernels):
        top = kernels.head(TOP)
        lines += ["", f"## Kernels: {len(top)} of {len(kernels)} by time", "", *_kernels(top)]
    return "\n".join(lines) + "\n"


def _missed_lines(group: Missed) -> list[str]:
    """Return a verdict's part of the list of what was missed."""
    sites = counted(group.sites, "site")
    flops = f"{si(group.known_flops, 'FLOPs')} known, at most {si(group.flops_at_most, 'FLOPs')}"
    lines = ["", f"- **{group.verdict}**: {sites}{share_text(group.time_frac)}, {flops}"]
    for entry in group.ops[:EXAMPLES]:
        place = entry.modules[0] or "(model)"
        name = entry.op.removeprefix("aten::")
        lines.append(f"  - {cell(place)}: {cell(name)}: {cell(entry.reason)}")
    if len(group.ops) > EXAMPLES:
        more = counted(len(group.ops) - EXAMPLES, "op")
        lines.append(f"  - and {more} more")
    return lines


def _modules(run: Run) -> list[str]:
    header = ["module", "type", "calls", "own FLOPs", "FLOPs with all inside", "its time", "FLOP/s"]
    rows = []
    for module in module_sums(run).itertuples(index=False):
        flops = si(module.flops, "")
        row = [
            module.module_path or "(model)",
            module.module_type,
            str(module.calls),
            si(module.self_flops, ""),
            f"≥ {flops}" if module.unknown_sites > 0 else flops,
            duration(module.time_us),
            si(module.achieved_flops_per_s, ""),
        ]
        rows.append(row)
    return table(header, rows)


def _kernels(kernels: pd.DataFrame) -> list[str]:
    rows = []
    for kernel in kernels.itertuples(index=False):
        row = [
            shorten(kernel.kernel, 100),
            kernel.kind,
            str(kernel.calls),
            duration(kernel.time_us),
            percent(kernel.time_share_frac),
        ]
        rows.append(row)
    return table(["kernel", "kind", "calls", "time", "share"], rows)


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table; its cells are made safe."""
    return [_row(header), _row(["---"] * len(header)), *map(_row, rows)]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(map(cell, cells)) + " |"


def cell(text: str) -> str:
    """Return `text` without what Markdown or HTML would act on."""
    text = clean_text(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;")
    # An underscore between letters is no emphasis.
    return re.sub(r"([\\`*\[\]~|]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)
