"""What a job of several ranks is asked: who is slow, in which step, what communication costs."""

import math
from collections.abc import Mapping
from statistics import median
from typing import Annotated, Any

from msgspec import Meta

from flopprof.jobfacts import CollectiveTimes, Link, ModuleLoad, Parallel, Part, Rank, Step
from flopprof.provenance import CallProvenance, Provenance, TraceProvenance, ranks_of
from flopprof.report.answer import Rate, Share, Time, Whole, json_block
from flopprof.report.figures import rate, ratio
from flopprof.report.groups import JobGroup, job_groups, node_links
from flopprof.run import Run
from flopprof.trace.collectives import collective_facts, collective_sums
from flopprof.units import duration, percent, si

LEAST = 3  # values of which one can be told apart from the others: of two, neither
APART_FRAC = 0.05  # of the median: like GPUs' clocks differ by a few per cent at one power limit
APART_SPREADS = 3 * 1.4826  # median deviations: three standard ones, were they normal
NAMED_RANKS = 8  # and layers, of a call that ranks share
LISTED = 3  # collectives and ranks that the summary names
_MOST_DIGITS = 20  # of a step's number


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
        wall_us: Median of its bare calls, where they were timed here.
        median_step_us: Median of its profiler steps.
        compute_us: Union of the intervals of its own compute kernels; of a rank on a CPU, of its
            ops that compute.
        communication_us: Union of the collectives' intervals.
        exposed_communication_us: The part of it with no compute of the rank beside it.
        exposed_frac: That over the time in which it computed or sent.
        achieved_flops_per_s: Its FLOPs over `compute_us`.
    """

    rank: int
    wall_us: Time
    median_step_us: Time
    compute_us: Time
    communication_us: Time
    exposed_communication_us: Time
    exposed_frac: Share
    achieved_flops_per_s: Rate


class ModuleImbalance(Part, frozen=True, kw_only=True):
    """How a module's time differs by rank, without the modules inside it.

    Attributes:
        module_path: The module; "" for what is in none.
        ranks: How many ranks have it.
        mean_us: Mean of their times.
        longest_us: The longest.
        longest_rank: The rank on which it is.
        imbalance_frac: The longest over the mean, less 1.
    """

    module_path: str
    ranks: Whole
    mean_us: Time
    longest_us: Time
    longest_rank: int
    imbalance_frac: Annotated[float, Meta(ge=0)]


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
            (n-1)/n; broadcast, reduce, send and recv 1.
        shortest_bus_bytes_per_s: The same of the shortest call.
        link: What connects the group's GPUs, where all are on one node and their board tells it;
            null elsewhere.
        link_bytes_per_s: The link's peak, one way.
        bus_frac: Bus bandwidth over that.
        shortest_bus_frac: The same of the shortest call.
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
    link: str | None
    link_bytes_per_s: Rate
    bus_frac: Annotated[float, Meta(ge=0)]
    shortest_bus_frac: Annotated[float, Meta(ge=0)]


class Job(Part, frozen=True, kw_only=True):
    """A job's ranks, steps and collectives; lists of ranks name those apart from the others.

    Attributes:
        mfu_frac: Model FLOPs utilisation of the ranks that were read, over their spans.
        missing_ranks: Ranks of the job of which there is no trace, or none that can be read.
        ranks: Each rank that was read.
        steps: Each profiler step.
        collectives: By kind, group and size; those of most time first.
        straggler_ranks: Ranks whose own compute took longer.
        odd_rate_ranks: Ranks whose FLOP/s are lower or higher.
        slow_steps: Steps whose median over the ranks is longer than other steps'.
        groups: Process groups, those of most time first.
        modules: How modules' times differ by rank, those first that cost most.
    """

    mfu_frac: Annotated[float, Meta(ge=0)]
    missing_ranks: tuple[int, ...]
    ranks: tuple[JobRank, ...]
    steps: tuple[JobStep, ...]
    collectives: tuple[Collective, ...]
    straggler_ranks: tuple[int, ...]
    odd_rate_ranks: tuple[int, ...]
    slow_steps: tuple[str, ...]
    groups: tuple[JobGroup, ...]
    modules: tuple[ModuleImbalance, ...]


@json_block("job")
def job(run: Run) -> Job | None:
    """Steps, ranks and collectives of a job; null for one rank without steps and collectives.

    A value is apart from the others where three or more are known and it is farther from their
    median than 5 % of that and than three standard deviations, by the median deviation.
    """
    provenance = run.provenance
    if not isinstance(provenance, TraceProvenance | CallProvenance):
        return None
    profiled = steps_of(provenance)
    collectives = _collectives(run, provenance)
    if len(provenance.ranks) < 2 and not profiled and not collectives:
        return None
    steps = _steps(profiled)
    ranks = [_rank(one, profiled) for one in ranks_of(provenance) if one.fault is None]
    traced = provenance if isinstance(provenance, TraceProvenance) else None
    compute = {rank.rank: rank.compute_us for rank in ranks}
    rates = {rank.rank: rank.achieved_flops_per_s for rank in ranks}
    medians = {step.step: step.median_us for step in steps}
    return Job(
        mfu_frac=run.figures.mfu_frac,
        missing_ranks=traced.trace.missing_ranks if traced else (),
        ranks=tuple(ranks),
        steps=tuple(steps),
        collectives=tuple(collectives),
        straggler_ranks=tuple(rank for rank, by in apart(compute).items() if by > 0),
        odd_rate_ranks=tuple(apart(rates)),
        slow_steps=tuple(step for step, by in apart(medians).items() if by > 0),
        groups=tuple(job_groups(traced)) if traced else (),
        modules=tuple(map(_imbalance, traced.loads)) if traced else (),
    )


def steps_of(provenance: Provenance) -> tuple[Step, ...]:
    """Return the profiler's steps of traces; a call that was timed here has none."""
    return provenance.steps if isinstance(provenance, TraceProvenance) else ()


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
        wall_us=rank.wall_us,
        median_step_us=median(times) if times else math.nan,
        compute_us=rank.device_busy_us,
        communication_us=rank.communication_us,
        exposed_communication_us=exposed_us,
        exposed_frac=ratio(exposed_us, rank.all_kernels_us),
        achieved_flops_per_s=rate(rank.flops, rank.device_busy_us),
    )


