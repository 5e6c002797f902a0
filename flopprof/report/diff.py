"""What is other in one run than in another: totals, and sites that both or only one have."""

import math
from typing import Any

import pandas as pd

from flopprof.run import Run, whole
from flopprof.units import (
    UNKNOWN,
    clean_text,
    columns,
    duration,
    percent,
    safe_text,
    shorten,
    si,
    three_digits,
)

KEYS = ["op", "module_path", "phase"]
_TOTALS = ("matmul_flops", "vector_flops", "flops", "flops_at_most", "coverage_frac", "wall_us")
_SUMS = ["calls", "flops", "time_us"]


def compared(before: Run, after: Run) -> dict[str, Any]:
    """Return `totals` (name → before, after) and `sites`, those first whose time changed most.

    A site is one op, module path and phase here: batches and dtypes are what runs are compared for.
    Each has `calls`, `flops` and `time_us` as (before, after), None where the run has no such site,
    NaN where unknown; and `change`: added, removed, changed (calls or FLOPs), or same.
    """
    pairs = {name: [getattr(run.totals, name) for run in (before, after)] for name in _TOTALS}
    totals = {
        name: [whole(v) if "flops" in name else v for v in two] for name, two in pairs.items()
    }
    sums = [
        _sums(run.sites).add_suffix(f"_{side}")
        for run, side in zip((before, after), _SIDES, strict=True)
    ]
    none = dict.fromkeys(("calls_before", "calls_after"), 0)
    joined = sums[0].join(sums[1], how="outer").fillna(none)
    moved = {c: joined[f"{c}_after"].fillna(0) - joined[f"{c}_before"].fillna(0) for c in _SUMS}
    order = pd.DataFrame({c: moved[c].abs() for c in ("time_us", "flops")})
    sites = []
    for key in order.sort_values(["time_us", "flops"], ascending=False, kind="stable").index:
        row = joined.loc[key]
        there = [row["calls_before"] > 0, row["calls_after"] > 0]
        values = {
            c: [
                float(row[f"{c}_{side}"]) if has else None
                for side, has in zip(_SIDES, there, strict=True)
            ]
            for c in _SUMS
        }
        named = dict(zip(KEYS, map(str, key), strict=True))
        sites.append(named | {"change": _change(there, values)} | values)
    return {"totals": totals, "sites": sites}


_SIDES = ("before", "after")


def _sums(sites: pd.DataFrame) -> pd.DataFrame:
    """Return the sums per key; one unknown part makes an unknown sum."""
    groups = sites.groupby(KEYS, sort=False, observed=True)[_SUMS]
    return groups.agg(lambda values: values.sum(skipna=False))


def _change(there: list[bool], values: dict[str, list[float | None]]) -> str:
    if not all(there):
        return "added" if there[1] else "removed"
    return "same" if all(_equal(*values[c]) for c in ("calls", "flops")) else "changed"


def _equal(a: float | None, b: float | None) -> bool:
    return a == b or (a != a and b != b)  # both unknown


def compared_text(found: dict[str, Any], names: tuple[str, str], top: int = 15) -> str:
    """Return what `compared` found as text of at most 100 columns."""
    lines = [f"{safe_text(names[0])} → {safe_text(names[1])}", ""]
    shown = {"wall_us": duration, "coverage_frac": percent}
    for name, (before, after) in found["totals"].items():
        said = [shown.get(name, _count)(float(v)) for v in (before, after)]
        lines.append(f"{name:14}{said[0]:>16}{said[1]:>16}   {_ratio(before, after)}")
    changes = [site["change"] for site in found["sites"]]
    counts = {what: changes.count(what) for what in ("same", "changed", "added", "removed")}
    lines += ["", "sites: " + ", ".join(f"{n} {what}" for what, n in counts.items()), ""]
    for site in found["sites"][:top]:
        where, name = clean_text(site["module_path"] or "(model)"), clean_text(site["op"])
        place = f"{where} {name.removeprefix('aten::')}"
        timed = any(value == value and value is not None for value in site["time_us"])
        name, form = ("time_us", duration) if timed else ("flops", _count)
        two = [UNKNOWN if value is None else form(value) for value in site[name]]
        place = shorten(place, 48)
        pad = " " * (48 - columns(place))
        change = f"{two[0]:>12}{two[1]:>12}   {_ratio(*site[name])}"
        lines.append(f"{place}{pad}{change:36} {site['change']}".rstrip())
    if len(found["sites"]) > top:
        lines.append(f"… and {len(found['sites']) - top} sites more: see --json")
    return "\n".join(lines) + "\n"


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
    return f"{'+' if ratio > 1 else '−'}{percent(abs(ratio - 1))}"
