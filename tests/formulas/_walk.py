"""Run a callable under the profiler and walk its ops as flopprof counts them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from flopprof import dtypes
from flopprof.formulas import FREE_OPS, OP_FORMULAS, OpCall, Work, load_op_formulas


@dataclass
class Node:
    """One traced op and those below it."""

    call: OpCall
    end_us: float
    children: list["Node"] = field(default_factory=list)


def roots(run: Callable[[], Any]) -> list[Node]:
    """Return the outermost ops of `run`, in order; ranges that are no ops are looked through."""
    torch.set_num_threads(1)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        run()
    with TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    ops = [e for e in events if e.get("cat") == "cpu_op" and "::" in e["name"]]
    ops = [e for e in ops if not e["name"].startswith(("autograd::", "torch::"))]
    found: list[Node] = []
    for thread in sorted({str(e["tid"]) for e in ops}):
        open_ops: list[Node] = []
        mine = [e for e in ops if str(e["tid"]) == thread]
        for event in sorted(mine, key=lambda e: (e["ts"], -e["dur"])):
            node = Node(_op_call(event), event["ts"] + event["dur"])
            while open_ops and event["ts"] >= open_ops[-1].end_us:
                open_ops.pop()
            (open_ops[-1].children if open_ops else found).append(node)
            open_ops.append(node)
    return found


def _op_call(event: dict[str, Any]) -> OpCall:
    args = event["args"]
    return OpCall(
        event["name"],
        shapes=_tuples(args.get("Input Dims", ())),
        dtypes=tuple(dtypes.parse_dtype(one) for one in args.get("Input type", ())),
        values=tuple(args.get("Concrete Inputs", ())),
    )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list | tuple) else value


def work_of(call: OpCall) -> Work | None:
    """Return what the op's formula, or its place among the free ops, says."""
    load_op_formulas()
    formula = OP_FORMULAS.get(call.op) or FREE_OPS.get(call.op)
    return formula(call) if formula else None


def counted(nodes: list[Node]) -> Iterator[tuple[OpCall, Work | None]]:
    """Yield the outermost known ops and their work; None with each op that is not known.

    One that is bounded is what the ops below it are, where some of them have formulas.
    """
    for node in nodes:
        work = work_of(node.call)
        if work is not None and work.flops_at_most is not None and _has_formulas(node.children):
            yield node.call, Work()
            yield from counted(node.children)
            continue
        yield node.call, work
        if work is None:
            yield from counted(node.children)


def _has_formulas(nodes: list[Node]) -> bool:
    return any(n.call.op in OP_FORMULAS or _has_formulas(n.children) for n in nodes)


def vector_flops(run: Callable[[], Any]) -> int:
    """Return the vector FLOPs of all counted ops of `run`."""
    return sum(work.vector_flops for _, work in counted(roots(run)) if work is not None)
