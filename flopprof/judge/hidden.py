"""Time that no op accounts for: long gaps on the host, kernels without an op."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from flopprof.formulas.kernels import kernel_work
from flopprof.judge.reasons import Reason, because
from flopprof.judge.spread import TracedCall, spread
from flopprof.units import duration, percent, shorten

GRAPH_KERNELS = 5  # named of a replayed graph
HIDDEN_GAP_FACTOR = 20  # × the run's median gap: ordinary Python between ops stays below it
HIDDEN_GAP_FRAC = 0.01  # of the run: what is shorter cannot matter
TURN_US = 10_000.0  # others rarely keep a core for longer at once; beyond it, it is ours
_ANYWHERE = "(any op)"  # before which a gap of code that computes past PyTorch lies
HIDDEN_GAP_US = 1000.0  # what is shorter, a tiny model's call has anyway: imports, first use


def hidden_gaps(call: TracedCall) -> pd.DataFrame:
    """Return the gaps too long to be ordinary host overhead (rule 7), or waiting for a core.

    Of modules whose own code computes past PyTorch every gap is hidden work.
    """
    ordinary_us = max(HIDDEN_GAP_US, *_gap_limits(call.ops, call.gaps))
    turn_us = min(call.waited_us, TURN_US)
    is_long = call.gaps["duration_us"] > ordinary_us + turn_us
    return call.gaps[is_long | _of_foreign(call)]


def _of_foreign(call: TracedCall) -> "pd.Series[bool]":
    is_foreign = call.gaps["module_path"].isin(list(call.foreign))
    return is_foreign & (call.gaps["duration_us"] > 0)


def foreign_rows(call: TracedCall, module_calls: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row for each module whose own code computes past PyTorch, of a call not timed."""
    calls = module_calls["module_path"].value_counts()
    return [
        _hidden_row("(gap)", int(calls[path]), math.nan, because("foreign_code"))
        | {"module_path": path}
        for path in call.foreign
        if path in calls
    ]


def _gap_limits(ops: pd.DataFrame, gaps: pd.DataFrame) -> tuple[float, float]:
    """Return the two lengths a hidden gap exceeds: × the median gap, and a share of the run."""
    if not len(gaps):
        return math.inf, math.inf
    start = min(gaps["start_us"].min(), ops["start_us"].min())
    gaps_end = (gaps["start_us"] + gaps["duration_us"]).max()
    ops_end = (ops["start_us"] + ops["cpu_us"]).max()
    run_us = np.nanmax((gaps_end, ops_end)) - start
    return HIDDEN_GAP_FACTOR * gaps["duration_us"].median(), HIDDEN_GAP_FRAC * run_us


def gap_rows(calls: Sequence[TracedCall], types: dict[str, str]) -> list[dict[str, Any]]:
    """Return a row per place in the model where hidden gaps are, in most of the traced calls.

    A model's own work takes its time each time; an interruption by the machine hits elsewhere.
    """
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    reasons: dict[tuple[str, str], Reason] = {}
    counts: dict[tuple[str, str], int] = {}
    for call in calls:
        limits = _gap_limits(call.ops, call.gaps)
        gaps = hidden_gaps(call)
        anywhere = gaps["module_path"].isin(list(call.foreign))
        before_op = gaps["before_op"].astype(object).where(~anywhere, _ANYWHERE)
        places = gaps.groupby([gaps["module_path"], before_op], sort=False)
        for (path, before), group in places:
            place = (str(path), str(before))
            times[place].append(group["duration_us"].sum())
            reasons.setdefault(place, _gap_reason(group, place[1], limits))
            counts.setdefault(place, len(group))
    rows = []
    for place, times_us in times.items():
        if len(times_us) <= len(calls) / 2:
            continue
        whole = {name: values[0] for name, values in spread(np.array([times_us])).items()}
        if len(calls) > 1:
            text = f"{reasons[place].text}; in {len(times_us)} of {len(calls)} traced calls"
            reasons[place] = reasons[place]._replace(text=text)
        where = {"module_path": place[0], "module_type": types.get(place[0], "")}
        row = _hidden_row("(gap)", counts[place], whole["time_us"], reasons[place])
        rows.append(row | whole | where)
    return rows


def _gap_reason(group: pd.DataFrame, before: str, limits: tuple[float, float]) -> Reason:
    if before == _ANYWHERE:
        return because("foreign_gaps", whole=duration(group["duration_us"].sum()))
    by_median_us, by_run_us = limits
    longest_us = group["duration_us"].max()
    return because(
        "gap",
        longest=duration(longest_us),
        where=f"after {before}" if before else "before the first op",
        share=percent(longest_us / by_run_us * HIDDEN_GAP_FRAC),
        median=duration(by_median_us / HIDDEN_GAP_FACTOR),
    )


