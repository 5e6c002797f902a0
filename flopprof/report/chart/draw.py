"""Draw `ChartData` on one sheet: texts, the panel, legend, strips of bars, table and caption."""

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from flopprof.formulas import KINDS
from flopprof.judge.levels import MAIN_LEVELS
from flopprof.judge.roofs import is_above, why_above
from flopprof.report.chart.data import KNOWN_BY
from flopprof.report.chart.layout import LETTER, TEXT, spread
from flopprof.report.chart.panel import draw_panel
from flopprof.report.chart.sheet import (
    AREA,
    AREA_FLOOR,
    AXIS,
    HATCHES,
    LEVEL_AREA,
    LEVEL_SHAPES,
    MARGIN,
    SERIES,
    SHAPES,
    SIZED,
    SMALL,
    UNCONFIRMED,
    Look,
    Sheet,
)
from flopprof.units import duration, percent, shorten, shorten_point, si, three_digits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flopprof.report.chart.data import ChartData

_LEGEND_LINE = 13.0  # points from one line of the legend to the next, unless a mark is higher
_LEGEND_AREA = 40.0  # square points of a mark that stands for a kind, a run, a point
_WIDTHS = (0.37, 0.16, 0.2, 0.27)  # of the legend's columns, over the sheet's
_STRIP_HEIGHT = 45.0  # of 100 % of the roof
_TALLEST_FRAC = 1.2  # of the roof: higher bars are cut
_DOUBTS = 6  # points above their roofs of which the caption says why


class Item(NamedTuple):
    """A line of the legend: a mark, and its text after a label that is never cut."""

    look: Look
    text: str
    label: str = ""


def draw(
    chart: "ChartData",
    texts: tuple[list[str], list[str]],
    *,
    title: str | None,
    size: str,
    dark: bool,
) -> "Figure":
    """Return the chart as a figure of the height that its contents need.

    `texts` are the lines below the title, and those of the caption.
    """
    sheet = Sheet(chart, size, dark)
    y = sheet.write(MARGIN + 5, title or chart.finding, 14.0, weight="bold")
    for text in texts[0]:
        y = sheet.write(y, text, TEXT + 1, color=sheet.muted)
    y = draw_panel(sheet, y + 28)
    y = _draw_legend(sheet, y + 48)
    heading = "Where the time goes: width is share of time, height is % of its own roof"
    sheet.text(MARGIN, y + 10, f"{heading} (white: no known roof, hatched: no rate)", weight="bold")
    for series, rows in chart.table.groupby("series"):
        y = _draw_strip(sheet, y + 10, [*rows.itertuples()], chart.names.get(str(series), ""))
    y = _draw_table(sheet, y + 12)
    for text in (*_doubts(chart), *texts[1]):
        y = sheet.write(y, text, SMALL, color=sheet.muted)
    sheet.figure.set_size_inches(sheet.width / 72, (y + MARGIN - 6) / 72)
    sheet.axes.set_ylim(y + MARGIN - 6, 0)
    return sheet.figure


def _draw_legend(sheet: Sheet, y: float) -> float:
    """Draw the legend from `y` on in columns, and return where it ends."""
    columns = _legend(sheet)
    full = sheet.width - 2 * MARGIN
    x = MARGIN
    end = y
    for (heading, items), share in zip(columns.items(), _WIDTHS, strict=True):
        sheet.text(x, y, heading, weight="bold")
        line = y + 8.5
        for look, text, label in items:
            height = max(_LEGEND_LINE, _height(look) + 2)
            line += height / 2
            middle = max(8.0, _height(look) / 2)
            sheet.mark(x + middle, line, look)
            indent = max(19.0, 2 * middle + 5)
            letters = int((share * full - indent - 5) / TEXT / LETTER)
            short = shorten_point(text, letters - len(label) - 1)
            sheet.text(x + indent, line, f"{label} {short}".lstrip())
            line += height / 2
        end = max(end, line)
        x += share * full
    return end + 2.5


def _height(look: Look) -> float:
    """Return the height in points of a mark's disc, and so about that of any mark of its area."""
    return 2 * math.sqrt(look.area / math.pi)


