"""Join hook counts with traced ops and give every row a verdict.

The comparison is per module call: the hook's self count against the formula counts of the counted
ops whose nearest range is that call. ARCHITECTURE.md, "Verdicts" and "Counting rules" 4 to 8.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from flopprof.formulas import COMPOSITE_OPS
from flopprof.formulas.external import find_op_formula
from flopprof.judge.roofs import apply_rooflines, kernel_units
from flopprof.judge.verdicts import (
    FIRST_INPUT_RULE,
    HOOKED_PHASES,
    OpFacts,
    agree_reason,
    hook_reason,
    judge_alone,
    pair,
    profiler_reason,
)
from flopprof.tables import MODULE_CALLS, OPS, SITES, VERDICTS, Column, codes, tuples
from flopprof.units import duration, percent, shorten

GRAPH_KERNELS = 5  # named of a replayed graph
HIDDEN_GAP_FACTOR = 20  # × the run's median gap: ordinary Python between ops stays below it
HIDDEN_GAP_FRAC = 0.01  # of the run: what is shorter cannot matter
HIDDEN_GAP_US = 1000.0  # what is shorter, a tiny model's call has anyway: imports, first use
_RANK = {verdict: rank for rank, verdict in enumerate(VERDICTS)}
_ORDER = ("input_shapes", "op", "module_path")  # of sites of equal time and FLOPs, the last first


_TEXTS = ("op", "kind", "module_path", "phase", "input_shapes", "dtype")
_NUMBERS = (
    *("op_id", "call_id", "counted", "cpu_us", "self_cpu_us", "device_us", "profiler_flops"),
    *("matmul_flops", "vector_flops", "min_bytes", "flops_at_most"),
)


@dataclass(slots=True)
class _Walked:
    """The ops that are walked, a column each; a text is a number among its column's `names`."""

    columns: dict[str, np.ndarray]
    names: dict[str, np.ndarray]

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    def __len__(self) -> int:
        return len(self.columns["op"])

    def where(self, rows: np.ndarray) -> "_Walked":
        return _Walked({name: values[rows] for name, values in self.columns.items()}, self.names)

    def texts(self, column: str) -> list[str]:
        return list(self.names[column][self[column]])

    def put(self, column: str, values: np.ndarray, names: np.ndarray) -> None:
        self.columns[column], self.names[column] = values.astype(np.int64), names.astype(object)

    def named(self, column: str, test: Callable[[str], bool]) -> np.ndarray:
        """Return which rows' texts pass the test, called once per distinct text."""
        passed = np.array([test(name) for name in self.names[column]], dtype=bool)
        return np.take(passed, self[column])

    def facts(self, rows: np.ndarray) -> list[OpFacts]:
        texts = {"op", "kind", "phase", "module_path"}
        columns = (
            self.names[c][self[c][rows]] if c in texts else self[c][rows] for c in OpFacts._fields
        )
        return list(map(OpFacts._make, zip(*(c.tolist() for c in columns), strict=True)))


@dataclass(slots=True)
class _Verdicts:
    """Verdict (its rank) and reason per walked op, filled in by the passes below."""

    rank: np.ndarray
    reason: np.ndarray
    hook_flops: np.ndarray
    not_run: list[dict[str, Any]] = field(default_factory=list)
    by_hook: dict[int, tuple[float, float]] = field(default_factory=dict)  # the hook alone knows

    def put(self, row: int, verdict: str, reason: str) -> None:
        self.rank[row], self.reason[row] = _RANK[verdict], reason


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
    walked.columns["time_us"] = _times(walked, kernels, timed=timed, on_device=on_device)
    walked.put("unit", *kernel_units(walked["op_id"], owner, kernels))
    _settle_glue(walked)
    if timed:
        bounded = ~np.isnan(walked["flops_at_most"]) & (not on_device)  # else its kernels tell
        walked = walked.where(walked["counted"] | (walked["time_us"] > 0) | bounded)
    types = dict(tuples(module_calls, ("module_path", "module_type")))
    verdicts = _judge(walked, module_calls, types, never_called)
    rows = verdicts.not_run
    if timed and not on_device:
        rows += _gap_rows(ops, gaps, types)
    if on_device:
        rows += _kernel_rows(kernels)
    sites = _with_rows(_grouped(walked, verdicts, types), rows)
    return _finish(sites, rooflines, dtype=dtype, timed=timed, on_device=on_device)


