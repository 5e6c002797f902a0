"""Sites as sums: those of one rank, and those of several added up, before roofs are asked.

What ranks give is added up in parts, in any number of steps, and each step has the same form: a
site is a row, and what is not known stays unknown.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from flopprof.judge.hidden import GapSum, gap_sums, orphan_sums
from flopprof.judge.spread import TracedCall
from flopprof.judge.walk import TEXTS
from flopprof.tables import OP_SUMS
from flopprof.totals import kernel_sums, numbered, op_sums

KEYS = (*TEXTS, "flops_source", "by_kernel")
"""What makes a site: calls that are equal in these are one."""

_WHOLE = ("flops", "matmul_flops", "vector_flops", "hook_flops", "min_bytes", "time_us")
_AS_FAR_AS_KNOWN = (
    *("profiler_flops", "flops_at_most"),
    *("matmul_flops_at_least", "vector_flops_at_least"),
)
_JUDGED = ("verdict_rank", "reason_code", "reason")

Columns = dict[str, np.ndarray]


class Grouped(NamedTuple):
    """What `group_sites` returns.

    Attributes:
        sites: The sites' columns: `KEYS`, sums, `calls`, `verdict_rank`, `reason_code`, `reason`.
        number: Each row's site.
    """

    sites: Columns
    number: np.ndarray


@dataclass(frozen=True, slots=True)
class SiteSums:
    """What one rank or several say of the run's sites.

    Attributes:
        sites: The columns of `Grouped.sites`.
        kernels: Table KERNEL_SUMS; `site_id` is the row in `sites`.
        ops: Table OP_SUMS.
        orphans: Compute kernels that no op launched, as `orphan_sums` returns them.
        gaps: Time of the host that no op accounts for; none of a device.
        modules: A row per module: `module_path`, `ranks` that have it, `time_us` on all of them,
            `longest_us` and `longest_place`, the place of the rank on which it took longest.
    """

    sites: Columns
    kernels: pd.DataFrame
    ops: pd.DataFrame
    orphans: pd.DataFrame
    gaps: tuple[GapSum, ...]
    modules: pd.DataFrame


def group_sites(columns: Columns, names: dict[str, np.ndarray], calls: np.ndarray) -> Grouped:
    """Return the rows of each site as one, with the worst verdict; of several, the last one's.

    Args:
        columns: Those of `Grouped.sites`, a row for each call or for each part of a site; texts of
            `KEYS` are numbers.
        names: The texts that these number.
        calls: How many calls each row stands for.
    """
    order = np.argsort(columns["verdict_rank"], kind="stable")  # the worst verdict comes last
    number, first, last = numbered(columns[key][order] for key in KEYS)
    sites: Columns = {key: names[key][columns[key][order[first]]] for key in KEYS}
    rows = np.bincount(number)
    # One unknown call makes the sum unknown: count the values behind each sum.
    for column in (*_WHOLE, *_AS_FAR_AS_KNOWN):
        values = columns[column][order]
        values_there = np.bincount(number, weights=~np.isnan(values))
        total = np.bincount(number, weights=np.nan_to_num(values, nan=0.0, posinf=np.inf))
        needed = rows if column in _WHOLE else 1
        sites[column] = np.where(values_there >= needed, total, np.nan)
    # What only passed the same call on, as torch.func does, is no call beside those that worked.
    every = np.bincount(number, weights=calls[order]).astype(np.int64)
    works = columns["flops"][order] != 0
    working = np.bincount(number, weights=np.where(works, calls[order], 0)).astype(np.int64)
    sites["calls"] = np.where(working > 0, working, every)
    sites |= {column: columns[column][order[last]] for column in _JUDGED}
    site_of = np.empty_like(number)
    site_of[order] = number
    return Grouped(sites, site_of)


def sums_of_rank(
    sites: Columns, site_of: np.ndarray, call: TracedCall, *, place: int, on_device: bool
) -> SiteSums:
    """Return what one rank says of the sites.

    Args:
        sites: Its sites, as `group_sites` returns them.
        site_of: Each op's site; -1 for none.
        call: Its tables.
        place: The rank's place among those of the job.
        on_device: Whether times are a device's.
    """
    times = pd.DataFrame({"module_path": sites["module_path"], "time_us": sites["time_us"]})
    own_us = times.groupby("module_path", sort=False)["time_us"].sum()
    modules = pd.DataFrame(
        {
            "module_path": own_us.index.to_numpy(object),
            "ranks": np.ones(len(own_us), dtype=np.int64),
            "time_us": own_us.to_numpy(),
            "longest_us": own_us.to_numpy(),
            "longest_place": np.full(len(own_us), place),
        }
    )
    return SiteSums(
        sites=sites,
        kernels=kernel_sums(call.kernels, site_of),
        ops=op_sums(call.ops, on_device=on_device),
        orphans=orphan_sums(call.kernels),
        gaps=() if on_device else tuple(gap_sums(call)),
        modules=modules,
    )


def add_up_sums(parts: Sequence[SiteSums]) -> SiteSums:
    """Return the sums of several ranks, or of several such sums, in their order."""
    if len(parts) == 1:
        return parts[0]
    sites = [part.sites for part in parts]
    columns: Columns = {name: np.concatenate([one[name] for one in sites]) for name in sites[0]}
    names = {}
    for key in KEYS:
        columns[key], texts = pd.factorize(columns[key])
        names[key] = np.asarray(texts, dtype=object)
    grouped = group_sites(columns, names, columns["calls"])
    firsts = np.cumsum([0, *(len(one["op"]) for one in sites)]).tolist()
    kernels = [
        _moved(part.kernels, grouped.number[first : first + len(part.sites["op"])])
        for first, part in zip(firsts, parts, strict=False)
    ]
    return SiteSums(
        sites=grouped.sites,
        kernels=_sums_of(pd.concat(kernels), ["site_id", "kernel", "kind"]),
        ops=_ops_together([part.ops for part in parts]),
        orphans=_sums_of(
            pd.concat([part.orphans for part in parts]), ["place", "graph_id", "kernel"]
        ),
        gaps=tuple(_gaps_together(gap for part in parts for gap in part.gaps)),
        modules=_modules_together(pd.concat([part.modules for part in parts])),
    )


def _moved(kernels: pd.DataFrame, site_of: np.ndarray) -> pd.DataFrame:
    return kernels.assign(site_id=np.append(site_of, -1)[kernels["site_id"].to_numpy()])


def _sums_of(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return the rows with equal keys as one, with the sums of `calls` and `time_us`."""
    number, first, _ = numbered([rows[key].to_numpy() for key in keys])
    sums: dict[str, Any] = {key: rows[key].to_numpy()[first] for key in keys}
    sums["calls"] = np.bincount(number, rows["calls"]).astype(np.int64)
    sums["time_us"] = np.bincount(number, rows["time_us"])
    return pd.DataFrame(sums)


