"""Say how often the body of a loop in an ONNX graph runs."""

import math
from collections.abc import Mapping
from typing import Any

from flopprof.model.graphfold import FOLDED, evaluated

_MAX_STEPS = 2000  # of a condition that is worked out step by step
_NO_LIMIT = 1 << 40  # runs: exporters write the largest integer where there is no limit
EXTERNAL = 1  # TensorProto.EXTERNAL: the values lie in another file

Runs = tuple[int | None, int | None]
"""How often a body runs exactly, and at most; None where nothing says."""


def runs_of(
    node: Any,
    constants: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...] | None],
    opset: int,
) -> Runs:
    """Return how often the body of a node runs; (None, None) for what is no loop.

    Args:
        node: A Loop or Scan; or an If, say.
        constants: Small constants by name.
        shapes: Of tensors, by name.
        opset: The version of ONNX's ops that the graph is of.
    """
    if node.op_type == "Scan":
        count = next((a.i for a in node.attribute if a.name == "num_scan_inputs"), 0)
        shape = shapes.get(node.input[-count]) if 0 < count <= len(node.input) else None
        axes = next((list(a.ints) for a in node.attribute if a.name == "scan_input_axes"), [0])
        axis = axes[0] if axes else 0
        steps = shape[axis] if shape and -len(shape) <= axis < len(shape) else None
        return steps, steps
    if node.op_type != "Loop":
        return None, None
    limit = _scalar(constants, node.input[0]) if node.input[0] else None
    most = None if limit is None or limit > _NO_LIMIT else max(0, int(limit))
    exact = _Condition(node, constants, opset).steps(most)
    return exact, most if exact is None else exact


def _scalar(constants: Mapping[str, Any], name: str) -> Any:
    value = constants.get(name)
    return value.item() if value is not None and value.size == 1 else None


class _Condition:
    """The part of a loop's body that its condition depends on."""

    def __init__(self, node: Any, constants: Mapping[str, Any], opset: int) -> None:
        self.opset = opset
        self.node = node
        self.body = next(a.g for a in node.attribute if a.HasField("g"))
        self.inputs = [value.name for value in self.body.input]
        self.outputs = [value.name for value in self.body.output]
        self.constants = dict(constants) | _initialisers(self.body)

    def steps(self, most: int | None) -> int | None:
        """Return how often the body runs; None where the values that decide are not known."""
        name = self.node.input[1] if len(self.node.input) > 1 else ""
        start = _scalar(self.constants, name) if name else True
        if start is None:
            return None
        nodes, carried = self._slice()
        if nodes is None:
            return None
        if not nodes and not carried:  # the condition stays as it is
            end = self.outputs[0]
            if not start:
                return 0
            goes_on = end == self.inputs[1] or bool(_scalar(self.constants, end))
            if goes_on:
                return most
            return 1 if most is None else min(1, most)
        return self._worked_out(nodes, carried, most, start=bool(start))

    def _slice(self) -> tuple[list[Any] | None, list[int]]:
        """Return the nodes that the condition follows from, and the places of carried values.

        The first is None where one of the nodes is no op on small constants, or needs a value that
        is not known.
        """
        makers = {name: node for node in self.body.node for name in node.output}
        pending = [self.outputs[0]]
        seen: set[str] = set()
        needed = set()
        carried = []
        while pending:
            name = pending.pop()
            if name in seen or not name:
                continue
            seen.add(name)
            if name in makers:
                maker = makers[name]
                if maker.op_type not in FOLDED or len(maker.output) != 1:
                    return None, []
                needed.add(name)
                pending += maker.input
            elif name in self.inputs:
                place = self.inputs.index(name)
                if place < 2:  # the number of the step and the last condition are known
                    continue
                if self.node.input[place] not in self.constants:
                    return None, []
                carried.append(place)
                pending.append(self.outputs[place - 1])
            elif name not in self.constants:
                return None, []
        nodes = [node for node in self.body.node if set(node.output) & needed]
        return nodes, carried

    def _worked_out(
        self, nodes: list[Any], carried: list[int], most: int | None, *, start: bool
    ) -> int | None:
        """Return after how many steps the condition is false or the limit is reached.

        None where a value is not known, or after 2000 steps.
        """
        import numpy as np

        values = dict(self.constants)
        values[self.inputs[1]] = np.asarray(start)
        for place in carried:
            values[self.inputs[place]] = self.constants[self.node.input[place]]
        going = start
        limit = math.inf if most is None else most
        step = 0
        while going and step < limit:
            if step >= _MAX_STEPS:
                return None
            values[self.inputs[0]] = np.asarray(step, np.int64)
            for node in nodes:
                value = evaluated(node, values, self.opset)
                if value is None:
                    return None
                values[node.output[0]] = value
            following = {place: values.get(self.outputs[place - 1]) for place in carried}
            condition = values.get(self.outputs[0])
            if condition is None or any(value is None for value in following.values()):
                return None
            for place, value in following.items():
                values[self.inputs[place]] = value
            values[self.inputs[1]] = condition
            going = bool(condition)
            step += 1
        return step


def _initialisers(body: Any) -> dict[str, Any]:
    """Return the body's own small constants."""
    from onnx import numpy_helper

    own = {}
    for tensor in body.initializer:
        if math.prod(tensor.dims) <= 1 and tensor.data_location != EXTERNAL:
            own[tensor.name] = numpy_helper.to_array(tensor)
    for node in body.node:
        if node.op_type != "Constant":
            continue
        for attribute in node.attribute:
            if attribute.name == "value" and math.prod(attribute.t.dims) <= 1:
                own[node.output[0]] = numpy_helper.to_array(attribute.t)
    return own
