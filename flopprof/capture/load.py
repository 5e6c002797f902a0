"""How much of the time the machine gave to us: what others took makes times about the machine."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BUSY_FRAC = 0.1
"""Of the time: a tenth of it waited for a core is more than a quiet machine's everyday."""


@dataclass(slots=True)
class HostLoad:
    """What a stretch of work got of the machine.

    Attributes:
        wall_s: How long it took.
        cpu_s: CPU time of all of the process's threads.
        waited_s: How long they were ready and had no core, in sum; NaN where the system does not
            tell (Linux does).
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    waited_s: float = float("nan")

    def busy_frac(self, threads: int) -> float:
        """Return the share of the threads' time that others took; 0.0 for none.

        Where the system does not tell how long threads waited, it is what CPU time lacks of wall
        time × threads; a model that itself waits lacks it, too.
        """
        wanted_s = self.wall_s * threads
        if not wanted_s > 0:
            return 0.0
        if self.waited_s == self.waited_s:
            return min(self.waited_s / wanted_s, 1.0)
        return max(0.0, 1 - self.cpu_s / wanted_s)


@contextmanager
def host_load() -> Iterator[HostLoad]:
    """Measure what the machine gives to the work inside; the figures are there at its end."""
    load = HostLoad()
    waited_s = _waited_s()
    cpu_s = time.process_time()
    start = time.perf_counter()
    try:
        yield load
    finally:
        load.wall_s = time.perf_counter() - start
        load.cpu_s = time.process_time() - cpu_s
        load.waited_s = _waited_s() - waited_s


def busy_warning(load: HostLoad, threads: int) -> str:
    """Return what to tell of a busy machine; "" of a quiet one."""
    frac = load.busy_frac(threads)
    if frac <= BUSY_FRAC:
        return ""
    return (
        f"the machine was busy: {load.cpu_s:.2f} s of CPU time in {load.wall_s:.2f} s with "
        f"{threads} thread{'s' if threads > 1 else ''}, {100 * frac:.0f} % of the time taken by "
        "others: times and rates are about the machine"
    )


def thread_waited_s() -> float:
    """Return how long the calling thread has waited for a core so far; 0.0 if not told."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _waited_s() -> float:
    """Return how long this process's threads have waited for a core so far; NaN if not told."""
    waited_ns = 0
    try:
        for task in Path("/proc/self/task").iterdir():
            waited_ns += int((task / "schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return float("nan")
    return waited_ns / 1e9
