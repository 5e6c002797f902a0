"""Formulas of elementwise ops that are not in per_element.csv.

A function of one argument is one FLOP per element, an activation too, whatever its definition
(ARCHITECTURE.md, "Counting rules"); so is a function of two (pow, atan2, …), a maximum, a
comparison. On integers and booleans they are none.
"""

from dataclasses import replace
from functools import partial
from math import prod

from flopprof.dtypes import is_complex
from flopprof.formulas import OpCall, Work
from flopprof.formulas.ops import _elements as el

op_formula = partial(el.formula_for, kind="elementwise")


@op_formula("add~ sub~ subtract~ rsub _add_relu~ addcmul~ addcdiv~")
def add(call: OpCall) -> Work:
    """`a + alpha·b`, `a + value·b·c`, `a + value·b/c`: with a product where alpha or value ≠ 1.

    A relu where it is fused. A complex sum is 2, a product 6, a quotient 11; by a real number 2.
    Without values in the trace alpha is not known: a bound.
    """
    operands = 3 if "addc" in call.op else 2
    complex_numbers = is_complex(el.compute_dtype(call, operands))
    flops = 2 if complex_numbers else 1
    if operands == 3:
        flops += _product_or_quotient(call, complex_numbers)
    if "relu" in call.op:
        flops += 1
    if not call.values:
        scaled = flops + (6 if complex_numbers else 1)
        return el.elementwise(call, flops, operands, at_most=scaled)
    return el.elementwise(call, flops + _scaling(call, operands, complex_numbers), operands)


def _product_or_quotient(call: OpCall, complex_numbers: bool) -> int:
    if not complex_numbers:
        return 1
    return 11 if "div" in call.op else 6


def _scaling(call: OpCall, index: int, complex_numbers: bool) -> int:
    """Return the FLOPs of a product with the factor at `index`: none if it is 1 or left out."""
    if "j" in call.value(index):
        return 6
    if el.number(call, index) in (None, 1):
        return 0
    return 2 if complex_numbers else 1


@op_formula("_foreach_add~ _foreach_sub~ _foreach_addcmul~ _foreach_addcdiv~", looks_below=True)
def foreach_add(call: OpCall) -> Work:
    """As `add` over lists: a product more where any alpha or value differs from 1.

    No trace tells the lists' type: none on integers at least, those of complex numbers at most.
    """
    last = 3 if "addc" in call.op else 2
    flops = 1
    most = 2
    if last == 3:
        flops += _product_or_quotient(call, False)
        most += _product_or_quotient(call, True)
    least = 0
    if not call.values:
        return el.listed(call, least, flops, most + 6, *range(last), 0)
    scales = el.numbers(call, last) or (el.number(call, last),)
    if el.is_given(call, last) and any(scale != 1 for scale in scales):
        flops += 1
        most += 6
    return el.listed(call, least, flops, most, *range(last), 0)


@op_formula("div~ divide~ true_divide~")
def divide(call: OpCall) -> Work:
    """`a/b` in floating point; 11 if complex. Integers asked to round (argument 2) stay integers.

    A trace does not show the text that says how to round, only that an argument is there.
    """
    rounds = len(call.shapes) > 2 and not call.has(2)
    if rounds and call.dtypes and not el.counts(call, 2):
        return el.elementwise(call, 0, 2)
    flops = 11 if is_complex(el.compute_dtype(call, 2)) else 1
    return el.elementwise(call, flops, 2, result="float")


@op_formula("clamp~ clip~")
def clamp(call: OpCall) -> Work:
    """One compare-select for each bound given."""
    if not (call.dtypes or call.values):
        return el.elementwise(call, 1, 3, at_most=2)
    bounds = [index for index in (1, 2) if el.is_given(call, index)]
    return el.elementwise(call, len(bounds), 3)


@op_formula("dropout~ alpha_dropout~ feature_dropout~ feature_alpha_dropout~")
def dropout(call: OpCall) -> Work:
    """In training 2n: mask, scale (of alpha dropout too); in eval and of rate 0 the input itself.

    Rate 1 multiplies by zero. Random numbers: 0.
    """
    training = call.flag(2)
    rate = el.number(call, 1)
    if training is None:
        return el.elementwise(call, 0, at_most=2)
    if not training or rate == 0:
        return Work()
    return el.elementwise(call, 1 if rate == 1 else 2)


@op_formula("native_dropout")
def native_dropout(call: OpCall) -> Work:
    """In training 2n, whatever the rate: mask, scale; in eval a copy."""
    training = call.flag(2)
    at_most = 2 if training is None else None
    return el.elementwise(call, 2 if training else 0, at_most=at_most)


@op_formula("glu")
def glu(call: OpCall) -> Work:
    """`a·σ(b)` of the input's halves: n/2 sigmoids and n/2 products."""
    size = el.elements(call, 0)
    return el.vector_work(call, size, 0, written=size // 2)


@op_formula("outer ger")
def outer(call: OpCall) -> Work:
    """One product for each pair of elements, a complex one 6."""
    size = el.elements(call, 0) * el.elements(call, 1)
    each = 1 if el.counts(call, 2) else 0
    if is_complex(el.compute_dtype(call, 2)):
        each = 6
    return el.vector_work(call, each * size, 0, 1, written=size)


_MANY_POINTS = 25  # beyond them cdist multiplies matrices: ATen/native/Distance.cpp, cdist_impl


@op_formula("cdist _cdist_forward _euclidean_dist pdist _pdist_forward")
def distances(call: OpCall) -> Work | None:
    """Subtract, power, add of each of M coordinates and a root: 3M + 1 for each pair of points.

    Between P and R points there are P·R pairs, among N points N(N − 1)/2. Many Euclidean distances
    are `√max(‖x‖² − 2·x·y + ‖y‖², 0)`: a product over M + 2 columns, as PyTorch appends both norms,
    of squares, their sums and −2·x (3M per x, 2M per y), and two operations on each result.
    """
    *batch, points, width = call.shape(0)
    if "pdist" in call.op:
        pairs = points * (points - 1) // 2
        return el.vector_work(call, pairs * (3 * width + 1), 0, written=pairs)
    *other, others, _ = call.shape(1)
    batches = prod(el.broadcast(tuple(batch), tuple(other)))
    pairs = batches * points * others
    p = el.number(call, 2)
    mode = call.integer(3) or 0
    by_product = p == 2 and (mode == 1 or (mode == 0 and max(points, others) > _MANY_POINTS))
    if call.op == "aten::_euclidean_dist" or by_product:
        vector_flops = batches * (3 * points + 2 * others) * width + 2 * pairs
        work = el.vector_work(call, vector_flops, 0, 1, written=pairs)
        return replace(work, matmul_flops=2 * pairs * (width + 2))
    if p is None:
        return None
    return el.vector_work(call, pairs * (3 * width + 1), 0, 1, written=pairs)


@op_formula("_cdist_backward")
def distances_backward(call: OpCall) -> Work:
    """Subtract, divide by the distance, multiply by the gradient, add: 4M for each pair."""
    flops = 4 * el.elements(call, 0) * call.shape(1)[-1]
    return el.vector_work(call, flops, 0, 1, 2, 4, 1)
