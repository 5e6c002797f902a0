"""Events of a trace, sorted into columns: host nodes, launches, kernels."""

import math
import re
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flopprof.devices.categories import category_kind, category_vendor
from flopprof.formulas import OP_FORMULAS
from flopprof.trace.signatures import Signature, Signatures

PREFIX = "flopprof:"
OP = 0
RANGE = 1
OTHER = 2
KERNEL_KINDS = ("compute", "memcpy", "memset", "communication")
# Start, end, thread, role, label (an op's signature, else a name), external id, sequence number,
# signature (-1 for a range).
HostRow = tuple[float, float, int, int, int, int, int, int]
Columns = list["array[Any]"]
_LARGEST = 1 << 63
_AXES = 3
_PYTHON_MODULE = "nn.Module: "
_COLLECTIVE = re.compile(r"nccl|rccl|AllReduce|AllGather|ReduceScatter|SendRecv", re.IGNORECASE)
# Host events that are no ops, unless they launch kernels themselves: their time is host overhead.
_NO_OP = re.compile(
    r"autograd::engine::|torch::autograd::|Optimizer\.|ProfilerStep#|TorchDynamo|CompiledFunction|"
    r"## Call |\w+Backward\d*$|DistributedDataParallel|FSDP::|FullyShardedDataParallel|"
    r"torch(\.[\w.]+)?::|c10d::check_for_nan|"  # PyTorch's own: torch::distributed::…
    r"(?!.*::|triton_|(graph_\d+_)?cpp_fused_|Torch-Compiled Region)"  # no namespace, nor generated
)
_TRITON_ARGS = ("kernel_hash", "kernel_file", "kernel_backend")
# Annotations that name no part of a model: collectives, compiled graphs, the profiler itself.
_NO_PLACE = re.compile(
    r"nccl:|gloo:|## Call |PyTorch Profiler|Profiler|DataLoader|enumerate\(|FSDP::|"
    r"(FullyShardedDataParallel|DistributedDataParallel|DataParallel)\.|torch(\.[\w.]+)?::"
)


@dataclass(slots=True)
class Events:
    """The events of interest, column by column."""

    hosts: Columns = field(default_factory=lambda: columns("ddqbqqqq"))  # as in HostRow
    # Correlation, thread, start, external id, name, the kernel's name (-1 where it is not told).
    launches: Columns = field(default_factory=lambda: columns("qqdqqq"))
    # Correlation, name, kind, stream, device, graph, start, length, external id, sizes.
    kernels: Columns = field(default_factory=lambda: columns("qqbqqqddqq"))
    kernel_sizes: dict[tuple[str, str], int] = field(default_factory=dict)  # grid and block
    kernel_names: dict[str, int] = field(default_factory=dict)
    collectives: list[bool] = field(default_factory=list)  # whether that name is one
    names: dict[str, int] = field(default_factory=dict)
    threads: dict[tuple[Any, Any], int] = field(default_factory=dict)
    thread_names: list[str] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)  # of categories
    vendors: set[str] = field(default_factory=set)
    roles: dict[str, int] = field(default_factory=dict)  # of names
    calls: Signatures = field(default_factory=Signatures)
    steps: list[tuple[str, float, float]] = field(default_factory=list)
    replays: set[int] = field(default_factory=set)  # correlation ids of launches of whole graphs
    python_modules: list[HostRow] = field(default_factory=list)
    annotations: list[HostRow] = field(default_factory=list)
    has_ranges: bool = False
    odd: int = 0

    @property
    def signatures(self) -> list[Signature]:
        """Return what the calls of one op with one set of arguments have in common."""
        return self.calls.every

    @property
    def warnings(self) -> list[str]:
        """Return what makes the figures doubtful."""
        return self.calls.warnings


def columns(types: str) -> Columns:
    """Return empty columns of these types."""
    return [array(code) for code in types]


def extend(into: Columns, rows: Iterable[tuple[float, ...]]) -> None:
    """Add rows to columns."""
    for column, values in zip(into, zip(*rows, strict=True), strict=False):  # or no rows at all
        column.extend(values)


@dataclass(slots=True)
class _Rows:
    """Rows of one chunk; columns take many at once faster than one by one."""

    hosts: list[HostRow] = field(default_factory=list)
    launches: list[tuple[int, int, float, int, int, int]] = field(default_factory=list)
    kernels: list[tuple[int, int, int, int, int, int, float, float, int, int]] = field(
        default_factory=list
    )


class _Event(NamedTuple):
    """A complete event whose name, arguments and times are of the right types."""

    raw: Mapping[str, Any]
    name: str
    args: Mapping[str, Any]
    start: float
    end: float
    length: float  # as recorded: of large time stamps the difference is off by up to 0.1 ns


def take_events(raw: list[Any], events: Events) -> None:
    """Sort raw events into columns; what is no complete event with finite times is left out."""
    rows = _Rows()
    kinds = events.kinds
    for item in raw:
        if type(item) is not dict or item.get("ph") != "X":
            continue
        name = item.get("name")
        args = item.get("args") or {}
        category = item.get("cat")
        if type(name) is not str or type(args) is not dict or type(category) is not str:
            continue
        start = item.get("ts")
        length = item.get("dur", 0.0)
        if type(start) is not float or type(length) is not float:
            start = _number(start)
            length = _number(length)
        end = start + length
        if not (end - end == 0 and length >= 0):  # NaN or infinite
            events.odd += 1
            continue
        kind = kinds.get(category)
        if kind is None:
            kind = _new_category(category, events)
        is_range = name.startswith(PREFIX)
        if not kind and not is_range:
            continue
        event = _Event(item, name, args, start, end, length)
        if is_range:
            events.has_ranges = True
            label = _number_of(events.names, name.removeprefix(PREFIX))
            rows.hosts.append(_range_row(event, label, events))
        elif kind in _TAKE:
            _TAKE[kind](event, events, rows)
        else:
            _take_kernel(event, kind, events, rows)
    extend(events.hosts, rows.hosts)
    extend(events.launches, rows.launches)
    extend(events.kernels, rows.kernels)


