"""One stage, in a process of its own: what breaks it breaks no other."""

import importlib
import json
import sys
import traceback
from pathlib import Path

from acceptance.journal import FAILED, Part
from acceptance.stage import Place

STAGES = ("tests", "ceilings", "models", "counters", "peers")
ALL_PASSED = 0
UNFINISHED = 5  # the budget ended first
WHOLE_STAGE = "(the stage itself)"


def run_stage(name: str, place: Place, run: str) -> bool:
    """Run what is not done of a stage; return whether all was reached before the budget ended.

    Args:
        name: One of `STAGES`.
        place: Where it runs.
        run: Which run of the command this is.
    """
    part = Part(place.output / f"{name}.jsonl", run)
    try:
        stage = importlib.import_module(f"acceptance.{name}")
        finished: bool = stage.run(place, part)
    except Exception:  # the summary says it; the next stage follows
        part.end(WHOLE_STAGE, FAILED, reason=traceback.format_exc())
        return True
    return finished


def main(arguments: list[str]) -> int:
    """Run the stage that the arguments, as JSON, tell of."""
    told = json.loads(arguments[0])
    place = Place(told["device"], Path(told["output"]), told["deadline"], tuple(told["only"]))
    finished = run_stage(told["stage"], place, told["run"])
    return ALL_PASSED if finished else UNFINISHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
