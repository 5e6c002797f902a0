"""Work out small constants of an ONNX graph, on which shapes and conditions depend."""

from collections.abc import Mapping
from typing import Any

FOLDED = frozenset(
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

MOVES = frozenset(
    [
        "Identity",
        "Cast",
        "Squeeze",
        "Unsqueeze",
        "Reshape",
        "Concat",
        "Slice",
        "Gather",
        "Transpose",
        "ConstantOfShape",
        "Expand",
        "Range",
        "Flatten",
    ]
)
"""Those of them that only move values: replaced by a constant, no FLOP of theirs is lost."""


def evaluated(node: Any, constants: Mapping[str, Any], opset: int) -> Any:
    """Return the constant that a node makes of small constants, by onnx's reference in NumPy.

    None where the reference raises.

    Args:
        node: Of one of the ops in FOLDED.
        constants: By name.
        opset: The version of ONNX's ops that the graph is of; some attributes became inputs.
    """
    from onnx import helper, reference

    try:
        values = {name: constants[name] for name in node.input if name}
        inputs = [helper.make_empty_tensor_value_info(name) for name in values]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
        graph = helper.make_graph([node], "one", inputs, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        evaluator: Any = reference.ReferenceEvaluator(model)
        return evaluator.run(None, values)[0]
    except Exception:  # whatever it raises on a node that does not hold together
        return None
