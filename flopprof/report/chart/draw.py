"""Draw `ChartData` on one sheet, in points (1/72 in) from its top left."""

import math
import textwrap
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flopprof.formulas import KINDS
from flopprof.judge.roofs import is_above
from flopprof.report.chart import layout
from flopprof.report.chart.layout import LETTER, TEXT, Floats, spread
from flopprof.units import duration, percent, shorten, si, three_digits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flopprof.report.chart.data import ChartData

SIZES = {"wide": (936.0, 400.0), "compact": (780.0, 350.0), "page": (596.0, 320.0)}
"""Width of the sheet, height of the panel."""

KNOWN_BY = (
    *("all sources agree", "formula, profiler", "formula only", "estimated", "sources disagree"),
    "unknown",
)
"""How FLOPs are known, best first; from the third on nothing confirms them."""

MARGIN, AXIS = 16.0, 72.0  # left edges of texts and of the panel
SMALL = 7.0  # points
# Ground, ink, muted ink, grid, and the shades left and right of the ridges.
LIGHT = ("#ffffff", "#111111", "#555555", "#dcdcdc", "#e5edf6", "#fdf5ea")
DARK = ("#14171b", "#f0f0f0", "#aaaaaa", "#353a41", "#1a222c", "#2a231b")
# Okabe and Ito's colours in the order of KINDS, chosen so that kinds that occur together differ in
# lightness too: convolution, matmul and attention dark, normalisation and elementwise light.
OKABE_ITO = "#0072B2 #D55E00 #CC79A7 #009E73 #F0E442 #56B4E9 #E69F00 #000000"
COLOURS = dict(zip(KINDS, OKABE_ITO.split(), strict=True))
SERIES = ("#E69F00", "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#000000")
"""Colours of several runs on one chart, by letter."""
SHAPES = "ossv^"  # by how the FLOPs are known
WIDER = {
    "o": 4 / math.pi,
    "^": 2.0,
    "v": 2.0,
    "*": 3.6,
}  # so that all shapes of one size have equal areas
AREA, AREA_FLOOR = 2400.0, 7.0  # square points for 100 % of the time, and at least
SIZED = (0.01, 0.02, 0.05)  # shares of time in the legend of areas
HATCHES = {"free": "////", "unknown": "xxxx", "no_bytes": "...."}
Look = tuple[str, float, str, bool]  # shape, area, colour, hollow
_NOTHING: Look = ("", 1.0, "none", False)


class Sheet:
    """A figure to draw on in points, the log-log panel on it, and what is in the way there."""

    def __init__(self, data: "ChartData", size: str, dark: bool) -> None:
        from matplotlib.figure import Figure

        self.data, (self.width, self.height) = data, SIZES[size]
        self.ground, self.ink, self.muted, self.grid, *self.sides = DARK if dark else LIGHT
        self.kinds = COLOURS | ({"other": self.ink} if dark else {})  # black is not seen there
        self.figure = Figure(facecolor=self.ground)
        self.axes = self.figure.add_axes((0, 0, 1, 1), autoscale_on=False, xlim=(0, self.width))
        self.axes.set_axis_off()
        self.flat = data.roofs[data.roofs["unit"] == "FLOP/s"]
        self.memory = data.roofs[data.roofs["unit"] == "B/s"]
        longest = max([0, *self.flat["name"].str.len() + 13, *self.flat["origin"].str.len()])
        self.right = self.width - MARGIN - 14 - LETTER * SMALL * longest
        self.ridges = self.flat.drop_duplicates("name").set_index("name")["ridge"].dropna()
        rows = pd.concat([data.points, data.merged[data.merged["place"] == "other"], data.run])
        self.marked = rows[rows["intensity_flops_per_byte"] > 0]
        xs = [*self.marked["intensity_flops_per_byte"], *self.ridges, *self.ridges / 10]
        self.xs = _decades(xs or [1.0])
        ys = [*self.marked["achieved_flops_per_s"], *self.flat["value"], *self.flat["value"] / 10]
        self.ys = _decades(ys or [1e9])
        self.discs: list[Floats] = []

    def place_panel(self, top: float) -> None:
        """Fix where the panel is; its frame is in the way of texts."""
        self.top, self.bottom = top, top + self.height
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

    def its_colour(self, series: str) -> str:
        """Return the colour of one of several runs; "" where there is one."""
        return SERIES["ABCDEF".index(series)] if series else ""

    def look(self, row: Any, area: float | None = None) -> Look:
        """Return the mark of a row, its area the share of time unless given."""
        its = self.its_colour(row.series)
        if row.place == "run":
            return "*", area or 62.0, its or self.ink, False
        shape, kind = (SHAPES[row.known_by], row.kind) if row.place == "point" else ("D", "")
        area = area or max(AREA * row.share_frac, AREA_FLOOR)
        return shape, area, its or self.kinds.get(kind, self.muted), row.known_by >= 2


