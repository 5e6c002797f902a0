"""Declare every table's columns (columns.csv), and check frames against them."""

import csv
import ctypes
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import orjson
import pandas as pd

from flopprof.errors import LoadError
from flopprof.units import safe_text

ColumnType = Literal["int", "float", "str", "bool"]
LARGE_ROWS = 100_000
"""A table of more rows has its integers in 32 bits, where they fit; it is written as Parquet, where
pyarrow is installed: nobody opens it."""

_ROWS_AT_ONCE = 50_000  # of a file that is written: bounds the memory
DTYPES = {"int": "int64", "float": "float64", "str": "str", "bool": "bool"}

LOSS = "(loss)"
"""The module path of a training step's loss, which is outside the model."""

# Ranges that a trace holds where our passes note something.
STOPPED = "flopprof-stopped"
"""Inside an op at which activation checkpointing ended a recomputation."""

CALLED = "flopprof-called"
"""Around the call of an operator of functions, such as torch.cond."""

KEPT = "flopprof-kept"
"""Inside an op whose result a selective checkpoint had kept."""

AHEAD_OF_TIME = "inductor::aot_compiled"
"""The op that is a call of a program by AOTInductor, whose own ops no profiler sees."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name (with the unit), type and meaning."""

    name: str
    type: ColumnType
    doc: str
    optional: bool = False  # runs saved before it was there lack it: blank
    rare: bool = False  # a table has it only where something of it is known

    @property
    def blank(self) -> Any:
        """What stands where nothing is given: a missing float is NaN, a missing text is ""."""
        return {"float": float("nan"), "str": "", "int": -1, "bool": False}[self.type]


