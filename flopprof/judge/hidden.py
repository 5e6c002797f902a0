"""Time that no op accounts for: long gaps on the host, kernels without an op."""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from flopprof.formulas.kernels import kernel_work
from flopprof.judge.reasons import Reason, because
from flopprof.judge.spread import TracedCall, spread
from flopprof.units import duration, percent, shorten

# A gap between ops is hidden work where it is longer than each of these three.
HIDDEN_GAP_FACTOR = 20  # × the run's median gap: ordinary Python between ops stays below it
HIDDEN_GAP_FRAC = 0.01  # of the run: what is shorter cannot matter
HIDDEN_GAP_US = 1000.0  # what is shorter, a tiny model's call has anyway: imports, first use

TURN_US = 10_000.0  # others rarely keep a core for longer at once; beyond it, it is ours
_ANYWHERE = "(any op)"  # before which a gap of code that computes past PyTorch lies
GRAPH_KERNELS = 5  # named in a reason, those of most time
_NAME_WIDTH = 60  # columns of a kernel's name in a reason


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
    if not call.foreign:
        return []
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


class GapSum(NamedTuple):
    """Hidden gaps at one place in the model.

    Attributes:
        module_path: The innermost range around them.
        before_op: The op before them; "(any op)" for code that computes past PyTorch.
        calls: How many they are.
        time_us: Their time.
        longest_us: The longest one's.
        reason: Why they are taken for hidden work.
    """

    module_path: str
    before_op: str
    calls: int
    time_us: float
    longest_us: float
    reason: Reason

    def plus(self, other: "GapSum") -> "GapSum":
        """Return both, at the same place, as one."""
        longest = other if other.longest_us > self.longest_us else self
        return longest._replace(
            calls=self.calls + other.calls, time_us=self.time_us + other.time_us
        )


def gap_sums(call: TracedCall) -> list[GapSum]:
    """Return the hidden gaps of a traced call, one for each place in the model."""
    limits = _gap_limits(call.ops, call.gaps)
    gaps = hidden_gaps(call)
    anywhere = gaps["module_path"].isin(list(call.foreign))
    before_op = gaps["before_op"].astype(object).where(~anywhere, _ANYWHERE)
    places = gaps.groupby([gaps["module_path"].astype(object), before_op], sort=False)
    sums = []
    for (path, before), group in places:
        times_us = group["duration_us"]
        reason = _gap_reason(group, str(before), limits)
        sums.append(
            GapSum(
                module_path=str(path),
                before_op=str(before),
                calls=len(group),
                time_us=float(times_us.sum()),
                longest_us=float(times_us.max()),
                reason=reason,
            )
        )
    return sums


def gap_rows(calls: Sequence[Sequence[GapSum]], types: dict[str, str]) -> list[dict[str, Any]]:
    """Return a row per place in the model where hidden gaps are, in most of the traced calls.

    A model's own work takes its time each time; an interruption by the machine hits elsewhere.

    Args:
        calls: The gaps of each traced call.
        types: Path of a module → its class.
    """
    times_of: dict[tuple[str, str], list[float]] = defaultdict(list)
    first_of: dict[tuple[str, str], GapSum] = {}
    for gap in chain.from_iterable(calls):
        place = (gap.module_path, gap.before_op)
        times_of[place].append(gap.time_us)
        first_of.setdefault(place, gap)
    rows = []
    for place, times_us in times_of.items():
        if len(times_us) <= len(calls) / 2:
            continue
        first = first_of[place]
        reason = first.reason
        times = {name: values[0] for name, values in spread(np.array([times_us])).items()}
        if len(calls) > 1:
            text = f"{reason.text}; in {len(times_us)} of {len(calls)} traced calls"
            reason = reason._replace(text=text)
        path = first.module_path
        where = {"module_path": path, "module_type": types.get(path, "")}
        row = _hidden_row("(gap)", first.calls, times["time_us"], reason)
        rows.append(row | times | where)
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


def kernel_rows(calls: Sequence[pd.DataFrame]) -> list[dict[str, Any]]:
    """Return a row per kernel name that no op launched, and one per graph that was replayed.

    They are those of the first call; their times are those of all.

    Args:
        calls: What `orphan_sums` returns of each traced call.
    """
    orphans, *others = calls
    sums = [other.groupby("place", sort=False)["time_us"].sum() for other in others]
    rows = []
    for place, group in orphans.groupby("place", sort=False):
        launches = int(group["calls"].sum())
        graph = group["graph_id"].iloc[0]
        reason = because("no_launch")
        if graph != -1:
            reason = because("graph_replay", graph=graph, kernels=_most_time(group))
        time_us = group["time_us"].sum()
        samples = np.array([[time_us, *(other.get(place, math.nan) for other in sums)]])
        times = {name: values[0] for name, values in spread(samples).items()}
        row = _hidden_row("(kernels)", launches, time_us, reason) | {"input_shapes": str(place)}
        if graph == -1:
            row |= _by_formula(str(place), launches)
        rows.append(row | times)
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


def orphan_sums(kernels: pd.DataFrame) -> pd.DataFrame:
    """Return the compute kernels that no op launched, those of graphs last, as sums.

    Columns: `place` (the site: a kernel's name, or a graph), `graph_id`, `kernel`, `calls`,
    `time_us`.
    """
    is_orphan = (kernels["op_id"] == -1) & (kernels["kind"] == "compute")
    orphans = kernels.loc[is_orphan, ["graph_id", "kernel", "duration_us"]]
    groups = orphans.groupby(["graph_id", "kernel"], sort=False, observed=True)["duration_us"]
    sums = groups.agg(calls="size", time_us="sum").reset_index()
    graph = "graph " + sums["graph_id"].astype(str)
    kernel = sums["kernel"].astype(str)
    place = kernel.where(sums["graph_id"] == -1, graph)
    placed = sums.assign(place=place.astype(object), kernel=kernel.astype(object))
    return placed.sort_values(
        "graph_id", key=lambda graph: graph.clip(upper=0), kind="stable", ignore_index=True
    )


def name_kernels(sites: dict[str, Any], kernels: pd.DataFrame) -> None:
    """Add to the reason of compiled or foreign code of unknown FLOPs which kernels it launched.

    Args:
        sites: Columns of the sites, whose `reason` is added to.
        kernels: Table KERNEL_SUMS of these sites.
    """
    unknown = np.isnan(sites["flops"]) & np.isin(sites["verdict"], ("fused", "extension"))
    if not unknown.any():
        return
    unknown_ops = set(sites["op"][unknown])
    computing = kernels[(kernels["kind"] == "compute") & (kernels["site_id"] >= 0)]
    launcher = np.asarray(sites["op"], dtype=object)[computing["site_id"]]
    mine = np.isin(launcher, list(unknown_ops))
    by_op = computing[mine].groupby(launcher[mine], sort=False)
    names = {op: _most_time(group) for op, group in by_op}
    for row in np.flatnonzero(unknown):
        if sites["op"][row] in names:
            sites["reason"][row] += f"; {names[sites['op'][row]]}"


def _most_time(kernels: pd.DataFrame) -> str:
    """Return the names of the kernels that took most of the time of these, with their shares."""
    times = kernels.groupby("kernel", observed=True)["time_us"].sum().nlargest(GRAPH_KERNELS)
    whole = kernels["time_us"].sum() or math.nan
    names = []
    for name, time_us in times.items():
        names.append(f"{shorten(str(name), _NAME_WIDTH)} {percent(time_us / whole)}")
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