def _decades(values: list[float]) -> tuple[float, float]:
    """Return limits in decades: half a decade around `values` at least, and two in all."""
    low, high = math.log10(min(values)), math.log10(max(values))
    span = high - low
    pad = max(0.5, 1 - span / 2, 0.1 * span)  # a tenth: room for half of the largest mark
    return low - pad, high + pad


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return powers of ten between two limits in decades, ten at most, and their names."""
    decades = range(math.ceil(low), math.floor(high) + 1)[:: 1 + int(high - low) // 10]
    return [
        (10.0**d, f"{10.0**d:g}" if d < 0 else si(10.0**d, "").replace(".00", "").replace(".0", ""))
        for d in decades
    ]


def draw(
    data: "ChartData",
    texts: tuple[list[str], list[str]],
    *,
    title: str | None,
    size: str,
    dark: bool,
) -> "Figure":
    """Return the chart as a figure of the height that its contents need.

    `texts` are the lines below the title, and those of the caption.
    """
    sheet = Sheet(data, size, dark)
    y = sheet.write(MARGIN + 5, title or data.finding, 14.0, weight="bold")
    for text in texts[0]:
        y = sheet.write(y, text, TEXT + 1, color=sheet.muted)
    sheet.place_panel(y + 28)
    _draw_axes(sheet)
    marks = _draw_marks(sheet)
    _draw_roofs(sheet)
    _draw_numbers(sheet, marks)
    y = _draw_legend(sheet, _draw_rug(sheet) + 48)
    heading = "Where the time goes: width is share of time, height is % of its own roof"
    sheet.text(MARGIN, y + 10, f"{heading} (white: no known roof, hatched: no rate)", weight="bold")
    for series, rows in data.table.groupby("series"):
        y = _draw_strip(sheet, y + 10, [*rows.itertuples()], data.names.get(str(series), ""))
    y = _draw_table(sheet, y + 12)
    for text in (*_doubts(data), *texts[1]):
        y = sheet.write(y, text, SMALL, color=sheet.muted)
    sheet.figure.set_size_inches(sheet.width / 72, (y + MARGIN - 6) / 72)
    sheet.axes.set_ylim(y + MARGIN - 6, 0)
    return sheet.figure


def _draw_axes(sheet: Sheet) -> None:
    top, bottom, right = sheet.top, sheet.bottom, sheet.right
    thin = {"color": sheet.grid, "zorder": 0.5, "gid": "grid"}
    for value, name in _ticks(*sheet.ys):
        y = sheet.at(1, value)[1]
        sheet.line([AXIS, right], [y, y], **thin)
        sheet.text(AXIS - 5, y, name, ha="right")
    sheet.text(MARGIN + 6, (top + bottom) / 2, "Achieved FLOP/s", rotation=90, size=TEXT + 1)
    if not len(sheet.ridges):
        return
    xs = [sheet.at(ridge, 1)[0] for ridge in sheet.ridges]
    flat: dict[str, Any] = {"zorder": 0.1, "linewidth": 0}
    sheet.box(AXIS, top, min(xs) - AXIS, sheet.height, facecolor=sheet.sides[0], **flat)
    sheet.box(max(xs), top, right - max(xs), sheet.height, facecolor=sheet.sides[1], **flat)
    sheet.text(AXIS, top - 22, "◂ memory-bound", color=sheet.muted)
    sheet.text(right, top - 22, "compute-bound ▸", color=sheet.muted, ha="right")
    texts = [f"{name} ridge {three_digits(ridge)}" for name, ridge in sheet.ridges.items()]
    wide = LETTER * SMALL * (2 + max(map(len, texts)))
    texts = texts[: int((right - AXIS) / wide)]  # of the dtypes with most time
    widths = [LETTER * SMALL * (len(text) + 2) for text in texts]
    places = spread(xs[: len(texts)], widths, AXIS, right)
    for x, place, text in zip(xs, places, texts, strict=False):
        sheet.text(place, top - 10, text, size=SMALL, ha="center")
        sheet.line([place, x, x], [top - 4, top, top + 6], linewidth=1.0, zorder=3)


def _draw_marks(sheet: Sheet) -> list[tuple[str, Floats]]:
    """Draw the points, small ones on top; return each one's number, if any, and disc."""
    drawn = []
    for rank, row in enumerate(sheet.marked.itertuples(), start=1):
        x, y = sheet.at(row.intensity_flops_per_byte, row.achieved_flops_per_s)
        point, order = row.place == "point", 4 + 0.01 * rank
        label = row.label if point and row.head else ""
        name = f"point-{label or row.series + str(rank)}" if point else row.place
        radius = sheet.mark(x, y, sheet.look(row), gid=name, zorder=order) / 2
        drawn.append((label, np.array([x, y, radius])))
        around = 1.45 * radius + 0.6  # reaches the corners of a square
        if is_above(row.efficiency_frac):
            around += 3
            ring = ("o", math.pi * (around - 0.8) ** 2, "none", False)
            sheet.mark(x, y, ring, gid="ring", zorder=order)
        sheet.discs.append(np.array([[x, y, around]]))
    discs = np.array([disc for _, disc in drawn])
    if not sheet.data.names:
        return drawn
    moved = sheet.marked["label"].where(sheet.marked["place"] == "point", sheet.marked["place"])
    for label in dict.fromkeys(moved[moved.ne("") & moved.ne("other")]):
        for start, end in pairwise(discs[moved.to_numpy() == label]):
            _draw_arrow(sheet, start, end)
    return drawn


