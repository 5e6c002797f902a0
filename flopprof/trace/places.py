"""In which module and phase each node of a trace is: that of what is around it, but for a few.

Ranges name modules; nodes of the autograd engine and of the optimizer tell the phase.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flopprof.tables import CALLED, KEPT, STOPPED
from flopprof.trace.events import OP, RANGE
from flopprof.trace.nesting import nearest
from flopprof.trace.texts import Numbered

if TYPE_CHECKING:
    from flopprof.trace.tree import Tree

PHASES = ("forward", "backward", "recompute", "optimizer")
FORWARD, BACKWARD, RECOMPUTE, OPTIMIZER = range(len(PHASES))
LONGEST_PATH = 1000  # letters of a module's path; annotations nested deeper share the outer's
_OF_BACKWARD = (
    "autograd::engine::",
    "torch::autograd::",
    "FSDP::post_backward",
    "FSDP::root_post_backward",
)
# What a node's name says of the ops in it, or of the op around it.
SAYS_NOTHING, SAYS_BACKWARD, SAYS_OPTIMIZER, SAYS_STOPPED, SAYS_CALLED, SAYS_KEPT = range(6)
_MARKS = {STOPPED: SAYS_STOPPED, CALLED: SAYS_CALLED, KEPT: SAYS_KEPT}


@dataclass(slots=True)
class Places:
    """Where nodes are.

    Attributes:
        path: Each node's module, by number.
        paths: The modules' paths, by number.
        phase: Each node's phase, among `PHASES`.
        module_types: Path of a module → its class, as far as names tell it.
    """

    path: np.ndarray
    paths: list[str]
    phase: np.ndarray
    module_types: dict[str, str]


def sayings(tree: "Tree") -> np.ndarray:
    """Return what each node's name says: `SAYS_…`; ops say nothing unless they were promoted."""
    by_name = np.array([_saying(name) for name in tree.names], np.int8)
    others = (tree.role != OP) & (tree.role != RANGE)
    said = np.zeros(len(tree), np.int8)
    said[others] = by_name[tree.label[others]]
    signatures = tree.events.signatures
    for node in tree.promoted:
        said[node] = _saying(signatures[tree.label[node]].op)
    return said


def _saying(name: str) -> int:
    if name.startswith(_OF_BACKWARD) or "Backward" in name:
        return SAYS_BACKWARD
    if name.startswith("Optimizer.step"):
        return SAYS_OPTIMIZER
    return _MARKS.get(name, SAYS_NOTHING)


def find_places(tree: "Tree", said: np.ndarray) -> Places:
    """Return each node's module and phase.

    Args:
        tree: The nodes.
        said: What `sayings` returns.
    """
    is_range = tree.role == RANGE
    of_closure = _ops_of_closures(tree, said)
    tells = is_range | of_closure | (said == SAYS_BACKWARD) | (said == SAYS_OPTIMIZER)
    telling = np.flatnonzero(tells)
    number = np.zeros(len(tree) + 1, np.int32)  # 0 is for none, and so is the last
    number[telling] = np.arange(1, len(telling) + 1)
    inside = number[nearest(tree.parent, tells)]
    told = _Told(tree, _ForwardOps.of(tree, telling[said[telling] == SAYS_BACKWARD], inside))
    kinds = np.where(is_range[telling], SAYS_NOTHING, said[telling])
    around = inside[tree.parent[telling]]
    columns = (telling, around, tree.label[telling], kinds, of_closure[telling])
    for node, outer, label, kind, is_forward in zip(*(c.tolist() for c in columns), strict=True):
        if kind == SAYS_BACKWARD:
            told.enter_backward(node, outer)
        elif is_forward:
            phase = OPTIMIZER if kind == SAYS_OPTIMIZER else told.phases[outer]
            told.add(told.paths[outer], FORWARD if phase == OPTIMIZER else phase)
        elif kind == SAYS_OPTIMIZER:
            told.add(told.paths[outer], OPTIMIZER)
        else:
            told.enter_range(label, outer)
    inside = inside[:-1]
    return Places(
        path=np.array(told.paths, np.int32)[inside],
        paths=told.texts.texts,
        phase=np.array(told.phases, np.int8)[inside],
        module_types=told.module_types,
    )


