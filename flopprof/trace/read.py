"""Turn a trace file, however large, into ops, kernels and gaps. Imports no torch.

Host events form a tree per thread, by time. Some are ops; ranges name modules; the rest (the
autograd engine's, the optimizer's, annotations) tell the phase, and their own time is overhead.
"""

import math
import re
from array import array
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from flopprof import dtypes
from flopprof.errors import LoadError
from flopprof.formulas import FREE_OPS, OP_FORMULAS, OpCall, Work, kind_of, load_op_formulas
from flopprof.tables import GAPS, KERNELS, OPS
from flopprof.trace.stream import stream_events
from flopprof.units import shapes_text

PREFIX = "flopprof:"
_PYTHON_MODULE = "nn.Module: "
_HOST = frozenset(("cpu_op", "operator"))
_LAUNCH = frozenset(("cuda_runtime", "cuda_driver", "runtime", "hip_runtime", "hip_driver"))
_DEVICE = {"kernel": "compute", "gpu_memcpy": "memcpy", "memcpy": "memcpy"}
_DEVICE |= {"gpu_memset": "memset", "memset": "memset"}
_COLLECTIVE = re.compile(r"nccl|rccl|AllReduce|AllGather|ReduceScatter|SendRecv", re.IGNORECASE)
# cpu_op events that are no ops: their self time is host overhead.
_NO_OP = re.compile(
    r"autograd::engine::|torch::autograd::|Optimizer\.|ProfilerStep#|Torch-Compiled Region|"
    r"TorchDynamo|CompiledFunction|## Call |\w+Backward\d*$|DistributedDataParallel|"
    r"(?!.*::|triton_)"  # a name without a namespace, unless it is a generated kernel
)
_OP, _RANGE, _OTHER = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Trace:
    """What a trace file holds: tables OPS, GAPS and KERNELS, and what is known around them."""

    ops: pd.DataFrame
    gaps: pd.DataFrame
    kernels: pd.DataFrame
    module_types: dict[str, str]
    devices: list[dict[str, Any]]
    info: dict[str, Any]


@dataclass(slots=True)
class _Signature:
    """What all calls of one op with one set of arguments have in common."""

    op: str
    kind: str
    shapes: str
    dtype: str
    work: Work | None
    known_bytes: bool


@dataclass(slots=True)
class _Events:
    """The events of interest, column by column."""

    start: "array[float]" = field(default_factory=lambda: array("d"))
    end: "array[float]" = field(default_factory=lambda: array("d"))
    thread: "array[int]" = field(default_factory=lambda: array("q"))
    role: "array[int]" = field(default_factory=lambda: array("b"))
    label: "array[int]" = field(default_factory=lambda: array("q"))  # signature or name
    external: "array[int]" = field(default_factory=lambda: array("q"))
    sequence: "array[int]" = field(default_factory=lambda: array("q"))
    names: dict[str, int] = field(default_factory=dict)
    threads: dict[tuple[str, str], int] = field(default_factory=dict)
    signatures: list[_Signature] = field(default_factory=list)
    known: dict[tuple[str, bytes], int] = field(default_factory=dict)
    launches: dict[int, tuple[int, float]] = field(default_factory=dict)
    kernels: list[tuple[int, str, str, int, int, int, float, float]] = field(default_factory=list)
    steps: list[tuple[str, float, float]] = field(default_factory=list)
    python_modules: list[tuple[str, int, float, float]] = field(default_factory=list)
    has_ranges: bool = False
    has_values: bool = False
    odd: int = 0
    warnings: list[str] = field(default_factory=list)


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
    found = _Events()
    for events in stream_events(Path(path), header):
        for event in events:
            _take(event, found)
    if not found.start:
        raise LoadError(
            f"{path} is a trace without ops", remedy="record it with ProfilerActivity.CPU as well"
        )
    if not found.has_ranges:
        for name, thread, start, end in found.python_modules:
            _add_host(found, thread, start, end, _RANGE, _intern(found, name), -1, -1)
    return _build(found, header, profiler_flops or {})


