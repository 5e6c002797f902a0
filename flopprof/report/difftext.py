"""What differs between two runs, for people: text for a terminal, Markdown for a pull request."""

import math
from collections.abc import Callable
from typing import Any

from flopprof.report import noise
from flopprof.report.growth import flops_growth, growth_text, share_text, signed
from flopprof.report.limits import Rule
from flopprof.report.markdown import cell, table
from flopprof.units import (
    UNKNOWN,
    clean_text,
    columns,
    counted,
    duration,
    percent,
    safe_text,
    shorten,
    shown,
    si,
    three_digits,
)

TOP = 15  # modules, ops and sites listed of each
_PLACE_COLUMNS = 38  # of a terminal, for a module and an op
_CONDITION_COLUMNS = 32  # for one side of a condition
_SIDES = ("before", "after")
_KINDS = ("same", "changed", "added", "removed")
_NOTABLE = (noise.SLOWER, noise.FASTER)
_FORMS: dict[str, Callable[[float], str]] = {"wall_us": duration, "coverage_frac": percent}
_OF_TIME = ("samples_per_s", "tokens_per_s", "achieved_bytes_per_s")
_SHARES_OF_TIME = ("mfu_frac", "hfu_frac", "mbu_frac")
_NOUNS = {"modules": "module", "ops": "op", "sites": "site"}  # block of a comparison: an entry


def compared_text(
    comparison: dict[str, Any],
    names: tuple[str, str],
    top: int = TOP,
    rules: list[Rule] | None = None,
) -> str:
    """Return what `diff.compared` says as text of at most 100 columns.

    Args:
        comparison: What differs.
        names: Of the two runs.
        top: How many modules, ops and sites to list of each.
        rules: The limits that there are, judged.
    """
    lines = [f"{safe_text(names[0])} → {safe_text(names[1])}", "", *_conditions(comparison), ""]
    for name, values, change in figure_rows(comparison):
        lines.append(f"{name:20}{values[0]:>14}{values[1]:>14}   {change}".rstrip())
    lines += ["", *_about_time(comparison["time"])]
    for block in _NOUNS:
        entries = comparison[block]
        notable = notable_of(entries)
        lines += ["", f"{block}: {_counts(entries)}"]
        lines += map(_entry_line, notable[:top])
        if len(notable) > top:
            more = counted(len(notable) - top, _NOUNS[block])
            lines.append(f"… and {more} more: see --json")
    if rules:
        lines += ["", *map(rule_line, rules)]
    return "\n".join(lines) + "\n"


def rule_line(rule: Rule) -> str:
    """Return a line on a rule: how it is broken, or what is to be said where it holds."""
    if rule.broken:
        return f"fails: {rule.broken}"
    return f"holds: {rule.note or rule.name}"


def _conditions(comparison: dict[str, Any]) -> list[str]:
    lines = ["conditions: the same"]
    if comparison["conditions"]:
        lines = ["conditions that differ:"]
    for condition in comparison["conditions"]:
        sides = [shorten(_condition_text(condition[side]), _CONDITION_COLUMNS) for side in _SIDES]
        lines.append(f"  {condition['name']:14}{sides[0]} → {sides[1]}")
    for side in _SIDES:
        lines += [f"  {side}: {safe_text(text, 88)}" for text in comparison["doubts"][side]]
    return lines


