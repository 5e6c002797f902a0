"""Arguments of calls inside torch.func's transforms, where those around them are recorded too.

A transform passes an op on with its arguments on one stack, and a profiler records all that lies
there. The call's own arguments are the last ones.
"""

from dataclasses import replace

import numpy as np

from flopprof.formulas import OpCall
from flopprof.formulas.external import find_op_formula
from flopprof.trace.signatures import Signature, work_of
from flopprof.trace.texts import numbers_of
from flopprof.units import shapes_text


def own_arguments(
    labels: np.ndarray, parents: np.ndarray, signatures: list[Signature]
) -> dict[int, int]:
    """Return, for each call recorded with others' arguments, the number of its own signature.

    Args:
        labels: For each node its signature, or -1 where it is no op. Parents come first.
        parents: For each node the op around it, or -1.
        signatures: By label. New ones are appended.
    """
    numbers: dict[int, int] = {}
    # What is recorded, and how many of its arguments are the call's own → its signature.
    signature_of: dict[tuple[int, int], int] = {}
    inner_ops = np.flatnonzero((labels >= 0) & (parents >= 0))
    name = numbers_of([signature.call.op for signature in signatures])
    is_again = name[labels[inner_ops]] == name[labels[parents[inner_ops]]]
    for node in inner_ops[is_again].tolist():
        label = int(labels[node])
        parent = int(parents[node])
        outer = signatures[numbers.get(parent, int(labels[parent]))].call
        inner = signatures[label].call
        if not _is_stacked(outer, inner):
            continue
        key = (label, len(outer.shapes))
        if key not in signature_of:
            signature_of[key] = len(signatures)
            signatures.append(_last_of(signatures[label], len(outer.shapes)))
        numbers[node] = signature_of[key]
    return numbers


def _is_stacked(outer: OpCall, inner: OpCall) -> bool:
    """Return whether the last arguments of `inner` are of the kinds that `outer` takes."""
    count = len(outer.shapes)
    if outer.op != inner.op or not 0 < count < len(inner.shapes):
        return False
    if len(outer.dtypes) != count or len(inner.dtypes) != len(inner.shapes):
        return False
    return inner.dtypes[-count:] == outer.dtypes and inner.dtypes[:count] == outer.dtypes


def _last_of(signature: Signature, count: int) -> Signature:
    """Return the signature of a call with the last arguments only."""
    recorded = signature.call
    call = replace(
        recorded,
        shapes=recorded.shapes[-count:],
        strides=recorded.strides[-count:],
        dtypes=recorded.dtypes[-count:],
        values=recorded.values[-count:],
    )
    warnings: list[str] = []  # those of the whole call are told already
    work = work_of(find_op_formula(call.op), call, warnings)
    return replace(signature, shapes=shapes_text(call.shapes), work=work, call=call)
