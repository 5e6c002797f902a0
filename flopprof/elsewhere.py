"""Analyse traces recorded elsewhere, of one process or of several ranks. Imports no torch."""

import datetime
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import flopprof
from flopprof.assemble import Witnesses, assemble
from flopprof.ceilings.ceiling import Ceilings, load_ceilings
from flopprof.ceilings.datasheet import ceilings_for_gpu
from flopprof.devices.categories import device_kind
from flopprof.errors import UsageError
from flopprof.files import real_path
from flopprof.judge.walk import owners
from flopprof.provenance import (
    COMMAND,
    Called,
    DeviceFacts,
    Environment,
    Rank,
    Source,
    Step,
    TraceFacts,
    TraceProvenance,
    warned,
)
from flopprof.run import Run
from flopprof.tables import KERNELS, MODULE_CALLS, OPS
from flopprof.trace.read import Trace, read_trace
from flopprof.trace.replay import join_capture
from flopprof.trace.tree import busy_until
from flopprof.units import file_text

Progress = Callable[[str], None]
_STRAGGLER_FRAC = 0.02  # of the slowest rank's time: what is less is no rank's fault


def analyse_traces(
    paths: str | Path | Sequence[str | Path],
    *,
    gpu: str | None = None,
    ceilings: str | Path | None = None,
    skip_steps: int = 0,
    capture: str | Path | None = None,
    progress: Progress = lambda _stage: None,
) -> Run:
    """Return the `Run` of one trace, or of several ranks' traces of one job together.

    Ops, kernels and sites of all ranks are added up; `provenance.ranks` has each rank's part.

    Args:
        paths: Chrome traces by torch.profiler, `.json` or `.json.gz`.
        gpu: Name of the GPU whose ceilings count, in place of the one that the trace names.
        ceilings: A ceilings file, whose entries go before the tables'.
        skip_steps: How many profiler steps to leave out from the start.
        capture: The trace of the capture of graphs that are replayed here: their kernels get its
            ops, by order and name.
        progress: Called with the name of each stage as it begins.

    Raises:
        UsageError: No such file, GPU or step.
        LoadError: A file is no trace, or damaged.
    """
    files = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    if len({real_path(file) for file in files}) < len(files):
        raise UsageError("one trace is given twice", remedy="give each rank's trace once")
    captured = None
    if capture is not None:
        progress(f"reading {file_text(Path(capture).name)}")
        captured = read_trace(capture, as_capture=True)
    traces: dict[int, Trace] = {}
    ranks, steps, warnings = [], [], []
    for file in files:
        progress(f"reading {file_text(file.name)}")
        trace = read_trace(file)
        if captured is not None:
            trace = join_capture(trace, captured, owners(captured.ops))
        rank = int(trace.info["rank"])
        if rank in traces:
            again = (
                f"{file_text(file)} says it is rank {rank} again: numbered {max(traces) + 1} here"
            )
            warnings.append(f"{again}, as if they were ranks of one job")
            rank = max(traces) + 1
            trace.kernels["rank"] = rank
        if skip_steps:
            trace = _without_steps(file, trace, skip_steps)
        traces[rank] = trace
        ranks.append({"rank": rank, "file": file_text(file), **_rank_facts(trace)})
        steps += [{"rank": rank, **step} for step in _steps(trace)]
        warnings += [*trace.info["warnings"], *_doubts(file, trace)]
    progress("reconciling")
    every = list(traces.values())
    ops, gaps, kernels = _together(every)
    on_gpu = next((trace for trace in every if len(trace.kernels)), every[0])  # not a CPU rank's
    device = _device(on_gpu)
    found = _ceilings(device, gpu, ceilings, on_gpu=len(kernels) > 0)
    warnings += found.warnings
    computing = [trace for trace in every if len(trace.kernels)]
    if len(names := sorted({str(_device(trace).get("name")) for trace in computing})) > 1:
        warnings.append(f"the ranks ran on different devices: {', '.join(names)}")
    sums = pd.DataFrame(ranks)
    ranks.sort(key=lambda row: int(row["rank"]))
    provenance = TraceProvenance(
        source=Source(model=file_text(files[0].name).removesuffix(".gz").removesuffix(".json")),
        called=Called(dtype=_main_dtype(ops)),
        device=_described(device, gpu, on_gpu.info["vendors"], on_gpu=len(kernels) > 0),
        environment=Environment(
            flopprof=flopprof.__version__,
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command=COMMAND.get(),
        ),
        trace=TraceFacts(
            files=tuple(file_text(file) for file in files),
            origin_us=float(every[0].info["origin_us"]),
            kernels=int(sums["kernels"].sum()),
            **{name: float(sums[name].sum(min_count=1)) for name in _ADDED},
            linked_kernel_frac=_share(sums, "linked_kernels", "kernels"),
            linked_kernel_time_frac=_share(sums, "linked_kernel_time_us", "kernel_time_us"),
            communication_frac=_share(sums, "communication_us", "all_kernels_us"),
            overlap_frac=_share(sums, "overlapped_us", "communication_us"),
            slowest_rank=_slowest(sums),
        ),
        ranks=tuple(Rank(**row) for row in ranks),
        steps=tuple(Step(**row) for row in steps),
        warnings=warned(warnings),
    )
    witnesses = Witnesses(MODULE_CALLS.empty(), ops, gaps, kernels)
    return assemble(witnesses, found.rooflines(), provenance)


