"""Ops that a sharded tensor runs on shapes alone, to know what its result will be like.

DTensor does so when it first meets an op with these arguments: it makes tensors without data, calls
the op on them, whole and not sharded, and then calls it on its own shard. The first of the two
computes nothing.
"""

from collections.abc import Sequence
from dataclasses import replace

from flopprof.formulas import Work
from flopprof.trace.signatures import Signature

_MAKES_TENSOR = "aten::empty_strided"  # calls itself once more for a tensor without data


def on_shapes_alone(
    labels: Sequence[int], parents: Sequence[int], signatures: Sequence[Signature]
) -> list[int]:
    """Return the ops that were called again by themselves, on tensors made for this without data.

    Args:
        labels: For each node its signature, or -1 where it is no op. Parents come first.
        parents: For each node the op around it, or -1.
        signatures: By label.
    """
    making = {number for number, its in enumerate(signatures) if its.op == _MAKES_TENSOR}
    without_data = {
        parents[node]
        for node, label in enumerate(labels)
        if label in making and parents[node] >= 0 and labels[parents[node]] in making
    }
    expecting = set[int]()  # ops that made such a tensor since they last called themselves
    found = []
    for node, label in enumerate(labels) if without_data else ():
        parent = parents[node]
        if node in without_data:
            expecting.add(parent)
        elif label >= 0 and parent in expecting and _is_same(labels[parent], label, signatures):
            expecting.remove(parent)
            found.append(node)
    return found


def _is_same(outer: int, inner: int, signatures: Sequence[Signature]) -> bool:
    one, other = signatures[outer], signatures[inner]
    return one.op == other.op and one.call.shapes == other.call.shapes


def without_work(
    nodes: Sequence[int],
    labels: list[int],
    parents: Sequence[int],
    signatures: list[Signature],
) -> dict[int, int]:
    """Return the number of a signature without FLOPs for each of these ops.

    The ops below them are taken out of `labels`; new signatures are appended.
    """
    numbers = dict[int, int]()
    inside = set(nodes)
    for node, label in enumerate(labels) if nodes else ():
        if parents[node] in inside:
            inside.add(node)
            labels[node] = -1
        elif node in inside:
            numbers[node] = len(signatures)
            signatures.append(replace(signatures[label], kind="free", work=Work()))
    return numbers
