"""The one place where a `Run` is made: from witnesses, rooflines and provenance."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np
import pandas as pd

from flopprof.judge.hidden import bound_by_all_cores
from flopprof.judge.reconcile import reconcile, reconcile_sums
from flopprof.judge.roofs import roof_doubts, total_doubts
from flopprof.judge.spread import TracedCall
from flopprof.judge.sums import SiteSums
from flopprof.provenance import (
    AnyProvenance,
    Called,
    CallProvenance,
    CountProvenance,
    SavedTotals,
    TraceProvenance,
    Warned,
    warned,
)
from flopprof.run import Run
from flopprof.tables import (
    COLLECTIVES,
    KERNELS,
    MODULE_CALLS,
    OPS,
    SITES,
    Table,
    give_back_memory,
)
from flopprof.totals import Totals
from flopprof.trace.collectives import (
    add_up_collectives,
    collective_facts,
    collective_sums,
    sums_of_sent,
)
from flopprof.trace.read import Trace

P = TypeVar("P", bound=AnyProvenance)


@dataclass(frozen=True, slots=True)
class Witnesses:
    """What the passes saw.

    Attributes:
        module_calls: What the hooks counted, table MODULE_CALLS; empty without hooks.
        traced: Traced calls of one model and input; the run's tables are the first's.
    """

    module_calls: pd.DataFrame
    traced: Sequence[TracedCall]


def as_call(trace: Trace, foreign: Collection[str] = ()) -> TracedCall:
    """Return what the judge reads of a trace of this process.

    Args:
        trace: The trace.
        foreign: Paths of modules whose own code computes past PyTorch.
    """
    waited_us = trace.info.get("waited_us", 0.0)
    closed = trace.info.get("closed", {})
    return TracedCall(trace.ops, trace.gaps, trace.kernels, waited_us, foreign, closed)


def assemble(
    witnesses: Witnesses,
    rooflines: pd.DataFrame,
    provenance: AnyProvenance,
    *,
    doubts: Iterable[Warned] = (),
    trace: bytes | None = None,
) -> Run:
    """Reconcile what the passes saw, and return it as a `Run`.

    Args:
        witnesses: What the passes saw.
        rooflines: The device's ceilings, table ROOFLINES; empty where they are not known.
        provenance: What is known of the run by now; totals and warnings are added here.
        doubts: What makes figures doubtful, beside the warnings that `provenance` has.
        trace: The recorded trace, gzipped.
    """
    timed = not isinstance(provenance, CountProvenance)
    device = provenance.device
    first = witnesses.traced[0]
    without_kernels = [first if not len(first.kernels) else first._replace(kernels=KERNELS.empty())]
    sites, ops = reconcile(
        witnesses.module_calls,
        witnesses.traced if timed else without_kernels,
        rooflines,
        dtype=provenance.called.dtype,
        never_called=list(provenance.source.never_called),
        timed=timed,
        cache_bytes=_cache_bytes(provenance),
    )
    give_back_memory(ops)
    if not timed:
        ops = ops.assign(cpu_us=math.nan, self_cpu_us=math.nan, device_us=math.nan)
    if isinstance(provenance, CallProvenance):
        if device.kind == "cpu" and device.cores and device.threads:
            sites = bound_by_all_cores(
                sites,
                rooflines,
                dtype=provenance.called.dtype,
                cores=device.cores,
                threads=device.threads,
            )
        provenance = _with_overhead(provenance, first.gaps, sites)
    run = Run(
        module_calls=witnesses.module_calls,
        ops=ops,
        kernels=first.kernels,
        rooflines=rooflines,
        sites=sites,
        provenance=_with_doubts(provenance, doubts, sites, rooflines),
        trace=trace,
    )
    return run.replaced(provenance=_with_totals(run.provenance, run.totals))


def assemble_job(
    sums: SiteSums,
    rooflines: pd.DataFrame,
    provenance: TraceProvenance,
    *,
    doubts: Iterable[Warned] = (),
) -> Run:
    """Reconcile what the ranks of a job said of their sites, and return it as a `Run`.

    Args:
        sums: Those of all ranks together.
        rooflines: As for `assemble`.
        provenance: As for `assemble`.
        doubts: As for `assemble`.
    """
    sites, kernels = reconcile_sums(
        sums,
        rooflines,
        dtype=provenance.called.dtype,
        on_device=provenance.has_kernels,
        cache_bytes=_cache_bytes(provenance),
    )
    run = Run(
        module_calls=MODULE_CALLS.empty(),
        ops=OPS.empty(),
        kernels=KERNELS.empty(),
        rooflines=rooflines,
        sites=sites,
        provenance=_with_doubts(provenance, doubts, sites, rooflines),
        op_sums=sums.ops,
        kernel_sums=kernels,
    )
    return run.replaced(provenance=_with_totals(run.provenance, run.totals))


def _cache_bytes(provenance: AnyProvenance) -> float:
    """Return the size of the device's largest cache; 0 where it is not known."""
    return float(max(provenance.device.l2_bytes or 0, provenance.device.l3_bytes or 0))