def _walked(ops: pd.DataFrame) -> tuple[_Walked, np.ndarray]:
    """Return the ops that are counted or lie below no counted op (rule 4), and whose each op is.

    Their `profiler_flops` are summed over what is below them, and `profiler_differs` says whether
    profiler and formula differ there: compared op by op, like with like. The profiler's rule for
    `mul` and `add` (elements of the first input) is a known gap and no witness, nor is its count
    of complex products as real ones.
    """
    coded = {column: codes(ops[column]) for column in _TEXTS}
    walked = _Walked(
        {c: ops[c].to_numpy() for c in _NUMBERS} | {c: code for c, (code, _) in coded.items()},
        {c: names for c, (_, names) in coded.items()},
    )
    theirs, ours = walked["profiler_flops"], walked["matmul_flops"]
    differs = (theirs != ours) & ~np.isnan(theirs) & ~np.isnan(ours)
    if differs.any():
        differs &= ~walked.named("op", FIRST_INPUT_RULE.__contains__)
        differs &= ~walked.named("dtype", lambda name: name.startswith("complex"))
    if not np.isnan(theirs).all():
        theirs, differs = _summed(theirs, differs, ops["parent_op_id"].tolist())
    walked.columns |= {"profiler_flops": theirs, "profiler_differs": differs}
    owner = owners(ops)
    return walked.where(owner == np.arange(len(ops))), owner


