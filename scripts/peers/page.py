"""results/peers.md: what the table says, and why each tool differs where it does."""

import csv
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from peers.cases import FAMILIES
from peers.models import find_case
from peers.table import Row, verdicts_of
from peers.tools import TOOLS
from peers.verdict import VERDICTS

HOW = Path(__file__).with_name("how.md")
FAULTS = Path(__file__).with_name("faults.csv")
US = "flopprof"
NAMES_AT_MOST = 12


def write_page(rows: list[Row]) -> str:
    """Return the page."""
    hand = [row for row in rows if row.family in FAMILIES]
    sections = [
        "# flopprof beside other tools\n",
        "Written by `scripts/bench_peers.py` from [peers.csv](peers.csv), by no hand.\n",
        summary(rows),
        "## Cases derived by hand\n",
        how_cases_are_made(hand),
        table_of_verdicts(hand),
        "Cases that are right, by family:\n",
        table_of_families(hand),
        *published(rows),
        "## How it was done\n",
        HOW.read_text(),
        "## Where flopprof is not exact\n",
        differences(rows, US),
        "## Why the others differ\n",
        "Each tool's differences by their reason; in brackets the cases, with the ratio of the "
        "tool's figure to the right one.\n",
    ]
    for tool in TOOLS:
        if tool != US:
            sections += [f"### {tool}\n", differences(rows, tool)]
    return "\n".join(sections)


def summary(rows: list[Row]) -> str:
    """Return the sentence that README quotes."""
    hand = [row for row in rows if row.family in FAMILIES]
    ours = verdicts_of(hand, US)
    total = sum(ours.values())
    others = {tool: verdicts_of(hand, tool) for tool in TOOLS if tool != US}
    best = max(others, key=lambda tool: others[tool]["exact"])
    least = min(others, key=lambda tool: others[tool]["exact"])
    wrong = total - ours["exact"]
    silent = ours["off"] + ours["zero"] + ours["crash"]
    says = f"and says what it left out on the other {wrong}"
    if silent:
        says = (
            f"says what it left out on {ours['told'] + ours['refused']}, and is wrong on {silent}"
        )
    return (
        f"Of {total} cases derived by hand flopprof is exact on {ours['exact']}, {says}; ten other "
        f"ways of counting are exact on {others[least]['exact']} ({least}) to "
        f"{others[best]['exact']} ({best}).\n"
    )


def how_cases_are_made(hand: list[Row]) -> str:
    """Return the words before the table."""
    cases = len({row.case for row in hand})
    families = len({row.family for row in hand})
    words = "; ".join(f"*{name}*: {meaning}" for name, meaning in VERDICTS.items())
    return f"{cases} small cases in {families} families. {words}.\n"


def table_of_verdicts(rows: list[Row]) -> str:
    """Return a row a tool, a column a verdict."""
    lines = [["tool", "version", *VERDICTS]]
    for tool in tools_of(rows):
        counts = verdicts_of(rows, tool)
        lines.append(
            [tool, version_of(rows, tool), *(str(counts[each] or "–") for each in VERDICTS)]
        )
    return markdown(lines)


def table_of_families(rows: list[Row]) -> str:
    """Return a row a tool, a column a family."""
    totals = Counter(row.family for row in rows if row.tool == US)
    families = [family for family in FAMILIES if totals[family]]
    lines = [["tool", *(f"{family} ({totals[family]})" for family in families)]]
    for tool in tools_of(rows):
        exact = Counter(row.family for row in rows if row.tool == tool and row.verdict == "exact")
        lines.append([tool, *(str(exact[family] or "–") for family in families)])
    return markdown(lines)


def published(rows: list[Row]) -> Iterable[str]:
    """Yield the tables of torchvision's and of timm's models, where they were counted."""
    if any(row.family in ("torchvision", "timm") for row in rows):
        yield "## Models with published figures\n"
    for family, words in (("torchvision", "`weights.meta`"), ("timm", "timm's benchmark table")):
        chosen = [row for row in rows if row.family == family]
        if not chosen:
            continue
        models = len({row.case for row in chosen if row.tool == US})
        yield f"{models} models of {family}, beside the multiply-adds of {words}:\n"
        lines = [["tool", "models", *VERDICTS, "count ÷ call"]]
        for tool in tools_of(chosen):
            counts = verdicts_of(chosen, tool)
            total = sum(counts.values())
            cells = [str(counts[each] or "–") for each in VERDICTS]
            lines.append([tool, str(total), *cells, time_of(chosen, tool)])
        yield markdown(lines)


def time_of(rows: list[Row], tool: str) -> str:
    """Return the median of a tool's times over one call, of convolutional and attention models."""
    timed = [row for row in rows if row.tool == tool and row.verdict != "crash"]
    ratios = [float(row.count_over_forward) for row in timed if row.count_over_forward]
    return f"{statistics.median(ratios):.1f} ({len(ratios)})" if ratios else "–"


def differences(rows: list[Row], tool: str) -> str:
    """Return a list of a tool's differences: reason, cases, ratios."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.tool == tool and row.verdict != "exact":
            groups[reason_of(row)].append(row)
    if not groups:
        return "None.\n"
    lines = []
    for reason, members in groups.items():
        shown = ", ".join(shortly(row) for row in members[:NAMES_AT_MOST])
        more = f", and {len(members) - NAMES_AT_MOST} more" if len(members) > NAMES_AT_MOST else ""
        lines.append(f"- {reason} ({shown}{more})")
    return "\n".join(lines) + "\n"


def shortly(row: Row) -> str:
    """Return a case with its ratio or verdict."""
    name = row.case.removeprefix("torchvision:").removeprefix("timm:")
    if row.verdict in ("refused", "crash", "zero"):
        return f"{name} {row.verdict}"
    told = ", told" if row.verdict == "told" else ""
    return f"{name} {float(row.ratio):.2f}{told}" if row.ratio else f"{name}{told}"


def reason_of(row: Row) -> str:
    """Return why a tool differs on a case: the first line of faults.csv that fits."""
    needs = find_case(row.case).needs
    for fault in faults():
        fits_tool = _has(fault["tools"], row.tool)
        fits_case = _has(fault["needs"], needs) or _has(fault["needs"], row.case)
        if fits_tool and fits_case and _has(fault["verdicts"], row.verdict):
            return fault["why"]
    return f"not explained: {needs}"


def _has(texts: str, text: str) -> bool:
    """Return whether a text is among those of a cell, "a;b"; all are in "*"."""
    return texts == "*" or text in texts.split(";")


def faults() -> list[dict[str, str]]:
    """Return the reasons, in their order."""
    with FAULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def tools_of(rows: list[Row]) -> list[str]:
    """Return the tools that have rows, in their order."""
    present = {row.tool for row in rows}
    return [tool for tool in TOOLS if tool in present]


def version_of(rows: list[Row], tool: str) -> str:
    """Return the version that counted."""
    return next((row.version for row in rows if row.tool == tool and row.version), "none")


def markdown(lines: list[list[str]]) -> str:
    """Return a table, its first column to the left."""
    head, *body = lines
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body)) + "\n"
