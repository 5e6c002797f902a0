"""What is other in one run than in another: conditions, totals, modules, ops and sites."""

import math
from typing import Any

import pandas as pd

from flopprof.provenance import plain
from flopprof.report import noise
from flopprof.report.conditions import differing_conditions, doubts_of
from flopprof.report.limits import peak_memory_bytes
from flopprof.report.noise import Timed
from flopprof.run import Run, whole

KEYS = ["op", "module_path", "phase"]
_TOTALS = ("matmul_flops", "vector_flops", "flops", "flops_at_most", "coverage_frac", "wall_us")
_SUMS = ["calls", "flops", "time_us"]
_SIDES = ("before", "after")
_SPREAD = ["time_p5_us", "time_p95_us"]


def compared(before: Run, after: Run) -> dict[str, Any]:
    """Return what differs between two runs, as `flopprof diff --json` prints it.

    `conditions` comes first: those that differ. `time` is the wall time of both with its spreads,
    `totals` and `figures` are name → before, after. `modules` (their own FLOPs and time, without
    those of modules inside), `ops` and `sites` are lists, those first whose time changed most.

    A site is one op, module path and phase here: batches and dtypes are what runs are compared for.
    Each entry has `calls`, `flops` and `time_us` as (before, after), None where the run has no such
    entry, NaN where unknown; `change`: added, removed, changed (calls or FLOPs), or same; and
    `time_change`: slower, faster, noise, or unknown (no time, or no spread).
    """
    judge = _Judge(before, after)
    runs = (before, after)
    return {
        "conditions": differing_conditions(before, after),
        "doubts": dict(zip(_SIDES, map(doubts_of, runs), strict=True)),
        "time": noise.described(before, after),
        "totals": {name: [_total(run, name) for run in runs] for name in _TOTALS},
        "figures": _paired(*(_figures(run) for run in runs)),
        "modules": judge.entries([_modules(run) for run in runs], ["module_path"]),
        "ops": judge.entries([run.sites for run in runs], ["op"]),
        "sites": judge.entries([run.sites for run in runs], KEYS),
    }


def _total(run: Run, name: str) -> Any:
    value = getattr(run.totals, name)
    return whole(value) if "flops" in name else value


def _figures(run: Run) -> dict[str, Any]:
    """Return the figures that are numbers, and the peak of memory where it is known."""
    figures = plain(run.figures)
    parameters = run.provenance.source.parameters
    figures["parameters"] = math.nan if parameters is None else parameters
    figures["peak_memory_bytes"] = peak_memory_bytes(run)
    return {name: value for name, value in figures.items() if not isinstance(value, dict)}


def _paired(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [earlier[name], later[name]] for name in earlier}


def _modules(run: Run) -> pd.DataFrame:
    """Return the sites, and a row without work per module that was called and has none."""
    calls = run.module_calls
    columns = ["module_path", *_SUMS, *_SPREAD, "samples"]
    sites = run.sites[columns].astype({"module_path": object})
    idle = calls[~calls["module_path"].isin(sites["module_path"])]
    if not len(idle):
        return sites
    nothing = dict.fromkeys(_SUMS, 0.0)
    is_timed = bool(sites["time_us"].notna().any())
    nothing |= dict.fromkeys(["time_us", *_SPREAD], 0.0 if is_timed else math.nan)
    rows = idle[["module_path"]].drop_duplicates().assign(**nothing, samples=-1)
    return pd.concat([sites, rows[columns]], ignore_index=True)


class _Judge:
    """Joins entries of two runs and judges each change of time."""

    def __init__(self, before: Run, after: Run) -> None:
        self.floor = noise.floor_frac(before, after, of_sites=True)
        whole_us = [run.sites["time_us"].sum(min_count=1) for run in (before, after)]
        self.least_us = noise.SHARE_FLOOR * float(pd.Series(whole_us).min())

    def entries(self, tables: list[pd.DataFrame], keys: list[str]) -> list[dict[str, Any]]:
        """Return an entry per key that one of the tables has, most change of time first."""
        earlier, later = (_sums(table, keys) for table in tables)
        joined = earlier.add_suffix("_before").join(later.add_suffix("_after"), how="outer")
        moved = pd.DataFrame(
            {
                name: (joined[f"{name}_after"].fillna(0) - joined[f"{name}_before"].fillna(0)).abs()
                for name in ("time_us", "flops")
            }
        )
        order = moved.sort_values(["time_us", "flops"], ascending=False, kind="stable").index
        rows = joined.loc[order].to_dict("records")
        return [
            self._entry(keys, key if isinstance(key, tuple) else (key,), row)
            for key, row in zip(order, rows, strict=True)
        ]

    def _entry(self, keys: list[str], key: tuple[Any, ...], row: dict[Any, Any]) -> dict[str, Any]:
        """Return an entry as `compared` lists it."""
        is_there = {side: not math.isnan(row[f"calls_{side}"]) for side in _SIDES}
        values = {
            name: [float(row[f"{name}_{side}"]) if is_there[side] else None for side in _SIDES]
            for name in _SUMS
        }
        place = dict(zip(keys, map(str, key), strict=True))
        times = [_timed(row, side) for side in _SIDES]
        changes = {"change": _change(is_there, values), "time_change": self._time_change(*times)}
        return place | changes | values

    def _time_change(self, before: Timed, after: Timed) -> str:
        """Return what `noise.significance` says, but noise for what hardly matters to the run."""
        significance = noise.significance(before, after, self.floor)
        is_small = abs(after.median_us - before.median_us) < self.least_us
        return noise.NOISE if significance != noise.UNKNOWN and is_small else significance


def _timed(row: dict[Any, Any], side: str) -> Timed:
    samples = row[f"samples_{side}"]
    return Timed(
        row[f"time_us_{side}"],
        row[f"time_p5_us_{side}"],
        row[f"time_p95_us_{side}"],
        0 if math.isnan(samples) else int(samples),
    )


def _sums(sites: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return the sums per key; one unknown part makes an unknown sum.

    Spreads add up as if all parts were slow together: a wide bound. The samples are the fewest of
    those of parts that have a time.
    """
    columns = [*_SUMS, *_SPREAD]
    is_known = sites[keys].join(sites[columns].notna())
    timed = sites[keys].join(sites["samples"].where(sites["samples"] >= 0))
    groups = {"sort": False, "observed": True}
    sums = sites.groupby(keys, **groups)[columns].sum().astype(float)
    sums = sums.where(is_known.groupby(keys, **groups)[columns].all())
    return sums.join(timed.groupby(keys, **groups)["samples"].min())


def _change(is_there: dict[str, bool], values: dict[str, list[float | None]]) -> str:
    if not is_there["after"]:
        return "removed"
    if not is_there["before"]:
        return "added"
    is_same = all(_are_equal(*values[name]) for name in ("calls", "flops"))
    return "same" if is_same else "changed"


def _are_equal(before: float | None, after: float | None) -> bool:
    """Return whether two known values are equal, or both are NaN."""
    if before is None or after is None:
        return before is after
    return before == after or (math.isnan(before) and math.isnan(after))
