"""The figures that people decide by, of one run: throughput, utilisation, and what holds it back.

They are made of sites, ceilings and times alone, so every saved run has them.
"""

import math
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from flopprof.jobfacts import Part
from flopprof.judge.levels import MAIN_LEVELS, memory_of_sites
from flopprof.provenance import CallProvenance, CountProvenance, TraceProvenance, ranks_of
from flopprof.report.answer import Share, json_fields
from flopprof.report.noise import tied_at_top, was_busy
from flopprof.run import Run

Amount = Annotated[float, Meta(ge=0)]

HOLDERS = ("compute", "memory", "overhead", "unknown")
"""What may hold time: a roof, neither of them, or what has no known roof."""


class Figures(Part, frozen=True, kw_only=True):
    """Figures of one call, or of a trace's whole span; NaN is not known.

    Attributes:
        samples_per_s: Examples of the batch over the wall time of a bare call.
        tokens_per_s: The same for tokens, where an input is tokens.
        flops_per_sample: FLOPs over the examples of the batch.
        flops_per_token: FLOPs over the tokens of the input.
        achieved_bytes_per_s: Compulsory bytes over wall time; those of sites that do not tell
            theirs, such as a concatenation's, are left out.
        mfu_frac: Model FLOPs utilisation: the matmul FLOPs of the mathematics (what is recomputed
            is not among them), over wall time, over the matmul ceiling of the run's type.
        hfu_frac: Hardware FLOPs utilisation: with what is recomputed; equal where nothing is.
        mbu_frac: Memory bandwidth utilisation: compulsory bytes over wall time, over bandwidth.
        overhead_frac: Share of the time in which no op ran (CPU) or the device was idle.
        launches: Compute kernels of one call; NaN where nothing is launched.
        energy_per_sample_j: Energy over the examples, where it was measured.
        attainable_wall_us: What the call would take if each site ran at its roof and nothing lay
            between them; sites without a known roof keep their time.
        tied_sites: Sites that cannot be told by time from the one that takes most: among them a
            rank means nothing. NaN where calls were not traced several times.
        held_frac: Share of the time that each of `HOLDERS` holds; empty without times. On a CPU
            that others used as well, time between ops is `unknown`.
    """

    samples_per_s: Amount
    tokens_per_s: Amount
    flops_per_sample: Amount
    flops_per_token: Amount
    achieved_bytes_per_s: Amount
    mfu_frac: Amount
    hfu_frac: Amount
    mbu_frac: Amount
    overhead_frac: Share
    launches: Amount
    energy_per_sample_j: Amount
    attainable_wall_us: Amount
    tied_sites: Amount
    held_frac: dict[str, Share]


@json_fields
def figures(run: Run) -> Figures:
    """Return the figures of a run."""
    called = run.provenance.called
    samples = _number(called.samples)
    tokens = _number(called.tokens)
    spent_us = spent_wall_us(run)
    devices_us = spent_us * sharing_ranks(run)  # what they all spent: peaks are of one device
    matmul = _matmul_flops(run)
    peak = peak_flops_per_s(run)
    moved = _moved_bytes(run)
    counted = float(run.totals.flops)
    return Figures(
        samples_per_s=rate(samples, spent_us),
        tokens_per_s=rate(tokens, spent_us),
        flops_per_sample=ratio(counted, samples),
        flops_per_token=ratio(counted, tokens),
        achieved_bytes_per_s=rate(moved, spent_us),
        mfu_frac=ratio(rate(matmul["mathematics"], devices_us), peak),
        hfu_frac=ratio(rate(matmul["executed"], devices_us), peak),
        mbu_frac=ratio(rate(moved, devices_us), peak_bytes_per_s(run)),
        overhead_frac=_overhead_frac(run),
        launches=_launches(run),
        energy_per_sample_j=ratio(_energy_j(run), samples),
        attainable_wall_us=_attainable_wall_us(run),
        tied_sites=tied_at_top(run),
        held_frac=_held_frac(run),
    )


def spent_wall_us(run: Run) -> float:
    """Return the time that rates are made of: a bare call's, or the spans of a trace's ranks."""
    provenance = run.provenance
    if isinstance(provenance, TraceProvenance):
        return provenance.trace.span_us  # of all ranks together
    return provenance.wall_us


def sharing_ranks(run: Run) -> int:
    """Return how many processes shared the timed call: its sites are all ranks', its time is one's.

    1 for one process, and for traces, whose time is that of all ranks together.
    """
    if not isinstance(run.provenance, CallProvenance):
        return 1
    return max(len(run.provenance.ranks), 1)


def main_roofline(run: Run) -> Any:
    """Return the row of the run's dtype × matmul × main memory, or None."""
    roofs = run.rooflines
    roofs = roofs[
        (roofs["dtype"] == run.provenance.called.dtype)
        & (roofs["unit"] == "tensor")
        & roofs["memory_level"].isin(MAIN_LEVELS)
    ]
    return next(roofs.itertuples(index=False), None)


def peak_flops_per_s(run: Run) -> float:
    """Return the matmul ceiling of the run's type; NaN where it is not known or not valid."""
    roof = main_roofline(run)
    return float(roof.peak_flops_per_s) if roof is not None and roof.valid else math.nan


def peak_bytes_per_s(run: Run) -> float:
    """Return the bandwidth of main memory; NaN where it is not known or not valid."""
    usable = run.rooflines[run.rooflines["valid"]]
    main = usable.loc[usable["memory_level"].isin(MAIN_LEVELS), "peak_bytes_per_s"]
    return float(main.max())


