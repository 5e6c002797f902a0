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
from flopprof.judge.finish import described, finish, with_rows
from flopprof.judge.hidden import (
    foreign_rows,
    gap_rows,
    gap_sums,
    kernel_rows,
    name_kernels,
    orphan_sums,
)
from flopprof.judge.reasons import (
    Reason,
    agreement,
    because,
    hook_difference,
    pair,
    view_reason,
)
from flopprof.judge.roofs import kernel_units
from flopprof.judge.spread import TracedCall, own_frac, site_samples, spread, time_per_op_call
from flopprof.judge.sums import (
    Grouped,
    SiteSums,
    group_sites,
    sums_of_rank,
)
from flopprof.judge.verdicts import HOOKED_PHASES, VERDICTS, judge_alone
from flopprof.judge.walk import (
    OpFacts,
    Walked,
    settle_glue,
    times_of,
    walk_ops,
    without_kernels,
)
from flopprof.tables import (
    KERNEL_SUMS,
    LARGE_ROWS,
    MODULE_CALLS,
    OPS,
    SITES,
    give_back_memory,
    narrowed,
    tuples,
)
from flopprof.totals import kernel_sums, numbered

_NO_KERNEL = "none"
_NOT_TIMED = (
    "; no kernel of it is in the trace: it was recorded or captured and not run, or ran on the host"
)
# Columns that only verdicts depend on; of millions of ops they are let go of once these are found.
_DECIDED = (
    *("call_id", "outer_flops", "profiler_differs"),
    *("scales", "calls_others", "passes_on", "settled"),
)
_RANK = {verdict: rank for rank, verdict in enumerate(VERDICTS)}


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
    verdicts.reason[walked.rows_whose("by_kernel", _NO_KERNEL.__eq__)] += _NOT_TIMED
    grouped = _grouped(walked, verdicts)
    site_of = _site_of_ops(grouped, walked, owner)
    sites = described(grouped.sites, types)
    rows = verdicts.not_run
    del walked, owner
    if timed:
        samples = []
        for other in traced[1:]:
            ops_of_other, _ = _timed_ops(other.ops, other.kernels, timed=True, on_device=on_device)
            samples.append(time_per_op_call(ops_of_other))
        sites |= spread(site_samples(sites, samples))
        if on_device:
            rows += kernel_rows([orphan_sums(call.kernels) for call in traced])
            name_kernels(sites, kernel_sums(kernels, site_of))
        else:
            rows += gap_rows([gap_sums(call) for call in traced], types)
    else:
        rows += foreign_rows(traced[0], module_calls)
    finished, order = finish(
        with_rows(sites, rows),
        rooflines,
        dtype=dtype,
        timed=timed,
        on_device=on_device,
        cache_bytes=cache_bytes,
        own_share=1.0 if on_device else own_frac(traced),
    )
    moved = np.append(np.argsort(order), -1).astype(np.int64)  # where each went; none stays none
    return Reconciled(SITES.frame(finished), _with_sites(ops, moved, site_of))


def _with_sites(ops: pd.DataFrame, moved: np.ndarray, site_of: np.ndarray) -> pd.DataFrame:
    """Return the ops with their sites, of which each is where `moved` says."""
    numbers = narrowed(moved) if len(ops) > LARGE_ROWS else moved
    return OPS.check(ops.assign(site_id=numbers[site_of]))


def _site_of_ops(grouped: Grouped, walked: Walked, owner: np.ndarray) -> np.ndarray:
    """Return each op's site, or that of the counted op around it; -1 for none."""
    site_of = np.full(len(owner), -1, np.int32)
    site_of[walked["op_id"]] = grouped.number
    of_owner: np.ndarray = site_of[owner]
    return of_owner


def reconcile_rank(call: TracedCall, *, place: int, on_device: bool) -> SiteSums:
    """Return what one rank of a job says of its sites; `reconcile_sums` makes them of all ranks'.

    Args:
        call: Its trace.
        place: Its place among the ranks.
        on_device: Whether times are a device's, on any rank of the job.
    """
    walked, owner = _timed_ops(call.ops, call.kernels, timed=True, on_device=on_device)
    verdicts = _judge_alike(walked)
    verdicts.reason[walked.rows_whose("by_kernel", _NO_KERNEL.__eq__)] += _NOT_TIMED
    grouped = _grouped(walked, verdicts)
    site_of = _site_of_ops(grouped, walked, owner)
    return sums_of_rank(grouped.sites, site_of, call, place=place, on_device=on_device)


class ReconciledSums(NamedTuple):
    """What `reconcile_sums` returns.

    Attributes:
        sites: The table SITES.
        kernels: The table KERNEL_SUMS of these sites.
    """

    sites: pd.DataFrame
    kernels: pd.DataFrame


