"""Which ops of a call tree count: the outermost one with a formula that says what really ran.

An op above a transform of torch.func, a sharded tensor or any other tensor subclass is recorded
with the shapes that its caller sees; what ran is recorded below it, with other FLOPs.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from flopprof.formulas import OpCall, Work
from flopprof.trace.nesting import nearest
from flopprof.trace.signatures import Signature
from flopprof.trace.texts import numbers_of

# Products that do as many FLOPs as the products they call: only an operand's view differs.
_PRODUCTS = frozenset(
    f"aten::{name}"
    for name in (
        *("linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot"),
        *("vdot", "inner", "conv1d", "conv2d", "conv3d", "convolution", "_convolution"),
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "cudnn_convolution"),
        *("mkldnn_convolution", "cudnn_convolution_transpose", "miopen_convolution"),
    )
)


@dataclass(slots=True)
class _Below:
    """What ops below an op do, and whether they are not just that op again, passed on."""

    matmul_flops: int = 0
    vector_flops: int = 0
    ops: int = 0
    other_shapes: bool = False

    def add(self, flops: tuple[int, int], *, other_shapes: bool) -> None:
        self.matmul_flops += flops[0]
        self.vector_flops += flops[1]
        self.ops += 1
        self.other_shapes = self.other_shapes or other_shapes


KEEPS_RESULT = frozenset(json.loads(Path(__file__).with_name("keeps_result.json").read_text()))
"""Ops that save what they return, for their derivative; by scripts/make_keeps_result.py."""


_WAITS = frozenset(
    f"{namespace}::{name}"
    for namespace in ("_c10d_functional", "c10d_functional")
    for name in ("wait_tensor", "wait_tensors")
)


def is_exact(work: Work | None) -> bool:
    """Return whether a formula's result is a count: not unknown, and no bounds."""
    return work is not None and work.flops_at_most is None


def outer_views(
    labels: np.ndarray, parents: np.ndarray, signatures: Sequence[Signature]
) -> set[int]:
    """Return the ops whose own FLOPs are not what ran: those of the ops below them are.

    These are the ops with an op of the same name below that does other FLOPs (all such ops
    together, the outermost ones), products with other products below, other ops whose products
    below are those of several calls of it, or that call another op on several times its elements
    for as many times its FLOPs (vmap takes some apart); and the ops around these.

    Args:
        labels: For each node its signature, or -1 where it is no op. Parents come first.
        parents: For each node the op around it, or -1.
        signatures: By label.
    """
    below = _BelowOps(signatures)
    works = _where([flops is not None for flops in below.flops], labels)
    around = nearest(parents, works)[parents]  # the nearest op around that has FLOPs
    inner = np.flatnonzero(works & (around >= 0))
    outer = around[inner]
    is_product = _where([signature.op in _PRODUCTS for signature in signatures], labels)[inner]
    while len(inner):  # for each op that has FLOPs those around it, one after the other
        found = below.relations(labels[inner], labels[outer])
        found[~is_product & np.isin(found, (_WRAPPED, _LOOPED))] = _UNLIKE
        for at in np.flatnonzero(found != _UNLIKE).tolist():
            below.add(int(found[at]), int(labels[inner[at]]), int(outer[at]), labels)
        is_product &= found != _WRAPPED
        goes_on = (found != _AGAIN) & (around[outer] >= 0)
        inner, outer, is_product = inner[goes_on], around[outer[goes_on]], is_product[goes_on]
    return with_ancestors(below.others(labels), parents)


def _where(holds: list[bool], labels: np.ndarray) -> np.ndarray:
    """Return for which ops something holds that is told by signature."""
    nodes: np.ndarray = np.array([*holds, False], dtype=bool)[labels]  # the last is for no op
    return nodes


# How an op that has FLOPs is to one around it.
_UNLIKE, _AGAIN, _WRAPPED, _LOOPED, _BATCHED = range(5)


class _BelowOps:
    """What is below the ops of a tree, by how it is like them."""

    def __init__(self, signatures: Sequence[Signature]) -> None:
        self.flops = [_flops(signature) for signature in signatures]
        self._signatures = signatures
        self._same_name: dict[int, _Below] = {}
        self._products: dict[int, _Below] = {}  # of ops that are products
        self._looped: dict[int, _Below] = {}  # products, of ops that are none
        self._batched: list[int] = []  # ops around one that does several times their work
        self._relations: dict[int, int] = {}

    def relations(self, inner: np.ndarray, outer: np.ndarray) -> np.ndarray:
        """Return how ops with these signatures are to ops around them with those."""
        size = len(self._signatures)
        pairs, which = np.unique(inner.astype(np.int64) * size + outer, return_inverse=True)
        for pair in pairs.tolist():
            if pair not in self._relations:
                self._relations[pair] = self._relation(*divmod(pair, size))
        relations: np.ndarray = np.array([self._relations[pair] for pair in pairs.tolist()])[which]
        return relations

    def _relation(self, inner_label: int, outer_label: int) -> int:
        inner = self._signatures[inner_label]
        outer = self._signatures[outer_label]
        if outer.dtype != inner.dtype:  # it counts in another way, as complex products
            return _UNLIKE
        if outer.op == inner.op:
            return _AGAIN
        if inner.op in _PRODUCTS:
            return _WRAPPED if outer.op in _PRODUCTS else _LOOPED
        return _BATCHED if _is_of_several(outer, inner) else _UNLIKE

    def add(self, relation: int, label: int, above: int, labels: np.ndarray) -> None:
        """Add an op that has FLOPs to one around it.

        Args:
            relation: How it is to that.
            label: Its signature.
            above: The op around.
            labels: For each node its signature.
        """
        mine = self.flops[label]
        if mine is None:
            return
        if relation == _AGAIN:
            outer = self._signatures[labels[above]].call
            other_shapes = not _is_passed_on(outer, self._signatures[label].call)
            _below(self._same_name, above).add(mine, other_shapes=other_shapes)
        elif relation == _BATCHED:
            self._batched.append(above)
        else:
            products = self._products if relation == _WRAPPED else self._looped
            _below(products, above).add(mine, other_shapes=True)

    def others(self, labels: np.ndarray) -> list[int]:
        """Return the ops that did what is below them, and not what they say."""
        differing = list(self._batched)
        for node, below in self._same_name.items():
            is_other = below.other_shapes or below.ops > 1
            if is_other and (below.matmul_flops, below.vector_flops) != self.flops[labels[node]]:
                differing.append(node)
        for node, below in self._products.items():
            own = self.flops[labels[node]]
            if own and below.matmul_flops != own[0]:
                differing.append(node)
        for node, below in self._looped.items():
            own = self.flops[labels[node]]
            if own and _times(below.matmul_flops, own[0]) > 1:
                differing.append(node)
        return differing


