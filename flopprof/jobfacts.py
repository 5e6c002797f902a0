"""Parts of the provenance that traces tell: ranks, steps, collectives, process groups."""

import math
from typing import Annotated

import msgspec


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A named part of the provenance; every field but the essential ones may be left out."""


class KernelTimes(Part, frozen=True, kw_only=True):
    """Sums over the kernels of a trace or a rank; times in µs, NaN without kernels."""

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
    """One rank's part of a job; `fault` says why one has no figures.

    Of a rank on a CPU that sends to others, `device_busy_us` is the time in which its ops computed,
    and `communication_us` that of gloo's collectives. `wall_us` is the median of its bare calls,
    where they were timed here.
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
    """One profiler step of one rank."""

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
