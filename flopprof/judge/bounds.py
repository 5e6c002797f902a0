"""Bounds of ops whose FLOPs values decide, so that they add up with the ops below them."""

import math
from dataclasses import dataclass

import numpy as np

BOUNDS = ("matmul_flops_at_least", "vector_flops_at_least", "flops_at_most")


@dataclass(slots=True)
class _Below:
    """What the ops below one op account for."""

    matmul: float = 0.0
    vector: float = 0.0
    at_most: float = 0.0
    has_formula: bool = False  # whether one of them is counted by a formula
    is_known: bool = True  # whether all of them are

    def add(self, other: "_Below") -> None:
        self.matmul += other.matmul
        self.vector += other.vector
        self.at_most += other.at_most
        self.has_formula = self.has_formula or other.has_formula
        self.is_known = self.is_known and other.is_known


def net_bounds(
    columns: dict[str, np.ndarray],
    parents: np.ndarray,
    *,
    glue: np.ndarray,
    by_formula: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return the columns `BOUNDS` without what the ops below account for, and `settled`.

    An op is settled, and needs no bound, where it only calls others, all of them are known, some
    by formulas, and they lie within its bounds. One with work of its own is not: what it calls may
    be a check of its inputs.

    Args:
        columns: Columns of OPS: `counted`, both classes, and `BOUNDS`; a parent comes first.
        parents: The row around each; -1 for none.
        glue: Whether an op only calls others.
        by_formula: Whether an op is counted by a formula.
    """
    size = len(parents)
    counted = columns["counted"]
    matmul = columns["matmul_flops"]
    vector = columns["vector_flops"]
    net = {name: np.array(columns[name]) for name in BOUNDS}
    settled = np.zeros(size, dtype=bool)
    bounded = ~counted & ~np.isnan(net["flops_at_most"])
    below: dict[int, _Below] = {}
    rows = np.flatnonzero(bounded | below_any(bounded, parents))
    for row in rows[::-1].tolist():  # children come behind their parents
        inside = below.pop(row, None) or _Below()
        if counted[row]:
            inside = _Below(
                matmul=float(matmul[row]),
                vector=float(vector[row]),
                at_most=float(matmul[row]) + float(vector[row]),
                has_formula=bool(by_formula[row]),
            )
        elif bounded[row]:
            bounds = (float(net[name][row]) for name in BOUNDS)
            settled[row] = glue[row] and _is_settled(inside, *bounds)
            _take_net(inside, net, row, settled=bool(settled[row]))
        else:
            inside.is_known = inside.is_known and bool(glue[row])
        if parents[row] >= 0:
            below.setdefault(int(parents[row]), _Below()).add(inside)
    return {**net, "settled": settled}


def below_any(marked: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """Return which rows have a marked one above them, at any height; in steps of twice the height.

    Args:
        marked: Whether a row is marked.
        parents: The row around each; -1 for none.
    """
    up = np.append(parents, -1)  # the last is above all
    below = np.append(marked, False)[up]
    while (up >= 0).any():
        below |= below[up]
        up = up[up]
    is_below: np.ndarray = below[:-1]
    return is_below


def _is_settled(inside: _Below, matmul: float, vector: float, at_most: float) -> bool:
    total = inside.matmul + inside.vector
    return inside.has_formula and inside.is_known and matmul + vector <= total <= at_most


def _take_net(inside: _Below, net: dict[str, np.ndarray], row: int, *, settled: bool) -> None:
    """Set a bounded op's net bounds, and add them to what is inside it."""
    if settled:
        for name in BOUNDS:
            net[name][row] = math.nan
        return
    matmul, vector, at_most = (float(net[name][row]) for name in BOUNDS)
    own_bounds = _Below(
        max(matmul - inside.matmul, 0.0),
        max(vector - inside.vector, 0.0),
        max(at_most - inside.at_most, 0.0),
        is_known=False,
    )
    for name, value in zip(
        BOUNDS, (own_bounds.matmul, own_bounds.vector, own_bounds.at_most), strict=True
    ):
        net[name][row] = value
    inside.add(own_bounds)
