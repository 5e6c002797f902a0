"""Add up what a run holds: sites in all, by module, op, phase; ops and kernels of a job."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from flopprof.tables import KERNEL_SUMS, OP_SUMS, codes

PHASES = ("forward", "backward", "recompute", "optimizer")
"""In the order in which reports have them."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the sites of a run. Unknown figures are NaN, never 0.

    Attributes:
        matmul_flops: FLOPs of contractions that were counted, and lower bounds of others.
        vector_flops: All other FLOPs that were counted, and lower bounds of others.
        flops: The sum of both: a lower bound where coverage is below 1.
        flops_at_most: Upper bound: unknown and hidden time at the matmul ceiling; NaN without one.
        coverage_frac: Share of time spent in sites whose FLOPs are known, times the share of FLOPs
            that the trace has where hooks counted work that is not in it; NaN in a pure count.
        coverage_calls_frac: Share of op calls whose FLOPs are known; NaN without any.
        wall_us: Median time of a bare call; NaN in a pure count.
        untimed_flops: The part of `flops` that has no time in the trace: launched and not run,
            captured in a graph, or on the host of a device. No rate is made of it.
    """

    matmul_flops: int
    vector_flops: int
    flops: int
    flops_at_most: float
    coverage_frac: float
    coverage_calls_frac: float
    wall_us: float
    untimed_flops: int

    @property
    def flops_per_s(self) -> float:
        """FLOPs over the median wall time of a bare call; NaN without a time."""
        return self.flops / (self.wall_us / 1e6) if self.wall_us > 0 else math.nan


def add_up(sites: pd.DataFrame, wall_us: float) -> Totals:
    """Return the totals of `sites` (table SITES)."""
    flops = sites["flops"].to_numpy()
    time_us = sites["time_us"].to_numpy()
    calls = sites["calls"].to_numpy()
    is_known = ~np.isnan(flops)
    exact_matmul = _exact_sum(sites["matmul_flops"], is_known)
    exact_vector = _exact_sum(sites["vector_flops"], is_known)
    matmul = exact_matmul + int(np.nansum(sites["matmul_flops_at_least"].to_numpy()))
    vector = exact_vector + int(np.nansum(sites["vector_flops_at_least"].to_numpy()))
    extra = float(sites["flops_at_most"].to_numpy()[~is_known].sum())
    has_time = ~np.isnan(time_us)
    spent_us = float(time_us[has_time].sum())
    covered_us = float(np.nansum(time_us[is_known]))
    if is_known.any() and not (is_known & has_time).any():
        covered_us = math.nan
    is_not_run = (sites["verdict"] == "not_run").to_numpy()
    missing = float(np.nansum(sites["hook_flops"].to_numpy()[is_not_run]))
    total = matmul + vector
    there_frac = total / (total + missing) if missing > 0 else 1.0
    called = calls.sum()
    return Totals(
        matmul_flops=matmul,
        vector_flops=vector,
        flops=total,
        flops_at_most=exact_matmul + exact_vector + extra,
        coverage_frac=covered_us / spent_us * there_frac if spent_us > 0 else math.nan,
        coverage_calls_frac=calls[is_known].sum() / called if called else math.nan,
        wall_us=wall_us,
        untimed_flops=int(flops[is_known & (time_us == 0)].sum()),
    )


def _exact_sum(counts: pd.Series, is_known: np.ndarray) -> int:
    """Return the sum of the counts that are known, as integers: floats would round it."""
    return sum(map(int, counts.to_numpy()[is_known]))


@dataclass(frozen=True, slots=True)
class Measured:
    """What hardware's counters add to the counts: of sites whose FLOPs are not known.

    Attributes:
        flops: FLOPs executed in them: these enter no count.
        coverage_frac: Their share of the time, beside `Totals.coverage_frac`; NaN without times.
        sites: How many they are.
        compared_frac: Share of the time in sites of which counters tell FLOPs or a part of them.
    """

    flops: int
    coverage_frac: float
    sites: int
    compared_frac: float


def add_up_measured(sites: pd.DataFrame) -> Measured | None:
    """Return what counters measured of sites that nobody counts; None where none were joined."""
    if "executed_flops" not in sites:
        return None
    measured = sites[sites["flops"].isna() & sites["executed_flops"].notna()]
    parts = ["executed_matmul_flops", "executed_vector_flops", "executed_int_ops"]
    compared = sites[sites[parts].notna().any(axis=1)]
    time_us = sites["time_us"].sum(min_count=1)
    is_timed = time_us > 0
    return Measured(
        flops=sum(map(int, measured["executed_flops"])),
        coverage_frac=measured["time_us"].sum() / time_us if is_timed else math.nan,
        sites=len(measured),
        compared_frac=compared["time_us"].sum() / time_us if is_timed else math.nan,
    )


_EXECUTED = ("executed_flops", "executed_matmul_flops", "dram_bytes", "l2_bytes", "l1_bytes")


def executed_inside(sites: pd.DataFrame, paths: list[str]) -> dict[str, list[float]]:
    """Return what counters measured inside each module, as far as it is known.

    No columns where no counters were joined; NaN for a module of which nothing was measured.

    Args:
        sites: Table SITES.
        paths: Of modules.
    """
    names = [name for name in _EXECUTED if name in sites]
    sums = sites.groupby("module_path", observed=True)[names].sum(min_count=1) if names else sites
    inside: dict[str, list[float]] = {}
    for name in names:
        own = dict(zip(sums.index.astype(str), sums[name], strict=True))
        column = []
        for path in paths:
            parts = [value for inner, value in own.items() if _is_inside(inner, path)]
            column.append(pd.Series(parts, dtype=float).sum(min_count=1))
        inside[name] = column
    return inside


def _is_inside(path: str, around: str) -> bool:
    """Return whether a module is another one or lies in it; all lie in the model, ""."""
    return not around or path == around or path.startswith(f"{around}.")


_FLOPS = ["matmul_flops", "vector_flops", "flops"]
_OF_A_MODULE = [*_FLOPS, "time_us", "unknown_sites"]


def sums_by_module(sites: pd.DataFrame, module_calls: pd.DataFrame) -> pd.DataFrame:
    """Return FLOPs and time per module, its own (`self_…`) and with all modules inside it.

    `unknown_sites` counts what inside a module has no known FLOPs and is left out of the sums.

    Args:
        sites: Table SITES.
        module_calls: Table MODULE_CALLS.
    """
    types = _module_types(sites, module_calls)
    frame = sites.assign(unknown_sites=sites["flops"].isna())
    sums = frame.groupby("module_path", observed=True)[_OF_A_MODULE].sum().astype(float)
    own = sums.reindex([*types], fill_value=0.0)
    inside = pd.DataFrame(_with_inner(own), index=own.index, columns=_OF_A_MODULE)
    calls = module_calls["module_path"].value_counts()
    columns: dict[str, Any] = {
        "module_path": [*types],
        "module_type": [*types.values()],
        "calls": [calls.get(path, 0) for path in types],
    }
    is_timed = bool(sites["time_us"].notna().any())
    for prefix, values in (("self_", own), ("", inside)):
        for name in _FLOPS:
            columns[prefix + name] = [int(flops) for flops in values[name]]
        columns[prefix + "time_us"] = values["time_us"].to_list() if is_timed else math.nan
    columns["unknown_sites"] = [int(count) for count in inside["unknown_sites"]]
    table = pd.DataFrame(columns)
    if not types:
        return table.astype(dict.fromkeys(table.columns[2:], float))
    return table.assign(**executed_inside(sites, [*types]))


def _module_types(sites: pd.DataFrame, module_calls: pd.DataFrame) -> dict[str, str]:
    """Return the type of each module that was called or has a site, by path."""
    called = zip(module_calls["module_path"], module_calls["module_type"], strict=True)
    with_sites = zip(sites["module_path"], sites["module_type"], strict=True)
    return dict(called) | dict(with_sites)


def _with_inner(own: pd.DataFrame) -> np.ndarray:
    """Return the modules' own sums with those of all modules inside them; paths are the index."""
    row_of = {path: row for row, path in enumerate(own.index)}
    values = own.to_numpy()
    sums: np.ndarray = np.zeros_like(values)
    for path, row in row_of.items():
        for around in _paths_around(path):
            if around in row_of:
                sums[row_of[around]] += values[row]
    return sums


