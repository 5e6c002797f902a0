"""What a job of several ranks is asked: who is slow, in which step, what communication costs."""

import math
from collections.abc import Mapping
from statistics import median
from typing import Annotated, Any

import numpy as np
import pandas as pd
from msgspec import Meta

from flopprof.provenance import Part, Rank, Step, TraceProvenance
from flopprof.report.answer import Rate, Share, Time, Whole, json_block
from flopprof.run import Run
from flopprof.units import duration, percent, si

LEAST = 3  # values of which one can be told apart from the others: of two, neither
APART_FRAC = 0.05  # of the median: like GPUs' clocks differ by a few per cent at one power limit
APART_SPREADS = 3 * 1.4826  # median deviations: three standard ones, were they normal
LISTED = 3  # collectives and ranks that the summary names


class JobStep(Part, frozen=True, kw_only=True):
    """One profiler step over the ranks that have it.

    Attributes:
        step: Its number, as the profiler has it.
        ranks: How many ranks have it.
        median_us: Median of the ranks' times of the step.
        slowest_rank: The rank whose step took longest.
        slowest_us: Its time.
        longest_compute_rank: The rank whose own compute kernels took longest, which the others
            wait for; null without kernels.
        longest_compute_us: Their time.
        slow_ranks: Ranks whose step took apart longer than the others' (see `job`).
    """

    step: str
    ranks: Whole
    median_us: Time
    slowest_rank: int
    slowest_us: Time
    longest_compute_rank: int | None
    longest_compute_us: Time
    slow_ranks: tuple[int, ...]


class JobRank(Part, frozen=True, kw_only=True):
    """One rank of a job.

    Attributes:
        rank: Its number.
        median_step_us: Median of its profiler steps.
        compute_us: Union of the intervals of its own compute kernels.
        communication_us: Union of the collectives' intervals.
        exposed_communication_us: The part of it with no compute kernel of the rank beside it.
        exposed_frac: That over the time in which any kernel of the rank ran.
        achieved_flops_per_s: Its FLOPs over `compute_us`.
    """

    rank: int
    median_step_us: Time
    compute_us: Time
    communication_us: Time
    exposed_communication_us: Time
    exposed_frac: Share
    achieved_flops_per_s: Rate


class Collective(Part, frozen=True, kw_only=True):
    """Calls of one collective with one size in one process group, of all ranks.

    A call's time has the wait for the last rank to come; that of the shortest call has least of it.

    Attributes:
        collective: all_reduce, all_gather, reduce_scatter, …; null where no name tells.
        process_group: Name of the group; null where the trace does not tell, as below.
        group_size: Ranks in it.
        message_bytes: The larger of what a rank gives and what it gets.
        calls: Calls, on all ranks together.
        time_us: Sum of their times.
        median_us: Median of them.
        shortest_us: The shortest.
        algorithm_bytes_per_s: message_bytes over median_us.
        bus_bytes_per_s: The same times what NCCL's tests multiply with, for a group of n:
            all-reduce 2(n-1)/n; all-gather, reduce-scatter, all-to-all, gather and scatter
            (n-1)/n; broadcast,
            reduce, send and recv 1.
        shortest_bus_bytes_per_s: The same of the shortest call.
    """

    collective: str | None
    process_group: str | None
    group_size: Annotated[int, Meta(ge=0)] | None
    message_bytes: Annotated[float, Meta(ge=0)]
    calls: Whole
    time_us: Time
    median_us: Time
    shortest_us: Time
    algorithm_bytes_per_s: Rate
    bus_bytes_per_s: Rate
    shortest_bus_bytes_per_s: Rate


class Job(Part, frozen=True, kw_only=True):
    """A job's ranks, steps and collectives; lists of ranks name those apart from the others.

    Attributes:
        ranks: Each rank that was read.
        steps: Each profiler step.
        collectives: By kind, group and size; those of most time first.
        straggler_ranks: Ranks whose own compute took longer.
        odd_rate_ranks: Ranks whose FLOP/s are lower or higher.
        slow_steps: Steps whose median over the ranks is longer than other steps'.
    """

    ranks: tuple[JobRank, ...]
    steps: tuple[JobStep, ...]
    collectives: tuple[Collective, ...]
    straggler_ranks: tuple[int, ...]
    odd_rate_ranks: tuple[int, ...]
    slow_steps: tuple[str, ...]


