"""Hold sites against the device's ceilings: attainable rates, bounds, and what exceeds them."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from flopprof.judge.levels import MAIN_LEVELS, memory_of_sites
from flopprof.judge.reasons import words_of
from flopprof.tables import codes
from flopprof.totals import computing_in
from flopprof.units import duration, percent

LARGEST_CACHE_BYTES = 2**28  # MI300X: 256 MiB; what is larger fits no device's cache
TOLERANCE = 1.05
"""× the roof: a rate up to this is no contradiction; measured ceilings repeat within about that."""

OVERHEAD_FRAC = 0.1
"""Of the roof: what is slower is limited by neither roof.

The roof then accounts for less than a tenth of the time. Bytes are compulsory traffic, and real
traffic may be a few times as much, but not ten times: what takes the other nine tenths is launch,
dispatch, Python, or too little work to fill the device.
"""

VECTOR_SHARE = 0.5  # of a product's kernel time, in kernels that leave the matrix units idle
FAST_SHARE = 0.05  # of its kernel time, in kernels that multiply less than is counted
# Kernels of products that leave the matrix units idle; those that multiply less than is counted.
_VECTOR_KERNEL = re.compile(
    r"gemv|gevm|simt|_[sd]gemm|scudnn|implicit_convolve|explicit_convolve|depthwise|dot_kernel|"
    r"f32f32_f32f32", re.IGNORECASE,
)  # fmt: skip
_FAST_KERNEL = re.compile(r"winograd|fft", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Roof:
    """What a roofline allows at one intensity, or at many.

    Attributes:
        attainable_flops_per_s: NaN where intensity, peak or bandwidth is unknown.
        limit: "memory" left of the ridge, "compute" right of it; "" where unknown.
    """

    attainable_flops_per_s: Any
    limit: Any

    def bound(self, achieved_flops_per_s: Any, own_frac: float = 1.0) -> Any:
        """Return what limits a rate: memory, compute, or overhead far below both; "" if unknown.

        Where others had the processor, a rate that was far below only with their help is unknown.

        Args:
            achieved_flops_per_s: The rate.
            own_frac: Share of the time in which the process had the processor.
        """
        least = OVERHEAD_FRAC * self.attainable_flops_per_s
        limit = np.where(achieved_flops_per_s < least, "", self.limit)
        limit = np.where(achieved_flops_per_s < own_frac * least, "overhead", limit)
        return limit.astype(object)


@dataclass(frozen=True, slots=True)
class Roofline:
    """One compute ceiling over one bandwidth ceiling, or one per site.

    Attributes:
        peak_flops_per_s: Dense compute ceiling; NaN where unknown.
        peak_bytes_per_s: Bandwidth ceiling; NaN where unknown.
    """

    peak_flops_per_s: Any
    peak_bytes_per_s: Any

    def at(self, intensity_flops_per_byte: Any) -> Roof:
        """Return the roof at this intensity."""
        slope = np.asarray(intensity_flops_per_byte) * self.peak_bytes_per_s
        lower = np.minimum(self.peak_flops_per_s, slope)
        attainable = np.where(np.asarray(intensity_flops_per_byte) > 0, lower, math.nan)
        limit = np.where(slope < self.peak_flops_per_s, "memory", "compute")
        return Roof(attainable, np.where(np.isnan(attainable), "", limit).astype(object))


def is_above(efficiency_frac: Any) -> Any:
    """Return whether a rate, as a fraction of its roof, contradicts the roof."""
    return efficiency_frac > TOLERANCE


def site_roofline(
    sites: Mapping[str, Any], rooflines: pd.DataFrame, level: str | None = None
) -> Roofline:
    """Return the roofline of each site: its dtype's ceiling of its unit, over a memory's bandwidth.

    Args:
        sites: Columns of SITES: `dtype` and `unit`, and what `memory_of_sites` needs.
        rooflines: The table ROOFLINES; invalid rows do not count.
        level: Name of the memory level; the one that holds each site unless given.
    """
    if not len(rooflines):
        return Roofline(np.full(len(sites["dtype"]), math.nan), math.nan)
    usable = rooflines[rooflines["valid"]]
    peaks = peaks_of(usable)
    keys = zip(sites["dtype"], sites["unit"], strict=True)
    peak = np.array([peaks.get(key, math.nan) for key in keys], dtype=float)
    if level is None:
        return Roofline(peak, memory_of_sites(sites, rooflines)[1])
    bandwidth = usable.loc[usable["memory_level"] == level, "peak_bytes_per_s"].max()
    return Roofline(peak, float(bandwidth))


def peaks_of(rooflines: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Return FLOP/s by dtype and unit; of several the first counts."""
    peaks: dict[tuple[str, str], float] = {}
    if not len(rooflines):
        return peaks
    for row in rooflines.itertuples(index=False):
        peaks.setdefault((str(row.dtype), str(row.unit)), float(row.peak_flops_per_s))
    return peaks