def _legend(sheet: Sheet) -> dict[str, list[Item]]:
    """Return the legend's columns by their headings."""
    chart = sheet.data
    points = chart.points
    heads = [*points[(points["label"] != "") & points["head"]].itertuples()]
    heads.sort(key=lambda row: int(row.label))
    plural = "" if len(points) == 1 else "s"
    columns = {
        f"Most time, of {len(points)} point{plural}": [
            Item(sheet.look(row, _LEGEND_AREA), row.name, row.label) for row in heads
        ]
    }
    if chart.names:
        columns["Run"] = [
            Item(Look("o", _LEGEND_AREA, colour), name, letter)
            for (letter, name), colour in zip(chart.names.items(), SERIES, strict=False)
        ]
    else:
        kinds = [kind for kind in KINDS if kind in {*points["kind"]}]
        columns["Kind"] = [Item(Look("o", _LEGEND_AREA, sheet.kinds[kind]), kind) for kind in kinds]
    columns["FLOPs known by"] = [
        Item(Look(SHAPES[rank], _LEGEND_AREA, sheet.muted, rank >= UNCONFIRMED), KNOWN_BY[rank])
        for rank in sorted({*points["known_by"]})
    ]
    columns["FLOPs known by"] += [
        Item(Look(LEVEL_SHAPES[level], LEVEL_AREA, sheet.muted), f"at measured {level} bytes")
        for level in dict.fromkeys(chart.measured["level"])
    ]
    columns["Area: share of time"] = [*_legend_of_areas(sheet)]
    return columns


def _legend_of_areas(sheet: Sheet) -> Iterator[Item]:
    """Yield what areas mean, then the marks of no point of its own."""
    merged = sheet.data.merged
    others = merged[merged["place"] == "other"]
    largest = max([*sheet.data.points["share_frac"], *others["share_frac"]], default=0.0)
    sizes = {share: f"{100 * share:.0f} %" for share in SIZED if share < 0.8 * largest}
    for share, text in (sizes | {largest: percent(largest)}).items():
        yield Item(Look("o", max(AREA * share, AREA_FLOOR), sheet.grid), text)
    for row in others.itertuples():
        yield Item(sheet.look(row, _LEGEND_AREA), f"{row.series} {row.name}".strip())
    for run in sheet.data.run.itertuples():
        which = "eager run" if run.place == "eager" else "run"
        rate = f"{run.series} {which}: {si(run.achieved_flops_per_s, 'FLOP/s')}"
        yield Item(sheet.look(run, _LEGEND_AREA), rate.strip())
        if run.place == "eager":
            continue
        coverage = f"{run.series} FLOPs known: {percent(run.coverage_frac)}"
        yield Item(Look("", 1.0, "none"), coverage.strip())
    yield Item(Look("o", 60.0, "none"), "ring: above its roof")


def _draw_strip(sheet: Sheet, y: float, rows: list[Any], name: str) -> float:
    """Draw a run's bars from `y` on, each as wide as its share of time; return where they end."""
    right = sheet.width - MARGIN
    if name:
        text = shorten(f"{rows[0].series} {name}", int((right - MARGIN) / TEXT / LETTER))
        sheet.text(MARGIN, y + 16, text, weight="bold")
        y += 14
    bottom = y + 33 + _STRIP_HEIGHT
    for frac in (0.0, 0.5, 1.0):
        level = bottom - _STRIP_HEIGHT * frac
        sheet.line([AXIS, right], [level, level], zorder=0.5, color=sheet.muted)
        sheet.text(AXIS - 5, level, f"{100 * frac:.0f} %", ha="right")
    x = AXIS
    middles = []
    for row in rows:
        width = row.share_frac * (right - AXIS)
        height = _STRIP_HEIGHT * _TALLEST_FRAC
        colour = sheet.ground
        if row.efficiency_frac > 0:
            height = _STRIP_HEIGHT * min(row.efficiency_frac, _TALLEST_FRAC)
            colour = sheet.run_colour(row.series) or sheet.kinds.get(row.kind, sheet.muted)
        hatch = HATCHES.get(row.place)
        sheet.box(x, bottom - height, width, height, facecolor=colour, hatch=hatch)
        middles.append(x + width / 2)
        x += width
    widths = [LETTER * TEXT * len(row.label) + 3 for row in rows]
    y = bottom - _TALLEST_FRAC * _STRIP_HEIGHT - 6
    for place, row in zip(spread(middles, widths, AXIS, right), rows, strict=True):
        sheet.text(place, y, row.label, weight="bold", ha="center")
    return bottom + 6


