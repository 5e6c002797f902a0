"""Ops on dual numbers (forward-mode differentiation): they do their own work, and a tangent's.

PyTorch computes the tangent inside the op, by ops recorded below it. The op's own work is recorded
there too where a transform or a mode passed the op on; else it is in no op but this one.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flopprof.formulas import Work
from flopprof.trace.counting import with_ancestors
from flopprof.trace.signatures import Signature

_CHECK = "aten::_has_same_storage_numel"  # called for each tangent that an op's result gets
_PRIMAL = "aten::_fw_primal"  # called for values that a tangent needs, behind the op's own work


def ops_on_duals(
    labels: np.ndarray, parents: np.ndarray, signatures: Sequence[Signature]
) -> dict[int, bool]:
    """Return the ops with a tangent, and whether their own work is recorded below them as well.

    Args:
        labels: For each node its signature, or -1 where it is no op. Parents come first.
        parents: For each node the op around it, or -1.
        signatures: By label.
    """
    checks = [number for number, signature in enumerate(signatures) if signature.op == _CHECK]
    is_dual = np.zeros(len(labels) + 1, dtype=bool)
    is_dual[parents[np.isin(labels, checks)]] = True
    is_dual[-1] = False  # of what is in no op
    inside: dict[int, list[Signature]] = defaultdict(list)  # dual → the ops right below it
    below = np.flatnonzero((labels >= 0) & is_dual[parents])
    for dual, label in zip(parents[below].tolist(), labels[below].tolist(), strict=True):
        inside[dual].append(signatures[label])
    return {
        dual: _shows_own_work(signatures[labels[dual]], below) for dual, below in inside.items()
    }


def _shows_own_work(outer: Signature, below: list[Signature]) -> bool:
    """Return whether the op's own work is among these ops, which it called in this order."""
    names = [signature.op for signature in below]
    if _PRIMAL in names:
        return any(_works(signature) for signature in below[: names.index(_PRIMAL)])
    working = [signature for signature in below if _works(signature)]
    return len(working) > 1 and working[0].op == outer.op


def _works(signature: Signature) -> bool:
    work = signature.work
    return work is not None and bool(work.matmul_flops or work.vector_flops or work.flops_at_most)


def with_tangents(
    labels: np.ndarray, parents: np.ndarray, signatures: list[Signature], passed: set[int]
) -> dict[int, int]:
    """Return, for each op on duals whose own work no op below shows, its number with the tangent's.

    Its FLOPs are then those of the outermost known ops below it as well; they are unknown where an
    unknown one is that calls no others. New signatures are appended.

    Args:
        labels: As above.
        parents: As above.
        signatures: By label.
        passed: Ops that do not count: what is below them does. All others on duals, and all ops
            around any, are added; those returned are taken out.
    """
    duals = ops_on_duals(labels, parents, signatures)
    passed |= with_ancestors([dual for dual, shows in duals.items() if shows], parents)
    alone = [dual for dual, shows in duals.items() if not shows]
    passed |= with_ancestors(parents[alone].tolist(), parents)
    passed -= set(alone)
    numbers = dict[int, int]()
    if not alone:
        return numbers
    calling = set(parents.tolist())
    label_of, around = labels.data, parents.data
    for dual in sorted(alone, reverse=True):  # an inner one is part of the one around it
        works = [signatures[label_of[dual]].work]
        walked = {dual}  # and those below that are known by what they call
        for node in range(dual + 1, len(labels)):
            if label_of[node] < 0:
                continue
            if around[node] < dual:
                break
            if around[node] in walked:
                work = signatures[numbers.get(node, label_of[node])].work
                if node in passed or (work is None and node in calling):
                    walked.add(node)
                else:
                    works.append(work)
        numbers[dual] = len(signatures)
        signatures.append(replace(signatures[label_of[dual]], work=_sum_of(works)))
    return numbers


def _sum_of(works: Sequence[Work | None]) -> Work | None:
    total = Work()
    for work in works:
        if work is None or work.flops_at_most is not None:
            return None
        total = Work(
            total.matmul_flops + work.matmul_flops,
            total.vector_flops + work.vector_flops,
            total.min_bytes + work.min_bytes,
        )
    return total
