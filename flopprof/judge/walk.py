"""The ops that stand for the run: a counted one takes its whole subtree (rule 4)."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from flopprof.formulas import COMPOSITE_OPS, OP_FORMULAS, looks_below
from flopprof.judge.bounds import below_any, net_bounds
from flopprof.tables import codes
from flopprof.totals import computing_in

# The profiler counts the first input's elements.
FIRST_INPUT_RULE = {"aten::mul", "aten::add"}
# Of bias and product: `beta·bias + alpha·(a @ b)`.
_SCALED = {"aten::addmm", "aten::addmv", "aten::addbmm", "aten::baddbmm", "aten::addr"}
TEXTS = ("op", "kind", "module_path", "phase", "input_shapes", "dtype")
_NUMBERS = ("op_id", "call_id", "counted", "matmul_flops", "vector_flops", "min_bytes")
_BOUNDS = ("profiler_flops", "flops_at_most", "matmul_flops_at_least", "vector_flops_at_least")


class OpFacts(NamedTuple):
    """What decides an op's verdict: columns of OPS, and three facts of the tree.

    Attributes:
        profiler_differs: Whether the profiler's count and the formula's differ.
        outer_flops: Of the op around it that is the same work in other shapes; NaN without one.
        scales: Whether it is the factor of an `addmm` that was taken apart, as vmap does; the
            formula of `addmm` has no such product.
    """

    op: str
    kind: str
    phase: str
    module_path: str
    counted: bool
    profiler_differs: bool
    matmul_flops: float
    vector_flops: float
    profiler_flops: float
    flops_at_most: float
    outer_flops: float
    scales: bool


@dataclass(slots=True)
class Walked:
    """The ops that are walked, a column each; a text is a number among its column's `names`."""

    columns: dict[str, np.ndarray]
    names: dict[str, np.ndarray]

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    def __len__(self) -> int:
        return len(self.columns["op"])

    def where(self, rows: np.ndarray) -> "Walked":
        """Return these rows alone."""
        chosen = {name: _chosen(values, rows) for name, values in self.columns.items()}
        return Walked(chosen, self.names)

    def keep(self, rows: np.ndarray) -> None:
        """Let go of all other rows, and of a column before the next one is made."""
        for name, values in self.columns.items():
            self.columns[name] = _chosen(values, rows)

    def texts(self, column: str) -> list[str]:
        """Return a column of texts as texts."""
        return list(self.names[column][self[column]])

    def put(self, column: str, values: np.ndarray, names: np.ndarray) -> None:
        """Set a column of texts: numbers among `names`."""
        self.columns[column] = values.astype(np.int32)
        self.names[column] = names.astype(object)

    def rows_whose(self, column: str, test: Callable[[str], bool]) -> np.ndarray:
        """Return which rows' texts pass the test, called once per distinct text."""
        passed = np.array([test(name) for name in self.names[column]], dtype=bool)
        return np.take(passed, self[column])

    def facts(self, rows: np.ndarray) -> list[OpFacts]:
        """Return what decides the verdicts of these rows."""
        texts = {"op", "kind", "phase", "module_path"}
        columns: list[list[Any]] = []
        for column in OpFacts._fields:
            values = self[column][rows]
            if column in texts:
                values = self.names[column][values]
            columns.append(values.tolist())
        return list(map(OpFacts._make, zip(*columns, strict=True)))


