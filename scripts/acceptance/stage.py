"""What the stages share: where they run, how much time is left, and the loop over their units."""

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acceptance.journal import FAILED, PASSED, SKIPPED, Part

ROOT = Path(__file__).resolve().parents[2]
NEEDS_CUDA = "skipped: needs CUDA"


class SkipUnitError(Exception):
    """A unit cannot be seen here; its text says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stage runs.

    Attributes:
        device: "cuda", or "cpu" in a rehearsal.
        output: The folder of what is found.
        deadline: Time (`time.time()`) at which the budget ends.
        only: Names of units, or parts of names, to run; all if empty.
    """

    device: str
    output: Path
    deadline: float
    only: tuple[str, ...] = ()

    @property
    def rehearses(self) -> bool:
        """Whether there is no GPU, and sizes are small."""
        return self.device == "cpu"

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self.deadline - time.time()

    def wants(self, unit: str) -> bool:
        """Return whether a unit is among those asked for."""
        return not self.only or any(text in unit for text in self.only)


def say(stage: str, place: Place, text: str) -> None:
    """Show progress on stderr, with the time that is left of the budget."""
    left = "" if place.left_s > 1e6 else f"{place.left_s:4.0f} s left  "
    print(f"[{stage}] {left}{text}", file=sys.stderr, flush=True)


def run_units(
    stage: str,
    place: Place,
    part: Part,
    units: Sequence[str],
    run: Callable[[str, Place], dict[str, Any]],
    *,
    needs_s: float,
) -> bool:
    """Run the units that are not done; return whether all were reached before the budget ended.

    `run` returns what it measured; a list `faults` in it says what should be otherwise. What it
    raises is the unit's failure, and the next one follows.

    Args:
        stage: The stage's name.
        place: Where it runs.
        part: What it has found so far.
        units: Their names.
        run: Runs one unit.
        needs_s: No unit begins with less than this left.
    """
    wanted = [unit for unit in units if place.wants(unit)]
    for number, unit in enumerate(wanted, start=1):
        if part.is_done(unit):
            continue
        if place.left_s < needs_s:
            say(stage, place, f"the budget ends here: {number - 1} of {len(wanted)}")
            return False
        say(stage, place, f"{number} of {len(wanted)}  {unit} …")
        part.begin(unit)
        _run_unit(part, unit, place, run)
        row = part.rows[unit]
        reason = row["reason"].strip().splitlines()[-1:] or [""]
        say(stage, place, f"  {row['outcome']}  {row['seconds']:.1f} s  {reason[0][:160]}")
    return True


def _run_unit(
    part: Part, unit: str, place: Place, run: Callable[[str, Place], dict[str, Any]]
) -> None:
    """Run one unit and note how it ended."""
    try:
        facts = run(unit, place)
    except SkipUnitError as skipped:
        part.end(unit, SKIPPED, reason=str(skipped))
    except Exception:  # whatever went wrong is this unit's result; the others follow
        part.end(unit, FAILED, reason=traceback.format_exc())
    else:
        faults = facts.pop("faults", [])
        part.end(unit, FAILED if faults else PASSED, reason="; ".join(faults), **facts)
