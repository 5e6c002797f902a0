"""The rows of results/peers.csv: every tool on every case."""

import csv
import io
from collections import Counter
from dataclasses import dataclass
from typing import Any

from peers.case import Case
from peers.models import find_case
from peers.run import Journal
from peers.tools import TOOLS
from peers.verdict import is_right, judge

COLUMNS = (
    "family", "case", "tool", "version", "device", "right_flops", "flops", "ratio", "verdict",
    "said", "count_cpu_ms", "forward_cpu_ms", "count_over_forward",
)  # fmt: skip
SAID_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class Row:
    """One tool on one case, as the table has it: texts."""

    family: str
    case: str
    tool: str
    version: str
    device: str
    right_flops: str
    flops: str
    ratio: str
    verdict: str
    said: str
    count_cpu_ms: str
    forward_cpu_ms: str
    count_over_forward: str


def rows_of(work: dict[str, list[str]], journal: Journal) -> list[Row]:
    """Return the rows of what was counted, by family and case, tools in their order."""
    rows = [
        row_of(find_case(case), tool, journal.answers[tool, case])
        for tool, cases in work.items()
        for case in cases
        if (tool, case) in journal.answers
    ]
    order = {case: place for place, case in enumerate(dict.fromkeys(row.case for row in rows))}
    tools = list(TOOLS)
    return sorted(rows, key=lambda row: (order[row.case], tools.index(row.tool)))


def row_of(case: Case, tool: str, answer: dict[str, Any]) -> Row:
    """Return one row."""
    flops = figure_of(case, tool, answer)
    count_s = answer.get("count_s")
    forward_s = answer.get("forward_s")
    ratio = None if flops is None or not case.flops else flops / case.flops
    said = answer.get("error") or answer.get("refused") or "; ".join(answer.get("left_out", ()))
    over = count_s / forward_s if count_s and forward_s else None
    return Row(
        family=case.family,
        case=case.name,
        tool=tool,
        version=answer.get("version", ""),
        device=case.device,
        right_flops=str(case.flops),
        flops="" if flops is None else f"{flops:.0f}",
        ratio="" if ratio is None else f"{ratio:.4g}",
        verdict=judge(case, answer, mixes=TOOLS[tool].mixes),
        said=" ".join(said.split())[:SAID_CHARACTERS],
        count_cpu_ms=milliseconds(count_s),
        forward_cpu_ms=milliseconds(forward_s),
        count_over_forward="" if over is None else f"{over:.3g}",
    )


def figure_of(case: Case, tool: str, answer: dict[str, Any]) -> float | None:
    """Return the figure that is compared; of two, the one that is right, if one is."""
    flops = answer.get("flops")
    mixed = answer.get("with_elementwise")
    if mixed is None or flops is None or is_right(flops, case, mixes=TOOLS[tool].mixes):
        return flops
    return float(mixed) if not flops or is_right(mixed, case, mixes=True) else flops


def milliseconds(seconds: float | None) -> str:
    """Return three significant digits; nothing where it is unknown."""
    return "" if seconds is None else f"{seconds * 1e3:.3g}"


def to_csv(rows: list[Row]) -> str:
    """Return the table as text."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(row, column) for column in COLUMNS] for row in rows)
    return file.getvalue()


def read_csv(text: str) -> list[Row]:
    """Return the rows of such a text."""
    return [Row(**row) for row in csv.DictReader(io.StringIO(text))]


def verdicts_of(rows: list[Row], tool: str) -> Counter[str]:
    """Return how many cases had which verdict by a tool."""
    return Counter(row.verdict for row in rows if row.tool == tool)