def _chosen(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return these rows of a column; of one that is one value throughout, that again."""
    chosen: np.ndarray
    if values.strides != (0,) or not len(values):
        chosen = values[rows]
        return chosen
    size = int(np.count_nonzero(rows)) if rows.dtype == bool else len(rows)
    return np.broadcast_to(values[0], size)


def _once_if_unknown(values: np.ndarray) -> np.ndarray:
    """Return a column; of one that is NaN throughout, which most bounds are, a single NaN."""
    return np.broadcast_to(math.nan, len(values)) if np.isnan(values).all() else values


def walk_ops(ops: pd.DataFrame) -> tuple[Walked, np.ndarray]:
    """Return the ops that are counted or lie below no counted op (rule 4), and whose each op is.

    Their `profiler_flops` are summed over what is below them, and `profiler_differs` says whether
    profiler and formula differ there: compared op by op, like with like. The profiler's rule for
    `mul` and `add` (elements of the first input) is a known gap and no witness, nor is its count
    of complex products as real ones.
    """
    every = Walked({column: ops[column].to_numpy() for column in _NUMBERS}, {})
    for column in _BOUNDS:
        every.columns[column] = _once_if_unknown(ops[column].to_numpy())
    for column in TEXTS:
        every.columns[column], every.names[column] = codes(ops[column])
    owner = owners(ops)
    rows = np.flatnonzero(owner == np.arange(len(ops), dtype=owner.dtype))
    outer = ops["parent_op_id"].to_numpy()[rows]
    theirs = every["profiler_flops"]
    if not np.isnan(theirs).all():
        parents_of_all = ops["parent_op_id"].tolist()
        theirs, differs = _summed(theirs, _differing(every), parents_of_all)
        every.columns |= {"profiler_flops": theirs, "profiler_differs": differs}
    else:
        every.columns["profiler_differs"] = np.broadcast_to(False, len(ops))
    walked = every.where(rows)
    for column in TEXTS:
        walked.columns[column] = walked[column].astype(np.int32)
    walked.columns["outer_flops"] = _outer_flops(every, rows, outer)
    walked.columns["scales"] = _scaling(every, rows, outer)
    parents = _parents_among(ops, rows)
    # Whether any op is below, and whether those below account for all that the op does.
    walked.columns["calls_others"] = _calling_others(walked, parents)
    walked.columns["passes_on"] = _passing_on(walked, parents)
    walked.columns["settled"] = np.zeros(len(rows), dtype=bool)
    if not np.isnan(walked["flops_at_most"]).all():
        glue = walked.rows_whose("op", _only_calls_others) | ~np.isnan(walked["matmul_flops"])
        of_sparse_operand = walked.rows_whose("op", lambda op: op.startswith("stored::"))
        glue |= walked["passes_on"] | _around(of_sparse_operand, parents)
        by_formula = walked["counted"] & walked.rows_whose("op", OP_FORMULAS.__contains__)
        walked.columns |= net_bounds(walked.columns, parents, glue=glue, by_formula=by_formula)
    return walked, owner


def _differing(ops: Walked) -> np.ndarray:
    """Return of which ops profiler and formula differ, by rules that should be the same."""
    theirs = ops["profiler_flops"]
    ours = ops["matmul_flops"]
    differs: np.ndarray = (theirs != ours) & ~np.isnan(theirs) & ~np.isnan(ours)
    if differs.any():
        differs &= ~ops.rows_whose("op", FIRST_INPUT_RULE.__contains__)
        differs &= ~ops.rows_whose("dtype", lambda name: name.startswith("complex"))
    return differs


def _scaling(ops: Walked, rows: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """Return which counted ops multiply right inside an `addmm` or its like that is not counted."""
    factors = ops["counted"] & ops.rows_whose("op", "aten::mul".__eq__)
    taken_apart = ~ops["counted"] & ops.rows_whose("op", _SCALED.__contains__)
    scales: np.ndarray = factors[rows] & (outer >= 0) & taken_apart[outer]
    return scales


def _around(marked: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """Return which ops have a marked one below them, at any depth."""
    around = np.zeros(len(marked) + 1, dtype=bool)  # the last one is that of parent -1
    for row in range(len(marked) - 1, -1, -1):  # children come behind their parents
        if marked[row] or around[row]:
            around[parents[row]] = True
    return around[:-1]


def _only_calls_others(op: str) -> bool:
    return op in COMPOSITE_OPS or looks_below(op)


def _parents_among(ops: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
    """Return for each of these rows of ops which of them is around it; -1 for none."""
    place = np.full(len(ops) + 1, -1)  # the last one is that of parent -1
    place[rows] = np.arange(len(rows))
    around: np.ndarray = place[ops["parent_op_id"].to_numpy()[rows]]
    return around


def _calling_others(walked: Walked, parents: np.ndarray) -> np.ndarray:
    """Return which ops have ops below them; of those known by these, which have some that work.

    On the meta device some only allocate their result: what they call elsewhere is not there.
    """
    calls_others = np.isin(np.arange(len(walked)), parents)
    looking = walked.rows_whose("op", looks_below) & ~walked["counted"]
    if not looking.any():
        return calls_others
    works = np.where(walked["counted"], ~walked.rows_whose("kind", "free".__eq__), ~calls_others)
    works |= ~np.isnan(walked["flops_at_most"])
    return np.where(looking, _around(works, parents), calls_others)


def _passing_on(walked: Walked, parents: np.ndarray) -> np.ndarray:
    """Return which ops of unknown FLOPs have the same call below them.

    A nested or otherwise subclassed tensor, a mode or another overload called the op again: the
    innermost one says what ran. The same call is one of the same name and of the same shapes, as
    far as the outer one's are recorded; one on a part of the operands is another.
    """
    passes_on = np.zeros(len(walked), dtype=bool)
    unknown = ~walked["counted"] & np.isnan(walked["matmul_flops"])
    asked = unknown & walked["calls_others"]
    if not asked.any():
        return passes_on
    is_looked_for = np.isin(walked["op"], np.unique(walked["op"][unknown])).data
    calls = _Calls(walked)
    below: dict[int, set[int]] = {}  # what is below the ops still to come
    rows = np.flatnonzero(asked | below_any(asked, parents))
    around_of = parents.data
    for row in np.ascontiguousarray(rows[::-1]).data:  # children come behind their parents
        mine = below.pop(row, None)
        call = calls.numbers[row]
        if mine is None:
            if not is_looked_for[row]:
                continue
            mine = set()
        passes_on[row] = unknown[row] and any(calls.is_again(call, inner) for inner in mine)
        if is_looked_for[row]:
            mine.add(call)
        around = around_of[row]
        if around >= 0 and mine:
            others = below.get(around, set())
            fewer, more = sorted((mine, others), key=len)
            more |= fewer  # never the larger into the smaller: deep trees take no square of time
            below[around] = more
    return passes_on


class _Calls:
    """What ops were called with: a number for each, the same for equal ops on equal shapes."""

    def __init__(self, walked: Walked) -> None:
        self._shapes = [Counter(text.split(", ")) for text in walked.names["input_shapes"]]
        numbers = walked["op"].astype(np.int64) * len(self._shapes) + walked["input_shapes"]
        self.numbers = numbers.data
        self._again: dict[tuple[int, int], bool] = {}

    def is_again(self, outer: int, inner: int) -> bool:
        """Return whether `inner` is the same op on the same shapes, as far as `outer` has some."""
        key = (outer, inner)
        if key not in self._again:
            self._again[key] = self._is_again(*key)
        return self._again[key]

    def _is_again(self, outer: int, inner: int) -> bool:
        size = len(self._shapes)
        if outer // size != inner // size:
            return False
        known = Counter({shape: n for shape, n in self._shapes[outer % size].items() if shape})
        return not known - self._shapes[inner % size]


def _outer_flops(ops: Walked, rows: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """Return the FLOPs of the op around each counted one that is its work in other shapes, or NaN.

    They are of one class: matmul where both have some, else vector.

    Args:
        ops: All ops.
        rows: Those asked for.
        outer: The op around each of these; -1 for none.
    """
    flops = np.full(len(rows), math.nan)
    counted = ops["counted"]
    passed = np.flatnonzero((outer >= 0) & counted[rows] & ~counted[outer])
    matmul, around_matmul = (ops["matmul_flops"][at[passed]] for at in (rows, outer))
    vector, around_vector = (ops["vector_flops"][at[passed]] for at in (rows, outer))
    products = (matmul > 0) & (around_matmul > 0)
    others = (matmul == 0) & (around_matmul == 0) & (vector > 0) & (around_vector > 0)
    around = np.select([products, others], [around_matmul, around_vector], math.nan)
    is_same = around == np.where(products, matmul, vector)
    flops[passed] = np.where(is_same, math.nan, around)
    return flops


def _summed(
    flops: np.ndarray, differs: np.ndarray, parents: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return both with what is below each op added; children come behind their parents."""
    sums = flops.tolist()
    any_differs = differs.tolist()
    for op in range(len(parents) - 1, -1, -1):
        parent = parents[op]
        if parent < 0:
            continue
        any_differs[parent] = any_differs[parent] or any_differs[op]
        if math.isnan(sums[op]):
            continue
        if math.isnan(sums[parent]):
            sums[parent] = sums[op]
        else:
            sums[parent] += sums[op]
    return np.array(sums), np.array(any_differs)


def owners(ops: pd.DataFrame) -> np.ndarray:
    """Return, for each op, the counted op around it, which is in no other; else the op itself."""
    parents = ops["parent_op_id"].to_numpy()
    counted = ops["counted"].to_numpy()
    itself = np.arange(len(ops), dtype=parents.dtype)
    up = np.where(counted | (parents < 0), itself, parents)
    further = up[up]
    while not np.array_equal(further, up):
        up = further
        further = up[up]
    return np.where(counted[up], up, itself)


def times_of(
    walked: Walked, ops: pd.DataFrame, kernels: pd.DataFrame, *, timed: bool, on_device: bool
) -> np.ndarray:
    """Return each walked op's time: with its subtree if counted, else its own alone."""
    if not timed:
        return np.full(len(walked), math.nan)
    rows = walked["op_id"]
    if not on_device:
        times = (ops[name].to_numpy()[rows] for name in ("cpu_us", "self_cpu_us"))
        on_host: np.ndarray = np.where(walked["counted"], *times)
        return on_host
    own = np.zeros(int(walked["op_id"].max(initial=-1)) + 1)
    mine = computing_in(kernels, len(own))
    np.add.at(own, kernels["op_id"].to_numpy()[mine], kernels["duration_us"].to_numpy()[mine])
    own = np.take(own, walked["op_id"])
    return np.where(walked["counted"], np.nan_to_num(ops["device_us"].to_numpy()[rows]), own)


def without_kernels(walked: Walked, owner: np.ndarray, kernels: pd.DataFrame) -> np.ndarray:
    """Return which of these ops have FLOPs and, of a run on a device, no kernel that did them.

    They were launched and not run, captured in a graph, or ran on the host; or the trace lacks
    their launches.
    """
    mine = kernels["op_id"].to_numpy()[computing_in(kernels, len(owner))]
    count = np.bincount(owner[mine], minlength=len(owner))
    working = walked["counted"] & (walked["matmul_flops"] + walked["vector_flops"] > 0)
    idle: np.ndarray = working & (count[walked["op_id"]] == 0)
    return idle


def settle_glue(walked: Walked, *, on_device: bool) -> None:
    """Mark as free what only calls other ops, such as einsum: they are walked for themselves.

    An op that has a formula, which does not determine this call, is none without ops below it. One
    whose FLOPs are known and that is walked, yet not counted, is above the ops that ran. So is one
    that was called again below itself, but for kernels of its own.
    """
    glue = walked.rows_whose("op", _only_calls_others)
    glue &= walked["calls_others"] | ~walked.rows_whose("op", OP_FORMULAS.__contains__)
    glue |= walked["settled"] | ~np.isnan(walked["matmul_flops"])
    glue |= walked["passes_on"] & ~(on_device & (walked["time_us"] > 0))
    glue &= ~walked["counted"] & np.isnan(walked["flops_at_most"])
    names = walked.names["kind"]
    kinds = np.where(glue, len(names), walked["kind"])
    walked.put("kind", kinds, np.append(names, "free"))
    walked.columns["counted"] = walked["counted"] | glue
    for column in ("matmul_flops", "vector_flops", "min_bytes"):
        walked.columns[column] = np.where(glue, 0.0, walked[column])
