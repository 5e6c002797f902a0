"""The chart for a telephone: the panel as a small SVG element, and its numbers in a list below.

Letters that are read there would fill the large chart: this one has a panel alone. It is drawn
without matplotlib, in milliseconds.
"""

import math
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from flopprof.report.chart import layout
from flopprof.report.chart.layout import Floats
from flopprof.report.chart.sheet import COLOURS, LIGHT, decades, ticks
from flopprof.units import clean_text, percent, shorten_point, si

if TYPE_CHECKING:
    from flopprof.report.chart.data import ChartData

WIDTH = 360.0  # pixels, as a telephone's page is wide
HEIGHT = 300.0
_LEFT = 40.0
_RIGHT = WIDTH - 8
_TOP = 20.0
_BOTTOM = HEIGHT - 36
_TEXT = 11.0  # pixels
_AREA = 2400.0  # square pixels for all of the time
_STAR_RADIUS = 6.0  # kept free around a run's mark
_SMALLEST_AREA = 12.0
_NAME = 44  # letters of a name in the list
_GROUND = f"var(--c0, {LIGHT[0]})"
_INK = f"var(--c1, {LIGHT[1]})"
_MUTED = f"var(--c2, {LIGHT[2]})"
_GRID = f"var(--c3, {LIGHT[3]})"


def narrow_chart(chart: "ChartData") -> str:
    """Return the panel as an `<svg>` element, and a list of its numbered points."""
    panel = _Panel(chart)
    parts = [*panel.axes(), *panel.roofs(), *panel.points()]
    size = f'viewBox="0 0 {WIDTH:g} {HEIGHT:g}" width="{WIDTH:g}" height="{HEIGHT:g}"'
    svg = f'<svg class="panel" {size} role="img" aria-label="Roofline">{"".join(parts)}</svg>'
    return f"{svg}<ol>{''.join(_list(chart))}</ol>"


class _Panel:
    """A log-log panel in pixels, and what is in the way of texts there."""

    def __init__(self, chart: "ChartData") -> None:
        self.chart = chart
        points = chart.points
        self.marked = points[points["intensity_flops_per_byte"] > 0]
        self.flat = chart.roofs[chart.roofs["unit"] == "FLOP/s"].drop_duplicates("name")
        self.memory = chart.roofs[chart.roofs["unit"] == "B/s"].drop_duplicates("name")
        run = chart.run[chart.run["intensity_flops_per_byte"] > 0]
        xs = [*self.marked["intensity_flops_per_byte"], *run["intensity_flops_per_byte"]]
        xs += [*self.flat["ridge"].dropna()]
        ys = [*self.marked["achieved_flops_per_s"], *run["achieved_flops_per_s"]]
        ys += [*self.flat["value"]]
        self.xs = decades(xs or [1.0])
        self.ys = decades(ys or [1e9])
        xs = [_LEFT, _RIGHT, _RIGHT, _LEFT, _LEFT]
        ys = [_TOP, _TOP, _BOTTOM, _BOTTOM, _TOP]
        frame = np.column_stack([xs, ys])
        self.in_the_way = [layout.cover(start, end, 0.5) for start, end in pairwise(frame)]

    def at(self, x: float, y: float) -> Floats:
        """Return where a value lies, in pixels from the top left."""
        x_frac = (math.log10(x) - self.xs[0]) / (self.xs[1] - self.xs[0])
        y_frac = (math.log10(y) - self.ys[0]) / (self.ys[1] - self.ys[0])
        return np.array([_LEFT + x_frac * (_RIGHT - _LEFT), _BOTTOM - y_frac * (_BOTTOM - _TOP)])

    def axes(self) -> Iterator[str]:
        """Yield grid, ticks and what the axes are."""
        for value, name in ticks(*self.ys):
            y = float(self.at(10.0 ** self.xs[0], value)[1])
            yield _line((_LEFT, y), (_RIGHT, y), _GRID)
            yield _text(_LEFT - 4, y + 4, name, anchor="end")
        for value, name in ticks(*self.xs):
            x = float(self.at(value, 10.0 ** self.ys[0])[0])
            yield _line((x, _TOP), (x, _BOTTOM), _GRID)
            yield _text(x, _BOTTOM + 14, name, anchor="middle")
        middle = (_LEFT + _RIGHT) / 2
        yield _text(middle, _BOTTOM + 30, "FLOP/byte across, FLOP/s up", anchor="middle")

    def roofs(self) -> Iterator[str]:
        """Yield a slope for each memory and a flat roof for each type, and their values."""
        left, right = (10.0**limit for limit in self.xs)
        low, high = (10.0**limit for limit in self.ys)
        highest = float(np.fmin(self.flat["value"].max(), high))
        fastest = float(self.memory["value"].max())
        for rank, row in enumerate(self.memory.itertuples()):
            first = max(left, low / row.value)
            last = min(right, highest / row.value)
            if last <= left:
                continue
            start = self.at(first, first * row.value)
            end = self.at(last, last * row.value)
            name = f"{row.name} {si(row.value, 'B/s')}" if rank == 0 else ""  # the list has all
            yield from self._roof(start, end, name)
        values = self.flat["value"].tolist()
        heights = [float(self.at(right, value)[1]) - 6 for value in values]
        places = layout.spread(heights, [_TEXT + 1] * len(values), 2.0, _BOTTOM)
        for name, value, place in zip(self.flat["name"], values, places, strict=True):
            first = value / fastest if fastest > 0 else left
            start = self.at(min(max(left, first), right), value)
            yield from self._roof(start, self.at(right, value), "")
            text = f"{name} {si(value, 'FLOP/s')}"
            yield _text(_RIGHT - 2, place + 4, text, anchor="end")
            width = layout.LETTER * _TEXT * len(text)
            ends = (np.array([_RIGHT - 2 - width, place]), np.array([_RIGHT - 2, place]))
            self.in_the_way.append(layout.cover(*ends, _TEXT / 2))

    def _roof(self, start: Floats, end: Floats, text: str) -> Iterator[str]:
        """Yield a roof's line, and its value along it, written from left to right."""
        yield _line(start, end, _INK)
        self.in_the_way.append(layout.cover(start, end, 1.0))
        low, high = (start, end) if start[0] < end[0] else (end, start)
        along = math.dist(low, high)
        if not text or along < layout.LETTER * _TEXT * len(text):
            return
        (x, y), discs = layout.place_along(low, high, text, _TEXT, np.vstack(self.in_the_way))
        self.in_the_way.append(discs)
        turned = math.degrees(math.atan2(high[1] - low[1], high[0] - low[0]))
        yield _text(x, y + 4, text, anchor="middle", turned=(turned, x, y))

    def points(self) -> Iterator[str]:
        """Yield the points, large ones first, the run's star, and numbers beside their points."""
        discs = []
        labels = []
        for row in self.marked.itertuples():
            x, y = self.at(row.intensity_flops_per_byte, row.achieved_flops_per_s)
            radius = math.sqrt(max(_AREA * row.share_frac, _SMALLEST_AREA) / math.pi)
            discs.append([x, y, radius])
            labels.append(row.label)
            colour = COLOURS.get(row.kind, _MUTED)
            yield (
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}" '
                f'stroke="{_INK}" stroke-width=".6"/>'
            )
        for row in self.chart.run[self.chart.run["intensity_flops_per_byte"] > 0].itertuples():
            x, y = self.at(row.intensity_flops_per_byte, row.achieved_flops_per_s)
            discs.append([x, y, _STAR_RADIUS])
            labels.append(row.label)
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{_INK}"/>'
        marks = np.array(discs).reshape(-1, 3)
        texts = np.vstack(self.in_the_way)
        for index, label in enumerate(labels):
            if not label:
                continue
            rivals = np.delete(marks, index, axis=0)
            (x, y), its_discs, start = layout.place_beside(
                marks[index], label, _TEXT + 1, rivals, np.vstack([texts, rivals]), texts
            )
            texts = np.vstack([texts, its_discs])
            if start is not None:
                yield _line(start, marks[index, :2], _INK)
            yield _text(x, y + 4, label, anchor="middle", bold=True)