def _paths_around(path: str) -> Iterator[str]:
    """Yield "", "a", "a.b" for "a.b": the model, the modules around this one, and itself."""
    names = path.split(".") if path else []
    for depth in range(len(names) + 1):
        yield ".".join(names[:depth])


def sums_by_op(sites: pd.DataFrame) -> pd.DataFrame:
    """Return calls and FLOPs per op name, most FLOPs first; NaN where unknown."""
    groups = sites.groupby("op", sort=False)[["calls", *_FLOPS]]
    sums = groups.agg(lambda values: values.sum(skipna=False))
    return sums.sort_values("flops", ascending=False, kind="stable").reset_index()


def sums_by_phase(sites: pd.DataFrame) -> pd.DataFrame:
    """Return FLOPs and time per phase, of `PHASES` those that there are.

    `unknown_sites` counts the sites that have no known FLOPs and are left out of the sums.
    """
    groups = sites.groupby("phase", sort=False, observed=True)
    sums = groups[["calls", *_FLOPS, "time_us"]].sum(min_count=1)
    sums[_FLOPS] = sums[_FLOPS].fillna(0.0)
    sums["unknown_sites"] = sites["flops"].isna().groupby(sites["phase"]).sum()
    order = [phase for phase in PHASES if phase in sums.index]
    return sums.loc[order].reset_index()


