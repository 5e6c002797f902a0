"""Tell a change of time from noise, by the spread of repeated calls in both runs."""

import math
from typing import Any, NamedTuple

import pandas as pd

from flopprof.provenance import CallProvenance, TraceProvenance
from flopprof.run import Run
from flopprof.units import counted

FLOOR_FRAC = 0.05
"""A smaller change of a median is noise, however narrow the spreads are.

Calls of one process share its memory layout, cores and clocks, so their spread says nothing of how
two processes differ: some percent (Mytkowicz et al., Producing Wrong Data Without Doing Anything
Obviously Wrong, ASPLOS 2009).
"""

SITE_FLOOR_FRAC = 0.1
"""The same for a site: it is timed by few traced calls, one after the other."""

BUSY_FLOOR_FRAC = 0.3
"""The floor where others took part of the machine's time during one of the runs.

Medians of 41 runs of one small net lay up to 32 % apart on 2 cores at a load of 16.
"""

BUSY_SITE_FLOOR_FRAC = 1.0
"""The same for a site: which ops others interrupt is chance (in these runs, up to 55 % apart)."""

SHARE_FLOOR = 0.02
"""A site whose time changed by less than this share of the whole run's is noise: of many sites
with few samples each, one will lie outside its spread by chance."""

MOST_TIED = 100
"""Sites that are compared with the first: where more cannot be told from it, no rank matters."""

SLOWER = "slower"
FASTER = "faster"
NOISE = "noise"
UNKNOWN = "unknown"


class Timed(NamedTuple):
    """A repeated measurement in µs; NaN where there is no time, or no spread.

    `of` says what was measured: wall time of a call, a profiler step, or the span of a trace.
    """

    median_us: float
    p5_us: float = math.nan
    p95_us: float = math.nan
    samples: int | None = None
    of: str = ""

    @property
    def least_us(self) -> float:
        """What repeated calls hardly go below."""
        return self.median_us - _widening(self.samples) * (self.median_us - self.p5_us)

    @property
    def most_us(self) -> float:
        """What repeated calls hardly exceed."""
        return self.median_us + _widening(self.samples) * (self.p95_us - self.median_us)

    @property
    def has_spread(self) -> bool:
        """Whether there are two samples or more: one has no spread, however it is written."""
        several = self.samples is None or self.samples > 1
        return several and math.isfinite(self.p5_us + self.p95_us)


def _widening(samples: int | None) -> float:
    """Return by what to widen the percentiles of so many samples: few hardly reach the tails.

    Of a normal distribution, the 95th percentile lies 1.64 standard deviations from the middle;
    that of 5, 10, 20 samples on average 1.03, 1.30, 1.43: the factors are 1.6, 1.27, 1.15.
    """
    return 1.0 if samples is None else 1 + 3 / max(samples, 1)


def timed_of(run: Run) -> Timed:
    """Return how long a call of the run took; of traces a profiler step, else their whole span."""
    provenance = run.provenance
    if isinstance(provenance, CallProvenance):
        timing = provenance.timing
        wall_us = timing.wall_us
        return Timed(wall_us.median, wall_us.p5, wall_us.p95, timing.repeats, "call")
    if not isinstance(provenance, TraceProvenance):
        return Timed(math.nan)
    steps_us = pd.Series([step.duration_us for step in provenance.steps], dtype=float).dropna()
    if not len(steps_us):
        return Timed(provenance.trace.span_us, samples=1, of="trace")
    p5_us, median_us, p95_us = map(float, steps_us.quantile([0.05, 0.5, 0.95]))
    return Timed(median_us, p5_us, p95_us, len(steps_us), "step")


def floor_frac(before: Run, after: Run, *, of_sites: bool = False) -> float:
    """Return below which relative change nothing is told from noise, whatever the spreads.

    It is one of the constants above, or by how much a run's own calls drifted while it was
    measured, if that is more.
    """
    is_busy = any(was_busy(run) for run in (before, after))
    if of_sites:
        floor = BUSY_SITE_FLOOR_FRAC if is_busy else SITE_FLOOR_FRAC
    else:
        floor = BUSY_FLOOR_FRAC if is_busy else FLOOR_FRAC
    return max(floor, _drift_frac(before), _drift_frac(after))


def tied_at_top(run: Run) -> float:
    """Return how many sites cannot be told from the one that takes most time; NaN if not known.

    They differ from it by no more than chance makes them differ, in this run or in another one.
    Of more than `MOST_TIED` sites the first are looked at.
    """
    sites = run.sites[run.sites["time_us"] > 0].head(MOST_TIED + 1)
    times = [
        Timed(site.time_us, site.time_p5_us, site.time_p95_us, site.samples, "site")
        for site in sites.itertuples(index=False)
    ]
    if not times or not times[0].has_spread:
        return math.nan
    floor = floor_frac(run, run, of_sites=True)
    results = [significance(other, times[0], floor) for other in times[1:]]
    return float(sum(result in (NOISE, UNKNOWN) for result in results))


def ranking_lines(run: Run) -> list[tuple[str, str]]:
    """Return a line of the summary where it cannot be told which site takes most time."""
    tied = tied_at_top(run)
    if not tied > 0:
        return []
    text = "cannot tell which site takes most: the first and "
    text += f"{counted(int(tied), 'other')} differ by less than their times vary"
    return [("Ranking", text)]


def was_busy(run: Run) -> bool:
    """Return whether others took part of the machine's time while the run was measured."""
    return any(warning.code == "load" for warning in run.provenance.warnings)


def _drift_frac(run: Run) -> float:
    provenance = run.provenance
    if not isinstance(provenance, CallProvenance) or provenance.timing.observer is None:
        return 0.0
    drift = abs(provenance.timing.observer.drift_frac)
    return drift if math.isfinite(drift) else 0.0


def significance(before: Timed, after: Timed, floor: float = FLOOR_FRAC) -> str:
    """Return slower or faster, noise, or unknown where a time or a spread is missing.

    A change counts where the spreads of the two do not touch, and the medians differ by more than
    `floor` of the smaller.
    """
    comparable = before.of == after.of
    if not comparable or not (before.has_spread and after.has_spread):
        return UNKNOWN
    smaller_us = min(before.median_us, after.median_us)
    if not abs(after.median_us - before.median_us) > floor * smaller_us:
        return NOISE
    if after.least_us > before.most_us:
        return SLOWER
    if after.most_us < before.least_us:
        return FASTER
    return NOISE


def change_frac(before: float, after: float) -> float:
    """Return by which share something grew; NaN where it is not known, or was nothing."""
    return after / before - 1 if before > 0 else math.nan


def visible_frac(before: Timed, after: Timed, floor: float) -> float:
    """Return the least slowdown that would have been seen; NaN without spreads."""
    if not (before.has_spread and after.has_spread):
        return math.nan
    above = before.most_us / before.median_us
    below = after.least_us / after.median_us
    return max(above / below - 1, floor) if below > 0 else math.inf


def described(before: Run, after: Run) -> dict[str, Any]:
    """Return times of both runs, their change, and what it is worth, as `diff` prints it."""
    earlier = timed_of(before)
    later = timed_of(after)
    floor = floor_frac(before, after)
    is_same_kind = earlier.of == later.of
    growth = change_frac(earlier.median_us, later.median_us) if is_same_kind else math.nan
    return {
        "before": earlier._asdict(),
        "after": later._asdict(),
        "change_frac": growth,
        "significance": significance(earlier, later, floor),
        "floor_frac": floor,
        "visible_frac": visible_frac(earlier, later, floor),
    }
