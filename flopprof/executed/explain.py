"""Say why a processor executes more or less than was counted, each reason with its evidence."""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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

_LANES = (2, 4, 8, 16, 32, 64)  # 2: of float64 in 128 bits, and pairs of bfloat16
# Where convolutions have stride, padding, dilation, groups among their arguments (torch's schemas);
# -1: they have none, which is 1.
_CONVOLUTIONS = {
    "aten::conv1d": (3, 4, 5, 6),
    "aten::conv2d": (3, 4, 5, 6),
    "aten::conv3d": (3, 4, 5, 6),
    "aten::convolution": (3, 4, 5, 8),
    "aten::_convolution": (3, 4, 5, 8),
    "aten::mkldnn_convolution": (4, 3, 5, 6),
    "mkldnn::_convolution_pointwise": (4, 3, 5, 6),
    "aten::_slow_conv2d_forward": (4, 5, -1, -1),
    "aten::thnn_conv2d": (4, 5, -1, -1),
    "aten::slow_conv3d": (4, 5, -1, -1),
    "aten::slow_conv3d_forward": (4, 5, -1, -1),
    "aten::slow_conv_dilated2d": (4, 5, 6, -1),
    "aten::slow_conv_dilated3d": (4, 5, 6, -1),
}
_MOST_PARTIAL = 1024  # 16 registers of accumulators, of 64 lanes at most, of a sum of all elements
_MOST_ONCE = 8  # a scale that is worked out once: a root, a quotient, and what of Python is seen
_MOST_SCALING = 0.25  # of the products: each block of a result is scaled, and so are operands
_MOST_APART = 2  # for each element of the tensors, past the products and their sums
_PRODUCT = re.compile("v?mul[ps][sdh]")
_SUM = re.compile("v?(add|sub)[ps][sdh]")
_FUSED = re.compile(
    r"vfn?m(add|sub)(132|213|231)[ps][sdh]|vdpbf16ps|evex\.2\.2\.0\.52|tdp.*|vpdp.*"
)
_ROUNDING = re.compile("v?cmp(un)?ordps")  # is it NaN: where a result is rounded to bfloat16
_APPROXIMATION = re.compile("v?(rcp|rsqrt)(14|28)?[ps][sd]")


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
    """Return executed multiply-adds as FLOPs: those of integers where these are more."""
    return max(executed.fma_flops, executed.int_fma_ops)


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
    reasons = _reasons_of(counted)
    if "scaled_result" in reasons and (depth := _one_more(counted, expected, executed)):
        return _explained(EXPLAINED, "scaled_result", depth=depth, more=executed - expected)
    if executed - operations.masked_fma_flops <= expected < executed:
        return _explained(EXPLAINED, "masked_lanes", masked=operations.masked_fma_flops)
    beside = reasons.get("with_functions")
    return (
        (_beside_functions(counted, operations, beside) if beside else None)
        or _apart(counted, operations)
        or _explained(UNEXPLAINED, "unexplained")
    )


def _one_more(counted: Counted, expected: int, executed: int) -> int:
    """Return the depth of a product whose results had one multiply-add more each; 0 for none."""
    depths = {size for shape in _sizes(counted.shapes) for size in shape if size > 1}
    return next((k for k in sorted(depths) if executed * k == expected * (k + 1)), 0)


def _beside_functions(counted: Counted, operations: Operations, most: float) -> Explained | None:
    """Explain an op that does more than its products by the instructions which do those.

    One kind of multiply-add does the products exactly, or with products and sums of their own; else
    what is done beside them is bounded: by the other FLOPs that are counted for it, or by so many
    times them.

    Args:
        counted: The call.
        operations: What it executed.
        most: How many times its other FLOPs an op's functions may take: polynomials have more.
    """
    expected = counted.matmul_flops or 0
    vector = counted.vector_flops or 0
    by_name = operations.by_instruction
    fused = {name: flops for name, flops in by_name.items() if _FUSED.fullmatch(name)}
    pairs = _Pairs(by_name)
    for name, flops in fused.items():
        figures = {"rest": operations.fma_flops - flops, "vector": vector}
        if flops == expected:
            return _explained(EXPLAINED, "with_functions", name=name, **figures)
        if pairs.has(expected - flops):
            both = f"{name}, and {expected - flops:,} FLOPs by products and sums of their own"
            return _explained(EXPLAINED, "with_functions", name=both, **figures)
    names: list[str] = []
    together = 0
    for name, flops in sorted(fused.items(), key=lambda item: -item[1]):
        names.append(name)
        together += flops
        more = together - expected
        if 0 <= more <= most * vector:
            does = " and ".join(names)
            return _explained(EXPLAINED, "among_functions", name=does, more=more, vector=vector)
    missing = expected - max(fused.values(), default=0)
    if 0 < missing <= pairs.flops and operations.flops - expected <= most * vector:
        times = (operations.flops - expected) / vector
        return _explained(EXPLAINED, "among_pairs", missing=missing, times=times, vector=vector)
    return None


