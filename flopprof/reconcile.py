"""Join hook counts with traced ops and give every row a verdict.

The comparison is per module call: the hook's self count against the formula counts of the counted
ops whose nearest range is that call. ARCHITECTURE.md, "Verdicts" and "Counting rules" 4 to 8.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from flopprof.formulas import COMPOSITE_OPS
from flopprof.formulas.external import find_op_formula
from flopprof.roofs import apply_rooflines, kernel_units
from flopprof.tables import MODULE_CALLS, OPS, SITES, VERDICTS
from flopprof.units import duration, percent, shorten
from flopprof.verdicts import (
    FIRST_INPUT_RULE,
    HOOKED_PHASES,
    agree_reason,
    hook_reason,
    judge_alone,
    pair,
    profiler_reason,
)

GRAPH_KERNELS = 5  # named of a replayed graph
HIDDEN_GAP_FACTOR = 20  # × the run's median gap: ordinary Python between ops stays below it
HIDDEN_GAP_FRAC = 0.01  # of the run: what is shorter cannot matter
HIDDEN_GAP_US = 1000.0  # what is shorter, a tiny model's call has anyway: imports, first use
_RANK = {verdict: rank for rank, verdict in enumerate(VERDICTS)}


@dataclass(slots=True)
class _Verdicts:
    """Verdict and reason per op row, filled in by the passes below."""

    verdict: list[str]
    reason: list[str]
    hook_flops: list[float]
    not_run: list[dict[str, Any]] = field(default_factory=list)
    by_hook: dict[int, tuple[float, float]] = field(default_factory=dict)  # the hook alone knows


def reconcile(
    module_calls: pd.DataFrame,
    ops: pd.DataFrame,
    gaps: pd.DataFrame,
    kernels: pd.DataFrame,
    rooflines: pd.DataFrame,
    *,
    dtype: str,
    never_called: Collection[str] = (),
    timed: bool = True,
) -> pd.DataFrame:
    """Return the sites (table SITES): every op, hidden stretch and uncalled work with a verdict.

    Args:
        module_calls: What the hooks counted; empty for a trace recorded elsewhere.
        ops: The traced ops.
        gaps: Stretches of host time in no op.
        kernels: Kernels on a device; empty on a CPU.
        rooflines: The device's ceilings; may be empty.
        dtype: The run's element type, whose matmul ceiling bounds what is unknown.
        never_called: Paths of the model's modules that no hook saw.
        timed: False for a pure count: no times, no hidden rows, no coverage.
    """
    MODULE_CALLS.check(module_calls)
    OPS.check(ops)
    on_device = timed and len(kernels) > 0
    walked, owner = _walked(ops)
    walked["time_us"] = _times(walked, kernels, on_device=on_device) if timed else math.nan
    walked["unit"] = kernel_units(walked, owner, kernels) if on_device else ""
    _settle_glue(walked)
    if timed:
        did = walked["counted"] | (walked["time_us"] > 0) | walked["flops_at_most"].notna()
        walked = walked[did].reset_index(drop=True)
    types = dict(zip(module_calls["module_path"], module_calls["module_type"], strict=True))
    verdicts = _judge(walked, module_calls, types, never_called)
    rows = _group(walked, verdicts, types)
    rows += verdicts.not_run
    if timed and not on_device:
        rows += _gap_rows(ops, gaps, types)
    if on_device:
        rows += _kernel_rows(kernels)
    return _finish(rows, rooflines, dtype=dtype, timed=timed, on_device=on_device)


def _walked(ops: pd.DataFrame) -> tuple[pd.DataFrame, list[int]]:
    """Return the ops that are counted or lie below no counted op (rule 4), and whose each op is.

    Their `profiler_flops` are summed over what is below them, and `profiler_differs` says whether
    profiler and formula differ there: compared op by op, like with like. The profiler's rule for
    `mul` and `add` (elements of the first input) is a known gap and no witness, nor is its count
    of complex products as real ones.
    """
    parents = ops["parent_op_id"].tolist()
    sums = ops["profiler_flops"].tolist()
    differs = (
        ops["profiler_flops"].notna()
        & ops["matmul_flops"].notna()
        & (ops["profiler_flops"] != ops["matmul_flops"])
        & ~ops["op"].isin(FIRST_INPUT_RULE)
        & ~ops["dtype"].astype("str").str.startswith("complex")
    ).tolist()
    owner = owners(ops)
    for op in range(len(parents) - 1, -1, -1):  # children come behind their parents
        parent = parents[op]
        if parent >= 0:
            differs[parent] = differs[parent] or differs[op]
            if not math.isnan(sums[op]):
                sums[parent] = sums[op] + (0 if math.isnan(sums[parent]) else sums[parent])
    walked = ops.assign(profiler_flops=sums, profiler_differs=differs)
    return walked[np.array(owner, dtype=int) == np.arange(len(ops))].reset_index(drop=True), owner


def owners(ops: pd.DataFrame) -> list[int]:
    """Return, for each op, the outermost counted op around it; itself where there is none."""
    counted, owner = ops["counted"].tolist(), list[int]()
    for op, parent in enumerate(ops["parent_op_id"].tolist()):
        within = parent >= 0 and (counted[parent] or owner[parent] != parent)
        owner.append(owner[parent] if within else op)
    return owner


def _times(walked: pd.DataFrame, kernels: pd.DataFrame, *, on_device: bool) -> pd.Series:
    """Return each walked op's time: with its subtree if counted, else its own alone."""
    if not on_device:
        return walked["cpu_us"].where(walked["counted"], walked["self_cpu_us"])
    compute = kernels[kernels["kind"] == "compute"]
    own = walked["op_id"].map(compute.groupby("op_id")["duration_us"].sum()).fillna(0.0)
    return walked["device_us"].fillna(0.0).where(walked["counted"], own)


