"""The roofline panel alone, for a paper: a column or a page wide, no table and no caption."""

import math
from typing import TYPE_CHECKING

import numpy as np

from flopprof.report.chart.sheet import COLOURS
from flopprof.units import si

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flopprof.report.chart.data import ChartData

COLUMN_INCHES = 3.3
NARROWEST_INCHES = 2.0
WIDEST_INCHES = 20.0
DOTS_PER_INCH = 300
_HEIGHT_FRAC = 0.72  # of the width of a column
_WIDE_HEIGHT_FRAC = 0.5  # of a page's
_WIDE_INCHES = 5.0  # from here on the legend has room beside the panel
_POINTS = 7.0  # of type, at every width: papers ask for it
_AREA_PER_INCH = 90.0  # square points for all of the time, and inch of width
_SMALLEST_AREA = 4.0
_STAR_AREA_PER_INCH = 12.0
_INK = "#111111"
_ROOF = "#555555"
_DECADE_ROOM = 4.0  # × beyond the outermost points


def draw_paper(chart: "ChartData", *, width: float = COLUMN_INCHES) -> "Figure":
    """Return the panel as a figure.

    Args:
        chart: What the chart shows.
        width: In inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    is_wide = width >= _WIDE_INCHES
    height = width * (_WIDE_HEIGHT_FRAC if is_wide else _HEIGHT_FRAC)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    _draw_points(axes, chart, width)
    _draw_roofs(axes, chart)
    axes.set_xlabel("Arithmetic intensity (FLOP/byte)", fontsize=_POINTS)
    axes.set_ylabel("FLOP/s", fontsize=_POINTS)
    axes.tick_params(labelsize=_POINTS - 1, which="both", width=0.5)
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)
    style = {"fontsize": _POINTS - 1, "frameon": False, "markerscale": 0.8}
    if is_wide:
        figure.legend(loc="outside right upper", **style)
    else:
        figure.legend(loc="outside lower center", ncols=3, **style)
    return figure


def _draw_points(axes: "Axes", chart: "ChartData", width: float) -> None:
    """Draw the sites, a kind at a time, and the run's star; no numbers, which no table explains."""
    points = chart.points
    whole = width * _AREA_PER_INCH
    for kind, colour in COLOURS.items():
        mine = points[points["kind"] == kind]
        if not len(mine):
            continue
        axes.scatter(
            mine["intensity_flops_per_byte"],
            mine["achieved_flops_per_s"],
            s=np.maximum(mine["share_frac"] * whole, _SMALLEST_AREA),
            color=colour,
            edgecolor=_INK,
            linewidth=0.3,
            label=kind,
            zorder=2,
        )
    axes.scatter(
        chart.run["intensity_flops_per_byte"],
        chart.run["achieved_flops_per_s"],
        marker="*",
        s=width * _STAR_AREA_PER_INCH,
        color=_INK,
        label="whole run",
        zorder=3,
    )


def _draw_roofs(axes: "Axes", chart: "ChartData") -> None:
    """Draw a flat roof for each type and a slope for the memory, as far as the panel goes."""
    roofs = chart.roofs
    flat = roofs[roofs["unit"] == "FLOP/s"].drop_duplicates("name")
    slopes = roofs[roofs["unit"] == "B/s"].drop_duplicates("name").head(1)
    low, high = axes.get_xlim()
    low /= _DECADE_ROOM
    ridges = [peak / bandwidth for peak in flat["value"] for bandwidth in slopes["value"]]
    high = max([high, *ridges]) * _DECADE_ROOM
    bottom, top = axes.get_ylim()
    for bandwidth in slopes["value"]:
        peak = float(flat["value"].max()) if len(flat) else top
        end = min(peak / bandwidth, high)
        axes.plot([low, end], [low * bandwidth, end * bandwidth], color=_ROOF, linewidth=0.7)
        text = f" {si(float(bandwidth), 'B/s')}"
        place = math.sqrt(low * end)  # in the middle of the slope, above it
        axes.text(place, place * bandwidth * 1.3, text, ha="right", fontsize=_POINTS - 1)
    for name, peak in flat[["name", "value"]].itertuples(index=False):
        start = peak / slopes["value"].iloc[0] if len(slopes) else low
        axes.plot([start, high], [peak, peak], color=_ROOF, linewidth=0.7)
        text = f"{name} {si(float(peak), 'FLOP/s')}"
        axes.text(high, peak, text, ha="right", va="bottom", fontsize=_POINTS - 1)
    axes.set_xlim(low, high)
    highest = max([top, *flat["value"]])
    axes.set_ylim(bottom / _DECADE_ROOM, highest * _DECADE_ROOM)
