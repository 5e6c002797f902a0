"""Hold sites against the device's ceilings: attainable rates, bounds, and what exceeds them."""

import math
import re

import numpy as np
import pandas as pd

TOLERANCE = 1.05  # × the roof: a rate up to this is no contradiction
# Kernels of products that leave the matrix units idle; those that multiply less than is counted.
_VECTOR_KERNEL = re.compile(
    r"gemv|gevm|simt|_[sd]gemm|scudnn|implicit_convolve|explicit_convolve|depthwise|dot_kernel|"
    r"f32f32_f32f32", re.IGNORECASE,
)  # fmt: skip
_FAST_KERNEL = re.compile(r"winograd|fft", re.IGNORECASE)


def kernel_units(walked: pd.DataFrame, owner: list[int], kernels: pd.DataFrame) -> pd.Series:
    """Return what an op's kernels are: mostly "vector", "fast" in part (Winograd, FFT), or ""."""
    mine = kernels[(kernels["kind"] == "compute") & (kernels["op_id"] >= 0)]
    names = mine["kernel"].astype("category")
    owners = np.array(owner, dtype=int)[mine["op_id"]]
    times = mine["duration_us"].groupby(owners).sum()
    unit = pd.Series("", index=walked.index)
    for name, pattern, least in (("vector", _VECTOR_KERNEL, 0.5), ("fast", _FAST_KERNEL, 0.05)):
        found = np.array([bool(pattern.search(k)) for k in names.cat.categories], dtype=bool)
        part = mine["duration_us"].where(found[names.cat.codes], 0.0).groupby(owners).sum()
        unit[(walked["op_id"].map(part) > least * walked["op_id"].map(times)).to_numpy()] = name
    return unit


def above_roof(sites: pd.DataFrame) -> pd.DataFrame:
    """Return the sites whose rate is above their roof; the reason says what likely explains it."""
    return sites[sites["efficiency_frac"] > TOLERANCE]


def apply_rooflines(
    sites: pd.DataFrame,
    rooflines: pd.DataFrame,
    dtype: str,
    *,
    by_kernel: pd.Series,
    on_device: bool,
) -> None:
    """Fill attainable rate, efficiency, bound and `flops_at_most` from the ceilings."""
    main = rooflines[rooflines["memory_level"].isin(("DRAM", "HBM")) & rooflines["valid"]]
    peaks = {(r.dtype, r.unit): r.peak_flops_per_s for r in main.itertuples(index=False)}
    bandwidth = main["peak_bytes_per_s"].max() if len(main) else math.nan
    matmul = sites["matmul_flops"] > sites["vector_flops"]
    units = np.where(matmul & (by_kernel != "vector"), "tensor", "vector")
    found = [peaks.get(key, math.nan) for key in zip(sites["dtype"], units, strict=True)]
    peak = pd.Series(found, dtype="float64")
    intensity = sites["intensity_flops_per_byte"]
    roof = np.minimum(peak, intensity * bandwidth).where(intensity > 0)
    sites["attainable_flops_per_s"] = roof
    sites["efficiency_frac"] = sites["achieved_flops_per_s"] / roof
    bound = np.where(intensity < peak / bandwidth, "memory", "compute")
    sites["bound"] = np.where(roof.notna(), bound, "")
    likely = np.select(
        [
            sites["bound"] == "memory",
            np.full(len(sites), not on_device),
            by_kernel == "fast",
            sites["kind"] == "attention",
            (sites["dtype"] == "float32") & (("tfloat32", "tensor") in peaks),
        ],
        ["memory", "busy", "fast", "causal", "tf32"],
        "clock",
    )
    above = above_roof(sites).index
    sites.loc[above, "reason"] += pd.Series(likely, sites.index)[above].map(_ABOVE_ROOF)
    unknown = sites["flops"].isna() & (sites["verdict"] != "not_run")
    by_time = sites["time_us"] / 1e6 * peaks.get((dtype, "tensor"), math.nan)
    most = np.ceil(np.fmin(by_time, sites["flops_at_most"]))
    sites["flops_at_most"] = sites["flops"].where(~unknown, most)


_ABOVE_ROOF = {
    "memory": "; above the memory roof: its operands fit a cache",
    "busy": "; above the compute roof: the ceiling was measured on a slower or busier clock",
    "fast": "; above the compute roof: Winograd and FFT kernels multiply less than is counted",
    "causal": "; above the compute roof: a causal kernel skips half of the scores that are counted",
    "tf32": "; above the compute roof: its kernels may multiply in TF32 without saying so",
    "clock": "; above the compute roof: the ceiling is of a lower clock, or kernels are missing",
}
