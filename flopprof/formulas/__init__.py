"""Map an op or module call to the `Work` it does, from shapes alone.

Op formulas (`ops/`) and module formulas (`modules.py`) are two witnesses: they share the types
below and no arithmetic. This file and `ops/` never import torch.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopprof import dtypes
from flopprof.registry import Registry, import_all

if TYPE_CHECKING:
    from torch import nn

COMPILED = "inductor::compiled_region"
"""What a compiled region is called as an op: its own time is that of generated code."""

GENERATED = r"(?:graph_\d+_)?(?:cpp|triton_(?:poi|red|per|tem|for))_fused_"
"""What the names of kernels that Inductor generates begin with; a user's own look otherwise."""

Shape = tuple[int, ...]

KINDS = (
    "convolution",
    "matmul",
    "attention",
    "recurrent",
    "normalisation",
    "elementwise",
    "reduction",
    "other",
)
"""Families of formulas: the file of `ops/` that defines one; anything else is "other"."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one call does at least.

    Attributes:
        matmul_flops: FLOPs of contractions; one multiply-add is two.
        vector_flops: All other FLOPs.
        min_bytes: Compulsory traffic: each operand read once, each result written once.
        flops_at_most: Upper bound of both classes together where values that are not in the call
            decide (variable-length attention); the two counts are then lower bounds. Else None.
    """

    matmul_flops: int = 0
    vector_flops: int = 0
    min_bytes: int = 0
    flops_at_most: int | None = None


@dataclass(frozen=True, slots=True)
class OpCall:
    """One op call, as a trace tells it.

    Attributes:
        op: Dispatcher name, `aten::addmm`.
        shapes: One entry per argument: a shape; `()` for a 0-d tensor and for what is no tensor;
            a tuple of shapes for a list of tensors.
        itemsize: Bytes of one element where `dtypes` does not say.
        dtypes: One entry per argument: "float32", "int64", "Scalar", "ScalarList", "TensorList",
            "" for None; an empty tuple where the trace has no types.
        values: One entry per argument: a non-tensor's value as text ("[1, 1]", "True", "0.5"), else
            ""; an empty tuple where the trace has none.
        strides: Like `shapes`, in elements; an empty tuple where the trace has none.
    """

    op: str
    shapes: tuple[Any, ...] = ()
    itemsize: int = 4
    dtypes: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    strides: tuple[Any, ...] = ()

    def shape(self, index: int) -> Shape:
        """Return the shape of argument `index`; `()` if there is no such argument."""
        return tuple(self.shapes[index]) if index < len(self.shapes) else ()

    def dtype(self, index: int) -> str:
        """Return the type of argument `index`; "" if it is None, missing or the trace has none."""
        return self.dtypes[index] if index < len(self.dtypes) else ""

    def has(self, index: int) -> bool:
        """Return whether argument `index` is a tensor (not None, not a number)."""
        if self.dtypes:
            return dtypes.itemsize(self.dtype(index)) is not None
        return bool(self.shape(index))

    def itemsize_of(self, index: int) -> int:
        """Return the bytes of one element of argument `index`."""
        return dtypes.itemsize(self.dtype(index)) or self.itemsize

    def value(self, index: int) -> str:
        """Return the text of argument `index`; "" if there is none."""
        return self.values[index] if index < len(self.values) else ""

    def integer(self, index: int) -> int | None:
        """Return argument `index` as an integer, or None if it is not one."""
        try:
            return int(self.value(index))
        except ValueError:
            return None

    def integers(self, index: int) -> tuple[int, ...] | None:
        """Return argument `index`, "[2, 2]", as integers, or None if it is no such list."""
        text = self.value(index)
        if not (text.startswith("[") and text.endswith("]")):
            return None
        try:
            return tuple(int(part) for part in text[1:-1].split(",") if part.strip())
        except ValueError:
            return None

    def flag(self, index: int) -> bool | None:
        """Return argument `index` as a boolean, or None if it is not one."""
        return {"True": True, "true": True, "False": False, "false": False}.get(self.value(index))


@dataclass(frozen=True, slots=True)
class ModuleCall:
    """One execution of a module: the module itself, what went in and what came out."""

    module: "nn.Module"
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


OpFormula = Callable[[OpCall], Work | None]
ModuleFormula = Callable[[ModuleCall], Work | None]

OP_FORMULAS: Registry[OpFormula] = Registry("op formula")
MODULE_FORMULAS: Registry[ModuleFormula] = Registry("module formula")
FREE_OPS: Registry[OpFormula] = Registry("free op")


def op_formula(*names: str) -> Callable[[OpFormula], OpFormula]:
    """Register a formula for the ops `names`, such as "aten::addmm".

    The formula maps an `OpCall` to `Work`, or to None where the call does not determine it.
    """
    return OP_FORMULAS.register(*names)


def module_formula(*names: str) -> Callable[[ModuleFormula], ModuleFormula]:
    """Register a formula for the modules `names`, such as "torch.nn.GRU".

    It is told of the module's own work, without its children's, and returns None where the
    attributes do not determine it.
    """
    return MODULE_FORMULAS.register(*names)


def free_op(*names: str) -> Callable[[OpFormula], OpFormula]:
    """Register ops that only view, move or allocate, with the bytes they move."""
    return FREE_OPS.register(*names)


COMPOSITE_OPS: frozenset[str] = frozenset(
    json.loads(Path(__file__).with_name("composite.json").read_text())
)
"""PyTorch's ops that only call other ops (CompositeImplicitAutograd); by scripts/make_composite."""


def load_op_formulas() -> None:
    """Import every file of op formulas, and the list of free ops. Cheap the second time."""
    import_all("flopprof.formulas.ops")
    import flopprof.formulas.free  # noqa: F401  # registers on import


def kind_of(op: str) -> str:
    """Return the family of `op`: one of `KINDS`, "free", or "unknown" where there is no formula."""
    if op in FREE_OPS:
        return "free"
    formula = OP_FORMULAS.get(op)
    if formula is None:
        return "unknown"
    family = getattr(formula, "__module__", "").rpartition(".")[2]
    return family if family in KINDS else "other"
