"""Formulas from elsewhere: the user's files, and what was registered with torch's FLOP counter."""

import ast
import sys
from pathlib import Path
from typing import Any

from flopprof.errors import UsageError
from flopprof.files import real_path
from flopprof.formulas import (
    FREE_OPS,
    OP_FORMULAS,
    Formula,
    OpCall,
    OpFormula,
    Work,
    load_op_formulas,
)
from flopprof.formulas.generated import GENERATED, generated
from flopprof.model.usercode import import_code

_LOADED: set[Path] = set()


def load_formulas(path: str | Path) -> None:
    """Run the user's file at `path`, whose decorators register formulas.

    Raises:
        UsageError: There is no such file.
        ModelError: It raised, or names an op that has a formula.
    """
    load_op_formulas()  # first: theirs may not be ours again
    file = real_path(path)
    if file not in _LOADED:
        if file.suffix != ".py":
            raise UsageError(f"{path} is not a Python file", remedy="give FILE.py to --formulas")
        import_code(str(path))
        _LOADED.add(file)


def loaded_files() -> tuple[str, ...]:
    """Return the files whose formulas are registered, for another process to load."""
    return tuple(sorted(map(str, _LOADED)))


def find_op_formula(op: str) -> Formula | None:
    """Return the formula of `op`, wherever it is from, or None."""
    formula = FREE_OPS.get(op) or OP_FORMULAS.get(op)
    if formula is not None:
        return formula
    if GENERATED.match(op):
        return Formula(op, generated, source="generated")
    function = _torch_formula(op)
    return None if function is None else Formula(op, function, source="torch")


def source_of(op: str) -> str:
    """Return who gives the formula of `op`, as `Formula.source` says it; "none" without one."""
    formula = find_op_formula(op)
    return "none" if formula is None else formula.source


def _torch_formula(op: str) -> OpFormula | None:
    """Return what `torch.utils.flop_counter.register_flop_formula` was given for `op`.

    Only for libraries' own ops: torch's own formulas check ours and supply none. Its one figure
    is taken as matmul FLOPs; of vector FLOPs and bytes it says nothing.
    """
    counter = sys.modules.get("torch.utils.flop_counter")  # else nobody registered anything
    if counter is None or op.startswith("aten::"):
        return None
    for packet, registered in counter.flop_registry.items():
        if getattr(packet, "_qualified_op_name", "") == op:
            return _adapter(packet, registered)
    return None


def _adapter(packet: Any, registered: Any) -> OpFormula:
    def formula(call: OpCall) -> Work | None:
        arguments = [_argument(call, index) for index in range(len(call.shapes))]
        try:
            output = packet(*arguments)  # on the meta device: its shape alone
            return Work(matmul_flops=int(registered(*arguments, out_val=output)))
        except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError):
            return None

    return formula


def _argument(call: OpCall, index: int) -> Any:
    """Return argument `index` as the op would get it, a tensor as one on the meta device."""
    import torch

    if call.has(index):
        dtype = getattr(torch, call.dtype(index), torch.float32)
        return torch.empty(call.shape(index), dtype=dtype, device="meta")
    try:
        return ast.literal_eval(call.value(index) or "None")
    except (ValueError, SyntaxError):
        return call.value(index)