def _settle_glue(walked: pd.DataFrame) -> None:
    """Mark as free what only calls other ops, such as einsum: they are walked for themselves."""
    glue = ~walked["counted"] & walked["flops_at_most"].isna() & walked["op"].isin(COMPOSITE_OPS)
    walked["kind"] = walked["kind"].astype("str").where(~glue, "free")
    walked["counted"] |= glue
    walked.loc[glue, ["matmul_flops", "vector_flops", "min_bytes"]] = 0.0


def _judge(
    walked: pd.DataFrame,
    module_calls: pd.DataFrame,
    types: dict[str, str],
    never_called: Collection[str],
) -> _Verdicts:
    """Return the verdict of every walked op, and what the hooks counted but nothing ran."""
    verdicts = _Verdicts([""] * len(walked), [""] * len(walked), [math.nan] * len(walked))
    hooked = len(module_calls) > 0
    if not hooked:
        verdicts.verdict, verdicts.reason = _judge_alike(walked)
        return verdicts
    rows = list(walked.itertuples(index=False))
    by_call: dict[int, list[int]] = defaultdict(list)
    calls_of_ops = _join_calls(walked, module_calls)
    for index, row in enumerate(rows):
        if row.phase in HOOKED_PHASES:
            by_call[calls_of_ops[index]].append(index)
    for call in module_calls.itertuples(index=False):
        hook = (call.self_hook_matmul_flops, call.self_hook_vector_flops)
        if not math.isnan(hook[0]):
            _judge_call(call, hook, by_call.get(call.call_id, []), rows, verdicts)
    for index, row in enumerate(rows):
        if not verdicts.verdict[index]:
            verdict, reason = judge_alone(row, hooked=True, types=types, never=never_called)
            verdicts.verdict[index], verdicts.reason[index] = verdict, reason
    return verdicts


