"""Read an ONNX graph and the shapes in it; nothing of it is executed, no weights are kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flopprof.errors import UsageError
from flopprof.model.detect import damaged
from flopprof.model.graphinputs import give_inputs
from flopprof.model.graphloops import EXTERNAL
from flopprof.model.graphshapes import take_from_onnx
from flopprof.model.graphwalk import MAX_KEPT, MAX_NODES, GraphNode, Walker
from flopprof.model.inputs import Spec
from flopprof.units import safe_text, shape_text

_MAX_BYTES = 2 << 30  # of a file that protobuf reads
_MAX_ROUNDS = 30  # of finding shapes, and of what follows from them
_FLOATS = (1, 10, 11, 16)  # TensorProto's FLOAT, FLOAT16, DOUBLE, BFLOAT16


@dataclass(frozen=True, slots=True)
class Graph:
    """What is to be counted of an ONNX file."""

    name: str
    nodes: tuple[GraphNode, ...]
    parameters: int  # elements of its floating weights
    input: str
    input_source: str
    notes: tuple[str, ...] = ()


def read_graph(path: Path, specs: Sequence[Spec]) -> Graph:
    """Return the graph of the ONNX file at `path`, its inputs of the sizes that `specs` say.

    Raises:
        UsageError: onnx is not installed, or a size of an input is to be given.
        LoadError: The file is damaged.
    """
    model = parse(path)
    try:
        return _of_model(model, path, specs)
    except (UsageError, MemoryError):
        raise
    except Exception as error:  # what onnx and protobuf raise on graphs that do not hold together
        if specs:
            sizes = ", ".join(spec.text for spec in specs)
            fact = f"{safe_text(path)}: its shapes do not fit together at {safe_text(sizes)}: "
            reason = safe_text(str(error).strip(), 300)
            raise UsageError(fact + reason, remedy="give the sizes that it was made for") from error
        raise damaged(path, f"an ONNX model whose graph does not hold together: {error}") from error


def parse(path: Path) -> Any:
    """Return the file as onnx's `ModelProto`; weights outside it are not read.

    Raises:
        UsageError: onnx is not installed, or the file is too large for it.
        LoadError: The file is damaged.
    """
    try:
        import onnx
    except ImportError as error:
        fact = f"{safe_text(path)} is an ONNX model, which the package onnx reads"
        raise UsageError(fact, remedy="pip install 'flopprof[onnx]'") from error
    if path.stat().st_size >= _MAX_BYTES:
        fact = f"{safe_text(path)} has more than 2 GB, which protobuf does not read"
        raise UsageError(fact, remedy="save it with its weights as external data")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # protobuf's own classes
        raise damaged(path, f"an ONNX model whose protobuf does not parse: {error}") from error
    if not model.graph.node or len(model.graph.node) > MAX_NODES:
        raise damaged(path, f"an ONNX model whose graph has {len(model.graph.node)} nodes")
    return model


def _of_model(model: Any, path: Path, specs: Sequence[Spec]) -> Graph:
    import onnx

    parameters = _empty_weights(model.graph)
    inputs, text, source = give_inputs(model.graph, path, specs)
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    take_from_onnx(model)
    versions = (opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx"))
    walker = Walker(next(versions, 1))
    for name, value in inputs.items():
        walker.give(name, value)
    del model.graph.value_info[:]
    for _ in range(_MAX_ROUNDS):
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        walker.learn(model.graph)
        is_folded = walker.fold(model.graph)
        is_settled = walker.settle_branches(model.graph)
        is_completed = walker.complete(model.graph)
        if not (is_settled or is_folded or is_completed):
            break
    nodes: list[GraphNode] = []
    walker.walk(model.graph, nodes, 1)
    return Graph(
        safe_text(model.graph.name or path.stem, 100),
        tuple(nodes),
        parameters,
        text,
        source,
        tuple(walker.notes),
    )


def _empty_weights(graph: Any) -> int:
    """Drop the values of large weights, and return how many floating ones there are."""
    count = 0
    for tensor in graph.initializer:
        elements = math.prod(tensor.dims)
        count += elements if tensor.data_type in _FLOATS else 0
        if elements > MAX_KEPT or tensor.data_location == EXTERNAL:
            _drop_values(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and math.prod(attribute.t.dims) > MAX_KEPT:
                tensor = attribute.t
                count += math.prod(tensor.dims) if tensor.data_type in _FLOATS else 0
                _drop_values(tensor)
            if attribute.HasField("g"):
                count += _empty_weights(attribute.g)
    return count


def _drop_values(tensor: Any) -> None:
    for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
        tensor.ClearField(name)


def shapes_text(node: GraphNode) -> str:
    """Return the shapes of a node's inputs, as the column `input_shapes` has them."""
    return ", ".join("?" if shape is None else shape_text(shape) for shape in node.inputs)