def _with_doubts(
    provenance: P, doubts: Iterable[Warned], sites: pd.DataFrame, rooflines: pd.DataFrame
) -> P:
    """Add what makes figures doubtful, each once."""
    warnings = [*provenance.warnings, *doubts, *_doubts_of_rates(sites, rooflines, provenance)]
    return msgspec.structs.replace(provenance, warnings=_each_once(warnings))


def _doubts_of_rates(
    sites: pd.DataFrame, rooflines: pd.DataFrame, provenance: AnyProvenance
) -> list[Warned]:
    """Return a warning where work is faster than the ceilings allow."""
    spent_us = provenance.wall_us
    if isinstance(provenance, TraceProvenance):
        spent_us = provenance.trace.device_busy_us
    return [
        *warned("roof", roof_doubts(sites)),
        *warned("total", total_doubts(sites, rooflines, spent_us)),
    ]


def _each_once(warnings: Iterable[Warned]) -> tuple[Warned, ...]:
    first_of: dict[str, Warned] = {}
    for warning in warnings:
        first_of.setdefault(warning.text, warning)
    return tuple(first_of.values())


def _with_overhead(
    provenance: CallProvenance, gaps: pd.DataFrame, sites: pd.DataFrame
) -> CallProvenance:
    """Add the time between ops that is no hidden work."""
    hidden_us = sites.loc[sites["op"] == "(gap)", "time_us"].sum()
    overhead_us = max(float(gaps["duration_us"].sum() - hidden_us), 0.0)
    timing = msgspec.structs.replace(provenance.timing, host_overhead_us=overhead_us)
    return msgspec.structs.replace(provenance, timing=timing)


def _with_totals(provenance: AnyProvenance, totals: Totals) -> AnyProvenance:
    saved = SavedTotals(
        matmul_flops=totals.matmul_flops,
        vector_flops=totals.vector_flops,
        flops=totals.flops,
        flops_at_most=totals.flops_at_most,
        coverage_frac=totals.coverage_frac,
    )
    return msgspec.structs.replace(provenance, totals=saved)


def gathered(runs: Sequence[Run]) -> Run:
    """Return the run of all ranks of a job: their tables one below the other, with a column `rank`.

    FLOPs add up. The wall time is that of the rank whose calls took longest; the time between ops,
    and that in which a device was busy, are means. The trace is rank 0's.

    Args:
        runs: Those of the ranks, each with its own rank in the provenance, by rank.
    """
    sites, site_ids = _gathered_sites(runs)
    ops_before = _before([len(run.ops) for run in runs])
    calls_before = _before([len(run.module_calls) for run in runs])
    ops = []
    kernels = []
    module_calls = []
    for rank, run in enumerate(runs):
        places = np.append(site_ids[rank], -1)  # the last is for ops of no site
        of_rank = run.ops.assign(rank=rank, site_id=places[run.ops["site_id"].to_numpy()])
        ops.append(_moved(of_rank, ops_before[rank], "op_id", "parent_op_id"))
        kernels.append(_moved(run.kernels, ops_before[rank], "op_id"))
        calls = run.module_calls.assign(rank=rank)
        module_calls.append(_moved(calls, calls_before[rank], "call_id", "parent_call_id"))
    every_kernel = _stacked(KERNELS, kernels)
    every_kernel["kernel_id"] = np.arange(len(every_kernel))
    run = Run(
        module_calls=_stacked(MODULE_CALLS, module_calls),
        ops=_stacked(OPS, ops),
        kernels=every_kernel,
        rooflines=runs[0].rooflines,
        sites=sites,
        provenance=_gathered_provenance(runs),
        trace=runs[0].trace,
        collectives=_stacked(COLLECTIVES, [run.collectives for run in runs]),
    )
    return run.replaced(provenance=_with_totals(run.provenance, run.totals))


