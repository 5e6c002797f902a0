"""Events of a trace, sorted into columns: host nodes, launches, kernels."""

import re
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from flopprof.devices.categories import category_kind, category_vendor
from flopprof.formulas import OP_FORMULAS
from flopprof.trace.decode import NO_ARGUMENTS, Arguments, Event
from flopprof.trace.messages import has_message, message_texts
from flopprof.trace.signatures import Signature, Signatures

PREFIX = "flopprof:"
OP = 0
RANGE = 1
OTHER = 2
KERNEL_KINDS = ("compute", "memcpy", "memset", "communication")
# Rows of `Events.hosts` and `Events.kernels`, in the order of their columns.
HostRow = tuple[float, float, int, int, int, int, int, int]
KernelRow = tuple[int, int, int, int, int, int, float, float, int, int, int]
_AXES = 3
_PYTHON_MODULE = "nn.Module: "
_OF_GLOO = "gloo:"
_TELLS_PHASE = ("Optimizer.step#", "FSDP::post_backward", "FSDP::root_post_backward")
_COLLECTIVE = re.compile(r"nccl|rccl|AllReduce|AllGather|ReduceScatter|SendRecv", re.IGNORECASE)
# Host events that are no ops, unless they launch kernels themselves: their time is host overhead.
_NO_OP = re.compile(
    r"autograd::engine::|torch::autograd::|Optimizer\.|ProfilerStep#|TorchDynamo|CompiledFunction|"
    r"## Call |\w+Backward\d*$|DistributedDataParallel|FSDP::|FullyShardedDataParallel|"
    r"torch(\.[\w.]+)?::|c10d::check_for_nan|"  # PyTorch's own: torch::distributed::…
    r"(?!.*::|triton_|(graph_\d+_)?cpp_fused_|Torch-Compiled Region)"  # no namespace, nor generated
)
# Annotations that name no part of a model: collectives, compiled graphs, the profiler itself.
_NO_PLACE = re.compile(
    r"nccl:|gloo:|## Call |PyTorch Profiler|Profiler|DataLoader|enumerate\(|FSDP::|"
    r"(FullyShardedDataParallel|DistributedDataParallel|DataParallel)\.|torch(\.[\w.]+)?::"
)


class Columns:
    """Columns of numbers by name: rows are added, columns are read."""

    def __init__(self, **types: str) -> None:
        """Make empty columns; `types` are those of the module array, by a column's name."""
        self._columns: dict[str, array[Any]] = {name: array(code) for name, code in types.items()}

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a column, not copied: no row can be added as long as it is held."""
        column = self._columns[name]
        return np.frombuffer(column, column.typecode)

    def extend(self, rows: Iterable[tuple[float, ...]]) -> None:
        """Add rows, whose numbers are in the columns' order."""
        columns = self._columns.values()
        for column, values in zip(columns, zip(*rows, strict=True), strict=False):  # or no rows
            column.extend(values)

    def append(self, other: "Columns") -> None:
        """Add the rows of other such columns."""
        for name, column in self._columns.items():
            column.extend(other._columns[name])

    def taken(self, name: str, order: np.ndarray) -> np.ndarray:
        """Return a column in another order, and let go of it."""
        column: np.ndarray = self[name][order]
        self._columns[name] = array(self._columns[name].typecode)
        return column

    def clear(self) -> None:
        """Let go of all rows."""
        for name, column in self._columns.items():
            self._columns[name] = array(column.typecode)


def _host_columns() -> Columns:
    """Return the columns of host nodes.

    `label` is the number of an op's signature, else of a name; `signature` is -1 for a range.
    """
    return Columns(
        start="d",
        end="d",
        thread="i",
        role="b",
        label="i",
        external_id="q",
        sequence="q",
        signature="i",
    )


def _launch_columns() -> Columns:
    """Return the columns of launches; `kernel_name` is -1 where the launch does not tell it."""
    return Columns(
        correlation="q", thread="i", start="d", external_id="q", name="i", kernel_name="i"
    )


def _kernel_columns() -> Columns:
    """Return the columns of kernels; names, kinds, sizes and messages are numbers of those."""
    return Columns(
        correlation="q",
        name="i",
        kind="b",
        stream="q",
        device="q",
        graph="q",
        start="d",
        length="d",
        external_id="q",
        sizes="i",
        message="i",
    )