def _take(event: Any, found: _Events) -> None:
    """Sort one event into `found`; what is no complete event with finite times is left out."""
    if not isinstance(event, dict) or event.get("ph") != "X":
        return
    name, start, length = event.get("name"), event.get("ts"), event.get("dur", 0)
    args = event.get("args")
    if not isinstance(name, str) or not isinstance(args, dict | None):
        return
    try:
        start, length = float(start), float(length)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found.odd += 1
        return
    if not (math.isfinite(start) and 0 <= length < math.inf):
        found.odd += 1
        return
    args = args or {}
    category = str(event.get("cat", "")).lower()
    end = start + length
    if name.startswith(PREFIX):
        found.has_ranges = True
        label = _intern(found, name.removeprefix(PREFIX))
        _add_host(found, _thread(event, found), start, end, _RANGE, label, -1, -1)
    elif category in _HOST:
        external = _integer(args, "External id", "external id")
        sequence = _integer(args, "Sequence number", "sequence number")
        role = _OTHER if _NO_OP.match(name) else _OP
        label = _intern(found, name) if role == _OTHER else _signature(name, args, found)
        _add_host(found, _thread(event, found), start, end, role, label, external, sequence)
    elif category in _DEVICE:
        kind = _DEVICE[category]
        if kind == "compute" and _COLLECTIVE.search(name):
            kind = "communication"
        numbers = (_integer(args, "stream"), _integer(args, "device"), _integer(args, "graph id"))
        correlation = _integer(args, "correlation")
        found.kernels.append((correlation, name, kind, *numbers, start, length))
    elif category in _LAUNCH:
        correlation = _integer(args, "correlation")
        if correlation >= 0:
            found.launches[correlation] = (_thread(event, found), start)
    elif category == "python_function" and name.startswith(_PYTHON_MODULE):
        module = name.removeprefix(_PYTHON_MODULE)
        found.python_modules.append((module, _thread(event, found), start, end))
    elif name.startswith("ProfilerStep#"):
        found.steps.append((name, start, length))