def _new_category(category: str, events: Events) -> str:
    vendor = category_vendor(category)
    if vendor:
        events.vendors.add(vendor)
    kind = category_kind(category)
    events.kinds[category] = kind
    return kind


def _take_host(event: _Event, events: Events, rows: _Rows) -> None:
    name = event.name
    args = event.args
    role = events.roles.get(name)
    if role is None:
        role = _role_of(name)
        events.roles[name] = role
    if role == OTHER and any(key in args for key in _TRITON_ARGS):
        role = OP
        events.roles[name] = role
    signature = events.calls.number(name, args)
    label = signature
    if role != OP:
        label = _number_of(events.names, name)
        if name.startswith("ProfilerStep#"):
            events.steps.append((name, event.start, event.length))
    external = _integer(args, "External id", "external id")
    sequence = _integer(args, "Sequence number", "sequence number")
    thread = _thread(event.raw, events)
    rows.hosts.append((event.start, event.end, thread, role, label, external, sequence, signature))


def _take_launch(event: _Event, events: Events, rows: _Rows) -> None:
    correlation = _integer(event.args, "correlation")
    external = _integer(event.args, "External id", "external id")
    name = _number_of(events.names, event.name)
    kernel = event.args.get("kernel")  # ROCm's tracer tells it
    kernel_name = _number_of(events.names, kernel) if type(kernel) is str else -1
    thread = _thread(event.raw, events)
    rows.launches.append((correlation, thread, event.start, external, name, kernel_name))
    if "GraphLaunch" in event.name:
        events.replays.add(correlation)


def _take_python(event: _Event, events: Events, _rows: _Rows) -> None:
    if event.name.startswith(_PYTHON_MODULE):
        label = _number_of(events.names, event.name.removeprefix(_PYTHON_MODULE))
        events.python_modules.append(_range_row(event, label, events))


def _take_annotation(event: _Event, events: Events, rows: _Rows) -> None:
    name = event.name
    if name.startswith("ProfilerStep#"):
        events.steps.append((name, event.start, event.length))
    elif name.startswith("Optimizer.step#"):
        label = _number_of(events.names, name)
        signature = events.calls.number(name, event.args)
        thread = _thread(event.raw, events)
        rows.hosts.append((event.start, event.end, thread, OTHER, label, -1, -1, signature))
    elif not _NO_PLACE.match(name):
        label = _number_of(events.names, name)
        events.annotations.append(_range_row(event, label, events))


def _take_kernel(event: _Event, kind: str, events: Events, rows: _Rows) -> None:
    args = event.args
    number = events.kernel_names.get(event.name)
    if number is None:
        number = _number_of(events.kernel_names, event.name)
        events.collectives.append(bool(_COLLECTIVE.search(event.name)))
    if kind == "compute" and events.collectives[number]:
        kind = "communication"
    row = (
        _integer(args, "correlation"),
        number,
        KERNEL_KINDS.index(kind),
        _integer(args, "stream"),
        _integer(args, "device"),
        _integer(args, "graph id") or -1,
        event.start,
        event.length,
        _integer(args, "External id", "external id"),
        _sizes_number(args, events),
    )
    rows.kernels.append(row)


def _sizes_number(args: Mapping[str, Any], events: Events) -> int:
    """Return the number of a kernel's grid and block."""
    sizes = (_size(args.get("grid")), _size(args.get("block")))
    return events.kernel_sizes.setdefault(sizes, len(events.kernel_sizes))


def _size(value: Any) -> str:
    """Return a size by axis, "64x1x1"; "" for what is none."""
    is_size = isinstance(value, list) and 0 < len(value) <= _AXES
    if not is_size or not all(type(axis) is int and axis >= 0 for axis in value):
        return ""
    return "x".join(map(str, value))


_TAKE: dict[str, Callable[[_Event, Events, _Rows], None]] = {
    "host": _take_host,
    "launch": _take_launch,
    "python": _take_python,
    "annotation": _take_annotation,
}


def _range_row(event: _Event, label: int, events: Events) -> HostRow:
    return (event.start, event.end, _thread(event.raw, events), RANGE, label, -1, -1, -1)


def _role_of(name: str) -> int:
    return OTHER if _NO_OP.match(name) and name not in OP_FORMULAS else OP


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _integer(args: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = args.get(name)
        if value is None:
            continue
        if isinstance(value, str) and value.isdecimal() and len(value) < 20:
            value = int(value)
        if type(value) is int:
            return value if abs(value) < _LARGEST else -1
    return -1


def _thread(event: Mapping[str, Any], events: Events) -> int:
    pid = event.get("pid")
    tid = event.get("tid")
    if not isinstance(pid, str | int) or not isinstance(tid, str | int):
        pid = str(pid)
        tid = str(tid)
    number = events.threads.get((pid, tid))
    if number is None:
        key = (str(pid), str(tid))
        number = events.threads.setdefault(key, len(events.thread_names))
        events.threads[(pid, tid)] = number
        if number == len(events.thread_names):
            events.thread_names.append("/".join(key))
    return number


def _number_of(names: dict[str, int], name: str) -> int:
    return names.setdefault(name, len(names))
