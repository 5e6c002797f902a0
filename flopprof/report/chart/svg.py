"""The chart as an SVG element for a page: tooltips on its marks, colours that the page sets."""

import io
import re
from html import escape
from typing import TYPE_CHECKING, Any

from flopprof.report.chart import _settings, draw_figure
from flopprof.report.chart.data import KNOWN_BY, chart_data
from flopprof.report.chart.sheet import DARK, LIGHT
from flopprof.units import clean_text, percent, si, three_digits

if TYPE_CHECKING:
    from flopprof.run import Run

PALETTES = (LIGHT, DARK)
"""Values of the variables --c0, --c1, … in a light and in a dark page."""


def chart_svg(run: "Run") -> str:
    """Return the chart of `run` as an `<svg>` element.

    Its colours are the CSS variables --c0 … of `PALETTES`, light where a page sets none.

    Raises:
        UsageError: The run has no times.
    """
    import matplotlib

    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure = draw_figure(run)
    with _settings():
        matplotlib.rcParams["svg.fonttype"] = "none"  # letters of one width: any such font fits
        figure.savefig(file, format="svg", metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for number, colour in enumerate(LIGHT):
        svg = svg.replace(colour, f"var(--c{number}, {colour})")
    titles = _tooltips(run)
    return re.sub(
        r'<g id="([\w-]+)">',
        lambda match: match[0] + titles.get(match[1], ""),
        svg,
    )


def _tooltips(run: "Run") -> dict[str, str]:
    """Return a `<title>` for each mark by its id in the drawing."""
    chart = chart_data(run)
    points = chart.points[chart.points["intensity_flops_per_byte"] > 0]
    marks = {f"point-{rank}": row for rank, row in enumerate(points.itertuples(), start=1)}
    marks |= {row.place: row for row in (*chart.merged.itertuples(), *chart.run.itertuples())}
    return {name: f"<title>{escape(_tooltip(row))}</title>" for name, row in marks.items()}


def _tooltip(row: Any) -> str:
    lines = [
        row.name,
        f"{percent(row.share_frac)} of time, {row.calls} calls, {si(row.flops, 'FLOPs')}",
        f"{si(row.achieved_flops_per_s, 'FLOP/s')}, {percent(row.efficiency_frac)} of its roof",
        f"{three_digits(row.intensity_flops_per_byte)} FLOP/byte, {row.bound or 'bound unknown'}",
        f"FLOPs known by: {KNOWN_BY[row.known_by]}",
    ]
    return "\n".join(map(clean_text, lines))