def _integer(args: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = args.get(name)
        if isinstance(value, int):
            return value
        if isinstance(value, str) and value.isdigit():
            return int(value)
    return -1


def _thread(event: Mapping[str, Any], found: _Events) -> int:
    key = (str(event.get("pid")), str(event.get("tid")))
    return found.threads.setdefault(key, len(found.threads))


def _intern(found: _Events, name: str) -> int:
    return found.names.setdefault(name, len(found.names))


def _add_host(
    found: _Events, thread: int, start: float, end: float, role: int, label: int, external: int,
    sequence: int,
) -> None:  # fmt: skip
    found.start.append(start)
    found.end.append(end)
    found.thread.append(thread)
    found.role.append(role)
    found.label.append(label)
    found.external.append(external)
    found.sequence.append(sequence)


def _signature(name: str, args: Mapping[str, Any], found: _Events) -> int:
    """Return the number of this op with these arguments; its formula is evaluated once."""
    shapes = args.get("Input Dims") or args.get("Input dims") or []
    types = args.get("Input type") or []
    values = args.get("Concrete Inputs") or []
    key = (name, orjson.dumps((shapes, types, values)))
    number = found.known.get(key)
    if number is None:
        found.has_values = found.has_values or bool(values)
        number = found.known[key] = len(found.signatures)
        found.signatures.append(_evaluate(name, shapes, types, values, found))
    return number


def _evaluate(name: str, shapes: Any, types: Any, values: Any, found: _Events) -> _Signature:
    parsed = tuple(dtypes.parse_dtype(str(kind)) for kind in types)
    tensors = [kind for kind in parsed if dtypes.itemsize(kind)]
    floating = [kind for kind in tensors if dtypes.is_floating(kind)]
    dtype = (floating or tensors or [""])[0]
    call = OpCall(
        op=name,
        shapes=_nested(shapes),
        itemsize=dtypes.itemsize(dtype) or 4,
        dtypes=parsed,
        values=tuple(str(value) for value in values),
    )
    formula = FREE_OPS.get(name) or OP_FORMULAS.get(name)
    work = None
    if formula is not None:
        try:
            work = formula(call)
        except (IndexError, ValueError, TypeError, KeyError, ZeroDivisionError) as error:
            text = f"the formula of {name} does not fit {shapes_text(call.shapes)}: {error}"
            found.warnings.append(text)
    return _Signature(name, kind_of(name), shapes_text(call.shapes), dtype, work, bool(tensors))


def _nested(value: Any) -> tuple[Any, ...]:
    """Return lists of sizes, and lists of such lists, as tuples."""
    if not isinstance(value, list):
        return ()
    return tuple(_nested(item) if isinstance(item, list) else item for item in value)


def _build(found: _Events, header: dict[str, Any], profiler_flops: Mapping[int, float]) -> Trace:
    """Build the trees and return the tables."""
    start, end = np.frombuffer(found.start), np.frombuffer(found.end)
    thread = np.frombuffer(found.thread, dtype=np.int64)
    external = np.frombuffer(found.external, dtype=np.int64)
    # Parents first: earlier start, then later end, then the lower id.
    order = np.lexsort((external, -end, start, thread))
    origin = float(min(start.min(), min((k[6] for k in found.kernels), default=math.inf)))
    tree = _Tree(found, order, start[order], end[order], thread[order], origin)
    tree.walk()
    tree.link_kernels()
    rows = tree.rows
    op_rows = np.flatnonzero(rows >= 0)
    ops = _ops_frame(tree, op_rows, external[order], profiler_flops)
    kernels, device = _kernels_frame(tree, header, origin)
    known_ranks = header.get("distributedInfo") or {}
    compute = kernels[kernels["kind"] == "compute"]
    compute_us = float(compute["duration_us"].sum())
    orphans_us = float(compute.loc[compute["op_id"] == -1, "duration_us"].sum())
    if found.odd:
        found.warnings.append(f"{found.odd} events without finite times were left out")
    info = {
        "schema_version": header.get("schemaVersion"),
        "has_shapes": any(s.shapes for s in found.signatures),
        "has_values": found.has_values,
        "rank": known_ranks.get("rank", 0) if isinstance(known_ranks, dict) else 0,
        "world_size": known_ranks.get("world_size", 1) if isinstance(known_ranks, dict) else 1,
        "span_us": float(end.max() - start.min()),
        "steps": found.steps,
        "kernel_time_us": compute_us if len(kernels) else math.nan,
        "device_busy_us": device,
        "unlinked_kernel_us": orphans_us if len(kernels) else math.nan,
        "warnings": found.warnings,
    }
    devices = header.get("deviceProperties")
    return Trace(
        ops, tree.gaps_frame(), kernels, tree.module_types,
        devices if isinstance(devices, list) else [], info,
    )  # fmt: skip


class _Tree:
    """The call trees of all threads; nodes are numbered in order of thread and start."""

    def __init__(
        self,
        found: _Events,
        order: np.ndarray,
        start: np.ndarray,
        end: np.ndarray,
        thread: np.ndarray,
        origin: float,
    ) -> None:
        self.found, self.origin = found, origin
        self.start, self.end = start.tolist(), end.tolist()
        self.thread = thread.tolist()
        self.role = np.frombuffer(found.role, dtype=np.int8)[order].tolist()
        self.label = np.frombuffer(found.label, dtype=np.int64)[order].tolist()
        self.sequence = np.frombuffer(found.sequence, dtype=np.int64)[order].tolist()
        self.names = list(found.names)
        size = len(self.start)
        self.parent = [-1] * size  # the node around
        self.op_parent = [-1] * size  # the op around
        self.call = [-1] * size  # the number of the nearest range
        self.path = [""] * size
        self.phase = ["forward"] * size
        self.counted = [False] * size
        self.self_us = [e - s for s, e in zip(self.start, self.end, strict=True)]
        self.device_us = [0.0] * size
        self.rows = np.full(size, -1)
        self.kernel_ops: list[int] = []
        self.module_types: dict[str, str] = {}
        self.gaps: list[tuple[str, int, float, float, str]] = []
        whole = all(value.is_integer() for value in self.start[:1000])
        self.slack = 1.0 if whole else 0.002  # µs: traces of 2021 round, kineto prints ns

    def walk(self) -> None:
        """Find each node's parent, module, phase, and whether it counts (rule 4)."""
        roles, labels, signatures = self.role, self.label, self.found.signatures
        ranges = [n for n, role in enumerate(roles) if role == _RANGE]
        ranges.sort(key=lambda n: self.start[n])
        for number, node in enumerate(ranges):
            self.call[node] = number
        forward_of: dict[int, tuple[str, int]] = {}
        below_counted = [False] * len(roles)
        cursor = list(self.start)  # how far each open range is covered by its children
        last_op = ""
        stack: list[int] = []
        row = 0
        for node, (role, label) in enumerate(zip(roles, labels, strict=True)):
            self._close(stack, node, cursor, last_op)
            around = stack[-1] if stack else -1
            self.parent[node] = around
            if around >= 0:
                self._inherit(node, around, below_counted)
                if roles[around] == _RANGE and self.op_parent[node] < 0:
                    self._gap(around, cursor, self.start[node], last_op)
                    cursor[around] = max(cursor[around], self.end[node])
            if role == _OP:
                self.rows[node] = row
                row += 1
                signature = signatures[label]
                work = signature.work
                if work is not None and work.flops_at_most is None and not below_counted[node]:
                    self.counted[node] = below_counted[node] = True
                if self.sequence[node] >= 0 and self.phase[node] == "forward":
                    forward_of.setdefault(self.sequence[node], (self.path[node], self.call[node]))
                last_op = signature.op
            elif role == _RANGE:
                self._enter_range(node, around)
            else:
                self._enter_other(node, forward_of)
            stack.append(node)
        self._close(stack, -1, cursor, last_op)

    def _close(self, stack: list[int], node: int, cursor: list[float], last_op: str) -> None:
        """Leave what ended before `node` begins, or is of another thread; all for -1."""
        while stack:
            top = stack[-1]
            if node >= 0 and self.thread[top] == self.thread[node]:
                inside = self.end[node] <= self.end[top] + self.slack
                begins = self.start[node] < self.end[top] or self.end[node] == self.end[top]
                if inside and begins:
                    return
            stack.pop()
            if self.role[top] == _RANGE and self.op_parent[top] < 0:
                self._gap(top, cursor, self.end[top], last_op)

    def _gap(self, node: int, cursor: list[float], until: float, last_op: str) -> None:
        if until > cursor[node]:
            length = until - cursor[node]
            start = cursor[node] - self.origin
            self.gaps.append((self.path[node], self.call[node], start, length, last_op))

    def _inherit(self, node: int, around: int, below_counted: list[bool]) -> None:
        is_op = self.role[around] == _OP
        self.op_parent[node] = around if is_op else self.op_parent[around]
        self.path[node], self.phase[node] = self.path[around], self.phase[around]
        below_counted[node] = below_counted[around]
        if self.call[node] < 0:
            self.call[node] = self.call[around]
        if self.role[node] == _OP and self.op_parent[node] >= 0:
            self.self_us[self.op_parent[node]] -= self.end[node] - self.start[node]

    def _enter_range(self, node: int, around: int) -> None:
        name = self.names[self.label[node]]
        if self.found.has_ranges:
            self.path[node] = name
            return
        outer = self.path[around] if around >= 0 else ""
        self.path[node] = f"{outer}.{name}" if outer else name
        self.module_types[self.path[node]] = name.rpartition("_")[0]

    def _enter_other(self, node: int, forward_of: dict[int, tuple[str, int]]) -> None:
        name = self.names[self.label[node]]
        if name.startswith("autograd::engine::evaluate_function"):
            self.phase[node] = "backward"
            if self.sequence[node] in forward_of:
                self.path[node] = forward_of[self.sequence[node]][0]
        elif name.startswith("Optimizer.step"):
            self.phase[node] = "optimizer"

    def link_kernels(self) -> None:
        """Find each kernel's op: the innermost one around its launch, on the launch's thread."""
        first: dict[int, int] = {}
        for node, thread in enumerate(self.thread):
            first.setdefault(thread, node)
        last = {thread: node for node, thread in enumerate(self.thread)}
        for correlation, _, kind, *_, length in self.found.kernels:
            op = -1
            launch = self.found.launches.get(correlation)
            if launch is not None and launch[0] in first:
                thread, time = launch
                node = bisect_right(self.start, time, first[thread], last[thread] + 1) - 1
                while node >= first[thread] and self.end[node] < time:
                    node = self.parent[node]
                    if node < 0:
                        break
                if node >= first[thread]:
                    op = node if self.role[node] == _OP else self.op_parent[node]
            self.kernel_ops.append(op)
            if kind == "compute":
                above = op
                while above >= 0:
                    self.device_us[above] += length
                    above = self.op_parent[above]

    def gaps_frame(self) -> pd.DataFrame:
        """Return the gaps as a table."""
        columns = zip(*self.gaps, strict=True) if self.gaps else [[]] * len(GAPS.columns)
        return GAPS.frame({name: list(c) for name, c in zip(GAPS.names, columns, strict=True)})


def _ops_frame(
    tree: _Tree, nodes: np.ndarray, external: np.ndarray, profiler_flops: Mapping[int, float]
) -> pd.DataFrame:
    found = tree.found
    signatures = found.signatures
    labels = np.array(tree.label)[nodes]
    dtype = _dtypes(tree, signatures)

    def of(values: list[Any]) -> np.ndarray:
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
    threads = ["/".join(key) for key in found.threads]
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
            "thread": pd.Categorical.from_codes(*_codes(threads, of(tree.thread))),
            "start_us": start - tree.origin,
            "input_shapes": per_signature([s.shapes for s in signatures]),
            "dtype": pd.Categorical(of(dtype)),
            "cpu_us": end - start,
            "self_cpu_us": np.maximum(of(tree.self_us), 0.0),
            "device_us": of(tree.device_us) if found.kernels else np.full(len(nodes), math.nan),
            "counted": of(tree.counted),
            "profiler_flops": by_profiler,
            "matmul_flops": per_signature(flops("matmul_flops")),
            "vector_flops": per_signature(flops("vector_flops")),
            "min_bytes": per_signature(moved),
            "flops_at_most": per_signature(most),
        }
    )


