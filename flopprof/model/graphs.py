"""Read an ONNX graph and the shapes in it; nothing of it is executed, no weights are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flopprof.errors import UsageError
from flopprof.model.detect import damaged
from flopprof.model.graphinputs import element_type, give_inputs
from flopprof.model.inputs import Spec
from flopprof.units import safe_text, shape_text

_MAX_BYTES = 2 << 30  # of a file that protobuf reads
_MAX_NODES = 500_000
_KEPT = 1024  # elements of a constant that shapes and conditions may depend on
_ROUNDS = 30  # of finding shapes, and of what follows from them


@dataclass(frozen=True, slots=True)
class GraphNode:
    """One node, with what is known of its tensors; None stands for an unknown shape.

    Attributes:
        op: "Conv"; with its domain where that is not ONNX's own, "com.microsoft::Gelu".
        inputs: Shapes; an input that is left out has the element type "".
        attributes: Numbers, texts, and lists of them.
        times: How often a node of a loop's body runs.
    """

    op: str
    name: str
    inputs: tuple[tuple[int, ...] | None, ...]
    outputs: tuple[tuple[int, ...] | None, ...]
    input_dtypes: tuple[str, ...]
    output_dtypes: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    times: int = 1


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
    if not model.graph.node or len(model.graph.node) > _MAX_NODES:
        raise damaged(path, f"an ONNX model whose graph has {len(model.graph.node)} nodes")
    return model


def _of_model(model: Any, path: Path, specs: Sequence[Spec]) -> Graph:
    import onnx

    parameters = _empty_weights(model.graph)
    inputs, text, source = give_inputs(model.graph, path, specs)
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    walker = _Walker()
    for name, value in inputs.items():
        walker.give(name, value)
    del model.graph.value_info[:]
    for _ in range(_ROUNDS):
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        walker.learn(model.graph)
        is_folded = walker.fold(model.graph)
        if not (walker.settle_branches(model.graph) or is_folded):
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
    floats = {1, 10, 11, 16}  # FLOAT, FLOAT16, DOUBLE, BFLOAT16
    count = 0
    for tensor in graph.initializer:
        elements = _product(tensor.dims)
        count += elements if tensor.data_type in floats else 0
        if elements > _KEPT or tensor.data_location == 1:
            _drop_values(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if not attribute.HasField("t"):
                pass
            elif _product(attribute.t.dims) > _KEPT:
                count += _product(attribute.t.dims) if attribute.t.data_type in floats else 0
                _drop_values(attribute.t)
            if attribute.HasField("g"):
                count += _empty_weights(attribute.g)
    return count


def _drop_values(tensor: Any) -> None:
    for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
        tensor.ClearField(name)


def _product(sizes: Sequence[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product


class _Walker:
    """Goes through a graph's nodes with what is known of shapes, types and constants."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...] | None] = {}
        self.dtypes: dict[str, str] = {}
        self.constants: dict[str, Any] = {}
        self.notes: list[str] = []

    def give(self, name: str, value: Any) -> None:
        """Note the value of an input that was given by its value."""
        import numpy as np

        self.constants[name] = np.asarray(value)

    def settle_branches(self, graph: Any) -> bool:
        """Put the branch that is taken in place of each If whose condition is constant."""
        nodes: list[Any] = []
        changed = False
        for node in graph.node:
            condition = self.constants.get(node.input[0]) if node.op_type == "If" else None
            if condition is None or condition.size != 1:
                nodes.append(node)
                continue
            wanted = "then_branch" if condition.item() else "else_branch"
            branch = next(a.g for a in node.attribute if a.name == wanted)
            graph.initializer.extend(branch.initializer)
            nodes.extend(branch.node)
            nodes.extend(_identities(branch.output, node.output))
            changed = True
        if changed:
            _replace_nodes(graph, nodes)
        return changed

    def fold(self, graph: Any) -> bool:
        """Note constants, and the small integers that follow from them and from shapes.

        Those take the place of their nodes, which have no FLOPs, so that more shapes are known.
        """
        from onnx import numpy_helper

        for tensor in graph.initializer:
            if tensor.name not in self.constants and _has_values(tensor):
                self.constants[tensor.name] = numpy_helper.to_array(tensor)
        nodes = []
        changed = False
        for node in graph.node:
            value = self._value(node)
            if value is None or node.op_type == "Constant" or value.dtype.kind not in "iub":
                nodes.append(node)
                continue
            graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
            changed = True
        if changed:
            _replace_nodes(graph, nodes)
        return changed

    def _value(self, node: Any) -> Any:
        """Return the constant that a node gives, and note it; None where it gives none."""
        import numpy as np
        from onnx import numpy_helper

        if len(node.output) != 1 or node.domain not in ("", "ai.onnx"):
            return None
        name = node.output[0]
        if node.op_type == "Constant":
            tensor = next((a.t for a in node.attribute if a.name == "value"), None)
            if tensor is not None and _has_values(tensor):
                self.constants[name] = numpy_helper.to_array(tensor)
        elif node.op_type == "Shape":
            shape = self.shapes.get(node.input[0])
            if shape is not None and not node.attribute:
                self.constants[name] = np.asarray(shape, np.int64)
        elif node.op_type in _FOLDED and all(n in self.constants for n in node.input if n):
            shape = self.shapes.get(name)
            if shape is not None and _product(shape) <= _KEPT:
                self.constants[name] = _evaluated(node, self.constants)
        return self.constants.get(name)

    def learn(self, graph: Any) -> None:
        """Note the shapes and element types that are known of a graph's tensors."""
        from onnx import TensorProto

        for value in (*graph.input, *graph.value_info, *graph.output):
            kind = value.type.tensor_type
            if kind.elem_type:
                self.dtypes[value.name] = element_type(TensorProto.DataType.Name(kind.elem_type))
            if kind.HasField("shape"):
                sizes = [
                    dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim
                ]
                self.shapes[value.name] = None if -1 in sizes else tuple(sizes)
        for tensor in graph.initializer:
            self.shapes[tensor.name] = tuple(tensor.dims)
            self.dtypes[tensor.name] = element_type(TensorProto.DataType.Name(tensor.data_type))

    def walk(self, graph: Any, nodes: list[GraphNode], times: int) -> None:
        """Add the graph's nodes, those of loops as often as they run."""
        for node in graph.node:
            bodies = [a.g for a in node.attribute if a.HasField("g")]
            runs = self._runs(node)
            if bodies and runs is not None:
                for body in bodies:
                    self.learn(body)
                    self.walk(body, nodes, times * runs)
                continue
            if bodies:
                name = safe_text(node.name or node.output[0], 100)
                self.notes.append(f"how often the body of {node.op_type} {name} runs is not known")
            nodes.append(self._node(node, times, is_open=bool(bodies)))
            if len(nodes) > _MAX_NODES:
                raise ValueError(f"it has more than {_MAX_NODES} nodes")

    def _runs(self, node: Any) -> int | None:
        """Return how often the body of a loop runs; None where it is not known, or no loop."""
        if node.op_type == "Loop":
            count = self.constants.get(node.input[0])
            is_counted = (
                len(node.input) < 2 or self.constants.get(node.input[1] or "", True) is True
            )
            return int(count) if count is not None and is_counted else None
        if node.op_type == "Scan":
            count = next((a.i for a in node.attribute if a.name == "num_scan_inputs"), 0)
            shape = self.shapes.get(node.input[-count]) if count else None
            return shape[0] if shape else None
        return None

    def _node(self, node: Any, times: int, *, is_open: bool) -> GraphNode:
        from onnx import helper

        domain = "" if node.domain in ("", "ai.onnx") else f"{safe_text(node.domain, 60)}::"
        attributes = {
            a.name: helper.get_attribute_value(a)
            for a in node.attribute
            if a.type in (1, 2, 3, 6, 7, 8)  # numbers, texts, and lists of them
        }
        name = node.name or next((output for output in node.output if output), "")
        return GraphNode(
            domain + safe_text(node.op_type, 60) + (" (body)" if is_open else ""),
            safe_text(name, 200),
            tuple(self.shapes.get(n) for n in node.input),
            tuple(self.shapes.get(n) for n in node.output if n),
            tuple(self.dtypes.get(n, "") if n else "" for n in node.input),
            tuple(self.dtypes.get(n, "") for n in node.output if n),
            {k: v.decode("latin-1") if isinstance(v, bytes) else v for k, v in attributes.items()},
            times,
        )


