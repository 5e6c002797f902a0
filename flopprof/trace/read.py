"""Turn a trace file, however large, into ops, kernels and gaps. Imports no torch.

Host events form a tree per thread, by time. Some are ops; ranges name modules; the rest (the
autograd engine's, the optimizer's, annotations) tell the phase, and their own time is overhead.
"""

import gc
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from flopprof import dtypes
from flopprof.errors import LoadError
from flopprof.formulas import COMPILED, OP_FORMULAS, OpCall, kind_of, load_op_formulas
from flopprof.formulas.external import find_op_formula
from flopprof.tables import KERNELS, OPS
from flopprof.trace.derive import derive_convolutions
from flopprof.trace.stream import stream_events
from flopprof.trace.tree import (
    KERNEL_KINDS,
    OP,
    OTHER,
    RANGE,
    Events,
    HostRow,
    Signature,
    Tree,
    busy_until,
    extend,
)
from flopprof.units import shapes_text

PREFIX = "flopprof:"
_LARGEST = 1 << 63
_PYTHON_MODULE = "nn.Module: "
_EVALUATED: dict[tuple[Any, ...], Signature] = {}  # by formula and call, kept for later traces
_HOST = frozenset(("cpu_op", "operator"))
_LAUNCH = frozenset(("cuda_runtime", "cuda_driver", "runtime", "hip_runtime", "hip_driver"))
_DEVICE = {"kernel": "compute", "gpu_memcpy": "memcpy", "memcpy": "memcpy"}
_DEVICE |= {"gpu_memset": "memset", "memset": "memset"}
_COLLECTIVE = re.compile(r"nccl|rccl|AllReduce|AllGather|ReduceScatter|SendRecv", re.IGNORECASE)
# cpu_op events that are no ops: their self time is host overhead.
_NO_OP = re.compile(
    r"autograd::engine::|torch::autograd::|Optimizer\.|ProfilerStep#|TorchDynamo|CompiledFunction|"
    r"## Call |\w+Backward\d*$|DistributedDataParallel|"
    r"(?!.*::|triton_|(graph_\d+_)?cpp_fused_|Torch-Compiled Region)"  # no namespace, nor generated
)
# Annotations that name no part of a model: collectives, compiled graphs, the profiler itself.
_NO_PLACE = re.compile(r"nccl:|gloo:|## Call |PyTorch Profiler|Profiler|DataLoader|enumerate\(")


@dataclass(frozen=True, slots=True)
class Trace:
    """What a trace file holds: tables OPS, GAPS and KERNELS, and what is known around them."""

    ops: pd.DataFrame
    gaps: pd.DataFrame
    kernels: pd.DataFrame
    module_types: dict[str, str]
    devices: list[dict[str, Any]]
    info: dict[str, Any]


def read_trace(path: str | Path, *, profiler_flops: Mapping[int, float] | None = None) -> Trace:
    """Return the ops, kernels and gaps of the trace at `path`.

    Args:
        path: A Chrome trace by torch.profiler, `.json`, gzipped or not.
        profiler_flops: External id → FLOPs by `with_flops`, which no trace file has; 0 is unknown.

    Raises:
        UsageError: There is no such file.
        LoadError: It is no trace, damaged, or without a single op.
    """
    load_op_formulas()
    header: dict[str, Any] = {}
    found = Events()
    collecting = gc.isenabled()
    gc.disable()  # a trace's objects form no cycles, and walking them all doubles the time
    try:
        for events in stream_events(Path(path), header):
            _take(events, found)
    finally:
        if collecting:
            gc.enable()
    foreign = next((c for c in found.sorts if c.startswith(("xpu", "mps", "mtia"))), None)
    if foreign:
        raise LoadError(
            f"{path} holds {foreign}: the device is not supported yet, CPU and CUDA/ROCm are",
            remedy="profile the model on one of these",
        )
    if not found.signatures and not found.has_ranges:
        raise LoadError(
            f"{path} is a trace without ops", remedy="record it with ProfilerActivity.CPU as well"
        )
    if not found.has_ranges:
        extend(found.hosts, found.python_modules or found.annotations)
    return _build(found, header, profiler_flops or {})


