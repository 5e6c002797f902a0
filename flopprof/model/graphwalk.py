"""Walk an ONNX graph's nodes with what is known of shapes, types and small constants."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flopprof.model.graphfold import FOLDED, MOVES, evaluated
from flopprof.model.graphinputs import element_type
from flopprof.model.graphloops import EXTERNAL, runs_of
from flopprof.model.graphshapes import OWN, NodeFacts, output_shapes
from flopprof.units import safe_text

MAX_NODES = 500_000
_NUMBERS_OF_TYPES = {  # TensorProto's
    "float32": 1,
    "float16": 10,
    "float64": 11,
    "bfloat16": 16,
    "int64": 7,
    "int32": 6,
}
MAX_KEPT = 1024  # elements of a constant that shapes and conditions may depend on
_PLAIN_ATTRIBUTES = (1, 2, 3, 6, 7, 8)  # AttributeProto's FLOAT, INT, STRING and lists of them
_TYPES_OF_SHAPES = (1, 6, 7, 9, 11)  # TensorProto's FLOAT, INT32, INT64, BOOL, DOUBLE
_BY_VALUE = {"DFT": {2: "axis"}, "STFT": {3: "frame_length"}}
"""Inputs whose values a count depends on, by op and place, and the attribute that tells them."""


@dataclass(frozen=True, slots=True)
class GraphNode:
    """One node, with what is known of its tensors; None stands for an unknown shape.

    Attributes:
        op: "Conv"; with its domain where that is not ONNX's own, "com.microsoft::Gelu".
        inputs: Shapes; an input that is left out has the element type "".
        attributes: Numbers, texts, and lists of them.
        times: How often a node of a loop's body runs.
        branches: Of an If whose condition is not known, the nodes of both; of a loop of which it is
            not known how often it runs, its body's.
        most_runs: How often the body runs at most; None where nothing says.
    """

    op: str
    name: str
    inputs: tuple[tuple[int, ...] | None, ...]
    outputs: tuple[tuple[int, ...] | None, ...]
    input_dtypes: tuple[str, ...]
    output_dtypes: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    times: int = 1
    branches: tuple[tuple["GraphNode", ...], ...] = ()
    most_runs: int | None = None


class Walker:
    """Goes through a graph's nodes with what is known of shapes, types and constants."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
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
            taken = "then_branch" if condition.item() else "else_branch"
            branch = next(a.g for a in node.attribute if a.name == taken)
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
            is_free = node.op_type in MOVES or (value is not None and value.dtype.kind in "iub")
            if value is None or node.op_type == "Constant" or not is_free:
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

        if len(node.output) != 1 or node.domain not in ("", "ai.onnx"):
            return None
        name = node.output[0]
        if node.op_type == "Constant":
            value = _constant(node)
            if value is not None:
                self.constants[name] = value
        elif node.op_type == "Shape":
            shape = self.shapes.get(node.input[0])
            if shape is not None:
                part = _attributes(node)
                end = part.get("end", len(shape))
                self.constants[name] = np.asarray(shape[part.get("start", 0) : end], np.int64)
        elif node.op_type in FOLDED and all(n in self.constants for n in node.input if n):
            shape = self.shapes.get(name)
            if shape is not None and math.prod(shape) <= MAX_KEPT:
                self.constants[name] = evaluated(node, self.constants, self.opset)
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
            for body in bodies:
                self.learn(body)
            if bodies:
                exact, most = runs_of(node, self.constants, self.shapes, self.opset)
                if exact is not None:
                    for body in bodies:
                        self.walk(body, nodes, times * exact)
                    continue
                nodes.append(self._open(node, bodies, times, most))
            else:
                nodes.append(self._node(node, times))
            if len(nodes) > MAX_NODES:
                raise ValueError(f"it has more than {MAX_NODES} nodes")

    def _open(self, node: Any, bodies: list[Any], times: int, most: int | None) -> GraphNode:
        """Return a node with its bodies' nodes, where it is not known how often they run."""
        name = safe_text(node.name or node.output[0], 100)
        if node.op_type == "If":
            fact = (
                f"a value decides which body of If {name} runs: at most the dearer one is counted"
            )
        else:
            limit = "" if most is None else f": at most {most} times"
            kind = safe_text(node.op_type, 60)
            fact = f"how often the body of {kind} {name} runs is not known{limit}"
        self.notes.append(fact)
        branches = []
        for body in bodies:
            inside: list[GraphNode] = []
            self.walk(body, inside, 1)
            branches.append(tuple(inside))
        return replace(
            self._node(node, times, ending=" (body)"),
            branches=tuple(branches),
            most_runs=1 if node.op_type == "If" else most,
        )

    def complete(self, graph: Any) -> bool:
        """Write shapes into the graph that onnx does not infer; return whether any is new."""
        from onnx import TensorProto, helper

        is_new = False
        for node in graph.node:
            shapes = output_shapes(self._facts(node))
            dtype = self.dtypes.get(node.input[0], "") if node.input else ""
            unless_known = TensorProto.INT64 if node.op_type == "Range" else TensorProto.FLOAT
            number = _NUMBERS_OF_TYPES.get(dtype, unless_known)
            for name, shape in zip(node.output, shapes, strict=False):
                if not name or shape is None or self.shapes.get(name) is not None:
                    continue
                _forget(graph, name)
                graph.value_info.append(helper.make_tensor_value_info(name, number, shape))
                self.shapes[name] = shape
                is_new = True
        return is_new

    def _facts(self, node: Any) -> NodeFacts:
        constants = {
            place: self.constants[name]
            for place, name in enumerate(node.input)
            if name in self.constants
        }
        return NodeFacts(_spelled(node), self._shapes(node), _attributes(node), constants)

    def _shapes(self, node: Any) -> tuple[tuple[int, ...] | None, ...]:
        """Return the shapes of a node's inputs; () of one that is left out."""
        return tuple(self.shapes.get(name) if name else () for name in node.input)

    def _node(self, node: Any, times: int, *, ending: str = "") -> GraphNode:
        name = node.name or next((output for output in node.output if output), "")
        attributes = _attributes(node)
        for place, attribute in _BY_VALUE.get(node.op_type, {}).items():
            value = self.constants.get(node.input[place]) if place < len(node.input) else None
            if value is not None and value.size == 1:
                attributes.setdefault(attribute, int(value.item()))
        return GraphNode(
            _spelled(node) + ending,
            safe_text(name, 200),
            self._shapes(node),
            tuple(self.shapes.get(n) for n in node.output if n),
            tuple(self.dtypes.get(n, "?") if n else "" for n in node.input),
            tuple(self.dtypes.get(n, "") for n in node.output if n),
            attributes,
            times,
        )


