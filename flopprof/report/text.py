"""The report for a terminal, as wide as it is; 120 columns where it goes elsewhere."""

import math
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from flopprof.report import report_format
from flopprof.report.misses import Missed, heading, share_text
from flopprof.report.rows import TOP, top_sites
from flopprof.report.summary import summary
from flopprof.report.tree import module_tree
from flopprof.run import Run
from flopprof.units import clean_text, columns, counted, shorten, shorten_path, si, text_width

_LEAST_IMPORTANT = ("FLOP/B", "calls", "verdict", "FLOPs")  # of the table of sites
_NAMES = 36  # columns for a path and a name, from which on layers stay apart
EXAMPLES = 3  # ops named of one verdict
_NUMERIC = frozenset(
    ("rank", "calls", "params", "FLOPs", "share", "time", "FLOP/s", "FLOP/B", "roof")
)


@dataclass(frozen=True, slots=True)
class View:
    """What of a run a text shows.

    Attributes:
        top: Sites listed.
        sort: Column of `SITES` that they are sorted by, the largest first; None for their rank.
        depth: Levels of the module tree; None for no tree.
    """

    top: int = TOP
    sort: str | None = None
    depth: int | None = None


SORTS = {"time": "time_us", "flops": "flops", "bytes": "min_bytes", "calls": "calls"}
"""What sites may be sorted by → their column."""


@report_format("text", ".txt")
def text_report(run: Run, view: View | None = None) -> str:
    """Return summary, module tree where asked for, top sites and misses as plain text."""
    view = view or View()
    width = text_width()
    lines = []
    for label, text in summary(run):
        lines += textwrap.wrap(
            text, width, initial_indent=f"{label:<10}", subsequent_indent=" " * 10
        )
    if view.depth is not None:
        tree = [[clean_text(cell) for cell in row] for row in module_tree(run, view.depth)]
        lines += ["", *aligned(tree, right=_NUMERIC, width=width)]
    header, rows = top_sites(run, view.top, sort=view.sort)
    cells = [[clean_text(cell) for cell in row] for row in [header, *rows]]
    shown_cells, left_out = fitting(cells, width)
    lines += ["", *aligned(shown_cells, right=_NUMERIC, width=width)]
    if left_out:
        lines.append(f"(no room for {', '.join(left_out)}: a wider terminal, or --json)")
    if len(run.sites) > len(rows):
        more = counted(len(run.sites) - len(rows), "site")
        lines.append(f"… and {more} more: see --json")
    lines += ["", *textwrap.wrap(heading(run), width)]
    for group in run.misses:
        lines += _missed_lines(group, width)
    return "\n".join(lines) + "\n"


def _missed_lines(group: Missed, width: int) -> list[str]:
    sites = counted(group.sites, "site")
    flops = "FLOPs unknown"
    if not math.isnan(group.known_flops):
        flops = si(group.known_flops, "FLOPs")
    lines = [f"  {group.verdict}: {sites}{share_text(group.time_frac)}, {flops}"]
    for entry in group.ops[:EXAMPLES]:
        place = shorten_path(entry.modules[0] or "(model)", width // 2 - 10)
        name = shorten(entry.op.removeprefix("aten::"), width // 2 - 10)
        lines += textwrap.wrap(
            f"{place}: {name}: {entry.reason}",
            width,
            initial_indent="    ",
            subsequent_indent="      ",
        )
    if len(group.ops) > EXAMPLES:
        more = counted(len(group.ops) - EXAMPLES, "op")
        lines.append(f"    … and {more} more: flopprof misses DIR")
    return lines


def fitting(rows: Sequence[Sequence[str]], width: int) -> tuple[Sequence[Sequence[str]], list[str]]:
    """Return the rows without the columns that leave too little of a path and a name.

    Also the headings of these columns, the least important one first.

    Args:
        rows: Texts, equally many in each row, a path and a name first; the first has the headings.
        width: Columns that a line may take.
    """
    left_out: list[str] = []
    for name in _LEAST_IMPORTANT:
        widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
        free = width - sum(widths[2:]) - 2 * (len(widths) - 1)
        if free >= min(widths[0] + widths[1], _NAMES) or name not in rows[0]:
            continue
        place = list(rows[0]).index(name)
        rows = [[*row[:place], *row[place + 1 :]] for row in rows]
        left_out.append(name)
    return rows, left_out


def aligned(
    rows: Sequence[Sequence[str]], *, right: Collection[str] = (), width: int = 0
) -> list[str]:
    """Return rows as an aligned table, a line each; the first row holds the headings.

    Args:
        rows: Texts, equally many in each row.
        right: Headings of the columns whose cells stand at the right, as numbers do.
        width: Columns that a line may take: the first two columns, a path and a name, share what
            the others leave. 0 for as many as it takes.
    """
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    if width:
        free = width - sum(widths[2:]) - 2 * (len(widths) - 1)
        widths[1] = min(widths[1], max(free // 2, free - widths[0]))
        widths[0] = min(widths[0], free - widths[1])
    lines = []
    for row in rows:
        cells = []
        for number, (name, cell, wide) in enumerate(zip(rows[0], row, widths, strict=True)):
            short = shorten_path(cell, wide) if number == 0 else shorten(cell, wide)
            pad = " " * (wide - columns(short))
            cells.append(pad + short if name in right else short + pad)
        lines.append("  ".join(cells).rstrip())
    return lines
