"""Declare every table's columns, and check frames against them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from flopprof.errors import LoadError

ColumnType = Literal["int", "float", "str", "bool"]

VERDICTS = (
    "free",
    "agrees",
    "formula_only",
    "disagrees",
    "fused",
    "opaque",
    "functional",
    "extension",
    "unknown",
    "hidden",
    "not_run",
)
"""The reconciler's conclusions, in order: a site has the first that applies."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name (with the unit), type and meaning."""

    name: str
    type: ColumnType
    doc: str


@dataclass(frozen=True, slots=True)
class Table:
    """A declared table. `NaN` in a float column means not known; `0` means known to be zero."""

    name: str
    doc: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> list[str]:
        """Return the columns' names in order."""
        return [column.name for column in self.columns]

    def frame(self, data: Mapping[str, Any]) -> pd.DataFrame:
        """Return `data` (column name → values) as a frame of this table, cast and checked."""
        frame = pd.DataFrame(
            {column.name: _cast(data[column.name], column) for column in self.columns}
        )
        return self.check(frame)

    def from_rows(self, rows: list[dict[str, Any]]) -> pd.DataFrame:
        """Return `rows` as a frame of this table; a missing float is NaN, a missing text is ""."""
        blank = {"float": float("nan"), "str": "", "int": -1, "bool": False}
        return self.frame(
            {c.name: [row.get(c.name, blank[c.type]) for row in rows] for c in self.columns}
        )

    def empty(self) -> pd.DataFrame:
        """Return a frame of this table without rows."""
        return self.from_rows([])

    def check(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return `frame` if its columns are this table's, in order and of the right types.

        Raises:
            ValueError: They are not; a stage broke its promise.
        """
        if list(frame.columns) != self.names:
            odd = sorted(set(frame.columns) ^ set(self.names))
            raise ValueError(f"table {self.name}: columns differ or are out of order: {odd}")
        for column in self.columns:
            if not _fits(frame[column.name], column.type):
                found = frame[column.name].dtype
                raise ValueError(f"table {self.name}: {column.name} is {found}, not {column.type}")
        return frame

    def read_csv(self, path: Any) -> pd.DataFrame:
        """Return the frame saved at `path`.

        Raises:
            LoadError: The file is missing or does not hold this table.
        """
        kinds = {"int": "int64", "float": "float64", "str": "str", "bool": "bool"}
        try:
            frame = pd.read_csv(
                path,
                dtype={c.name: kinds[c.type] for c in self.columns},
                keep_default_na=False,
                na_values={c.name: [""] for c in self.columns if c.type == "float"},
            )
            return self.check(frame)
        except (OSError, ValueError) as error:
            raise LoadError(
                f"{path} does not hold the table {self.name!r}: {error}",
                remedy="profile the model again with: flopprof run",
            ) from error


def _cast(values: Any, column: Column) -> pd.Series:
    if isinstance(values, pd.Series) and _fits(values, column.type):
        return values.reset_index(drop=True)
    kinds = {"int": "int64", "float": "float64", "str": "str", "bool": "bool"}
    return pd.Series(values, dtype=kinds[column.type]).reset_index(drop=True)


def _fits(series: pd.Series, kind: ColumnType) -> bool:
    if kind == "str":
        return isinstance(series.dtype, pd.CategoricalDtype | pd.StringDtype) or (
            series.dtype == object
        )
    checks = {
        "int": pd.api.types.is_integer_dtype,
        "float": pd.api.types.is_float_dtype,
        "bool": pd.api.types.is_bool_dtype,
    }
    return bool(checks[kind](series.dtype))


MODULE_CALLS = Table(
    "module_calls",
    "One row per module call seen by a hook; a parent precedes its children.",
    (
        Column("call_id", "int", "Order of entry; the key."),
        Column("parent_call_id", "int", "The module call around this one; -1 for the model's own."),
        Column("module_path", "str", "Dotted name in the model; '' for the model itself."),
        Column("module_type", "str", "Class, as `torch.nn.Conv2d`."),
        Column("input_shapes", "str", "Shapes of the tensors that went in, `1x3x224x224`, …"),
        Column("output_shapes", "str", "Shapes of the tensors that came out."),
        Column("dtype", "str", "Element type of the first floating-point tensor seen."),
        Column("self_hook_matmul_flops", "float", "By the module formula; NaN without one."),
        Column("self_hook_vector_flops", "float", "By the module formula; NaN without one."),
    ),
)

OPS = Table(
    "ops",
    "One row per op call in the trace; a parent precedes its children.",
    (
        Column("op_id", "int", "Position in the trace, by thread and start; the key."),
        Column("external_id", "int", "The profiler's id of the call; -1 where the trace has none."),
        Column("parent_op_id", "int", "The op around this one; -1 for a top-level op."),
        Column("op", "str", "Dispatcher name, `aten::addmm`."),
        Column("kind", "str", "Family of the op's formula, `free` or `unknown`."),
        Column("module_path", "str", "Module whose range is nearest; '' also outside any range."),
        Column("call_id", "int", "Number of that range, by start; -1 outside any."),
        Column("phase", "str", "forward, backward, optimizer."),
        Column("sequence_nr", "int", "Joins a backward op to its forward op; -1 for none."),
        Column("thread", "str", "`pid/tid` of the host thread."),
        Column("start_us", "float", "Start, from the trace's first event."),
        Column("input_shapes", "str", "Shapes of the arguments, `1x3x8x8, 8x3x3x3, 8`."),
        Column("dtype", "str", "Element type the op computes in."),
        Column("cpu_us", "float", "Host time, with what was called below."),
        Column("self_cpu_us", "float", "Host time, without the ops below."),
        Column("device_us", "float", "Compute kernels launched here and below; NaN on a CPU."),
        Column("counted", "bool", "Has a formula or is free, and no op around it is counted."),
        Column("profiler_flops", "float", "By `with_flops`, this call alone; NaN if unknown."),
        Column("matmul_flops", "float", "By the formula; NaN where unknown."),
        Column("vector_flops", "float", "By the formula; NaN where unknown."),
        Column("min_bytes", "float", "Compulsory traffic; NaN where unknown."),
        Column("flops_at_most", "float", "Bound where the formula has no exact count; else NaN."),
    ),
)

GAPS = Table(
    "gaps",
    "One row per stretch of a host thread, inside a module's range, that lies in no op.",
    (
        Column("module_path", "str", "The innermost range around it."),
        Column("call_id", "int", "That range's number."),
        Column("start_us", "float", "Start, from the trace's first event."),
        Column("duration_us", "float", "Length."),
        Column("before_op", "str", "The op that came before it in the thread; '' for none."),
    ),
)

KERNELS = Table(
    "kernels",
    "One row per kernel, copy or memset on the device.",
    (
        Column("kernel_id", "int", "Position in the trace; the key."),
        Column("op_id", "int", "The op that launched it; -1 where there is none."),
        Column("correlation_id", "int", "Joins the launch to the kernel; -1 for none."),
        Column("kernel", "str", "Name."),
        Column("kind", "str", "compute, memcpy, memset, communication."),
        Column("stream", "int", "Stream; -1 where unknown."),
        Column("device_index", "int", "Device the trace names; -1 where unknown."),
        Column("rank", "int", "Rank of the process in a distributed job; 0 where there is one."),
        Column("graph_id", "int", "CUDA or HIP graph that replayed it; -1 for none."),
        Column("start_us", "float", "Start, from the trace's first event."),
        Column("duration_us", "float", "Length."),
    ),
)

ROOFLINES = Table(
    "rooflines",
    "One row per dtype, compute unit and memory level of one device.",
    (
        Column("dtype", "str", "float32, tfloat32, bfloat16, …"),
        Column("unit", "str", "tensor (matmul) or vector."),
        Column("memory_level", "str", "DRAM, HBM, L2, L3."),
        Column("peak_flops_per_s", "float", "Dense compute ceiling; NaN where unknown."),
        Column("peak_bytes_per_s", "float", "Bandwidth ceiling; NaN where unknown."),
        Column("ridge_flops_per_byte", "float", "Intensity where the two meet."),
        Column("kind", "str", "user, measured, datasheet, formula."),
        Column("clock", "str", "The clock the ceiling belongs to; '' where unknown."),
        Column("valid", "bool", "False for a measurement taken on a busy machine."),
        Column("source", "str", "Where the figures come from."),
    ),
)

SITES = Table(
    "sites",
    "One row per op, module path, phase, shapes and dtype: what users read.",
    (
        Column("site_id", "int", "Rank by time; the key."),
        Column("op", "str", "Dispatcher name; `(gap)` or `(kernels)` for hidden time."),
        Column("module_path", "str", "Dotted name in the model; '' for the model itself."),
        Column("module_type", "str", "Class of that module; '' where unknown."),
        Column("phase", "str", "forward, backward, optimizer."),
        Column("input_shapes", "str", "Shapes of the arguments."),
        Column("dtype", "str", "Element type the op computes in."),
        Column("calls", "int", "Calls summed in this row."),
        Column("kind", "str", "Family: convolution, matmul, …, free, unknown."),
        Column("flops", "float", "matmul + vector over all calls; NaN where unknown."),
        Column("matmul_flops", "float", "Multiply-adds of contractions, two FLOPs each."),
        Column("vector_flops", "float", "Everything else."),
        Column("flops_at_most", "float", "`flops` where known, else the bound; NaN if none."),
        Column("hook_flops", "float", "By the module formula, if one op is the whole call."),
        Column("formula_flops", "float", "By the op formula."),
        Column("profiler_flops", "float", "By `with_flops`, summed over the ops below."),
        Column("flops_source", "str", "formula, hook, none: what `flops` was taken from."),
        Column("min_bytes", "float", "Compulsory traffic over all calls."),
        Column("time_us", "float", "Device time on a GPU, else host time; NaN in a pure count."),
        Column("time_share_frac", "float", "Share of all sites' time."),
        Column("achieved_flops_per_s", "float", "flops over time_us."),
        Column("intensity_flops_per_byte", "float", "flops over min_bytes: an upper bound."),
        Column("attainable_flops_per_s", "float", "What the roofline allows at that intensity."),
        Column("efficiency_frac", "float", "Achieved over attainable."),
        Column("bound", "str", "memory, compute, or '' where unknown."),
        Column("verdict", "str", "One of VERDICTS."),
        Column("reason", "str", "The verdict in a sentence with its figures."),
    ),
)

TABLES = {t.name: t for t in (MODULE_CALLS, OPS, GAPS, KERNELS, ROOFLINES, SITES)}