def _take(events: list[Any], found: Events) -> None:
    """Sort events into `found`; what is no complete event with finite times is left out."""
    host: list[HostRow] = []
    launches: list[tuple[int, int, float]] = []
    kernels: list[tuple[int, int, int, int, int, int, float, float]] = []
    for event in events:
        if type(event) is not dict or event.get("ph") != "X":
            continue
        name, start, length = event.get("name"), event.get("ts"), event.get("dur", 0.0)
        args = event.get("args") or {}
        category = event.get("cat")
        if type(name) is not str or type(args) is not dict or type(category) is not str:
            continue
        if type(start) is not float or type(length) is not float:
            start, length = _number(start), _number(length)
        end = start + length
        if not (end - end == 0 and length >= 0):  # NaN or infinite
            found.odd += 1
            continue
        sort = found.sorts.get(category)
        if sort is None:
            sort = found.sorts[category] = _sort_of(category.lower())
        role = found.roles.get(name)
        if role is None:
            role = found.roles[name] = _role_of(name)
        if role == RANGE:
            found.has_ranges = True
            label = _intern(found, name.removeprefix(PREFIX))
            host.append((start, end, _thread(event, found), RANGE, label, -1, -1))
        elif sort == "host":
            external = _integer(args, "External id", "external id")
            sequence = _integer(args, "Sequence number", "sequence number")
            label = _signature(name, args, found) if role == OP else _intern(found, name)
            host.append((start, end, _thread(event, found), role, label, external, sequence))
            if role == OTHER and name.startswith("ProfilerStep#"):
                found.steps.append((name, start, length))
        elif sort == "launch":
            correlation = _integer(args, "correlation")
            launches.append((correlation, _thread(event, found), start))
            if "GraphLaunch" in name:
                found.replays.add(correlation)
        elif sort == "python":
            if name.startswith(_PYTHON_MODULE):
                module = _intern(found, name.removeprefix(_PYTHON_MODULE))
                where = _thread(event, found)
                found.python_modules.append((start, end, where, RANGE, module, -1, -1))
        elif sort:
            stream, device, graph = (_integer(args, k) for k in ("stream", "device", "graph id"))
            correlation = _integer(args, "correlation")
            number = found.kernel_names.get(name)
            if number is None:
                number = found.kernel_names[name] = len(found.kernel_names)
                found.collectives.append(bool(_COLLECTIVE.search(name)))
            if sort == "compute" and found.collectives[number]:
                sort = "communication"
            kind = KERNEL_KINDS.index(sort)
            kernels.append((correlation, number, kind, stream, device, graph or -1, start, length))
        elif category != "user_annotation":
            continue
        elif name.startswith("ProfilerStep#"):
            found.steps.append((name, start, length))
        elif name.startswith("Optimizer.step#"):
            label = _intern(found, name)
            host.append((start, end, _thread(event, found), OTHER, label, -1, -1))
        elif not _NO_PLACE.match(name):
            label, where = _intern(found, name), _thread(event, found)
            found.annotations.append((start, end, where, RANGE, label, -1, -1))
    extend(found.hosts, host)
    extend(found.launches, launches)
    extend(found.kernels, kernels)


def _sort_of(category: str) -> str:
    """Return what an event of this category is: host, launch, python, a kernel's kind, or ""."""
    if category in _HOST:
        return "host"
    if category in _LAUNCH:
        return "launch"
    return "python" if category == "python_function" else _DEVICE.get(category, "")


