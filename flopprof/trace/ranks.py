"""Several traces of one job, a rank each: read one by one, added up, compared."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from flopprof.devices.categories import device_kind
from flopprof.errors import LoadError
from flopprof.formulas import load_op_formulas
from flopprof.formulas.external import load_formulas
from flopprof.provenance import DeviceFacts, Rank, Step, TraceFacts
from flopprof.settings import Progress
from flopprof.tables import KERNELS, OPS
from flopprof.trace.read import Trace, read_trace
from flopprof.trace.remote import base_name, local_copy
from flopprof.trace.tree import busy_until
from flopprof.trace.window import Window
from flopprof.trace.workers import Task, Workers, read_all
from flopprof.units import file_text

_STRAGGLER_FRAC = 0.02  # of the slowest rank's time: what is less is no rank's fault
_LARGEST_JOB = 1_000_000  # ranks; more is a damaged number
_RANK = re.compile(r"rank[-_.]?(\d{1,7})", re.IGNORECASE)
_ADDED = ("kernel_time_us", "device_busy_us", "communication_us", "span_us")


@dataclass(frozen=True, slots=True)
class Job:
    """The traces of one job.

    Attributes:
        traces: One per rank, in the order in which they were given.
        ranks: What each rank did, by number.
        steps: The profiler's steps of all ranks.
        warnings: What makes figures doubtful.
    """

    traces: list[Trace]
    ranks: list[Rank]
    steps: list[Step]
    warnings: list[str]

    @property
    def gpu_trace(self) -> Trace:
        """A trace with kernels, where there is one: a CPU rank does not tell the device."""
        return next((trace for trace in self.traces if len(trace.kernels)), self.traces[0])


def read_rank(
    file: str | Path,
    *,
    window: Window,
    formulas: Sequence[str],
    replayed: Callable[[Trace], Trace] | None,
) -> Trace:
    """Return the trace of one rank, or the part of it that counts; done anywhere.

    Args:
        file: A trace file, or the address of one.
        window: Which part of it counts.
        formulas: Files with the user's formulas.
        replayed: Gives the kernels of a replay the ops of their capture.

    Raises:
        UsageError: There is no such file, or nothing of it lies in the window.
        LoadError: It is no trace, or damaged.
    """
    for one in formulas:
        load_formulas(one)
    with local_copy(file) as path:
        trace = read_trace(path)
        if replayed is not None:
            trace = replayed(trace)
        return trace if window.is_whole else window.cut(path, trace)


def read_job(
    files: Sequence[str | Path], task: Task, workers: int | Workers, progress: Progress
) -> Job:
    """Return the traces in `files`, each a rank; of several, one that cannot be read is told.

    Args:
        files: Trace files, or addresses, each once.
        task: `read_rank` with its options.
        workers: Who reads them, or how many processes.
        progress: Called with the name of each file as it is read.

    Raises:
        UsageError: There is no such file, or nothing of it lies in the window.
        LoadError: None of the files is a trace that can be read.
    """
    if isinstance(workers, int):
        workers = Workers(processes=workers)
    load_op_formulas()  # other processes may have done the reading; the judge asks for them here
    traces: dict[int, Trace] = {}
    ranks = []
    steps = []
    warnings = []
    failed: list[tuple[str | Path, LoadError]] = []
    for file, outcome in zip(files, read_all(task, files, workers, progress), strict=True):
        if isinstance(outcome, LoadError):
            failed.append((file, outcome))
            continue
        trace = outcome
        rank = int(trace.info["rank"])
        if rank in traces:
            again = f"{file_text(file)} says it is rank {rank} again"
            rank = max(traces) + 1
            warnings.append(f"{again}: numbered {rank} here, as if they were ranks of one job")
            trace.kernels["rank"] = rank
        traces[rank] = trace
        ranks.append(_rank(rank, file, trace))
        steps += [Step(rank=rank, **step) for step in _steps(trace)]
        warnings += [*trace.info["warnings"], *_doubts(file, trace)]
    if not traces:
        raise failed[0][1]
    for file, error in failed:
        number = _rank_in_name(file, taken=[rank.rank for rank in ranks])
        ranks.append(Rank(rank=number, file=file_text(file), fault=error.problem))
        warnings.append(f"rank {number} is missing: {error.problem}")
    gpus = {str(gpu_of(trace).get("name")) for trace in traces.values() if len(trace.kernels)}
    if len(gpus) > 1:
        warnings.append(f"the ranks ran on different devices: {', '.join(sorted(gpus))}")
    return Job(list(traces.values()), ranks, steps, warnings)


def _rank_in_name(file: str | Path, taken: Sequence[int]) -> int:
    """Return the rank that a file is named after, else the next one that is free."""
    match = _RANK.search(base_name(file))
    if match is not None and int(match[1]) not in taken:
        return int(match[1])
    return max(taken) + 1


def add_up_ranks(job: Job, files: Sequence[str | Path]) -> TraceFacts:
    """Return what all ranks did together."""
    read = [rank for rank in job.ranks if rank.fault is None]
    sums = pd.DataFrame([msgspec.structs.asdict(rank) for rank in read])
    world_size = max(int(trace.info["world_size"]) for trace in job.traces)
    missing: set[int] = set()
    if len(files) > 1 and world_size <= _LARGEST_JOB:
        missing = set(range(world_size)) - {rank.rank for rank in read}
    return TraceFacts(
        files=tuple(file_text(file) for file in files),
        origin_us=float(job.traces[0].info["origin_us"]),
        kernels=int(sums["kernels"].sum()),
        **{name: float(sums[name].sum(min_count=1)) for name in _ADDED},
        linked_kernel_frac=_share(sums, "linked_kernels", "kernels"),
        linked_kernel_time_frac=_share(sums, "linked_kernel_time_us", "kernel_time_us"),
        communication_frac=_share(sums, "communication_us", "all_kernels_us"),
        overlap_frac=_share(sums, "overlapped_us", "communication_us"),
        slowest_rank=_slowest(sums),
        world_size=world_size,
        missing_ranks=tuple(sorted(missing)),
    )


def _share(ranks: pd.DataFrame, part: str, whole: str) -> float:
    return float(ranks[part].sum() / ranks[whole].sum()) if ranks[whole].sum() else math.nan


def _slowest(ranks: pd.DataFrame) -> int | None:
    """Return the rank whose own work took longest: the others wait for it in collectives."""
    busy = ranks.set_index("rank")["device_busy_us"]
    if len(busy) < 2 or not busy.max() - busy.min() > _STRAGGLER_FRAC * busy.max():
        return None
    return int(busy.idxmax())


def _rank(rank: int, file: str | Path, trace: Trace) -> Rank:
    """Return what one rank did."""
    kernels = trace.kernels
    ops = trace.ops[trace.ops["counted"]]
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
        file=file_text(file),
        gpu=str(gpu_of(trace).get("name") or "") or None,
        matmul_flops=float(ops["matmul_flops"].sum()),
        flops=float((ops["matmul_flops"] + ops["vector_flops"]).sum()),
        kernels=len(compute),
        linked_kernels=len(linked),
        span_us=float(trace.info["span_us"]),
        **(times if len(kernels) else {}),
    )


def _union(kernels: pd.DataFrame) -> float:
    start = kernels["start_us"].to_numpy()
    length = kernels["duration_us"].to_numpy()
    return float(busy_until(start, start + length, math.inf))


def _steps(trace: Trace) -> list[dict[str, Any]]:
    """Return the profiler's steps, with what was called in each; its kernels may end later."""
    rows = sorted(set(trace.info["steps"]), key=lambda step: float(step[1]))
    steps = pd.DataFrame(rows, columns=["step", "start_us", "duration_us"])
    if not rows:
        return []
    ops = trace.ops
    ends = (steps["start_us"] + steps["duration_us"]).to_numpy()
    at = np.searchsorted(steps["start_us"], ops["start_us"], side="right") - 1
    at = np.where((at >= 0) & (ops["start_us"] < ends[at]), at, -1)
    compute = trace.kernels[trace.kernels["kind"] == "compute"].query("op_id >= 0")
    sums = ops.where(ops["counted"])[["matmul_flops", "vector_flops"]].groupby(at).sum()
    sums["kernel_time_us"] = compute["duration_us"].groupby(at[compute["op_id"]]).sum()
    steps = steps.join(sums).fillna(dict.fromkeys(sums, 0.0))
    if not len(trace.kernels):
        steps["kernel_time_us"] = math.nan
    steps["step"] = steps["step"].str.removeprefix("ProfilerStep#")
    steps["flops"] = steps["matmul_flops"] + steps.pop("vector_flops")
    return [{str(name): value for name, value in row.items()} for row in steps.to_dict("records")]


