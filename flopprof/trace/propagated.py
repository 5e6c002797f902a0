"""Ops that a sharded tensor runs on shapes alone, to know what its result will be like.

DTensor does so when it first meets an op with these arguments: it makes tensors without data, calls
the op on them, whole and not sharded, and then calls it on its own shard. The first of the two
computes nothing.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flopprof.formulas import Work
from flopprof.trace.nesting import nearest
from flopprof.trace.signatures import Signature

_MAKES_TENSOR = "aten::empty_strided"  # calls itself once more for a tensor without data


def on_shapes_alone(
    labels: np.ndarray, parents: np.ndarray, signatures: Sequence[Signature]
) -> list[int]:
    """Return the ops that were called again by themselves, on tensors made for this without data.

    Args:
        labels: For each node its signature, or -1 where it is no op. Parents come first.
        parents: For each node the op around it, or -1.
        signatures: By label.
    """
    making = [number for number, its in enumerate(signatures) if its.op == _MAKES_TENSOR]
    inner = np.flatnonzero(np.isin(labels, making) & (parents >= 0))
    makers = parents[inner]
    makers = np.unique(makers[np.isin(labels[makers], making)])
    makers = makers[parents[makers] >= 0]  # of tensors without data, in another op
    asked = np.zeros(len(labels) + 1, dtype=bool)  # the last is for ops in no other
    asked[parents[makers]] = True
    without_data = set(makers.tolist())
    expecting = set[int]()  # ops that made such a tensor since they last called themselves
    found = []
    for node in np.flatnonzero((labels >= 0) & asked[parents]).tolist():
        parent = int(parents[node])
        if node in without_data:
            expecting.add(parent)
        elif parent in expecting and _is_same(labels[parent], labels[node], signatures):
            expecting.remove(parent)
            found.append(node)
    return found


def _is_same(outer: int, inner: int, signatures: Sequence[Signature]) -> bool:
    one, other = signatures[outer], signatures[inner]
    return one.op == other.op and one.call.shapes == other.call.shapes


def without_work(
    nodes: Sequence[int],
    labels: np.ndarray,
    parents: np.ndarray,
    signatures: list[Signature],
) -> dict[int, int]:
    """Return the number of a signature without FLOPs for each of these ops.

    The ops below them are taken out of `labels`; new signatures are appended.
    """
    numbers = dict[int, int]()
    if not nodes:
        return numbers
    idle = np.zeros(len(labels), dtype=bool)
    idle[list(nodes)] = True
    below = nearest(parents, idle)[parents] >= 0
    labels[below] = -1
    for node in np.flatnonzero(idle & ~below).tolist():
        numbers[node] = len(signatures)
        signatures.append(replace(signatures[labels[node]], kind="free", work=Work()))
    return numbers
