"""Find where nothing is, in points (1/72 in) from the sheet's top left.

What is in the way is an array of discs (x, y, radius); a text or a line is a row of them.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

TEXT = 8.0  # points: still read at half size
FONT = "DejaVu Sans Mono"  # comes with matplotlib; columns align, widths are known
LETTER = 0.61  # width of a letter over its size, rounded up

TOGETHER = 32  # lines compared with discs at once: neighbours, which are near few of them
_HIT_COST = 1e4  # of each disc that is touched: more than any distance
_DIRECTIONS = 32  # around a mark, in which there may be room for its number
_DISTANCES = 21  # in each of them, each 1.3 × the one before


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family=FONT))).get_charmap())


def clean(text: str) -> str:
    """Return `text` with what the font cannot show as "?": names come from anywhere."""
    return "".join(
        letter if ord(letter) in _glyphs() and letter.isprintable() else "?" for letter in text
    )


def spread(
    centres: Sequence[float], widths: Sequence[float], low: float, high: float
) -> list[float]:
    """Return new centres, in the given order's places, so that no two intervals overlap."""
    result = list(centres)
    order = sorted(range(len(centres)), key=lambda i: centres[i])
    for index in order:  # away from low, then those pushed beyond high back
        result[index] = max(result[index], low + widths[index] / 2)
        low = result[index] + widths[index] / 2
    for index in reversed(order):
        result[index] = min(result[index], high - widths[index] / 2)
        high = result[index] - widths[index] / 2
    return result


def cover(start: Floats, end: Floats, radius: float) -> Floats:
    """Return discs along a line: a thin line, or a text around its middle."""
    count = math.ceil(math.dist(start, end) / 3) + 1
    return np.column_stack([np.linspace(start, end, count), np.full(count, radius)])


def count_hits(starts: Floats, ends: Floats, discs: Floats, radius: float) -> Floats:
    """Return how many discs each line, `radius` wide on both sides, touches."""
    hits = np.zeros(len(starts))
    reach = discs[:, 2] + radius
    for first in range(0, len(starts), TOGETHER):
        some = slice(first, first + TOGETHER)
        near = _within_reach(starts[some], ends[some], discs, reach)
        hits[some] = _count_near_hits(starts[some], ends[some], discs[near], reach[near])
    return hits


def _within_reach(starts: Floats, ends: Floats, discs: Floats, reach: Floats) -> npt.NDArray[Any]:
    """Return which discs may touch any of the lines: they touch the box around them all."""
    low = np.minimum(starts.min(axis=0), ends.min(axis=0))
    high = np.maximum(starts.max(axis=0), ends.max(axis=0))
    x = discs[:, 0]
    y = discs[:, 1]
    beside = (x < low[0] - reach) | (x > high[0] + reach)
    return np.asarray(~(beside | (y < low[1] - reach) | (y > high[1] + reach)))


def _count_near_hits(starts: Floats, ends: Floats, discs: Floats, reach: Floats) -> Floats:
    x, y = (ends - starts).T[:, :, None]
    from_x = discs[:, 0] - starts[:, :1]
    from_y = discs[:, 1] - starts[:, 1:]
    part = np.clip((from_x * x + from_y * y) / np.maximum(x * x + y * y, 1e-9), 0, 1)
    distance = np.hypot(from_x - part * x, from_y - part * y)
    return np.asarray((distance < reach).sum(axis=1), dtype=np.float64)


def place_text(
    text: str, size: float, centres: Floats, direction: Floats, costs: Floats, discs: Floats
) -> tuple[int, Floats]:
    """Return which centre costs least, each disc touched the most, and the discs of a text there.

    `direction` is that of the text, a unit vector.
    """
    half = LETTER * size * (len(text) - 1) / 2 * direction
    radius = 0.65 * size  # reaches the corners of the first and the last letter
    hits = count_hits(centres - half, centres + half, discs, radius)
    best = int((costs + _HIT_COST * hits).argmin())
    return best, cover(centres[best] - half, centres[best] + half, radius)


def place_along(
    start: Floats, end: Floats, text: str, size: float, discs: Floats
) -> tuple[Floats, Floats]:
    """Return centre and discs of a text beside a line, as near its start as is free."""
    length = math.dist(start, end)
    half = LETTER * size * len(text) / 2 + 8
    step = (end - start) / length
    along = np.arange(min(half, length / 2), max(length - half, length / 2) + 1, 4.0)
    above = np.array([step[1], -step[0]])
    aside = size * np.outer(0.9 + 1.3 * np.arange(8), [1, -1]).reshape(-1, 1) * above
    centres = (start + along[:, None] * step + aside[:, None]).reshape(-1, 2)
    costs = np.arange(len(centres), dtype=np.float64)
    best, its_discs = place_text(text, size, centres, step, costs, discs)
    return centres[best], its_discs


def place_beside(
    mark: Floats, text: str, size: float, rivals: Floats, discs: Floats, texts: Floats
) -> tuple[Floats, Floats, Floats | None]:
    """Return centre and discs of a mark's number, and where its leader line starts, if any.

    It takes the cheapest place around the mark. Cost: distance, a leader line, being nearer to one
    of the `rivals`; most of all each disc or text it touches, or text that its leader does.
    """
    turns = np.arange(_DIRECTIONS) * (math.tau / _DIRECTIONS)
    turns -= math.pi / 4  # upper right first: readers look there
    ray = np.tile(np.stack([np.cos(turns), np.sin(turns)], axis=1), (_DISTANCES, 1))
    reach = np.repeat(1.5 * 1.3 ** np.arange(_DISTANCES), _DIRECTIONS)
    width = LETTER * size * len(text)
    away = reach + mark[2] + 0.65 * size + np.abs(ray[:, 0]) * (width - LETTER * size) / 2
    centres = mark[:2] + away[:, None] * ray
    edges = np.hypot(*(rivals[:, None, :2] - centres).transpose(2, 0, 1)) - rivals[:, None, 2]
    unclear = (edges < away - mark[2] + 2).any(axis=0)
    leads = (reach > 5) | unclear
    half = np.array([width, size]) / 2 + 1
    starts = np.clip(mark[:2], centres - half, centres + half)
    crossed = count_hits(starts, np.broadcast_to(mark[:2], starts.shape), texts, 1.0)
    costs = reach + 12.0 * unclear + 6.0 * leads + _HIT_COST * crossed
    everything = np.vstack([discs, texts])
    best, its_discs = place_text(text, size, centres, np.array([1.0, 0.0]), costs, everything)
    return centres[best], its_discs, starts[best] if leads[best] else None
