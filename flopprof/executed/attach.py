"""Give a run what its launches executed: kernels, ops and sites get figures of their own."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from flopprof.errors import UsageError
from flopprof.executed.figures import UNCOUNTED
from flopprof.executed.join import NAME, Joined, join
from flopprof.executed.launches import bare_kernel
from flopprof.executed.read import read_counters
from flopprof.provenance import Executed
from flopprof.run import Run
from flopprof.tables import KERNELS, LAUNCHES, OPS, SITES, Table
from flopprof.units import counted, file_text, three_digits

FIGURES = (
    *("executed_matmul_flops", "executed_vector_flops", "executed_fma_flops"),
    *("executed_int_ops", "executed_half_at_most_flops", "dram_bytes", "l2_bytes", "l1_bytes"),
)
_MATMUL, _VECTOR, _FMA, _INT, _HALF, *_ = range(len(FIGURES))
_HALF_TYPES = ("float16", "bfloat16")
# Counted over executed within this of 1 is equal: alpha and beta of a product, for instance.
_EQUAL = 0.02
_REASONS = 2  # of launches, that a site names


def join_counters(run: Run, files: "str | Path | Iterable[str | Path]") -> Run:
    """Return the run with what its launches executed, by files of hardware counters.

    Kernels, ops and sites get `executed_flops`, `executed_source`, `useful_frac` (counted over
    executed, of products) and measured bytes, where all their launches were found; `launches` says
    how each was. What was counted stays as it is: a site whose FLOPs nobody knows is *measured*.

    Args:
        run: Of a call on a GPU, of a trace, or of any device where launches carry NVTX ranges.
        files: As for `read_counters`.

    Raises:
        UsageError: A file is not there, or the run is of several ranks, whose kernels it has not.
        LoadError: A file holds no counters.
    """
    if len(run.kernel_sums) and not len(run.kernels):
        raise UsageError(
            "the run is of several ranks, and keeps sums of their kernels only",
            remedy="trace the rank that was counted alone: flopprof trace rank0.json.gz -o rank0, "
            "then flopprof verify rank0 --counters FILE",
        )
    paths = [files] if isinstance(files, str | Path) else list(files)
    launches = read_counters(paths)
    joined = join(launches, run.kernels, run.ops)
    values = launches[list(FIGURES)].to_numpy(dtype=float)
    source = _source(launches)
    place = _Place(run, launches, joined)
    executed = Executed(
        files=tuple(file_text(Path(path).name) for path in paths),
        launches=len(launches),
        joined={by: joined.by.count(by) for by in dict.fromkeys(joined.by) if by},
        notes=tuple(joined.notes),
        source=source,
    )
    return run.replaced(
        kernels=_kernels(run, joined, values, source),
        ops=_ops(run, joined, values, source),
        sites=_sites(run, place, values, source),
        launches=LAUNCHES.check(
            launches.assign(op_id=joined.op_of, kernel_id=joined.kernel_of, joined_by=joined.by)
        ),
        provenance=msgspec.structs.replace(run.provenance, executed=executed),
    )


def _source(launches: pd.DataFrame) -> str:
    """Return the instruments of the files, "ncu"."""
    return ", ".join(name for name in launches["executed_source"].unique() if name)


def _all_flops(sums: np.ndarray, dtypes: Iterable[str]) -> np.ndarray:
    """Return matrix and vector FLOPs; NaN where float16 of vector units is only bounded."""
    half = np.isin(np.array(list(dtypes), dtype=object), _HALF_TYPES)
    bounded = half & ~(sums[:, _HALF] == 0)
    total: np.ndarray = np.where(bounded, math.nan, sums[:, _MATMUL] + sums[:, _VECTOR])
    return total


def executed_products(sums: np.ndarray) -> np.ndarray:
    """Return what was executed of products: by matrix units, else on integers, else multiply-adds.

    Args:
        sums: Figures by row, in the order of `FIGURES`.
    """
    integers = np.where(sums[:, _INT] > 0, sums[:, _INT], sums[:, _FMA])
    idle = sums[:, _MATMUL] == 0
    only_integers = np.isnan(sums[:, _MATMUL]) & (sums[:, _INT] > 0)
    products: np.ndarray = np.where(idle | only_integers, integers, sums[:, _MATMUL])
    return np.where(products > 0, products, math.nan)


def _useful(counted_flops: pd.Series, sums: np.ndarray) -> np.ndarray:
    flops = counted_flops.to_numpy(dtype=float)
    useful: np.ndarray = np.where(flops > 0, flops, math.nan) / executed_products(sums)
    return useful


def _columns(sums: np.ndarray, dtypes: Iterable[str], source: str) -> dict[str, Any]:
    """Return the columns that kernels, ops and sites share."""
    is_known = ~np.isnan(sums).all(axis=1)
    columns: dict[str, Any] = {"executed_flops": _all_flops(sums, dtypes)}
    columns |= {name: sums[:, at] for at, name in enumerate(FIGURES) if at != _HALF}
    return columns | {"executed_source": pd.array(np.where(is_known, source, ""), dtype="str")}


def _kernels(run: Run, joined: Joined, values: np.ndarray, source: str) -> pd.DataFrame:
    """Return the kernels with the figures of their launches."""
    kernels = run.kernels
    sums = np.full((len(kernels), len(FIGURES)), math.nan)
    by = np.full(len(kernels), "", dtype=object)
    rows = np.flatnonzero(joined.kernel_of >= 0)
    sums[joined.kernel_of[rows]] = values[rows]
    by[joined.kernel_of[rows]] = np.array(joined.by, dtype=object)[rows]
    dtypes = _dtypes_of_kernels(run)
    columns = _columns(sums, dtypes, source) | {"joined_by": pd.array(by, dtype="str")}
    return with_columns(KERNELS, kernels, columns)


def _dtypes_of_kernels(run: Run) -> np.ndarray:
    dtypes = np.append(run.ops["dtype"].astype("str").to_numpy(object), "")
    kernel_dtypes: np.ndarray = dtypes[run.kernels["op_id"].to_numpy()]
    return kernel_dtypes


def with_columns(table: Table, frame: pd.DataFrame, columns: dict[str, Any]) -> pd.DataFrame:
    """Return the frame with these columns in the place where the table has them."""
    names = [column.name for column in table.columns]
    every = frame.assign(**{name: columns[name] for name in columns if name in names})
    return table.check(every[[name for name in names if name in every]])


def _ops(run: Run, joined: Joined, values: np.ndarray, source: str) -> pd.DataFrame:
    """Return the ops with what was executed here and below, where all their launches were found."""
    ops = run.ops
    parents = ops["parent_op_id"].to_numpy()
    sums: dict[int, np.ndarray] = {}
    launch_counts: dict[int, int] = {}
    way_of: dict[int, str] = {}
    for row in np.flatnonzero(joined.op_of >= 0):
        op = int(joined.op_of[row])
        while op >= 0:
            sums[op] = sums.get(op, 0.0) + values[row]
            launch_counts[op] = launch_counts.get(op, 0) + 1
            way_of[op] = joined.by[row]
            op = int(parents[op])
    needed = _kernels_below(run, parents)
    for op in [op for op in sums if len(run.kernels) and needed.get(op, 0) != launch_counts[op]]:
        del sums[op], way_of[op]
    rows = np.full((len(ops), len(FIGURES)), math.nan)
    ways = np.full(len(ops), "", dtype=object)
    for op, figures in sums.items():
        rows[op] = figures
        ways[op] = way_of[op]
    columns = _columns(rows, ops["dtype"].astype("str"), source)
    columns |= {"useful_frac": _useful(ops["matmul_flops"], rows)}
    return with_columns(OPS, ops, columns | {"joined_by": pd.array(ways, dtype="str")})


def _ran(run: Run) -> pd.DataFrame:
    return run.kernels[run.kernels["kind"].isin(("compute", "communication"))]


def _kernels_below(run: Run, parents: np.ndarray) -> dict[int, int]:
    """Return how many kernels each op launched, here and below."""
    needed: dict[int, int] = {}
    for start in _ran(run)["op_id"].tolist():
        op = start
        while op >= 0:
            needed[op] = needed.get(op, 0) + 1
            op = int(parents[op])
    return needed


class _Place:
    """Which site each launch and each kernel of a run belongs to.

    Attributes:
        of_launch: For each launch, its site's row; -1 for none.
        of_kernel: For each kernel that ran, the same.
    """

    def __init__(self, run: Run, launches: pd.DataFrame, joined: Joined) -> None:
        self.launches = launches
        self.joined = joined
        site_of_op = np.append(run.ops["site_id"].to_numpy(), -1)
        ran = _ran(run)
        hidden = run.sites[run.sites["op"] == "(kernels)"]
        by_name = dict(zip(hidden["input_shapes"], hidden["site_id"], strict=True))
        self.of_kernel = site_of_op[ran["op_id"].to_numpy()]
        orphans = np.flatnonzero(ran["op_id"].to_numpy() == -1)
        names = ran["kernel"].astype("str").to_numpy(object)
        graphs = ran["graph_id"].to_numpy()
        for row in orphans:
            name = names[row] if graphs[row] == -1 else f"graph {graphs[row]}"
            self.of_kernel[row] = by_name.get(name, -1)
        self.of_launch = site_of_op[joined.op_of]
        place_of_kernel = dict(zip(ran["kernel_id"], self.of_kernel, strict=True))
        for row in np.flatnonzero((joined.kernel_of >= 0) & (joined.op_of < 0)):
            self.of_launch[row] = place_of_kernel[joined.kernel_of[row]]
        self._place_by_name(names)
        if not len(ran):
            self._leave_out_shared(run)

    def _place_by_name(self, names: np.ndarray) -> None:
        """Place launches by name where the total holds and all such kernels are one site's."""
        sites: dict[str, set[int]] = {}
        for name, site in zip(names, self.of_kernel, strict=True):
            sites.setdefault(bare_kernel(name), set()).add(int(site))
        kernels = self.launches["kernel"].tolist()
        for row, by in enumerate(self.joined.by):
            own = sites.get(bare_kernel(kernels[row]), set()) if by == NAME else set()
            if len(own) == 1:
                self.of_launch[row] = next(iter(own))

    def _leave_out_shared(self, run: Run) -> None:
        """Leave out launches of ops of several sites, where no kernel tells whose they are."""
        parents = run.ops["parent_op_id"].to_numpy()
        sites = run.ops["site_id"].to_numpy()
        shared = set()
        for op in range(len(parents)):
            above = int(parents[op])
            while above >= 0:
                if sites[op] >= 0 and sites[op] != sites[above]:
                    shared.add(above)
                above = int(parents[above])
        for row, op in enumerate(self.joined.op_of):
            if int(op) in shared:
                self.of_launch[row] = -1


