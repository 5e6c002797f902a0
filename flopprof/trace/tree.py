"""The call trees of a trace: which op lies in which, in which module and phase, and what counts."""

import math
from array import array
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from flopprof.formulas import COMPILED, INTERPRETED
from flopprof.tables import CALLED, GAPS, KEPT, STOPPED
from flopprof.trace.counting import is_exact, outer_views, unfinished, waiting, with_ancestors
from flopprof.trace.events import OP, RANGE, Events
from flopprof.trace.propagated import on_shapes_alone, without_work
from flopprof.trace.stacked import own_arguments
from flopprof.trace.tangents import with_tangents

_BACKWARD = (
    "autograd::engine::",
    "torch::autograd::",
    "FSDP::post_backward",
    "FSDP::root_post_backward",
)
LONGEST_PATH = 1000  # letters of a module's path; annotations nested deeper share the outer's


class Tree:
    """The call trees of all threads; nodes are numbered in order of thread and start."""

    def __init__(self, events: Events, order: np.ndarray, origin: float) -> None:
        self.events = events
        self.origin = origin
        hosts = events.hosts
        self.start: array[float] = hosts.reordered("start", order)
        self.end: array[float] = hosts.reordered("end", order)
        self.thread: array[int] = hosts.reordered("thread", order)
        self.role: array[int] = hosts.reordered("role", order)
        self.label: array[int] = hosts.reordered("label", order)
        self.sequence: array[int] = hosts.reordered("sequence", order)
        self.signature: array[int] = hosts.reordered("signature", order)
        self.external = hosts["external_id"][order]
        hosts.clear()
        self.names = list(events.names)
        size = len(self.start)
        nowhere = array("q", [-1])
        self.parent = nowhere * size  # the node around
        self.op_parent = nowhere * size  # the op around
        self.call = nowhere * size  # the number of the nearest range
        self.path = [""] * size
        self.paths: dict[str, str] = {}  # each path once
        self.phase = ["forward"] * size
        self.counted = [False] * size
        lengths = np.frombuffer(self.end) - np.frombuffer(self.start)
        self.self_us = array("d", lengths.tobytes())
        self.device_us = array("d", [0.0]) * size
        self.rows = np.full(size, -1)
        self.kernel_ops = array("q")
        self.in_tf32: set[int] = set()  # nodes with a kernel that multiplies in TF32
        self.kept: list[int] = []  # ops whose results a checkpoint had kept
        self.interpreted: dict[int, int] = {}  # signature of a region → of one run op by op
        self.stopped: list[int] = []  # ops at which a recomputation ended
        self.promoted: set[int] = set()  # ops only because they launched kernels
        self.module_types: dict[str, str] = {}
        self.gaps: list[tuple[str, int, float, float, str]] = []
        self.gap_threads: list[int] = []
        whole = all(value.is_integer() for value in self.start[:1000])
        self.slack = 1.0 if whole else 0.002  # µs: traces of 2021 round, kineto prints ns

    def walk(self) -> None:
        """Find each node's parent, module, phase, and whether it counts (rule 4)."""
        roles = self.role
        labels = self.label
        signatures = self.events.signatures
        ranges = [n for n, role in enumerate(roles) if role == RANGE]
        ranges.sort(key=lambda n: self.start[n])
        for number, node in enumerate(ranges):
            self.call[node] = number
        forward_of: dict[int, tuple[str, int]] = {}
        cursor = list(self.start)  # how far each open range is covered by its children
        last_op = ""
        stack: list[int] = []
        row = 0
        for node, (role, label) in enumerate(zip(roles, labels, strict=True)):
            self._close(stack, node, cursor, last_op)
            around = stack[-1] if stack else -1
            self.parent[node] = around
            if around >= 0:
                self._inherit(node, around)
                if roles[around] == RANGE and self.op_parent[node] < 0:
                    self._gap(around, cursor, self.start[node], last_op)
                    cursor[around] = max(cursor[around], self.end[node])
            if node in self.promoted:
                self._enter_other(node, signatures[label].op, forward_of)
            if role == OP:
                self.rows[node] = row
                row += 1
                signature = signatures[label]
                if self.phase[node] == "optimizer" and self.sequence[node] >= 0:
                    self.phase[node] = "forward"  # of a closure: an optimizer's own have no number
                if self.sequence[node] >= 0 and self.phase[node] in ("forward", "recompute"):
                    forward_of.setdefault(self.sequence[node], (self.path[node], self.call[node]))
                last_op = signature.op
            elif role == RANGE:
                self._enter_range(node, around)
            else:
                self._enter_other(node, self.names[label], forward_of)
            stack.append(node)
        self._close(stack, -1, cursor, last_op)
        self._count()

    def _count(self) -> None:
        """Mark the ops that count: the outermost ones whose FLOPs are known and really ran."""
        labels = [
            label if role == OP else -1 for role, label in zip(self.role, self.label, strict=True)
        ]
        idle = on_shapes_alone(labels, self.op_parent, self.events.signatures)
        self._relabel(without_work(idle, labels, self.op_parent, self.events.signatures), labels)
        own = own_arguments(labels, self.op_parent, self.events.signatures)
        self._relabel(own, labels)
        passed = outer_views(labels, self.op_parent, self.events.signatures)
        duals = with_tangents(labels, self.op_parent, self.events.signatures, passed)
        self._relabel(duals, labels)
        stopped = [*self.stopped, *self._childless_recomputations(labels)]
        passed |= unfinished(stopped, labels, self.op_parent, self.events.signatures)
        passed |= with_ancestors(self.kept, self.op_parent)
        passed |= waiting(labels, self.op_parent, self.events.signatures)
        exact = [is_exact(signature.work) for signature in self.events.signatures]
        inside = [False] * len(labels)  # a counted op
        for node, label in enumerate(labels):
            parent = self.op_parent[node]
            if label < 0:
                continue
            inside[node] = parent >= 0 and inside[parent]
            if exact[label] and not inside[node] and node not in passed:
                self.counted[node] = True
                inside[node] = True

    def _relabel(self, numbers: dict[int, int], labels: list[int]) -> None:
        for node, label in numbers.items():
            labels[node] = label
            self.label[node] = label

    def _childless_recomputations(self, labels: list[int]) -> list[int]:
        """Return the recomputed ops that called nothing, where the same call before called ops.

        So a trace recorded elsewhere on a CPU shows where checkpointing stopped. Ours say it; and
        of a count's calls only the first of its like may call others.
        """
        is_ours = self.events.has_ranges or bool(self.stopped)
        if is_ours or "backward" not in self.phase or len(self.events.kernels):
            return []
        calls_ops = [False] * len(labels)
        for node, label in enumerate(labels):
            if label >= 0 and self.events.signatures[label].op != "aten::detach":
                parent = self.op_parent[node]
                if parent >= 0 and labels[parent] != label:  # else a mode passed it on
                    calls_ops[parent] = True
        calling = set()  # signatures of forward ops that called ops
        childless = []
        for node, label in enumerate(labels):
            if label < 0:
                continue
            if self.phase[node] != "forward":
                if not calls_ops[node]:
                    childless.append(node)
            elif calls_ops[node]:
                calling.add(label)
        return [node for node in childless if labels[node] in calling]

    def _close(self, stack: list[int], node: int, cursor: list[float], last_op: str) -> None:
        """Leave what ended before `node` begins, or is of another thread; all for -1."""
        ends = self.end
        role = self.role
        thread = -1
        start = end = math.nan
        if node >= 0:
            thread = self.thread[node]
            start = self.start[node]
            end = ends[node]
        while stack:
            top = stack[-1]
            outer_end = ends[top]
            if (
                end <= outer_end + self.slack
                and (start < outer_end or end == outer_end)
                and self.thread[top] == thread
            ):
                return  # as `lies_in`, a million times
            stack.pop()
            if role[top] == RANGE and self.op_parent[top] < 0:
                self._gap(top, cursor, outer_end, last_op)

    def lies_in(self, node: int, outer: int) -> bool:
        """Return whether a node of the same thread, begun no earlier, lies in `outer` by time."""
        end = self.end[outer]
        if self.end[node] > end + self.slack:
            return False
        return bool(self.start[node] < end or self.end[node] == end)

    def _gap(self, node: int, cursor: list[float], until: float, last_op: str) -> None:
        if until > cursor[node]:
            length = until - cursor[node]
            start = cursor[node] - self.origin
            self.gaps.append((self.path[node], self.call[node], start, length, last_op))
            self.gap_threads.append(self.thread[node])

    def _inherit(self, node: int, around: int) -> None:
        is_op = self.role[around] == OP
        self.op_parent[node] = around if is_op else self.op_parent[around]
        self.path[node] = self.path[around]
        self.phase[node] = self.phase[around]
        if self.call[node] < 0:
            self.call[node] = self.call[around]
        if self.role[node] == OP and self.op_parent[node] >= 0:
            self.self_us[self.op_parent[node]] -= self.end[node] - self.start[node]

    def _enter_range(self, node: int, around: int) -> None:
        name = self.names[self.label[node]]
        # Activation checkpointing calls the module again. A user's annotation is no such call.
        names_modules = self.events.has_ranges or bool(self.events.python_modules)
        if self.phase[node] == "backward" and names_modules:
            self.phase[node] = "recompute"
        elif self.phase[node] == "optimizer" and names_modules:
            self.phase[node] = "forward"  # its step calls a closure with the whole step in it
        if self.events.has_ranges:
            self.path[node] = name
            return
        outer = self.path[around] if around >= 0 else ""
        path = outer
        if len(outer) + len(name) < LONGEST_PATH:  # else endless nesting would take all memory
            path = f"{outer}.{name}" if outer else name
            path = self.paths.setdefault(path, path)
            self.module_types[path] = name.rpartition("_")[0]
        self.path[node] = path

    def _enter_other(self, node: int, name: str, forward_of: dict[int, tuple[str, int]]) -> None:
        if name.startswith(_BACKWARD) or "Backward" in name:
            self.phase[node] = "backward"
            if self.sequence[node] in forward_of:
                self.path[node] = forward_of[self.sequence[node]][0]
        elif name.startswith("Optimizer.step"):
            self.phase[node] = "optimizer"
        elif name == STOPPED and self.op_parent[node] >= 0:
            self.stopped.append(self.op_parent[node])
        elif name == CALLED:
            self._interpreted(self.op_parent[node])
        elif name == KEPT and self.op_parent[node] >= 0:
            self.kept.append(self.op_parent[node])

    def _interpreted(self, op: int) -> None:
        """Note the compiled region around an operator of functions: Python runs its graph."""
        signatures = self.events.signatures
        while op >= 0:
            label = self.label[op]
            if signatures[label].op == COMPILED:
                if label not in self.interpreted:
                    self.interpreted[label] = len(signatures)
                    signatures.append(replace(signatures[label], op=INTERPRETED))
                self.label[op] = self.interpreted[label]
            op = self.op_parent[op]

    def gaps_frame(self) -> pd.DataFrame:
        """Return the gaps as a table, less what ops of other threads, or gloo, fill of them."""
        columns = zip(*self.gaps, strict=True) if self.gaps else [[]] * len(GAPS.columns)
        frame = GAPS.frame({name: list(c) for name, c in zip(GAPS.names, columns, strict=True)})
        tops = [n for n, r in enumerate(self.role) if r == OP and self.op_parent[n] < 0]
        sent = [(start, start + length) for _, start, length, _ in self.events.host_collectives]
        starts = np.append(np.array(self.start)[tops], [start for start, _ in sent]) - self.origin
        ends = np.append(np.array(self.end)[tops], [end for _, end in sent]) - self.origin
        end = (frame["start_us"] + frame["duration_us"]).to_numpy()
        start = self._first_heard_of(tops, frame["start_us"].to_numpy(), end)
        waited = np.diff(busy_until(starts, ends, [start, end]), axis=0)
        left = pd.Series(end - start - waited[0], index=frame.index)
        return frame.assign(duration_us=left.where(~self._handed_over(frame), 0.0))

    def _first_heard_of(self, tops: list[int], start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Return when gaps begin, less the start of other threads that run their first op in them.

        Until then the gap's own thread made those threads, or waited for them.
        """
        first: dict[int, float] = {}
        for node in tops:
            thread = self.thread[node]
            first[thread] = min(first.get(thread, self.start[node]), self.start[node])
        begins = start.copy()
        for gap, own in enumerate(self.gap_threads):
            heard = [at - self.origin for thread, at in first.items() if thread != own]
            inside = [at for at in heard if start[gap] < at < end[gap]]
            begins[gap] = min(inside, default=start[gap])
        return begins

    def _handed_over(self, gaps: pd.DataFrame) -> np.ndarray:
        """Return in which gaps the first module's thread waits for modules that others call.

        What these threads do is in the trace, their own gaps too; their start is no work.
        """
        ranges = [n for n, role in enumerate(self.role) if role == RANGE and self.parent[n] < 0]
        if not ranges or not len(gaps):
            return np.zeros(len(gaps), dtype=bool)
        home = self.thread[min(ranges, key=lambda n: self.start[n])]
        begins = np.sort([self.start[n] - self.origin for n in ranges if self.thread[n] != home])
        start = gaps["start_us"].to_numpy()
        end = start + gaps["duration_us"].to_numpy()
        is_within = np.searchsorted(begins, end) > np.searchsorted(begins, start)
        is_handed: np.ndarray = is_within & (np.array(self.gap_threads) == home)
        return is_handed


def busy_until(starts: np.ndarray, ends: np.ndarray, times: Any) -> np.ndarray:
    """Return how long before each of `times` any of the intervals was under way."""
    if not len(starts):
        return np.zeros(np.shape(times))
    order = np.argsort(starts)
    starts = starts[order]
    latest = np.maximum.accumulate(ends[order])
    begins = np.concatenate(([starts[0]], np.maximum(starts[1:], latest[:-1])))
    lengths = np.maximum(latest - begins, 0.0)
    at = np.searchsorted(starts, times, side="right")
    total = np.concatenate(([0.0], np.cumsum(lengths)))[at]
    latest = np.concatenate(([-np.inf], latest))[at]
    until: np.ndarray = total - np.maximum(latest - np.asarray(times), 0.0)
    return until


def text_codes(values: list[str], labels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the codes and categories of `values[label]` for each label."""
    categories = list(dict.fromkeys(values))
    number = {value: code for code, value in enumerate(categories)}
    return np.array([number[value] for value in values], dtype=np.int64)[labels], categories