def _doubts(file: str | Path, trace: Trace) -> list[str]:
    """Return what makes the figures of a trace incomplete."""
    if not len(trace.ops):
        remedy = "record it with ProfilerActivity.CPU as well, and record_shapes=True"
        return [f"{file_text(file)} holds kernels and no ops, so FLOPs are unknown: {remedy}"]
    no_shapes = "has no shapes, so no FLOPs: record it with record_shapes=True"
    no_kernels = "holds no kernels: times are the host's (a GPU's need ProfilerActivity.CUDA)"
    doubts = []
    if not trace.info["has_shapes"]:
        doubts.append(f"{file_text(file)} {no_shapes}")
    if not len(trace.kernels):
        doubts.append(f"{file_text(file)} {no_kernels}")
    return doubts


def together(traces: list[Trace]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return ops, gaps and kernels of all ranks; ids run on."""
    if len(traces) == 1:
        return traces[0].ops, traces[0].gaps, traces[0].kernels
    firsts = np.cumsum([0, *(len(trace.ops) for trace in traces)])
    pairs = list(zip(firsts.tolist(), traces, strict=False))
    ops = pd.concat([_shifted(t.ops, n, "op_id", "parent_op_id") for n, t in pairs])
    column_names = {name for trace in traces for name in trace.kernels.columns}
    kernels = pd.concat(
        [_shifted(_with_columns(t.kernels, column_names), n, "op_id") for n, t in pairs],
        ignore_index=True,
    )
    kernels["kernel_id"] = np.arange(len(kernels))
    gaps = pd.concat([trace.gaps for trace in traces], ignore_index=True)
    return OPS.check(ops.reset_index(drop=True)), gaps, KERNELS.check(kernels)


def _with_columns(kernels: pd.DataFrame, names: set[str]) -> pd.DataFrame:
    """Return kernels with blank columns for what only other ranks' traces tell."""
    lacking = [column for column in KERNELS.columns if column.name in names - set(kernels.columns)]
    return kernels.assign(**{column.name: column.blank for column in lacking})


def _shifted(frame: pd.DataFrame, by: int, *names: str) -> pd.DataFrame:
    return frame.assign(**{n: frame[n].where(frame[n] < 0, frame[n] + by) for n in names})


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


def described_gpu(
    device: dict[str, Any], gpu: str | None, vendors: list[str], *, on_gpu: bool
) -> DeviceFacts:
    """Return what is known of the device that ran the kernels, called as the user calls it."""
    if not on_gpu:
        return DeviceFacts(name="the recording machine's CPU", kind="cpu")
    name = str(device.get("name") or "unknown GPU")
    kind = device_kind(vendors)
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


def dtype_of_most_work(ops: pd.DataFrame) -> str:
    """Return the element type of most matmul FLOPs, else of most ops."""
    counted = ops[ops["counted"] & (ops["dtype"].astype("str") != "")]
    by_dtype = counted.groupby("dtype", observed=True)["matmul_flops"].sum()
    if len(by_dtype) and by_dtype.max() > 0:
        return str(by_dtype.idxmax())
    return str(counted["dtype"].mode().iloc[0]) if len(counted) else "float32"