def _ops_of_closures(tree: "Tree", said: np.ndarray) -> np.ndarray:
    """Return which ops in an optimizer's step have a sequence number.

    They are of a closure, with the whole step in it: an optimizer's own ops have no number.
    """
    steps: np.ndarray = said == SAYS_OPTIMIZER
    if not steps.any():
        return steps
    numbered = (tree.role == OP) & (tree.sequence >= 0)
    inside: np.ndarray = numbered & (nearest(tree.parent, steps)[:-1] >= 0)
    return inside


class _Told:
    """Module and phase of the nodes that tell one, in order; the first is where none does."""

    def __init__(self, tree: "Tree", forward: "_ForwardOps") -> None:
        events = tree.events
        self.texts = Numbered([""])
        self.paths = [0]
        self.phases = [FORWARD]
        self.module_types: dict[str, str] = {}
        self._names = tree.names
        self._forward = forward
        self._has_ranges = events.has_ranges
        # A user's annotation is no call of a module.
        self._names_modules = events.has_ranges or len(events.python_modules) > 0
        self._entered: dict[tuple[int, int], tuple[int, str, str | None]] = {}

    def add(self, path: int, phase: int) -> None:
        """Take the next node's."""
        self.paths.append(path)
        self.phases.append(phase)

    def enter_range(self, label: int, outer: int) -> None:
        """Enter the range with a name, inside what the node `outer` of these tells."""
        phase = self.phases[outer]
        if phase == BACKWARD and self._names_modules:  # checkpointing calls the module again
            phase = RECOMPUTE
        elif phase == OPTIMIZER and self._names_modules:
            phase = FORWARD  # its step calls a closure with the whole step in it
        if self._has_ranges:
            self.add(self.texts.number(self._names[label]), phase)
            return
        around = self.paths[outer]
        key = (around, label)
        if key not in self._entered:
            self._entered[key] = self._path(around, self._names[label])
        number, path, module_type = self._entered[key]
        if module_type is not None:
            self.module_types[path] = module_type
        self.add(number, phase)

    def _path(self, around: int, name: str) -> tuple[int, str, str | None]:
        """Return a path's number, the path and its type; the outer's, without a type, if long."""
        outer = self.texts.texts[around]
        if len(outer) + len(name) >= LONGEST_PATH:  # endless nesting would take all memory
            return around, outer, None
        path = f"{outer}.{name}" if outer else name
        return self.texts.number(path), path, name.rpartition("_")[0]

    def enter_backward(self, node: int, outer: int) -> None:
        """Enter a node of the backward: its module is that of the forward op, if there is one."""
        forward = self._forward.before(node, self.phases)
        self.add(self.paths[outer if forward is None else forward], BACKWARD)


@dataclass(slots=True)
class _ForwardOps:
    """The ops that have a sequence number of the backward's, by this number and in order.

    Attributes:
        sequence: Sequence number of all nodes.
        ops: The ops.
        inside: What tells each op's phase.
        parts: Sequence number → the first op that may be the forward op, and where its ops end.
    """

    sequence: np.ndarray
    ops: np.ndarray
    inside: np.ndarray
    parts: dict[int, tuple[int, int]]

    @classmethod
    def of(cls, tree: "Tree", backward: np.ndarray, inside: np.ndarray) -> "_ForwardOps":
        """Return those that the backward's nodes may ask for."""
        sequence = tree.sequence
        wanted = np.unique(sequence[backward])
        wanted = wanted[wanted >= 0]
        ops = np.flatnonzero((tree.role == OP) & (sequence >= 0))
        ops = ops[np.isin(sequence[ops], wanted)]
        ops = ops[np.argsort(sequence[ops], kind="stable")]
        ends = [np.searchsorted(sequence[ops], wanted, side) for side in ("left", "right")]
        firsts, lasts = (end.tolist() for end in ends)
        parts = dict(zip(wanted.tolist(), zip(firsts, lasts, strict=True), strict=True))
        return cls(sequence, ops, inside[ops], parts)

    def before(self, node: int, phases: list[int]) -> int | None:
        """Return what tells the place of the first forward op before a node of the backward."""
        sequence = int(self.sequence[node])
        if sequence not in self.parts:
            return None
        at, end = self.parts[sequence]
        while at < end and self.ops[at] < node:
            teller = int(self.inside[at])
            if phases[teller] in (FORWARD, RECOMPUTE):
                self.parts[sequence] = (at, end)
                return teller
            at += 1
        self.parts[sequence] = (at, end)
        return None
