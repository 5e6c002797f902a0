"""Join hook counts with traced ops and give every row a verdict.

The comparison is per module call: the hook's self count against the formula counts of the counted
ops whose nearest range is that call. ARCHITECTURE.md, "Verdicts" and "Counting rules" 4 to 8.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from flopprof.formulas.external import source_of
from flopprof.judge.hidden import foreign_rows, gap_rows, kernel_rows, name_kernels
from flopprof.judge.reasons import (
    Reason,
    agreement,
    because,
    hook_difference,
    pair,
    view_reason,
)
from flopprof.judge.roofs import apply_rooflines, kernel_units
from flopprof.judge.spread import TracedCall, own_frac, site_samples, spread, time_per_op_call
from flopprof.judge.verdicts import HOOKED_PHASES, VERDICTS, judge_alone
from flopprof.judge.walk import (
    TEXTS,
    OpFacts,
    Walked,
    settle_glue,
    times_of,
    walk_ops,
    without_kernels,
)
from flopprof.tables import MODULE_CALLS, OPS, SITES, Column, tuples

_NO_KERNEL = "none"
_NOT_TIMED = (
    "; no kernel of it is in the trace: it was recorded or captured and not run, or ran on the host"
)
_RANK = {verdict: rank for rank, verdict in enumerate(VERDICTS)}
_ORDER = ("input_shapes", "op", "module_path")  # of sites of equal time and FLOPs, the last first


@dataclass(slots=True)
class _Verdicts:
    """Verdict (its rank) and reason per walked op, filled in by the passes below."""

    rank: np.ndarray
    code: np.ndarray
    reason: np.ndarray
    hook_flops: np.ndarray
    not_run: list[dict[str, Any]] = field(default_factory=list)
    by_hook: dict[int, tuple[float, float]] = field(default_factory=dict)  # the hook alone knows

    @classmethod
    def blank(cls, size: int) -> "_Verdicts":
        """Return that of `size` ops that are still to be judged."""
        return cls(
            rank=np.full(size, -1),
            code=np.full(size, "", object),
            reason=np.full(size, "", object),
            hook_flops=np.full(size, math.nan),
        )

    def put(self, row: int, reason: Reason) -> None:
        self.rank[row] = _RANK[reason.verdict]
        self.code[row] = reason.code
        self.reason[row] = reason.text


class Reconciled(NamedTuple):
    """What `reconcile` returns.

    Attributes:
        sites: The table SITES.
        ops: The table OPS with `site_id` filled in.
    """

    sites: pd.DataFrame
    ops: pd.DataFrame


def reconcile(
    module_calls: pd.DataFrame,
    traced: Sequence[TracedCall],
    rooflines: pd.DataFrame,
    *,
    dtype: str,
    never_called: Collection[str] = (),
    timed: bool = True,
    cache_bytes: float = math.nan,
) -> Reconciled:
    """Return the sites: every op, hidden stretch and uncalled work with a verdict; and whose ops.

    Args:
        module_calls: What the hooks counted; empty for a trace recorded elsewhere.
        traced: Traced calls of one model and input: the sites are the first's, their times
            medians over all.
        rooflines: The device's ceilings; may be empty.
        dtype: The run's element type, whose matmul ceiling bounds what is unknown.
        never_called: Paths of the model's modules that no hook saw.
        timed: False for a pure count: no times, no hidden rows, no coverage.
        cache_bytes: Size of the device's largest cache; NaN where it is not known.
    """
    ops = traced[0].ops
    kernels = traced[0].kernels
    MODULE_CALLS.check(module_calls)
    OPS.check(ops)
    on_device = timed and len(kernels) > 0
    walked, owner = _timed_ops(ops, kernels, timed=timed, on_device=on_device)
    types = {**traced[0].closed, **dict(tuples(module_calls, ("module_path", "module_type")))}
    verdicts = _judge(walked, module_calls, types, never_called)
    verdicts.reason[walked.named("by_kernel", _NO_KERNEL.__eq__)] += _NOT_TIMED
    grouped, number = _grouped(walked, verdicts, types)
    rows = verdicts.not_run
    if timed:
        samples = []
        for other in traced[1:]:
            ops_of_other, _ = _timed_ops(other.ops, other.kernels, timed=True, on_device=on_device)
            samples.append(time_per_op_call(ops_of_other))
        grouped |= spread(site_samples(grouped, samples))
        rows += kernel_rows(traced) if on_device else gap_rows(traced, types)
    else:
        rows += foreign_rows(traced[0], module_calls)
    if on_device:
        name_kernels(grouped, ops, kernels)
    sites = _with_rows(grouped, rows)
    sites, order = _finish(
        sites,
        rooflines,
        dtype=dtype,
        timed=timed,
        on_device=on_device,
        cache_bytes=cache_bytes,
        own_share=1.0 if on_device else own_frac(traced),
    )
    rank = np.argsort(order)  # where each group went
    site_of = np.full(len(ops), -1)
    site_of[walked["op_id"]] = rank[number]
    return Reconciled(SITES.frame(sites), OPS.check(ops.assign(site_id=site_of[owner])))


def _timed_ops(
    ops: pd.DataFrame, kernels: pd.DataFrame, *, timed: bool, on_device: bool
) -> tuple[Walked, np.ndarray]:
    """Return the ops that stand for the run, with their times and units, and whose each op is."""
    walked, owner = walk_ops(ops)
    walked.columns["time_us"] = times_of(walked, kernels, timed=timed, on_device=on_device)
    units, names = kernel_units(walked["op_id"], owner, kernels)
    if on_device:  # apart from calls that ran: a rate is made of what has device time
        units = np.where(without_kernels(walked, owner, kernels), len(names), units)
    walked.put("by_kernel", units, np.append(names, _NO_KERNEL))
    settle_glue(walked, on_device=on_device)
    if timed:
        bounded = ~np.isnan(walked["flops_at_most"]) & (not on_device)  # else its kernels tell
        walked = walked.where(walked["counted"] | (walked["time_us"] > 0) | bounded)
    return walked, owner


def _judge(
    walked: Walked,
    module_calls: pd.DataFrame,
    types: dict[str, str],
    never_called: Collection[str],
) -> _Verdicts:
    """Return the verdict of every walked op, and what the hooks counted but nothing ran."""
    if not len(module_calls):
        return _judge_alike(walked)
    size = len(walked)
    verdicts = _Verdicts.blank(size)
    rows = walked.facts(np.arange(size))
    by_call: dict[int, list[int]] = defaultdict(list)
    hooked = walked.named("phase", HOOKED_PHASES.__contains__)
    calls_of_ops = _join_calls(walked.where(hooked), module_calls)
    for index, call_id in zip(np.flatnonzero(hooked).tolist(), calls_of_ops, strict=True):
        by_call[call_id].append(index)
    for call in map(_Call._make, tuples(module_calls, _Call._fields)):
        if not math.isnan(call.self_hook_matmul_flops):
            _judge_call(call, by_call.get(call.call_id, []), rows, verdicts)
    for index in np.flatnonzero(verdicts.rank < 0).tolist():
        alone = judge_alone(rows[index], hooked=True, types=types, never=never_called)
        verdicts.put(index, alone)
    for index in np.flatnonzero(~np.isnan(walked["outer_flops"])).tolist():
        verdicts.reason[index] += view_reason(rows[index])
    return verdicts


def _judge_alike(walked: Walked) -> _Verdicts:
    """Judge the ops of a trace without hooks; equal ones once."""
    number, first, _ = _numbered([walked[column] for column in OpFacts._fields])
    facts = walked.facts(first)
    apart = _Verdicts.blank(len(facts))
    for index, row in enumerate(facts):
        apart.put(index, judge_alone(row, hooked=False, types={}, never=()))
        apart.reason[index] += view_reason(row)
    return _Verdicts(
        rank=apart.rank[number],
        code=apart.code[number],
        reason=apart.reason[number],
        hook_flops=apart.hook_flops[number],
    )


class _Call(NamedTuple):
    """What the reconciler reads of a module call."""

    call_id: int
    module_path: str
    module_type: str
    input_shapes: str
    dtype: str
    self_hook_matmul_flops: float
    self_hook_vector_flops: float


def _join_calls(walked: Walked, module_calls: pd.DataFrame) -> list[int]:
    """Return each op's call_id among `module_calls`; -1 where the two passes took other paths.

    Both passes number calls by entry. If a path differs between them, the n-th call of a path in
    one is the n-th in the other. Backward ops, whose module is that of their forward op though
    they may run inside another one's call, are not among `walked`.
    """
    ids = list[int](walked["call_id"].tolist())
    paths = walked.texts("module_path")
    calls = list(tuples(module_calls, ("call_id", "module_path")))
    hooked = dict(calls)
    met = set(zip(ids, paths, strict=True))
    if all(call == -1 or hooked.get(call) == path for call, path in met):
        return ids
    times: Counter[str] = Counter()
    nth: dict[tuple[str, int], int] = {}
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
    working = [i for i in indices if rows[i].kind != "free" and not rows[i].scales]
    # Parametrised or wrapped: one op is the module's own work, the others were added to it.
    exact = [i for i in working if (rows[i].matmul_flops, rows[i].vector_flops) == hook]
    is_exact = len(exact) == 1 and sum(hook) > 0
    if any(math.isnan(rows[i].matmul_flops) for i in working):  # no sum to compare with
        if len(working) == 1 and sum(hook) > 0:
            op = working[0]  # which is the whole call
            out.by_hook[op] = hook
            out.hook_flops[op] = sum(hook)
            out.put(op, because("hook_alone", op=rows[op].op))
        elif is_exact:
            out.put(exact[0], agreement(rows[exact[0]]))
        return
    if not working and sum(hook) > 0:
        out.not_run += _not_run_rows(call, hook, {rows[i].phase for i in indices})
        return
    sums = (
        sum(rows[i].matmul_flops for i in working),
        sum(rows[i].vector_flops for i in working),
    )
    if sums == hook or is_exact:
        agreeing = working if sums == hook else exact
        for index in agreeing:
            out.put(index, agreement(rows[index]))
        if len(working) == 1 or len(agreeing) == 1:
            out.hook_flops[agreeing[0]] = sum(hook)
        return
    if len(working) == 1:
        out.hook_flops[working[0]] = sum(hook)
    for index, by_class in _by_class(hook, sums, [rows[i] for i in working], working).items():
        differing = next((name for name, outcome in by_class.items() if outcome == "differs"), "")
        difference = hook_difference(call.module_type, hook, sums, len(working), differing)
        if differing:
            out.put(index, because("hook_differs", difference=difference))
        elif "agrees" in by_class.values():
            out.put(index, _class_agreement(agreement(rows[index]), difference))


def _class_agreement(of_class: Reason, difference: str) -> Reason:
    """Return the conclusion on an op whose class agrees, where the call's other class differs."""
    partly = because("class_agrees", agreement=of_class.text, difference=difference)
    if of_class.verdict == partly.verdict:
        return partly
    return of_class._replace(text=partly.text)  # the profiler denies it


