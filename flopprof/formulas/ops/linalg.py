"""Formulas of Fourier transforms and dense linear algebra: leading terms, as vector FLOPs.

Counts are Golub and Van Loan's (Matrix Computations, 4th ed.): one multiply-add is two FLOPs, on
complex numbers eight.
"""

from collections.abc import Callable
from math import log2, prod

from flopprof import dtypes
from flopprof.formulas import OpCall, OpFormula, Work
from flopprof.formulas.ops._elements import (
    broadcast,
    compute_dtype,
    formula_for,
    moved_bytes,
)


@formula_for("_fft_c2c _fft_r2c _fft_c2r")
def fft(call: OpCall) -> Work | None:
    """`5·N·log₂ n` for N numbers in transforms of n (Cooley-Tukey); real ones half.

    Scaling by 1/n or 1/√n is left out.
    """
    dims, shape = call.integers(1), list(call.shape(0))
    last = call.integer(3)
    if not dims or (call.op == "aten::_fft_c2r" and last is None):
        return None
    half = not call.op.endswith("c2c")
    if call.op == "aten::_fft_c2r" and last is not None:
        shape[dims[-1]] = last
    length = prod(shape[dim] for dim in dims)
    real = prod(shape) * call.itemsize_of(0) // (2 if half else 1)
    return Work(
        vector_flops=round((2.5 if half else 5) * prod(shape) * log2(length)) if length else 0,
        min_bytes=moved_bytes(call, 0) + real * (2 if call.op.endswith("r2c") else 1),
    )


def _triangle(m: int, n: int, times: int = 1) -> int:
    """Return `k²·(max(m, n) − k/3)`, k = min(m, n): LU of an m × n matrix; 2n³/3 of a square."""
    k = min(m, n)
    return times * k * k * (3 * max(m, n) - k) // 3


def _bidiagonal(m: int, n: int) -> int:
    """Return `14·m·n² + 8·n³` for m ≥ n: singular values with both sets of vectors."""
    m, n = max(m, n), min(m, n)
    return 14 * m * n * n + 8 * n**3


_FACTORISATIONS: dict[str, Callable[[int, int], int]] = {
    "linalg_cholesky linalg_cholesky_ex linalg_ldl_factor linalg_ldl_factor_ex": (
        lambda m, n: m * n * n // 3
    ),
    "linalg_lu_factor linalg_lu_factor_ex linalg_lu _lu_with_info linalg_det _linalg_det det "
    "linalg_slogdet _linalg_slogdet slogdet logdet": _triangle,
    "cholesky_inverse": lambda m, n: 2 * m * n * n // 3,
    "linalg_inv linalg_inv_ex inverse": lambda m, n: 2 * m * n * n,
    "geqrf linalg_householder_product orgqr": lambda m, n: _triangle(m, n, 2),
    "linalg_qr": lambda m, n: _triangle(m, n, 4),  # R, and Q from the reflections
    "linalg_svdvals": lambda m, n: _triangle(m, n, 4),
    "linalg_svd svd _linalg_svd": _bidiagonal,
    "linalg_eigvalsh": lambda m, n: 4 * m * n * n // 3,
    "linalg_eigh _linalg_eigh": lambda m, n: 9 * m * n * n,
    "linalg_eigvals _linalg_eigvals": lambda m, n: 10 * m * n * n,
    "linalg_eig": lambda m, n: 25 * m * n * n,
}


def _factorisation(cost: Callable[[int, int], int]) -> OpFormula:
    def formula(call: OpCall) -> Work:
        *batch, m, n = call.shape(0)
        flops = cost(m, n)
        if call.op == "aten::_linalg_eigh" and call.flag(2) is False:
            flops = 4 * n**3 // 3
        if call.op == "aten::_linalg_svd" and call.flag(2) is False:
            flops = _triangle(m, n, 4)
        return Work(
            vector_flops=prod(batch) * flops * _multiply_adds(call),
            min_bytes=moved_bytes(call, 0, 0),
        )

    return formula


def _multiply_adds(call: OpCall) -> int:
    return 4 if dtypes.is_complex(compute_dtype(call)) else 1


for _names, _cost in _FACTORISATIONS.items():
    formula_for(_names)(_factorisation(_cost))

# Name → (argument with the n × n matrix, with the right-hand sides, FLOPs over n²·k, factorises).
_SOLVERS = {
    "linalg_solve linalg_solve_ex _linalg_solve_ex": (0, 1, 2, True),
    "linalg_solve_triangular": (0, 1, 1, False),
    "triangular_solve": (1, 0, 1, False),
    "linalg_lu_solve linalg_ldl_solve": (0, 2, 2, False),
    "lu_solve cholesky_solve": (1, 0, 2, False),
}


def _solver(matrix: int, sides: int, per_side: int, factorises: bool) -> OpFormula:
    def formula(call: OpCall) -> Work:
        a, b = call.shape(matrix), call.shape(sides)
        n = a[-1]
        vectors = len(b) == 1 or (factorises and b == a[:-1])
        batch = prod(broadcast(a[:-2], b[:-1] if vectors else b[:-2]))
        unknowns = batch * (n if vectors else prod(b[-2:]))
        flops = per_side * n * unknowns + factorises * prod(a[:-2]) * _triangle(n, n)
        return Work(
            vector_flops=flops * _multiply_adds(call),
            min_bytes=moved_bytes(call, matrix, sides) + unknowns * call.itemsize_of(sides),
        )

    return formula


for _names, _parts in _SOLVERS.items():
    formula_for(_names)(_solver(*_parts))


@formula_for("linalg_lstsq")
def lstsq(call: OpCall) -> Work:
    """Householder QR `2n²(m − n/3)`, and of each right-hand side Qᵀb `4mn − 2n²` and R⁻¹ n²."""
    *batch, m, n = call.shape(0)
    sides = call.shape(1)[-1] if len(call.shape(1)) > 1 + len(batch) else 1
    flops = _triangle(m, n, 2) + (4 * m * n - n * n) * sides
    return Work(
        vector_flops=prod(batch) * flops * _multiply_adds(call),
        min_bytes=moved_bytes(call, 0, 1) + prod(batch) * n * sides * call.itemsize_of(0),
    )


@formula_for("ormqr")
def ormqr(call: OpCall) -> Work:
    """`2nk(2m − k)`: k reflections of an m × n matrix, 4mn each, less as they shrink."""
    reflections = call.shape(1)[-1]
    *batch, rows, columns = call.shape(2)
    flops = 2 * prod(batch) * columns * reflections * (2 * rows - reflections)
    return Work(vector_flops=flops * _multiply_adds(call), min_bytes=moved_bytes(call, 0, 1, 2, 2))
