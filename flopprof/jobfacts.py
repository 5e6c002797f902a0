"""What a part of the provenance is; those that traces tell: ranks, steps, collectives, groups."""

import math
from typing import Annotated, Any

import msgspec


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A named part of the provenance; every field but the essential ones may be left out."""


def known_facts(part: Part, prefix: str = "") -> dict[str, Any]:
    """Return what is known in a part, flat: "wall_us median"; lists of parts are left out."""
    facts: dict[str, Any] = {}
    for name, value in msgspec.structs.asdict(part).items():
        label = f"{prefix} {name}".strip()
        if isinstance(value, Part):
            facts |= known_facts(value, label)
        elif isinstance(value, dict):
            facts |= {f"{label} {key}": inner for key, inner in value.items()}
        elif isinstance(value, tuple):
            texts = [str(one) for one in value if not isinstance(one, Part)]
            if texts:
                facts[label] = ", ".join(texts)
        elif _is_known(value):
            facts[label] = value
    return facts


def _is_known(value: Any) -> bool:
    """Return whether a field says something: it is neither None nor NaN nor an empty text."""
    if isinstance(value, float):
        return not math.isnan(value)
    return value is not None and value != ""


class KernelTimes(Part, frozen=True, kw_only=True):
    """Sums over the kernels of a trace or a rank; times in µs, NaN without kernels.

    Attributes:
        kernels: How many compute kernels.
        kernel_time_us: Sum of their durations.
        device_busy_us: Union of their intervals.
        communication_us: Union of the intervals of collectives' kernels.
        communication_frac: Collectives' time over that in which any kernel ran.
        overlap_frac: Share of the collectives' time that lies behind computation; NaN without any.
        span_us: From the first event to the end of the last.
    """

    kernels: int = 0
    kernel_time_us: float = math.nan
    device_busy_us: float = math.nan
    communication_us: float = math.nan
    communication_frac: float = math.nan
    overlap_frac: float = math.nan
    span_us: float = math.nan


class TraceFacts(KernelTimes, frozen=True, kw_only=True):
    """What traces recorded elsewhere say of themselves, all ranks together.

    Attributes:
        files: The trace files.
        origin_us: Time stamp at which tables count from zero.
        linked_kernel_frac: Share of compute kernels that belong to an op.
        linked_kernel_time_frac: The same by time.
        slowest_rank: The rank whose own kernels took longest; None for one rank or no straggler.
        world_size: How many ranks the job has, as its traces say.
        missing_ranks: Those of them of which there is no trace here, where there are several.
        visible_gpus: How many GPUs each rank's trace lists; None where they differ or list none.
    """

    files: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    origin_us: float = math.nan
    linked_kernel_frac: float = math.nan
    linked_kernel_time_frac: float = math.nan
    slowest_rank: int | None = None
    world_size: int | None = None
    missing_ranks: tuple[int, ...] = ()
    visible_gpus: int | None = None


class Rank(KernelTimes, frozen=True, kw_only=True):
    """One rank's part of a job.

    Of a rank on a CPU that sends to others, `device_busy_us` is the time in which its ops computed,
    and `communication_us` that of gloo's collectives.

    Attributes:
        rank: Its number.
        file: Its trace; "" where it was timed here.
        host: The machine, where it was timed here.
        wall_us: Median of its bare calls, where they were timed here.
        gpu: Name of its GPU; None where its trace has none.
        matmul_flops: FLOPs of contractions of its counted ops.
        flops: FLOPs of both classes of its counted ops.
        linked_kernels: Compute kernels that belong to an op.
        linked_kernel_time_us: Sum of their durations.
        all_kernels_us: Time in which a compute kernel or a collective ran.
        overlapped_us: Time in which both ran.
        fault: Why it has no figures; None where it has.
    """

    rank: int
    file: str = ""
    host: str | None = None
    wall_us: float = math.nan
    gpu: str | None = None
    matmul_flops: float = math.nan
    flops: float = math.nan
    linked_kernels: int = 0
    linked_kernel_time_us: float = math.nan
    all_kernels_us: float = math.nan
    overlapped_us: float = math.nan
    fault: str | None = None


class Parallel(Part, frozen=True, kw_only=True):
    """How several processes shared a call that all of them timed and traced.

    Attributes:
        strategy: ddp, fsdp, tp, or the code that shared the model.
        backend: What they send with: gloo, nccl.
        world_size: How many they are.
        shards: What each has a part of: "fc1: columns"; of parallel data nothing.
    """

    strategy: str
    backend: str
    world_size: int
    shards: tuple[str, ...] = ()


class Step(Part, frozen=True, kw_only=True):
    """One profiler step of one rank.

    Attributes:
        rank: The rank.
        step: Its number, as text: "3" of ProfilerStep#3.
        start_us: From the trace's start.
        duration_us: How long it took on the host.
        matmul_flops: FLOPs of contractions of the counted ops that began in it.
        flops: Their FLOPs of both classes.
        kernel_time_us: Sum of the durations of their compute kernels; NaN without kernels.
    """

    rank: int
    step: str
    start_us: float = math.nan
    duration_us: float = math.nan
    matmul_flops: float = math.nan
    flops: float = math.nan
    kernel_time_us: float = math.nan


class CollectiveTimes(Part, frozen=True, kw_only=True):
    """Calls of one collective with one size in one process group, of all ranks.

    Attributes:
        collective: all_reduce, all_gather, …; None where no name tells.
        process_group: Name of the group; None where the trace does not tell, as below.
        group_size: Ranks in it.
        message_bytes: The larger of what a rank gives and what it gets.
        calls: Calls, on all ranks together.
        time_us: Sum of their times.
        median_us: Median of them; of over 4,096, that of a call within 0.1 % of the middle.
        shortest_us: The shortest.
    """

    collective: str | None = None
    process_group: str | None = None
    group_size: int | None = None
    message_bytes: float = math.nan
    calls: int = 0
    time_us: float = math.nan
    median_us: float = math.nan
    shortest_us: float = math.nan


class ProcessGroup(Part, frozen=True, kw_only=True):
    """A process group, as the traces of its ranks describe it.

    Attributes:
        name: Its name.
        description: What the code that made it says it is for; "" for nothing.
        size: Ranks in it; None where the trace does not tell.
        ranks: Which; empty where the trace does not tell.
    """

    name: str
    description: str = ""
    size: int | None = None
    ranks: tuple[int, ...] = ()


class Link(Part, frozen=True, kw_only=True):
    """What connects the GPUs of one node.

    Attributes:
        name: NVLink 4, PCIe 4.0 x16, …
        peak_bytes_per_s: Of one GPU, one way.
        source: Where the figure comes from.
    """

    name: str
    peak_bytes_per_s: float
    source: str


class ModuleLoad(Part, frozen=True, kw_only=True):
    """How much time a module takes by rank, without the modules inside it.

    Attributes:
        module_path: The module.
        ranks: How many ranks have it.
        mean_us: Mean of their times.
        longest_us: The longest.
        longest_rank: The rank on which it is.
    """

    module_path: str
    ranks: int
    mean_us: float = math.nan
    longest_us: float = math.nan
    longest_rank: int = 0
