"""What one CPU thread executed, op by op: as text, and as one JSON object."""

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flopprof._version import __version__
from flopprof.report.text import aligned
from flopprof.run import SCHEMA_VERSION, to_json
from flopprof.units import clean_text, shorten, text_width

if TYPE_CHECKING:
    from flopprof.stepped import SteppedOp

_HEADER = ["op", "shapes", "dtype", "counted", "multiply-adds", "all", "ratio", "verdict"]
_NUMERIC = frozenset(_HEADER[3:7])


def stepped_text(rows: "Sequence[SteppedOp]") -> str:
    """Return a table of stepped ops for a terminal, each followed by why it differs."""
    table = [_HEADER, *(_cells(row) for row in rows)]
    lines = aligned(table, right=_NUMERIC)
    for row in rows:
        for note in _notes(row):
            text = clean_text(f"{row.op} {row.shapes}: {note}")
            lines += textwrap.wrap(text, text_width(), subsequent_indent="    ")
    return "\n".join(lines)


def _cells(row: "SteppedOp") -> list[str]:
    executed = row.executed
    return [
        shorten(clean_text(row.op), 50),
        shorten(row.shapes, 50),
        row.dtype or "–",
        _count(row.counted_matmul_flops or row.counted_vector_flops),
        _count(None if executed is None else executed.fma_flops or executed.int_fma_ops),
        _count(None if executed is None else executed.flops),
        "–" if math.isnan(row.ratio) else f"{row.ratio:.4g}",
        row.conclusion.verdict,
    ]


def _notes(row: "SteppedOp") -> list[str]:
    """Return what is to be said of a row: its reason, and what of its figures is not sure."""
    notes = [row.conclusion.reason] if row.conclusion.reason else []
    if row.executed is not None and row.executed.undecoded and row.conclusion.code != "undecoded":
        notes.append(f"{row.executed.undecoded:,} instructions are not decoded: at least so much")
    if (
        row.executed is not None
        and row.executed.masked_flops
        and row.conclusion.code != "masked_lanes"
    ):
        notes.append(f"{row.executed.masked_flops:,} FLOPs have a mask: at most so much")
    return notes


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def stepped_object(rows: "Sequence[SteppedOp]") -> dict[str, Any]:
    """Return what `--json` prints of stepped ops: unknown is null, counts are integers."""
    return {
        "schema_version": SCHEMA_VERSION,
        "flopprof": __version__,
        "ops": [stepped_op(row) for row in rows],
    }


def stepped_op(row: "SteppedOp") -> dict[str, Any]:
    """Return a stepped op as JSON has it."""
    executed = row.executed
    values = {
        "op": row.op,
        "shapes": row.shapes,
        "dtype": row.dtype or None,
        "module_path": row.module_path,
        "calls": row.calls,
        "counted_matmul_flops": row.counted_matmul_flops,
        "counted_vector_flops": row.counted_vector_flops,
        "executed_fma_flops": executed and executed.fma_flops,
        "executed_flops": executed and executed.flops,
        "executed_int_ops": executed and executed.int_ops,
        "executed_int_fma_ops": executed and executed.int_fma_ops,
        "masked_flops": executed and executed.masked_flops,
        "undecoded_instructions": executed and executed.undecoded,
        "undecoded_by_name": executed and executed.undecoded_by_name,
        "instructions": executed and executed.instructions,
        "by_instruction": executed and executed.by_instruction,
        "ratio": row.ratio,
        "verdict": row.conclusion.verdict,
        "reason_code": row.conclusion.code,
        "reason": row.conclusion.reason or None,
    }
    cleaned: dict[str, Any] = to_json(values)
    return cleaned
