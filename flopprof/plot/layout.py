"""Measure text and place it on a sheet so that nothing covers anything, in points (1/72 in).

A box is (x0, y0, x1, y1), a disc (x, y, radius), a segment (x0, y0, x1, y1).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flopprof.units import shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

TEXT = 8.0  # points: still read at half size
FONT = "DejaVu Sans"  # comes with matplotlib
Mark = tuple[str, float, str, bool]  # shape, size, colour, hollow
Label = tuple[float, float, tuple[float, float] | None]  # centre, where its leader line starts
TEXT_GAP = 2.5  # points kept free around a text; below that it looks glued to what is beside it
_REACHES = (2.5, 5, 8, 12, 17, 23, 30, 38, 48, 60, 75, 95, 120, 150, 190, 240, 300, 400)
_TURNS = 32  # directions tried around a marker
_LEADER_REACH = 5.0  # a label farther than this from its marker needs a line to it


def spread(
    centres: Sequence[float], sizes: Sequence[float], low: float, high: float, gap: float = 2.0
) -> list[float]:
    """Return new centres, in the given order's places, so that no two intervals overlap.

    The sum of squared shifts is least (isotonic regression: neighbours that would overlap are
    pooled around their mean); then everything is moved inside [low, high].
    """
    order = sorted(range(len(centres)), key=lambda i: (centres[i], i))
    offsets, reach = [], 0.0
    for rank, index in enumerate(order):
        reach += (sizes[index] + sizes[order[rank - 1]]) / 2 + gap if rank else 0.0
        offsets.append(reach)
    pools: list[tuple[float, int]] = []
    for index, offset in zip(order, offsets, strict=True):
        pools.append((centres[index] - offset, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (mean, n), (before, m) = pools.pop(), pools.pop()
            pools.append(((mean * n + before * m) / (n + m), n + m))
    moved = [mean for mean, n in pools for _ in range(n)]
    result = [0.0] * len(centres)
    for value, index, offset in zip(moved, order, offsets, strict=True):
        first, last = low + sizes[order[0]] / 2, high - sizes[order[-1]] / 2 - offsets[-1]
        result[index] = max(min(value, last), first) + offset
    return result


def wrap(text: str, width: float, measure: Callable[[str], float]) -> list[str]:
    """Return `text` in lines no wider than `width`; a longer word is cut."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if measure(longer) <= width:
            lines[-1] = longer
            continue
        while measure(word) > width and len(word) > 1:
            count = max(1, min(len(word) - 1, int(len(word) * width / measure(word))))
            lines.append(word[:count])
            word = word[count:]
        lines.append(word)
    return [line for line in lines if line]


def flow(
    sizes: Sequence[tuple[float, float]], width: float, gap: float = 12.0
) -> tuple[list[tuple[float, float]], float]:
    """Return (left, middle of its row from the top) of items set in rows, and the rows' height."""
    places: list[tuple[float, float]] = []
    row: list[tuple[float, float]] = []
    top = x = 0.0
    for item in sizes:
        if row and x + item[0] > width:
            height = max(h for _, h in row)
            places += [(left, top + height / 2) for left, _ in row]
            top, x, row = top + height, 0.0, []
        row.append((x, item[1]))
        x += item[0] + gap
    height = max((h for _, h in row), default=0.0)
    return places + [(left, top + height / 2) for left, _ in row], top + height


def as_rows(items: Sequence[Sequence[float]], columns: int) -> Floats:
    """Return `items` as an array of `columns` columns, also when there are none."""
    return np.array(items, dtype=np.float64).reshape(-1, columns)


def boxes_on_discs(boxes: Floats, discs: Floats, gap: float = 0.0) -> Bools:
    """Return, per box and disc, whether they are closer than `gap`."""
    x, y, radius = discs.T
    dx = np.maximum(np.maximum(boxes[:, :1] - x, x - boxes[:, 2:3]), 0.0)
    dy = np.maximum(np.maximum(boxes[:, 1:2] - y, y - boxes[:, 3:]), 0.0)
    return np.asarray(np.hypot(dx, dy) < radius + gap)


def boxes_on_boxes(boxes: Floats, others: Floats, gap: float = 0.0) -> Bools:
    """Return, per box and other box, whether they are closer than `gap`."""
    a, b = boxes[:, None, :], others[None, :, :]
    apart = (a[..., 0] >= b[..., 2] + gap) | (a[..., 2] + gap <= b[..., 0])
    apart |= (a[..., 1] >= b[..., 3] + gap) | (a[..., 3] + gap <= b[..., 1])
    return np.asarray(~apart)


def boxes_on_segments(boxes: Floats, segments: Floats, gap: float = 0.0) -> Bools:
    """Return, per box and segment, whether the segment enters the box grown by `gap`."""
    enter = np.zeros((len(boxes), len(segments)))
    leave = np.ones((len(boxes), len(segments)))
    for axis in (0, 1):
        start, step = segments[:, axis], segments[:, axis + 2] - segments[:, axis]
        step = np.where(np.abs(step) < 1e-9, 1e-9, step)  # parallel: enters at ± a huge parameter
        near = (boxes[:, axis, None] - gap - start) / step
        far = (boxes[:, axis + 2, None] + gap - start) / step
        enter = np.maximum(enter, np.minimum(near, far))
        leave = np.minimum(leave, np.maximum(near, far))
    return np.asarray(enter < leave)