def _sites(run: Run, place: _Place, values: np.ndarray, source: str) -> pd.DataFrame:
    """Return the sites with what was executed, where all their launches were found."""
    sites = run.sites
    size = len(sites)
    rows = np.flatnonzero(place.of_launch >= 0)
    at = place.of_launch[rows]
    joined_counts = np.bincount(at, minlength=size)
    needed = np.bincount(place.of_kernel[place.of_kernel >= 0], minlength=size)
    sums = np.zeros((size, len(FIGURES)))
    np.add.at(sums, at, values[rows])
    whole = (joined_counts > 0) & ((joined_counts == needed) | (len(run.kernels) == 0))
    sums[~whole] = math.nan
    columns = _columns(sums, sites["dtype"].astype("str"), source)
    columns["useful_frac"] = useful = _useful(sites["matmul_flops"], sums)
    ways = np.full(size, "", dtype=object)
    for row in rows:
        site = place.of_launch[row]
        ways[site] = place.joined.by[row] if whole[site] else ""
    columns["joined_by"] = pd.array(ways, dtype="str")
    reasons: list[str] = []
    launch_reasons = _reasons_of_launches(place, [*sites["dtype"].astype("str")])
    for site in range(size):
        parts = []
        if joined_counts[site] > 0 and not whole[site]:
            parts.append(
                f"counters of {counted(int(joined_counts[site]), 'launched kernel')} for "
                f"{counted(int(needed[site]), 'kernel')}: not used"
            )
        elif whole[site]:
            parts = [*_of_ratio(float(useful[site]), sums[site]), *launch_reasons[site][:_REASONS]]
        reasons.append("; ".join(parts))
    columns["executed_reason"] = pd.array(reasons, dtype="str")
    return with_columns(SITES, sites, columns)


