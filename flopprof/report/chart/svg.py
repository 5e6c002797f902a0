"""The chart as an SVG element for a page: tooltips on its marks, colours that the page sets."""

import io
import re
from html import escape
from typing import TYPE_CHECKING, Any

from flopprof.report.chart import Drawn, _settings
from flopprof.report.chart.data import KNOWN_BY, ChartData
from flopprof.report.chart.sheet import DARK, LIGHT
from flopprof.units import clean_text, percent, si, three_digits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTES = (LIGHT, DARK)
"""Values of the variables --c0, --c1, … in a light and in a dark page."""


def chart_svg(chart: Drawn) -> str:
    """Return a chart, drawn in the light palette, as an `<svg>` element.

    Its colours are the CSS variables --c0 … of `PALETTES`, light where a page sets none.
    """
    titles = _tooltips(chart.shows)
    return re.sub(
        r'<g id="([\w-]+)">',
        lambda match: match[0] + titles.get(match[1], ""),
        figure_svg(chart.figure),
    )


def figure_svg(figure: "Figure") -> str:
    """Return a figure, drawn in the light palette, as an `<svg>` element of a page's colours."""
    import matplotlib

    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with _settings():
        matplotlib.rcParams["svg.fonttype"] = "none"  # letters of one width: any such font fits
        figure.savefig(file, format="svg", metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for number, colour in enumerate(LIGHT):
        svg = svg.replace(colour, f"var(--c{number}, {colour})")
    return svg


def _tooltips(chart: ChartData) -> dict[str, str]:
    """Return a `<title>` for each mark by its id in the drawing."""
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