def computing_in(kernels: pd.DataFrame, size: int) -> np.ndarray:
    """Return which rows of the table KERNELS are compute kernels of the first `size` ops."""
    op = kernels["op_id"].to_numpy()
    computing: np.ndarray = (kernels["kind"] == "compute").to_numpy() & (op >= 0) & (op < size)
    return computing


def kernel_sums(kernels: pd.DataFrame, site_of: np.ndarray) -> pd.DataFrame:
    """Return the table KERNEL_SUMS of a run.

    Args:
        kernels: Table KERNELS.
        site_of: Each op's site; -1 for none.
    """
    if not len(kernels):
        return KERNEL_SUMS.empty()
    site = np.append(site_of, -1)[kernels["op_id"].to_numpy()]  # the last: of kernels without an op
    kernel, kernel_names = codes(kernels["kernel"])
    kind, kind_names = codes(kernels["kind"])
    number, first, _ = numbered([site, kernel, kind])
    return KERNEL_SUMS.frame(
        {
            "site_id": site[first],
            "kernel": kernel_names[kernel[first]],
            "kind": kind_names[kind[first]],
            "calls": np.bincount(number),
            "time_us": np.bincount(number, kernels["duration_us"].to_numpy()),
        }
    )


def op_sums(ops: pd.DataFrame, *, on_device: bool) -> pd.DataFrame:
    """Return the table OP_SUMS of a run.

    Args:
        ops: Table OPS.
        on_device: Whether times are a device's.
    """
    op, names = codes(ops["op"])
    kind, kinds = codes(ops["kind"])
    rows = np.flatnonzero(~np.isin(kinds, ("free", "unknown"))[kind])
    number, first, _ = numbered([op[rows]])
    if not len(rows):
        return OP_SUMS.empty()
    size = len(first)
    sums: dict[str, np.ndarray] = {"op": names[op[rows[first]]], "calls": np.bincount(number)}
    counted = ops["counted"].to_numpy()[rows]
    sums["counted_calls"] = np.bincount(number, weights=counted, minlength=size).astype(np.int64)
    for column in ("matmul_flops", "vector_flops"):
        # NaN where one of a group is not known.
        sums[column] = np.bincount(number, ops[column].to_numpy()[rows])
    time_us = ops["device_us" if on_device else "cpu_us"].to_numpy()[rows]
    for column, values in (
        ("flops_at_most", ops["flops_at_most"].to_numpy()[rows]),
        ("time_us", time_us),
    ):
        known_counts = np.bincount(number, ~np.isnan(values), size)
        total = np.bincount(number, np.nan_to_num(values, nan=0.0, posinf=np.inf), size)
        sums[column] = np.where(known_counts > 0, total, np.nan)
    return OP_SUMS.frame(sums).sort_values("op", ignore_index=True)


def numbered(columns: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each row's group by equal values, in order, and each group's first and last row."""
    number: Any = 0
    for column in columns:
        code, values = pd.factorize(column)
        number = pd.factorize(number * (len(values) + 1) + code)[0]
    rows = np.arange(len(number))
    groups = int(number.max(initial=-1)) + 1
    first = np.zeros(groups, dtype=np.int64)
    last = np.zeros(groups, dtype=np.int64)
    first[number[::-1]] = rows[::-1]
    last[number] = rows
    return number, first, last
