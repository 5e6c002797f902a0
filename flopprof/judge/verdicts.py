"""What the reconciler can conclude, and what of one op that no module call settles, and why."""

import csv
import math
import re
from collections.abc import Collection
from pathlib import Path

from flopprof.formulas import COMPILED_CODE, GENERATED
from flopprof.judge.reasons import Reason, because, profiler_differs
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

_OF_COMPUTING = ("aten", "prim", "prims", "quantized", "mkldnn", "onednn", "inductor", "torch_nn")
_OF_SENDING = ("c10d", "_c10d_functional", "c10d_functional", "_c10d_functional_autograd")
_OF_TRAINING = ("autograd", "_dtensor", "fsdp", "symm_mem")
_OF_FLOPPROF = ("stored", "onnx")  # our names: work on stored elements alone, nodes of a graph
OWN_NAMESPACES = frozenset((*_OF_COMPUTING, *_OF_SENDING, *_OF_TRAINING, *_OF_FLOPPROF))
"""Namespaces of PyTorch's own ops, and ours; an op from any other is an `extension`."""

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
) -> Reason:
    """Return the conclusion on an op that no hook count settles.

    Args:
        row: The op.
        hooked: Whether the model's modules were watched when it ran.
        types: Module path → type.
        never: Paths of the modules that no hook saw.
    """
    is_counted = not math.isnan(row.matmul_flops)
    if row.counted and row.kind == "free":
        return because("no_arithmetic")
    if re.match(GENERATED, row.op):
        code = "generated_counted" if is_counted else "generated"
        return because(code, ops=re.sub(GENERATED, "", row.op))
    if is_counted and (not hooked or row.phase not in HOOKED_PHASES):
        return _outside_hooks(row, hooked=hooked)
    if is_counted:
        conclusion = _of_counted(row, never)
        if conclusion:
            return conclusion
    if row.op == AHEAD_OF_TIME:
        return because("compiled_ahead")
    if re.match(COMPILED_CODE, row.op):
        return because("compiled_code")
    if "::" not in row.op or _namespace(row.op) not in OWN_NAMESPACES:
        return _of_extension(row)
    if is_counted:
        return _of_forward(types.get(row.module_path, ""))
    return _of_unknown(row)


def _namespace(op: str) -> str:
    return op.partition("::")[0]


def _outside_hooks(row: OpFacts, *, hooked: bool) -> Reason:
    """Judge an op with FLOPs that ran where no hook counts: elsewhere, or in another phase."""
    if row.profiler_differs:
        return profiler_differs(row)
    if not hooked:
        return because("recorded_elsewhere")
    if row.op.startswith("aten::_fused_"):
        return because("optimizer_step")
    return because("other_phase", phase=row.phase)


def _of_counted(row: OpFacts, never: Collection[str]) -> Reason | None:
    """Judge an op with FLOPs that ran under hooks; None where its name and module decide."""
    if row.profiler_differs:
        return profiler_differs(row)
    if row.module_path == LOSS:
        return because("loss")
    if row.phase == "recompute":
        return because("recomputed")
    if row.op not in FUSED_OPS:
        return None
    below = f"{row.module_path}." if row.module_path else ""
    silent = len([path for path in never if path.startswith(below)])
    if not silent:
        return because("several_ops", op=row.op)
    place = row.module_path or "the model"
    return because("silent_modules", modules=silent, place=place, op=row.op)


def _of_forward(module_type: str) -> Reason:
    """Judge an op of PyTorch's with FLOPs that a module's hook count does not contain."""
    if module_type.startswith(OPAQUE_TYPES):
        return because("closed_module", module_type=module_type)
    return because("no_hook_count", owner=module_type or "the model")


def _of_extension(row: OpFacts) -> Reason:
    """Judge an op that is not PyTorch's: whose it is, and what is known of its FLOPs."""
    if not math.isnan(row.flops_at_most):
        code = "foreign_bounded"
    elif not math.isnan(row.matmul_flops):
        code = "foreign_counted"
    elif row.kind in ("unknown", "free"):
        code = "foreign_without_formula"
    else:
        code = "foreign_call_unknown"
    whose = "a function of the model's own: an autograd.Function, a Triton kernel"
    if "::" in row.op:
        whose = f"namespace {_namespace(row.op)!r} is not PyTorch's own"
    return because(code, whose=whose)


def _of_unknown(row: OpFacts) -> Reason:
    """Judge an op of PyTorch's whose FLOPs are not known."""
    if not math.isnan(row.flops_at_most):
        return because("values_decide")
    code = "no_formula" if row.kind == "unknown" else "arguments_missing"
    return because(code, op=row.op)