def _role_of(name: str) -> int:
    if name.startswith(PREFIX):
        return RANGE
    return OTHER if _NO_OP.match(name) and name not in OP_FORMULAS else OP


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _integer(args: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = args.get(name)
        if isinstance(value, str) and value.isdecimal() and len(value) < 20:
            value = int(value)
        if type(value) is int:
            return value if abs(value) < _LARGEST else -1
    return -1


def _thread(event: Mapping[str, Any], found: Events) -> int:
    pid, tid = event.get("pid"), event.get("tid")
    if not isinstance(pid, str | int) or not isinstance(tid, str | int):
        pid, tid = str(pid), str(tid)
    number = found.threads.get((pid, tid))
    if number is None:
        key = (str(pid), str(tid))
        number = found.threads[(pid, tid)] = found.threads.setdefault(key, len(found.thread_names))
        if number == len(found.thread_names):
            found.thread_names.append("/".join(key))
    return number


def _intern(found: Events, name: str) -> int:
    return found.names.setdefault(name, len(found.names))


def _signature(name: str, args: Mapping[str, Any], found: Events) -> int:
    """Return the number of this op with these arguments; its formula is evaluated once."""
    shapes = _list(args.get("Input Dims") or args.get("Input dims"))
    types, values = _list(args.get("Input type")), _list(args.get("Concrete Inputs"))
    strides = _list(args.get("Input Strides"))
    if strides and strides.count([]) == shapes.count([]):
        strides = []  # only a sparse tensor has a shape and no strides; else they change nothing
    try:
        key = (name, orjson.dumps((shapes, types, values, strides)))
    except TypeError:  # lists in lists, deeper than any argument's
        return _signature(name, {}, found)
    number = found.known.get(key)
    if number is None:
        if name.startswith("Torch-Compiled Region"):  # its own time is that of generated code
            name = COMPILED
        found.has_values = found.has_values or bool(values)
        number = found.known[key] = len(found.signatures)
        same = (*find_op_formula(name), *key)
        signature = _EVALUATED.get(same)
        if signature is None:
            warned, call = len(found.warnings), (_nested(shapes), types, values, _nested(strides))
            signature = _evaluate(name, *call, found)
            if warned == len(found.warnings):
                _EVALUATED[same] = signature
        found.signatures.append(signature)
    return number


def _evaluate(
    name: str, shapes: Any, types: Any, values: Any, strides: Any, found: Events
) -> Signature:
    parsed = tuple(dtypes.parse_dtype(str(kind)) for kind in types)
    tensors = [kind for kind in parsed if dtypes.itemsize(kind)]
    floating = [kind for kind in tensors if dtypes.is_floating(kind)]
    dtype = (floating or tensors or [""])[0]
    call = OpCall(
        op=name,
        shapes=shapes,
        strides=strides,
        itemsize=dtypes.itemsize(dtype) or 4,
        dtypes=parsed,
        values=tuple(str(value) for value in values),
    )
    formula, source = find_op_formula(name)
    work = None
    if formula is not None:
        try:
            work = formula(call)
            if work is not None:
                figures = map(float, (work.matmul_flops, work.vector_flops, work.min_bytes))
                if not all(0 <= figure < math.inf for figure in figures):
                    raise ValueError("it counts less than nothing, or without end")
        except (LookupError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
            work, what = None, f"{type(error).__name__}: {error}"
            text = f"the formula of {name} does not fit {shapes_text(call.shapes)}: {what}"
            found.warnings.append(text)
    kind = "other" if source in ("torch", "generated") else kind_of(name)
    if work is not None and not (work.matmul_flops or work.vector_flops or work.flops_at_most):
        kind = "free"  # integers, or a dropout in eval
    known_bytes = bool(tensors) and source != "torch"
    return Signature(name, kind, shapes_text(call.shapes), dtype, work, known_bytes, call)


def _nested(value: Any, depth: int = 3) -> tuple[Any, ...]:
    """Return sizes, lists of sizes and lists of such lists, as tuples; what is none is empty."""
    if not isinstance(value, list) or not depth:
        return ()
    if all(isinstance(item, list) for item in value):
        return tuple(_nested(item, depth - 1) for item in value)
    return tuple(value) if all(type(item) is int and item >= 0 for item in value) else ()


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _build(found: Events, header: dict[str, Any], profiler_flops: Mapping[int, float]) -> Trace:
    """Build the trees and return the tables."""
    start, end, thread, *_, external, _ = (np.frombuffer(c, c.typecode) for c in found.hosts)
    # Parents first: earlier start, then later end, then the lower id. The thread that begins first
    # comes first, so that forward ops are known before the backward's thread asks for them.
    begins = np.full(len(found.thread_names), math.inf)
    np.minimum.at(begins, thread, start)
    rank = np.argsort(np.argsort(begins, kind="stable"))
    order = np.lexsort((external, -end, start, rank[thread]))
    origin = float(min(start.min(), min(found.kernels[6], default=math.inf)))
    external = external[order]
    latest = max(map(sum, zip(*found.kernels[6:], strict=True)), default=-math.inf)
    span_us = float(max(end.max(), latest) - origin)
    del start, end, thread
    tree = Tree(found, order, origin)
    if not found.has_values:
        derive_convolutions(tree)
    tree.walk()
    tree.link_kernels()
    known = header.get("distributedInfo")
    job = {k: n for k, n in (known if isinstance(known, dict) else {}).items() if type(n) is int}
    kernels, device = _kernels_frame(tree, job.get("rank", 0), origin)
    found.launches.clear()
    nodes = np.flatnonzero(tree.rows >= 0)
    ops = _ops_frame(tree, nodes, external, profiler_flops, on_device=len(kernels) > 0)
    compute = kernels[kernels["kind"] == "compute"]
    compute_us = float(compute["duration_us"].sum())
    orphans_us = float(compute.loc[compute["op_id"] == -1, "duration_us"].sum())
    if found.odd:
        found.warnings.append(f"{found.odd} events without finite times were left out")
    info = {
        "schema_version": header.get("schemaVersion"),
        "has_shapes": any(s.shapes for s in found.signatures),
        "has_values": found.has_values,
        "rank": job.get("rank", 0),
        "world_size": job.get("world_size", 1),
        "span_us": span_us,
        "steps": [(name, start - origin, length) for name, start, length in found.steps],
        "origin_us": origin,
        "kernel_time_us": compute_us if len(kernels) else math.nan,
        "device_busy_us": device,
        "unlinked_kernel_us": orphans_us if len(kernels) else math.nan,
        "warnings": found.warnings,
    }
    devices = header.get("deviceProperties")
    return Trace(
        ops, tree.gaps_frame(), kernels, tree.module_types,
        [d for d in devices if isinstance(d, dict)] if isinstance(devices, list) else [], info,
    )  # fmt: skip


def _ops_frame(
    tree: Tree,
    nodes: np.ndarray,
    external: np.ndarray,
    profiler_flops: Mapping[int, float],
    *,
    on_device: bool,
) -> pd.DataFrame:
    found = tree.found
    signatures = found.signatures
    labels = np.array(tree.label)[nodes]
    dtype = _dtypes(tree, signatures)

    def of(values: Any) -> Any:
        return np.array(values, dtype=object if isinstance(values[0], str) else None)[nodes]

    def per_signature(values: list[Any]) -> Any:
        if values and isinstance(values[0], str):
            return pd.Categorical.from_codes(*_codes(values, labels))
        return np.array(values, dtype=float)[labels]

    def flops(name: str) -> list[float]:
        exact = [s.work if s.work and s.work.flops_at_most is None else None for s in signatures]
        return [math.nan if work is None else float(getattr(work, name)) for work in exact]

    moved = [
        b if s.known_bytes else math.nan
        for s, b in zip(signatures, flops("min_bytes"), strict=True)
    ]
    most = [
        math.nan if s.work is None or s.work.flops_at_most is None else float(s.work.flops_at_most)
        for s in signatures
    ]
    start, end = of(tree.start), of(tree.end)
    parents = of(tree.op_parent)
    by_profiler = [profiler_flops.get(i) or math.nan for i in external[nodes].tolist()]
    return OPS.frame(
        {
            "op_id": tree.rows[nodes],
            "external_id": external[nodes],
            "parent_op_id": np.where(parents >= 0, tree.rows[parents], -1),
            "op": per_signature([s.op for s in signatures]),
            "kind": per_signature([s.kind for s in signatures]),
            "module_path": pd.Categorical(of(tree.path)),
            "call_id": of(tree.call),
            "phase": pd.Categorical(of(tree.phase)),
            "sequence_nr": of(tree.sequence),
            "thread": pd.Categorical.from_codes(*_codes(found.thread_names, of(tree.thread))),
            "start_us": start - tree.origin,
            "input_shapes": per_signature([s.shapes for s in signatures]),
            "dtype": pd.Categorical(of(dtype)),
            "cpu_us": end - start,
            "self_cpu_us": np.maximum(of(tree.self_us), 0.0),
            "device_us": of(tree.device_us) if on_device else np.full(len(nodes), math.nan),
            "counted": of(tree.counted),
            "profiler_flops": by_profiler,
            "matmul_flops": per_signature(flops("matmul_flops")),
            "vector_flops": per_signature(flops("vector_flops")),
            "min_bytes": per_signature(moved),
            "flops_at_most": per_signature(most),
        }
    )


def _graphs(
    found: Events, correlation: np.ndarray, names: np.ndarray, graphs: np.ndarray
) -> np.ndarray:
    """Return each kernel's graph. Where replays have no number, those of equal kernels are one."""
    ids = graphs.copy()
    known: dict[bytes, int] = {}
    for launch in found.replays:
        mine = np.flatnonzero((correlation == launch) & (graphs == -1))
        if len(mine):
            ids[mine] = known.setdefault(names[mine].tobytes(), len(known) + 1)
    return ids


def _codes(values: list[str], labels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the codes and categories of `values[label]` for each label."""
    categories = list(dict.fromkeys(values))
    number = {value: code for code, value in enumerate(categories)}
    return np.array([number[value] for value in values], dtype=np.int64)[labels], categories


def _dtypes(tree: Tree, signatures: list[Signature]) -> list[str]:
    """Return each node's element type; an op on lists of tensors has that of its first child."""
    dtype = [
        signatures[label].dtype if role == OP else ""
        for role, label in zip(tree.role, tree.label, strict=True)
    ]
    for node in tree.in_tf32:
        if dtype[node] == "float32":
            dtype[node] = "tfloat32"
    for node in range(len(dtype) - 1, -1, -1):  # the first child is the last to write
        parent = tree.op_parent[node]
        inner = tree.role[node] == OP and parent >= 0 and dtype[node]
        if inner and not signatures[tree.label[parent]].dtype:
            dtype[parent] = dtype[node]
    return dtype


def _kernels_frame(tree: Tree, rank: int, origin: float) -> tuple[pd.DataFrame, float]:
    """Return the table of kernels, and how long any compute kernel ran; NaN without kernels."""
    found = tree.found
    correlation, names, kinds, streams, devices, graphs, starts, lengths = (
        np.frombuffer(column, column.typecode) for column in found.kernels
    )
    if not len(starts):
        return KERNELS.empty(), math.nan
    ops = np.frombuffer(tree.kernel_ops, "q")
    frame = KERNELS.frame(
        {
            "kernel_id": np.arange(len(starts)),
            "op_id": np.where(ops >= 0, tree.rows[ops], -1),
            "correlation_id": correlation,
            "kernel": pd.Categorical.from_codes(names, list(found.kernel_names)),
            "kind": pd.Categorical.from_codes(*_codes(list(KERNEL_KINDS), kinds)),
            "stream": streams,
            "device_index": devices,
            "rank": np.full(len(starts), rank),
            "graph_id": _graphs(found, correlation, names, graphs),
            "start_us": starts - origin,
            "duration_us": lengths,
        }
    )
    compute = frame[frame["kind"] == "compute"]
    start = compute["start_us"].to_numpy()
    return frame, float(busy_until(start, start + compute["duration_us"].to_numpy(), math.inf))
