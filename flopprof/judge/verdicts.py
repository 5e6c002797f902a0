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


_BY_VALUES = "values that are not in the trace decide its FLOPs; bounded by shapes"


def judge_alone(
    row: OpFacts, *, hooked: bool, types: dict[str, str], never: Collection[str]
) -> tuple[str, str]:
    """Return verdict and reason of an op that no hook count settles.

    Args:
        row: The op.
        hooked: Whether the model's modules were watched when it ran.
        types: Module path → type.
        never: Paths of the modules that no hook saw.
    """
    is_counted = not math.isnan(row.matmul_flops)
    if row.counted and row.kind == "free":
        return "free", "no floating-point work: views, moves, allocates, or counts integers"
    if re.match(GENERATED, row.op):
        how = "; its FLOPs are those of the ops in its name, once per element" if is_counted else ""
        fused = re.sub(GENERATED, "", row.op)
        return "fused", f"torch.compile generated it: {fused} in one kernel{how}"
    if is_counted and (not hooked or row.phase not in HOOKED_PHASES):
        return _outside_hooks(row, hooked=hooked)
    if is_counted:
        conclusion = _of_counted(row, never)
        if conclusion:
            return conclusion
    if row.op == AHEAD_OF_TIME:
        return "opaque", "a program that AOTInductor compiled; which FLOPs it does, no op says"
    if re.match(COMPILED_CODE, row.op):
        return "fused", "code that torch.compile generated; which FLOPs it does, no op says"
    if "::" not in row.op or _namespace(row.op) not in OWN_NAMESPACES:
        return "extension", _extension_reason(row)
    if is_counted:
        return _of_forward(types.get(row.module_path, ""))
    return "unknown", _unknown_reason(row)


def _namespace(op: str) -> str:
    return op.partition("::")[0]


def _outside_hooks(row: OpFacts, *, hooked: bool) -> tuple[str, str]:
    """Judge an op with FLOPs that ran where no hook counts: elsewhere, or in another phase."""
    if row.profiler_differs:
        return "disagrees", profiler_reason(row)
    if not hooked:
        return "formula_only", "no hooks: the trace was recorded elsewhere"
    if row.op.startswith("aten::_fused_"):
        return "fused", "the step of all parameters in one op"
    return "formula_only", f"{row.phase} work"


def _of_counted(row: OpFacts, never: Collection[str]) -> tuple[str, str] | None:
    """Judge an op with FLOPs that ran under hooks; None where its name and module decide."""
    if row.profiler_differs:
        return "disagrees", profiler_reason(row)
    if row.module_path == LOSS:
        return "formula_only", "the loss, outside the model"
    if row.phase == "recompute":
        return "formula_only", "computed again in the backward pass, which ends it early"
    if row.op not in FUSED_OPS:
        return None
    below = f"{row.module_path}." if row.module_path else ""
    silent = len([path for path in never if path.startswith(below)])
    if not silent:
        return "fused", f"{row.op} does the work of several ops in one"
    return "fused", (
        f"hooks never fired for {silent} modules below {row.module_path or 'the model'}: "
        f"their work ran inside {row.op}"
    )


def _of_forward(module_type: str) -> tuple[str, str]:
    """Judge an op of PyTorch's with FLOPs that a module's hook count does not contain."""
    if module_type.startswith(OPAQUE_TYPES):
        return "opaque", f"inside a {module_type}, which hooks cannot enter"
    owner = module_type or "the model"
    return "functional", f"called from the forward of {owner}, which has no hook count for it"


def _extension_reason(row: OpFacts) -> str:
    """Return whose op it is that is not PyTorch's, and what is known of its FLOPs."""
    if not math.isnan(row.flops_at_most):
        count = _BY_VALUES
    elif not math.isnan(row.matmul_flops):
        count = "its formula gives the FLOPs"
    elif row.kind in ("unknown", "free"):
        count = "there is no formula for it"
    else:
        count = "its formula does not know this call"
    whose = "a function of the model's own: an autograd.Function, a Triton kernel"
    if "::" in row.op:
        whose = f"namespace {_namespace(row.op)!r} is not PyTorch's own"
    return f"{whose}; {count}"


def _unknown_reason(row: OpFacts) -> str:
    if not math.isnan(row.flops_at_most):
        return _BY_VALUES
    if row.kind != "unknown":
        return f"the formula of {row.op} needs shapes or values that are not recorded"
    return f"no formula for {row.op}; write one with @op_formula"
