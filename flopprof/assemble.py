"""The one place where a `Run` is made: from witnesses, rooflines and provenance."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import msgspec
import pandas as pd

from flopprof.judge.hidden import bound_by_all_cores
from flopprof.judge.reconcile import reconcile
from flopprof.judge.roofs import roof_doubts, total_doubts
from flopprof.judge.spread import TracedCall
from flopprof.provenance import (
    AnyProvenance,
    CallProvenance,
    CountProvenance,
    SavedTotals,
    TraceProvenance,
    Warned,
    warned,
)
from flopprof.run import Run, Totals
from flopprof.tables import KERNELS
from flopprof.trace.read import Trace


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
    sites, ops = reconcile(
        witnesses.module_calls,
        witnesses.traced if timed else [first._replace(kernels=KERNELS.empty())],
        rooflines,
        dtype=provenance.called.dtype,
        never_called=list(provenance.source.never_called),
        timed=timed,
        cache_bytes=float(max(device.l2_bytes or 0, device.l3_bytes or 0)),
    )
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
    warnings = [*provenance.warnings, *doubts, *_doubts_of_rates(sites, rooflines, provenance)]
    provenance = msgspec.structs.replace(provenance, warnings=_each_once(warnings))
    run = Run(
        module_calls=witnesses.module_calls,
        ops=ops,
        kernels=first.kernels,
        rooflines=rooflines,
        sites=sites,
        provenance=provenance,
        trace=trace,
    )
    return run.replaced(provenance=_with_totals(provenance, run.totals))


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
