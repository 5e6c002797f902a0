"""Say why a processor executes more or less than was counted, each reason with its evidence."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from flopprof.executed.decode import Operations

EXACT = "exact"
EXPLAINED = "explained"
UNEXPLAINED = "unexplained"
MEASURED = "measured"
UNKNOWN = "unknown"
VERDICTS = (EXACT, EXPLAINED, UNEXPLAINED, MEASURED, UNKNOWN)

_LANES = (4, 8, 16, 32, 64)
# Where convolutions have stride, padding, dilation, groups among their arguments (torch's schemas).
_CONVOLUTIONS = {
    "aten::conv1d": (3, 4, 5, 6),
    "aten::conv2d": (3, 4, 5, 6),
    "aten::conv3d": (3, 4, 5, 6),
    "aten::convolution": (3, 4, 5, 8),
    "aten::_convolution": (3, 4, 5, 8),
    "aten::mkldnn_convolution": (4, 3, 5, 6),
}
_MOST_PARTIAL = 1024  # 16 registers of accumulators, of 64 lanes at most, of a sum of all elements
_ATTENTION = "scaled_dot_product"


@dataclass(frozen=True, slots=True)
class Counted:
    """A call, and what was counted for it.

    Attributes:
        op: Dispatcher name.
        shapes: As `OpCall` has them.
        values: Likewise.
        matmul_flops: None where no formula counts it.
        vector_flops: None likewise.
    """

    op: str
    shapes: tuple[Any, ...]
    values: tuple[str, ...]
    matmul_flops: int | None
    vector_flops: int | None

    @property
    def name(self) -> str:
        """The op's name without namespace, underscores around it and overload."""
        return self.op.rpartition("::")[2].strip("_")

    @property
    def elements(self) -> int:
        """Elements of the largest tensor."""
        return max((math.prod(shape) for shape in _sizes(self.shapes)), default=0)


@dataclass(frozen=True, slots=True)
class Explained:
    """A verdict and its reason.

    Attributes:
        verdict: "exact", "explained", "unexplained", "measured" (nothing to compare with) or
            "unknown" (counting did not finish).
        code: Of explanations.csv.
        reason: In words, with figures.
    """

    verdict: str
    code: str
    reason: str


def explain(counted: Counted, executed: Operations, why_stopped: str = "") -> Explained:
    """Return what to conclude from a call's count and what was executed.

    Products are compared by multiply-adds, ops without products by all FLOPs.
    """
    if why_stopped:
        return _explained(UNKNOWN, "not_finished", why=why_stopped)
    if counted.matmul_flops is None:
        return _explained(MEASURED, "no_formula")
    conclusion = (
        _by_products(counted, executed) if counted.matmul_flops else _by_all(counted, executed)
    )
    if conclusion.verdict == UNEXPLAINED and executed.undecoded:
        return _explained(UNEXPLAINED, "undecoded", undecoded=executed.undecoded)
    return conclusion


def matmul_class(executed: Operations) -> int:
    """Return executed multiply-adds as FLOPs: those of integers where no others are."""
    return executed.fma_flops or executed.int_fma_ops


def _by_products(counted: Counted, operations: Operations) -> Explained:
    expected = counted.matmul_flops or 0
    executed = matmul_class(operations)
    if executed == expected:
        return _explained(EXACT, "exact")
    valid = unpadded_flops(counted)
    if valid is not None and valid < expected:
        if executed == valid:
            return _explained(EXPLAINED, "skipped_padding", valid=valid)
        if sizes := filled_up(sizes_of_loops(counted), valid, executed):
            code = "skipped_padding_and_tail_lanes"
            return _explained(EXPLAINED, code, valid=valid, sizes=sizes)
    if sizes := filled_up(sizes_of_loops(counted), expected, executed):
        return _explained(EXPLAINED, "tail_lanes", sizes=sizes)
    if executed - operations.masked_fma_flops <= expected <= executed:
        return _explained(EXPLAINED, "masked_lanes", masked=operations.masked_fma_flops)
    if not executed and operations.flops >= expected:
        return _explained(EXPLAINED, "apart", flops=operations.flops)
    if _ATTENTION in counted.op:
        exact = [name for name, flops in operations.by_instruction.items() if flops == expected]
        if exact:
            rest = executed - expected
            return _explained(EXPLAINED, "with_softmax", name=exact[0], rest=rest)
    return _explained(UNEXPLAINED, "unexplained")


def _by_all(counted: Counted, operations: Operations) -> Explained:
    expected = counted.vector_flops or 0
    if operations.flops == expected:
        return _explained(EXACT, "exact")
    reasons = _reasons_by_op().get(counted.name, ())
    if operations.flops > expected and counted.elements:
        each = operations.flops / counted.elements
        if "polynomial" in reasons:
            return _explained(EXPLAINED, "polynomial", each=each)
        if sizes := filled_up(sizes_of_loops(counted), expected, operations.flops):
            return _explained(EXPLAINED, "tail_lanes", sizes=sizes)
        if operations.flops - operations.masked_flops <= expected:
            return _explained(EXPLAINED, "masked_lanes", masked=operations.masked_flops)
        if "recomputation" in reasons:
            return _explained(EXPLAINED, "recomputation", each=each)
        if "fused_alpha" in reasons and operations.flops == operations.fma_flops == 2 * expected:
            return _explained(EXPLAINED, "fused_alpha")
        if "partial_sums" in reasons and operations.flops - expected <= _MOST_PARTIAL:
            return _explained(EXPLAINED, "partial_sums", more=operations.flops - expected)
    return _explained(UNEXPLAINED, "unexplained")


