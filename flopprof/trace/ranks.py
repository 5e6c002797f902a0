"""What a rank of a job did, by its trace; and what all of them did together."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from flopprof.devices.categories import device_kind
from flopprof.errors import LoadError
from flopprof.jobfacts import ProcessGroup, Rank, Step, TraceFacts
from flopprof.provenance import DeviceFacts
from flopprof.tables import codes
from flopprof.trace.gaps import busy_until
from flopprof.trace.gloo import times_on_cpu
from flopprof.trace.read import Trace
from flopprof.trace.remote import base_name
from flopprof.units import file_text

_STRAGGLER_FRAC = 0.02  # of the slowest rank's time: what is less is no rank's fault
_LARGEST_JOB = 1_000_000  # ranks; more is a damaged number
_MOST_GROUPS = 10_000  # that a run keeps
_RANK = re.compile(r"rank[-_.]?(\d{1,7})", re.IGNORECASE)
_ADDED = ("kernel_time_us", "device_busy_us", "communication_us", "span_us")


@dataclass(frozen=True, slots=True)
class RankFacts:
    """What one rank's trace says, without its tables.

    Attributes:
        file: Its file.
        rank: What it did, by the number that its trace has; its `fault` where it cannot be read.
        error: Why it could not be read; all else is blank then.
        steps: Its profiler steps.
        warnings: What makes its figures doubtful.
        doubts: Codes of what it lacks.
        world_size: How many ranks the job has, as it says.
        origin_us: Time stamp at which its tables count from zero.
        device: Properties of the GPU that ran its kernels; empty where they are not known.
        gpus: How many GPUs its trace lists.
        vendors: Whose categories its events are of.
        groups: Process groups that it is in.
        has_kernels: Whether anything ran on a device.
    """

    file: str | Path
    rank: Rank
    error: LoadError | None = None
    steps: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    world_size: int = 1
    origin_us: float = math.nan
    device: Mapping[str, Any] = field(default_factory=dict)
    gpus: int = 0
    vendors: tuple[str, ...] = ()
    groups: tuple[ProcessGroup, ...] = ()
    has_kernels: bool = False


def facts_of(file: str | Path, trace: Trace) -> RankFacts:
    """Return what a rank's trace says of it."""
    info = trace.info
    return RankFacts(
        file=file,
        rank=rank_of(int(info["rank"]), file_text(file), trace),
        steps=tuple(_steps(trace)),
        warnings=tuple(info["warnings"]),
        doubts=_doubts(trace),
        world_size=int(info["world_size"]),
        origin_us=float(info["origin_us"]),
        device=gpu_of(trace),
        gpus=len(trace.devices),
        vendors=tuple(info["vendors"]),
        groups=info["groups"],
        has_kernels=len(trace.kernels) > 0,
    )


def facts_of_unread(file: str | Path, error: LoadError) -> RankFacts:
    """Return the facts of a rank whose trace cannot be read."""
    return RankFacts(file, Rank(rank=-1, file=file_text(file), fault=error.problem), error)


@dataclass(frozen=True, slots=True)
class Job:
    """The ranks of one job.

    Attributes:
        facts: What each rank's trace says, in the order in which they were given.
        ranks: What each did, by number; those that could not be read come last.
        numbers: The number of each of `facts`.
        steps: The profiler's steps of all ranks.
        warnings: What makes figures doubtful.
    """

    facts: tuple[RankFacts, ...]
    ranks: list[Rank]
    numbers: list[int]
    steps: list[Step]
    warnings: list[str]

    @property
    def on_gpu(self) -> bool:
        """Whether any rank has kernels."""
        return any(facts.has_kernels for facts in self.facts)

    @property
    def main(self) -> RankFacts:
        """A rank with kernels, where there is one: a CPU rank does not tell the device."""
        read = [facts for facts in self.facts if facts.error is None]
        return next((facts for facts in read if facts.has_kernels), read[0])


