"""The report as Markdown, for a repository or an issue."""

from flopprof.report import report_format
from flopprof.report.content import misses, summary, top_sites
from flopprof.run import Run
from flopprof.units import percent, si


@report_format("md", ".md")
def markdown_report(run: Run) -> str:
    """Return summary, top sites and misses as GitHub-flavoured Markdown."""
    title = run.meta.get("architecture") or run.meta.get("model", "model")
    lines = [f"# flopprof: {_cell(title)}", "", "| | |", "|---|---|"]
    lines += [f"| {_cell(label)} | {_cell(text)} |" for label, text in summary(run)]
    header, rows = top_sites(run, 30)
    lines += ["", "## Top sites", "", _row(header), _row(["---"] * len(header))]
    lines += [_row(row) for row in rows]
    title = (
        "What is estimated, bounded or unknown" if "trace" in run.meta else "What the hooks missed"
    )
    lines += ["", f"## {title}", ""]
    for miss in misses(run):
        share = percent(miss.time_frac)
        flops = si(miss.flops, "FLOPs")
        lines.append(f"- **{miss.verdict}**: {miss.sites} sites, {share} of the time, {flops}")
        lines += [
            f"  - {_cell(p)}: {_cell(op)}: {_cell(reason)}" for p, op, reason in miss.examples
        ]
    if not misses(run):
        lines.append("Nothing.")
    lines += ["", "## Modules", ""]
    lines += [_row(["module", "type", "calls", "own FLOPs", "FLOPs with all inside"])]
    lines += [_row(["---"] * 5)]
    for module in run.by_module().itertuples(index=False):
        cells = [module.module_path or "(model)", module.module_type, str(module.calls)]
        lines.append(_row([*cells, si(module.self_flops, ""), si(module.flops, "")]))
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    """Return `text` without what Markdown or HTML would act on."""
    for char, escaped in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", " ")):
        text = text.replace(char, escaped)
    return text
