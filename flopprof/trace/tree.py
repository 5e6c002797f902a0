"""The call trees of a trace: which op lies in which, in which module and phase, and what counts."""

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from flopprof.formulas import OpCall, Work
from flopprof.tables import GAPS

OP, RANGE, OTHER = 0, 1, 2
# Start, end, thread, role, label (signature or name), external id, sequence number.
HostRow = tuple[float, float, int, int, int, int, int]
Columns = list["array[Any]"]
KERNEL_KINDS = ("compute", "memcpy", "memset", "communication")
# What multiplies float32 on tensor units. The op's element types do not say.
_TF32 = re.compile(r"tf32|tensorop_s\d|_s1688|nvjet_s", re.IGNORECASE)


@dataclass(slots=True)
class Signature:
    """What all calls of one op with one set of arguments have in common."""

    op: str
    kind: str
    shapes: str
    dtype: str
    work: Work | None
    known_bytes: bool
    call: OpCall


@dataclass(slots=True)
class Events:
    """The events of interest, column by column."""

    hosts: Columns = field(default_factory=lambda: columns("ddqbqqq"))  # as in HostRow
    launches: Columns = field(default_factory=lambda: columns("qqd"))  # correlation, thread, start
    # Correlation, name, kind, stream, device, graph, start, length.
    kernels: Columns = field(default_factory=lambda: columns("qqbqqqdd"))
    kernel_names: dict[str, int] = field(default_factory=dict)
    collectives: list[bool] = field(default_factory=list)  # whether that name is one
    names: dict[str, int] = field(default_factory=dict)
    threads: dict[tuple[Any, Any], int] = field(default_factory=dict)
    thread_names: list[str] = field(default_factory=list)
    sorts: dict[Any, str] = field(default_factory=dict)  # of categories
    roles: dict[str, int] = field(default_factory=dict)  # of names
    signatures: list[Signature] = field(default_factory=list)
    known: dict[tuple[str, bytes], int] = field(default_factory=dict)
    steps: list[tuple[str, float, float]] = field(default_factory=list)
    replays: set[int] = field(default_factory=set)  # correlation ids of launches of whole graphs
    python_modules: list[HostRow] = field(default_factory=list)
    annotations: list[HostRow] = field(default_factory=list)
    has_ranges: bool = False
    has_values: bool = False
    odd: int = 0
    warnings: list[str] = field(default_factory=list)


def columns(types: str) -> Columns:
    """Return empty columns of these types."""
    return [array(code) for code in types]


def extend(into: Columns, rows: Iterable[tuple[float, ...]]) -> None:
    """Add rows to columns."""
    for column, values in zip(into, zip(*rows, strict=True), strict=False):  # or no rows at all
        column.extend(values)