def _condition_text(value: Any) -> str:
    """Return a condition's value as people say it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return UNKNOWN if value is None or value == "" else safe_text(value)


def figure_rows(comparison: dict[str, Any]) -> list[tuple[str, list[str], str]]:
    """Return name, values and change of each total and figure that one of the runs has."""
    rows = []
    significance = comparison["time"]["significance"]
    for name, pair in comparison["totals"].items():
        form = _FORMS.get(name, _count)
        change = _ratio(*pair)
        if name == "wall_us":
            change = _with_word(change, significance)
        rows.append((name, [form(float(value)) for value in pair], change))
    for name, pair in comparison["figures"].items():
        if all(value is None or math.isnan(value) for value in pair):
            continue
        change = _ratio(*pair)
        if significance == noise.NOISE and _follows_time(name, pair, comparison["time"]):
            change = _with_word(change, significance)
        rows.append((name, [_figure(name, value) for value in pair], change))
    return rows


def _follows_time(name: str, pair: list[float], time: dict[str, Any]) -> bool:
    """Return whether a figure changed as the time did, and for no other reason."""
    if name == "overhead_frac":
        return True
    growth = time["change_frac"]
    before, after = pair
    is_of_time = name in (*_OF_TIME, *_SHARES_OF_TIME)
    return is_of_time and before > 0 and math.isclose(after / before * (1 + growth), 1)


def _figure(name: str, value: float) -> str:
    if name in _OF_TIME and "bytes" not in name:
        return f"{three_digits(value)}/s" if value < 1e3 else si(value, "/s")
    if name in ("parameters", "launches"):
        return si(float(value), "")
    if name.endswith("_j"):
        return si(value, "J")
    return shown(name, value)


def _with_word(change: str, word: str) -> str:
    """Return a change with what it is worth; equal values need no word."""
    return change if change in ("", "=") or word == noise.UNKNOWN else f"{change} ({word})"


def _about_time(time: dict[str, Any]) -> list[str]:
    """Return what the change of time is worth, and what would not have been seen."""
    significance = time["significance"]
    if significance == noise.UNKNOWN:
        untimed = any(math.isnan(time[side]["median_us"]) for side in _SIDES)
        why = "one run has no times" if untimed else "two timed calls of each run are needed"
        return [f"time: whether it changed is not known: {why}"]
    conclusion = {
        noise.NOISE: "no change that is told from noise",
        noise.SLOWER: "slower, beyond the spread of repeated calls",
        noise.FASTER: "faster, beyond the spread of repeated calls",
    }[significance]
    spreads = [_spread(time[side]) for side in _SIDES]
    visible_frac = time["visible_frac"]
    least = "no slowdown"
    if math.isfinite(visible_frac):
        least = f"a slowdown of {growth_text(visible_frac)} or more"
    timed = time["before"]["of"]  # a call, a step
    return [
        f"time: {conclusion} (90 % of {timed}s: {spreads[0]}; {spreads[1]});",
        f"{least} would be seen.",
    ]


def _spread(timed: dict[str, Any]) -> str:
    return f"{duration(timed['p5_us'])} to {duration(timed['p95_us'])}"


def notable_of(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the modules, ops or sites to list: those that changed, then those of unknown spread.

    Args:
        entries: As `diff.compared` lists them; their order is kept within both.
    """
    changed = [
        entry for entry in entries if entry["change"] != "same" or entry["time_change"] in _NOTABLE
    ]
    unsure = [
        entry
        for entry in entries
        if entry["change"] == "same" and entry["time_change"] == noise.UNKNOWN
    ]
    return changed + [entry for entry in unsure if _differs(*entry["time_us"])]


def _differs(before: float, after: float) -> bool:
    """Return whether two values differ, or just one is known."""
    return before != after and not (math.isnan(before) and math.isnan(after))


def _counts(entries: list[dict[str, Any]]) -> str:
    """Return "3 same, 1 changed, …", and how many are slower or faster."""
    changes = [entry["change"] for entry in entries]
    parts = [f"{changes.count(kind)} {kind}" for kind in _KINDS]
    times = [entry["time_change"] for entry in entries]
    parts += [f"{times.count(word)} {word}" for word in _NOTABLE if word in times]
    return ", ".join(parts)


def _entry_line(entry: dict[str, Any]) -> str:
    """Return an entry's place, its time before and after (or its FLOPs), and its change."""
    place = shorten(clean_text(place_of(entry)), _PLACE_COLUMNS)
    pad = " " * (_PLACE_COLUMNS - columns(place))
    texts, ratio = _values(entry)
    values = f"{texts[0]:>12}{texts[1]:>12}   {ratio}"
    return f"{place}{pad}{values:36} {label_of(entry)}".rstrip()


def place_of(entry: dict[str, Any]) -> str:
    """Return where an entry is: its module, its op, or both."""
    parts = []
    if "module_path" in entry:
        parts.append(entry["module_path"] or "(model)")
    if "op" in entry:
        parts.append(entry["op"].removeprefix("aten::"))
    return " ".join(parts)