def _columns(rows: pd.DataFrame) -> dict[str, "pd.Series[str]"]:
    """Return the table's columns as texts."""
    single = ~rows["place"].isin([*HATCHES, "run", "eager"])
    has_rate = rows["flops"] > 0
    above = is_above(rows["efficiency_frac"]).map({True: "!", False: ""})
    return {
        "": rows["label"],
        "Name": rows["name"],
        "Kind": rows["kind"].where(single, ""),
        "dtype": rows["dtype"].where(single, ""),
        "Bound": _bounds(rows).where(single, ""),
        "FLOPs known by": rows["known_by"].map(KNOWN_BY.__getitem__).where(single, ""),
        "Calls": rows["calls"].astype(str),
        "Time": rows["time_us"].map(duration),
        "Share": rows["share_frac"].map(percent),
        "FLOPs": rows["flops"].map(partial(si, unit="")),
        "Bytes": rows["min_bytes"].map(partial(si, unit="B")),
        "FLOP/B": rows["intensity_flops_per_byte"].where(has_rate).map(three_digits),
        "FLOP/s": rows["achieved_flops_per_s"].where(has_rate).map(partial(si, unit="")),
        "% of roof": rows["efficiency_frac"].map(percent) + above,
    }


def _bounds(rows: pd.DataFrame) -> "pd.Series[str]":
    """Return what limits each row, and which cache where that is no main memory: "memory L2"."""
    in_cache = (rows["bound"] == "memory") & ~rows["memory_level"].isin(["", *MAIN_LEVELS])
    return rows["bound"] + (" " + rows["memory_level"]).where(in_cache, "")


def _draw_table(sheet: Sheet, y: float) -> float:
    """Draw the table from `y` on, in letters so small that it fits; return where it ends."""
    columns = _columns(pd.concat([sheet.data.table, sheet.data.run]))
    sides = "<" * 6 + ">" * 8  # texts stand at the left, numbers at the right
    full = (sheet.width - 2 * MARGIN) / LETTER
    widths = {name: max(len(name), *map(len, texts)) for name, texts in columns.items()}
    others = sum(widths.values()) - widths["Name"] + 2 * len(widths) - 2
    size = min(SMALL, full / (others + 25))  # letters of a name, at least
    widths["Name"] = int(full / size) - others
    for index, texts in enumerate([columns, *zip(*columns.values(), strict=True)]):
        cells = zip(texts, widths.values(), sides, strict=True)
        line = "  ".join(
            f"{shorten_point(text, width):{side}{width}}" for text, width, side in cells
        )
        sheet.text(MARGIN, y + 5, line, size=size, weight="normal" if index else "bold")
        y += 1.6 * size
        if index in (0, len(sheet.data.table)):
            sheet.line([MARGIN, sheet.width - MARGIN], [y, y], zorder=0.5)
    return y + 12


def _doubts(chart: "ChartData") -> list[str]:
    """Return a line for each of the first points above their roof, and how many more there are."""
    above = chart.points[is_above(chart.points["efficiency_frac"])]
    lines = []
    for row in above.head(_DOUBTS).itertuples():
        why = why_above(row.roof_code)
        roof = why or "its roof: doubt its dtype, the clock, the count or the timing"
        lines.append(f"! {row.label or row.name} ({percent(row.efficiency_frac)}): above {roof}.")
    if len(above) > _DOUBTS:
        lines.append(f"! {len(above) - _DOUBTS} more points: see the CSV.")
    return lines