class Tree:
    """The call trees of all threads; nodes are numbered in order of thread and start."""

    def __init__(self, found: Events, order: np.ndarray, origin: float) -> None:
        self.found, self.origin = found, origin
        self.start, self.end, self.thread, self.role, self.label, _, self.sequence = (
            array(column.typecode, np.frombuffer(column, column.typecode)[order].tobytes())
            for column in found.hosts
        )
        found.hosts.clear()
        self.names = list(found.names)
        size = len(self.start)
        nowhere = array("q", [-1])
        self.parent = nowhere * size  # the node around
        self.op_parent = nowhere * size  # the op around
        self.call = nowhere * size  # the number of the nearest range
        self.path = [""] * size
        self.phase = ["forward"] * size
        self.counted = [False] * size
        lengths = np.frombuffer(self.end) - np.frombuffer(self.start)
        self.self_us = array("d", lengths.tobytes())
        self.device_us = array("d", [0.0]) * size
        self.rows = np.full(size, -1)
        self.kernel_ops = array("q")
        self.in_tf32: set[int] = set()  # nodes with a kernel that multiplies in TF32
        self.module_types: dict[str, str] = {}
        self.gaps: list[tuple[str, int, float, float, str]] = []
        whole = all(value.is_integer() for value in self.start[:1000])
        self.slack = 1.0 if whole else 0.002  # µs: traces of 2021 round, kineto prints ns

    def walk(self) -> None:
        """Find each node's parent, module, phase, and whether it counts (rule 4)."""
        roles, labels, signatures = self.role, self.label, self.found.signatures
        ranges = [n for n, role in enumerate(roles) if role == RANGE]
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
                if roles[around] == RANGE and self.op_parent[node] < 0:
                    self._gap(around, cursor, self.start[node], last_op)
                    cursor[around] = max(cursor[around], self.end[node])
            if role == OP:
                self.rows[node] = row
                row += 1
                signature = signatures[label]
                work = signature.work
                if work is not None and work.flops_at_most is None and not below_counted[node]:
                    self.counted[node] = below_counted[node] = True
                if self.sequence[node] >= 0 and self.phase[node] in ("forward", "recompute"):
                    forward_of.setdefault(self.sequence[node], (self.path[node], self.call[node]))
                last_op = signature.op
            elif role == RANGE:
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
            if self.role[top] == RANGE and self.op_parent[top] < 0:
                self._gap(top, cursor, self.end[top], last_op)

    def _gap(self, node: int, cursor: list[float], until: float, last_op: str) -> None:
        if until > cursor[node]:
            length = until - cursor[node]
            start = cursor[node] - self.origin
            self.gaps.append((self.path[node], self.call[node], start, length, last_op))

    def _inherit(self, node: int, around: int, below_counted: list[bool]) -> None:
        is_op = self.role[around] == OP
        self.op_parent[node] = around if is_op else self.op_parent[around]
        self.path[node], self.phase[node] = self.path[around], self.phase[around]
        below_counted[node] = below_counted[around]
        if self.call[node] < 0:
            self.call[node] = self.call[around]
        if self.role[node] == OP and self.op_parent[node] >= 0:
            self.self_us[self.op_parent[node]] -= self.end[node] - self.start[node]

    def _enter_range(self, node: int, around: int) -> None:
        name = self.names[self.label[node]]
        if self.phase[node] == "backward":  # activation checkpointing calls the module again
            self.phase[node] = "recompute"
        if self.found.has_ranges:
            self.path[node] = name
            return
        outer = self.path[around] if around >= 0 else ""
        self.path[node] = f"{outer}.{name}" if outer else name
        self.module_types[self.path[node]] = name.rpartition("_")[0]

    def _enter_other(self, node: int, forward_of: dict[int, tuple[str, int]]) -> None:
        name = self.names[self.label[node]]
        if name.startswith(("autograd::engine::", "torch::autograd::")) or "Backward" in name:
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
        names = list(self.found.kernel_names)
        tf32 = [bool(_TF32.search(name)) for name in names]
        _, name_of, kind_of, *_, lengths = self.found.kernels
        launched = zip(*self._launches(), kind_of, name_of, lengths, strict=True)
        for thread, time, kind, name, length in launched:
            op = -1
            if thread in first:
                node = bisect_right(self.start, time, first[thread], last[thread] + 1) - 1
                while node >= first[thread] and self.end[node] < time:
                    node = self.parent[node]
                    if node < 0:
                        break
                if node >= first[thread]:
                    op = node if self.role[node] == OP else self.op_parent[node]
            self.kernel_ops.append(op)
            above = op if KERNEL_KINDS[kind] == "compute" else -1
            while above >= 0:
                self.device_us[above] += length
                if tf32[name]:
                    self.in_tf32.add(above)
                above = self.op_parent[above]

    def _launches(self) -> tuple[list[int], list[float]]:
        """Return thread and time of each kernel's launch; thread -1 where the trace has none."""
        ids, threads, starts = (np.frombuffer(c, c.typecode) for c in self.found.launches)
        wanted = np.frombuffer(self.found.kernels[0], "q")
        order = np.argsort(ids, kind="stable")
        at = np.searchsorted(ids[order], wanted, side="right") - 1
        if not len(ids):
            return [-1] * len(wanted), [0.0] * len(wanted)
        at = order[at]  # the last one, where an id is there twice
        known = (ids[at] == wanted) & (wanted != -1)
        return np.where(known, threads[at], -1).tolist(), starts[at].tolist()

    def gaps_frame(self) -> pd.DataFrame:
        """Return the gaps as a table, less what ops of other threads fill of them."""
        columns = zip(*self.gaps, strict=True) if self.gaps else [[]] * len(GAPS.columns)
        frame = GAPS.frame({name: list(c) for name, c in zip(GAPS.names, columns, strict=True)})
        tops = [n for n, r in enumerate(self.role) if r == OP and self.op_parent[n] < 0]
        starts, ends = (np.array(edge)[tops] - self.origin for edge in (self.start, self.end))
        start = frame["start_us"].to_numpy()
        waited = np.diff(busy_until(starts, ends, [start, start + frame["duration_us"]]), axis=0)
        return frame.assign(duration_us=frame["duration_us"] - waited[0])


def busy_until(starts: np.ndarray, ends: np.ndarray, times: Any) -> np.ndarray:
    """Return how long before each of `times` any of the intervals was under way."""
    if not len(starts):
        return np.zeros(np.shape(times))
    order = np.argsort(starts)
    starts, latest = starts[order], np.maximum.accumulate(ends[order])
    begins = np.concatenate(([starts[0]], np.maximum(starts[1:], latest[:-1])))
    lengths = np.maximum(latest - begins, 0.0)
    at = np.searchsorted(starts, times, side="right")
    total = np.concatenate(([0.0], np.cumsum(lengths)))[at]
    latest = np.concatenate(([-np.inf], latest))[at]
    until: np.ndarray = total - np.maximum(latest - np.asarray(times), 0.0)
    return until