@dataclass(slots=True)
class Events:
    """The events of interest, column by column."""

    hosts: Columns = field(default_factory=_host_columns)
    launches: Columns = field(default_factory=_launch_columns)
    kernels: Columns = field(default_factory=_kernel_columns)
    kernel_sizes: dict[tuple[str, str], int] = field(default_factory=dict)  # grid and block
    written_sizes: dict[tuple[bytes, bytes], int] = field(default_factory=dict)  # as in the file
    messages: dict[tuple[bytes, ...], int] = field(default_factory=dict)  # as in the file
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
    # Name, start, length and signature of what gloo sent.
    host_collectives: list[tuple[str, float, float, int]] = field(default_factory=list)
    replays: set[int] = field(default_factory=set)  # correlation ids of launches of whole graphs
    python_modules: Columns = field(default_factory=_host_columns)  # what names modules else
    annotations: Columns = field(default_factory=_host_columns)
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


@dataclass(slots=True)
class _Rows:
    """Rows of one chunk; columns take many at once faster than one by one."""

    hosts: list[HostRow] = field(default_factory=list)
    python_modules: list[HostRow] = field(default_factory=list)
    annotations: list[HostRow] = field(default_factory=list)
    launches: list[tuple[int, int, float, int, int, int]] = field(default_factory=list)
    kernels: list[KernelRow] = field(default_factory=list)


def take_events(read: Iterable[Event], events: Events) -> None:
    """Sort events into columns; what is no complete event with finite times is left out."""
    rows = _Rows()
    kinds = events.kinds
    for event in read:
        name = event.name
        category = event.cat
        if event.ph != "X" or name is None or category is None:
            continue
        length = event.dur
        end = event.ts + length
        if not (end - end == 0 and length >= 0):  # NaN or infinite
            events.odd += 1
            continue
        kind = kinds.get(category)
        if kind is None:
            kind = _new_category(category, events)
        if name.startswith(PREFIX):
            events.has_ranges = True
            label = _number_of(events.names, name.removeprefix(PREFIX))
            rows.hosts.append(_range_row(event, label, events))
        elif kind:
            _TAKE[kind](event, name, events, rows)
    events.hosts.extend(rows.hosts)
    events.python_modules.extend(rows.python_modules)
    events.annotations.extend(rows.annotations)
    events.launches.extend(rows.launches)
    events.kernels.extend(rows.kernels)


def _new_category(category: str, events: Events) -> str:
    vendor = category_vendor(category)
    if vendor:
        events.vendors.add(vendor)
    kind = category_kind(category)
    events.kinds[category] = kind
    return kind


def _take_host(event: Event, name: str, events: Events, rows: _Rows) -> None:
    args = event.args or NO_ARGUMENTS
    role = events.roles.get(name)
    if role is None:
        role = _role_of(name)
        events.roles[name] = role
    if role == OTHER and args.is_of_triton:
        role = OP
        events.roles[name] = role
    signature = events.calls.number(name, args)
    label = signature
    if role != OP:
        label = _number_of(events.names, name)
        if name.startswith("ProfilerStep#"):
            events.steps.append((name, event.ts, event.dur))
        elif name.startswith(_OF_GLOO):
            events.host_collectives.append((name, event.ts, event.dur, signature))
    external = args.external_id
    if external == -1:
        external = args.external_id_of_2021
    sequence = args.sequence_nr
    if sequence == -1:
        sequence = args.sequence_nr_of_2021
    thread = _thread(event, events)
    end = event.ts + event.dur
    rows.hosts.append((event.ts, end, thread, role, label, external, sequence, signature))


def _take_launch(event: Event, name: str, events: Events, rows: _Rows) -> None:
    args = event.args or NO_ARGUMENTS
    external = args.external_id
    if external == -1:
        external = args.external_id_of_2021
    label = _number_of(events.names, name)
    kernel = -1
    if args.kernel is not None:  # ROCm's tracer tells it
        kernel = _number_of(events.names, args.kernel)
    thread = _thread(event, events)
    rows.launches.append((args.correlation, thread, event.ts, external, label, kernel))
    if "GraphLaunch" in name:
        events.replays.add(args.correlation)


