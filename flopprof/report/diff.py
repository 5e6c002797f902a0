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
_SIDES = ("before", "after")
_PLACE_COLUMNS = 48  # of a terminal, for a site's module and op


def compared(before: Run, after: Run) -> dict[str, Any]:
    """Return `totals` (name → before, after) and `sites`, those first whose time changed most.

    A site is one op, module path and phase here: batches and dtypes are what runs are compared for.
    Each has `calls`, `flops` and `time_us` as (before, after), None where the run has no such site,
    NaN where unknown; and `change`: added, removed, changed (calls or FLOPs), or same.
    """
    totals = {name: [_total(run, name) for run in (before, after)] for name in _TOTALS}
    earlier = _sums(before.sites).add_suffix("_before")
    later = _sums(after.sites).add_suffix("_after")
    joined = earlier.join(later, how="outer")
    moved = pd.DataFrame(
        {
            name: (joined[f"{name}_after"].fillna(0) - joined[f"{name}_before"].fillna(0)).abs()
            for name in ("time_us", "flops")
        }
    )
    order = moved.sort_values(["time_us", "flops"], ascending=False, kind="stable").index
    return {"totals": totals, "sites": [_site(key, joined.loc[key]) for key in order]}


def _total(run: Run, name: str) -> Any:
    value = getattr(run.totals, name)
    return whole(value) if "flops" in name else value


def _site(key: tuple[Any, ...], row: "pd.Series[float]") -> dict[str, Any]:
    """Return a site as `compared` lists it."""
    is_there = {side: not math.isnan(row[f"calls_{side}"]) for side in _SIDES}
    values = {
        name: [float(row[f"{name}_{side}"]) if is_there[side] else None for side in _SIDES]
        for name in _SUMS
    }
    place = dict(zip(KEYS, map(str, key), strict=True))
    return place | {"change": _change(is_there, values)} | values


def _sums(sites: pd.DataFrame) -> pd.DataFrame:
    """Return the sums per key; one unknown part makes an unknown sum."""
    groups = sites.groupby(KEYS, sort=False, observed=True)[_SUMS]
    return groups.agg(lambda values: values.sum(skipna=False))


def _change(is_there: dict[str, bool], values: dict[str, list[float | None]]) -> str:
    if not is_there["after"]:
        return "removed"
    if not is_there["before"]:
        return "added"
    return "same" if all(_equal(*values[c]) for c in ("calls", "flops")) else "changed"


def _equal(a: float | None, b: float | None) -> bool:
    return a == b or (a != a and b != b)  # both unknown


def compared_text(comparison: dict[str, Any], names: tuple[str, str], top: int = 15) -> str:
    """Return what `compared` says as text of at most 100 columns."""
    lines = [f"{safe_text(names[0])} → {safe_text(names[1])}", ""]
    forms = {"wall_us": duration, "coverage_frac": percent}
    for name, (before, after) in comparison["totals"].items():
        form = forms.get(name, _count)
        values = f"{form(float(before)):>16}{form(float(after)):>16}"
        lines.append(f"{name:14}{values}   {_ratio(before, after)}")
    sites = comparison["sites"]
    changes = [site["change"] for site in sites]
    counts = [f"{changes.count(kind)} {kind}" for kind in ("same", "changed", "added", "removed")]
    lines += ["", "sites: " + ", ".join(counts), ""]
    lines += map(_site_line, sites[:top])
    if len(sites) > top:
        lines.append(f"… and {len(sites) - top} sites more: see --json")
    return "\n".join(lines) + "\n"


def _site_line(site: dict[str, Any]) -> str:
    """Return a site's place, its time before and after (its FLOPs where none is known), change."""
    module = clean_text(site["module_path"] or "(model)")
    op = clean_text(site["op"]).removeprefix("aten::")
    place = shorten(f"{module} {op}", _PLACE_COLUMNS)
    pad = " " * (_PLACE_COLUMNS - columns(place))
    is_timed = any(value is not None and value == value for value in site["time_us"])
    before, after = site["time_us"] if is_timed else site["flops"]
    form = duration if is_timed else _count
    texts = [UNKNOWN if value is None else form(value) for value in (before, after)]
    values = f"{texts[0]:>12}{texts[1]:>12}   {_ratio(before, after)}"
    return f"{place}{pad}{values:36} {site['change']}".rstrip()


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
