"""What one CPU thread executed, op by op: as text, and as one JSON object."""

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from flopprof._version import __version__
from flopprof.executed.explain import VERDICTS
from flopprof.jobfacts import Part
from flopprof.provenance import plain
from flopprof.report.answer import Count, Whole, json_object
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
    conclusion = row.conclusion
    executed = row.executed
    notes = [conclusion.reason] if conclusion.reason else []
    if executed is None:
        return notes
    if executed.undecoded and conclusion.code != "undecoded":
        notes.append(f"{executed.undecoded:,} instructions are not decoded: at least so much")
    if executed.masked_flops and conclusion.code != "masked_lanes":
        notes.append(f"{executed.masked_flops:,} FLOPs have a mask: at most so much")
    return notes


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


class SteppedCall(Part, frozen=True, kw_only=True):
    """What one thread of a CPU executed in an op, beside its count. What is not known is null.

    Attributes:
        op: Dispatcher name.
        shapes: Of its arguments: `16x16, 16x16`.
        dtype: Element type of the first tensor; null without one.
        module_path: In a model: the module that calls it first; "" for the model itself, or none.
        phase: In a training step: forward, backward or optimizer, where it is called first.
        calls: In a model: how many calls are like this one.
        counted_matmul_flops: By its formula; null without one.
        counted_vector_flops: Likewise.
        executed_fma_flops: FLOPs of fused multiply-adds and dot products.
        executed_flops: All FLOPs.
        executed_int_ops: Operations on vectors of integers.
        executed_int_fma_ops: Those of them that are products with their sums.
        masked_flops: Those of executed_flops whose lanes a mask may have switched off.
        undecoded_instructions: Instructions whose work is not known: the figures are lower bounds
            where there are any.
        undecoded_by_name: These by mnemonic, or by their bytes.
        instructions: All instructions.
        by_instruction: FLOPs and operations on integers by mnemonic.
        ratio: Executed over counted: of multiply-adds where there are products, else of all FLOPs.
        verdict: exact, explained, unexplained, measured (no formula), or unknown (not finished).
        reason_code: Why, for scripts: a code of `executed/explanations.csv`.
        reason: Why, with figures; null where there is nothing to say.
    """

    op: str
    shapes: str
    dtype: str | None
    module_path: str
    phase: str
    calls: Annotated[int, Meta(ge=1)]
    counted_matmul_flops: Whole | None
    counted_vector_flops: Whole | None
    executed_fma_flops: Whole | None
    executed_flops: Whole | None
    executed_int_ops: Whole | None
    executed_int_fma_ops: Whole | None
    masked_flops: Whole | None
    undecoded_instructions: Whole | None
    undecoded_by_name: dict[str, Whole] | None
    instructions: Whole | None
    by_instruction: dict[str, Whole] | None
    ratio: Count
    verdict: Annotated[str, Meta(extra_json_schema={"enum": list(VERDICTS)})]
    reason_code: str
    reason: str | None


@json_object
class SteppedAnswer(Part, frozen=True, kw_only=True):
    """What `verify --device cpu` prints of ops, or of a model without `-o`.

    Attributes:
        schema_version: Version of this object.
        flopprof: Version of flopprof.
        ops: The ops in the order in which they were named, or first called.
    """

    schema_version: Annotated[int, Meta(extra_json_schema={"const": SCHEMA_VERSION})]
    flopprof: str
    ops: tuple[SteppedCall, ...]


def stepped_object(rows: "Sequence[SteppedOp]") -> dict[str, Any]:
    """Return what `--json` prints of stepped ops: unknown is null, counts are integers."""
    ops = tuple(stepped_call(row) for row in rows)
    answer = SteppedAnswer(schema_version=SCHEMA_VERSION, flopprof=__version__, ops=ops)
    cleaned: dict[str, Any] = to_json(plain(answer))
    return cleaned


def stepped_call(row: "SteppedOp") -> SteppedCall:
    """Return a stepped op as JSON has it."""
    return SteppedCall(
        op=row.op,
        shapes=row.shapes,
        dtype=row.dtype or None,
        module_path=row.module_path,
        phase=row.phase,
        calls=row.calls,
        counted_matmul_flops=row.counted_matmul_flops,
        counted_vector_flops=row.counted_vector_flops,
        executed_fma_flops=_figure(row, "fma_flops"),
        executed_flops=_figure(row, "flops"),
        executed_int_ops=_figure(row, "int_ops"),
        executed_int_fma_ops=_figure(row, "int_fma_ops"),
        masked_flops=_figure(row, "masked_flops"),
        undecoded_instructions=_figure(row, "undecoded"),
        undecoded_by_name=_figure(row, "undecoded_by_name"),
        instructions=_figure(row, "instructions"),
        by_instruction=_figure(row, "by_instruction"),
        ratio=row.ratio,
        verdict=row.conclusion.verdict,
        reason_code=row.conclusion.code,
        reason=row.conclusion.reason or None,
    )


def _figure(row: "SteppedOp", name: str) -> Any:
    return None if row.executed is None else getattr(row.executed, name)
