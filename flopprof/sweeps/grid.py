"""The grid of a sweep: which settings vary, and the cells that they make."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flopprof.errors import UsageError
from flopprof.units import counted

AXES = ("device", "dtype", "threads", "compile", "input_size", "batch")
"""What may vary, slowest first; the names are those of `Settings`."""

_NUMBERS = ("threads", "input_size", "batch")
_MOST_CELLS = 10_000


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination of values.

    Attributes:
        values: Axis → value, in the order of `AXES`.
    """

    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The cell's name, for people and for its file: "dtype-bfloat16_batch-8"."""
        parts = [f"{axis}-{value}" for axis, value in self.values.items()]
        return "_".join(parts).replace(":", ".") or "only"

    @property
    def label(self) -> str:
        """The cell in words: "batch 8, bfloat16"."""
        return ", ".join(worded(axis, value) for axis, value in reversed(list(self.values.items())))

    @property
    def options(self) -> dict[str, Any]:
        """The cell as options of `flopprof.profile`."""
        options = dict(self.values)
        if options.get("compile") == "none":
            options["compile"] = False
        return options


def worded(axis: str, value: Any) -> str:
    """Return one value in words: a dtype and a device speak for themselves."""
    if axis in ("dtype", "device"):
        return str(value)
    if axis == "compile":
        return "eager" if value == "none" else f"compile {value}"
    if axis == "threads":
        return counted(value, "thread")
    return f"{axis.replace('_', ' ')} {value}"


def cells_of(grid: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """Return the cells of a grid, the batch varying fastest.

    Args:
        grid: Axis → values; a single value may stand for itself.

    Raises:
        UsageError: An axis is not known, or has no values, or there are too many cells.
    """
    if unknown := sorted(set(grid) - set(AXES)):
        raise UsageError(
            f"a sweep has no axis {unknown[0]!r}", remedy=f"there are: {', '.join(AXES)}"
        )
    axes = {axis: _values(axis, grid[axis]) for axis in AXES if axis in grid}
    if not axes:
        raise UsageError("nothing varies in this sweep", remedy="give --batch 1,2,4..64")
    count = math.prod(len(values) for values in axes.values())
    if count > _MOST_CELLS:
        raise UsageError(f"the grid has {count} cells", remedy=f"at most {_MOST_CELLS}")
    combinations = itertools.product(*axes.values())
    return [Cell(dict(zip(axes, values, strict=True))) for values in combinations]


def _values(axis: str, values: Any) -> list[Any]:
    """Return the values of an axis, each once."""
    listed = [values] if isinstance(values, str | int) else list(values)
    if not listed:
        raise UsageError(f"--{axis.replace('_', '-')} has no values", remedy="give one at least")
    if axis == "compile":
        listed = [_compile_mode(value) for value in listed]
    if axis in _NUMBERS and any(type(value) is not int or value < 1 for value in listed):
        fact = f"--{axis.replace('_', '-')} is {', '.join(map(str, listed))}"
        raise UsageError(fact, remedy="give whole numbers from 1 on")
    return list(dict.fromkeys(listed))


def _compile_mode(value: Any) -> str:
    """Return a mode of torch.compile as the command line spells it."""
    if value is True:
        return "default"
    return str(value) if value else "none"


def parse_values(axis: str, text: str) -> list[Any]:
    """Return the values that "1,2,4..64" says: numbers where the axis has them.

    "4..64" doubles: 4, 8, 16, 32, 64.

    Raises:
        UsageError: It says none.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if axis not in _NUMBERS:
        return list(parts)
    values: list[int] = []
    try:
        for part in parts:
            values += _doubled(part)
    except ValueError as error:
        fact = f"--{axis.replace('_', '-')} {text!r}: {error}"
        raise UsageError(fact, remedy="write numbers: 1,2,4 or 1..64, which doubles") from error
    return values


def _doubled(part: str) -> Iterator[int]:
    first, dots, last = part.partition("..")
    value = int(first)
    end = int(last) if dots else value
    if value < 1 or end < value:
        raise ValueError(f"{part!r} is no range")
    while value <= end:
        yield value
        value *= 2