def _take_python(event: Event, name: str, events: Events, rows: _Rows) -> None:
    if name.startswith(_PYTHON_MODULE):
        label = _number_of(events.names, name.removeprefix(_PYTHON_MODULE))
        rows.python_modules.append(_range_row(event, label, events))


def _take_annotation(event: Event, name: str, events: Events, rows: _Rows) -> None:
    if name.startswith("ProfilerStep#"):
        events.steps.append((name, event.ts, event.dur))
    elif name.startswith(_OF_GLOO):
        signature = events.calls.number(name, event.args or NO_ARGUMENTS)
        events.host_collectives.append((name, event.ts, event.dur, signature))
    elif name.startswith(_TELLS_PHASE):
        label = _number_of(events.names, name)
        signature = events.calls.number(name, event.args or NO_ARGUMENTS)
        thread = _thread(event, events)
        end = event.ts + event.dur
        rows.hosts.append((event.ts, end, thread, OTHER, label, -1, -1, signature))
    elif not _NO_PLACE.match(name):
        label = _number_of(events.names, name)
        rows.annotations.append(_range_row(event, label, events))


def _kernels_of(kind: str) -> "_Take":
    """Return what takes the kernels of categories of this kind."""
    number_of_kind = KERNEL_KINDS.index(kind)
    collective = KERNEL_KINDS.index("communication")

    def take(event: Event, name: str, events: Events, rows: _Rows) -> None:
        args = event.args or NO_ARGUMENTS
        number = events.kernel_names.get(name)
        if number is None:
            number = _number_of(events.kernel_names, name)
            events.collectives.append(bool(_COLLECTIVE.search(name)))
        is_collective = kind == "compute" and events.collectives[number]
        external = args.external_id
        if external == -1:
            external = args.external_id_of_2021
        message = -1
        if has_message(args):
            texts = message_texts(args)
            message = events.messages.setdefault(texts, len(events.messages))
        row = (
            args.correlation,
            number,
            collective if is_collective else number_of_kind,
            args.stream,
            args.device,
            args.graph or -1,
            event.ts,
            event.dur,  # of large time stamps the difference of ends is off by up to 0.1 ns
            external,
            _sizes_number(args, events),
            message,
        )
        rows.kernels.append(row)

    return take


def _sizes_number(args: Arguments, events: Events) -> int:
    """Return the number of a kernel's grid and block."""
    texts = (bytes(args.grid), bytes(args.block))
    number = events.written_sizes.get(texts)
    if number is None:
        sizes = (_size(texts[0]), _size(texts[1]))
        number = events.kernel_sizes.setdefault(sizes, len(events.kernel_sizes))
        events.written_sizes[texts] = number
    return number


def _size(text: bytes) -> str:
    """Return a size by axis, "64x1x1"; "" for what is none."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return ""
    is_size = isinstance(value, list) and 0 < len(value) <= _AXES
    if not is_size or not all(type(axis) is int and axis >= 0 for axis in value):
        return ""
    return "x".join(map(str, value))


_Take = Callable[[Event, str, Events, _Rows], None]
_TAKE: dict[str, _Take] = {
    "host": _take_host,
    "launch": _take_launch,
    "python": _take_python,
    "annotation": _take_annotation,
    **{kind: _kernels_of(kind) for kind in KERNEL_KINDS},
}


def _range_row(event: Event, label: int, events: Events) -> HostRow:
    end = event.ts + event.dur
    return (event.ts, end, _thread(event, events), RANGE, label, -1, -1, -1)


def _role_of(name: str) -> int:
    return OTHER if _NO_OP.match(name) and name not in OP_FORMULAS else OP


def _thread(event: Event, events: Events) -> int:
    number = events.threads.get((event.pid, event.tid))
    if number is None:
        key = (str(event.pid), str(event.tid))
        number = events.threads.setdefault(key, len(events.thread_names))
        events.threads[(event.pid, event.tid)] = number
        if number == len(events.thread_names):
            events.thread_names.append("/".join(key))
    return number


def _number_of(names: dict[str, int], name: str) -> int:
    return names.setdefault(name, len(names))