def _apart(counted: Counted, operations: Operations) -> Explained | None:
    """Explain products that have, some or all of them, a product and a sum in place of one FMA.

    Exactly as many as are missing; or at least as many, and no more beside them than a few FLOPs
    for each element of the tensors: to scale them, and to join partial sums.
    """
    expected = counted.matmul_flops or 0
    missing = expected - operations.fma_flops
    more = operations.flops - expected
    pairs = _Pairs(operations.by_instruction)
    elements = sum(math.prod(shape) for shape in _sizes(counted.shapes))
    is_exact = pairs.has(missing) and more <= _MOST_SCALING * expected
    if is_exact or (0 < missing <= pairs.flops and 0 <= more <= _MOST_APART * elements):
        return _explained(EXPLAINED, "apart", missing=missing, more=more)
    return None


class _Pairs:
    """Products and sums by instructions of their own, each with one of the other.

    Attributes:
        flops: Of as many pairs as there may be.
    """

    def __init__(self, by_instruction: Mapping[str, int]) -> None:
        products = [flops for name, flops in by_instruction.items() if _PRODUCT.fullmatch(name)]
        sums = [flops for name, flops in by_instruction.items() if _SUM.fullmatch(name)]
        self.flops = 2 * min(sum(products), sum(sums))
        self._exact = {2 * min(product, added) for product in products for added in sums}
        self._exact.add(self.flops)

    def has(self, flops: int) -> bool:
        """Return whether one kind of product with one of sums, or all, are exactly so many."""
        return flops > 0 and flops in self._exact


def _by_all(counted: Counted, operations: Operations) -> Explained:
    expected = counted.vector_flops or 0
    if operations.flops == expected:
        return _explained(EXACT, "exact")
    reasons = _reasons_of(counted)
    more = operations.flops - expected
    if more > 0 and counted.elements:
        each = operations.flops / counted.elements
        if each <= reasons.get("polynomial", 0):
            return _explained(EXPLAINED, "polynomial", each=each)
        if "fused_alpha" in reasons and operations.flops == operations.fma_flops == 2 * expected:
            return _explained(EXPLAINED, "fused_alpha")
        if sizes := filled_up(sizes_of_loops(counted), expected, operations.flops):
            return _explained(EXPLAINED, "tail_lanes", sizes=sizes)
        if operations.flops - operations.masked_flops <= expected:
            return _explained(EXPLAINED, "masked_lanes", masked=operations.masked_flops)
        if each <= reasons.get("approximation", 0) and (name := _approximated(counted, operations)):
            return _explained(EXPLAINED, "approximation", name=name, each=each)
        for code in ("recomputation", "scaled_operands"):
            if each <= reasons.get(code, 0):
                return _explained(EXPLAINED, code, each=each)
        if "partial_sums" in reasons and more <= _MOST_PARTIAL:
            return _explained(EXPLAINED, "partial_sums", more=more)
        if more <= _MOST_ONCE:
            return _explained(EXPLAINED, "once", more=more)
        return _rounded(counted, operations)
    return _explained(UNEXPLAINED, "unexplained")


def _rounded(counted: Counted, operations: Operations) -> Explained:
    """Explain what is left where comparisons for NaN, before results are rounded, are taken off."""
    by_name = operations.by_instruction
    comparisons = sum(flops for name, flops in by_name.items() if _ROUNDING.fullmatch(name))
    if not comparisons:
        return _explained(UNEXPLAINED, "unexplained")
    arithmetic = {name: flops for name, flops in by_name.items() if not _ROUNDING.fullmatch(name)}
    flops = operations.flops - comparisons
    rest = _by_all(counted, replace(operations, flops=flops, by_instruction=arithmetic))
    if rest.verdict == UNEXPLAINED:
        return rest
    words = rest.reason or "for the rest it is exact"
    return _explained(EXPLAINED, "rounded", comparisons=comparisons, rest=words)


def _approximated(counted: Counted, operations: Operations) -> str:
    """Return the instruction that approximates a root or quotient of each element; "" for none."""
    for name, flops in operations.by_instruction.items():
        if _APPROXIMATION.fullmatch(name) and flops == counted.elements:
            return name
    return ""


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
    stride, padding, dilation, groups = (
        [1] if place < 0 else _integers(counted.values, place) for place in places
    )
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


def _reasons_of(counted: Counted) -> dict[str, float]:
    """Return the reasons that an op may have, and how much each may account for.

    That is FLOPs per element; of `with_functions`, times its counted vector FLOPs.
    """
    return _reasons_by_op().get(counted.name, {})


@cache
def _reasons_by_op() -> dict[str, dict[str, float]]:
    """Return the rows of op_reasons.csv by names of ops."""
    reasons: dict[str, dict[str, float]] = {}
    with Path(__file__).with_name("op_reasons.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name in row["ops"].split():
                reasons.setdefault(name, {})[row["code"]] = float(row["most"] or "nan")
    return reasons
