"""Add up what a run holds: sites to totals; ops and kernels to what stands for them in a job."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from flopprof.tables import KERNEL_SUMS, OP_SUMS, codes


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
    counted = sites[sites["flops"].notna()]
    exact = sum(map(int, counted["matmul_flops"])) + sum(map(int, counted["vector_flops"]))
    matmul, vector = (
        sum(map(int, counted[c])) + int(sites[f"{c}_at_least"].sum())
        for c in ("matmul_flops", "vector_flops")
    )
    unknown = sites[sites["flops"].isna()]
    extra = unknown["flops_at_most"].sum(skipna=False) if len(unknown) else 0.0
    time_us = sites["time_us"].sum(min_count=1)
    called = sites["calls"].sum()
    covered_us = counted["time_us"].sum(min_count=1) if len(counted) else 0.0
    flops = matmul + vector
    missing = sites.loc[sites["verdict"] == "not_run", "hook_flops"].sum()
    there_frac = flops / (flops + missing) if missing > 0 else 1.0
    return Totals(
        matmul_flops=matmul,
        vector_flops=vector,
        flops=flops,
        flops_at_most=exact + extra,
        coverage_frac=covered_us / time_us * there_frac if time_us > 0 else math.nan,
        coverage_calls_frac=counted["calls"].sum() / called if called else math.nan,
        wall_us=wall_us,
        untimed_flops=int(counted.loc[counted["time_us"] == 0, "flops"].sum()),
    )


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
            parts = [v for p, v in own.items() if not path or p == path or p.startswith(path + ".")]
            column.append(pd.Series(parts, dtype=float).sum(min_count=1))
        inside[name] = column
    return inside


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
        sums[column] = np.bincount(
            number, ops[column].to_numpy()[rows]
        )  # NaN where one is not known
    time_us = ops["device_us" if on_device else "cpu_us"].to_numpy()[rows]
    for column, values in (
        ("flops_at_most", ops["flops_at_most"].to_numpy()[rows]),
        ("time_us", time_us),
    ):
        known = np.bincount(number, ~np.isnan(values), size)
        total = np.bincount(number, np.nan_to_num(values, nan=0.0, posinf=np.inf), size)
        sums[column] = np.where(known > 0, total, np.nan)
    return OP_SUMS.frame(sums).sort_values("op", ignore_index=True)


def numbered(columns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each row's group by equal values, in order, and each group's first and last row."""
    size = len(columns[0])
    number = np.zeros(size, dtype=np.int64)
    rows = np.arange(size)
    for column in columns:
        code, values = pd.factorize(column)
        number = pd.factorize(number * (len(values) + 1) + code)[0]
    groups = int(number.max(initial=-1)) + 1
    first = np.zeros(groups, dtype=np.int64)
    last = np.zeros(groups, dtype=np.int64)
    first[number[::-1]] = rows[::-1]
    last[number] = rows
    return number, first, last
