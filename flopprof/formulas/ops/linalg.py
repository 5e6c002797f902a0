"""Formulas of Fourier transforms and dense linear algebra: leading terms, as vector FLOPs.

Counts are Golub and Van Loan's (Matrix Computations, 4th ed.): one multiply-add is two FLOPs, on
complex numbers eight.
"""

import re
from functools import partial
from math import log2, prod

from flopprof.dtypes import is_complex
from flopprof.formulas import OpCall, Work
from flopprof.formulas.ops import _elements as el

op_formula = partial(el.formula_for, kind="other")


@op_formula("_fft_{c2c,r2c,c2r} fft_{,i,r,ir}fft{,2,n} fft_{h,ih}fft")
def fft(call: OpCall) -> Work | None:
    """`5·N·log₂ n` for N numbers in transforms of n (Cooley-Tukey); real ones half.

    Scaling by 1/n or 1/√n is left out. Arguments: input, sizes wanted, axes; or input, axes. A real
    input of `fft2` and `fftn` is made complex first.
    """
    composite = "::fft" in call.op
    shape = list(call.shape(0))
    to_real = bool(re.search("irfft|_hfft|c2r", call.op))
    if not call.values or not (composite or call.integers(1)):
        return None
    sizes = _sizes(call, 1) if composite else ()
    axes = _sizes(call, 2 if composite else 1) or range(-len(sizes or shape), 0)
    if to_real:
        shape[axes[-1]] = (not composite and call.integer(3)) or 2 * (shape[axes[-1]] - 1)
    if sizes:
        for axis, size in zip(axes, sizes, strict=True):
            shape[axis] = size if size > 0 else shape[axis]
    real_input = not (is_complex(call.dtype(0)) or re.search("c2[cr]", call.op))
    half = to_real or (real_input and not re.search("_i?fft[2n]", call.op))
    numbers = prod(shape)
    length = prod(shape[axis] for axis in axes)
    if re.search("_rfft|ihfft", call.op) or (call.op == "aten::_fft_r2c" and call.flag(3)):
        shape[axes[-1]] = shape[axes[-1]] // 2 + 1  # the others are these, conjugated
    itemsize = call.itemsize_of(0)
    if real_input:
        itemsize *= 2
    if to_real:
        itemsize //= 2
    flops = round((2.5 if half else 5) * numbers * log2(max(length, 1)))
    return Work(vector_flops=flops, min_bytes=el.moved_bytes(call, 0) + prod(shape) * itemsize)


def _sizes(call: OpCall, index: int) -> tuple[int, ...]:
    sizes = call.integers(index)
    if sizes:
        return sizes
    size = call.integer(index)
    return () if size is None else (size,)


def _thirds(m: int, n: int, a: int, b: int) -> int:
    """Return `(a·M·k² + b·k³)/3` of an m × n matrix, k the lesser, M the greater; LU is 3, −1."""
    k = min(m, n)
    return k * k * (a * max(m, n) + b * k) // 3


def _multiply_adds(call: OpCall) -> int:
    return 4 if is_complex(el.compute_dtype(call)) else 1


def factorisation(call: OpCall, a: int, b: int) -> Work:
    """Return the work of `(a·M·k² + b·k³)/3` for each m × n matrix, k the lesser, M the greater."""
    *batch, m, n = call.shape(0)
    flops = prod(batch) * _thirds(m, n, a, b)
    return el.vector_work(call, flops * _multiply_adds(call), 0, 0)


# Arguments with the n × n matrix and the right-hand sides, FLOPs over n²·k, whether it factorises.
_SOLVERS = {
    "linalg_solve linalg_solve_ex _linalg_solve_ex": (0, 1, 2, True),
    "linalg_solve_triangular": (0, 1, 1, False),
    "triangular_solve": (1, 0, 1, False),
    "linalg_lu_solve linalg_ldl_solve": (0, 2, 2, False),
    "lu_solve cholesky_solve": (1, 0, 2, False),
}


@op_formula(" ".join(_SOLVERS))
def solve(call: OpCall) -> Work:
    """n²·k for each triangle and k right-hand sides; and LU `2n³/3` where it factorises."""
    solver = next(row for names, row in _SOLVERS.items() if call.op[6:] in names.split())
    matrix, sides, triangles, factorises = solver
    a = call.shape(matrix)
    b = call.shape(sides)
    n = a[-1]
    vectors = len(b) == 1 or (factorises and b == a[:-1])
    batch = prod(el.broadcast(a[:-2], b[:-1] if vectors else b[:-2]))
    unknowns = batch * (n if vectors else prod(b[-2:]))
    flops = triangles * n * unknowns
    if factorises:
        flops += prod(a[:-2]) * _thirds(n, n, 3, -1)
    return el.vector_work(call, flops * _multiply_adds(call), matrix, sides, written=unknowns)


@op_formula("linalg_lstsq")
def lstsq(call: OpCall) -> Work:
    """Householder QR `2n²(m − n/3)`, and of each right-hand side Qᵀb `4mn − 2n²` and R⁻¹ n²."""
    *batch, m, n = call.shape(0)
    sides = call.shape(1)[-1] if len(call.shape(1)) > 1 + len(batch) else 1
    flops = _thirds(m, n, 6, -2) + (4 * m * n - n * n) * sides
    return el.vector_work(
        call, prod(batch) * flops * _multiply_adds(call), 0, 1, written=prod(batch) * n * sides
    )


@op_formula("ormqr")
def ormqr(call: OpCall) -> Work:
    """`2nk(2m − k)`: k reflections of an m × n matrix, 4mn each, less as they shrink."""
    reflections = call.shape(1)[-1]
    *batch, rows, columns = call.shape(2)
    flops = 2 * prod(batch) * columns * reflections * (2 * rows - reflections)
    return el.vector_work(call, flops * _multiply_adds(call), 0, 1, 2, 2)