def _by_class(
    hook: tuple[float, float], sums: tuple[float, float], ops: list[OpFacts], indices: list[int]
) -> dict[int, dict[str, str]]:
    """Return, per op, what is said of each class that it works in: agrees, differs or added.

    A class whose sum differs from the hook's may still hold one op that is the module's own work
    in it; the others were added, such as the scale of a quantised weight. Where the hook counts
    none of a class, ops of this class alone were added, too.
    """
    outcomes: dict[int, dict[str, str]] = {index: {} for index in indices}
    for number, class_ in enumerate(("matmul", "vector")):
        counts = [getattr(op, f"{class_}_flops") for op in ops]
        own = [count for count in counts if count == hook[number] > 0]
        for index, op, count in zip(indices, ops, counts, strict=True):
            alone = not (op.matmul_flops and op.vector_flops)
            if not count:
                continue
            if sums[number] == hook[number] or (len(own) == 1 and count == hook[number]):
                outcomes[index][class_] = "agrees"
            elif alone and (len(own) == 1 or not hook[number]):
                outcomes[index][class_] = "added"
            else:
                outcomes[index][class_] = "differs"
    return outcomes


def _not_run_rows(call: _Call, hook: tuple[float, float], phases: set[str]) -> list[dict[str, Any]]:
    """Return the row of a call without ops that work; none where a checkpoint had kept its result.

    Args:
        call: The module call.
        hook: What it counted.
        phases: Those of the ops that the call has.
    """
    return [] if phases == {"recompute"} else [_not_run_row(call, hook)]


