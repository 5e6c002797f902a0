"""The sheet that a chart is drawn on: its sizes, colours and marks, in points from its top left."""

import math
import textwrap
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from flopprof.formulas import KINDS
from flopprof.report.chart import layout
from flopprof.report.chart.layout import LETTER, TEXT, Floats
from flopprof.units import si

if TYPE_CHECKING:
    from flopprof.report.chart.data import ChartData

SIZES = {"wide": (936.0, 400.0), "compact": (780.0, 350.0), "page": (596.0, 320.0)}
"""Width of the sheet, height of the panel."""

MARGIN = 16.0  # left edge of texts
AXIS = 72.0  # left edge of the panel
SMALL = 7.0  # points
# Ground, ink, muted ink, grid, and the shades left and right of the ridges.
LIGHT = ("#ffffff", "#111111", "#555555", "#dcdcdc", "#e5edf6", "#fdf5ea")
DARK = ("#14171b", "#f0f0f0", "#aaaaaa", "#353a41", "#1a222c", "#2a231b")
# Okabe and Ito's colours in the order of KINDS, chosen so that kinds that occur together differ in
# lightness too: convolution, matmul and attention dark, normalisation and elementwise light.
OKABE_ITO = "#0072B2 #D55E00 #CC79A7 #009E73 #F0E442 #56B4E9 #E69F00 #000000"
COLOURS = dict(zip(KINDS, OKABE_ITO.split(), strict=True))
SERIES = ("#E69F00", "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#000000")
"""Colours of several runs on one chart, in the order of LETTERS."""
LETTERS = "ABCDEF"  # what several runs are called
SHAPES = "ossv^"  # by the rank in KNOWN_BY of how the FLOPs are known
UNCONFIRMED = 2  # from this rank on nothing confirms the FLOPs, and marks are hollow
# So that all shapes of one size have equal areas.
WIDER = {"o": 4 / math.pi, "^": 2.0, "v": 2.0, "*": 3.6}
AREA = 2400.0  # square points for 100 % of the time
AREA_FLOOR = 7.0  # square points of a mark, at least
SIZED = (0.01, 0.05)  # shares of time in the legend of areas, besides the largest
LEVEL_SHAPES = {"DRAM": "<", "L2": "d", "L1": "x"}
"""Marks of points at the intensity of measured bytes, by memory level."""
LEVEL_AREA = 22.0  # square points of such a mark
STAR_AREA = 62.0  # square points of a whole run's mark
HATCHES = {"free": "////", "unknown": "xxxx", "no_bytes": "...."}


class Look(NamedTuple):
    """How a mark looks."""

    shape: str
    area: float  # square points
    colour: str
    hollow: bool = False