def reconcile_sums(
    sums: SiteSums,
    rooflines: pd.DataFrame,
    *,
    dtype: str,
    on_device: bool,
    cache_bytes: float = math.nan,
) -> ReconciledSums:
    """Return the sites of a job, of what its ranks said of theirs.

    Args:
        sums: Those of all ranks, added up.
        rooflines: As for `reconcile`.
        dtype: As for `reconcile`.
        on_device: As for `reconcile_rank`.
        cache_bytes: As for `reconcile`.
    """
    sites = described(sums.sites, {})
    sites |= spread(site_samples(sites, []))
    if on_device:
        rows = kernel_rows([sums.orphans])
        name_kernels(sites, sums.kernels)
    else:
        rows = gap_rows([sums.gaps], {})
    finished, order = finish(
        with_rows(sites, rows),
        rooflines,
        dtype=dtype,
        timed=True,
        on_device=on_device,
        cache_bytes=cache_bytes,
        own_share=1.0,
    )
    moved = np.append(np.argsort(order), -1)
    kernels = sums.kernels.assign(site_id=moved[sums.kernels["site_id"].to_numpy()])
    return ReconciledSums(SITES.frame(finished), KERNEL_SUMS.frame(kernels))


def _timed_ops(
    ops: pd.DataFrame, kernels: pd.DataFrame, *, timed: bool, on_device: bool
) -> tuple[Walked, np.ndarray]:
    """Return the ops that stand for the run, with their times and units, and whose each op is."""
    walked, owner = walk_ops(ops)
    walked.columns["time_us"] = times_of(walked, ops, kernels, timed=timed, on_device=on_device)
    units, names = kernel_units(walked["op_id"], owner, kernels)
    if on_device:  # apart from calls that ran: a rate is made of what has device time
        units = np.where(without_kernels(walked, owner, kernels), len(names), units)
    walked.put("by_kernel", units, np.append(names, _NO_KERNEL))
    settle_glue(walked, on_device=on_device)
    if timed:
        bounded = ~np.isnan(walked["flops_at_most"]) & (not on_device)  # else its kernels tell
        walked.keep(walked["counted"] | (walked["time_us"] > 0) | bounded)
    give_back_memory(ops)
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
    hooked = walked.rows_whose("phase", HOOKED_PHASES.__contains__)
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
    number, first, _ = numbered([walked[column] for column in OpFacts._fields])
    facts = walked.facts(first)
    apart = _Verdicts.blank(len(facts))
    for index, row in enumerate(facts):
        apart.put(index, judge_alone(row, hooked=False, types={}, never=()))
        apart.reason[index] += view_reason(row)
    return _Verdicts(
        rank=apart.rank[number].astype(np.int8),
        code=apart.code[number],
        reason=apart.reason[number],
        hook_flops=np.broadcast_to(math.nan, len(number)),
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
    met_times: Counter[str] = Counter()
    for call, path in sorted((c, p) for c, p in met if c != -1):
        order[call] = nth.get((path, met_times[path]), -1)
        met_times[path] += 1
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
    for of_class, hook_count, total in zip(("matmul", "vector"), hook, sums, strict=True):
        counts = [getattr(op, f"{of_class}_flops") for op in ops]
        has_own = len([count for count in counts if count == hook_count > 0]) == 1
        for index, op, count in zip(indices, ops, counts, strict=True):
            if not count:
                continue
            is_of_both = op.matmul_flops and op.vector_flops
            if total == hook_count or (has_own and count == hook_count):
                outcomes[index][of_class] = "agrees"
            elif not is_of_both and (has_own or not hook_count):
                outcomes[index][of_class] = "added"
            else:
                outcomes[index][of_class] = "differs"
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


def _grouped(walked: Walked, verdicts: _Verdicts) -> Grouped:
    """Return the sites, and each walked op's.

    The calls of one op, path, phase, shapes and dtype are a site, if the same source counts them
    and the same kind of kernel computes them.
    """
    for column in _DECIDED:
        del walked.columns[column]
    for row, (matmul_flops, vector_flops) in verdicts.by_hook.items():
        walked["matmul_flops"][row] = matmul_flops
        walked["vector_flops"][row] = vector_flops
    sources = np.array([source_of(name) for name in walked.names["op"]], dtype=object)
    code, names = pd.factorize(np.append(sources, ["none", "hook"]))
    source = np.where(np.isnan(walked["matmul_flops"]), code[-2], code[walked["op"]])
    source[list(verdicts.by_hook)] = code[-1]
    walked.put("flops_source", source, names)
    columns = {
        **walked.columns,
        "flops": walked["matmul_flops"] + walked["vector_flops"],
        "hook_flops": verdicts.hook_flops,
        "verdict_rank": verdicts.rank,
        "reason_code": verdicts.code,
        "reason": verdicts.reason,
    }
    return group_sites(columns, walked.names, np.broadcast_to(1.0, len(walked)))
