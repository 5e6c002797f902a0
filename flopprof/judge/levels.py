"""Say which memory level holds what a site reads and writes: its bandwidth is the site's roof."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from flopprof import dtypes

MAIN_LEVELS = ("DRAM", "HBM")
# Where the weights are among the arguments of what multiplies by weights.
_WEIGHTS = {"aten::linear": 1, "aten::addmm": 2, "aten::mm": 1, "aten::mv": 0}
_CONVOLUTION_WEIGHTS = 1
_MOSTLY = 0.5  # of a call's bytes


def memory_of_sites(
    sites: Mapping[str, Any], rooflines: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    """Return the memory level of each site, and its bandwidth in bytes per second.

    It is the smallest cache that holds the site's working set, else the main memory. Caches count
    only where the run knows their size and bandwidth, as on a CPU that was measured.

    Args:
        sites: Columns of SITES; without `min_bytes` every site is the main memory's.
        rooflines: The table ROOFLINES; invalid rows do not count.
    """
    usable = rooflines[rooflines["valid"]]
    main = usable[usable["memory_level"].isin(MAIN_LEVELS)]
    bytes_per_s = float(main["peak_bytes_per_s"].max())
    count = len(sites["dtype"])
    name = str(main["memory_level"].iloc[0]) if len(main) else ""
    names = np.full(count, name, dtype=object)
    rates = np.full(count, bytes_per_s)
    caches = usable[usable["holds_bytes"] > 0].drop_duplicates("memory_level")
    if not len(caches) or "min_bytes" not in sites:
        return names, rates
    needed_bytes = working_set_bytes(sites)
    for cache in caches.sort_values("holds_bytes", ascending=False).itertuples(index=False):
        fits = needed_bytes <= cache.holds_bytes
        names[fits] = cache.memory_level
        rates[fits] = cache.peak_bytes_per_s
    return names, rates


def working_set_bytes(sites: Mapping[str, Any]) -> np.ndarray:
    """Return the bytes among which a site's own must stay, for a cache to hold them.

    Activations were written just before: they are what one call reads and writes, once where it
    works in place. Weights were read a whole call of the model ago, and all others since: a site
    that mostly reads weights needs room for those of all such sites.

    Args:
        sites: Columns `op`, `input_shapes`, `dtype`, `kind`, `calls` and `min_bytes` of SITES.
    """
    call_bytes = np.asarray(sites["min_bytes"], float) / np.maximum(np.asarray(sites["calls"]), 1)
    weight_bytes = np.zeros(len(call_bytes))
    again_bytes = np.zeros(len(call_bytes))
    columns = zip(*(sites[name] for name in ("op", "kind", "input_shapes", "dtype")), strict=True)
    for row, (op, kind, shapes, dtype) in enumerate(columns):
        itemsize = dtypes.itemsize(str(dtype)) or 4  # of a type without a size: as float32
        place = _CONVOLUTION_WEIGHTS if kind == "convolution" else _WEIGHTS.get(str(op))
        if place is not None:
            weight_bytes[row] = itemsize * _elements(str(shapes), place)
        elif str(op).endswith("_") and not str(op).endswith("__"):
            again_bytes[row] = itemsize * _elements(str(shapes), 0)
    mostly_weights = weight_bytes > _MOSTLY * call_bytes
    all_weights_bytes = weight_bytes[mostly_weights].sum()
    with_weights = np.maximum(call_bytes, all_weights_bytes)
    needed_bytes: np.ndarray = np.where(mostly_weights, with_weights, call_bytes - again_bytes)
    return needed_bytes


def _elements(shapes: str, place: int) -> int:
    """Return the elements of the argument at this place; 0 where its shape is not known."""
    arguments = shapes.split(", ")
    if place >= len(arguments):
        return 0
    sizes = arguments[place].split("x")
    if not all(size.isdigit() for size in sizes):
        return 0
    return math.prod(map(int, sizes))
