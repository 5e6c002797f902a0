"""A part of a trace: some of its profiler steps, or some of its seconds."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from flopprof.errors import UsageError
from flopprof.tables import OPS
from flopprof.trace.read import Trace
from flopprof.units import duration, file_text, safe_text

_STEPS = re.compile(r"(\d{1,15})?(:)?(\d{1,15})?")
_PREFIX = "ProfilerStep#"
ProfilerStep = tuple[str, float, float]
"""Name, start and duration of a step, in µs from the trace's begin."""


class WindowOptions(TypedDict, total=False):
    """The fields of `Window`, as keyword arguments."""

    skip_steps: int
    steps: str | None
    from_s: float | None
    to_s: float | None


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of each trace counts; parts that are given together are cut with each other.

    A call belongs to the part in which its outermost op begins, with all kernels that it launched.

    Attributes:
        skip_steps: How many profiler steps to leave out from the start.
        steps: Steps by the profiler's numbers, the last one left out as in Python: "3:8" is 3 to
            7; "3:", ":8"; "3" is that one.
        from_s: Seconds after the trace's first op or kernel at which the part begins.
        to_s: Seconds after it before which the part ends.
    """

    skip_steps: int = 0
    steps: str | None = None
    from_s: float | None = None
    to_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no part of any trace.

        Raises:
            UsageError: A number is negative or not finite, or the part ends where it begins.
        """
        if self.skip_steps < 0:
            raise UsageError(f"--skip-steps is {self.skip_steps}", remedy="give 0 or more")
        for name, seconds in (("from", self.from_s), ("to", self.to_s)):
            if seconds is not None and not 0 <= seconds < math.inf:
                remedy = "give seconds from the trace's begin, 0 or more"
                raise UsageError(f"--{name} is {seconds}", remedy=remedy)
        if self.from_s is not None and self.to_s is not None and self.from_s >= self.to_s:
            problem = f"--from {self.from_s:g} is not before --to {self.to_s:g}"
            raise UsageError(problem, remedy="give a later --to")
        if self.steps is not None:
            first, end = self.numbers
            if first >= end:
                problem = f"--steps {safe_text(self.steps, 40)} holds no step"
                raise UsageError(problem, remedy="the last is left out: 3:8 is 3 to 7, 3 is one")

    @property
    def is_whole(self) -> bool:
        """Whether nothing is cut."""
        return self == Window()

    @property
    def numbers(self) -> tuple[float, float]:
        """First step, and the one behind the last; 0 and infinity where they are not given.

        Raises:
            UsageError: `steps` is of another form.
        """
        if self.steps is None:
            return 0, math.inf
        text = self.steps
        parts = _STEPS.fullmatch(text.strip())
        if parts is None or not (parts[1] or parts[3]):
            problem = f"--steps is {safe_text(text, 40)!r}"
            raise UsageError(problem, remedy="give the profiler's numbers: 3:8 (3 to 7), 3:, :8, 3")
        first = int(parts[1] or 0)
        if not parts[2]:
            return first, first + 1
        return first, int(parts[3]) if parts[3] else math.inf

    def cut(self, file: Path, trace: Trace) -> Trace:
        """Return the part of a trace that the window holds; ids count anew, times do not.

        Raises:
            UsageError: Nothing lies in the window.
        """
        steps = sorted(dict.fromkeys(trace.info["steps"]), key=lambda step: float(step[1]))
        begin_us = -math.inf if self.from_s is None else self.from_s * 1e6
        end_us = math.inf if self.to_s is None else self.to_s * 1e6
        steps = self._chosen_steps(file, steps)
        if self.skip_steps or self.steps is not None:
            begin_us = max(begin_us, steps[0][1])
        if self.steps is not None:
            end_us = min(end_us, max(start + length for _, start, length in steps))
        part = _between(trace, begin_us, end_us)
        if not len(part.ops) and not len(part.kernels):
            lasts = duration(trace.info["span_us"])
            raise UsageError(
                f"nothing of {file_text(file)} begins in the window; the trace lasts {lasts}",
                remedy="give another --from, --to or --steps",
            )
        inside = [step for step in steps if begin_us <= step[1] and step[1] + step[2] <= end_us]
        part.info["steps"] = inside
        return part

    def _chosen_steps(self, file: Path, steps: list[ProfilerStep]) -> list[ProfilerStep]:
        """Return the steps that are not left out by number; they are in order of time."""
        if len(steps) <= self.skip_steps and self.skip_steps:
            raise UsageError(
                f"{file_text(file)} holds {len(steps)} profiler steps; leaving out "
                f"{self.skip_steps} leaves none",
                remedy="give a smaller --skip-steps",
            )
        remaining = steps[self.skip_steps :]
        if self.steps is None:
            return remaining
        first, end = self.numbers
        chosen = [step for step in remaining if first <= _number(step) < end]
        if not chosen:
            raise UsageError(
                f"{file_text(file)} holds no profiler step of --steps {safe_text(self.steps, 40)}",
                remedy=_numbers_there(remaining),
            )
        return chosen


def _number(step: ProfilerStep) -> float:
    """Return the profiler's number of a step; NaN where its name has none."""
    text = step[0].removeprefix(_PREFIX)
    return float(text) if text.isdecimal() and len(text) < 16 else math.nan


def _numbers_there(steps: list[ProfilerStep]) -> str:
    numbers = [int(_number(step)) for step in steps if not math.isnan(_number(step))]
    if not numbers:
        return "it has no numbered steps (prof.step() makes them): use --from and --to"
    return f"it has steps {min(numbers)} to {max(numbers)}"


def _between(trace: Trace, begin_us: float, end_us: float) -> Trace:
    """Return the calls that begin in [begin, end), and kernels of no op that do."""
    ops = trace.ops
    kernels = trace.kernels
    starts_us = ops["start_us"].to_numpy()[_outermost(ops["parent_op_id"].to_numpy())]
    is_inside = (starts_us >= begin_us) & (starts_us < end_us)
    number = np.append(np.where(is_inside, np.cumsum(is_inside) - 1, -1), -1)  # the last is for -1
    ops = ops[is_inside]
    linked = number[kernels["op_id"]]
    alone = (kernels["op_id"] == -1) & kernels["start_us"].between(begin_us, end_us, "left")
    ops = ops.assign(op_id=number[ops["op_id"]], parent_op_id=number[ops["parent_op_id"]])
    kernels = kernels.assign(op_id=linked)[(linked >= 0) | alone].reset_index(drop=True)
    gaps = trace.gaps[trace.gaps["start_us"].between(begin_us, end_us, "left")]
    ops_end_us = (ops["start_us"] + ops["cpu_us"]).max()
    kernels_end_us = (kernels["start_us"] + kernels["duration_us"]).max()
    window_end_us = min(end_us, trace.info["span_us"])
    last_us = float(np.nanmax([ops_end_us, kernels_end_us, window_end_us]))
    first_us = max(begin_us, 0.0)  # a step may begin before the first op, where time begins
    info = {**trace.info, "span_us": last_us - first_us}
    ops = OPS.check(ops.reset_index(drop=True))
    return Trace(ops, gaps, kernels, trace.module_types, trace.devices, info)


def _outermost(parents: np.ndarray) -> np.ndarray:
    """Return each op's outermost op; both are numbers of rows, a parent of -1 is none."""
    outer = np.where(parents < 0, np.arange(len(parents)), parents)
    while True:
        further = outer[outer]
        if np.array_equal(further, outer):
            return outer
        outer = further
