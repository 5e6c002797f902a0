"""Declare what a file's weights say without code, as `count` and `inspect` print it with --json."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of a file, and what it is applied as.

    Attributes:
        name: Its key in the file.
        shape: As stored; packed weights stand for more parameters.
        dtype: Its element type.
        kind: linear, convolution, transposed convolution, recurrent, bilinear, filter bank (the
            weight of a product); embedding, table, norm, bias, scale, scalar, statistics, buffer
            (none); or unknown.
        why: What in the file says so.
        parameters: Numbers that it stands for; 0 for statistics and buffers, and where it is stored
            under another name, too.
        bytes: Of memory or disk; 0 where it is stored under another name, too.
        matmul_flops_per_position: 2 × its elements if it is a product's weight, 0 if it is none
            or the same module's under another name, null if that is not known.
        shared_with: The other name.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    why: str
    parameters: int
    bytes: int
    matmul_flops_per_position: int | None
    shared_with: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """A module, or several that are alike but for the numbers in their paths.

    Attributes:
        path: Of the module; the numbers of several in braces, `layers.{0-31}.q_proj`.
        modules: How many they are.
        kind: Of their largest product's weight, else of their largest tensor.
        per: What the FLOPs are done for: row, output position, input position, step, frame; null
            where there is no product.
        shapes: Of one module's tensors of that kind.
        tensors: How many they have together.
        parameters: Numbers that are learned, of all.
        bytes: Of all.
        matmul_flops_per_position: Of all; null where it is not known.
        is_expert: Whether a router chooses among such modules.
    """

    path: str
    modules: int
    kind: str
    per: str | None
    shapes: list[str]
    tensors: int
    parameters: int
    bytes: int
    matmul_flops_per_position: int | None
    is_expert: bool


@dataclass(slots=True)
class Kind:
    """The tensors of one kind.

    Attributes:
        tensors: How many.
        parameters: Numbers that are learned.
        bytes: Of all.
        matmul_flops_per_position: Of all.
    """

    tensors: int = 0
    parameters: int = 0
    bytes: int = 0
    matmul_flops_per_position: int = 0


@dataclass(frozen=True, slots=True)
class Experts:
    """Modules of which a router runs a few at each position.

    Attributes:
        stored: How many a layer has.
        active: How many of them run; null where no configuration says.
        matmul_flops_per_position: Of all that are stored.
        model_flops_per_position_active: Of the whole model, with those that run.
    """

    stored: int
    active: int | None
    matmul_flops_per_position: int
    model_flops_per_position_active: int | None


@dataclass(slots=True)
class Stored:
    """What weights say without code.

    Attributes:
        parameters: Numbers that are learned; statistics and buffers are none.
        bytes: Of all tensors, those that are shared once.
        matmul_flops_per_position: 2 × the elements of every weight that is known to be multiplied.
        by_kind: Sums by kind, products first.
        groups: By module, those folded that repeat.
        unknown: Names of tensors whose use is not known: the FLOPs are without them.
        experts: Where a router chooses among modules.
        notes: What else is to be known, in words.
        tensors: Each one, in the file's order.
        under: Where in the checkpoint they lie.
        configuration: What else lies there that is no tensor: the constructor's arguments, often.
        others: Other models in the file, by where they lie.
    """

    parameters: int
    bytes: int
    matmul_flops_per_position: int
    by_kind: dict[str, Kind]
    groups: list[Group]
    unknown: list[str]
    experts: Experts | None
    notes: list[str]
    tensors: list[Weight]
    under: str | None = None
    configuration: dict[str, Any] = field(default_factory=dict)
    others: dict[str, "Stored"] = field(default_factory=dict)
