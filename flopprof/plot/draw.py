"""Draw `ChartData` on one sheet: every text is measured first, then placed where nothing is.

Coordinates are points (1/72 in) from the sheet's top left; inside the panel, from its lower left.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from flopprof.formulas import KINDS
from flopprof.plot.layout import (
    TEXT,
    Mark,
    Sheet,
    as_rows,
    discs_along,
    flow,
    measure,
    place_along,
    place_labels,
    shorten_to,
    spread,
    wrap,
)
from flopprof.units import UNKNOWN, duration, percent, si, three_digits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flopprof.plot import ChartData, Roof

SIZES = {"wide": (936.0, 400.0, 204.0), "compact": (780.0, 350.0, 176.0), "page": (596.0, 320.0, 0)}
"""Width of the sheet, least height of the panel, width of the legend beside it (0: below)."""

KNOWN_BY = ("all sources agree", "formula, profiler", "formula only", "sources disagree", "unknown")
"""How FLOPs are known, best first; from the third on nothing confirms them."""

ABOVE_ROOF = 1.02  # × the roof: beyond what a good measurement of a ceiling repeats within
MARGIN = 16.0
SMALL = 7.5  # points
LIGHT = ("#ffffff", "#111111", "#555555", "#dcdcdc", "#e5edf6", "#fdf5ea")
DARK = ("#14171b", "#f0f0f0", "#aaaaaa", "#353a41", "#1a222c", "#2a231b")
# Okabe and Ito's colours in the order of KINDS, chosen so that kinds that occur together differ in
# lightness too: convolution, matmul and attention dark, normalisation and elementwise light.
COLOURS = ("#0072B2", "#D55E00", "#CC79A7", "#009E73", "#F0E442", "#56B4E9", "#E69F00", "#000000")
SHAPES = "oss^D"  # by how the FLOPs are known; the last for merged points
AREA = 2400.0  # square points for 100 % of the time: 10 % is a disc 17 points wide
AREA_FLOOR = 7.0  # a disc 3 points wide
HATCHES = {"free": "////", "unknown": "xxxx", "no_bytes": "...."}


def _colour(sheet: Sheet, kind: str) -> str:
    """Return the colour of a kind of operation; grey for several."""
    colour = COLOURS[KINDS.index(kind)] if kind in KINDS else sheet.muted
    return sheet.ink if colour == "#000000" else colour


def _size(shape: str, area: float) -> float:
    """Return the marker size that gives `shape` this area: equal areas, not equal widths."""
    return math.sqrt(area * {"o": 4 / math.pi, "^": 2.0}.get(shape, 1.0))


def _mark_of(sheet: Sheet, row: Any, area: float | None = None) -> Mark:
    """Return a row's mark, of the area that its share of time gives."""
    if row.place == "run":
        return "*", 15.0, sheet.ink, False
    single = row.place == "point"
    shape = SHAPES[row.known_by if single else -1]
    size = _size(shape, area or max(AREA * row.share_frac, AREA_FLOOR))
    return shape, size, _colour(sheet, row.kind if single else ""), row.known_by >= 2


