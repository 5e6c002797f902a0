"""Times of several traced calls: the median and the spread of each site.

One call on a busy machine tells of the machine. Sites of different traces are joined by what makes
a site; a model that takes another path each time has fewer samples at some sites.
"""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from flopprof.judge.walk import TEXTS, Walked

SITE_KEY = (*TEXTS, "by_kernel")


class TracedCall(NamedTuple):
    """One traced call of the model.

    Attributes:
        ops: Table OPS.
        gaps: Table GAPS.
        kernels: Table KERNELS.
        waited_us: How long its thread was ready and the machine gave it no core.
        foreign: Paths of modules whose own code computes past PyTorch.
        closed: Paths inside TorchScript and exported programs, each with the type of the module
            around it that hooks see.
    """

    ops: pd.DataFrame
    gaps: pd.DataFrame
    kernels: pd.DataFrame
    waited_us: float = 0.0
    foreign: Collection[str] = ()
    closed: Mapping[str, str] = MappingProxyType({})


def own_frac(traced: Sequence[TracedCall]) -> float:
    """Return the share of the traced calls' time in which their thread had the processor.

    It is the median call's; 1.0 where the system does not tell.
    """
    shares = []
    for call in traced:
        outermost = call.ops["parent_op_id"] < 0
        spent_us = float(call.ops.loc[outermost, "cpu_us"].sum() + call.gaps["duration_us"].sum())
        if spent_us > 0:
            shares.append(max(1 - call.waited_us / spent_us, 0.0))
    return float(np.median(shares)) if shares else 1.0


def time_per_op_call(walked: Walked) -> "pd.Series[float]":
    """Return, per site's key, the mean time in µs of one call of its op in this trace."""
    texts = {key: walked.texts(key) for key in SITE_KEY}
    frame = pd.DataFrame(texts | {"time_us": walked["time_us"]}, dtype=object)
    return frame.astype({"time_us": float}).groupby([*SITE_KEY], sort=False)["time_us"].mean()


def site_samples(sites: dict[str, Any], others: Sequence["pd.Series[float]"]) -> np.ndarray:
    """Return each site's time in each trace, in µs: a row per site; NaN where it was not.

    Args:
        sites: Columns of the sites of the trace that is kept, with their `time_us` and `calls`.
        others: What `time_per_op_call` returns, of the other traces.
    """
    columns = [np.asarray(sites["time_us"], dtype=float)]
    keys = list(zip(*(sites[key] for key in SITE_KEY), strict=True))
    for per_call in others:
        time_of = per_call.to_dict()
        each_us = np.array([time_of.get(key, np.nan) for key in keys], dtype=float)
        columns.append(each_us * sites["calls"])
    return np.stack(columns, axis=1)


def spread(samples: np.ndarray) -> dict[str, np.ndarray]:
    """Return median, 5th and 95th percentile of each row in µs, and how many samples it has.

    One sample has no spread: its percentiles are NaN, not known.
    """
    counts = (~np.isnan(samples)).sum(axis=1)
    ordered = np.sort(samples, axis=1)  # NaN comes last
    several = counts > 1
    return {
        "time_us": _quantile(ordered, counts, 50),
        "time_p5_us": np.where(several, _quantile(ordered, counts, 5), np.nan),
        "time_p95_us": np.where(several, _quantile(ordered, counts, 95), np.nan),
        "samples": counts,
    }


def _quantile(ordered: np.ndarray, counts: np.ndarray, percent: float) -> np.ndarray:
    """Return a percentile of the first `counts` values of each row, interpolated."""
    if not ordered.size:
        return np.full(len(ordered), np.nan)
    at = np.maximum(counts - 1, 0) * percent / 100
    low = np.floor(at).astype(int)
    high = np.ceil(at).astype(int)
    rows = np.arange(len(ordered))
    below = ordered[rows, low]
    quantile: np.ndarray = below + (ordered[rows, high] - below) * (at - low)
    return quantile
