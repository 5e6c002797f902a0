"""Define what a formula reads of a node of an ONNX graph."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, Protocol

from flopprof import dtypes
from flopprof.formulas import Shape, Work


class Node(Protocol):
    """A node whose first two inputs and first output have known shapes.

    An input that is left out has the shape () and the element type "".
    """

    @property
    def op(self) -> str: ...  # noqa: D102
    @property
    def inputs(self) -> tuple[Shape | None, ...]: ...  # noqa: D102
    @property
    def outputs(self) -> tuple[Shape | None, ...]: ...  # noqa: D102
    @property
    def input_dtypes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def output_dtypes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def attributes(self) -> Mapping[str, Any]: ...  # noqa: D102


Count = tuple[int, int]
"""Matmul and vector FLOPs."""

Formula = Callable[[Node], Count | Work | None]
"""Returns a count, bounds (a `Work`), or None where neither is known."""


def is_floating(node: Node) -> bool:
    """Return whether a node computes with floats; where no type is known it does."""
    kinds = [kind for kind in (*node.input_dtypes[:1], *node.output_dtypes[:1]) if kind]
    return any(map(dtypes.is_floating, kinds)) or not kinds


def size(shapes: Sequence[Shape | None], place: int) -> int:
    """Return the elements of one of the shapes; 0 where there is none."""
    if place >= len(shapes):
        return 0
    shape = shapes[place]
    return 0 if shape is None else prod(shape)


def has(node: Node, place: int) -> bool:
    """Return whether an input is given."""
    return place < len(node.inputs) and bool(node.input_dtypes[place])


def shape_of(node: Node, place: int) -> Shape:
    """Return the shape of an input; () where it is left out or not known."""
    shape = node.inputs[place] if place < len(node.inputs) else None
    return shape or ()