def job_of(facts: Sequence[RankFacts]) -> Job:
    """Return the job that these ranks are of; one that cannot be read is told.

    Raises:
        LoadError: None of them can be read.
    """
    numbers = [-1] * len(facts)
    warnings: list[str] = []
    ranks: list[Rank] = []
    steps: list[Step] = []
    taken: set[int] = set()
    for place, rank_facts in enumerate(facts):
        if rank_facts.error is not None:
            continue
        number = rank_facts.rank.rank
        if number in taken:
            again = f"{file_text(rank_facts.file)} says it is rank {number} again"
            number = max(taken) + 1
            warnings.append(f"{again}: numbered {number} here, as if they were ranks of one job")
        taken.add(number)
        numbers[place] = number
        ranks.append(msgspec.structs.replace(rank_facts.rank, rank=number))
        steps += [Step(rank=number, **step) for step in rank_facts.steps]
        warnings += rank_facts.warnings
    failed = [place for place, rank_facts in enumerate(facts) if rank_facts.error is not None]
    if not taken:
        error = facts[failed[0]].error
        assert error is not None  # it is one of those that failed
        raise error
    for place in failed:
        rank_facts = facts[place]
        number = _rank_in_name(rank_facts.file, taken)
        taken.add(number)
        numbers[place] = number
        ranks.append(msgspec.structs.replace(rank_facts.rank, rank=number))
        warnings.append(f"rank {number} is missing: {rank_facts.rank.fault}")
    return Job(tuple(facts), ranks, numbers, steps, [*warnings, *_odd_ones(facts)])


def _odd_ones(facts: Sequence[RankFacts]) -> list[str]:
    """Return warnings where ranks are not alike, as those of one job are."""
    read = [rank_facts for rank_facts in facts if rank_facts.error is None]
    gpus = {str(rank_facts.device.get("name")) for rank_facts in read if rank_facts.has_kernels}
    warnings = _told_doubts(read)
    if len(gpus) > 1:
        warnings.append(f"the ranks ran on different devices: {', '.join(sorted(gpus))}")
    first_of: dict[int, RankFacts] = {}
    for rank_facts in read:
        first_of.setdefault(rank_facts.world_size, rank_facts)
    if len(first_of) > 1:
        odd_texts = [
            f"{file_text(rank_facts.file)} of {size}"
            for size, rank_facts in sorted(first_of.items())[:3]
        ]
        warnings.append(
            f"the traces are of jobs of different sizes: {', '.join(odd_texts)} ranks; "
            "analyse each job on its own"
        )
    return warnings


def _rank_in_name(file: str | Path, taken: set[int]) -> int:
    """Return the rank that a file is named after, else the next one that is free."""
    match = _RANK.search(base_name(file))
    if match is not None and int(match[1]) not in taken:
        return int(match[1])
    return max(taken) + 1


def add_up_ranks(job: Job, files: Sequence[str | Path]) -> TraceFacts:
    """Return what all ranks did together."""
    read = [rank for rank in job.ranks if rank.fault is None]
    facts = [rank_facts for rank_facts in job.facts if rank_facts.error is None]
    sums = pd.DataFrame([msgspec.structs.asdict(rank) for rank in read])
    world_size = max(rank_facts.world_size for rank_facts in facts)
    missing: set[int] = set()
    if len(files) > 1 and world_size <= _LARGEST_JOB:
        missing = set(range(world_size)) - {rank.rank for rank in read}
    gpus = {rank_facts.gpus for rank_facts in facts}
    return TraceFacts(
        files=tuple(file_text(file) for file in files),
        origin_us=facts[0].origin_us,
        kernels=int(sums["kernels"].sum()),
        **{name: float(sums[name].sum(min_count=1)) for name in _ADDED},
        linked_kernel_frac=_share(sums, "linked_kernels", "kernels"),
        linked_kernel_time_frac=_share(sums, "linked_kernel_time_us", "kernel_time_us"),
        communication_frac=_share(sums, "communication_us", "all_kernels_us"),
        overlap_frac=_share(sums, "overlapped_us", "communication_us"),
        slowest_rank=_slowest(sums),
        world_size=world_size,
        missing_ranks=tuple(sorted(missing)),
        visible_gpus=(max(gpus) or None) if len(gpus) == 1 else None,
    )


def groups_of(job: Job) -> tuple[ProcessGroup, ...]:
    """Return the process groups of all ranks, each once."""
    every = (group for rank_facts in job.facts for group in rank_facts.groups)
    return tuple(list(dict.fromkeys(every))[:_MOST_GROUPS])


def _share(ranks: pd.DataFrame, part: str, whole: str) -> float:
    return float(ranks[part].sum() / ranks[whole].sum()) if ranks[whole].sum() else math.nan