def step_times(steps: tuple[Step, ...]) -> dict[str, dict[int, Step]]:
    """Return each step's ranks, in order of the profiler's numbers."""
    by_step: dict[str, dict[int, Step]] = {}
    for step in steps:
        by_step.setdefault(step.step, {}).setdefault(step.rank, step)
    names = sorted(by_step, key=_order)
    return {name: by_step[name] for name in names}


def _order(step: str) -> tuple[bool, int, str]:
    """Return a key that sorts steps by number, and those without one behind them, by name."""
    is_number = step.isdecimal() and len(step) < _MOST_DIGITS
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


def _collectives(run: Run, provenance: TraceProvenance | CallProvenance) -> list[Collective]:
    """Return a row per kind, group and size."""
    times = provenance.collectives
    if times is None:  # a run saved before they were kept; or of a call that no others shared
        is_of_traces = isinstance(provenance, TraceProvenance)
        times = collective_facts(collective_sums(run.kernels)) if is_of_traces else ()
    links = node_links(provenance) if isinstance(provenance, TraceProvenance) else {}
    return [_collective(row, links.get(row.process_group or "")) for row in times]


def _collective(times: CollectiveTimes, link: Link | None) -> Collective:
    factor = bus_factor(times.collective or "", times.group_size or math.nan)
    algorithm = rate(times.message_bytes, times.median_us)
    bus = algorithm * factor
    shortest = rate(times.message_bytes, times.shortest_us) * factor
    peak = link.peak_bytes_per_s if link else math.nan
    return Collective(
        collective=times.collective,
        process_group=times.process_group,
        group_size=times.group_size,
        message_bytes=times.message_bytes,
        calls=times.calls,
        time_us=times.time_us,
        median_us=times.median_us,
        shortest_us=times.shortest_us,
        algorithm_bytes_per_s=algorithm,
        bus_bytes_per_s=bus,
        shortest_bus_bytes_per_s=shortest,
        link=link.name if link else None,
        link_bytes_per_s=peak,
        bus_frac=ratio(bus, peak),
        shortest_bus_frac=ratio(shortest, peak),
    )