class Sheet:
    """A figure to draw on in points, the log-log panel on it, and what is in the way there."""

    def __init__(self, chart: "ChartData", size: str, dark: bool) -> None:
        from matplotlib.figure import Figure

        self.data = chart
        self.width, self.height = SIZES[size]
        self.ground, self.ink, self.muted, self.grid, *self.sides = DARK if dark else LIGHT
        self.kinds = dict(COLOURS)
        if dark:
            self.kinds["other"] = self.ink  # black is not seen there
        self.figure = Figure(facecolor=self.ground)
        self.axes = self.figure.add_axes((0, 0, 1, 1), autoscale_on=False, xlim=(0, self.width))
        self.axes.set_axis_off()
        self.flat = chart.roofs[chart.roofs["unit"] == "FLOP/s"]
        self.memory = chart.roofs[chart.roofs["unit"] == "B/s"]
        longest = max([0, *self.flat["name"].str.len() + 13, *self.flat["origin"].str.len()])
        self.right = self.width - MARGIN - 14 - LETTER * SMALL * longest
        self.ridges = self.flat.drop_duplicates("name").set_index("name")["ridge"].dropna()
        rows = pd.concat([chart.points, chart.merged[chart.merged["place"] == "other"], chart.run])
        self.marked = rows[rows["intensity_flops_per_byte"] > 0]
        xs = [*self.marked["intensity_flops_per_byte"], *self.ridges, *self.ridges / 10]
        xs += [*chart.measured["intensity_flops_per_byte"]]
        self.xs = decades(xs or [1.0])
        ys = [*self.marked["achieved_flops_per_s"], *self.flat["value"], *self.flat["value"] / 10]
        self.ys = decades(ys or [1e9])
        self.discs: list[Floats] = []

    def place_panel(self, top: float) -> None:
        """Fix where the panel is; its frame is in the way of texts."""
        self.top = top
        self.bottom = top + self.height
        xs = [AXIS, self.right, self.right, AXIS, AXIS]
        ys = [top, top, self.bottom, self.bottom, top]
        self.line(xs, ys, zorder=1.5)
        for start, end in pairwise(np.column_stack([xs, ys])):
            self.discs.append(layout.cover(start, end, 0.5))

    def at(self, x: float, y: float) -> Floats:
        """Return where a value lies on the sheet."""
        x_frac = (math.log10(x) - self.xs[0]) / (self.xs[1] - self.xs[0])
        y_frac = (math.log10(y) - self.ys[0]) / (self.ys[1] - self.ys[0])
        return np.array([AXIS + x_frac * (self.right - AXIS), self.bottom - y_frac * self.height])

    def text(self, x: float, y: float, text: str, **options: Any) -> None:
        """Write `text`; `y` is the middle of its capital letters."""
        style: dict[str, Any] = {"size": TEXT, "color": self.ink, "family": layout.FONT} | options
        if "rotation" in options:
            style |= {"ha": "center", "va": "center"}
        else:
            y += 0.36 * style["size"]  # half a capital's height, down to the baseline
        self.axes.text(x, y, layout.clean(text), parse_math=False, **style)

    def write(self, y: float, text: str, size: float, **style: Any) -> float:
        """Write `text` over the sheet's width, wrapped, and return where it ends."""
        for line in textwrap.wrap(text, int((self.width - 2 * MARGIN) / size / LETTER)):
            self.text(MARGIN, y, line, size=size, **style)
            y += 1.4 * size
        return y

    def line(self, xs: Any, ys: Any, **options: Any) -> None:
        """Draw a line, or a mark."""
        style: dict[str, Any] = {"color": self.ink, "linewidth": 0.7, "solid_capstyle": "butt"}
        self.axes.plot(xs, ys, **(style | options))

    def box(self, x: float, y: float, width: float, height: float, **options: Any) -> None:
        """Fill a rectangle; (x, y) is its top left."""
        style: dict[str, Any] = {"linewidth": 0.5, "edgecolor": self.ink} | options
        self.axes.fill([x, x + width, x + width, x], [y, y, y + height, y + height], **style)

    def mark(self, x: float, y: float, look: Look, **options: Any) -> float:
        """Draw one mark and return its width; a hollow one has a hole."""
        shape, area, colour, hollow = look
        size = math.sqrt(area * WIDER.get(shape, 1.0))
        style = {"linestyle": "none", "marker": shape, "markeredgewidth": 0.6} | options
        self.line([x], [y], markersize=size, markerfacecolor=colour, **style)
        if hollow:
            style["gid"] = "hole"
            self.line([x], [y], markersize=0.55 * size, markerfacecolor=self.ground, **style)
        return size

    def run_colour(self, series: str) -> str:
        """Return the colour of one of several runs; "" where there is one."""
        return SERIES[LETTERS.index(series)] if series else ""

    def look(self, row: Any, area: float | None = None) -> Look:
        """Return the mark of a row, its area the share of time unless given."""
        run_colour = self.run_colour(row.series)
        if row.place == "eager":
            return Look("*", area or STAR_AREA, self.muted, hollow=True)
        if row.place == "run":
            return Look("*", area or STAR_AREA, run_colour or self.ink)
        is_point = row.place == "point"
        shape = SHAPES[row.known_by] if is_point else "D"
        kind_colour = self.kinds.get(row.kind, self.muted) if is_point else self.muted
        area = area or max(AREA * row.share_frac, AREA_FLOOR)
        return Look(shape, area, run_colour or kind_colour, row.known_by >= UNCONFIRMED)


def decades(values: list[float]) -> tuple[float, float]:
    """Return limits in decades: half a decade around `values` at least, and two in all."""
    low = math.log10(min(values))
    high = math.log10(max(values))
    span = high - low
    pad = max(0.5, 1 - span / 2, 0.1 * span)  # a tenth: room for half of the largest mark
    return low - pad, high + pad


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return powers of ten between two limits in decades, ten at most, and their names."""
    step = 1 + int(high - low) // 10
    values = [10.0**decade for decade in range(math.ceil(low), math.floor(high) + 1)[::step]]
    return [(value, _tick_name(value)) for value in values]


def _tick_name(value: float) -> str:
    if value < 1:
        return f"{value:g}"
    return si(value, "").replace(".00", "").replace(".0", "")
