"""Draw the log-log panel of a chart: axes, marks and their numbers, roofs, what has no place."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from flopprof.judge.roofs import is_above
from flopprof.report.chart import layout
from flopprof.report.chart.data import PLACES
from flopprof.report.chart.layout import LETTER, TEXT, Floats, spread
from flopprof.report.chart.sheet import (
    AXIS,
    HATCHES,
    LEVEL_AREA,
    LEVEL_SHAPES,
    MARGIN,
    SMALL,
    Look,
    Sheet,
    ticks,
)
from flopprof.units import percent, si, three_digits

_LEAST_GAP = 4.0  # points between two marks, for an arrow
_ARROW_HEAD = 6.0  # points


def draw_panel(sheet: Sheet, top: float) -> float:
    """Draw the panel from `top` on, and return where it and what is below its axis end."""
    sheet.place_panel(top)
    _draw_y_axis(sheet)
    if len(sheet.ridges):
        _draw_ridges(sheet)
    marks = _draw_marks(sheet)
    _draw_measured(sheet)
    _draw_roofs(sheet)
    _draw_numbers(sheet, marks)
    bottom = _draw_rug(sheet)
    _draw_x_axis(sheet, bottom)
    return bottom


def _draw_y_axis(sheet: Sheet) -> None:
    for value, name in ticks(*sheet.ys):
        y = sheet.at(1, value)[1]
        sheet.line([AXIS, sheet.right], [y, y], color=sheet.grid, zorder=0.5, gid="grid")
        sheet.text(AXIS - 5, y, name, ha="right")
    middle = (sheet.top + sheet.bottom) / 2
    sheet.text(MARGIN + 6, middle, "Achieved FLOP/s", rotation=90, size=TEXT + 1)


def _draw_x_axis(sheet: Sheet, y: float) -> None:
    for value, name in ticks(*sheet.xs):
        x = sheet.at(value, 1)[0]
        sheet.line([x, x], [sheet.top, sheet.bottom], color=sheet.grid, zorder=0.5, gid="grid")
        sheet.text(x, y + 12, name, ha="center")
    also = "; small marks: measured" if len(sheet.data.measured) else ""
    label = f"Arithmetic intensity (FLOP/byte, compulsory traffic{also})"
    sheet.text((AXIS + sheet.right) / 2, y + 26, label, ha="center", size=TEXT + 1)


def _draw_ridges(sheet: Sheet) -> None:
    """Shade what is left and right of the ridges, and write where they are."""
    top = sheet.top
    right = sheet.right
    xs = [sheet.at(ridge, 1)[0] for ridge in sheet.ridges]
    flat: dict[str, Any] = {"zorder": 0.1, "linewidth": 0}
    sheet.box(AXIS, top, min(xs) - AXIS, sheet.height, facecolor=sheet.sides[0], **flat)
    sheet.box(max(xs), top, right - max(xs), sheet.height, facecolor=sheet.sides[1], **flat)
    sheet.text(AXIS, top - 22, "◂ memory-bound", color=sheet.muted)
    sheet.text(right, top - 22, "compute-bound ▸", color=sheet.muted, ha="right")
    texts = [f"{name} ridge {three_digits(ridge)}" for name, ridge in sheet.ridges.items()]
    widest = LETTER * SMALL * (2 + max(map(len, texts)))
    texts = texts[: int((right - AXIS) / widest)]  # of the dtypes with most time
    widths = [LETTER * SMALL * (len(text) + 2) for text in texts]
    places = spread(xs[: len(texts)], widths, AXIS, right)
    for x, place, text in zip(xs, places, texts, strict=False):
        sheet.text(place, top - 10, text, size=SMALL, ha="center")
        sheet.line([place, x, x], [top - 4, top, top + 6], linewidth=1.0, zorder=3)


def _draw_marks(sheet: Sheet) -> list[tuple[str, Floats]]:
    """Draw the points, small ones on top; return each one's number, if any, and disc."""
    marks = []
    for rank, row in enumerate(sheet.marked.itertuples(), start=1):
        x, y = sheet.at(row.intensity_flops_per_byte, row.achieved_flops_per_s)
        is_point = row.place == "point"
        order = 4 + 0.01 * rank
        label = row.label if is_point and row.head else ""
        name = f"point-{label or row.series + str(rank)}" if is_point else row.place
        radius = sheet.mark(x, y, sheet.look(row), gid=name, zorder=order) / 2
        marks.append((label, np.array([x, y, radius])))
        around = 1.45 * radius + 0.6  # reaches the corners of a square
        if is_above(row.efficiency_frac):
            around += 3
            ring = Look("o", math.pi * (around - 0.8) ** 2, "none")
            sheet.mark(x, y, ring, gid="ring", zorder=order)
        sheet.discs.append(np.array([[x, y, around]]))
    if sheet.data.names:
        _draw_arrows(sheet, np.array([disc for _, disc in marks]))
    return marks