def _codes(values: list[str], labels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the codes and categories of `values[label]` for each label."""
    categories = list(dict.fromkeys(values))
    number = {value: code for code, value in enumerate(categories)}
    return np.array([number[value] for value in values], dtype=np.int64)[labels], categories


def _dtypes(tree: _Tree, signatures: list[_Signature]) -> list[str]:
    """Return each node's element type; an op on lists of tensors has that of its first child."""
    dtype = [
        signatures[label].dtype if role == _OP else ""
        for role, label in zip(tree.role, tree.label, strict=True)
    ]
    for node in range(len(dtype) - 1, -1, -1):  # the first child is the last to write
        parent = tree.op_parent[node]
        if tree.role[node] == _OP and parent >= 0 and dtype[node]:
            if not signatures[tree.label[parent]].dtype:
                dtype[parent] = dtype[node]
    return dtype


def _kernels_frame(
    tree: _Tree, header: dict[str, Any], origin: float
) -> tuple[pd.DataFrame, float]:
    """Return the table of kernels, and how long any compute kernel ran; NaN without kernels."""
    kernels = tree.found.kernels
    if not kernels:
        return KERNELS.empty(), math.nan
    correlation, names, kinds, streams, devices, graphs, starts, lengths = zip(
        *kernels, strict=True
    )
    info = header.get("distributedInfo")
    rank = info.get("rank", 0) if isinstance(info, dict) else 0
    ops = np.array(tree.kernel_ops)
    frame = KERNELS.frame(
        {
            "kernel_id": np.arange(len(kernels)),
            "op_id": np.where(ops >= 0, tree.rows[ops], -1),
            "correlation_id": np.array(correlation),
            "kernel": pd.Categorical(names),
            "kind": pd.Categorical(kinds),
            "stream": np.array(streams),
            "device_index": np.array(devices),
            "rank": np.full(len(kernels), rank),
            "graph_id": np.array(graphs),
            "start_us": np.array(starts) - origin,
            "duration_us": np.array(lengths),
        }
    )
    compute = frame[frame["kind"] == "compute"].sort_values("start_us")
    start = compute["start_us"].to_numpy()
    end = np.maximum.accumulate(start + compute["duration_us"].to_numpy()) if len(start) else start
    before = np.concatenate(([-math.inf], end[:-1])) if len(start) else start
    return frame, float(np.maximum(end - np.maximum(start, before), 0.0).sum())