def _imbalance(load: ModuleLoad) -> ModuleImbalance:
    return ModuleImbalance(
        module_path=load.module_path,
        ranks=load.ranks,
        mean_us=load.mean_us,
        longest_us=load.longest_us,
        longest_rank=load.longest_rank,
        imbalance_frac=max(ratio(load.longest_us, load.mean_us) - 1, 0.0),
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


def job_lines(run: Run) -> list[tuple[str, str]]:
    """Return the summary's lines on a job: its steps, who is slow, and what communication costs."""
    facts = job(run)
    if facts is None:
        return []
    lines = []
    if len(facts.ranks) > 1 and facts.steps:
        slowest = max(facts.steps, key=lambda step: step.slowest_us)
        middle = duration(median(step.median_us for step in facts.steps))
        longest = f"step {slowest.step} of rank {slowest.slowest_rank}"
        text = f"{len(facts.steps)} steps of {len(facts.ranks)} ranks, median {middle}; "
        text += f"longest {duration(slowest.slowest_us)}: {longest}"
        lines.append(("Job", text))
    for remark, ranks in (
        ("own compute took apart longer", facts.straggler_ranks),
        ("FLOP/s are apart from the others'", facts.odd_rate_ranks),
    ):
        if ranks:
            lines.append(("", f"{_ranks_text(ranks)}: {remark}"))
    uneven = [row for row in facts.modules if row.imbalance_frac > APART_FRAC]
    for row in uneven[:LISTED]:
        text = f"{row.module_path or 'what is in no module'} takes {duration(row.longest_us)} on "
        text += f"rank {row.longest_rank}, {percent(row.imbalance_frac)} over the ranks' mean"
        lines.append(("Balance", text))
    exposed = [rank for rank in facts.ranks if rank.exposed_communication_us > 0]
    if exposed:
        worst = max(exposed, key=lambda rank: rank.exposed_frac)
        doing = "kernels" if run.has_kernels else "computing and sending"
        exposed_time = duration(worst.exposed_communication_us)
        text = f"{percent(worst.exposed_frac)} of the time of rank {worst.rank}'s {doing} is "
        text += f"communication with no compute beside it ({exposed_time})"
        if len(facts.ranks) > 1:
            text += ": the most"
        lines.append(("Exposed", text))
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
    text += f", {si(row.shortest_bus_bytes_per_s, 'B/s')} of the shortest call"
    if row.link:
        text += f": {percent(row.shortest_bus_frac)} of {row.link}"
    return text


def sharing_text(parallel: Parallel, ranks: tuple[Rank, ...]) -> str:
    """Return how ranks shared the call, and what each did."""
    hosts = {rank.host for rank in ranks}
    text = f"{parallel.world_size} by {parallel.strategy}, sending with {parallel.backend}"
    if len(hosts) > 1:
        text += f" on {len(hosts)} machines"
    if parallel.shards:
        named = ", ".join(parallel.shards[:NAMED_RANKS])
        more = len(parallel.shards) - NAMED_RANKS
        text += f"; each has a part of {named}"
        if more > 0:
            text += f" and {more} more"
    parts = [
        f"rank {rank.rank}: {si(rank.flops, 'FLOPs')} in {duration(rank.wall_us)}"
        for rank in ranks[:NAMED_RANKS]
    ]
    if len(ranks) > NAMED_RANKS:
        parts.append("…")
    return f"{text}. {'; '.join(parts)}"
