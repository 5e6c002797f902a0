"""Numbers and units as profilers print them. Whatever is no number is NaN, never 0."""

import math
import re
from typing import NamedTuple

from flopprof.errors import LoadError
from flopprof.units import safe_text

_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_SPACED = re.compile(r"[+-]?\d{1,3}(?:[ '\u00a0\u202f\u2019]\d{3})+(?:\.\d+)?")
_PLAIN = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
# "1,5" and "1.234,56": a decimal comma. "1,500" alone may be either; it is taken as thousands, and
# a file with one number that can only be a decimal comma is refused as a whole.
_DECIMAL_COMMA = re.compile(
    r"[+-]?(?:\d+,\d{1,2}|\d+,\d{4,}|\d{4,},\d+|0,\d+|\d{1,3}(?:\.\d{3})+,\d+|\d+,\d+[eE][+-]?\d+"
    r"|\d{1,3}(?:\.\d{3}){2,})"
)

_PREFIXES = {
    "": 1.0,
    "n": 1e-9,
    "u": 1e-6,
    "µ": 1e-6,
    "m": 1e-3,
    "k": 1e3,
    "K": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
}
_BASES = {
    "byte": "byte",
    "bytes": "byte",
    "B": "byte",
    "s": "s",
    "sec": "s",
    "second": "s",
    "seconds": "s",
    "hz": "hz",
    "Hz": "hz",
    "cycle": "cycle",
    "cycles": "cycle",
    "inst": "inst",
    "op": "op",
    "ops": "op",
    "sector": "sector",
}


class Reading(NamedTuple):
    """One value of one metric of one launch.

    Attributes:
        value: In the base unit; NaN where the file has no number.
        unit: "byte", "s", "hz", "inst", "byte/s", "inst/cycle", …; "" where none stands.
        text: The cell, where what it holds is more than a number.
    """

    value: float
    unit: str = ""
    text: str = ""


def number(text: str) -> float:
    """Return the number in a cell; NaN for what is none: empty, n/a, nan, "(!) nan", no data."""
    text = text.strip()
    if _PLAIN.fullmatch(text):
        return float(text)
    if _GROUPED.fullmatch(text) and not text.startswith("0,"):
        return float(text.replace(",", ""))
    if _SPACED.fullmatch(text):
        return float(re.sub(r"[^\d.+-]", "", text))
    return math.nan


def strict_number(text: str) -> float:
    """Return the number in a cell that holds nothing else; NaN for what is none.

    Raises:
        LoadError: It has a decimal comma.
    """
    refuse_decimal_comma(text)
    return number(text)


def refuse_decimal_comma(text: str) -> None:
    """Raise where a cell has a decimal comma: "1,500" beside it could be either number.

    Raises:
        LoadError: It has one.
    """
    if _DECIMAL_COMMA.fullmatch(text.strip()):
        raise LoadError(
            f"the value {safe_text(text.strip(), 40)!r} has a decimal comma",
            remedy="write the file with a point: LC_ALL=C ncu --import FILE.ncu-rep --page raw "
            "--csv --print-units base --print-fp",
        )


def unit(text: str) -> tuple[float, str]:
    """Return the factor to the base unit and its name: "Kbyte" is (1000, "byte").

    What is not known is (1, itself).
    """
    above, slash, below = text.strip().partition("/")
    factor, name = _simple_unit(above)
    if not slash:
        return factor, name
    divisor, base = _simple_unit(below)
    return factor / divisor, f"{name}/{base}"


def _simple_unit(text: str) -> tuple[float, str]:
    text = text.strip()
    if text in _BASES:
        return 1.0, _BASES[text]
    for prefix in ("Ki", "Mi", "Gi", "Ti", *"numµkKMGTP"):
        base = _BASES.get(text.removeprefix(prefix)) if text.startswith(prefix) else None
        if base:
            return _PREFIXES[prefix], base
    return 1.0, text


def reading(text: str, unit_text: str) -> Reading:
    """Return a cell with its unit as a reading."""
    value = number(text)
    factor, name = unit(unit_text)
    # Powers of ten of decimal text: to the nearest integer where that is what was meant.
    scaled = value * factor
    is_count = name in ("byte", "inst", "op") and factor > 1 and math.isfinite(scaled)
    if is_count and abs(scaled - round(scaled)) <= 1e-12 * abs(scaled):
        scaled = float(round(scaled))
    return Reading(scaled, name, text.strip() if math.isnan(value) else "")
