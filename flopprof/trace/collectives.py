"""What the collectives of ranks took, by kind, group and size; sums that add up."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from flopprof.jobfacts import CollectiveTimes
from flopprof.trace.read import Trace

MOST_TIMES = 4096
"""Of one kind, group and size, so many times are kept as they are: their median is exact."""


MOST_SIZES = 1000
"""So many kinds, groups and sizes are told apart, those of most time; each step's of experts may be
of another size. The others are together, and their size is not known."""


class CollectiveKey(NamedTuple):
    """What makes calls of collectives alike; "" and NaN where the trace does not tell."""

    collective: str
    process_group: str
    group_size: float
    message_bytes: float


@dataclass(frozen=True, slots=True)
class Times:
    """Times of calls that are alike.

    Attributes:
        calls: How many.
        time_us: Their sum.
        shortest_us: The shortest.
        kept_us: The times in order; of more than `MOST_TIMES`, that many of their quantiles.
        weights: How many calls each of these stands for.
    """

    calls: int
    time_us: float
    shortest_us: float
    kept_us: np.ndarray
    weights: np.ndarray

    @property
    def median_us(self) -> float:
        """The median; of more than `MOST_TIMES` that of a call within 0.1 % of the middle."""
        up_to = np.cumsum(self.weights)
        middle = up_to[-1] / 2
        low = int(np.searchsorted(up_to, middle, side="left"))
        # Another one, if the middle lies between two.
        high = int(np.searchsorted(up_to, middle, side="right"))
        return float((self.kept_us[low] + self.kept_us[high]) / 2)


CollectiveSums = dict[tuple[str, ...], tuple[CollectiveKey, Times]]
"""By what makes calls alike, as texts: NaN is equal to itself there."""


def collective_sums(kernels: pd.DataFrame) -> CollectiveSums:
    """Return the times of a rank's collectives.

    Args:
        kernels: Table KERNELS.
    """
    if "collective" not in kernels:
        return {}
    calls = kernels[kernels["kind"] == "communication"]
    groups = calls.groupby(list(CollectiveKey._fields), dropna=False, observed=True, sort=False)
    sums: CollectiveSums = {}
    for key, group in groups["duration_us"]:
        collective = CollectiveKey(*_plain(key))
        times_us = np.sort(group.to_numpy())
        sums[_texts(collective)] = (
            collective,
            _times(times_us, np.ones(len(times_us)), times_us.sum()),
        )
    return _bounded(sums)


def sums_of_sent(sent: pd.DataFrame) -> CollectiveSums:
    """Return the times of what a rank's CPU sent.

    Args:
        sent: Table COLLECTIVES.
    """
    return collective_sums(sent.assign(kind="communication"))


def sums_of_trace(trace: Trace) -> CollectiveSums:
    """Return the times of a rank's collectives, those of kernels and those of its CPU."""
    on_device = collective_sums(trace.kernels)
    return add_up_collectives((on_device, sums_of_sent(trace.info["collectives"])))


def add_up_collectives(parts: Iterable[CollectiveSums]) -> CollectiveSums:
    """Return the times of several ranks, or of several such sums, together."""
    together: dict[tuple[str, ...], list[tuple[CollectiveKey, Times]]] = {}
    for part in parts:
        for key, entry in part.items():
            together.setdefault(key, []).append(entry)
    sums: CollectiveSums = {}
    for key, entries in together.items():
        sums[key] = (entries[0][0], _plus([times for _, times in entries]))
    return _bounded(sums)


def collective_facts(sums: CollectiveSums) -> tuple[CollectiveTimes, ...]:
    """Return the sums as a run keeps them: those of most time first."""
    rows = []
    for collective, times in sums.values():
        size = collective.group_size
        rows.append(
            CollectiveTimes(
                collective=collective.collective or None,
                process_group=collective.process_group or None,
                group_size=None if math.isnan(size) else int(size),
                message_bytes=collective.message_bytes,
                calls=times.calls,
                time_us=times.time_us,
                median_us=times.median_us,
                shortest_us=times.shortest_us,
            )
        )
    return tuple(sorted(rows, key=lambda row: (-row.time_us, _texts(row))))


def _bounded(sums: CollectiveSums) -> CollectiveSums:
    if len(sums) <= MOST_SIZES:
        return sums
    order = sorted(sums, key=lambda key: (-sums[key][1].time_us, key))
    kept = {key: sums[key] for key in order[:MOST_SIZES]}
    others: dict[tuple[str, ...], list[tuple[CollectiveKey, Times]]] = {}
    for key in order[MOST_SIZES:]:
        collective, times = sums[key]
        without_size = collective._replace(message_bytes=math.nan)
        others.setdefault(_texts(without_size), []).append((without_size, times))
    for key, entries in others.items():
        before = [kept[key]] if key in kept else []
        every = [*before, *entries]
        kept[key] = (every[0][0], _plus([times for _, times in every]))
    return kept


def _plain(key: tuple[Any, ...]) -> tuple[str, str, float, float]:
    collective, group, size, message_bytes = key
    return str(collective), str(group), float(size), float(message_bytes)


def _texts(collective: Any) -> tuple[str, ...]:
    return tuple(str(getattr(collective, name)) for name in CollectiveKey._fields)


def _plus(parts: Sequence[Times]) -> Times:
    if len(parts) == 1:
        return parts[0]
    kept_us = np.concatenate([part.kept_us for part in parts])
    weights = np.concatenate([part.weights for part in parts])
    order = np.argsort(kept_us, kind="stable")
    together = _times(kept_us[order], weights[order], math.fsum(part.time_us for part in parts))
    return replace(together, shortest_us=min(part.shortest_us for part in parts))


def _times(kept_us: np.ndarray, weights: np.ndarray, time_us: float) -> Times:
    """Return times of calls that are in order."""
    calls = float(weights.sum())
    shortest_us = float(kept_us[0])
    if len(kept_us) > MOST_TIMES:
        share = calls / MOST_TIMES
        middles = (np.arange(MOST_TIMES) + 0.5) * share
        kept_us = kept_us[np.searchsorted(np.cumsum(weights), middles)]
        weights = np.full(MOST_TIMES, share)
    return Times(round(calls), float(time_us), shortest_us, kept_us, weights)