@json_block("job")
def job(run: Run) -> Job | None:
    """Steps, ranks and collectives of a job; null for one rank without steps and collectives.

    A value is apart from the others where three or more are known and it is farther from their
    median than 5 % of that and than three standard deviations, by the median deviation.
    """
    provenance = run.provenance
    if not isinstance(provenance, TraceProvenance):
        return None
    collectives = _collectives(run.kernels)
    if len(provenance.ranks) < 2 and not provenance.steps and not collectives:
        return None
    steps = _steps(provenance.steps)
    ranks = [_rank(one, provenance.steps) for one in provenance.ranks if one.fault is None]
    compute = {rank.rank: rank.compute_us for rank in ranks}
    rates = {rank.rank: rank.achieved_flops_per_s for rank in ranks}
    medians = {step.step: step.median_us for step in steps}
    return Job(
        ranks=tuple(ranks),
        steps=tuple(steps),
        collectives=tuple(collectives),
        straggler_ranks=tuple(rank for rank, by in apart(compute).items() if by > 0),
        odd_rate_ranks=tuple(apart(rates)),
        slow_steps=tuple(step for step, by in apart(medians).items() if by > 0),
    )


def apart(values: Mapping[Any, float]) -> dict[Any, float]:
    """Return the keys whose values are apart from the others, with their distance to the median."""
    numbers = {key: value for key, value in values.items() if not math.isnan(value)}
    if len(numbers) < LEAST:
        return {}
    middle = median(numbers.values())
    spread = median(abs(value - middle) for value in numbers.values())
    usual = max(APART_FRAC * abs(middle), APART_SPREADS * spread)
    distances = {key: value - middle for key, value in numbers.items()}
    return {key: distance for key, distance in distances.items() if abs(distance) > usual}


def _rank(rank: Rank, steps: tuple[Step, ...]) -> JobRank:
    times = [step.duration_us for step in steps if step.rank == rank.rank]
    exposed_us = max(rank.communication_us - rank.overlapped_us, 0.0)
    return JobRank(
        rank=rank.rank,
        median_step_us=median(times) if times else math.nan,
        compute_us=rank.device_busy_us,
        communication_us=rank.communication_us,
        exposed_communication_us=exposed_us,
        exposed_frac=_ratio(exposed_us, rank.all_kernels_us),
        achieved_flops_per_s=_ratio(rank.flops, rank.device_busy_us) * 1e6,
    )


def step_times(steps: tuple[Step, ...]) -> dict[str, dict[int, Step]]:
    """Return each step's ranks, in order of the profiler's numbers."""
    by_step: dict[str, dict[int, Step]] = {}
    for step in steps:
        by_step.setdefault(step.step, {}).setdefault(step.rank, step)
    names = sorted(by_step, key=_order)
    return {name: by_step[name] for name in names}


def _order(step: str) -> tuple[bool, int, str]:
    is_number = step.isdecimal() and len(step) < 20
    return (not is_number, int(step) if is_number else 0, step)


def _steps(steps: tuple[Step, ...]) -> list[JobStep]:
    rows = []
    for name, by_rank in step_times(steps).items():
        times = {rank: step.duration_us for rank, step in by_rank.items()}
        compute = {rank: step.kernel_time_us for rank, step in by_rank.items()}
        slowest = max(times, key=lambda rank: times[rank])
        busiest = _longest(compute)
        rows.append(
            JobStep(
                step=name,
                ranks=len(by_rank),
                median_us=median(times.values()),
                slowest_rank=slowest,
                slowest_us=times[slowest],
                longest_compute_rank=busiest,
                longest_compute_us=math.nan if busiest is None else compute[busiest],
                slow_ranks=tuple(rank for rank, by in apart(times).items() if by > 0),
            )
        )
    return rows


def _longest(times: dict[int, float]) -> int | None:
    longest = {rank: time for rank, time in times.items() if time > 0}
    return max(longest, key=lambda rank: longest[rank]) if longest else None