def place_labels(
    markers: Floats,
    sizes: Sequence[tuple[float, float]],
    *,
    rivals: Floats,
    discs: Floats,
    segments: Floats,
    width: float,
    height: float,
) -> list[Label]:
    """Return a place for the label of each marker, beside it or at the end of a leader line.

    Each in turn takes the cheapest place inside the panel that touches no disc, no segment, no
    label and no leader before it. Cost: distance, a leader, and being nearer to another of the
    `rivals` (all marks, `markers` among them). Where nothing is free: the place with fewest hits.
    """
    placed: list[Label] = []
    boxes, leaders = as_rows([], 4), as_rows([], 4)
    for index, (w, h) in enumerate(sizes):
        x, y, radius = markers[index]
        centres, reach = _candidates(x, y, radius, w, h, width, height)
        half = np.array([w / 2, h / 2])
        here = np.hstack([centres - half, centres + half])
        ends = np.clip([x, y], here[:, :2] - 1, here[:, 2:] + 1)
        lines = np.hstack([ends, np.broadcast_to([x, y], ends.shape)])
        hits = boxes_on_discs(here, discs, 1.0).sum(axis=1) * 1.0
        hits += boxes_on_segments(here, segments, 1.5).sum(axis=1)
        hits += 3 * boxes_on_boxes(here, boxes, 2.0).sum(axis=1)
        hits += 2 * boxes_on_segments(here, leaders, 1.0).sum(axis=1)
        others = rivals[(rivals != markers[index]).any(axis=1)]
        edge = np.hypot(*(others[:, None, :2] - centres).transpose(2, 0, 1)) - others[:, None, 2]
        own = np.hypot(*(centres - [x, y]).T) - radius
        unclear = (edge < own + 2).any(axis=0)
        lead = (reach > _LEADER_REACH) | unclear
        hits += 3 * lead * boxes_on_segments(boxes, lines, 1.0).sum(axis=0)
        cost = reach + 12.0 * unclear + 6.0 * lead + 1e4 * hits
        best = int(np.argmin(cost))
        leader = (float(ends[best, 0]), float(ends[best, 1])) if lead[best] else None
        placed.append((float(centres[best, 0]), float(centres[best, 1]), leader))
        boxes = np.vstack([boxes, here[best]])
        if leader:
            leaders = np.vstack([leaders, lines[best]])
    return placed


def _candidates(
    x: float, y: float, radius: float, w: float, h: float, width: float, height: float
) -> tuple[Floats, Floats]:
    """Return centres around a marker that keep the label in the panel, and their distances."""
    # Upper right first: equal costs are decided by order, and readers look there.
    angles = math.pi / 4 + np.arange(_TURNS) * (2 * math.pi / _TURNS)
    ray = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    extent = np.abs(ray) @ np.array([w / 2, h / 2])
    reach = np.repeat(np.array(_REACHES, dtype=np.float64), _TURNS)
    away = reach + radius + np.tile(extent, len(_REACHES))
    centres = np.array([x, y]) + away[:, None] * np.tile(ray, (len(_REACHES), 1))
    low, high = np.array([w / 2 + 3, h / 2 + 3]), np.array([width - w / 2 - 3, height - h / 2 - 3])
    inside = ((centres >= low) & (centres <= high)).all(axis=1)
    if not inside.any():
        return np.clip([[x, y]], low, high), np.zeros(1)
    return centres[inside], reach[inside]


def place_along(
    line: Sequence[float],
    size: tuple[float, float],
    *,
    discs: Floats,
    segments: Floats,
    width: float,
    height: float,
) -> tuple[float, float, float] | None:
    """Return centre and angle (degrees) of a text beside `line`, or None where there is no room.

    It runs along the line, above it if possible, as far down the line as is free.
    """
    x0, y0, x1, y1 = line
    angle = math.atan2(y1 - y0, x1 - x0)
    w, h = size
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    length = math.hypot(x1 - x0, y1 - y0)
    along = np.arange(w / 2 + 4, length - w / 2 - 4, 4.0)
    half = np.array([w / 2, h / 2])
    corner = turn.T @ np.array([w / 2, h / 2])
    corner = np.maximum(np.abs(corner), np.abs(turn.T @ np.array([w / 2, -h / 2])))
    for side in (1, -1):
        off = side * (h / 2 + TEXT_GAP)
        local = np.stack([along, np.full_like(along, off)], axis=1) + turn @ np.array([x0, y0])
        boxes = np.hstack([local - half, local + half])
        turned = np.hstack([discs[:, :2] @ turn.T, discs[:, 2:]])
        lines = np.hstack([segments[:, :2] @ turn.T, segments[:, 2:] @ turn.T])
        free = ~boxes_on_discs(boxes, turned, 1.5).any(axis=1)
        free &= ~boxes_on_segments(boxes, lines, 1.5).any(axis=1)
        centres = local @ turn
        free &= (centres > corner + 2).all(axis=1)
        free &= (centres < np.array([width, height]) - corner - 2).all(axis=1)
        if free.any():
            x, y = centres[int(np.argmax(free))]
            return float(x), float(y), math.degrees(angle)
    return None