class Panel:
    """The log-log panel: where values lie in it, and what is in the way there."""

    def __init__(self, sheet: Sheet, data: "ChartData", left: float, top: float, width: float):
        self.left, self.top, self.width, self.right = left, top, width, left + width
        self.height = self.bottom = 0.0
        points = pd.concat([data.points, data.merged[data.merged["place"] == "other"], data.run])
        rows = points[points["intensity_flops_per_byte"] > 0]
        self.flat = [roof for roofs in data.flat.values() for roof in roofs]
        self.memory = [roof for roofs in data.memory.values() for roof in roofs]
        main = self.memory[0].value if self.memory else math.nan
        self.ridges = {n: rs[0].value / main for n, rs in data.flat.items() if self.memory}
        edges, peaks = list(self.ridges.values()), [roof.value for roof in self.flat]
        xs = [*rows["intensity_flops_per_byte"], *edges, *(e / 10 for e in edges)]
        ys = [*rows["achieved_flops_per_s"], *peaks, *(p / 10 for p in peaks)]
        self.x0, self.x1 = _decades(xs or [0.1, 100.0])
        self.y0, self.y1 = _decades(ys or [1e9, 1e12])
        self.rows = [(row, _mark_of(sheet, row)) for row in rows.itertuples()]
        self.discs: list[list[float]] = []
        self.segments: list[tuple[float, ...]] = []

    def stretch(self, height: float) -> None:
        """Fix the panel's height, and with it where its marks are."""
        self.height, self.bottom = height, self.top + height
        for row, (shape, size, _, _) in self.rows:
            radius = size * (0.5 if shape in "o*" else 0.72) + 0.6
            place = self.at(row.intensity_flops_per_byte, row.achieved_flops_per_s)
            self.discs.append([*place, radius + 3 * (row.efficiency_frac > ABOVE_ROOF)])

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return where a value lies in the panel."""
        return (
            (math.log10(x) - self.x0) / (self.x1 - self.x0) * self.width,
            (math.log10(y) - self.y0) / (self.y1 - self.y0) * self.height,
        )

    def out(self, x: float, y: float) -> tuple[float, float]:
        """Return where a place in the panel lies on the sheet."""
        return self.left + x, self.bottom - y

    def obstacles(self) -> dict[str, Any]:
        """Return what texts must keep clear of."""
        discs, segments = as_rows(self.discs, 3), as_rows(self.segments, 4)
        return {"discs": discs, "segments": segments, "width": self.width, "height": self.height}


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """Return limits in decades: half a decade around `values`, and two decades at least."""
    low, high = math.log10(min(values)) - 0.5, math.log10(max(values)) + 0.5
    more = max(0.0, 2 - (high - low)) / 2
    return low - more, high + more


def draw(
    data: "ChartData", caption: str, subtitle: str, *, title: str | None, size: str, dark: bool
) -> "Figure":
    """Return the chart as a figure of the height that its contents need."""
    width, height, beside = SIZES[size]
    sheet, full = Sheet(width, DARK if dark else LIGHT), width - 2 * MARGIN
    y = _write(sheet, MARGIN + 5, title or data.finding, 14.0, bold=True)
    top = _write(sheet, y, subtitle, TEXT + 1, color=sheet.muted) + 16
    names = [line for rs in data.flat.values() for roof in rs for line in _roof_text(roof)]
    labels = max((measure(name, SMALL) for name in names), default=0.0) + 14
    legend = partial(_draw_legend, sheet, data, beside or full)
    if beside:
        height = max(height, legend(width - MARGIN - beside, top - 14) - top - 45)
        labels += beside + 14
    left = MARGIN + 56
    panel = Panel(sheet, data, left, top, full - 56 - labels)
    panel.stretch(height)
    _draw_grid(sheet, panel)
    missing = _draw_roofs(sheet, panel, data)
    _draw_marks(sheet, panel)
    y = _draw_x_axis(sheet, panel, _draw_rug(sheet, panel, data))
    y = y + 8 if beside else legend(MARGIN, y + 6)
    y = _draw_table(sheet, data, _draw_strip(sheet, data, y + 10) + 10)
    for text in (*missing, *_notes(data), caption):
        y = _write(sheet, y, text, SMALL, color=sheet.muted)
    return sheet.finish(y + MARGIN - 6)


def _write(sheet: Sheet, y: float, text: str, size: float, **style: Any) -> float:
    """Write `text` over the sheet's width, wrapped, and return where it ends."""
    bold = bool(style.get("bold"))
    for line in wrap(text, sheet.width - 2 * MARGIN - 4, partial(measure, size=size, bold=bold)):
        sheet.text(MARGIN, y, line, size=size, **style)
        y += 1.4 * size
    return y


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return powers of ten between two limits in decades, ten at most, and their names."""
    decades = range(math.ceil(low), math.floor(high) + 1)
    shown = decades[:: 1 + len(decades) // 10]
    prefixes = {0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P", 6: "E"}
    names = [
        f"{10.0 ** (d % 3):g} {prefixes.get(d // 3, '')}".strip() if d > 0 else f"{10.0**d:g}"
        for d in shown
    ]
    return [(10.0**d, name) for d, name in zip(shown, names, strict=True)]


def _draw_grid(sheet: Sheet, panel: Panel) -> None:
    """Draw shading left and right of the ridges, frame, grid, y axis and the ridges' values."""
    sheet.box(
        panel.left,
        panel.top,
        panel.width,
        panel.height,
        facecolor="none",
        linewidth=0.8,
        zorder=1.5,
    )
    thin = {"color": sheet.grid, "zorder": 0.5, "linewidth": 0.6, "gid": "grid"}
    for value, name in _ticks(panel.y0, panel.y1):
        y = panel.bottom - panel.at(1, value)[1]
        sheet.line([panel.left, panel.right], [y, y], **thin)
        sheet.text(panel.left - 5, y, name, ha="right")
    for value, _ in _ticks(panel.x0, panel.x1):
        x = panel.left + panel.at(value, 1)[0]
        sheet.line([x, x], [panel.top, panel.bottom], **thin)
    middle = panel.top + panel.height / 2
    sheet.text(MARGIN + 6, middle, "Achieved FLOP/s", rotation=90, size=TEXT + 1)
    if not panel.ridges:
        return
    xs = [panel.left + panel.at(ridge, 1)[0] for ridge in panel.ridges.values()]
    sheet.box(panel.left, panel.top, min(xs) - panel.left, panel.height, facecolor=sheet.left)
    sheet.box(max(xs), panel.top, panel.right - max(xs), panel.height, facecolor=sheet.right)
    sides, y = ("◂ memory-bound", "compute-bound ▸"), panel.top - 10
    sheet.text(panel.left, y, sides[0], color=sheet.muted)
    sheet.text(panel.right, y, sides[1], color=sheet.muted, ha="right")
    texts = [f"{name} ridge {three_digits(ridge)}" for name, ridge in panel.ridges.items()]
    low, high = panel.left + measure(sides[0]) + 8, panel.right - measure(sides[1]) - 8
    if sum(measure(text, SMALL) + 8 for text in texts) > high - low:
        texts = [three_digits(ridge) for ridge in panel.ridges.values()]
    places = spread(xs, [measure(text, SMALL) for text in texts], low, high, gap=8)
    for x, place, text in zip(xs, places, texts, strict=True):
        sheet.text(place, y, text, size=SMALL, ha="center")
        sheet.line([place, x, x], [y + 6, panel.top, panel.top + 6], linewidth=1.0, zorder=3)


