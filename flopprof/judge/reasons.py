"""Why a verdict was given: a code of `reason_codes.csv`, and its words with the facts in them."""

import csv
import math
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from flopprof.judge.walk import OpFacts
from flopprof.units import percent


class Reason(NamedTuple):
    """A conclusion on an op or a site, and why.

    Attributes:
        verdict: One of `verdicts.VERDICTS`.
        code: Why, a code of `reason_codes.csv`.
        text: The same in a sentence for people, with its figures.
    """

    verdict: str
    code: str
    text: str


def because(code: str, **facts: object) -> Reason:
    """Return the verdict and the sentence of a code, with `facts` in the places that it names."""
    row = _codes()[code]
    return Reason(row["verdict"], code, row["text"].format(**facts))


def words_of(code: str) -> str:
    """Return what a code without facts says; "" for one that a later version wrote."""
    row = _codes().get(code)
    return row["text"] if row else ""


@cache
def _codes() -> dict[str, dict[str, str]]:
    path = Path(__file__).with_name("reason_codes.csv")
    with path.open(encoding="utf-8", newline="") as file:
        return {row["code"]: row for row in csv.DictReader(file)}


def pair(matmul: float, vector: float) -> str:
    """Return both classes of a count in words."""
    return f"{matmul:.0f} matmul + {vector:.0f} vector FLOPs"


def agreement(row: OpFacts) -> Reason:
    """Return the conclusion on an op on which hook and formula agree."""
    if row.profiler_differs:
        return profiler_differs(row)
    if row.profiler_flops == row.matmul_flops:  # which NaN never is
        return because("all_agree")
    return because("hook_agrees")


def view_reason(row: OpFacts) -> str:
    """Return what this op's shapes are where the op around it has others; "" where none does."""
    if math.isnan(row.outer_flops):
        return ""
    of_class = "matmul" if row.matmul_flops else "vector"
    own = row.matmul_flops or row.vector_flops
    shapes = "shapes of a batch"
    whose = "one example's (torch.func)"
    if own < row.outer_flops:
        shapes = "local shapes of a sharded tensor"
        whose = "the whole tensor's"
    return f"; {shapes}: the op around it has {whose} {row.outer_flops:.0f} {of_class} FLOPs"


def profiler_differs(row: OpFacts) -> Reason:
    """Return by how much the profiler's count differs from the formula's, and the likely cause."""
    theirs = row.profiler_flops
    ours = row.matmul_flops
    apart = _apart("profiler", row.op, "matmul", theirs, ours)
    return because("profiler_differs", theirs=theirs, ours=ours, apart=apart)


def hook_difference(
    module_type: str,
    hook: tuple[float, float],
    sums: tuple[float, float],
    ops: int,
    of_class: str = "",
) -> str:
    """Return by how much a hook's counts (matmul, vector) differ from its ops', and why likely.

    `of_class` is the class to speak of; the first that differs unless given.
    """
    classes = ("matmul", "vector")
    if not of_class:
        of_class = "vector" if hook[0] == sums[0] else "matmul"
    index = classes.index(of_class)
    apart = _apart("hook", module_type, classes[index], hook[index], sums[index])
    return (
        f"{module_type}: its hook counts {pair(*hook)}, the formulas of its {ops} ops "
        f"{pair(*sums)}{apart}"
    )


def _apart(witness: str, name: str, of_class: str, theirs: float, ours: float) -> str:
    """Return how far apart two counts are, and the first cause of the table that fits."""
    ratio = theirs / ours if ours else math.inf
    much = f" ({percent(abs(ratio - 1))})" if ours else ""
    text = f": {abs(theirs - ours):.0f} {of_class} FLOPs {'more' if ratio > 1 else 'less'}{much}"
    for cause in _causes():
        if cause["witness"] != witness or cause["class"] != of_class:
            continue
        within = float(cause["least_ratio"]) <= ratio <= float(cause["most_ratio"])
        if within and re.search(cause["name"], name):
            return f"{text}; likely: {cause['cause']}"
    return text


@cache
def _causes() -> list[dict[str, str]]:
    with (Path(__file__).parent / "causes.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