def _draw_arrow(sheet: Sheet, start: Floats, end: Floats) -> None:
    """Draw an arrow between two discs, from edge to edge, unless they touch."""
    across, down = way = end[:2] - start[:2]
    if (gap := math.hypot(across, down) - start[2] - end[2]) < 4:
        return
    way = way / math.hypot(across, down)
    tail, tip = start[:2] + start[2] * way, end[:2] - (end[2] + 2) * way
    sheet.line(*np.stack([tail, tip], axis=1), zorder=3.9, gid="arrow", linewidth=0.9)
    head = (3, 0, math.degrees(math.atan2(-down, across)) - 90)
    size = min(6.0, gap)
    sheet.line([tip[0]], [tip[1]], marker=head, markersize=size, linestyle="none", zorder=9)
    sheet.discs.append(layout.cover(tail, tip, 2.0))


def _draw_roofs(sheet: Sheet) -> None:
    left, right, low, high = (10.0**limit for limit in (*sheet.xs, *sheet.ys))
    fastest, highest = sheet.memory["value"].max(), sheet.flat["value"].max()
    ends = []
    for value in sheet.flat["value"]:
        start = min(max(left, value / fastest), right)
        ends.append([sheet.at(x, value) for x in (start, right)])
    for value in sheet.memory["value"]:
        stop = min(right, np.fmin(high, highest) / value)
        ends.append([sheet.at(x, x * value) for x in (max(left, low / value), stop)])
    roofs = pd.concat([sheet.flat, sheet.memory]).assign(ends=ends)
    for roof in roofs.itertuples():
        style = {"linewidth": 1.7} if roof.solid else {"linewidth": 0.9, "dashes": (5, 3)}
        sheet.line(*zip(*roof.ends, strict=True), zorder=2, **style)
        sheet.discs.append(layout.cover(roof.ends[0], roof.ends[1], 0.8))
    for _, group in roofs.groupby(["unit", "name"]):  # the band between the first and the last
        band = [*group["ends"].iloc[0], *group["ends"].iloc[-1][::-1]]
        sheet.axes.fill(*zip(*band, strict=True), color=sheet.ink, alpha=0.1, linewidth=0)
    ys = [end[1][1] for end in ends[: len(sheet.flat)]]
    places = spread(ys, [21.0] * len(ys), sheet.top - 14, sheet.bottom + 14)
    for roof, y, place in zip(sheet.flat.itertuples(), ys, places, strict=True):
        x = sheet.right
        sheet.line([x, x + 3, x + 9, x + 11], [y, y, place, place], color=sheet.muted)
        sheet.text(x + 13, place - 5, f"{roof.name} {si(roof.value, 'FLOP/s')}", size=SMALL)
        sheet.text(x + 13, place + 4.5, roof.origin, size=SMALL, color=sheet.muted)
    for roof in roofs[roofs["unit"] == "B/s"].itertuples():
        text = f"{roof.name} {si(roof.value, 'B/s')}, {roof.origin}"
        start, end = roof.ends
        (x, y), discs = layout.place_along(start, end, text, SMALL, np.vstack(sheet.discs))
        across, down = end - start
        sheet.text(x, y, text, rotation=math.degrees(math.atan2(-down, across)), size=SMALL)
        sheet.discs.append(discs)


