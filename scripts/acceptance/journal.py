"""What a stage has found so far: rows in a file of JSON lines, which is whole at any moment."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

PASSED = "passed"
FAILED = "failed"
SKIPPED = "skipped"
BEGUN = "begun"  # not ended: it is under way, or its process died
MOST_BYTES = 16 * 10**6  # of a file
MOST_TEXT = 4000  # letters of a reason


class Part:
    """The rows of one stage: one per unit (a test, a model, …), in the order in which they began.

    Attributes:
        path: The file.
        run: Which run of the command writes: what failed in an earlier one is tried again.
        rows: Unit → its row.
    """

    def __init__(self, path: Path, run: str) -> None:
        """Read the rows that are there."""
        self.path = path
        self.run = run
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.rows: dict[str, dict[str, Any]] = {}
        for row in map(json.loads, lines):
            self.rows[row["unit"]] = row

    def is_done(self, unit: str) -> bool:
        """Return whether a unit needs no further try: it did not fail, or only just did."""
        row = self.rows.get(unit, {"outcome": BEGUN})
        if row["outcome"] in (PASSED, SKIPPED):
            return True
        return bool(row["outcome"] == FAILED and row["run"] == self.run)

    def begin(self, unit: str) -> None:
        """Note that a unit is under way."""
        self._put(unit, {"outcome": BEGUN, "began": time.time()})

    def end(self, unit: str, outcome: str, *, reason: str = "", **facts: Any) -> None:
        """Note how a unit ended.

        Args:
            unit: Its name.
            outcome: `PASSED`, `FAILED` or `SKIPPED`.
            reason: Why it failed or was skipped.
            facts: What it measured; NaN becomes null.
        """
        began = self.rows.get(unit, {}).get("began", time.time())
        seconds = round(time.time() - began, 2)
        row = {"outcome": outcome, "seconds": seconds, "reason": reason[-MOST_TEXT:], **facts}
        self._put(unit, row)

    def under_way(self) -> dict[str, float]:
        """Return the units that began and did not end, and when they began."""
        begun = (row for row in self.rows.values() if row["outcome"] == BEGUN)
        return {row["unit"]: row["began"] for row in begun}

    def forget(self, unit: str) -> None:
        """Take a unit out: it was not reached."""
        del self.rows[unit]
        self._write()

    def counts(self) -> dict[str, int]:
        """Return how many units ended how."""
        outcomes = [row["outcome"] for row in self.rows.values()]
        return {outcome: outcomes.count(outcome) for outcome in (PASSED, FAILED, SKIPPED)}

    def _put(self, unit: str, row: dict[str, Any]) -> None:
        self.rows[unit] = {"unit": unit, "run": self.run, **row}
        self._write()

    def _write(self) -> None:
        lines = [json.dumps(plain(row), ensure_ascii=False) for row in self.rows.values()]
        write_whole(self.path, "".join(f"{line}\n" for line in lines).encode())


def plain(value: Any) -> Any:
    """Return a value as JSON has it: numbers that are none become null."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(inner) for inner in value]
    if hasattr(value, "item"):  # numpy's numbers
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file by this content in one step.

    Raises:
        ValueError: It is larger than a file of the output may be.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path.name} would have {len(content)} bytes, {MOST_BYTES} at most")
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(path)
