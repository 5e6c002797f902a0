"""Print numbers with units for people: three significant digits, decimal prefixes."""

import math
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any
from unicodedata import east_asian_width

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_TIMES = ((1e6, "s"), (1e3, "ms"), (1.0, "µs"))  # of microseconds
UNKNOWN = "–"
ELSEWHERE = 120  # columns, where stdout is no terminal
NARROWEST = 80  # columns; below it the numbers alone do not fit
_COUNTS = ("", "FLOPs", "MACs", "B")  # whole numbers of these have no decimals


def si(value: float, unit: str) -> str:
    """Return `value` with a decimal prefix: `si(3.64e9, "FLOPs")` is "3.64 GFLOPs"; NaN is "–"."""
    if math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return f"∞ {unit}"
    if abs(value) < 1000 and value == int(value) and unit in _COUNTS:
        return f"{int(value)} {unit}".rstrip()
    magnitude = float(f"{abs(value):.3g}")
    scale, prefix = _largest_below(magnitude, _PREFIXES)
    return f"{three_digits(value / scale)} {prefix}{unit}".rstrip()


def _largest_below(magnitude: float, scales: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """Return the first scale, of those from large to small, that is not above; else the last."""
    for scale, name in scales:
        if magnitude >= scale:
            return scale, name
    return scales[-1]


def three_digits(value: float) -> str:
    """Return `value` with three significant digits and no exponent between 0.001 and 10⁶."""
    if math.isnan(value):
        return UNKNOWN
    text = f"{value:#.3g}"
    if "e" in text:
        return f"{value:.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.2e}"
    return text.rstrip(".")


def percent(frac: float) -> str:
    """Return a fraction as a percentage: 0.9987 is "99.9 %"; NaN is "–"."""
    if math.isnan(frac):
        return UNKNOWN
    hundredths = 100 * frac
    if 99.9 <= hundredths < 100:  # 99.97 % of something is not all of it: never round up to 100
        hundredths = 99.9
    return f"{hundredths:.1f} %"


def duration(microseconds: float) -> str:
    """Return a duration with the unit that fits: 12.3 µs, 4.56 ms, 7.89 s."""
    if math.isnan(microseconds):
        return UNKNOWN
    magnitude = float(f"{abs(microseconds):.3g}")
    scale, unit = _largest_below(magnitude, _TIMES)
    return f"{three_digits(microseconds / scale)} {unit}"


def shown(column: str, value: Any) -> str:
    """Return a table's value as people read it, by the unit that its column's name ends in."""
    if isinstance(value, str):
        return clean_text(value) or UNKNOWN
    if value is None or value != value:
        return UNKNOWN
    if column.endswith("_frac"):
        return percent(value)
    if column.endswith("_us"):
        return duration(value)
    if column.endswith("_per_byte"):
        return three_digits(value)
    if "bytes" in column:
        return si(float(value), "B/s" if column.endswith("_per_s") else "B")
    return si(float(value), "") if "flops" in column else str(value)


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as `1x3x224x224`; a 0-d shape is "()"."""
    return "x".join(str(size) for size in shape) or "()"


def shapes_text(shapes: Iterable[Any]) -> str:
    """Return shapes, `1x3x8x8, 8x3x3x3`; lists of shapes in brackets, non-tensors left out."""
    parts = []
    for shape in shapes:
        if shape and isinstance(shape[0], tuple | list):
            parts.append("[" + ", ".join(shape_text(inner) for inner in shape) + "]")
        elif shape:
            parts.append(shape_text(shape))
    return ", ".join(parts)


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: "1 site", "2 sites"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shorten(text: str, width: int) -> str:
    """Return `text` cut in the middle to at most `width` columns of a terminal."""
    if columns(text) <= width:
        return text
    for kept in range(width, 0, -1):  # the first, unless letters are two columns wide
        head = (kept - 1) // 2
        short = f"{text[:head]}…{text[len(text) - (kept - 1 - head) :]}"
        if columns(short) <= width:
            return short
    return ""


_SHORTEST_PATH = 6  # columns: less tells no layer from another
_SHORTEST_SHAPES = 4
_SHORTEST_NAME = 5  # of a module, beside what is left of its path


def shorten_path(path: str, width: int) -> str:
    """Return a module's path cut to at most `width` columns so that layers stay apart.

    Numbers and the last name are kept longest: "model.layers.11.norm" becomes "m…layers.11.norm",
    then "m…l…11.norm".
    """
    parts = path.split(".")
    for number, part in enumerate(parts[:-1]):
        short = _joined(parts)
        if columns(short) <= width:
            return short
        if not part.isdecimal():
            parts[number] = part[:1] + "…"
    before = _joined([*parts[:-1], ""])
    room = width - columns(before)
    if columns(parts[-1]) <= room or room >= _SHORTEST_NAME:
        return before + shorten(parts[-1], room)
    return shorten(before + parts[-1], width)


def shorten_point(name: str, width: int) -> str:
    """Return a point's name, "path · op shapes", cut to at most `width` columns with its op whole.

    The path is cut first, to half of what the op leaves, then the shapes, at their end.
    """
    path, separator, called = name.rpartition(" · ")
    if columns(name) <= width or not separator:
        return shorten(name, width)
    op, _, shapes = called.partition(" ")
    room = width - columns(separator + op)
    if room < _SHORTEST_PATH:
        without_path = f"…{separator}{op}"
        return without_path if columns(without_path) <= width else shorten(name, width)
    beside_shapes = shorten_path(path, max(room // 2, room - columns(shapes) - 1))
    left = room - columns(beside_shapes) - 1
    if not shapes or left < _SHORTEST_SHAPES:
        return shorten_path(path, room) + separator + op
    shapes = shapes if columns(shapes) <= left else f"{shapes[: left - 1]}…"
    return f"{beside_shapes}{separator}{op} {shapes}"


def _joined(parts: Sequence[str]) -> str:
    """Return the parts of a path with points between them; a mark of what is cut stands for one."""
    return ".".join(parts).replace("….", "…")


def columns(text: str) -> int:
    """Return how many columns of a terminal `text` takes: two for a wide letter."""
    return sum(1 + (east_asian_width(letter) in "WF") for letter in text)


def text_width() -> int:
    """Return how many columns a text may take: the terminal's, where stdout is one."""
    if not sys.stdout.isatty():
        return ELSEWHERE
    return max(NARROWEST, shutil.get_terminal_size((ELSEWHERE, 24)).columns)


def clean_text(text: object) -> str:
    """Return `text`, which a file may have chosen, without what would act on a terminal or page.

    Control and formatting characters become U+FFFD; bytes of a file's name that are no UTF-8, and
    halves of surrogate pairs, are shown escaped.
    """
    return "".join(map(_shown_letter, str(text)))


def safe_text(text: object, width: int = 300) -> str:
    """Return `text`, which a file may have chosen, cleaned (`clean_text`) and not too long."""
    clean = clean_text(str(text)[: width + 1])
    return clean if len(clean) <= width else clean[: width - 1] + "…"


def file_text(path: object, width: int = 300) -> str:
    """Return a file's name to be shown: escaped where it is no text, no control characters."""
    return safe_text(path, width)


def _shown_letter(letter: str) -> str:
    if letter.isprintable():
        return letter
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if 0xD800 <= code <= 0xDFFF:
        return f"\\u{code:04x}"
    return "\N{REPLACEMENT CHARACTER}"