def _below(kind: dict[int, _Below], node: int) -> _Below:
    return kind.setdefault(node, _Below())


def _is_of_several(outer: Signature, inner: Signature) -> bool:
    """Return whether `inner` does the work of several calls of `outer`, and on their elements."""
    own = _flops(outer)
    below = _flops(inner)
    if own is None or below is None or own[0] or below[0]:
        return False
    times = _times(below[1], own[1])
    return times > 1 and times == _times(_elements(inner.call), _elements(outer.call))


def _times(many: int, one: int) -> int:
    """Return how many times `one` is `many`; 0 where it is no whole number of times."""
    return many // one if one and many % one == 0 else 0


def _elements(call: OpCall) -> int:
    """Return the elements of the call's first argument that has a shape."""
    shapes = (shape for shape in call.shapes if shape and type(shape[0]) is int)
    return prod(next(shapes, (0,)))


def waiting(labels: np.ndarray, parents: np.ndarray, signatures: Sequence[Signature]) -> set[int]:
    """Return the ops that first waited for a collective, and then called themselves again.

    So does an op whose operand is still on its way: the time of the wait is none of its own.

    Args:
        labels: For each node its signature, or -1 where it is no op. Parents come first.
        parents: For each node the op around it, or -1.
        signatures: By label.
    """
    waits = _where([signature.op in _WAITS for signature in signatures], labels)
    waits &= parents >= 0
    if not waits.any():
        return set()
    has_waited = np.zeros(len(labels) + 1, dtype=bool)  # the last is for ops in no other
    has_waited[parents[waits]] = True
    inner = np.flatnonzero((labels >= 0) & has_waited[parents])
    name = numbers_of([signature.op for signature in signatures])
    around = parents[inner]
    return with_ancestors(around[name[labels[inner]] == name[labels[around]]].tolist(), parents)


def counted_ops(
    labels: np.ndarray, parents: np.ndarray, signatures: Sequence[Signature], passed: set[int]
) -> np.ndarray:
    """Return which ops count: those of known FLOPs that no other such op is around.

    Args:
        labels: For each node its signature, or -1 where it is no op. Parents come first.
        parents: For each node the op around it, or -1.
        signatures: By label.
        passed: Ops that do not: what is below them does.
    """
    known = _where([is_exact(signature.work) for signature in signatures], labels)
    known[list(passed)] = False
    known[known] = nearest(parents, known)[parents[known]] < 0
    return known


def unfinished(
    stopped: Iterable[int],
    labels: np.ndarray,
    parents: np.ndarray,
    signatures: Sequence[Signature],
) -> set[int]:
    """Return the ops that a stop inside an op left without, or with a part of, their work.

    An op that saves its result was stopped behind its work, and is no such op; those around are.
    """
    left = []
    for node in stopped:
        op = signatures[labels[node]].op
        keeps_result = op in KEEPS_RESULT or op.removesuffix("_") in KEEPS_RESULT
        left.append(int(parents[node]) if keeps_result else node)
    return with_ancestors(left, parents)


def _is_passed_on(outer: OpCall, inner: OpCall) -> bool:
    """Return whether the arguments are the same; torch.func records those that it stacks twice."""
    return inner.shapes[: len(outer.shapes)] == outer.shapes


def _flops(signature: Signature) -> tuple[int, int] | None:
    """Return matmul and vector FLOPs of a call that has some; None where not, or unknown."""
    work = signature.work
    if work is None or work.flops_at_most is not None:
        return None
    if not work.matmul_flops and not work.vector_flops:
        return None
    return work.matmul_flops, work.vector_flops


def with_ancestors(nodes: Iterable[int], parents: np.ndarray) -> set[int]:
    """Return the nodes and all that are around them."""
    reached: set[int] = set()
    around = parents.data
    for node in nodes:
        at = node
        while at >= 0 and at not in reached:
            reached.add(at)
            at = around[at]
    return reached