def _spelled(node: Any) -> str:
    """Return an op with its domain where that is not ONNX's own."""
    is_onnx = node.domain in ("", "ai.onnx", OWN)
    return ("" if is_onnx else f"{safe_text(node.domain, 60)}::") + safe_text(node.op_type, 60)


def _attributes(node: Any) -> dict[str, Any]:
    """Return a node's numbers and texts, and lists of them."""
    from onnx import helper

    values = {
        a.name: helper.get_attribute_value(a) for a in node.attribute if a.type in _PLAIN_ATTRIBUTES
    }
    return {k: v.decode("latin-1") if isinstance(v, bytes) else v for k, v in values.items()}


def _forget(graph: Any, name: str) -> None:
    """Take what is said of a tensor's shape out of the graph."""
    kept = [value for value in graph.value_info if value.name != name]
    if len(kept) < len(graph.value_info):
        copies = [type(value).FromString(value.SerializeToString()) for value in kept]
        del graph.value_info[:]
        graph.value_info.extend(copies)
    for value in graph.output:
        if value.name == name:
            value.type.tensor_type.ClearField("shape")


def _identities(inner: Any, outer: Sequence[str]) -> list[Any]:
    from onnx import helper

    pairs = zip(inner, outer, strict=True)
    return [helper.make_node("Identity", [value.name], [name]) for value, name in pairs if name]


def _replace_nodes(graph: Any, nodes: Sequence[Any]) -> None:
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _constant(node: Any) -> Any:
    """Return what a node Constant gives; None for what is large, or no number."""
    import numpy as np
    from onnx import numpy_helper

    for attribute in node.attribute:
        if attribute.name == "value":
            return numpy_helper.to_array(attribute.t) if _has_values(attribute.t) else None
    values = _attributes(node)
    for name, dtype in (
        ("value_int", np.int64),
        ("value_ints", np.int64),
        ("value_float", np.float32),
        ("value_floats", np.float32),
    ):
        if name in values and np.size(values[name]) <= MAX_KEPT:
            return np.asarray(values[name], dtype)
    return None


def _has_values(tensor: Any) -> bool:
    """Return whether a tensor's values are small, in the file, and of a type that shapes have."""
    is_here = math.prod(tensor.dims) <= MAX_KEPT and tensor.data_location != EXTERNAL
    return bool(is_here and tensor.data_type in _TYPES_OF_SHAPES)
