"""The report as Markdown, for a repository or an issue."""

import re

from flopprof.report import report_format
from flopprof.report.summary import kernel_sums, misses, module_sums, summary, top_sites
from flopprof.run import Run
from flopprof.tables import SITES
from flopprof.units import duration, percent, shorten, si

TOP = 30  # sites and kernels listed
_COLUMNS = {  # of the table of sites, as headed there
    "module_path": "module",
    "op": "op",
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
    lines = [f"# flopprof: {_cell(title)}", "", "| | |", "|---|---|"]
    lines += [f"| {_cell(label)} | {_cell(text)} |" for label, text in summary(run)]
    header, rows = top_sites(run, TOP)
    lines += ["", "## Top sites", "", *_table(header, rows), ""]
    docs = {_COLUMNS[c.name]: c.doc for c in SITES.columns if c.name in _COLUMNS}
    lines += [f"- **{name}**: {docs[name]}" for name in header]
    title = (
        "What is estimated, bounded or unknown"
        if run.recorded_elsewhere
        else "What the hooks missed"
    )
    lines += ["", f"## {title}", ""]
    for miss in misses(run):
        share = percent(miss.time_frac)
        flops = f"{si(miss.flops, 'FLOPs')} known, at most {si(miss.flops_at_most, 'FLOPs')}"
        lines.append(f"- **{miss.verdict}**: {miss.sites} sites, {share} of the time, {flops}")
        lines += [
            f"  - {_cell(p)}: {_cell(op)}: {_cell(reason)}" for p, op, reason in miss.examples
        ]
    if not misses(run):
        lines.append("Nothing.")
    header = ["module", "type", "calls", "own FLOPs", "FLOPs with all inside", "its time", "FLOP/s"]
    rows = [
        [
            *(module.module_path or "(model)", module.module_type, str(module.calls)),
            *(si(module.self_flops, ""), "≥ " * (module.unknown_sites > 0) + si(module.flops, "")),
            *(duration(module.time_us), si(module.achieved_flops_per_s, "")),
        ]
        for module in module_sums(run).itertuples(index=False)
    ]
    lines += ["", "## Modules", "", *_table(header, rows)]
    kernels = kernel_sums(run)
    if len(kernels):
        rows = [
            [
                *(shorten(kernel.kernel, 100), kernel.kind, str(kernel.calls)),
                *(duration(kernel.time_us), percent(kernel.time_share_frac)),
            ]
            for kernel in kernels.head(TOP).itertuples(index=False)
        ]
        lines += ["", f"## Kernels: {len(rows)} of {len(kernels)} by time", ""]
        lines += _table(["kernel", "kind", "calls", "time", "share"], rows)
    return "\n".join(lines) + "\n"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [_row(header), _row(["---"] * len(header)), *map(_row, rows)]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    """Return `text` without what Markdown or HTML would act on."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    # An underscore between letters is no emphasis.
    return re.sub(r"([\\`*\[\]~|]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)