def _slowest(ranks: pd.DataFrame) -> int | None:
    """Return the rank whose own work took longest: the others wait for it in collectives."""
    busy = ranks.set_index("rank")["device_busy_us"]
    if len(busy) < 2 or not busy.max() - busy.min() > _STRAGGLER_FRAC * busy.max():
        return None
    return int(busy.idxmax())


def rank_of(rank: int, file: str, trace: Trace) -> Rank:
    """Return what one rank did.

    Args:
        rank: Its number.
        file: Where it was recorded; "" for here.
        trace: What was recorded.
    """
    kernels = trace.kernels[["kind", "op_id", "start_us", "duration_us"]]
    ops = trace.ops.loc[trace.ops["counted"], ["matmul_flops", "vector_flops"]]
    compute = kernels[kernels["kind"] == "compute"]
    collectives = kernels[kernels["kind"] == "communication"]
    linked = compute[compute["op_id"] >= 0]
    busy_us = _union(compute)
    talking_us = _union(collectives)
    either_us = _union(kernels[kernels["kind"].isin(("compute", "communication"))])
    overlapped_us = busy_us + talking_us - either_us
    times: dict[str, Any] = {
        "kernel_time_us": float(compute["duration_us"].sum()),
        "device_busy_us": busy_us,
        "linked_kernel_time_us": float(linked["duration_us"].sum()),
        "communication_us": talking_us,
        "all_kernels_us": either_us,
        "communication_frac": talking_us / either_us if either_us else math.nan,
        "overlapped_us": overlapped_us,
        "overlap_frac": overlapped_us / talking_us if talking_us else math.nan,
    }
    return Rank(
        rank=rank,
        file=file,
        gpu=str(gpu_of(trace).get("name") or "") or None,
        matmul_flops=float(ops["matmul_flops"].sum()),
        flops=float((ops["matmul_flops"] + ops["vector_flops"]).sum()),
        kernels=len(compute),
        linked_kernels=len(linked),
        span_us=float(trace.info["span_us"]),
        **(times if len(kernels) else times_on_cpu(trace.ops, trace.info["collectives"])),
    )


def _union(kernels: pd.DataFrame) -> float:
    start = kernels["start_us"].to_numpy()
    length = kernels["duration_us"].to_numpy()
    return float(busy_until(start, start + length, math.inf))


def _steps(trace: Trace) -> list[dict[str, Any]]:
    """Return the profiler's steps, with what was called in each; its kernels may end later."""
    rows = sorted(dict.fromkeys(trace.info["steps"]), key=lambda step: float(step[1]))
    steps = pd.DataFrame(rows, columns=["step", "start_us", "duration_us"])
    if not rows:
        return []
    ops = trace.ops
    ends = (steps["start_us"] + steps["duration_us"]).to_numpy()
    at = np.searchsorted(steps["start_us"], ops["start_us"], side="right") - 1
    at = np.where((at >= 0) & (ops["start_us"] < ends[at]), at, -1)
    kernels = trace.kernels[["op_id", "duration_us"]]
    is_computing = (trace.kernels["kind"] == "compute") & (kernels["op_id"] >= 0)
    compute = kernels[is_computing]
    flops = ops[["matmul_flops", "vector_flops"]]
    sums = flops.where(ops["counted"]).groupby(at).sum()
    sums["kernel_time_us"] = compute["duration_us"].groupby(at[compute["op_id"]]).sum()
    steps = steps.join(sums).fillna(dict.fromkeys(sums, 0.0))
    if not len(trace.kernels):
        steps["kernel_time_us"] = math.nan
    steps["step"] = steps["step"].str.removeprefix("ProfilerStep#")
    steps["flops"] = steps["matmul_flops"] + steps.pop("vector_flops")
    return [{str(name): value for name, value in row.items()} for row in steps.to_dict("records")]


_DOUBTS = {  # what makes the figures of traces incomplete → of one trace, of several, the remedy
    "no_ops": (
        "holds kernels and no ops",
        "hold kernels and no ops",
        "so FLOPs are unknown: record it with ProfilerActivity.CPU as well, and record_shapes=True",
    ),
    "no_shapes": (
        "has no shapes",
        "have no shapes",
        "so no FLOPs: record it with record_shapes=True",
    ),
    "no_kernels": (
        "holds no kernels",
        "hold no kernels",
        "times are the host's (a GPU's need ProfilerActivity.CUDA)",
    ),
    "left_out": (
        "holds no kernels",
        "hold no kernels",
        "and those of other ranks do: without a time here (record it with ProfilerActivity.CUDA)",
    ),
}
_MARKS = {"no_ops": ", ", "no_shapes": ", ", "no_kernels": ": ", "left_out": ", "}