def _draw_numbers(sheet: Sheet, marks: list[tuple[str, Floats]]) -> None:
    """Write the numbers beside their marks, or at the ends of leader lines."""
    texts = np.vstack(sheet.discs[:4])  # the panel's frame: no number leaves it
    size, discs = TEXT + 1, np.array([disc for _, disc in marks]).reshape(-1, 3)
    for index, (text, (x, y, _)) in enumerate(marks):
        if not text:
            continue
        rivals = np.delete(discs, index, axis=0)
        where, its_discs, start = layout.place_beside(
            discs[index], text, size, rivals, np.vstack(sheet.discs), texts
        )
        label = {"size": size, "weight": "bold", "ha": "center", "gid": f"label-{text}"}
        sheet.text(where[0], where[1], text, **label)
        texts = np.vstack([texts, its_discs])
        if start is not None:
            sheet.line([start[0], x], [start[1], y], zorder=9, gid=f"leader-{text}")
            sheet.mark(x, y, ("o", 6.0, sheet.ink, False), zorder=9)
            sheet.discs.append(layout.cover(start, discs[index, :2], 0.5))


def _draw_rug(sheet: Sheet) -> float:
    """Draw time without a place on the axes along the bottom edge, then the x axis."""
    merged = sheet.data.merged[sheet.data.merged["place"].isin([*HATCHES])]
    edge, y = sheet.bottom, sheet.bottom + 2 + 6 * max(0, len(sheet.data.names) - 1)
    for series, rows in merged.groupby("series"):
        x = AXIS
        for row in rows.itertuples():
            style = {"facecolor": sheet.ground, "hatch": HATCHES[row.place]}
            wide, y = row.share_frac * (sheet.right - AXIS), y + 12
            sheet.box(x, edge, wide, 6, **style)
            sheet.box(AXIS, y - 3, 12, 6, **style)
            name = f"{percent(row.share_frac)} of time: {row.name.partition(' (')[0]}"
            sheet.text(AXIS + 16, y, f"{series} {name}".strip())
            x += wide
        edge += 6
    for value, name in _ticks(*sheet.xs):
        x = sheet.at(value, 1)[0]
        sheet.line([x, x], [sheet.top, sheet.bottom], color=sheet.grid, zorder=0.5, gid="grid")
        sheet.text(x, y + 12, name, ha="center")
    label = "Arithmetic intensity (FLOP/byte, compulsory traffic)"
    sheet.text((AXIS + sheet.right) / 2, y + 26, label, ha="center", size=TEXT + 1)
    return y


def _draw_legend(sheet: Sheet, y: float) -> float:
    points, merged, data = sheet.data.points, sheet.data.merged, sheet.data
    rows = [*points[(points["label"] != "") & points["head"]].itertuples()]
    rows.sort(key=lambda row: int(row.label))
    kinds = [kind for kind in KINDS if kind in {*points["kind"]}]
    known = sorted({*points["known_by"]})
    runs = zip(data.names.items(), SERIES, strict=False)
    columns: dict[str, list[tuple[Look, str]]] = {
        f"Most time, of {len(points)} point{'s' * (len(points) != 1)}": [
            (sheet.look(row, 40.0), f"{row.label} {row.name}") for row in rows
        ],
        "Run" if data.names else "Kind": [
            *((("o", 40.0, c, False), f"{letter} {name}") for (letter, name), c in runs),
            *((("o", 40.0, sheet.kinds[kind], False), kind) for kind in kinds if not data.names),
        ],
        "FLOPs known by": [((SHAPES[k], 40.0, sheet.muted, k >= 2), KNOWN_BY[k]) for k in known],
        "Area: share of time": [
            *((("o", AREA * f, sheet.grid, False), f"{100 * f:.0f} %") for f in SIZED),
            *(
                (sheet.look(row, 40.0), f"{row.series} {row.name}".strip())
                for row in merged.itertuples()
                if row.place == "other"
            ),
            *(
                item
                for run in data.run.itertuples()
                for item in (
                    (
                        sheet.look(run, 40.0),
                        f"{run.series} run: {si(run.achieved_flops_per_s, 'FLOP/s')}".strip(),
                    ),
                    (_NOTHING, f"{run.series} FLOPs known: {percent(run.coverage_frac)}".strip()),
                )
            ),
            (("o", 60.0, "none", False), "ring: above its roof"),
        ],
    }
    full, x = sheet.width - 2 * MARGIN, MARGIN
    for (heading, items), share in zip(columns.items(), (0.37, 0.16, 0.2, 0.27), strict=True):
        sheet.text(x, y, heading, weight="bold")
        for number, (look, text) in enumerate(items, start=1):
            line = y + 2 + 13 * number
            sheet.mark(x + 8, line, look)
            sheet.text(x + 19, line, shorten(text, int((share * full - 24) / TEXT / LETTER)))
        x += share * full
    return y + 11 + 13 * max(map(len, columns.values()))