_ADDED = ("kernel_time_us", "device_busy_us", "communication_us", "span_us")


def _share(ranks: pd.DataFrame, part: str, whole: str) -> float:
    return float(ranks[part].sum() / ranks[whole].sum()) if ranks[whole].sum() else math.nan


def _slowest(ranks: pd.DataFrame) -> int | None:
    """Return the rank whose own work took longest: the others wait for it in collectives."""
    busy = ranks.set_index("rank")["device_busy_us"]
    if len(busy) < 2 or not busy.max() - busy.min() > _STRAGGLER_FRAC * busy.max():
        return None
    return int(busy.idxmax())


def _rank_facts(trace: Trace) -> dict[str, Any]:
    """Return what one rank did; times in µs."""
    kernels, ops = trace.kernels, trace.ops[trace.ops["counted"]]
    compute, talk = (kernels[kernels["kind"] == k] for k in ("compute", "communication"))
    linked = compute[compute["op_id"] >= 0]
    busy, talking = _union(compute), _union(talk)
    apart = _union(kernels[kernels["kind"].isin(("compute", "communication"))])
    facts = {
        "gpu": str(_device(trace).get("name") or "") or None,
        "matmul_flops": float(ops["matmul_flops"].sum()),
        "flops": float((ops["matmul_flops"] + ops["vector_flops"]).sum()),
        "kernels": len(compute),
        "linked_kernels": len(linked),
        "span_us": trace.info["span_us"],
    }
    times = {
        "kernel_time_us": float(compute["duration_us"].sum()),
        "device_busy_us": busy,
        "linked_kernel_time_us": float(linked["duration_us"].sum()),
        "communication_us": talking,
        "all_kernels_us": apart,
        "communication_frac": talking / apart if apart else math.nan,
        "overlapped_us": busy + talking - apart,
        "overlap_frac": (busy + talking - apart) / talking if talking else math.nan,
    }
    return facts | (times if len(kernels) else dict.fromkeys(times, math.nan))


def _union(kernels: pd.DataFrame) -> float:
    start, length = kernels["start_us"].to_numpy(), kernels["duration_us"].to_numpy()
    return float(busy_until(start, start + length, math.inf))


def _steps(trace: Trace) -> list[dict[str, Any]]:
    """Return the profiler's steps, with what was called in each; its kernels may end later."""
    rows = sorted(set(trace.info["steps"]), key=lambda step: float(step[1]))
    steps = pd.DataFrame(rows, columns=["step", "start_us", "duration_us"])
    if not rows:
        return []
    ops, ends = trace.ops, (steps["start_us"] + steps["duration_us"]).to_numpy()
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


def _without_steps(file: Path, trace: Trace, skipped: int) -> Trace:
    """Return the trace from the step behind the first `skipped` ones; op ids count anew."""
    steps = sorted(set(trace.info["steps"]), key=lambda step: float(step[1]))
    if len(steps) <= skipped:
        raise UsageError(
            f"{file_text(file)} holds {len(steps)} profiler steps; leaving out {skipped} "
            "leaves none",
            remedy="give a smaller --skip-steps",
        )
    begin = steps[skipped][1]
    ops, kernels = trace.ops, trace.kernels
    kept = (ops["start_us"] >= begin).to_numpy()
    number = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)  # the last is for -1
    ops, linked = ops[kept], number[kernels["op_id"]]
    stays = (linked >= 0) | ((kernels["op_id"] == -1) & (kernels["start_us"] >= begin))
    ops = ops.assign(op_id=number[ops["op_id"]], parent_op_id=number[ops["parent_op_id"]])
    kernels = kernels.assign(op_id=linked)[stays].reset_index(drop=True)
    gaps = trace.gaps[trace.gaps["start_us"] >= begin]
    info = {**trace.info, "steps": steps[skipped:]}
    info["span_us"] -= begin
    ops = OPS.check(ops.reset_index(drop=True))
    return Trace(ops, gaps, kernels, trace.module_types, trace.devices, info)


