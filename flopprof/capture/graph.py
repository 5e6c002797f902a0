"""Count an ONNX graph as if its nodes were the ops of one call; nothing of it is executed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from flopprof.capture.describe import describe_environment
from flopprof.errors import UsageError
from flopprof.formulas import Work
from flopprof.formulas.graph import node_kind, node_work
from flopprof.model.detect import detect
from flopprof.model.graphs import Graph, read_graph, shapes_text
from flopprof.model.graphwalk import GraphNode
from flopprof.model.inputs import parse_input
from flopprof.model.resize import resized
from flopprof.provenance import Called, CountProvenance, DeviceFacts, Source
from flopprof.settings import Settings
from flopprof.tables import GAPS, KERNELS, OPS
from flopprof.units import counted, safe_text

_NAMED = 6  # ops that a warning tells


class CountedGraph(NamedTuple):
    """Tables OPS, GAPS and KERNELS of a graph's nodes, and what a run says of it."""

    tables: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]
    provenance: CountProvenance
    doubts: list[str]


def is_graph(model_or_name: str | Path) -> bool:
    """Return whether `what` is an ONNX file."""
    path = Path(model_or_name)
    return path.is_file() and detect(path).name == "onnx"


def count_graph(path: Path, inputs: Any, settings: Settings) -> CountedGraph:
    """Return the nodes of the ONNX file at `path` with their FLOPs.

    Raises:
        UsageError: An option is given that a graph has no use for, or an input's size is open.
        LoadError: The file is damaged.
    """
    for option, value in (("--train", settings.train), ("--arch", settings.arch)):
        if value:
            fact = f"{option} is given, and {safe_text(path)} is an ONNX graph, counted as it is"
            raise UsageError(fact, remedy=f"leave out {option}")
    graph = read_graph(path, [parse_input(text) for text in _texts(inputs, settings)])
    rows = [_row(place, node) for place, node in enumerate(graph.nodes)]
    ops = OPS.from_rows(rows)
    dtype = _main_dtype(ops)
    source = Source(
        model=graph.name,
        parameters=graph.parameters,
        file=f"ONNX graph of {safe_text(path)}",
        weights="meta",
    )
    called = Called(dtype=dtype, input=graph.input, input_source=graph.input_source)
    provenance = CountProvenance(
        source=source,
        called=called,
        device=DeviceFacts(name="meta", kind="meta"),
        environment=describe_environment(),
    )
    doubts = [*graph.notes, *_unknown(graph, ops)]
    return CountedGraph((ops, GAPS.empty(), KERNELS.empty()), provenance, doubts)


def _texts(inputs: Any, settings: Settings) -> Sequence[str]:
    if isinstance(inputs, str):
        return inputs.split()
    if isinstance(inputs, tuple | list) and inputs and all(isinstance(n, int) for n in inputs):
        return ["x".join(map(str, inputs)) + (":float32" if len(inputs) == 1 else "")]
    if inputs is not None or settings.input_from:
        raise UsageError(
            "an ONNX graph takes the sizes of its inputs, no tensors",
            remedy='give them as text: "input=1x3x224x224"',
        )
    return resized(settings.input_specs, batch=settings.batch, input_size=settings.input_size)


def _row(place: int, node: GraphNode) -> dict[str, Any]:
    work = _work_of(node)
    kind = node_kind(node.op)
    dtype = next(
        (kind for kind in (*node.output_dtypes, *node.input_dtypes) if kind not in ("", "?")), ""
    )
    return {
        "op_id": place,
        "external_id": -1,
        "parent_op_id": -1,
        "op": node.op if "::" in node.op else f"onnx::{node.op}",
        "kind": kind,
        "module_path": node.name,
        "call_id": -1,
        "phase": "forward",
        "sequence_nr": -1,
        "thread": "graph",
        "start_us": float(place),
        "input_shapes": shapes_text(node),
        "dtype": dtype,
        "counted": work is not None and work.flops_at_most is None,
        **_figures(work),
    }


def _figures(work: Work | None) -> dict[str, float]:
    """Return the columns of a count, or of bounds; NaN for what is not known."""
    figures = dict.fromkeys(
        (
            *("matmul_flops", "vector_flops", "min_bytes"),
            *("matmul_flops_at_least", "vector_flops_at_least", "flops_at_most"),
        ),
        math.nan,
    )
    if work is None:
        return figures
    ending = "" if work.flops_at_most is None else "_at_least"
    figures[f"matmul_flops{ending}"] = float(work.matmul_flops)
    figures[f"vector_flops{ending}"] = float(work.vector_flops)
    if work.flops_at_most is None:
        figures["min_bytes"] = float(work.min_bytes)
    else:
        figures["flops_at_most"] = float(work.flops_at_most)
    return figures


def _work_of(node: GraphNode) -> Work | None:
    """Return what all runs of a node do, exactly or within bounds; None where nothing is known.

    Of an If the cheaper and the dearer branch are the bounds; of a loop none and the most runs.
    """
    if not node.branches:
        return _times(node_work(node), node.times)
    branches = [_sum_of(branch) for branch in node.branches]
    sums = [work for work in branches if work is not None]
    if len(sums) < len(branches) or node.most_runs is None:
        return None
    matmul = min(work.matmul_flops for work in sums)
    vector = min(work.vector_flops for work in sums)
    most = max(_most(work) for work in sums)
    is_exact = node.op.startswith("If") and matmul + vector == most
    if is_exact:
        return _times(Work(matmul, vector), node.times)
    if not node.op.startswith("If"):
        matmul = vector = 0
    bounds = Work(matmul, vector, flops_at_most=most * node.most_runs)
    return _times(bounds, node.times)


def _sum_of(nodes: Sequence[GraphNode]) -> Work | None:
    """Return what the nodes of a branch do together; None where one of them is not known."""
    matmul = vector = moved_bytes = most = 0
    is_exact = True
    for node in nodes:
        work = _work_of(node)
        if work is None:
            return None
        matmul += work.matmul_flops
        vector += work.vector_flops
        moved_bytes += work.min_bytes
        most += _most(work)
        is_exact = is_exact and work.flops_at_most is None
    return Work(matmul, vector, moved_bytes, None if is_exact else most)


def _most(work: Work) -> int:
    exact = work.matmul_flops + work.vector_flops
    return exact if work.flops_at_most is None else work.flops_at_most


def _times(work: Work | None, times: int) -> Work | None:
    if work is None or times == 1:
        return work
    most = None if work.flops_at_most is None else work.flops_at_most * times
    return Work(work.matmul_flops * times, work.vector_flops * times, work.min_bytes * times, most)


def _main_dtype(ops: pd.DataFrame) -> str:
    """Return the element type of most matmul FLOPs, else of most nodes."""
    sums = ops.groupby("dtype", observed=True)["matmul_flops"].sum()
    return str(sums.idxmax()) if len(sums) and sums.max() > 0 else "float32"


def _unknown(graph: Graph, ops: pd.DataFrame) -> list[str]:
    """Return a sentence on the nodes whose FLOPs are not known."""
    unknown = ops[ops["matmul_flops"].isna()]
    if not len(unknown):
        return []
    names = unknown["op"].value_counts()
    shown = ", ".join(f"{name} ({count})" for name, count in names.head(_NAMED).items())
    total = counted(len(graph.nodes), "node")
    return [f"{len(unknown)} of {total} are not counted: {safe_text(shown)}"]