def _draw_strip(sheet: Sheet, y: float, rows: list[Any], name: str) -> float:
    right, height = sheet.width - MARGIN, 45.0
    if name:
        text = shorten(f"{rows[0].series} {name}", int((right - MARGIN) / TEXT / LETTER))
        sheet.text(MARGIN, y + 16, text, weight="bold")
        y += 14
    bottom, x, middles = y + 33 + height, AXIS, []
    for frac in (0.0, 0.5, 1.0):
        level = bottom - height * frac
        sheet.line([AXIS, right], [level, level], zorder=0.5, color=sheet.muted)
        sheet.text(AXIS - 5, level, f"{100 * frac:.0f} %", ha="right")
    for row in rows:
        known, wide = row.efficiency_frac > 0, row.share_frac * (right - AXIS)
        tall = height * (min(row.efficiency_frac, 1.2) if known else 1.2)
        colour = sheet.its_colour(row.series) or sheet.kinds.get(row.kind, sheet.muted)
        colour = colour if known else sheet.ground
        sheet.box(x, bottom - tall, wide, tall, facecolor=colour, hatch=HATCHES.get(row.place))
        middles.append(x + wide / 2)
        x += wide
    widths = [LETTER * TEXT * len(row.label) + 3 for row in rows]
    for place, row in zip(spread(middles, widths, AXIS, right), rows, strict=True):
        sheet.text(place, bottom - 1.2 * height - 6, row.label, weight="bold", ha="center")
    return bottom + 6


def _columns(rows: pd.DataFrame) -> dict[str, "pd.Series[str]"]:
    """Return the table's columns as texts."""
    single, rate = ~rows["place"].isin([*HATCHES, "run"]), rows["flops"] > 0
    above = is_above(rows["efficiency_frac"]).map({True: "!", False: ""})
    return {
        "": rows["label"],
        "Name": rows["name"],
        "Kind": rows["kind"].where(single, ""),
        "dtype": rows["dtype"].where(single, ""),
        "Bound": rows["bound"].where(single, ""),
        "FLOPs known by": rows["known_by"].map(KNOWN_BY.__getitem__).where(single, ""),
        "Calls": rows["calls"].astype(str),
        "Time": rows["time_us"].map(duration),
        "Share": rows["share_frac"].map(percent),
        "FLOPs": rows["flops"].map(partial(si, unit="")),
        "Bytes": rows["min_bytes"].map(partial(si, unit="B")),
        "FLOP/B": rows["intensity_flops_per_byte"].where(rate).map(three_digits),
        "FLOP/s": rows["achieved_flops_per_s"].where(rate).map(partial(si, unit="")),
        "% of roof": rows["efficiency_frac"].map(percent) + above,
    }


def _draw_table(sheet: Sheet, y: float) -> float:
    columns = _columns(pd.concat([sheet.data.table, sheet.data.run]))
    full = (sheet.width - 2 * MARGIN) / LETTER
    wide = {name: max(len(name), *map(len, texts)) for name, texts in columns.items()}
    others = sum(wide.values()) - wide["Name"] + 2 * len(wide) - 2
    size = min(SMALL, full / (others + 25))  # letters of a name, at least
    wide["Name"] = int(full / size) - others
    for index, texts in enumerate([columns, *zip(*columns.values(), strict=True)]):
        cells = zip(texts, wide.values(), "<" * 6 + ">" * 8, strict=True)
        line = "  ".join(f"{shorten(text, width):{side}{width}}" for text, width, side in cells)
        sheet.text(MARGIN, y + 5, line, size=size, weight="normal" if index else "bold")
        y += 1.6 * size
        if index in (0, len(sheet.data.table)):
            sheet.line([MARGIN, sheet.width - MARGIN], [y, y], zorder=0.5)
    return y + 12


def _doubts(data: "ChartData") -> list[str]:
    """Return a line for each of the first points above their roof, and how many more there are."""
    above, lines = data.points[is_above(data.points["efficiency_frac"])], []
    for row in above.head(6).itertuples():
        _, found, why = row.reason.partition("; above the ")  # as the reconciler found
        why = (
            f"the {why}"
            if found
            else "its roof: doubt its dtype, the clock, the count or the timing"
        )
        lines.append(f"! {row.label or row.name} ({percent(row.efficiency_frac)}): above {why}.")
    return lines + [f"! {len(above) - 6} more points: see the CSV."] * (len(above) > 6)