def _identities(inner: Any, outer: Sequence[str]) -> list[Any]:
    from onnx import helper

    pairs = zip(inner, outer, strict=True)
    return [helper.make_node("Identity", [value.name], [name]) for value, name in pairs if name]


def _replace_nodes(graph: Any, nodes: Sequence[Any]) -> None:
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _has_values(tensor: Any) -> bool:
    is_small = _product(tensor.dims) <= _KEPT and tensor.data_location != 1
    return bool(is_small and tensor.data_type in (1, 6, 7, 9, 11))  # of types that shapes are of


def _evaluated(node: Any, constants: Mapping[str, Any]) -> Any:
    """Return what onnx's reference in numpy says of a node on small constants."""
    from onnx import reference

    try:
        evaluator: Any = reference.ReferenceEvaluator(node)
        return evaluator.run(None, {name: constants[name] for name in node.input if name})[0]
    except Exception:  # whatever it raises on a node that does not hold together
        return None


_FOLDED = frozenset(
    [
        "Identity",
        "Not",
        "Cast",
        "Squeeze",
        "Unsqueeze",
        "Reshape",
        "Equal",
        "And",
        "Or",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Mod",
        "Neg",
        "Abs",
        "Floor",
        "Ceil",
        "Min",
        "Max",
        "Concat",
        "Slice",
        "Gather",
        "Transpose",
        "ConstantOfShape",
        "Expand",
        "Range",
        "Where",
        "ReduceProd",
        "ReduceSum",
        "Size",
        "Flatten",
    ]
)
"""Ops of which small constants are worked out, since shapes and conditions depend on them."""


def shapes_text(node: GraphNode) -> str:
    """Return the shapes of a node's inputs, as the column `input_shapes` has them."""
    return ", ".join("?" if shape is None else shape_text(shape) for shape in node.inputs)