def _roof_text(roof: "Roof") -> tuple[str, str]:
    return f"{roof.name} {si(roof.value, 'FLOP/s')}", roof.origin


def _draw_roofs(sheet: Sheet, panel: Panel, data: "ChartData") -> list[str]:
    """Draw all ceilings with their names; return those whose name found no room."""
    highest = max((roof.value for roof in panel.flat), default=10**panel.y1)
    fastest = max((roof.value for roof in panel.memory), default=math.inf)
    ends: dict[Any, list[tuple[float, float]]] = {}
    for roof in panel.flat:
        start = min(max(10**panel.x0, roof.value / fastest), 10**panel.x1)
        ends[roof] = [panel.at(start, roof.value), panel.at(10**panel.x1, roof.value)]
    for roof in panel.memory:
        low = max(10**panel.x0, 10**panel.y0 / roof.value)
        high = min(10**panel.x1, highest / roof.value)
        if low < high:
            ends[roof] = [panel.at(x, x * roof.value) for x in (low, high)]
    for roof, both in ends.items():
        style: dict[str, Any] = {"linewidth": 1.7, "linestyle": "-"}
        if not roof.solid:
            style = {"linewidth": 0.9, "dashes": (5, 3)}
        sheet.line(*zip(*(panel.out(*end) for end in both), strict=True), zorder=2, **style)
        panel.segments.append((*both[0], *both[1]))
    for group in (*data.flat.values(), *data.memory.values()):
        drawn = [ends[roof] for roof in group if roof in ends]
        if len(drawn) > 1:
            corners = [panel.out(*end) for end in (*drawn[0], *reversed(drawn[-1]))]
            sheet.area(corners, facecolor=sheet.ink, alpha=0.1, zorder=1)
    ys = [panel.out(*ends[roof][1])[1] for roof in panel.flat]
    places = spread(ys, [20.0] * len(ys), panel.top - 14, panel.bottom + 14, gap=1)
    for roof, y, place in zip(panel.flat, ys, places, strict=True):
        x, (name, origin) = panel.right, _roof_text(roof)
        xs = [x, x + 3, x + 9, x + 11]
        sheet.line(xs, [y, y, place, place], color=sheet.muted)
        sheet.text(x + 13, place - 5, name, size=SMALL)
        sheet.text(x + 13, place + 4.5, origin, size=SMALL, color=sheet.muted)
    missing = []
    for roof in panel.memory:
        text = f"{roof.name} {si(roof.value, 'B/s')}, {roof.origin}"
        size = (measure(text, SMALL) + 2, 9.5)
        line = [value for end in ends.get(roof, []) for value in end]
        found = place_along(line, size, **panel.obstacles()) if line else None
        if found:
            x, y, angle = found
            sheet.text(*panel.out(x, y), text, rotation=angle, size=SMALL)
            panel.discs += discs_along(x, y, angle, size)
        else:
            missing.append(f"No room in the panel for the name of {text}.")
    return missing


