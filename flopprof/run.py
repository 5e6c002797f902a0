"""Hold one profiling result and its provenance; save it, load it, add it up."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

import pandas as pd

from flopprof import tables
from flopprof.errors import LoadError, UsageError
from flopprof.files import write_atomically, writing
from flopprof.metafile import encode
from flopprof.provenance import AnyProvenance, TraceProvenance
from flopprof.saved import NAMES, RARE, SUMS, SavedTables, read_provenance, regular_file
from flopprof.totals import (
    Measured,
    Totals,
    add_up,
    add_up_measured,
    kernel_sums,
    op_sums,
    sums_by_module,
    sums_by_op,
    sums_by_phase,
)
from flopprof.units import safe_text

if TYPE_CHECKING:
    from flopprof.report.figures import Figures
    from flopprof.report.misses import Missed

SCHEMA_VERSION = 1
"""Version of every JSON object printed; see CHANGELOG.md."""

MAY_BE_LARGE = ("ops", "kernels")
"""Tables with a row per op or kernel: of a large run they are read when they are asked for."""

T = TypeVar("T")

_COUNTED = ("matmul_flops", "vector_flops")


class MoreTables(TypedDict, total=False):
    """Tables that few runs have.

    Attributes:
        launches: Table LAUNCHES, where counters were joined.
        collectives: Table COLLECTIVES, where CPUs sent to each other.
        op_sums: Table OP_SUMS of a job of several ranks; else it follows from `ops`.
        kernel_sums: Table KERNEL_SUMS of such a job; else it follows from `kernels`.
    """

    launches: pd.DataFrame
    collectives: pd.DataFrame
    op_sums: pd.DataFrame
    kernel_sums: pd.DataFrame


class Run:
    """One profiling result: tables (pandas DataFrames, see `flopprof.tables`) and provenance.

    The tables are `module_calls`, `ops`, `kernels`, `rooflines` and `sites`. Of a saved run, those
    that may be large (`MAY_BE_LARGE`) are read when they are first asked for.

    Attributes:
        provenance: What the run says of itself; its type says what kind of run this is.
    """

    def __init__(
        self,
        *,
        module_calls: pd.DataFrame,
        ops: "pd.DataFrame | Callable[[], pd.DataFrame]",
        kernels: "pd.DataFrame | Callable[[], pd.DataFrame]",
        rooflines: pd.DataFrame,
        sites: pd.DataFrame,
        provenance: AnyProvenance,
        trace: "bytes | Path | None" = None,
        **more: Unpack[MoreTables],
    ) -> None:
        """Hold the tables; `ops` and `kernels` may be functions that read them.

        Args:
            module_calls: Table MODULE_CALLS.
            ops: Table OPS.
            kernels: Table KERNELS.
            rooflines: Table ROOFLINES.
            sites: Table SITES.
            provenance: What the run says of itself.
            trace: The recorded Chrome trace, gzipped, or the file that holds it.
            more: Tables that few runs have.
        """
        self._tables: dict[str, Any] = {
            "module_calls": module_calls,
            "ops": ops,
            "kernels": kernels,
            "rooflines": rooflines,
            "sites": sites,
            "launches": tables.LAUNCHES.empty(),
            "collectives": tables.COLLECTIVES.empty(),
            **more,
        }
        self._derived: dict[str, Any] = {}  # what follows from the above, once it was asked for
        self._trace = trace
        self.provenance = provenance

    @property
    def module_calls(self) -> pd.DataFrame:
        """What the hooks counted: a row per module call."""
        return self._table("module_calls")

    @property
    def ops(self) -> pd.DataFrame:
        """The traced ops: a row per call."""
        return self._table("ops")

    @property
    def kernels(self) -> pd.DataFrame:
        """The kernels, copies and memsets of a device."""
        return self._table("kernels")

    @property
    def rooflines(self) -> pd.DataFrame:
        """The device's ceilings: a row per dtype, unit and memory level."""
        return self._table("rooflines")

    @property
    def sites(self) -> pd.DataFrame:
        """The result: a row per op, module, phase, shapes and dtype, with its verdict."""
        return self._table("sites")

    @property
    def launches(self) -> pd.DataFrame:
        """What hardware's counters say of each launch; empty where none were joined."""
        return self._table("launches")

    @property
    def collectives(self) -> pd.DataFrame:
        """The collectives that ran on CPUs; empty where none did. Those of GPUs are kernels."""
        return self._table("collectives")

    @property
    def op_sums(self) -> pd.DataFrame:
        """What the ops add up to: a row per op's name. Of a job, whose `ops` are empty, as well."""
        if "op_sums" in self._tables:
            return self._table("op_sums")
        return self._once("op_sums", lambda: op_sums(self.ops, on_device=self.has_kernels))

    @property
    def kernel_sums(self) -> pd.DataFrame:
        """What the kernels add up to: a row per site, kernel and kind; of a job as well."""
        if "kernel_sums" in self._tables:
            return self._table("kernel_sums")
        site_of = self.ops["site_id"]
        return self._once("kernel_sums", lambda: kernel_sums(self.kernels, site_of.to_numpy()))

    @property
    def has_kernels(self) -> bool:
        """Whether anything ran on a device: times are that device's."""
        if isinstance(self.provenance, TraceProvenance):
            return self.provenance.has_kernels
        return len(self.kernels) > 0

    @property
    def measured(self) -> "Measured | None":
        """What counters measured of what nobody counts; None where none were joined."""
        return None if self.provenance.executed is None else add_up_measured(self.sites)

    def _once(self, name: str, make: Callable[[], T]) -> T:
        """Return what `make` makes, which is made once: a run does not change."""
        if name not in self._derived:
            self._derived[name] = make()
        derived: T = self._derived[name]
        return derived

    def _table(self, name: str) -> pd.DataFrame:
        table = self._tables[name]
        if callable(table):
            table = table()
            self._tables[name] = table
        return table

    @property
    def trace(self) -> bytes | None:
        """The recorded Chrome trace, gzipped; None where there is none."""
        return self._trace.read_bytes() if isinstance(self._trace, Path) else self._trace

    def replaced(self, **changes: Any) -> "Run":
        """Return this run with other tables, provenance or trace."""
        parts = {**self._tables, "provenance": self.provenance, "trace": self._trace, **changes}
        return Run(**parts)

    @property
    def totals(self) -> Totals:
        """Sums over the sites, and the median wall time."""
        return self._once("totals", lambda: add_up(self.sites, self.provenance.wall_us))

    @property
    def misses(self) -> "list[Missed]":
        """What hooks or formulas missed, by verdict: time, bound, reasons, most time first."""
        from flopprof.report.misses import missed  # a convenience: report sees run, not vice versa

        return list(self._once("misses", lambda: missed(self)))

    @property
    def figures(self) -> "Figures":
        """The figures that people decide by: throughput, utilisation, what holds the time."""
        from flopprof.report.figures import figures  # as above

        return self._once("figures", lambda: figures(self))

    @property
    def unknown_ops(self) -> list[str]:
        """Names of the ops, gaps and kernels of which some FLOPs are unknown, most time first."""
        return [str(op) for op in self.sites.loc[self.sites["flops"].isna(), "op"].unique()]

    @property
    def uncalled_modules(self) -> list[str]:
        """Paths of the modules that the call did not reach; empty where no hook watched."""
        return list(self.provenance.source.never_called)

    @property
    def recorded_elsewhere(self) -> bool:
        """Whether this is of traces that others recorded: no hook saw the model."""
        return isinstance(self.provenance, TraceProvenance)

    def equals(self, other: "Run") -> bool:
        """Return whether the other run has the same tables, provenance and trace."""
        names = (*NAMES, *RARE, *SUMS)
        pairs = ((getattr(self, name), getattr(other, name)) for name in names)
        same_tables = all(tables.is_same(mine, theirs) for mine, theirs in pairs)
        same_words = encode(self.provenance) == encode(other.provenance)
        return same_tables and same_words and self.trace == other.trace

    def by_module(self) -> pd.DataFrame:
        """Return FLOPs and time per module, its own (`self_…`) and with all modules inside it.

        `unknown_sites` counts what inside a module has no known FLOPs and is left out of the sums.
        """
        return sums_by_module(self.sites, self.module_calls)

    def by_op(self) -> pd.DataFrame:
        """Return calls and FLOPs per op name, most FLOPs first; NaN where unknown."""
        return sums_by_op(self.sites)

    def by_phase(self) -> pd.DataFrame:
        """Return FLOPs and time per phase, of `PHASES` those that there are.

        `unknown_sites` counts the sites that have no known FLOPs and are left out of the sums.
        """
        return sums_by_phase(self.sites)

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the run to the folder `path` and return it; a run already there is replaced.

        Raises:
            UsageError: `path` cannot be written, or holds something else and `force` is not set.
        """
        with writing(path, force=force) as folder:
            self.write(folder)
        return Path(path)

    def write(self, folder: Path) -> None:
        """Write tables, metadata and trace into an existing folder."""
        for name in NAMES:
            frame: pd.DataFrame = getattr(self, name)
            is_large = name in MAY_BE_LARGE and len(frame) > tables.LARGE_ROWS
            if is_large and tables.has_parquet():
                tables.TABLES[name].write_parquet(frame, folder / f"{name}.parquet")
            else:
                tables.TABLES[name].write_csv(frame, folder / f"{name}.csv")
        for name in RARE:
            if len(self._table(name)):
                tables.TABLES[name].write_csv(self._table(name), folder / f"{name}.csv")
        for name in SUMS:
            if name in self._tables:
                tables.TABLES[name].write_csv(self._table(name), folder / f"{name}.csv")
        if self.trace is not None:
            (folder / "trace.json.gz").write_bytes(self.trace)
        (folder / "meta.json").write_bytes(encode(self.provenance))

    @classmethod
    def load(cls, path: str | Path) -> "Run":
        """Return the run saved in the folder `path`.

        Raises:
            UsageError: There is no such folder.
            LoadError: The folder holds no run, a damaged one, or one of a newer flopprof.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise UsageError(
                f"there is no folder {folder}",
                remedy="flopprof run MODEL writes one: MODEL.flopprof",
            )
        provenance = read_provenance(folder)
        saved = SavedTables(folder)
        parts: dict[str, Any] = {}
        for name in NAMES:
            large = name in MAY_BE_LARGE and saved.is_large(name)
            parts[name] = partial(saved.read, name) if large else saved.read(name)
        for name in (*RARE, *SUMS):
            if regular_file(folder / f"{name}.csv").exists():
                parts[name] = saved.read(name)
        trace = regular_file(folder / "trace.json.gz")
        parts["trace"] = trace if trace.exists() else None
        run = cls(**parts, provenance=provenance)
        saved_totals = provenance.totals
        if saved_totals and any(
            getattr(saved_totals, name) != getattr(run.totals, name) for name in _COUNTED
        ):
            fact = "its sites.csv adds up to other FLOPs than its meta.json"
            raise LoadError(
                f"{safe_text(folder)} is damaged: {fact}",
                remedy="profile the model again with: flopprof run",
            )
        return run

    def report(self, form: str = "text") -> str:
        """Return the run as a report in a format of text: "text", "md", "html", "csv", "json".

        Raises:
            UsageError: There is no such format, or it is no text: `save_report` writes that.
        """
        from flopprof.report import write_report  # a convenience: report sees run, not vice versa

        content = write_report(self, form)
        if isinstance(content, bytes):
            fact = f"a report in {form} is no text"
            raise UsageError(fact, remedy=f"write it to a file: -o report.{form}, save_report(…)")
        return content

    def save_report(self, path: str | Path, form: str = "") -> Path:
        """Write a report to a file, in one step, and return its path.

        Args:
            path: The file, which is replaced.
            form: The format; what the file's suffix says unless given.

        Raises:
            UsageError: There is no such format, or the file cannot be written.
        """
        from flopprof.report import format_for, write_report  # as above

        write_atomically(Path(path), write_report(self, format_for(str(path), form)))
        return Path(path)

    def plot_roofline(self, path: str | Path, **options: Any) -> Path:
        """Draw the roofline chart to `path` (.png, .svg or .pdf) and return it."""
        from flopprof.report.chart import plot_roofline  # as above

        plot_roofline(self, path, **options)
        return Path(path)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the summary and the chart."""
        from flopprof.report.html import notebook_html  # as above

        return notebook_html(self)

    def _repr_png_(self) -> bytes | None:
        """Return the chart as a PNG; None where the run has no times."""
        if not self.sites["time_us"].gt(0).any():
            return None
        with tempfile.TemporaryDirectory() as folder:
            return self.plot_roofline(Path(folder) / "roofline.png").read_bytes()


@dataclass(frozen=True, slots=True)
class Count(Totals):
    """The totals of one call, counted without timing, and what they are made of.

    `coverage_frac` and `wall_us` are NaN; `flops_at_most` is, where an op is unknown.
    """

    run: Run = field(repr=False)

    @classmethod
    def of(cls, run: Run) -> "Count":
        """Return the count that `run`, a run without times, holds."""
        totals = run.totals
        return cls(**{f.name: getattr(totals, f.name) for f in fields(Totals)}, run=run)

    def by_module(self) -> pd.DataFrame:
        """Return FLOPs per module: see `Run.by_module`."""
        return self.run.by_module()

    def by_op(self) -> pd.DataFrame:
        """Return calls and FLOPs per op name: see `Run.by_op`."""
        return self.run.by_op()


def to_json(value: Any) -> Any:
    """Return `value` with NaN and infinities as None and numbers as plain Python ones."""
    if isinstance(value, dict):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def whole(value: float) -> float | int:
    """Return a count held as a float as an integer; NaN unchanged."""
    return int(value) if math.isfinite(value) else value