def _list(chart: "ChartData") -> Iterator[str]:
    """Yield an item for each numbered point: what it is, its share of the time, its bound."""
    labelled = chart.points[chart.points["label"] != ""]
    for row in labelled.itertuples():
        colour = COLOURS.get(row.kind, _MUTED)
        facts = [f"{percent(row.share_frac)} of the time"]
        if row.efficiency_frac > 0:
            facts.append(f"{percent(row.efficiency_frac)} of its roof")
        facts.append(row.bound or "bound unknown")
        name = escape(shorten_point(clean_text(row.name), _NAME))
        dot = f'<i style="background: {colour}"></i>'
        yield f'<li value="{int(row.label)}">{dot}{name}<br>{escape(", ".join(facts))}</li>'
    memory = chart.roofs[chart.roofs["unit"] == "B/s"].drop_duplicates("name")
    memory = memory.sort_values("value", ascending=False)
    if len(memory) > 1:
        pairs = zip(memory["name"], memory["value"], strict=True)
        slopes = ", ".join(f"{name} {si(value, 'B/s')}" for name, value in pairs)
        yield f'<li class="star">Slopes from the left: {escape(slopes)}</li>'
    for row in chart.run.itertuples():
        rate = si(row.achieved_flops_per_s, "FLOP/s")
        yield f'<li class="star">{row.label} {escape(clean_text(row.name))}: {escape(rate)}</li>'


def _line(start: Any, end: Any, colour: str) -> str:
    places = f'x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"'
    return f'<line {places} stroke="{colour}"/>'


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str,
    bold: bool = False,
    turned: tuple[float, float, float] | None = None,
) -> str:
    style = f'font-size="{_TEXT:g}" fill="{_INK}" text-anchor="{anchor}"'
    if bold:
        style += ' font-weight="bold"'
    if turned is not None:
        angle, around_x, around_y = turned
        style += f' transform="rotate({angle:.1f} {around_x:.1f} {around_y:.1f})"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(clean_text(text))}</text>'
