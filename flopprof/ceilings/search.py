"""Search for the best rate of several candidates: the best of many short calls."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

TURN_S = 0.02  # one candidate's turn: longer than most disturbances are apart
PATIENCE_S = 0.5  # stop once this long has improved the best by less than GAIN …
MINIMUM_S = 2.0  # … but give a disturbance that starts with the search time to pass
LIMIT_S = 4.5  # of one search
GAIN = 1.01
FIRST_RATE = 2e10  # candidates are first sized for this; the search doubles it as needed
LEAST_ACTIVE = 4  # candidates that are kept to the end: their rates are close
BUSY_BELOW = 0.9  # CPU time over threads × wall time; less means that others had the cores

Clock = Callable[[], float]
Call = tuple[float, float]  # work a second, CPU time over wall time
Wait = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something to run: its name, its work (FLOPs or bytes), and the call."""

    label: str
    work: float
    call: Callable[[], object]


def search(
    candidates_for: Callable[[float], Sequence[Candidate]],
    *,
    rate: float = FIRST_RATE,
    limit_s: float = LIMIT_S,
    minimum_s: float = MINIMUM_S,
    threads: int | None = None,
    synchronize: Wait = lambda: None,
    clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.process_time,
) -> dict[str, Any]:
    """Return the best rate of any candidate, found in turns until it no longer improves.

    A call in which the process had less than 0.9 of its threads' time counts only where its
    candidate has no other; the measurement is then not `valid`.

    Args:
        candidates_for: Returns candidates sized for a rate; called again when twice it is reached.
        rate: The rate to begin with.
        limit_s: Seconds after which it ends, whatever it found.
        minimum_s: Seconds before which it does not.
        threads: Threads that work; None where the CPU does not do the work.
        synchronize: Waits for a call to be done.
        clock: Wall time in seconds.
        cpu_clock: CPU time of the process in seconds.
    """
    active = candidates_for(rate)
    calls: dict[str, list[Call]] = defaultdict(list)
    least_cpu = -math.inf if threads is None else BUSY_BELOW * threads
    best_then = 0.0
    start = checked = clock()
    while True:
        for candidate in active:
            calls[candidate.label] += take_turn(candidate, synchronize, clock, cpu_clock)
        now = clock()
        if now - checked < PATIENCE_S:
            continue
        best = _best(calls, least_cpu)
        improves = best.per_s >= GAIN * best_then
        settled = best.is_quiet and best.is_steady and not improves and now - start >= minimum_s
        if settled or now - start >= limit_s:
            break
        best_then = best.per_s
        checked = now
        if best.per_s > 2 * rate:
            rate = best.per_s
            active = []  # the old ones' memory is free before the new ones are made
            active = candidates_for(rate)
        else:  # only what may still win is worth more turns
            best_first = sorted(active, key=lambda one: max(calls[one.label]), reverse=True)
            active = best_first[: max(LEAST_ACTIVE, len(active) // 2)]
    return _details(best, calls[best.label], now - start, threads)


def _details(
    best: "_Best", calls: Sequence[Call], seconds: float, threads: int | None
) -> dict[str, Any]:
    """Return what a search says of its best candidate and that one's calls."""
    p5, median, p95 = np.percentile([rate for rate, _ in calls], (5, 50, 95))
    details: dict[str, Any] = {
        "shape": best.label,
        "best_per_s": best.per_s,
        "p5_per_s": float(p5),
        "median_per_s": float(median),
        "p95_per_s": float(p95),
        "calls": len(calls),
        "seconds": seconds,
        "valid": best.is_quiet,
    }
    if threads is not None:
        details |= {"threads": threads, "cpu_over_wall": best.cpu_over_wall / threads}
    return details


class _Best(NamedTuple):
    """The best call of the fastest candidate, a quiet one if it has any."""

    label: str
    per_s: float
    cpu_over_wall: float
    is_quiet: bool
    is_steady: bool  # most of its calls are quiet: else better ones may come


def _best(calls: dict[str, list[Call]], least_cpu: float) -> _Best:
    """Return the best call so far; one with `least_cpu` or more CPU time over wall is quiet."""
    label = max(calls, key=lambda name: max(calls[name]))
    quiet = [call for call in calls[label] if call[1] >= least_cpu]
    per_s, cpu_over_wall = max(quiet or calls[label])
    is_steady = 2 * len(quiet) > len(calls[label])
    return _Best(label, per_s, cpu_over_wall, bool(quiet), is_steady)


def take_turn(
    candidate: Candidate,
    synchronize: Wait,
    clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.process_time,
) -> list[Call]:
    """Return each call's rate and CPU time over wall time, for `TURN_S`."""
    calls = []
    begun = end = clock()
    while end - begun < TURN_S:
        start = clock()
        cpu_start = cpu_clock()
        candidate.call()
        synchronize()
        cpu_s = cpu_clock() - cpu_start
        end = clock()
        seconds = max(end - start, 1e-9)
        calls.append((candidate.work / seconds, cpu_s / seconds))
    return calls