def _not_run_row(call: _Call, hook: tuple[float, float]) -> dict[str, Any]:
    reason = because("nothing_ran", counts=pair(*hook))
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
        "verdict": reason.verdict,
        "reason": reason.text,
        "reason_code": reason.code,
    }


def _grouped(
    walked: Walked, verdicts: _Verdicts, types: dict[str, str]
) -> tuple[dict[str, Any], np.ndarray]:
    """Return the sites' columns, and each walked op's site.

    The calls of one op, path, phase, shapes and dtype are a site, if the same source counts them
    and the same kind of kernel computes them.
    """
    for row, (matmul_flops, vector_flops) in verdicts.by_hook.items():
        walked["matmul_flops"][row] = matmul_flops
        walked["vector_flops"][row] = vector_flops
    sources = np.array([source_of(name) for name in walked.names["op"]], dtype=object)
    code, names = pd.factorize(np.append(sources, ["none", "hook"]))
    source = np.where(np.isnan(walked["matmul_flops"]), code[-2], code[walked["op"]])
    source[list(verdicts.by_hook)] = code[-1]
    walked.put("flops_source", source, names)
    columns = {"flops": walked["matmul_flops"] + walked["vector_flops"]}
    walked.columns |= columns | {"hook_flops": verdicts.hook_flops}
    order = np.argsort(verdicts.rank, kind="stable")  # the worst verdict comes last
    walked = walked.where(order)
    keys = (*TEXTS, "flops_source", "by_kernel")
    number, first, last = _numbered([walked[key] for key in keys])
    calls = np.bincount(number)
    sites: dict[str, Any] = {key: walked.names[key][walked[key][first]] for key in keys}
    sums = ["flops", "matmul_flops", "vector_flops", "hook_flops", "min_bytes", "time_us"]
    # One unknown call makes the sum unknown: count the values behind each sum.
    bounds = ("flops_at_most", "matmul_flops_at_least", "vector_flops_at_least")
    for column in (*sums, "profiler_flops", *bounds):
        values = walked[column]
        values_there = np.bincount(number, weights=~np.isnan(values))
        total = np.bincount(number, weights=np.nan_to_num(values, nan=0.0, posinf=np.inf))
        needed = calls if column in sums else 1
        sites[column] = np.where(values_there >= needed, total, np.nan)
    # What only passed the same call on, as torch.func does, is no call beside those that worked.
    working = np.bincount(number, weights=walked["flops"] != 0).astype(np.int64)
    sites["calls"] = np.where(working > 0, working, calls)
    sites["reason"] = verdicts.reason[order[last]]
    sites["reason_code"] = verdicts.code[order[last]]
    sites["verdict"] = np.array(VERDICTS, dtype=object)[verdicts.rank[order[last]]]
    sites["formula_flops"] = np.where(sites["flops_source"] == "hook", np.nan, sites["flops"])
    sites["module_type"] = [types.get(path, "") for path in sites["module_path"]]
    site_of = np.empty_like(number)
    site_of[order] = number
    return sites, site_of


