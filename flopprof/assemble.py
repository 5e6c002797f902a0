"""The one place where a `Run` is made: from witnesses, rooflines and provenance."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import pandas as pd

from flopprof.judge.hidden import bound_by_all_cores
from flopprof.judge.reconcile import reconcile, reconcile_sums
from flopprof.judge.roofs import roof_doubts, total_doubts
from flopprof.judge.spread import TracedCall
from flopprof.judge.sums import SiteSums
from flopprof.provenance import (
    AnyProvenance,
    CallProvenance,
    CountProvenance,
    SavedTotals,
    TraceProvenance,
    Warned,
    warned,
)
from flopprof.run import Run
from flopprof.tables import KERNELS, MODULE_CALLS, OPS
from flopprof.totals import Totals
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
    sites, ops = reconcile(
        witnesses.module_calls,
        witnesses.traced if timed else [first._replace(kernels=KERNELS.empty())],
        rooflines,
        dtype=provenance.called.dtype,
        never_called=list(provenance.source.never_called),
        timed=timed,
        cache_bytes=_cache_bytes(provenance),
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