def _draw_marks(sheet: Sheet, panel: Panel) -> None:
    """Draw the points, small ones on top, and the numbers beside them."""
    numbered: list[tuple[str, list[float]]] = []
    rivals: list[list[float]] = []
    for rank, ((row, mark), (x, y, radius)) in enumerate(
        zip(panel.rows, panel.discs, strict=False), start=1
    ):
        zorder = 7.0 if row.place == "run" else 4 + 1 / (1 + mark[1])
        name = f"point-{rank}" if row.place == "point" else row.place
        sheet.mark(*panel.out(x, y), mark, zorder=zorder, gid=name)
        if row.efficiency_frac > ABOVE_ROOF:
            ring: Mark = ("o", 2 * radius - 1.5, "none", False)
            sheet.mark(*panel.out(x, y), ring, zorder=zorder, gid="ring")
        rivals.append([x, y, mark[1] / 2])
        if row.label and row.place == "point":
            numbered.append((row.label, rivals[-1]))
    sizes = [(measure(label, 9, bold=True) + 1, 9.0) for label, _ in numbered]
    anchors = as_rows([disc for _, disc in numbered], 3)
    labels = place_labels(anchors, sizes, rivals=as_rows(rivals, 3), **panel.obstacles())
    for (text, (x, y, _)), (at_x, at_y, leader) in zip(numbered, labels, strict=True):
        where = panel.out(at_x, at_y)
        sheet.text(*where, text, size=9, bold=True, ha="center", gid=f"label-{text}")
        if leader:
            ends = panel.out(*leader), panel.out(x, y)
            sheet.line(*zip(*ends, strict=True), zorder=6, gid=f"leader-{text}")
            sheet.mark(*ends[1], ("o", 3.0, sheet.ink, False), zorder=6.1)


def _draw_rug(sheet: Sheet, panel: Panel, data: "ChartData") -> float:
    """Draw time that has no place on the axes along the bottom edge; return where that ends."""
    rows = [row for row in data.merged.itertuples() if row.place in HATCHES]
    texts = [f"{percent(row.share_frac)} of time: {row.name.partition(' (')[0]}" for row in rows]
    places, height = flow([(measure(text) + 18, 12.0) for text in texts], panel.width)
    x, top = panel.left, panel.bottom
    for row, text, (left, middle) in zip(rows, texts, places, strict=True):
        style = {"facecolor": sheet.ground, "hatch": HATCHES[row.place], "linewidth": 0.6}
        sheet.box(x, top, row.share_frac * panel.width, 6, gid=f"rug-{row.place}", **style)
        sheet.box(panel.left + left, top + 5 + middle, 12, 6, **style)
        sheet.text(panel.left + left + 16, top + 8 + middle, text)
        x += row.share_frac * panel.width
    return top + height + (8 if rows else 0)