def kernel_rows(calls: Sequence[TracedCall]) -> list[dict[str, Any]]:
    """Return a row per kernel name that no op launched, and one per graph that was replayed.

    They are those of the first call; their times are those of all.
    """
    orphans, *others = (_orphans(call.kernels) for call in calls)
    sums = [other.groupby("place", sort=False)["duration_us"].sum() for other in others]
    rows = []
    for place, group in orphans.groupby("place", sort=False):
        reason = because("no_launch")
        if (graph := group["graph_id"].iloc[0]) != -1:
            reason = because("graph_replay", graph=graph, kernels=_most_time(group))
        time_us = group["duration_us"].sum()
        samples = np.array([[time_us, *(other.get(place, math.nan) for other in sums)]])
        whole = {name: values[0] for name, values in spread(samples).items()}
        row = _hidden_row("(kernels)", len(group), time_us, reason) | {"input_shapes": str(place)}
        if graph == -1:
            row |= _by_formula(str(place), len(group))
        rows.append(row | whole)
    return rows


def _by_formula(kernel: str, launches: int) -> dict[str, Any]:
    """Return what the user's formula of a kernel says of its launches; nothing without one."""
    work, failure = kernel_work(kernel)
    if work is None:
        return _judged(because("kernel_formula_raised", failure=failure)) if failure else {}
    matmul = launches * work.matmul_flops
    vector = launches * work.vector_flops
    if work.flops_at_most is not None:
        return {
            **_judged(because("kernel_bounded")),
            "matmul_flops_at_least": float(matmul),
            "vector_flops_at_least": float(vector),
            "flops_at_most": float(launches * work.flops_at_most),
        }
    return {
        **_judged(because("kernel_counted")),
        "kind": "other",
        "flops_source": "user",
        "flops": float(matmul + vector),
        "matmul_flops": float(matmul),
        "vector_flops": float(vector),
        "formula_flops": float(matmul + vector),
        "min_bytes": float(launches * work.min_bytes) if work.min_bytes else math.nan,
    }


def _orphans(kernels: pd.DataFrame) -> pd.DataFrame:
    """Return the compute kernels that no op launched, those of graphs last; `place` is the site."""
    orphans = kernels[(kernels["op_id"] == -1) & (kernels["kind"] == "compute")]
    graph = "graph " + orphans["graph_id"].astype(str)
    place = orphans["kernel"].astype(str).where(orphans["graph_id"] == -1, graph)
    placed = orphans.assign(place=place.astype(object))
    return placed.sort_values("graph_id", key=lambda graph: graph.clip(upper=0), kind="stable")


def name_kernels(sites: dict[str, Any], ops: pd.DataFrame, kernels: pd.DataFrame) -> None:
    """Add to the reason of compiled or foreign code of unknown FLOPs which kernels it launched."""
    unknown = np.isnan(sites["flops"]) & np.isin(sites["verdict"], ("fused", "extension"))
    unknown_ops = set(sites["op"][unknown])
    computing = kernels[(kernels["kind"] == "compute") & (kernels["op_id"] >= 0)]
    launcher = ops["op"].astype("str").to_numpy()[computing["op_id"]]
    mine = np.isin(launcher, list(unknown_ops))
    by_op = computing[mine].groupby(launcher[mine], sort=False)
    names = {op: _most_time(group) for op, group in by_op}
    for row in np.flatnonzero(unknown):
        if sites["op"][row] in names:
            sites["reason"][row] += f"; {names[sites['op'][row]]}"


def _most_time(kernels: pd.DataFrame) -> str:
    """Return the names of the kernels that took most of the time of these, with their shares."""
    times = kernels.groupby("kernel", observed=True)["duration_us"].sum().nlargest(GRAPH_KERNELS)
    whole = kernels["duration_us"].sum() or math.nan
    names = [f"{shorten(str(name), 60)} {percent(us / whole)}" for name, us in times.items()]
    return f"most time: {'; '.join(names)}"


def _hidden_row(op: str, calls: int, time_us: float, reason: Reason) -> dict[str, Any]:
    row = {"op": op, "phase": "forward", "kind": "unknown", "flops_source": "none"}
    return row | {"calls": calls, "time_us": time_us} | _judged(reason)


def _judged(reason: Reason) -> dict[str, Any]:
    """Return the columns of SITES that a conclusion fills."""
    return {"verdict": reason.verdict, "reason_code": reason.code, "reason": reason.text}


def bound_by_all_cores(
    sites: pd.DataFrame, rooflines: pd.DataFrame, *, dtype: str, cores: int, threads: int
) -> pd.DataFrame:
    """Return `sites` with what is not PyTorch's own bounded by all cores, in the fastest dtype.

    The ceilings are of torch's threads and of the dtypes that its ops computed in. Hidden work and
    foreign ops, such as numpy's products, keep to neither: they may use every core, and float32
    where the model has float64, twice as fast. A rate grows no faster than the cores that share
    in it. Bounds by shapes stay.
    """
    products = rooflines[rooflines["valid"] & (rooflines["unit"] == "tensor")]
    peaks = products.groupby("dtype")["peak_flops_per_s"].max()
    if dtype not in peaks:
        return sites
    per_s = peaks.max() * max(cores / threads, 1.0)
    if set(peaks.index) <= {"float64", "complex128"}:
        per_s *= 2
    seconds = sites["time_us"] / 1e6
    is_foreign = sites["flops"].isna() & ~sites["op"].astype("str").str.startswith("aten::")
    by_time = is_foreign & (sites["flops_at_most"] == np.ceil(seconds * peaks[dtype]))
    most = np.where(by_time, np.ceil(seconds * per_s), sites["flops_at_most"])
    return sites.assign(flops_at_most=most)
