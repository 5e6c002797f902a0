"""Time that no op accounts for: long gaps on the host, kernels without an op."""

import math
from typing import Any

import numpy as np
import pandas as pd

from flopprof.units import duration, percent, shorten

GRAPH_KERNELS = 5  # named of a replayed graph
HIDDEN_GAP_FACTOR = 20  # × the run's median gap: ordinary Python between ops stays below it
HIDDEN_GAP_FRAC = 0.01  # of the run: what is shorter cannot matter
HIDDEN_GAP_US = 1000.0  # what is shorter, a tiny model's call has anyway: imports, first use


def hidden_gaps(ops: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """Return the gaps too long to be ordinary host overhead (rule 7)."""
    return gaps[gaps["duration_us"] > max(HIDDEN_GAP_US, *_gap_limits(ops, gaps))]


def lasting_gaps(gaps: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """Return `gaps` no longer than they were in another trace of the same call.

    A model's own work takes its time each time; an interruption by the machine hits elsewhere. The
    n-th gap of a module call in one trace is the n-th in the other.
    """
    keys = [gaps["call_id"], gaps.groupby("call_id").cumcount()]
    other = again["duration_us"].set_axis(
        pd.MultiIndex.from_arrays([again["call_id"], again.groupby("call_id").cumcount()])
    )
    found = other.reindex(pd.MultiIndex.from_arrays(keys)).to_numpy()
    return gaps.assign(duration_us=np.fmin(gaps["duration_us"].to_numpy(), found))


def _gap_limits(ops: pd.DataFrame, gaps: pd.DataFrame) -> tuple[float, float]:
    """Return the two lengths a hidden gap exceeds: × the median gap, and a share of the run."""
    if not len(gaps):
        return math.inf, math.inf
    start = min(gaps["start_us"].min(), ops["start_us"].min())
    ends = (gaps["start_us"] + gaps["duration_us"]).max(), (ops["start_us"] + ops["cpu_us"]).max()
    run_us = np.nanmax(ends) - start
    return HIDDEN_GAP_FACTOR * gaps["duration_us"].median(), HIDDEN_GAP_FRAC * run_us


def gap_rows(ops: pd.DataFrame, gaps: pd.DataFrame, types: dict[str, str]) -> list[dict[str, Any]]:
    """Return a row per place in the model where hidden gaps are."""
    by_median_us, by_run_us = _gap_limits(ops, gaps)
    rows = []
    places = hidden_gaps(ops, gaps).groupby(["module_path", "before_op"], sort=False)
    for (path, before), group in places:
        longest_us = group["duration_us"].max()
        reason = (
            f"{duration(longest_us)} {f'after {before}' if before else 'before the first op'} in "
            f"no op ({percent(longest_us / by_run_us * HIDDEN_GAP_FRAC)} of the run, median gap "
            f"{duration(by_median_us / HIDDEN_GAP_FACTOR)}): code that bypasses PyTorch?"
        )
        where = {"module_path": path, "module_type": types.get(str(path), "")}
        rows.append(_hidden_row("(gap)", group, reason) | where)
    return rows


def kernel_rows(kernels: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row per kernel name that no op launched, and one per graph that was replayed."""
    orphans = kernels[(kernels["op_id"] == -1) & (kernels["kind"] == "compute")]
    rows = []
    why = "kernel that no op accounts for: its launch is not in the trace, or in no op"
    loose = orphans[orphans["graph_id"] == -1]
    for name, group in loose.groupby("kernel", sort=False, observed=True):
        rows.append(_hidden_row("(kernels)", group, why) | {"input_shapes": str(name)})
    for graph, group in orphans[orphans["graph_id"] != -1].groupby("graph_id", sort=False):
        why = f"replay of graph {graph}, whose ops ran at capture; {_most_time(group)}"
        rows.append(_hidden_row("(kernels)", group, why) | {"input_shapes": f"graph {graph}"})
    return rows


def name_kernels(sites: dict[str, Any], ops: pd.DataFrame, kernels: pd.DataFrame) -> None:
    """Add to the reason of compiled or foreign code of unknown FLOPs which kernels it launched."""
    unknown = np.isnan(sites["flops"]) & np.isin(sites["verdict"], ("fused", "extension"))
    wanted = set(sites["op"][unknown])
    computing = kernels[(kernels["kind"] == "compute") & (kernels["op_id"] >= 0)]
    launcher = ops["op"].astype("str").to_numpy()[computing["op_id"]]
    mine = np.isin(launcher, list(wanted))
    names = {
        op: _most_time(group) for op, group in computing[mine].groupby(launcher[mine], sort=False)
    }
    for row in np.flatnonzero(unknown):
        if sites["op"][row] in names:
            sites["reason"][row] += f"; {names[sites['op'][row]]}"


def _most_time(kernels: pd.DataFrame) -> str:
    """Return the names of the kernels that took most of the time of these, with their shares."""
    times = kernels.groupby("kernel", observed=True)["duration_us"].sum().nlargest(GRAPH_KERNELS)
    whole = kernels["duration_us"].sum() or math.nan
    names = [f"{shorten(str(name), 60)} {percent(us / whole)}" for name, us in times.items()]
    return f"most time: {'; '.join(names)}"


def _hidden_row(op: str, group: pd.DataFrame, reason: str) -> dict[str, Any]:
    row = {"op": op, "phase": "forward", "kind": "unknown", "flops_source": "none"}
    time_us = group["duration_us"].sum()
    return row | {"calls": len(group), "time_us": time_us, "verdict": "hidden", "reason": reason}