def discs_along(x: float, y: float, degrees: float, size: tuple[float, float]) -> list[list[Any]]:
    """Return discs that together cover a turned text: an obstacle for what is placed later."""
    w, h = size
    angle, radius = math.radians(degrees), 0.6 * h
    steps = np.linspace(-w / 2 + h / 4, w / 2 - h / 4, max(2, math.ceil(2 * w / h)))
    return [[x + s * math.cos(angle), y + s * math.sin(angle), radius] for s in steps]


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family=FONT))).get_charmap())


def _clean(text: str) -> str:
    """Return `text` with what the font cannot show as "?": names come from anywhere."""
    return "".join(c if ord(c) in _glyphs() and c.isprintable() else "?" for c in text)


def measure(text: str, size: float = TEXT, *, bold: bool = False) -> float:
    """Return the width of `text` in points, and a little more: pixels round glyphs up."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=FONT, size=size, weight="bold" if bold else "normal")
    width = text_to_path.get_text_width_height_descent(_clean(text), font, ismath=False)[0]
    return 1.015 * float(width)


def shorten_to(text: str, width: float, size: float = TEXT) -> str:
    """Return `text`, cut in the middle until it is no wider than `width`."""
    count = min(len(text), 200)
    while count > 1 and measure(shorten(text, count), size) > width:
        count -= 1
    return shorten(text, count)


class Sheet:
    """A figure to draw on in points from its top left; its height is set at the end."""

    def __init__(self, width: float, colours: Sequence[str]) -> None:
        from matplotlib.figure import Figure
        from matplotlib.transforms import Affine2D

        self.width, self.figure = width, Figure(facecolor=colours[0])
        self.ground, self.ink, self.muted, self.grid, self.left, self.right = colours
        self._flip = Affine2D()
        self._transform = self._flip + self.figure.dpi_scale_trans

    def finish(self, height: float) -> "Figure":
        """Cut the sheet at `height` and return it."""
        self.figure.set_size_inches(self.width / 72, height / 72)
        self._flip.clear().scale(1 / 72, -1 / 72).translate(0, height / 72)
        return self.figure

    def text(self, x: float, y: float, text: str, *, bold: bool = False, **options: Any) -> None:
        """Write `text`; `y` is the middle of its capital letters."""
        style: dict[str, Any] = {
            "size": TEXT,
            "color": self.ink,
            "weight": "bold" if bold else "normal",
        } | options
        if "rotation" in options:
            style |= {"ha": "center", "va": "center"}
        else:
            y += 0.36 * style["size"]  # half a capital's height, down to the baseline
        self.figure.text(
            x, y, _clean(text), family=FONT, parse_math=False, transform=self._transform, **style
        )

    def line(self, xs: Iterable[float], ys: Iterable[float], **options: Any) -> None:
        """Draw a line, or a mark."""
        from matplotlib.lines import Line2D

        style: dict[str, Any] = {
            "color": self.ink,
            "linewidth": 0.7,
            "solid_capstyle": "butt",
        } | options
        self.figure.add_artist(Line2D([*xs], [*ys], transform=self._transform, **style))

    def area(self, corners: Sequence[tuple[float, float]], **options: Any) -> None:
        """Fill a polygon."""
        from matplotlib.patches import Polygon

        style: dict[str, Any] = {"linewidth": 0.0, "edgecolor": self.ink, "zorder": 0.1} | options
        self.figure.add_artist(Polygon(corners, closed=True, transform=self._transform, **style))

    def box(self, x: float, y: float, width: float, height: float, **options: Any) -> None:
        """Fill a rectangle; (x, y) is its top left."""
        corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
        self.area(corners, **options)

    def mark(self, x: float, y: float, mark: "Mark", **options: Any) -> None:
        """Draw one mark: filled with a thin edge, or a hollow coloured rim with thin edges."""
        shape, size, colour, hollow = mark
        style: dict[str, Any] = {"marker": shape, "linestyle": "none", "zorder": 4.0} | options
        if not hollow:
            style |= {"markerfacecolor": colour, "markeredgewidth": 0.6}
            self.line([x], [y], markersize=size, markeredgecolor=self.ink, **style)
            return
        rim = min(2.2, 0.9 + size / 16, 0.3 * size)  # a speck stays hollow
        style["markerfacecolor"] = self.ground
        for width, edge in ((rim + 0.9, self.ink), (rim, colour)):
            self.line(
                [x],
                [y],
                markersize=size - rim,
                markeredgecolor=edge,
                markeredgewidth=width,
                **style,
            )
            style["gid"] = None
