"""Make the table of sites of their sums: hidden rows, shares, rates, roofs; most time first."""

import math
from typing import Any

import numpy as np
import pandas as pd

from flopprof.judge.roofs import apply_rooflines
from flopprof.judge.sums import Columns
from flopprof.judge.verdicts import VERDICTS
from flopprof.tables import SITES, Column

_ORDER = ("input_shapes", "op", "module_path")  # of sites of equal time and FLOPs, the last first


def described(sites: Columns, types: dict[str, str]) -> Columns:
    """Add the columns that follow from others; the reasons may be added to."""
    sites = {**sites, "reason": sites["reason"].copy()}
    sites["verdict"] = np.array(VERDICTS, dtype=object)[sites.pop("verdict_rank")]
    sites["formula_flops"] = np.where(sites["flops_source"] == "hook", np.nan, sites["flops"])
    paths = sites["module_path"].tolist()
    sites["module_type"] = np.array([types.get(path, "") for path in paths], dtype=object)
    return sites


def with_rows(sites: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the columns of SITES and `by_kernel`, with `rows` behind; missing values are blank.

    What few tables have is left out where nothing of it is known.
    """
    size = len(sites["op"])
    whole: dict[str, np.ndarray] = {}
    for column in (*SITES.columns, Column("by_kernel", "str", "")):
        if column.rare and column.name not in sites and not any(column.name in r for r in rows):
            continue
        values = sites.get(column.name, [column.blank] * size)
        more = [row.get(column.name, column.blank) for row in rows]
        kind = object if column.type == "str" else column.type
        whole[column.name] = np.array([*values, *more], dtype=kind)
    return whole


def finish(
    sites: dict[str, np.ndarray],
    rooflines: pd.DataFrame,
    *,
    dtype: str,
    timed: bool,
    on_device: bool,
    cache_bytes: float,
    own_share: float,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the columns of SITES with shares, rates and bounds, most time first; that order."""
    if not timed:
        sites["time_us"] = np.full(len(sites["op"]), math.nan)
    time_us = _where_positive(sites["time_us"])
    min_bytes = _where_positive(sites["min_bytes"])
    with np.errstate(over="ignore"):
        sites["time_share_frac"] = sites["time_us"] / (np.nansum(time_us) or math.nan)
        sites["achieved_flops_per_s"] = sites["flops"] / (time_us / 1e6)
        sites["intensity_flops_per_byte"] = sites["flops"] / min_bytes
    by_kernel = sites.pop("by_kernel")
    apply_rooflines(
        sites,
        rooflines,
        dtype,
        by_kernel=by_kernel,
        on_device=on_device,
        cache_bytes=cache_bytes,
        own_frac=own_share,
    )
    texts = [np.unique(sites[column], return_inverse=True)[1] for column in _ORDER]
    order = np.lexsort((*texts, -sites["flops"], -sites["time_us"]))
    sites = {name: values[order] for name, values in sites.items()}
    sites["site_id"] = np.arange(len(order))
    return sites, order


def _where_positive(values: np.ndarray) -> np.ndarray:
    """Return the values, NaN in place of those that nothing can be divided by."""
    return np.where(values > 0, values, np.nan)
