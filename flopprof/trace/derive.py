"""Convolutions whose padding is not recorded: their outputs' sizes from other ops.

Padding that is text, "same" or "valid", stands as numbers in the convolution below.

In traces from before Concrete Inputs neither stride nor padding is recorded. A convolution's output
has the shape of the gradient that its backward takes, which has its sequence number, else of what
the next op takes.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from flopprof.formulas import OpCall, Shape, Work
from flopprof.formulas.ops.convolution import of_filter_gradient, of_output, output_shape
from flopprof.trace.events import OP, OTHER
from flopprof.trace.signatures import Signature
from flopprof.trace.tree import Tree

_FORWARD = frozenset(
    f"aten::{name}" for name in ("conv1d", "conv2d", "conv3d", "cudnn_convolution")
)
_REACH = 64  # nodes looked at on either side: a batch norm makes a dozen small ops first


def derive_convolutions(tree: Tree) -> None:
    """Give the calls whose output a neighbour tells a signature with FLOPs; before `walk`."""
    signatures = tree.events.signatures
    gradients = _gradients(tree)
    derived = _Derived(tree)
    unknown = _ops_whose(
        tree, lambda s: s.work is None and (s.call.op in _FORWARD or _is_of_filter(s.call))
    )
    for node in unknown:
        call = signatures[tree.label[node]].call
        if call.op in _FORWARD and len(call.shape(0)) == len(call.shape(1)) >= 3:
            gradient = gradients.get(int(tree.sequence[node]), ())
            for shape in (gradient, *_taken_next(tree, node)):
                if len(shape) == len(call.shape(0)) and shape[:2] == _ends(call):
                    derived.give(node, shape, of_output)
                    break
        elif _is_of_filter(call):
            taps = _filter_around(tree, node)
            if taps:
                derived.give(node, taps, of_filter_gradient)


def _is_of_filter(call: OpCall) -> bool:
    return call.op.endswith("convolution_backward_weight")


def _ops_whose(tree: Tree, holds: Callable[[Signature], bool]) -> list[int]:
    """Return the ops whose signature is such; of most traces none are, which is soon told."""
    labels = [number for number, one in enumerate(tree.events.signatures) if holds(one)]
    if not labels:
        return []
    ops: list[int] = np.flatnonzero((tree.role == OP) & np.isin(tree.label, labels)).tolist()
    return ops


class _Derived:
    """The signatures of calls of which a shape became known, each made once."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._numbers: dict[tuple[int, Shape], int] = {}

    def give(self, node: int, shape: Shape, work_of: Callable[[OpCall, Shape], Work]) -> None:
        """Give a node the signature of a convolution with that shape."""
        label = int(self._tree.label[node])
        signatures = self._tree.events.signatures
        key = (label, shape)
        if key not in self._numbers:
            self._numbers[key] = len(signatures)
            work = work_of(signatures[label].call, shape)
            signatures.append(replace(signatures[label], work=work, kind="convolution"))
        self._tree.label[node] = self._numbers[key]


_PADDED_BY_TEXT = frozenset(
    f"aten::{name}" for name in ("conv1d", "conv2d", "conv3d", "_convolution_mode")
)


def derive_padding(tree: Tree) -> None:
    """Give convolutions padded by a text a signature with FLOPs, from the one below; as above."""
    derived = _Derived(tree)
    for node in _ops_whose(tree, lambda s: _is_padded_by_text(s.call)):
        output = _output_below(tree, node)
        if output is not None:
            derived.give(node, output, of_output)


def _is_padded_by_text(call: OpCall) -> bool:
    return call.op in _PADDED_BY_TEXT and bool(call.values) and not call.value(4)


def _output_below(tree: Tree, node: int) -> Shape | None:
    """Return the output's shape of the first convolution below with the same filter."""
    taps = tree.events.signatures[tree.label[node]].call.shape(1)
    for below in range(node + 1, len(tree.label)):
        if tree.thread[below] != tree.thread[node] or tree.start[below] >= tree.end[node]:
            return None
        if tree.role[below] == OP:
            call = tree.events.signatures[tree.label[below]].call
            if call.op == "aten::convolution" and call.shape(1) == taps:
                return output_shape(call)
    return None


def _ends(call: OpCall) -> Shape:
    """Return what an output of this convolution begins with: batch and channels."""
    return (call.shape(0)[0], call.shape(1)[0])


def _gradients(tree: Tree) -> dict[int, Shape]:
    """Return the shape of the output's gradient by sequence number."""
    gradients = {}
    for node in _ops_whose(tree, lambda s: s.call.op.endswith("convolution_backward")):
        call = tree.events.signatures[tree.label[node]].call
        for around in range(node - 1, max(node - 4, -1), -1):
            if tree.role[around] == OTHER and tree.sequence[around] >= 0:
                gradients[int(tree.sequence[around])] = call.shape(1)
                break
    return gradients


def _taken_next(tree: Tree, node: int) -> Iterator[Shape]:
    """Yield the first argument's shape of the ops that follow on the thread."""
    for after in range(node + 1, min(node + _REACH, len(tree.label))):
        if tree.thread[after] != tree.thread[node]:
            return
        if tree.role[after] == OP and tree.start[after] >= tree.end[node]:
            yield tree.events.signatures[tree.label[after]].call.shape(0)


def _filter_around(tree: Tree, node: int) -> Shape | None:
    """Return the filter's shape from the backward op around this one: (input, gradient, filter)."""
    for around in range(node - 1, max(node - _REACH, -1), -1):
        if tree.role[around] == OP and tree.end[around] >= tree.end[node]:
            call: OpCall = tree.events.signatures[tree.label[around]].call
            if call.op.endswith("convolution_backward"):
                return call.shape(2)
    return None