def _doubts(trace: Trace) -> tuple[str, ...]:
    """Return the codes of what makes the figures of a trace incomplete."""
    if not len(trace.ops):
        return ("no_ops",)
    doubts = []
    if not trace.info["has_shapes"]:
        doubts.append("no_shapes")
    if not len(trace.kernels):
        doubts.append("no_kernels")
    return tuple(doubts)


def _told_doubts(read: Sequence[RankFacts]) -> list[str]:
    """Return a warning for each doubt: it names the first file of those that it is about."""
    on_gpu = any(rank_facts.has_kernels for rank_facts in read)
    files: dict[str, list[str]] = {}
    for rank_facts in read:
        for doubt in rank_facts.doubts:
            code = "left_out" if doubt == "no_kernels" and on_gpu else doubt
            files.setdefault(code, []).append(file_text(rank_facts.file))
    warnings = []
    for code, (of_one, of_several, remedy) in _DOUBTS.items():
        if code not in files:
            continue
        first, *others = files[code]
        fact = f"{first} and {len(others)} more {of_several}" if others else f"{first} {of_one}"
        warnings.append(f"{fact}{_MARKS[code]}{remedy}")
    return warnings


def gpu_of(trace: Trace) -> dict[str, Any]:
    """Return the properties of the GPU that ran the kernels; empty where the trace has none.

    ROCm numbers devices of kernels otherwise than in the properties.
    """
    used = trace.kernels["device_index"].mode()
    for device in trace.devices:
        if len(used) and device.get("id") == used.iloc[0]:
            return dict(device)
    alike = len({str(device.get("name")) for device in trace.devices}) == 1
    return dict(trace.devices[0]) if alike else {}


def described_gpu(job: Job, gpu: str | None) -> DeviceFacts:
    """Return what is known of the device that ran the kernels, called as the user calls it."""
    if not job.on_gpu:
        return DeviceFacts(name="the recording machine's CPU", kind="cpu")
    device = job.main.device
    name = str(device.get("name") or "unknown GPU")
    kind = device_kind(list(job.main.vendors))
    if "AMD" in name or device.get("warpSize") == 64:
        kind = "rocm"
    return DeviceFacts(
        name=f"{gpu} (as told)" if gpu else name,
        kind=kind,
        sm_count=_whole_number(device.get("numSms")),
        memory_bytes=_whole_number(device.get("totalGlobalMem")),
    )


def _whole_number(value: Any) -> int | None:
    return value if type(value) is int else None


DtypeSums = dict[str, tuple[float, int]]
"""Element type → matmul FLOPs, and calls, of the ops that count."""


def dtype_sums(ops: pd.DataFrame) -> DtypeSums:
    """Return the work of each element type.

    Args:
        ops: Table OPS.
    """
    code, names = codes(ops["dtype"])
    counted = ops["counted"].to_numpy()
    flops = np.where(counted, np.nan_to_num(ops["matmul_flops"].to_numpy()), 0.0)
    work = np.bincount(code, flops, len(names))
    calls = np.bincount(code, counted, len(names))
    return {
        str(name): (float(work[number]), int(calls[number]))
        for number, name in enumerate(names)
        if name and calls[number]
    }


def add_up_dtypes(parts: Iterable[DtypeSums]) -> DtypeSums:
    """Return the work of several ranks together."""
    together: DtypeSums = {}
    for part in parts:
        for name, (flops, calls) in part.items():
            before = together.get(name, (0.0, 0))
            together[name] = (before[0] + flops, before[1] + calls)
    return together


def main_dtype_of(sums: DtypeSums) -> str:
    """Return the element type of most matmul FLOPs, else of most ops."""
    if not sums:
        return "float32"
    names = sorted(sums)
    if any(flops > 0 for flops, _ in sums.values()):
        return max(names, key=lambda name: sums[name][0])
    return max(names, key=lambda name: sums[name][1])


def dtype_of_most_work(ops: pd.DataFrame) -> str:
    """Return the element type of most matmul FLOPs of a trace, else of most of its ops."""
    return main_dtype_of(dtype_sums(ops))