def _ops_together(parts: list[pd.DataFrame]) -> pd.DataFrame:
    rows = pd.concat(parts)
    groups = rows.groupby("op", observed=True)
    sums = groups[["calls", "counted_calls"]].sum()
    for column in ("matmul_flops", "vector_flops"):
        total = groups[column].sum()
        is_whole = groups[column].count() == groups.size()
        sums[column] = total.where(is_whole)
    for column in ("flops_at_most", "time_us"):
        sums[column] = groups[column].sum(min_count=1)
    return OP_SUMS.frame(sums.reset_index())


def _gaps_together(gaps: Iterable[GapSum]) -> Iterable[GapSum]:
    """Return the gaps before one op in one module as one, with the reason of the longest."""
    together: dict[tuple[str, str], GapSum] = {}
    for gap in gaps:
        place = (gap.module_path, gap.before_op)
        before = together.get(place)
        together[place] = gap if before is None else before.plus(gap)
    return together.values()


def _modules_together(rows: pd.DataFrame) -> pd.DataFrame:
    number, first, _ = numbered([rows["module_path"].to_numpy()])
    longest_us = rows["longest_us"].to_numpy()
    order = np.lexsort((-np.arange(len(rows)), longest_us, number))  # of equals, the first rank
    last = np.searchsorted(number[order], np.arange(len(first)), side="right") - 1
    return pd.DataFrame(
        {
            "module_path": rows["module_path"].to_numpy()[first],
            "ranks": np.bincount(number, rows["ranks"]).astype(np.int64),
            "time_us": np.bincount(number, rows["time_us"]),
            "longest_us": longest_us[order[last]],
            "longest_place": rows["longest_place"].to_numpy()[order[last]],
        }
    )