def _draw_x_axis(sheet: Sheet, panel: Panel, y: float) -> float:
    """Write the x axis below `y` and return where it ends."""
    for value, name in _ticks(panel.x0, panel.x1):
        sheet.text(panel.left + panel.at(value, 1)[0], y + 8, name, ha="center")
    label = "Arithmetic intensity (FLOP/byte, compulsory traffic)"
    sheet.text(panel.left + panel.width / 2, y + 21, label, ha="center", size=TEXT + 1)
    return y + 28


def _legend(sheet: Sheet, data: "ChartData") -> dict[str, list[tuple[Mark | None, str]]]:
    """Return the legend: what stands under each heading."""
    points = list(data.points.itertuples())
    grey, run = sheet.muted, data.run.iloc[0]
    known = sorted({row.known_by for row in points})
    kinds = [kind for kind in KINDS if any(row.kind == kind for row in points)]
    other = data.merged.loc[data.merged["place"] == "other", "name"]
    also: list[tuple[Mark | None, str]] = []
    if run["flops"] > 0:
        rate = si(run["achieved_flops_per_s"], "FLOP/s")
        also.append((("*", 12.0, sheet.ink, False), f"{run['name']}: {rate}"))
        also.append((None, f"({percent(data.coverage_frac)} of op time is covered)"))
    also += [(("D", 6.0, grey, False), name) for name in other]
    if any(row.efficiency_frac > ABOVE_ROOF for row in points):
        also.append((("o", 9.0, "none", False), "ring: above its roof, see below"))
    return {
        "Kind": [(("o", 7.2, _colour(sheet, kind), False), kind) for kind in kinds],
        "FLOPs known by (hollow: unconfirmed)": [
            ((SHAPES[k], _size(SHAPES[k], 40), grey, k >= 2), KNOWN_BY[k]) for k in known
        ],
        "Area: share of time": [
            (("o", _size("o", AREA * frac), sheet.grid, False), f"{100 * frac:.0f} %")
            for frac in (0.01, 0.05, 0.2)
        ],
        "Also": also,
    }


def _draw_legend(sheet: Sheet, data: "ChartData", width: float, x: float, y: float) -> float:
    """Write the legend with its top left at (x, y) and return where it ends."""
    named = [row for row in data.points.itertuples() if row.label]
    room = width if width < 300 else width / 2 - 6
    sheet.text(x, y + 6, f"Most time, of {len(data.points)} points", bold=True)
    places, height = flow([(room, 12.5)] * len(named), width)
    for row, (left, middle) in zip(named, places, strict=True):
        middle += y + 14
        sheet.text(x + left + 4, middle, row.label, bold=True, ha="center", size=TEXT + 1)
        sheet.mark(x + left + 16, middle, _mark_of(sheet, row, 40.0))
        sheet.text(x + left + 24, middle, shorten_to(row.name, room - 26))
    y += height + 18
    legend = _legend(sheet, data)
    widest = max(measure(heading, bold=True) for heading in legend) + 12
    indent, below = (0.0, 15.0) if width < 300 else (widest, 0.0)
    for heading, items in legend.items():
        if not items:
            continue
        marks = [max(mark[1], 10.0) if mark else 10.0 for mark, _ in items]
        sizes = [
            (mark + 4 + measure(text), max(12.5, mark + 2))
            for mark, (_, text) in zip(marks, items, strict=True)
        ]
        places, height = flow(sizes, width - indent)
        first = places[0][1] if indent else 6.0
        sheet.text(x, y + first, heading, bold=True)
        for (mark, text), wide, (left, middle) in zip(items, marks, places, strict=True):
            left, middle = x + indent + left, y + below + middle
            if mark:
                sheet.mark(left + wide / 2, middle, mark)
            sheet.text(left + wide + 4, middle, text)
        y += below + height + 4
    return y