def _doubts(file: Path, trace: Trace) -> list[str]:
    """Return what makes the figures of a trace incomplete."""
    if not len(trace.ops):
        remedy = "record it with ProfilerActivity.CPU as well, and record_shapes=True"
        return [f"{file_text(file)} holds kernels and no ops, so FLOPs are unknown: {remedy}"]
    no_shapes = "has no shapes, so no FLOPs: record it with record_shapes=True"
    no_kernels = "holds no kernels: times are the host's (a GPU's need ProfilerActivity.CUDA)"
    absent = ((trace.info["has_shapes"], no_shapes), (len(trace.kernels), no_kernels))
    return [f"{file_text(file)} {fact}" for there, fact in absent if not there]


def _together(traces: list[Trace]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return ops, gaps and kernels of all ranks; ids run on."""
    if len(traces) == 1:
        return traces[0].ops, traces[0].gaps, traces[0].kernels
    firsts = np.cumsum([0, *(len(trace.ops) for trace in traces)])
    pairs = list(zip(firsts.tolist(), traces, strict=False))
    ops = pd.concat([_shifted(t.ops, n, "op_id", "parent_op_id") for n, t in pairs])
    kernels = pd.concat([_shifted(t.kernels, n, "op_id") for n, t in pairs], ignore_index=True)
    kernels["kernel_id"] = np.arange(len(kernels))
    gaps = pd.concat([trace.gaps for trace in traces], ignore_index=True)
    return OPS.check(ops.reset_index(drop=True)), gaps, KERNELS.check(kernels)


def _shifted(frame: pd.DataFrame, by: int, *names: str) -> pd.DataFrame:
    return frame.assign(**{n: frame[n].where(frame[n] < 0, frame[n] + by) for n in names})


def _device(trace: Trace) -> dict[str, Any]:
    """Return the properties of the GPU that ran the kernels; empty where the trace has none.

    ROCm numbers devices of kernels otherwise than in the properties.
    """
    known = trace.devices
    used = trace.kernels["device_index"].mode()
    named = [d for d in known if len(used) and d.get("id") == used.iloc[0]]
    alike = len({str(d.get("name")) for d in known}) == 1
    return dict((named or (known if alike else [{}]))[0])


def _ceilings(
    device: dict[str, Any], gpu: str | None, file: str | Path | None, *, on_gpu: bool
) -> Ceilings:
    if file is not None:
        given = load_ceilings(file)
        tables = ceilings_for_gpu(device) if on_gpu else Ceilings({})
        doubts, theirs = list(given.warnings), given.device.get("name")
        if theirs and theirs != device.get("name"):
            name = device.get("name") or "another device"
            doubts.append(f"the ceilings of {file} are those of {theirs}, the trace is of {name}")
        entries = given.entries + tables.entries
        return Ceilings(device, entries, given.clocks, tuple(doubts))
    if gpu is not None:
        found = ceilings_for_gpu({"name": gpu})
        if not found.entries:
            raise UsageError(
                f"no GPU of the table is called {gpu!r}, or several are",
                remedy="known are: " + found.warnings[0].partition("(known: ")[2].rstrip(")"),
            )
        return found
    if not on_gpu:
        return Ceilings({}, warnings=("no ceiling is known: give --ceilings FILE",))
    return ceilings_for_gpu(device)


def _described(
    device: dict[str, Any], gpu: str | None, vendors: list[str], *, on_gpu: bool
) -> DeviceFacts:
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


def _main_dtype(ops: pd.DataFrame) -> str:
    """Return the element type of most matmul FLOPs, else of most ops."""
    counted = ops[ops["counted"] & (ops["dtype"].astype("str") != "")]
    by_dtype = counted.groupby("dtype", observed=True)["matmul_flops"].sum()
    if len(by_dtype) and by_dtype.max() > 0:
        return str(by_dtype.idxmax())
    return str(counted["dtype"].mode().iloc[0]) if len(counted) else "float32"