@dataclass(frozen=True, slots=True)
class Table:
    """A declared table. `NaN` in a float column means not known; `0` means known to be zero."""

    name: str
    doc: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> list[str]:
        """Return the columns' names in order, without those that few tables have."""
        return [column.name for column in self.columns if not column.rare]

    def frame(self, values_of: Mapping[str, Any]) -> pd.DataFrame:
        """Return values by column name as a frame of this table, cast and checked.

        A column that older runs or most runs lack may be missing; it is blank, or left out.
        """
        size = len(values_of[self.columns[0].name])
        columns = {}
        for column in self.columns:
            if column.name in values_of:
                values = values_of[column.name]
            elif column.rare:
                continue
            elif column.optional:
                values = [column.blank] * size
            else:
                raise KeyError(column.name)
            columns[column.name] = _cast(values, column)
        if size > LARGE_ROWS:
            columns = {name: narrowed(values) for name, values in columns.items()}
        return self.check(pd.DataFrame(columns, copy=False))

    def from_rows(self, rows: list[dict[str, Any]]) -> pd.DataFrame:
        """Return `rows` as a frame of this table; what is missing is blank."""
        values: dict[str, list[Any]] = {}
        for column in self.columns:
            name = column.name
            if not column.rare or any(name in row for row in rows):
                values[name] = [row.get(name, column.blank) for row in rows]
        return self.frame(values)

    def empty(self) -> pd.DataFrame:
        """Return a frame of this table without rows."""
        return _empty(self).copy(deep=False)

    def check(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return `frame` if its columns are this table's, in order and of the right types.

        Raises:
            ValueError: They are not; a stage broke its promise.
        """
        own = self.columns_of(frame)
        if list(frame.columns) != [column.name for column in own]:
            odd = sorted(set(frame.columns) ^ set(self.names))
            raise ValueError(f"table {self.name}: columns differ or are out of order: {odd}")
        for column, dtype in zip(own, frame.dtypes, strict=True):
            if not _fits(dtype, column.type):
                raise ValueError(f"table {self.name}: {column.name} is {dtype}, not {column.type}")
        return frame

    def columns_of(self, frame: pd.DataFrame) -> list[Column]:
        """Return the columns that `frame` must have: a rare one only where it is there."""
        return [c for c in self.columns if not c.rare or c.name in frame.columns]

    def write_csv(self, frame: pd.DataFrame, path: Path) -> None:
        """Write `frame` so that `read_csv` returns it, whatever its texts hold."""
        own = self.columns_of(frame)
        with path.open("wb") as file:
            file.write(",".join(column.name for column in own).encode() + b"\n")
            for first in range(0, len(frame), _ROWS_AT_ONCE):
                rows = frame.iloc[first : first + _ROWS_AT_ONCE]
                fields = (_csv_fields(rows[column.name], column.type) for column in own)
                file.write(b"\n".join(map(b",".join, zip(*fields, strict=True))) + b"\n")

    def write_parquet(self, frame: pd.DataFrame, path: Path) -> None:
        """Write `frame` so that `read_parquet` returns it. Needs pyarrow."""
        import pyarrow
        from pyarrow import parquet

        part = frame.iloc[:_ROWS_AT_ONCE]
        schema = pyarrow.Schema.from_pandas(part, preserve_index=False).remove_metadata()
        with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
            for first in range(0, max(len(frame), 1), _ROWS_AT_ONCE):
                part = frame.iloc[first : first + _ROWS_AT_ONCE]
                table = pyarrow.Table.from_pandas(part, schema=schema, preserve_index=False)
                writer.write_table(table.replace_schema_metadata(None))

    def read_parquet(self, path: Path, names: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the frame saved at `path`, or only its columns `names`.

        Raises:
            LoadError: The file does not hold this table, or there is no pyarrow to read it with.
        """
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise LoadError(
                f"{safe_text(path)} is a Parquet file, and pyarrow is not installed",
                remedy="pip install 'flopprof[parquet]'",
            ) from error
        try:
            table = self if names is None else self.part(names)
            with parquet.ParquetFile(path) as file:
                arrow_table = file.read(columns=None if names is None else table.names)
            whole = [column.name for column in self.columns if column.type != "float"]
            for name in set(whole) & set(arrow_table.column_names):
                if arrow_table.column(name).null_count:
                    raise ValueError(f"{name} lacks values")
            frame = arrow_table.replace_schema_metadata(None).to_pandas(ignore_metadata=True)
            return table.check(frame if names is None else frame[table.names])
        except (OSError, ValueError, OverflowError) as error:  # Arrow's own are of these
            raise LoadError(
                f"{safe_text(path)} does not hold the table {self.name!r}: {safe_text(error)}",
                remedy="profile the model again with: flopprof run",
            ) from error

    def part(self, names: Sequence[str]) -> "Table":
        """Return the table of these columns only, in their order here."""
        chosen = set(names)
        return Table(self.name, self.doc, tuple(c for c in self.columns if c.name in chosen))

    def read_csv(self, path: Any) -> pd.DataFrame:
        """Return the frame saved at `path`.

        Raises:
            LoadError: The file is missing or does not hold this table.
        """
        try:
            frame = pd.read_csv(
                path,
                dtype={c.name: DTYPES[c.type] for c in self.columns},
                keep_default_na=False,
                na_values={c.name: [""] for c in self.columns if c.type == "float"},
                index_col=False,
                on_bad_lines="error",
            )
            own = self.columns_of(frame)
            lacking = {c.name for c in own if c.optional} - {*frame.columns}
            if lacking and {*frame.columns} | lacking == {c.name for c in own}:
                return self.frame(frame)  # saved before these columns were there
            return self.check(frame)
        except (OSError, ValueError, OverflowError) as error:
            raise LoadError(
                f"{safe_text(path)} does not hold the table {self.name!r}: {safe_text(error)}",
                remedy="profile the model again with: flopprof run",
            ) from error


def _csv_fields(column: pd.Series, kind: ColumnType) -> list[bytes]:
    """Return a column's values as CSV fields; NaN is empty."""
    if kind == "str":
        numbers, names = codes(column)
        texts = np.array([_csv_text(str(name)) for name in names], dtype=object)
        return list(texts[numbers])
    values = column.to_numpy()
    if kind == "bool":
        return [b"True" if value else b"False" for value in values.tolist()]
    if kind == "float" and np.isinf(values).any():
        return [b"" if value != value else repr(value).encode() for value in values.tolist()]
    packed = orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)
    fields = packed[1:-1].split(b",")
    if kind == "float":
        return [b"" if field == b"null" else field for field in fields]
    return fields


def _csv_text(text: str) -> bytes:
    if any(mark in text for mark in ',"\r\n'):
        text = '"' + text.replace('"', '""') + '"'
    return text.encode("utf-8", "backslashreplace")  # lone surrogates


