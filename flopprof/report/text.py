"""The report for a terminal, at most 100 columns wide."""

import textwrap

from flopprof.report import report_format
from flopprof.report.summary import misses, summary, top_sites
from flopprof.run import Run
from flopprof.units import columns, percent, shorten, si

WIDTH = 100
_NUMERIC = frozenset(("calls", "FLOPs", "time", "FLOP/s", "FLOP/B", "roof"))


@report_format("text", ".txt")
def text_report(run: Run) -> str:
    """Return summary, top sites and misses as plain text."""
    lines = []
    for label, text in summary(run):
        lines += textwrap.wrap(
            text, WIDTH, initial_indent=f"{label:<10}", subsequent_indent=" " * 10
        )
    header, rows = top_sites(run)
    more = len(run.sites) - len(rows)
    lines += ["", *_table(header, rows), *[f"… and {more} sites more: see --json"] * (more > 0), ""]
    found = misses(run)
    if found:
        lines.append(
            "What is estimated, bounded or unknown"
            if run.recorded_elsewhere
            else "What the hooks missed"
        )
    for miss in found:
        share = percent(miss.time_frac)
        lines.append(
            f"  {miss.verdict}: {miss.sites} site{'s' * (miss.sites != 1)}, {share} of the time, "
            f"{si(miss.flops, 'FLOPs')}"
        )
        for path, op, reason in miss.examples:
            lines += textwrap.wrap(
                f"{shorten(path, 40)}: {shorten(op, 40)}: {reason}",
                WIDTH,
                initial_indent="    ",
                subsequent_indent="      ",
            )
        if miss.kinds > len(miss.examples):
            lines.append(f"    … and {miss.kinds - len(miss.examples)} more: see --json")
    if not found:
        lines.append(
            "Nothing is unknown." if run.recorded_elsewhere else "The hooks missed nothing."
        )
    return "\n".join(lines) + "\n"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return an aligned table; module and op share what width the numbers leave."""
    widths = [max(map(columns, column)) for column in zip(header, *rows, strict=True)]
    free = WIDTH - sum(widths[2:]) - 2 * (len(widths) - 1)
    widths[1] = min(widths[1], max(free // 2, free - widths[0]))
    widths[0] = min(widths[0], free - widths[1])
    lines = []
    for row in [header, *rows]:
        cells = []
        for name, cell, width in zip(header, row, widths, strict=True):
            short = shorten(cell, width)
            pad = " " * (width - columns(short))
            cells.append(pad + short if name in _NUMERIC else short + pad)
        lines.append("  ".join(cells).rstrip())
    return lines