def _draw_measured(sheet: Sheet) -> None:
    """Draw points at the intensity of measured bytes, each with a line to the compulsory one."""
    for row in sheet.data.measured.itertuples():
        start = sheet.at(row.compulsory, row.achieved_flops_per_s)
        end = sheet.at(row.intensity_flops_per_byte, row.achieved_flops_per_s)
        colour = sheet.kinds.get(row.kind, sheet.muted)
        gid = f"measured-{row.label}-{row.level}"
        sheet.line(*np.stack([start, end], axis=1), zorder=3.8, gid=gid, color=colour)
        look = Look(LEVEL_SHAPES[row.level], LEVEL_AREA, colour)
        width = sheet.mark(
            float(end[0]), float(end[1]), look, zorder=8, gid=gid, markeredgecolor=sheet.ink
        )
        sheet.discs.append(layout.cover(start, end, 0.6))
        sheet.discs.append(np.array([[*end, width / 2 + 1]]))


def _draw_arrows(sheet: Sheet, discs: Floats) -> None:
    """Draw arrows from run to run, between the marks of the same work."""
    rows = sheet.marked
    keys = rows["label"].where(rows["place"] == "point", rows["place"])
    for key in dict.fromkeys(keys[keys.ne("") & keys.ne("other")]):
        for start, end in pairwise(discs[keys.to_numpy() == key]):
            _draw_arrow(sheet, start, end)


def _draw_arrow(sheet: Sheet, start: Floats, end: Floats) -> None:
    """Draw an arrow between two discs, from edge to edge, unless they touch."""
    way = end[:2] - start[:2]
    across, down = way
    length = math.hypot(across, down)
    gap = length - start[2] - end[2]
    if gap < _LEAST_GAP:
        return
    direction = way / length
    tail = start[:2] + start[2] * direction
    tip = end[:2] - (end[2] + 2) * direction
    sheet.line(*np.stack([tail, tip], axis=1), zorder=3.9, gid="arrow", linewidth=0.9)
    head = (3, 0, math.degrees(math.atan2(-down, across)) - 90)
    size = min(_ARROW_HEAD, gap)
    sheet.line([tip[0]], [tip[1]], marker=head, markersize=size, linestyle="none", zorder=9)
    sheet.discs.append(layout.cover(tail, tip, 2.0))


def _draw_roofs(sheet: Sheet) -> None:
    """Draw the ceilings and bandwidths, between equal ones a band, and write what they are."""
    roofs = pd.concat([sheet.flat, sheet.memory]).assign(ends=_ends_of_roofs(sheet))
    for roof in roofs.itertuples():
        style = {"linewidth": 1.7} if roof.solid else {"linewidth": 0.9, "dashes": (5, 3)}
        sheet.line(*zip(*roof.ends, strict=True), zorder=2, **style)
        sheet.discs.append(layout.cover(roof.ends[0], roof.ends[1], 0.8))
    for _, group in roofs.groupby(["unit", "name"]):  # the band between the first and the last
        band = [*group["ends"].iloc[0], *group["ends"].iloc[-1][::-1]]
        sheet.axes.fill(*zip(*band, strict=True), color=sheet.ink, alpha=0.1, linewidth=0)
    _label_ceilings(sheet, roofs[roofs["unit"] == "FLOP/s"])
    _label_bandwidths(sheet, roofs[roofs["unit"] == "B/s"])