def _reasons_of_launches(place: _Place, dtypes: list[str]) -> list[list[str]]:
    """Return what the launches of each site say of what is missing or doubtful, each once."""
    size = len(dtypes)
    reasons_of_site: list[list[str]] = [[] for _ in range(size)]
    for site, reasons in zip(place.of_launch, place.launches["reason"], strict=True):
        for reason in reasons.split("; ") if site >= 0 else ():
            is_of_others = reason.startswith(UNCOUNTED) and not reason.count(dtypes[site])
            if reason and reason not in reasons_of_site[site] and not is_of_others:
                reasons_of_site[site].append(reason)
    return reasons_of_site


def _of_ratio(useful: float, sums: np.ndarray) -> list[str]:
    """Return what a ratio of counted to executed products may mean."""
    if math.isnan(useful):
        return []
    parts = []
    times = three_digits(1 / useful)
    if useful < 1 - _EQUAL:
        parts.append(f"executed {times} × the counted products: tiles padded, or work done again")
    elif useful > 1 + _EQUAL:
        parts.append(
            f"executed {times} × the counted products: a mask or zeros skipped, or another "
            "algorithm (Winograd, FFT)"
        )
    if not sums[_MATMUL] > 0:
        unit = "on integers" if sums[_INT] > 0 else "as multiply-adds of vector units"
        parts.append(f"its products ran {unit}")
    return parts
