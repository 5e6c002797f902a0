"""Hold sites against the device's ceilings: attainable rates, bounds, and what exceeds them."""

import math
import re

import numpy as np
import pandas as pd

from flopprof.tables import codes

TOLERANCE = 1.05  # × the roof: a rate up to this is no contradiction
# Kernels of products that leave the matrix units idle; those that multiply less than is counted.
_VECTOR_KERNEL = re.compile(
    r"gemv|gevm|simt|_[sd]gemm|scudnn|implicit_convolve|explicit_convolve|depthwise|dot_kernel|"
    r"f32f32_f32f32", re.IGNORECASE,
)  # fmt: skip
_FAST_KERNEL = re.compile(r"winograd|fft", re.IGNORECASE)


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
    unit, names = np.zeros(len(op_ids), dtype=np.int64), np.array(["", "vector", "fast"], object)
    if not len(kernels):
        return unit, names
    mine = kernels[(kernels["kind"] == "compute") & kernels["op_id"].between(0, len(owner) - 1)]
    kernel, kernel_names = codes(mine["kernel"])
    owners, lengths = owner[mine["op_id"].to_numpy()], mine["duration_us"].to_numpy()
    times = np.bincount(owners, lengths, len(owner))[op_ids]
    for number, (pattern, least) in enumerate(((_VECTOR_KERNEL, 0.5), (_FAST_KERNEL, 0.05)), 1):
        found = np.array([bool(pattern.search(name)) for name in kernel_names], dtype=bool)
        part = np.bincount(owners, np.where(found[kernel], lengths, 0.0), len(owner))[op_ids]
        unit[part > least * times] = number
    return unit, names


def above_roof(sites: pd.DataFrame) -> pd.DataFrame:
    """Return the sites whose rate is above their roof; the reason says what likely explains it."""
    return sites[sites["efficiency_frac"] > TOLERANCE]


def roof_doubts(sites: pd.DataFrame) -> list[str]:
    """Return a warning where sites compute faster than the device can: a ceiling is too low."""
    above = above_roof(sites).query("bound == 'compute'")
    if not len(above):
        return []
    first, worst = above.iloc[0], above["efficiency_frac"].max()
    why = first["reason"].rpartition("; ")[2]
    return [f"sites above their roof: {len(above)}, by {worst - 1:.0%} at most, such as "
            f"{first['op']}: {why}"]  # fmt: skip


def apply_rooflines(
    sites: dict[str, np.ndarray],
    rooflines: pd.DataFrame,
    dtype: str,
    *,
    by_kernel: np.ndarray,
    on_device: bool,
) -> None:
    """Fill attainable rate, efficiency, bound and `flops_at_most` from the ceilings."""
    main = rooflines
    if len(main):
        main = main[main["memory_level"].isin(("DRAM", "HBM")) & main["valid"]]
    peaks = {(r.dtype, r.unit): r.peak_flops_per_s for r in main.itertuples(index=False)}
    bandwidth = main["peak_bytes_per_s"].max() if len(main) else math.nan
    matmul = sites["matmul_flops"] > sites["vector_flops"]
    units = np.where(matmul & (by_kernel != "vector"), "tensor", "vector")
    found = [peaks.get(key, math.nan) for key in zip(sites["dtype"], units, strict=True)]
    peak, intensity = np.array(found, dtype=float), sites["intensity_flops_per_byte"]
    roof = np.where(intensity > 0, np.minimum(peak, intensity * bandwidth), math.nan)
    sites["attainable_flops_per_s"] = roof
    sites["efficiency_frac"] = sites["achieved_flops_per_s"] / roof
    bound = np.where(intensity < peak / bandwidth, "memory", "compute").astype(object)
    sites["bound"] = np.where(np.isnan(roof), "", bound)
    likely = np.select(
        [
            sites["bound"] == "memory",
            np.full(len(roof), not on_device),
            by_kernel == "fast",
            sites["kind"] == "attention",
            (sites["dtype"] == "float32") & (("tfloat32", "tensor") in peaks),
        ],
        ["memory", "busy", "fast", "causal", "tf32"],
        "clock",
    )
    for row in np.flatnonzero(sites["efficiency_frac"] > TOLERANCE):
        sites["reason"][row] += _ABOVE_ROOF[likely[row]]
    unknown = np.isnan(sites["flops"]) & (sites["verdict"] != "not_run")
    by_time = sites["time_us"] / 1e6 * peaks.get((dtype, "tensor"), math.nan)
    most = np.ceil(np.fmin(by_time, sites["flops_at_most"]))
    sites["flops_at_most"] = np.where(unknown, most, sites["flops"])


_ABOVE_ROOF = {
    "memory": "; above the memory roof: its operands fit a cache",
    "busy": "; above the compute roof: the ceiling was measured on a slower or busier clock",
    "fast": "; above the compute roof: Winograd and FFT kernels multiply less than is counted",
    "causal": "; above the compute roof: a causal kernel skips half of the scores that are counted",
    "tf32": "; above the compute roof: its kernels may multiply in TF32 without saying so",
    "clock": "; above the compute roof: the ceiling is of a lower clock, or kernels are missing",
}
