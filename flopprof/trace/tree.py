"""The call trees of a trace: which op lies in which, in which module and phase, and what counts.

All is columns with a row per node; no object is made of a node.
"""

from dataclasses import replace

import numpy as np

from flopprof.formulas import COMPILED, INTERPRETED
from flopprof.trace.counting import counted_ops, outer_views, unfinished, waiting, with_ancestors
from flopprof.trace.events import OP, RANGE, Events
from flopprof.trace.gaps import Gaps, find_gaps
from flopprof.trace.nesting import Moments, nearest, nest
from flopprof.trace.places import (
    FORWARD,
    PHASES,
    SAYS_CALLED,
    SAYS_KEPT,
    SAYS_STOPPED,
    find_places,
    sayings,
)
from flopprof.trace.propagated import on_shapes_alone, without_work
from flopprof.trace.stacked import own_arguments
from flopprof.trace.tangents import with_tangents


class Tree:
    """The call trees of all threads; nodes are numbered in order of thread and start."""

    def __init__(self, events: Events, order: np.ndarray, origin: float) -> None:
        """Nest the host nodes of a trace, which are its own from then on.

        Args:
            events: Those of the trace.
            order: The order of the host nodes: parents first, threads one after the other.
            origin: When the first event begins.
        """
        self.events = events
        self.origin = origin
        hosts = events.hosts
        self.start = hosts.taken("start", order)
        self.end = hosts.taken("end", order)
        self.thread = hosts.taken("thread", order)
        self.role = hosts.taken("role", order)
        self.label = hosts.taken("label", order)
        self.sequence = hosts.taken("sequence", order)
        self.signature = hosts.taken("signature", order)
        self.external = hosts.taken("external_id", order)
        self.names = list(events.names)
        whole = all(value.is_integer() for value in self.start[:1000].tolist())
        self.slack = 1.0 if whole else 0.002  # µs: traces of 2021 round, kineto prints ns
        launches = events.launches
        threads = len(events.thread_names)
        moments = Moments.of(launches["thread"], launches["start"], threads)
        self.parent = nest(self.start, self.end, self.thread, self.slack, moments)
        self.launch_nodes = self._launch_nodes(moments)
        self.promoted: set[int] = set()  # ops only because they launched kernels
        self.kernel_ops = np.zeros(0, np.int32)  # each kernel's op, and each op's device time
        self.device_us: np.ndarray = np.zeros(0)
        self.in_tf32: set[int] = set()  # nodes with a kernel that multiplies in TF32

    def __len__(self) -> int:
        return len(self.role)

    def taken(self, name: str, nodes: np.ndarray) -> np.ndarray:
        """Return some nodes' values of a column, and let go of the column: a trace may be large."""
        column: np.ndarray = getattr(self, name)
        setattr(self, name, column[:0].copy())
        chosen: np.ndarray = column[nodes]
        return chosen

    def forget_launches(self) -> None:
        """Let go of what launched kernels, once these are linked."""
        self.events.launches.clear()
        self.launch_nodes = np.zeros(0, np.int32)
        self.signature = np.zeros(0, np.int32)

    def _launch_nodes(self, moments: Moments) -> np.ndarray:
        """Return each launch's innermost node that is no range, on its thread; -1 for none."""
        nodes = np.empty(len(moments.order), np.int32)
        nodes[moments.order] = nearest(self.parent, self.role != RANGE)[moments.places]
        return nodes

    def walk(self) -> None:
        """Find each node's op around it, its module and phase, and whether it counts (rule 4)."""
        is_op = self.role == OP
        self.op_parent = nearest(self.parent, is_op)[self.parent]
        self.call = self._calls()
        said = sayings(self)
        places = find_places(self, said)
        self.path = places.path
        self.paths = places.paths
        self.phase = places.phase
        self.module_types = places.module_types
        self.gaps: Gaps = find_gaps(self)
        ops = np.flatnonzero(is_op)
        self.rows = np.full(len(self) + 1, -1, np.int32)  # the last is for -1
        self.rows[ops] = np.arange(len(ops), dtype=np.int32)
        lengths = self.end - self.start
        inner = ops[self.op_parent[ops] >= 0]
        self.self_us = lengths.copy()
        np.subtract.at(self.self_us, self.op_parent[inner], lengths[inner])
        self._count(said)

    def _calls(self) -> np.ndarray:
        """Return the number of each node's nearest range, by start; -1 for none."""
        is_range = self.role == RANGE
        ranges = np.flatnonzero(is_range)
        number = np.full(len(self) + 1, -1, np.int32)
        number[ranges[np.argsort(self.start[ranges], kind="stable")]] = np.arange(len(ranges))
        calls: np.ndarray = number[nearest(self.parent, is_range)[:-1]]
        return calls

    def _around(self, said: np.ndarray, what: int) -> list[int]:
        """Return the ops around the nodes that say this, in order."""
        around = self.op_parent[np.flatnonzero(said == what)]
        ops: list[int] = around[around >= 0].tolist()
        return ops

    def _count(self, said: np.ndarray) -> None:
        """Mark the ops that count: the outermost ones whose FLOPs are known and really ran."""
        signatures = self.events.signatures
        self._interpret(self._around(said, SAYS_CALLED))
        stopped = self._around(said, SAYS_STOPPED)
        labels = np.where(self.role == OP, self.label, -1)
        parents = self.op_parent
        idle = on_shapes_alone(labels, parents, signatures)
        self._relabel(without_work(idle, labels, parents, signatures), labels)
        self._relabel(own_arguments(labels, parents, signatures), labels)
        passed = outer_views(labels, parents, signatures)
        self._relabel(with_tangents(labels, parents, signatures, passed), labels)
        stopped += self._childless_recomputations(labels, bool(stopped))
        passed |= unfinished(stopped, labels, parents, signatures)
        passed |= with_ancestors(self._around(said, SAYS_KEPT), parents)
        passed |= waiting(labels, parents, signatures)
        self.counted = counted_ops(labels, parents, signatures, passed)

    def _relabel(self, numbers: dict[int, int], labels: np.ndarray) -> None:
        for node, label in numbers.items():
            labels[node] = label
            self.label[node] = label

    def _interpret(self, callers: list[int]) -> None:
        """Mark the compiled regions around operators of functions: Python runs their graphs."""
        signatures = self.events.signatures
        interpreted: dict[int, int] = {}  # signature of a region → of one run op by op
        for caller in callers:
            op = caller
            while op >= 0:
                label = int(self.label[op])
                if signatures[label].op == COMPILED:
                    if label not in interpreted:
                        interpreted[label] = len(signatures)
                        signatures.append(replace(signatures[label], op=INTERPRETED))
                    self.label[op] = interpreted[label]
                op = int(self.op_parent[op])

    def _childless_recomputations(self, labels: np.ndarray, are_told: bool) -> list[int]:
        """Return the recomputed ops that called nothing, where the same call before called ops.

        So a trace recorded elsewhere on a CPU shows where checkpointing stopped. Ours say it; and
        of a count's calls only the first of its like may call others.
        """
        ops = labels >= 0
        is_forward = self.phase == FORWARD
        if self.events.has_ranges or are_told or len(self.events.kernels):
            return []
        if not (self.phase == PHASES.index("backward")).any():
            return []
        signatures = self.events.signatures
        detach = [n for n, signature in enumerate(signatures) if signature.op == "aten::detach"]
        called = np.flatnonzero(ops & ~np.isin(labels, detach) & (self.op_parent >= 0))
        around = self.op_parent[called]
        calls_ops = np.zeros(len(labels), dtype=bool)
        calls_ops[around[labels[around] != labels[called]]] = True  # else a mode passed it on
        calling = np.unique(labels[ops & is_forward & calls_ops])
        childless = ops & ~is_forward & ~calls_ops & np.isin(labels, calling)
        nodes: list[int] = np.flatnonzero(childless).tolist()
        return nodes