def _summed(
    flops: np.ndarray, differs: np.ndarray, parents: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return both with what is below each op added; children come behind their parents."""
    sums, any_differs = flops.tolist(), differs.tolist()
    for op in range(len(parents) - 1, -1, -1):
        if (parent := parents[op]) >= 0:
            any_differs[parent] = any_differs[parent] or any_differs[op]
            if not math.isnan(sums[op]):
                sums[parent] = sums[op] + (0 if math.isnan(sums[parent]) else sums[parent])
    return np.array(sums), np.array(any_differs)


def owners(ops: pd.DataFrame) -> np.ndarray:
    """Return, for each op, the counted op around it, which is in no other; else the op itself."""
    parents, counted, itself = ops["parent_op_id"], ops["counted"].to_numpy(), np.arange(len(ops))
    up = np.where(counted | (parents.to_numpy() < 0), itself, parents.to_numpy())
    while len(up) and not np.array_equal(further := up[up], up):
        up = further
    return np.where(counted[up], up, itself)


def _times(walked: _Walked, kernels: pd.DataFrame, *, timed: bool, on_device: bool) -> np.ndarray:
    """Return each walked op's time: with its subtree if counted, else its own alone."""
    if not timed:
        return np.full(len(walked), math.nan)
    if not on_device:
        return np.where(walked["counted"], walked["cpu_us"], walked["self_cpu_us"])
    own = np.zeros(int(walked["op_id"].max(initial=-1)) + 1)
    mine = ((kernels["kind"] == "compute") & kernels["op_id"].between(0, len(own) - 1)).to_numpy()
    np.add.at(own, kernels["op_id"].to_numpy()[mine], kernels["duration_us"].to_numpy()[mine])
    own = np.take(own, walked["op_id"])
    return np.where(walked["counted"], np.nan_to_num(walked["device_us"]), own)


def _settle_glue(walked: _Walked) -> None:
    """Mark as free what only calls other ops, such as einsum: they are walked for themselves."""
    glue = walked.named("op", COMPOSITE_OPS.__contains__) & ~walked["counted"]
    glue &= np.isnan(walked["flops_at_most"])
    names = walked.names["kind"]
    kinds = np.where(glue, len(names), walked["kind"])
    walked.put("kind", kinds, np.append(names, "free"))
    walked.columns["counted"] = walked["counted"] | glue
    for column in ("matmul_flops", "vector_flops", "min_bytes"):
        walked.columns[column] = np.where(glue, 0.0, walked[column])


def _judge(
    walked: _Walked,
    module_calls: pd.DataFrame,
    types: dict[str, str],
    never_called: Collection[str],
) -> _Verdicts:
    """Return the verdict of every walked op, and what the hooks counted but nothing ran."""
    if not len(module_calls):
        return _judge_alike(walked)
    size = len(walked)
    verdicts = _Verdicts(np.full(size, -1), np.full(size, "", object), np.full(size, math.nan))
    rows = walked.facts(np.arange(size))
    by_call: dict[int, list[int]] = defaultdict(list)
    calls_of_ops = _join_calls(walked, module_calls)
    for index, row in enumerate(rows):
        if row.phase in HOOKED_PHASES:
            by_call[calls_of_ops[index]].append(index)
    for call in map(_Call._make, tuples(module_calls, _Call._fields)):
        if not math.isnan(call.self_hook_matmul_flops):
            _judge_call(call, by_call.get(call.call_id, []), rows, verdicts)
    for index in np.flatnonzero(verdicts.rank < 0).tolist():
        alone = judge_alone(rows[index], hooked=True, types=types, never=never_called)
        verdicts.put(index, *alone)
    return verdicts


def _judge_alike(walked: _Walked) -> _Verdicts:
    """Judge the ops of a trace without hooks; equal ones once."""
    number, first, _ = _numbered([walked[column] for column in OpFacts._fields])
    facts = walked.facts(first)
    found = [judge_alone(row, hooked=False, types={}, never=()) for row in facts]
    rank = np.array([_RANK[verdict] for verdict, _ in found], dtype=np.int64)
    reason = np.array([why for _, why in found], dtype=object)
    return _Verdicts(rank[number], reason[number], np.full(len(walked), math.nan))


class _Call(NamedTuple):
    """What the reconciler reads of a module call."""

    call_id: int
    module_path: str
    module_type: str
    input_shapes: str
    dtype: str
    self_hook_matmul_flops: float
    self_hook_vector_flops: float


def _join_calls(walked: _Walked, module_calls: pd.DataFrame) -> list[int]:
    """Return each op's call_id among `module_calls`; -1 where the two passes took other paths.

    Both passes number calls by entry. If a path differs between them, the n-th call of a path in
    one is the n-th in the other.
    """
    ids, paths = list[int](walked["call_id"].tolist()), walked.texts("module_path")
    calls = list(tuples(module_calls, ("call_id", "module_path")))
    hooked = dict(calls)
    met = set(zip(ids, paths, strict=True))
    if all(call == -1 or hooked.get(call) == path for call, path in met):
        return ids
    times, nth = Counter[str](), dict[tuple[str, int], int]()
    for call, path in calls:
        nth[path, times[path]] = call
        times[path] += 1
    order: dict[int, int] = {}
    seen: Counter[str] = Counter()
    for call, path in sorted((c, p) for c, p in met if c != -1):
        order[call] = nth.get((path, seen[path]), -1)
        seen[path] += 1
    return [order.get(call, -1) for call in ids]


def _judge_call(call: _Call, indices: list[int], rows: list[OpFacts], out: _Verdicts) -> None:
    """Compare one module call's hook count with its ops, each class on its own."""
    hook = (call.self_hook_matmul_flops, call.self_hook_vector_flops)
    working = [i for i in indices if rows[i].kind != "free"]
    lacking = [i for i in working if math.isnan(rows[i].matmul_flops)]
    if lacking:  # no sum to compare with
        if len(working) == 1 and sum(hook) > 0:
            op = working[0]  # which is the whole call
            out.by_hook[op], out.hook_flops[op] = hook, sum(hook)
            why = f"the FLOPs are the hook's alone; no formula for {rows[op].op} agrees"
            out.put(op, "unknown", why)
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
        if rows[index].profiler_differs:
            out.put(index, "disagrees", profiler_reason(rows[index]))
        else:
            out.put(index, "agrees", agree_reason(rows[index]))
    if len(working) == 1 or len(agreeing) == 1:
        out.hook_flops[(agreeing or working)[0]] = sum(hook)
    if not agreeing:
        for index in working:
            why = hook_reason(call.module_type, hook, sums, len(working))
            out.put(index, "disagrees", why)


def _not_run_row(call: _Call, hook: tuple[float, float]) -> dict[str, Any]:
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


def _grouped(walked: _Walked, verdicts: _Verdicts, types: dict[str, str]) -> dict[str, Any]:
    """Return the sites' columns: the calls of one op, path, phase, shapes and dtype together."""
    for row, hook in verdicts.by_hook.items():
        walked["matmul_flops"][row], walked["vector_flops"][row] = hook
    sources = np.array([find_op_formula(name)[1] for name in walked.names["op"]], dtype=object)
    code, names = pd.factorize(np.append(sources, ["none", "hook"]))
    source = np.where(np.isnan(walked["matmul_flops"]), code[-2], code[walked["op"]])
    source[list(verdicts.by_hook)] = code[-1]
    walked.put("flops_source", source, names)
    columns = {"flops": walked["matmul_flops"] + walked["vector_flops"]}
    walked.columns |= columns | {"hook_flops": verdicts.hook_flops}
    order = np.argsort(verdicts.rank, kind="stable")  # the worst verdict comes last
    walked = walked.where(order)
    keys = (*_TEXTS, "flops_source", "unit")
    number, first, last = _numbered([walked[key] for key in keys])
    calls = np.bincount(number)
    sites: dict[str, Any] = {key: walked.names[key][walked[key][first]] for key in keys}
    sums = ["flops", "matmul_flops", "vector_flops", "hook_flops", "min_bytes", "time_us"]
    # One unknown call makes the sum unknown: count the values behind each sum.
    for column in (*sums, "profiler_flops", "flops_at_most"):
        values = walked[column]
        known = np.bincount(number, weights=~np.isnan(values))
        total = np.bincount(number, weights=np.nan_to_num(values, nan=0.0, posinf=np.inf))
        sites[column] = np.where(known >= (calls if column in sums else 1), total, np.nan)
    sites["calls"] = calls
    sites["reason"] = verdicts.reason[order[last]]
    sites["verdict"] = np.array(VERDICTS, dtype=object)[verdicts.rank[order[last]]]
    sites["formula_flops"] = np.where(sites["flops_source"] == "hook", np.nan, sites["flops"])
    sites["module_type"] = [types.get(path, "") for path in sites["module_path"]]
    return sites


def _numbered(columns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each row's group by equal values, in order, and each group's first and last row."""
    size = len(columns[0])
    number, rows = np.zeros(size, dtype=np.int64), np.arange(size)
    for column in columns:
        code, values = pd.factorize(column)
        number = pd.factorize(number * (len(values) + 1) + code)[0]
    groups = int(number.max(initial=-1)) + 1
    first, last = np.zeros(groups, dtype=np.int64), np.zeros(groups, dtype=np.int64)
    first[number[::-1]], last[number] = rows[::-1], rows
    return number, first, last


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


def _with_rows(sites: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the columns of SITES, and "unit", with `rows` behind; what is not given is blank."""
    size, whole = len(sites["op"]), dict[str, np.ndarray]()
    for column in (*SITES.columns, Column("unit", "str", "")):
        given = sites.get(column.name, [column.blank] * size)
        more = [row.get(column.name, column.blank) for row in rows]
        kind = object if column.type == "str" else column.type
        whole[column.name] = np.array([*given, *more], dtype=kind)
    return whole


def _finish(
    sites: dict[str, np.ndarray],
    rooflines: pd.DataFrame,
    *,
    dtype: str,
    timed: bool,
    on_device: bool,
) -> pd.DataFrame:
    """Return the table SITES with shares, rates, rooflines and bounds, most time first."""
    if not timed:
        sites["time_us"] = np.full(len(sites["op"]), math.nan)
    time_us, moved = (np.where(sites[c] > 0, sites[c], np.nan) for c in ("time_us", "min_bytes"))
    with np.errstate(over="ignore"):
        sites["time_share_frac"] = sites["time_us"] / (np.nansum(time_us) or math.nan)
        sites["achieved_flops_per_s"] = sites["flops"] / (time_us / 1e6)
        sites["intensity_flops_per_byte"] = sites["flops"] / moved
    by_kernel = sites.pop("unit")
    apply_rooflines(sites, rooflines, dtype, by_kernel=by_kernel, on_device=on_device)
    named = [np.unique(sites[c], return_inverse=True)[1] for c in _ORDER]
    order = np.lexsort((*named, -sites["flops"], -sites["time_us"]))
    sites = {name: values[order] for name, values in sites.items()}
    sites["site_id"] = np.arange(len(order))
    return SITES.frame(sites)