def _numbered(columns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def _with_rows(sites: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the columns of SITES and `by_kernel`, with `rows` behind; missing values are blank."""
    size = len(sites["op"])
    whole: dict[str, np.ndarray] = {}
    for column in (*SITES.columns, Column("by_kernel", "str", "")):
        values = sites.get(column.name, [column.blank] * size)
        more = [row.get(column.name, column.blank) for row in rows]
        kind = object if column.type == "str" else column.type
        whole[column.name] = np.array([*values, *more], dtype=kind)
    return whole


def _finish(
    sites: dict[str, np.ndarray],
    rooflines: pd.DataFrame,
    *,
    dtype: str,
    timed: bool,
    on_device: bool,
    cache_bytes: float,
    own_share: float,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the columns of SITES with shares, rates and bounds, most time first; that order."""
    if not timed:
        sites["time_us"] = np.full(len(sites["op"]), math.nan)
    time_us = _where_positive(sites["time_us"])
    min_bytes = _where_positive(sites["min_bytes"])
    with np.errstate(over="ignore"):
        sites["time_share_frac"] = sites["time_us"] / (np.nansum(time_us) or math.nan)
        sites["achieved_flops_per_s"] = sites["flops"] / (time_us / 1e6)
        sites["intensity_flops_per_byte"] = sites["flops"] / min_bytes
    by_kernel = sites.pop("by_kernel")
    apply_rooflines(
        sites,
        rooflines,
        dtype,
        by_kernel=by_kernel,
        on_device=on_device,
        cache_bytes=cache_bytes,
        own_frac=own_share,
    )
    texts = [np.unique(sites[column], return_inverse=True)[1] for column in _ORDER]
    order = np.lexsort((*texts, -sites["flops"], -sites["time_us"]))
    sites = {name: values[order] for name, values in sites.items()}
    sites["site_id"] = np.arange(len(order))
    return sites, order


def _where_positive(values: np.ndarray) -> np.ndarray:
    """Return the values, NaN in place of those that nothing can be divided by."""
    return np.where(values > 0, values, np.nan)