def _collectives(kernels: pd.DataFrame) -> list[Collective]:
    """Return a row per kind, group and size."""
    if "collective" not in kernels:
        return []
    calls = kernels[kernels["kind"] == "communication"]
    keys = ["collective", "process_group", "group_size", "message_bytes"]
    groups = calls.groupby(keys, dropna=False, observed=True)["duration_us"]
    sums = groups.agg(["size", "sum", "median", "min"])
    rows = [
        _collective(key, *figures) for key, figures in zip(sums.index, sums.to_numpy(), strict=True)
    ]
    return sorted(rows, key=lambda row: -row.time_us)


def _collective(
    key: Any, calls: float, time_us: float, median_us: float, shortest_us: float
) -> Collective:
    kind, group, group_size, message_bytes = key
    factor = bus_factor(kind, group_size)
    rate = _ratio(message_bytes, median_us) * 1e6
    return Collective(
        collective=kind or None,
        process_group=group or None,
        group_size=None if np.isnan(group_size) else int(group_size),
        message_bytes=float(message_bytes),
        calls=int(calls),
        time_us=float(time_us),
        median_us=float(median_us),
        shortest_us=float(shortest_us),
        algorithm_bytes_per_s=rate,
        bus_bytes_per_s=rate * factor,
        shortest_bus_bytes_per_s=_ratio(message_bytes, shortest_us) * 1e6 * factor,
    )


def bus_factor(collective: str, group_size: float) -> float:
    """Return what NCCL's tests multiply an algorithm's bandwidth with; NaN where not known.

    Source: NVIDIA/nccl-tests, doc/PERFORMANCE.md.
    """
    if collective in {"broadcast", "reduce", "send", "recv"}:
        return 1.0
    if not group_size > 0:
        return math.nan
    others = (group_size - 1) / group_size
    if collective == "all_reduce":
        return 2 * others
    shares = {"all_gather", "reduce_scatter", "all_to_all", "gather", "scatter"}
    return others if collective in shares else math.nan


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else math.nan


def job_lines(run: Run) -> list[tuple[str, str]]:
    """Return the summary's lines on a job: its steps, who is slow, and what communication costs."""
    facts = job(run)
    if facts is None:
        return []
    lines = []
    if len(facts.ranks) > 1 and facts.steps:
        slowest = max(facts.steps, key=lambda step: step.slowest_us)
        middle = duration(median(step.median_us for step in facts.steps))
        text = f"{len(facts.steps)} steps of {len(facts.ranks)} ranks, median {middle}; longest "
        text += (
            f"{duration(slowest.slowest_us)}: step {slowest.step} of rank {slowest.slowest_rank}"
        )
        lines.append(("Job", text))
    for remark, ranks in (
        ("own compute took apart longer", facts.straggler_ranks),
        ("FLOP/s are apart from the others'", facts.odd_rate_ranks),
    ):
        if ranks:
            lines.append(("", f"{_ranks_text(ranks)}: {remark}"))
    exposed = [rank for rank in facts.ranks if rank.exposed_communication_us > 0]
    if exposed:
        worst = max(exposed, key=lambda rank: rank.exposed_frac)
        text = f"{percent(worst.exposed_frac)} of the time of rank {worst.rank}'s kernels is "
        text += (
            f"communication with no compute beside it ({duration(worst.exposed_communication_us)})"
        )
        lines.append(("Exposed", text + (": the most" if len(facts.ranks) > 1 else "")))
    rated = [row for row in facts.collectives if row.bus_bytes_per_s > 0]
    lines += [("Traffic", collective_text(row)) for row in rated[:LISTED]]
    return lines


def _ranks_text(ranks: tuple[int, ...]) -> str:
    numbers = ", ".join(map(str, ranks[:LISTED]))
    more = f" and {len(ranks) - LISTED} more" if len(ranks) > LISTED else ""
    return f"{'ranks' if len(ranks) > 1 else 'rank'} {numbers}{more}"


def collective_text(row: Collective) -> str:
    """Return a collective as a line: what it sends, among whom, how often and how fast."""
    text = f"{row.collective or 'collective'} of {si(row.message_bytes, 'B')}"
    if row.group_size is not None:
        text += f" among {row.group_size}"
    text += f": {row.calls} calls, {duration(row.time_us)}; bus {si(row.bus_bytes_per_s, 'B/s')}"
    return f"{text}, {si(row.shortest_bus_bytes_per_s, 'B/s')} of the shortest call"