def label_of(entry: dict[str, Any]) -> str:
    """Return what an entry's change is called: "FLOPs × 2.00, slower", "added", "same"."""
    words = []
    if entry["change"] == "changed":
        flops = _flops_ratio(*entry["flops"])
        words.append(f"FLOPs {flops}" if flops else "changed")
    elif entry["change"] != "same":
        words.append(entry["change"])
    if entry["time_change"] in _NOTABLE:
        words.append(entry["time_change"])
    elif words and entry["time_change"] == noise.NOISE:
        words.append("time noise")
    elif not words and entry["time_change"] == noise.UNKNOWN and _differs(*entry["time_us"]):
        words.append("spread unknown")
    return ", ".join(words) or "same"


def _values(entry: dict[str, Any]) -> tuple[list[str], str]:
    """Return the time of both sides and their ratio; FLOPs where nothing was timed."""
    is_timed = any(value is not None and not math.isnan(value) for value in entry["time_us"])
    name = "time_us" if is_timed else "flops"
    texts = [_side(name, value) for value in entry[name]]
    return texts, _ratio(*entry[name])


def _side(name: str, value: float | None) -> str:
    """Return one side of a time or of FLOPs; what a run has not is unknown to it."""
    if value is None:
        return UNKNOWN
    return duration(value) if name == "time_us" else _count(value)


def _flops_ratio(before: float, after: float) -> str:
    """Return by how much FLOPs changed; "" where they did not, or are not known."""
    if math.isnan(before + after) or before == after:
        return ""
    return _ratio(before, after) or signed(flops_growth(before, after))


def _count(value: float) -> str:
    return si(value, "FLOPs")


def _ratio(before: float | None, after: float | None) -> str:
    """Return by how much something changed, "+12.3 %" or "× 4.00"; "" where it is not known."""
    if before is None or after is None or not (before > 0 and math.isfinite(before + after)):
        return ""
    if before == after:
        return "="
    ratio = after / before
    if not 0.5 < ratio < 2:
        return f"× {three_digits(ratio)}"
    return f"{'+' if ratio > 1 else '−'}{share_text(abs(ratio - 1))}"


def compared_markdown(
    comparison: dict[str, Any],
    names: tuple[str, str],
    top: int = TOP,
    rules: list[Rule] | None = None,
) -> str:
    """Return the same as GitHub-flavoured Markdown, the shape of a comment on a pull request."""
    lines = [f"### flopprof: {cell(names[0])} → {cell(names[1])}", ""]
    for rule in rules or []:
        word = "**fails**" if rule.broken else "holds"
        lines.append(f"- {word}: {cell(rule.broken or rule.note or rule.name)}")
    if rules:
        lines.append("")
    conditions: list[dict[str, Any]] = comparison["conditions"]
    if conditions:
        rows = []
        for condition in conditions:
            values = [_condition_text(condition[side]) for side in _SIDES]
            rows.append([condition["name"], *values])
        lines += ["**Conditions that differ**", "", *table(["condition", *_SIDES], rows), ""]
    else:
        lines += ["Conditions: the same.", ""]
    for side in _SIDES:
        lines += [f"- {side}: {cell(text)}" for text in comparison["doubts"][side]]
    rows = [[name, *values, change] for name, values, change in figure_rows(comparison)]
    lines += ["", *table(["figure", *_SIDES, "change"], rows), ""]
    lines += [cell(" ".join(_about_time(comparison["time"]))), ""]
    for block in _NOUNS:
        lines += _markdown_block(block, comparison[block], top)
    return "\n".join(lines).rstrip() + "\n"


def _markdown_block(block: str, entries: list[dict[str, Any]], top: int) -> list[str]:
    """Return a folded table of what changed; one line where nothing did."""
    notable = notable_of(entries)
    if not notable:
        return [f"{block.capitalize()}: {counted(len(entries), _NOUNS[block])}, none changed.", ""]
    rows = []
    for entry in notable[:top]:
        sides = [_side(name, value) for name in ("flops", "time_us") for value in entry[name]]
        rows.append([place_of(entry), *sides, _ratio(*entry["time_us"]), label_of(entry)])
    summary = f"<summary>{block.capitalize()}: {_counts(entries)}</summary>"
    header = [_NOUNS[block], "FLOPs before", "after", "time before", "after", "change", ""]
    lines = ["<details>", summary, "", *table(header, rows), ""]
    if len(notable) > top:
        lines += [f"… and {len(notable) - top} more", ""]
    return [*lines, "</details>", ""]