def main_units(matmul_flops: Any, vector_flops: Any) -> np.ndarray:
    """Return the unit that most of the work needs, unless kernels tell otherwise."""
    return np.where(matmul_flops > vector_flops, "tensor", "vector").astype(object)


def kernel_units(
    op_ids: np.ndarray, owner: np.ndarray, kernels: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    """Return what each op's kernels are, as numbers, and the names of these numbers.

    Mostly "vector", or "fast" in part (Winograd, FFT), else "".

    Args:
        op_ids: The ops asked for.
        owner: Whose the kernels of each op are.
        kernels: The table KERNELS.
    """
    unit = np.zeros(len(op_ids), dtype=np.int64)
    names = np.array(["", "vector", "fast"], object)
    if not len(kernels):
        return unit, names
    mine = computing_in(kernels, len(owner))
    kernel, kernel_names = codes(kernels["kernel"])
    kernel = kernel[mine]
    owners = owner[kernels["op_id"].to_numpy()[mine]]
    lengths = kernels["duration_us"].to_numpy()[mine]
    times = np.bincount(owners, lengths, len(owner))[op_ids]
    kinds = ((_VECTOR_KERNEL, VECTOR_SHARE), (_FAST_KERNEL, FAST_SHARE))
    for number, (pattern, least) in enumerate(kinds, start=1):
        matches = np.array([bool(pattern.search(name)) for name in kernel_names], dtype=bool)
        part = np.bincount(owners, np.where(matches[kernel], lengths, 0.0), len(owner))[op_ids]
        unit[part > least * times] = number
    return unit, names


def why_above(roof_code: str) -> str:
    """Return which roof a rate is above, and what likely explains it; "" where that is not told."""
    return words_of(roof_code)


def above_roof(sites: pd.DataFrame) -> pd.DataFrame:
    """Return the sites whose rate is above their roof; `roof_code` says what likely explains it."""
    return sites[is_above(sites["efficiency_frac"])]


def roof_doubts(sites: pd.DataFrame) -> list[str]:
    """Return a warning where sites compute faster than the device can: a ceiling is too low."""
    is_faster = is_above(sites["efficiency_frac"].to_numpy())
    if not is_faster.any():
        return []
    above = sites[is_faster & (sites["bound"] == "compute").to_numpy()]
    if not len(above):
        return []
    first = above.iloc[0]
    worst = above["efficiency_frac"].max()
    why = why_above(first["roof_code"])
    fact = f"sites above their roof: {len(above)}, by {worst - 1:.0%} at most"
    return [f"{fact}, such as {first['op']}: above {why}"]


def total_doubts(sites: pd.DataFrame, rooflines: pd.DataFrame, spent_us: float) -> list[str]:
    """Return a warning where all FLOPs together would take longer at the ceilings than they did.

    Args:
        sites: The table SITES; what has no time does not count.
        rooflines: The table ROOFLINES.
        spent_us: How long the device was busy, or the call took; NaN where unknown.
    """
    if not len(sites) or not len(rooflines) or not spent_us > 0:
        return []
    peaks = site_roofline(sites, rooflines).peak_flops_per_s
    ran = (sites["time_us"] > 0).to_numpy()
    least_us = float(np.nansum((sites["flops"].to_numpy() / peaks)[ran]) * 1e6)
    if not is_above(least_us / spent_us):
        return []
    return [
        f"all FLOPs together are {percent(least_us / spent_us)} of what the ceilings allow in "
        f"{duration(spent_us)}: a ceiling is too low, or kernels are missing from the trace"
    ]


def apply_rooflines(
    sites: dict[str, np.ndarray],
    rooflines: pd.DataFrame,
    dtype: str,
    *,
    by_kernel: np.ndarray,
    on_device: bool,
    cache_bytes: float = math.nan,
    own_frac: float = 1.0,
) -> None:
    """Fill unit, attainable rate, efficiency, bound and `flops_at_most` from the ceilings.

    Args:
        sites: Columns of SITES, which are filled in place.
        rooflines: The table ROOFLINES.
        dtype: The run's element type, whose matmul ceiling bounds what is unknown.
        by_kernel: What each site's kernels are: "vector", "fast" or "".
        on_device: Whether times are a device's.
        cache_bytes: Size of the device's largest cache; NaN where it is not known.
        own_frac: Share of the time in which the process had the processor.
    """
    by_class = main_units(sites["matmul_flops"], sites["vector_flops"])
    sites["unit"] = np.where(by_kernel == "vector", "vector", by_class).astype(object)
    sites["memory_level"] = memory_of_sites(sites, rooflines)[0]
    roof = site_roofline(sites, rooflines).at(sites["intensity_flops_per_byte"])
    sites["attainable_flops_per_s"] = roof.attainable_flops_per_s
    sites["efficiency_frac"] = sites["achieved_flops_per_s"] / roof.attainable_flops_per_s
    sites["bound"] = roof.bound(sites["achieved_flops_per_s"], own_frac)
    peaks = peaks_of(rooflines[rooflines["valid"]])
    in_cache = ~np.isin(sites["memory_level"], MAIN_LEVELS)
    likely = np.select(
        [
            (sites["bound"] == "memory") & in_cache,
            (sites["bound"] == "memory") & _may_be_cached(sites, cache_bytes),
            sites["bound"] == "memory",
            np.full(len(sites["bound"]), not on_device),
            by_kernel == "fast",
            sites["kind"] == "attention",
            (sites["dtype"] == "float32") & (("tfloat32", "tensor") in peaks),
        ],
        ["busy_cache", "cache", "no_cache", "busy", "fast_kernel", "causal", "tf32"],
        "clock",
    )
    for row in np.flatnonzero(is_above(sites["efficiency_frac"])):
        code = f"roof_{likely[row]}"
        sites["roof_code"][row] = code
        sites["reason"][row] += f"; above {why_above(code)}"
    unknown = np.isnan(sites["flops"])
    by_time = sites["time_us"] / 1e6 * peaks.get((dtype, "tensor"), math.nan)
    least = sites["matmul_flops_at_least"] + sites["vector_flops_at_least"]
    most = np.ceil(np.fmin(by_time, sites["flops_at_most"]))
    most = np.where(most < least, least, most)  # a ceiling that is too low bounds nothing
    most = np.where(sites["verdict"] == "not_run", sites["hook_flops"], most)
    sites["flops_at_most"] = np.where(unknown, most, sites["flops"])


def _may_be_cached(sites: dict[str, np.ndarray], cache_bytes: float) -> np.ndarray:
    """Return whether what one call moves fits the device's cache, or the largest there is."""
    if not cache_bytes > 0:
        cache_bytes = LARGEST_CACHE_BYTES
    fits: np.ndarray = sites["min_bytes"] / sites["calls"] <= cache_bytes
    return fits