def _before(sizes: list[int]) -> list[int]:
    """Return how many rows come before each table's."""
    return [sum(sizes[:number]) for number in range(len(sizes))]


def _moved(frame: pd.DataFrame, by: int, *names: str) -> pd.DataFrame:
    """Return a table with so much added to its ids; -1 stays."""
    moved = {name: frame[name].where(frame[name] < 0, frame[name] + by) for name in names}
    return frame.assign(**moved)


def _stacked(table: Table, frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the tables one below the other; a column that one lacks is blank there."""
    filled = [frame for frame in frames if len(frame)]
    if not filled:
        return table.empty()
    there = {name for frame in filled for name in frame.columns}
    own = [column for column in table.columns if not column.rare or column.name in there]
    rows = []
    for frame in filled:
        blank = {c.name: c.blank for c in own if c.name not in frame.columns}
        rows.append(frame.assign(**blank)[[column.name for column in own]])
    return table.check(pd.concat(rows, ignore_index=True))


def _gathered_sites(runs: Sequence[Run]) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Return the sites of all ranks by time, and for each rank the new number of each site."""
    frames = [run.sites.assign(rank=rank) for rank, run in enumerate(runs)]
    sites = _stacked(SITES, frames)
    order = np.argsort(-sites["time_us"].fillna(0.0).to_numpy(), kind="stable")
    place = np.empty(len(sites), dtype=np.int64)
    place[order] = np.arange(len(sites))
    sites = sites.iloc[order].reset_index(drop=True)
    sites["site_id"] = np.arange(len(sites))
    time_us = sites["time_us"]
    sites["time_share_frac"] = time_us / (time_us.sum() or math.nan)
    ends = np.cumsum([len(frame) for frame in frames])[:-1]
    return SITES.check(sites), np.split(place, ends)


def _gathered_provenance(runs: Sequence[Run]) -> CallProvenance:
    parts = [run.provenance for run in runs]
    calls = [part for part in parts if isinstance(part, CallProvenance)]
    first = calls[0]
    slowest = max(calls, key=lambda part: part.wall_us)
    overheads = [part.timing.host_overhead_us for part in calls]
    busy = [part.timing.device_busy_us for part in calls]
    timing = msgspec.structs.replace(
        slowest.timing,
        host_overhead_us=float(np.mean(overheads)),
        device_busy_us=float(np.mean(busy)),
    )
    ranks = tuple(rank for part in calls for rank in part.ranks)
    sums = [collective_sums(run.kernels) for run in runs]
    sums += [sums_of_sent(run.collectives) for run in runs]
    warnings = list(first.warnings)
    said = {warning.text for warning in warnings}
    for rank, part in enumerate(calls):
        for warning in part.warnings:
            if warning.text not in said:
                text = f"rank {rank}: {warning.text}"
                warnings.append(msgspec.structs.replace(warning, text=text))
    telemetry = first.telemetry
    if telemetry:
        energy_j = sum(part.telemetry.energy_j for part in calls if part.telemetry)
        telemetry = msgspec.structs.replace(telemetry, energy_j=energy_j)
    return msgspec.structs.replace(
        first,
        called=_called_by_all(first, len(runs)),
        timing=timing,
        ranks=ranks,
        collectives=collective_facts(add_up_collectives(sums)),
        telemetry=telemetry,
        warnings=_each_once(warnings),
    )


def _called_by_all(first: CallProvenance, ranks: int) -> Called:
    """Return what all ranks were called with: parallel data are as many batches as ranks."""
    strategy = first.parallel.strategy if first.parallel else ""
    called = first.called
    if strategy not in ("ddp", "fsdp"):
        return called if strategy == "tp" else _without_sizes(called)
    samples = None if called.samples is None else called.samples * ranks
    tokens = None if called.tokens is None else called.tokens * ranks
    return msgspec.structs.replace(called, samples=samples, tokens=tokens)


def _without_sizes(called: Called) -> Called:
    return msgspec.structs.replace(called, samples=None, tokens=None)