def filled_up(sizes: Sequence[int], expected: int, executed: int) -> str:
    """Return the sizes that, filled up to lanes, make `expected` exactly `executed`; "" if none do.

    One size or two: 17 columns in lanes of 4 are 20.
    """
    if executed <= expected or not expected:
        return ""
    filled = [
        (size, up)
        for size in sorted(set(sizes))
        for lanes in _LANES
        if (up := -(-size // lanes) * lanes) > size > 1
    ]
    for many in (1, 2):
        for chosen in combinations(dict.fromkeys(filled), many):
            needed = math.prod(size for size, _ in chosen)
            padded = math.prod(up for _, up in chosen)
            if executed * needed == expected * padded:
                return ", ".join(f"{size} as {up}" for size, up in chosen)
    return ""


def sizes_of_loops(counted: Counted) -> list[int]:
    """Return the sizes over which an op loops, and which it may fill up to whole lanes.

    Of a convolution: batch, channels in a group, those of its output, and the output's axes; of
    other ops all sizes of their tensors.
    """
    shape = _convolution(counted)
    if shape is None:
        return [size for each in _sizes(counted.shapes) for size in each]
    outputs = [len(axis) for axis in shape.inside]
    in_groups = [shape.filters // shape.groups, shape.channels]
    return [shape.batch, shape.filters, *in_groups, *outputs, math.prod(outputs)]


def unpadded_flops(counted: Counted) -> int | None:
    """Return a convolution's products that meet no padding, as FLOPs; None for what is another op.

    Of each axis, for each place of the output: the places of the filter that lie in the input.
    """
    shape = _convolution(counted)
    if shape is None:
        return None
    products = shape.batch * shape.filters * shape.channels
    return 2 * products * math.prod(sum(axis) for axis in shape.inside)


@dataclass(frozen=True, slots=True)
class _Convolution:
    """The sizes of a convolution.

    Attributes:
        batch: Examples.
        filters: Channels of the output.
        channels: Channels of the input that each of them reads.
        groups: Groups.
        inside: Of each axis, for each place of the output: places of the filter in the input.
    """

    batch: int
    filters: int
    channels: int
    groups: int
    inside: tuple[tuple[int, ...], ...]


def _convolution(counted: Counted) -> _Convolution | None:
    """Return the sizes of a convolution; None for another op, and for a transposed one."""
    places = _CONVOLUTIONS.get(counted.op)
    if places is None or len(counted.shapes) < 2 or counted.values[6:7] == ("True",):
        return None
    image, weight = counted.shapes[:2]
    axes = len(weight) - 2
    stride, padding, dilation, groups = (_integers(counted.values, place) for place in places)
    if len(image) != axes + 2 or not (groups and stride and padding and dilation):
        return None
    inside = []
    for axis in range(axes):
        spread = dilation[axis % len(dilation)]
        pad = padding[axis % len(padding)]
        size = image[axis + 2]
        taps = [tap * spread for tap in range(weight[axis + 2])]
        firsts = range(-pad, size + pad - taps[-1], stride[axis % len(stride)])
        inside.append(tuple(sum(0 <= first + tap < size for tap in taps) for first in firsts))
    return _Convolution(image[0], weight[0], weight[1], groups[0], tuple(inside))


def _integers(values: Sequence[str], place: int) -> list[int]:
    """Return the integers of an argument: "[1, 1]" or "1"; none where it has others."""
    text = values[place] if place < len(values) else ""
    parts = text.strip("[]").split(",")
    if all(part.strip().isdigit() for part in parts):
        return [int(part) for part in parts]
    return []


def _sizes(shapes: Sequence[Any]) -> list[tuple[int, ...]]:
    """Return all shapes of tensors, those in lists too."""
    flat: list[tuple[int, ...]] = []
    for shape in shapes:
        if shape and isinstance(shape[0], tuple):
            flat += shape
        elif shape:
            flat.append(tuple(shape))
    return flat


def _explained(verdict: str, code: str, **figures: Any) -> Explained:
    return Explained(verdict, code, _words()[code].format(**figures))


@cache
def _words() -> dict[str, str]:
    with Path(__file__).with_name("explanations.csv").open(encoding="utf-8") as file:
        return {row["code"]: row["words"] for row in csv.DictReader(file)}


@cache
def _reasons_by_op() -> dict[str, tuple[str, ...]]:
    """Return the reasons that an op may have, of op_reasons.csv, by its name."""
    reasons: dict[str, tuple[str, ...]] = {}
    with Path(__file__).with_name("op_reasons.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name in row["ops"].split():
                reasons[name] = (*reasons.get(name, ()), row["code"])
    return reasons