def mathematics_flops(run: Run) -> float:
    """Return the matmul FLOPs of the mathematics: what is recomputed is not among them."""
    return _matmul_flops(run)["mathematics"]


def _matmul_flops(run: Run) -> dict[str, float]:
    """Return matmul FLOPs with and without those that are computed again."""
    sites = run.sites
    if run.recorded_elsewhere:
        sites = sites[sites["time_us"] > 0]
    each = sites["matmul_flops"].fillna(sites["matmul_flops_at_least"]).fillna(0.0)
    again = float(each[sites["phase"] == "recompute"].sum())
    executed = float(each.sum())
    return {"executed": executed, "mathematics": executed - again}


def _moved_bytes(run: Run) -> float:
    """Return compulsory bytes; of a compiled call, those that Inductor counted for its program."""
    provenance = run.provenance
    if isinstance(provenance, CallProvenance) and provenance.compiled:
        return provenance.compiled.min_bytes
    sites = run.sites
    if run.recorded_elsewhere:
        sites = sites[sites["time_us"] > 0]
    return float(sites["min_bytes"].sum(min_count=1))


def _launches(run: Run) -> float:
    if not run.has_kernels:
        return math.nan
    if isinstance(run.provenance, TraceProvenance):
        return float(run.provenance.trace.kernels)
    return float((run.kernels["kind"] == "compute").sum())


def _energy_j(run: Run) -> float:
    """Return the energy of one call; NaN where it was not measured."""
    provenance = run.provenance
    if not isinstance(provenance, CallProvenance) or provenance.telemetry is None:
        return math.nan
    return ratio(provenance.telemetry.energy_j, float(provenance.telemetry.calls))


def _describes_the_timed_call(run: Run) -> bool:
    """Return whether the sites are of the timed call: of a compiled one they are the eager's."""
    provenance = run.provenance
    if isinstance(provenance, CountProvenance):
        return False
    return not (isinstance(provenance, CallProvenance) and provenance.compiled)


def _overhead_frac(run: Run) -> float:
    """Return the share of time outside ops on a CPU; on a device, the share in which it idles."""
    provenance = run.provenance
    if not _describes_the_timed_call(run):
        return math.nan
    if isinstance(provenance, TraceProvenance):
        busy_frac = ratio(provenance.trace.device_busy_us, provenance.trace.span_us)
        return max(1 - busy_frac, 0.0) if run.has_kernels and busy_frac > 0 else math.nan
    assert isinstance(provenance, CallProvenance)
    timing = provenance.timing
    if run.has_kernels:
        busy_frac = ratio(timing.device_busy_us, timing.wall_us.median)
        return math.nan if math.isnan(busy_frac) else max(1 - busy_frac, 0.0)
    in_ops_us = float(run.sites["time_us"].sum(min_count=1)) / sharing_ranks(run)
    return ratio(timing.host_overhead_us, in_ops_us + timing.host_overhead_us)


def _held_frac(run: Run) -> dict[str, float]:
    """Return how much of the time each roof holds, or none: `overhead` is launch, Python, gaps."""
    outside = _overhead_frac(run)
    times_us = run.sites["time_us"].fillna(0.0)
    if math.isnan(outside) or not times_us.sum() > 0:
        return {}
    holder = run.sites["bound"].where(run.sites["bound"].isin(HOLDERS), "unknown")
    shares_in_ops = times_us.groupby(holder).sum() / times_us.sum() * (1 - outside)
    shares = {name: float(shares_in_ops.get(name, 0.0)) for name in HOLDERS}
    others_had_it = was_busy(run) and not len(run.kernels)  # their work counts between ops, too
    shares["unknown" if others_had_it else "overhead"] += outside
    return shares


def _attainable_wall_us(run: Run) -> float:
    """Return the time of all sites at their roofs; NaN where no site has one."""
    if not _describes_the_timed_call(run) or not run.sites["time_us"].gt(0).any():
        return math.nan
    sites = run.sites
    times_us = sites["time_us"].fillna(0.0).to_numpy() * _untraced_share(run)
    by_flops_us = (sites["flops"] / sites["attainable_flops_per_s"]).to_numpy() * 1e6
    bytes_per_s = memory_of_sites(sites, run.rooflines)[1]
    by_bytes_us = (sites["min_bytes"] / bytes_per_s).to_numpy() * 1e6
    at_roof_us = np.where((sites["flops"] == 0).to_numpy(), by_bytes_us, by_flops_us)
    if np.isnan(at_roof_us[times_us > 0]).all():
        return math.nan
    ranks = max(sum(rank.fault is None for rank in ranks_of(run.provenance)), 1)
    attainable_us = float(np.fmin(at_roof_us, times_us).sum()) / ranks
    return min(attainable_us, spent_wall_us(run) * sharing_ranks(run) / ranks)


def _untraced_share(run: Run) -> float:
    """Return what part of a site's time a bare call spends there: tracing lengthens host time."""
    provenance = run.provenance
    if run.has_kernels or not isinstance(provenance, CallProvenance):
        return 1.0
    in_ops_us = float(run.sites["time_us"].sum()) / sharing_ranks(run)
    traced_us = in_ops_us + provenance.timing.host_overhead_us
    share = ratio(provenance.wall_us, traced_us)
    return min(share, 1.0) if share > 0 else 1.0


def _number(count: int | None) -> float:
    return math.nan if count is None else float(count)


def rate(count: float, time_us: float) -> float:
    """Return `count` per second; NaN without a time."""
    return float(count) / float(time_us) * 1e6 if time_us > 0 else math.nan


def ratio(part: float, whole: float) -> float:
    """Return `part` over `whole`; NaN where either is not known."""
    return float(part) / float(whole) if whole > 0 else math.nan