def has_parquet() -> bool:
    """Return whether Parquet files can be written and read here."""
    return importlib.util.find_spec("pyarrow") is not None


def is_same(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Return whether two frames hold the same values, texts as codes or written out."""
    return bool(_written_out(one).equals(_written_out(other)))


def _written_out(frame: pd.DataFrame) -> pd.DataFrame:
    coded = frame.select_dtypes("category")
    whole = frame.select_dtypes("int32")
    texts = {str(name): coded[name].astype("str") for name in coded}
    return frame.assign(**texts, **{str(name): whole[name].astype("int64") for name in whole})


def narrowed(values: Any) -> Any:
    """Return integers in 32 bits, if all fit; else, and of other kinds, the values as they are."""
    if not isinstance(values, np.ndarray) or values.dtype.kind != "i" or not len(values):
        return values
    span = np.iinfo(np.int32)
    fits = values.dtype.itemsize <= 4 or (values.min() >= span.min and values.max() <= span.max)
    return values.astype(np.int32, copy=False) if fits else values


def give_back_memory(frame: pd.DataFrame) -> None:
    """Give what is free back to the system, where a table is large.

    C's library keeps what lies between things in use, several times what a stage leaves.
    """
    if len(frame) > LARGE_ROWS and sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        if trim is not None:
            trim(0)


def codes(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return a column of texts as numbers, and the texts that they number.

    The numbers are of few bits, and no arithmetic is safe on them.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.array.codes, column.array.categories.to_numpy(object)
    number, names = pd.factorize(column.to_numpy(object))
    return number, np.asarray(names, dtype=object)


def tuples(frame: pd.DataFrame, names: Iterable[str]) -> Iterator[tuple[Any, ...]]:
    """Return the rows of some columns; pandas takes long over its own texts one by one."""
    lists = []
    for name in names:
        column = frame[name]
        is_text = isinstance(column.dtype, pd.StringDtype)
        lists.append((column.to_numpy(object) if is_text else column).tolist())
    return zip(*lists, strict=True)


def _cast(values: Any, column: Column) -> Any:
    if isinstance(values, np.ndarray) and column.type == "int" and values.dtype == np.int32:
        return values if len(values) > LARGE_ROWS else values.astype(np.int64)
    if isinstance(values, pd.Series):
        values = values.reset_index(drop=True)
        return values if _fits(values.dtype, column.type) else values.astype(DTYPES[column.type])
    if column.type == "str":
        is_coded = isinstance(values, pd.Categorical)  # of a few texts: a code for each row
        return values if is_coded else pd.array(values, dtype="str")
    return np.asarray(values, dtype=DTYPES[column.type])


@cache
def _empty(table: Table) -> pd.DataFrame:
    return table.from_rows([])


def _fits(dtype: Any, kind: ColumnType) -> bool:
    if kind == "str":
        return isinstance(dtype, pd.CategoricalDtype | pd.StringDtype) or dtype.kind == "O"
    kinds = {"int": "iu", "float": "f", "bool": "b"}
    return isinstance(dtype, np.dtype) and dtype.kind in kinds[kind]


def _declared() -> dict[str, Table]:
    """Read columns.csv: a row per column; one without a column says what the table holds."""
    tables: dict[str, Table] = {}
    with Path(__file__).with_name("columns.csv").open(encoding="utf-8", newline="") as file:
        for name, column, kind, meaning in list(csv.reader(file))[1:]:
            before = tables.get(name, Table(name, meaning, ()))
            added = Column(
                name=column,
                type=cast(ColumnType, kind.rstrip("?")),
                doc=meaning,
                optional=kind.endswith("?"),
                rare=kind.endswith("??"),
            )
            columns = (*before.columns, added) if column else before.columns
            tables[name] = Table(name, before.doc, columns)
    return tables


TABLES = _declared()
MODULE_CALLS = TABLES["module_calls"]
OPS = TABLES["ops"]
GAPS = TABLES["gaps"]
KERNELS = TABLES["kernels"]
ROOFLINES = TABLES["rooflines"]
SITES = TABLES["sites"]
LAUNCHES = TABLES["launches"]
OP_SUMS = TABLES["op_sums"]
KERNEL_SUMS = TABLES["kernel_sums"]
COLLECTIVES = TABLES["collectives"]
