"""What the reconciler concludes of one op that no module call settles, and why, in words."""

import csv
import math
import re
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import NamedTuple

from flopprof.formulas import COMPILED, GENERATED
from flopprof.tables import AHEAD_OF_TIME, LOSS
from flopprof.units import percent

OWN_NAMESPACES = frozenset(
    "aten prim prims quantized mkldnn onednn inductor c10d _c10d_functional autograd".split()  # noqa: SIM905
)
"""Namespaces of PyTorch's own ops; an op from any other is an `extension`."""

FUSED_OPS = frozenset(
    {
        "aten::_transformer_encoder_layer_fwd",
        "aten::_native_multi_head_attention",
        "aten::_addmm_activation",
        "aten::mkldnn_rnn_layer",
        "aten::_cudnn_rnn",
    }
)
"""Ops that do the work of several: of modules that are then never called, or of several ops."""

# Modules whose inside no hook sees: only they themselves are ever called.
OPAQUE_TYPES = (
    "torch.jit.",
    "torch._dynamo.",
    "torch.export.",
    "torch._export.",
    "torch._inductor.",
)

HOOKED_PHASES = ("forward", "recompute")
FIRST_INPUT_RULE = {"aten::mul", "aten::add"}  # the profiler counts the first input's elements


class OpFacts(NamedTuple):
    """What decides an op's verdict: columns of OPS, and whether profiler and formula differ."""

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


def pair(matmul: float, vector: float) -> str:
    """Return both classes of a count in words."""
    return f"{matmul:.0f} matmul + {vector:.0f} vector FLOPs"


def agree_reason(row: OpFacts) -> str:
    """Return who agrees on this op's count."""
    known = not math.isnan(row.profiler_flops) and row.profiler_flops == row.matmul_flops
    return "hook, formula and profiler agree" if known else "hook and formula agree"


def profiler_reason(row: OpFacts) -> str:
    """Return by how much the profiler's count differs from the formula's, and the likely cause."""
    theirs, ours = row.profiler_flops, row.matmul_flops
    return (
        f"the profiler counts {theirs:.0f} FLOPs, the formula {ours:.0f} matmul FLOPs"
        f"{_apart('profiler', row.op, 'matmul', theirs, ours)}"
    )


def hook_reason(
    module_type: str, hook: tuple[float, float], sums: tuple[float, float], ops: int
) -> str:
    """Return by how much a hook's counts (matmul, vector) differ from its ops', and why likely."""
    index = 0 if hook[0] != sums[0] else 1
    apart = _apart("hook", module_type, ("matmul", "vector")[index], hook[index], sums[index])
    return (
        f"{module_type}: its hook counts {pair(*hook)}, the formulas of its {ops} ops "
        f"{pair(*sums)}{apart}"
    )


def _apart(witness: str, name: str, of_class: str, theirs: float, ours: float) -> str:
    """Return how far apart two counts are, and the first cause of the table that fits."""
    ratio = theirs / ours if ours else math.inf
    much = f" ({percent(abs(ratio - 1))})" if ours else ""
    text = f": {abs(theirs - ours):.0f} {of_class} FLOPs {'more' if ratio > 1 else 'less'}{much}"
    known = (c for c in _causes() if c["witness"] == witness and c["class"] == of_class)
    for cause in known:
        within = float(cause["least_ratio"]) <= ratio <= float(cause["most_ratio"])
        if within and re.search(cause["name"], name):
            return f"{text}; likely: {cause['cause']}"
    return text


@cache
def _causes() -> list[dict[str, str]]:
    with (Path(__file__).parent / "causes.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def judge_alone(
    row: OpFacts, *, hooked: bool, types: dict[str, str], never: Collection[str]
) -> tuple[str, str]:
    """Return verdict and reason of an op that no hook count settles."""
    namespace = row.op.partition("::")[0]
    known = not math.isnan(row.matmul_flops)
    if row.counted and row.kind == "free":
        return "free", "no floating-point work: views, moves, allocates, or counts integers"
    if re.match(GENERATED, row.op):
        how = "; its FLOPs are those of the ops in its name, once per element" if known else ""
        fused = re.sub(GENERATED, "", row.op)
        return "fused", f"torch.compile generated it: {fused} in one kernel{how}"
    if known and (not hooked or row.phase not in HOOKED_PHASES):
        if row.profiler_differs:
            return "disagrees", profiler_reason(row)
        if hooked and row.op.startswith("aten::_fused_"):
            return "fused", "the step of all parameters in one op"
        return "formula_only", (
            "no hooks: the trace was recorded elsewhere" if not hooked else f"{row.phase} work"
        )
    if known and row.profiler_differs:
        return "disagrees", profiler_reason(row)
    if known and row.module_path == LOSS:
        return "formula_only", "the loss, outside the model"
    if known and row.phase == "recompute":
        return "formula_only", "computed again in the backward pass, which ends it early"
    if known and row.op in FUSED_OPS:
        below = f"{row.module_path}." if row.module_path else ""
        count = sum(path.startswith(below) for path in never)
        return "fused", (
            f"hooks never fired for {count} modules below {row.module_path or 'the model'}: "
            f"their work ran inside {row.op}"
            if count
            else f"{row.op} does the work of several ops in one"
        )
    if row.op == AHEAD_OF_TIME:
        return "opaque", "a program that AOTInductor compiled; which FLOPs it does, no op says"
    if row.op == COMPILED:
        return "fused", "code that torch.compile generated; which FLOPs it does, no op says"
    own = namespace in OWN_NAMESPACES and "::" in row.op
    module_type = types.get(row.module_path, "")
    if own and known and module_type.startswith(OPAQUE_TYPES):
        return "opaque", f"inside a {module_type}, which hooks cannot enter"
    if own and known:
        owner = module_type or "the model"
        return "functional", f"called from the forward of {owner}, which has no hook count for it"
    if not own:
        has = "its formula gives the FLOPs" if known else "there is no formula for it"
        if not known and row.kind not in ("unknown", "free"):
            has = "its formula does not know this call"
        if not math.isnan(row.flops_at_most):
            has = "values that are not in the trace decide its FLOPs; bounded by shapes"
        return "extension", f"namespace {namespace!r} is not PyTorch's own; {has}"
    if not math.isnan(row.flops_at_most):
        return "unknown", "values that are not in the trace decide its FLOPs; bounded by shapes"
    if row.kind != "unknown":
        return "unknown", f"the formula of {row.op} needs shapes or values that are not recorded"
    return "unknown", f"no formula for {row.op}; write one with @op_formula"