def _draw_strip(sheet: Sheet, data: "ChartData", y: float) -> float:
    """Draw one bar per table row: width is share of time, height is % of its own roof."""
    left, width, height, most = MARGIN + 56, sheet.width - 2 * MARGIN - 56, 54.0, 1.2
    heading = "Where the time goes: width is share of time, height is % of its own roof"
    sheet.text(MARGIN, y, f"{heading} (hatched: no rate)", bold=True)
    top = y + 24
    for frac in (0.0, 0.5, 1.0):
        line = top + height * (1 - frac / most)
        style: dict[str, Any] = {"dashes": (4, 3), "color": sheet.muted} if frac else {}
        sheet.line([left, left + width], [line, line], zorder=0.5, **style)
        sheet.text(left - 5, line, f"{100 * frac:.0f} %", ha="right")
    x, middles, rows = left, [], list(data.table.itertuples())
    for row in rows:
        known, wide = row.efficiency_frac > 0, row.share_frac * width
        tall = height * min(row.efficiency_frac, most) / most if known else height / most
        style = {"facecolor": _colour(sheet, row.kind)} if known else {"facecolor": sheet.ground}
        style |= {"hatch": HATCHES[row.place]} if row.place in HATCHES else {}
        sheet.box(x, top + height - tall, wide, tall, linewidth=0.5, zorder=1, gid="bar", **style)
        middles.append(x + wide / 2)
        x += wide
    sizes = [measure(row.label, bold=True) + 1 for row in rows]
    for place, row in zip(spread(middles, sizes, left, left + width), rows, strict=True):
        sheet.text(place, top - 6, row.label, bold=True, ha="center")
    return top + height + 6


HEAD = "|Name|Kind|dtype|Calls|Time|Share|FLOPs|Bytes|FLOP/B|FLOP/s|% of roof|Bound|FLOPs known by"


def _cells(row: Any) -> list[str]:
    """Return a table row's texts, in the order of `HEAD`."""
    from flopprof.plot import dtype_label

    mixed = row.place in HATCHES or row.place == "run"
    return [
        row.label,
        row.name,
        "" if mixed else row.kind,
        "" if mixed else dtype_label(row.dtype),
        f"{row.calls}",
        duration(row.time_us),
        percent(row.share_frac) if row.share_frac > 0 else "",
        si(row.flops, ""),
        si(row.min_bytes, "B"),
        three_digits(row.intensity_flops_per_byte) if row.flops > 0 else UNKNOWN,
        si(row.achieved_flops_per_s, "") if row.flops > 0 else UNKNOWN,
        percent(row.efficiency_frac) + ("!" if row.efficiency_frac > ABOVE_ROOF else ""),
        "" if mixed else row.bound,
        "" if mixed else KNOWN_BY[row.known_by],
    ]


def _draw_table(sheet: Sheet, data: "ChartData", y: float) -> float:
    """Write the table and return where it ends."""
    rows = [
        HEAD.split("|"),
        *(_cells(row) for row in (*data.table.itertuples(), *data.run.itertuples())),
    ]
    full = sheet.width - 2 * MARGIN
    for size in (8.0, 7.5, 7.0, 6.5, 6.0):
        wide = [
            max(measure(t, size, bold=t in rows[0]) for t in texts)
            for texts in zip(*rows, strict=True)
        ]
        wide[1] += full - sum(wide) - 1.1 * size * (len(wide) - 1)
        if wide[1] >= 14 * size:  # some 25 characters of a name
            break
    for index, texts in enumerate(rows):
        x = MARGIN
        for column, (text, room) in enumerate(zip(texts, wide, strict=True)):
            number, bold = 4 <= column <= 11, index == 0 or column == 0
            text = shorten_to(text, room, size) if column == 1 else text
            at = {"ha": "right"} if number else {}
            sheet.text(x + room * number, y + 0.8 * size, text, size=size, bold=bold, **at)
            x += room + 1.1 * size
        y += 1.55 * size
        if index in (0, len(rows) - 2):
            sheet.line([MARGIN, MARGIN + full], [y, y], zorder=0.5)
    return y + 10


def _notes(data: "ChartData") -> list[str]:
    """Return a line for each of the first points above their roof, and how many more there are."""
    from flopprof.plot import why_above

    above = data.points[data.points["efficiency_frac"] > ABOVE_ROOF]
    lines = [
        f"! {row.label or row.name} ({percent(row.efficiency_frac)}): {why_above(row)}."
        for row in above.head(6).itertuples()
    ]
    return lines + ([f"! {len(above) - 6} more points: see the CSV."] if len(above) > 6 else [])
