"""What the reconciler can conclude, and what of one op that no module call settles, and why."""

import csv
import math
import re
from collections.abc import Collection
from pathlib import Path

from flopprof.formulas import COMPILED_CODE, GENERATED
from flopprof.judge.reasons import profiler_reason
from flopprof.judge.walk import OpFacts
from flopprof.tables import AHEAD_OF_TIME, LOSS

with Path(__file__).with_name("verdicts.csv").open(encoding="utf-8", newline="") as _file:
    _ROWS = list(csv.DictReader(_file))

VERDICTS = tuple(row["verdict"] for row in _ROWS)
"""The reconciler's conclusions, in order: a site has the first that applies."""

GOOD = frozenset(row["verdict"] for row in _ROWS if row["good"] == "yes")
"""Those that are good news: all that is known of the FLOPs fits together."""

MEANINGS = {row["verdict"]: row["meaning"] for row in _ROWS}
"""Each verdict in a sentence, as README.md has it."""

ADVICE = {row["verdict"]: row["advice"] for row in _ROWS if row["advice"]}
"""What to do about those that are not good news."""

OWN_NAMESPACES = frozenset(
    (
        *("aten", "prim", "prims", "quantized", "mkldnn", "onednn", "inductor", "stored"),
        "torch_nn",
        *("autograd", "c10d", "_c10d_functional", "c10d_functional", "_c10d_functional_autograd"),
        *("_dtensor", "fsdp", "symm_mem"),
    )
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
    if re.match(COMPILED_CODE, row.op):
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
        whose = "a function of the model's own: an autograd.Function, a Triton kernel"
        if "::" in row.op:
            whose = f"namespace {namespace!r} is not PyTorch's own"
        return "extension", f"{whose}; {has}"
    if not math.isnan(row.flops_at_most):
        return "unknown", "values that are not in the trace decide its FLOPs; bounded by shapes"
    if row.kind != "unknown":
        return "unknown", f"the formula of {row.op} needs shapes or values that are not recorded"
    return "unknown", f"no formula for {row.op}; write one with @op_formula"