def _ends_of_roofs(sheet: Sheet) -> list[list[Floats]]:
    """Return where each line starts and ends: those of the ceilings, then of the bandwidths."""
    left, right = (10.0**limit for limit in sheet.xs)
    low, high = (10.0**limit for limit in sheet.ys)
    fastest = sheet.memory["value"].max()
    highest = sheet.flat["value"].max()
    ends = []
    for value in sheet.flat["value"]:
        start = min(max(left, value / fastest), right)
        ends.append([sheet.at(x, value) for x in (start, right)])
    for value in sheet.memory["value"]:
        start = max(left, low / value)
        stop = min(right, np.fmin(high, highest) / value)
        ends.append([sheet.at(x, x * value) for x in (start, stop)])
    return ends


def _label_ceilings(sheet: Sheet, roofs: pd.DataFrame) -> None:
    """Write what the ceilings are right of the panel."""
    x = sheet.right
    ys = [end[1] for _, end in roofs["ends"]]
    places = spread(ys, [21.0] * len(ys), sheet.top - 14, sheet.bottom + 14)
    for roof, y, place in zip(roofs.itertuples(), ys, places, strict=True):
        sheet.line([x, x + 3, x + 9, x + 11], [y, y, place, place], color=sheet.muted)
        sheet.text(x + 13, place - 5, f"{roof.name} {si(roof.value, 'FLOP/s')}", size=SMALL)
        sheet.text(x + 13, place + 4.5, roof.origin, size=SMALL, color=sheet.muted)


def _label_bandwidths(sheet: Sheet, roofs: pd.DataFrame) -> None:
    """Write what the bandwidths are along their lines."""
    for roof in roofs.itertuples():
        text = f"{roof.name} {si(roof.value, 'B/s')}, {roof.origin}"
        start, end = roof.ends
        (x, y), discs = layout.place_along(start, end, text, SMALL, np.vstack(sheet.discs))
        across, down = end - start
        sheet.text(x, y, text, rotation=math.degrees(math.atan2(-down, across)), size=SMALL)
        sheet.discs.append(discs)


def _draw_numbers(sheet: Sheet, marks: list[tuple[str, Floats]]) -> None:
    """Write the numbers beside their marks, or at the ends of leader lines."""
    texts = np.vstack(sheet.discs[:4])  # the panel's frame: no number leaves it
    size = TEXT + 1
    discs = np.array([disc for _, disc in marks]).reshape(-1, 3)
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
            sheet.mark(x, y, Look("o", 6.0, sheet.ink), zorder=9)
            sheet.discs.append(layout.cover(start, discs[index, :2], 0.5))


def _draw_rug(sheet: Sheet) -> float:
    """Draw time without a place on the axes along the bottom edge, and return where texts end."""
    merged = sheet.data.merged[sheet.data.merged["place"].isin([*HATCHES])]
    edge = sheet.bottom
    y = sheet.bottom + 2 + 6 * max(0, len(sheet.data.names) - 1)
    for series, rows in merged.groupby("series"):
        x = AXIS
        for row in rows.itertuples():
            style = {"facecolor": sheet.ground, "hatch": HATCHES[row.place]}
            width = row.share_frac * (sheet.right - AXIS)
            y += 12
            sheet.box(x, edge, width, 6, **style)
            sheet.box(AXIS, y - 3, 12, 6, **style)
            name = f"{percent(row.share_frac)} of time: {PLACES[row.place]}"
            sheet.text(AXIS + 16, y, f"{series} {name}".strip())
            x += width
        edge += 6
    return y