def _judge_alike(walked: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return verdict and reason of each op of a trace without hooks; equal ones are judged once."""
    keys = ["op", "kind", "counted", "phase", "matmul_flops", "profiler_flops", "flops_at_most"]
    groups = walked.groupby([*keys, "profiler_differs"], dropna=False, observed=True, sort=False)
    number = groups.ngroup().to_numpy()
    firsts = walked[~pd.Series(number).duplicated().to_numpy()].itertuples(index=False)
    found = [judge_alone(row, hooked=False, types={}, never=()) for row in firsts]
    return [found[n][0] for n in number], [found[n][1] for n in number]


def _join_calls(walked: pd.DataFrame, module_calls: pd.DataFrame) -> list[int]:
    """Return each op's call_id among `module_calls`; -1 where the two passes took other paths.

    Both passes number calls by entry. If a path differs between them, the n-th call of a path in
    one is the n-th in the other.
    """
    ids: list[int] = walked["call_id"].tolist()
    paths: list[str] = walked["module_path"].tolist()
    hooked = dict(zip(module_calls["call_id"], module_calls["module_path"], strict=True))
    if all(call == -1 or hooked.get(call) == path for call, path in zip(ids, paths, strict=True)):
        return ids
    nth: dict[tuple[str, int], int] = {}
    for path, group in module_calls.groupby("module_path", sort=False):
        nth |= {(str(path), n): call for n, call in enumerate(group["call_id"])}
    order: dict[int, int] = {}
    seen: Counter[str] = Counter()
    for call, path in sorted({(c, p) for c, p in zip(ids, paths, strict=True) if c != -1}):
        order[call] = nth.get((path, seen[path]), -1)
        seen[path] += 1
    return [order.get(call, -1) for call in ids]


def _judge_call(
    call: Any, hook: tuple[float, float], indices: list[int], rows: list[Any], out: _Verdicts
) -> None:
    """Compare one module call's hook count with its ops, each class on its own."""
    working = [i for i in indices if rows[i].kind != "free"]
    lacking = [i for i in working if math.isnan(rows[i].matmul_flops)]
    if lacking:  # no sum to compare with
        if len(working) == 1 and sum(hook) > 0:
            op = working[0]  # which is the whole call
            out.by_hook[op], out.hook_flops[op], out.verdict[op] = hook, sum(hook), "unknown"
            out.reason[op] = f"the FLOPs are the hook's alone; no formula for {rows[op].op} agrees"
        return
    sums = (
        sum(rows[i].matmul_flops for i in working),
        sum(rows[i].vector_flops for i in working),
    )
    if not working and sum(hook) > 0:
        out.not_run.append(_not_run_row(call, hook))
        return
    agreeing = working
    if sums != hook:
        # Parametrised or wrapped: one op is the module's own work, the others were added to it.
        exact = [i for i in working if (rows[i].matmul_flops, rows[i].vector_flops) == hook]
        agreeing = exact if len(exact) == 1 and sum(hook) > 0 else []
    for index in agreeing:
        differs = rows[index].profiler_differs
        out.verdict[index] = "disagrees" if differs else "agrees"
        out.reason[index] = profiler_reason(rows[index]) if differs else agree_reason(rows[index])
    if len(working) == 1 or len(agreeing) == 1:
        out.hook_flops[(agreeing or working)[0]] = sum(hook)
    if not agreeing:
        for index in working:
            out.verdict[index] = "disagrees"
            out.reason[index] = hook_reason(call.module_type, hook, sums, len(working))


def _not_run_row(call: Any, hook: tuple[float, float]) -> dict[str, Any]:
    return {
        "op": "(not run)",
        "module_path": call.module_path,
        "module_type": call.module_type,
        "phase": "forward",
        "input_shapes": call.input_shapes,
        "dtype": call.dtype,
        "calls": 1,
        "kind": "unknown",
        "hook_flops": sum(hook),
        "flops_source": "none",
        "time_us": 0.0,
        "verdict": "not_run",
        "reason": f"the hook counted {pair(*hook)}; no op of this call is in the trace",
    }


def _group(
    walked: pd.DataFrame, verdicts: _Verdicts, types: dict[str, str]
) -> list[dict[str, Any]]:
    """Return one row per site: the calls of one op, path, phase, shapes and dtype together."""
    walked = walked.assign(flops_source=walked["op"].map(_sources(walked["op"])))
    walked.loc[walked["matmul_flops"].isna(), "flops_source"] = "none"
    for row, hook in verdicts.by_hook.items():
        walked.loc[row, ["matmul_flops", "vector_flops"]] = hook
        walked.loc[row, "flops_source"] = "hook"
    frame = walked.assign(
        flops=walked["matmul_flops"] + walked["vector_flops"],
        rank=[_RANK[verdict] for verdict in verdicts.verdict],
        reason=verdicts.reason,
        hook_flops=verdicts.hook_flops,
    )
    keys = ["op", "module_path", "phase", "input_shapes", "dtype", "kind", "flops_source", "unit"]
    frame = frame.sort_values("rank", kind="stable", ignore_index=True)
    number, first, last = _numbered(frame, keys)
    calls = np.bincount(number)
    sites = frame.loc[first, keys].astype("str").reset_index(drop=True)
    sums = ["flops", "matmul_flops", "vector_flops", "hook_flops", "min_bytes", "time_us"]
    # One unknown call makes the sum unknown: count the values behind each sum.
    for column in (*sums, "profiler_flops", "flops_at_most"):
        values = frame[column].to_numpy(dtype=float)
        known = np.bincount(number, weights=~np.isnan(values))
        total = np.bincount(number, weights=np.nan_to_num(values, nan=0.0, posinf=np.inf))
        sites[column] = np.where(known >= (calls if column in sums else 1), total, np.nan)
    sites["calls"] = calls
    sites["rank"], sites["reason"] = (frame[c].to_numpy()[last] for c in ("rank", "reason"))
    sites["verdict"] = [VERDICTS[rank] for rank in sites.pop("rank")]
    sites["formula_flops"] = sites["flops"].where(sites["flops_source"] != "hook")
    sites["module_type"] = [types.get(path, "") for path in sites["module_path"]]
    return [{str(k): v for k, v in row.items()} for row in sites.to_dict("records")]


def _numbered(frame: pd.DataFrame, keys: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each row's group by equal `keys`, in order, and each group's first and last row."""
    codes = np.zeros(len(frame), dtype=np.int64)
    for key in keys:
        code, values = pd.factorize(frame[key])
        codes = pd.factorize(codes * (len(values) + 1) + code)[0]
    rows = np.arange(len(frame))
    groups = int(codes.max(initial=-1)) + 1
    first, last = np.zeros(groups, dtype=np.int64), np.zeros(groups, dtype=np.int64)
    first[codes[::-1]], last[codes] = rows[::-1], rows
    return codes, first, last


def _sources(ops: pd.Series) -> dict[str, str]:
    return {op: find_op_formula(op)[1] for op in ops.unique()}


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


def _gap_rows(ops: pd.DataFrame, gaps: pd.DataFrame, types: dict[str, str]) -> list[dict[str, Any]]:
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


def _kernel_rows(kernels: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row per kernel name that no op launched, and one per graph that was replayed."""
    orphans = kernels[(kernels["op_id"] == -1) & (kernels["kind"] == "compute")]
    rows = []
    why = "kernel that no op accounts for: its launch is not in the trace, or in no op"
    loose = orphans[orphans["graph_id"] == -1]
    for name, group in loose.groupby("kernel", sort=False, observed=True):
        rows.append(_hidden_row("(kernels)", group, why) | {"input_shapes": str(name)})
    for graph, group in orphans[orphans["graph_id"] != -1].groupby("graph_id", sort=False):
        times = group.groupby("kernel", observed=True)["duration_us"].sum().nlargest(GRAPH_KERNELS)
        whole = group["duration_us"].sum()
        names = [f"{shorten(str(name), 60)} {percent(us / whole)}" for name, us in times.items()]
        why = f"replay of graph {graph}, whose ops ran at capture; most time: {'; '.join(names)}"
        rows.append(_hidden_row("(kernels)", group, why) | {"input_shapes": f"graph {graph}"})
    return rows


def _hidden_row(op: str, group: pd.DataFrame, reason: str) -> dict[str, Any]:
    row = {"op": op, "phase": "forward", "kind": "unknown", "flops_source": "none"}
    time_us = group["duration_us"].sum()
    return row | {"calls": len(group), "time_us": time_us, "verdict": "hidden", "reason": reason}


def _finish(
    rows: list[dict[str, Any]],
    rooflines: pd.DataFrame,
    *,
    dtype: str,
    timed: bool,
    on_device: bool,
) -> pd.DataFrame:
    """Return the rows as the table SITES, with rates, rooflines and bounds."""
    sites = SITES.from_rows(rows)
    if not timed:
        sites["time_us"] = math.nan
    time_us, moved = (sites[c].where(sites[c] > 0) for c in ("time_us", "min_bytes"))
    sites["time_share_frac"] = sites["time_us"] / (time_us.sum(min_count=1))
    sites["achieved_flops_per_s"] = sites["flops"] / (time_us / 1e6)
    sites["intensity_flops_per_byte"] = sites["flops"] / moved
    by_kernel = pd.Series([row.get("unit", "") for row in rows], dtype="str")
    apply_rooflines(sites, rooflines, dtype, by_kernel=by_kernel, on_device=on_device)
    sites = sites.sort_values(
        ["time_us", "flops", "module_path", "op", "input_shapes"],
        ascending=[False, False, True, True, True],
        kind="stable",
        ignore_index=True,
    )
    sites["site_id"] = np.arange(len(sites))
    return SITES.check(sites)
