"""Measure bandwidths: of the main memory, and on a CPU of its caches."""

import itertools
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from flopprof.ceilings.ceiling import MAIN
from flopprof.ceilings.search import Candidate
from flopprof.units import percent, si

GPU_ARRAY_BYTES = 2**30  # four times the largest last-level cache (MI300X: 256 MiB, not in its L2)
CPU_ARRAY_BYTES = 2**26  # where the caches are unknown or small
PIECES = 32  # of an array beyond the caches, a call each
MEMORY_FRAC = 0.1  # of what is free: others, and the model itself, use this machine too

CACHES = ("L1", "L2", "L3")
APART = 4  # × the cache before it: a cache that is not larger by so much is hard to tell from it
UNKNOWN_MEMORY_BYTES = 2**33  # where the device does not say
AGAIN_BYTES = 2**22  # that each thread reads in one call: 20 µs and more, of which torch takes one


class Level(NamedTuple):
    """A memory level, and what its bandwidth is measured with.

    Attributes:
        array_bytes: Of each of three arrays, to be copied and added; 0 for none.
        again_bytes: Of an array that every thread reads again and again; 0 for none.
        holds_bytes: What the threads together can keep in it; None for the main memory.
    """

    array_bytes: int
    again_bytes: int = 0
    holds_bytes: int | None = None


def memory_levels(
    described: Mapping[str, Any], caches: Mapping[str, int], budget_bytes: float = math.inf
) -> dict[str, Level]:
    """Return the levels that can be measured, by name: the main memory, then caches.

    A torch call takes a microsecond by itself, so L1 is only read again and again within one call,
    and L2 both ways.

    Args:
        described: What the device says of itself.
        caches: Bytes by level that its threads can use, as `Device.caches` returns them.
        budget_bytes: What all arrays of one measurement may take.
    """
    known_bytes = (described.get("l2_bytes") or 0, described.get("l3_bytes") or 0)
    least_bytes = CPU_ARRAY_BYTES if described["kind"] == "cpu" else GPU_ARRAY_BYTES
    memory_bytes = described.get("memory_bytes") or UNKNOWN_MEMORY_BYTES
    most_bytes = min(memory_bytes // 8, budget_bytes / 3)  # three arrays: 3/8 of the memory
    main_bytes = max(4 * max(known_bytes), least_bytes)
    levels = {MAIN[0]: Level(int(min(main_bytes, most_bytes)))}
    threads = described.get("threads") or 1
    before_bytes = 0
    for name in CACHES:
        holds_bytes = caches.get(name, 0)
        if holds_bytes > 0 and holds_bytes >= APART * before_bytes:
            its_share = holds_bytes // threads // 2
            if name == "L1":
                levels[name] = Level(0, its_share, holds_bytes)
            elif name == "L2":
                levels[name] = Level(holds_bytes // 6, its_share, holds_bytes)  # three: its half
            else:  # three arrays, between L2 and L3
                levels[name] = Level(_between(before_bytes, holds_bytes) // 3, 0, holds_bytes)
        before_bytes = max(before_bytes, holds_bytes)
    return levels


def _between(smaller_bytes: int, larger_bytes: int) -> int:
    """Return the size in the middle of two caches; half of the larger where no other is known."""
    return int((smaller_bytes * larger_bytes) ** 0.5) or larger_bytes // 2


def why_not_memory(described: dict[str, Any], array_bytes: int) -> str:
    """Return why arrays of that size say nothing of the main memory; "" if they do."""
    cache_bytes = max(described.get("l2_bytes") or 0, described.get("l3_bytes") or 0)
    if array_bytes >= cache_bytes:  # two arrays at least, in turns: twice the cache
        return ""
    return (
        f"no ceiling for main memory: arrays beyond its caches of {si(float(cache_bytes), 'B')} "
        f"would take more than {percent(MEMORY_FRAC)} of the memory that is free"
    )


def memory_candidates(
    level: Level, device: str, _rate: float, *, most_bytes: float = math.inf
) -> list[Candidate]:
    """Return ops over float32 arrays that suit this level; what is written counts once.

    A copy, a triad, an op in place, and a sum that reads one array again and again. On a CPU each
    call does the next piece of large arrays: short calls find a busy machine quiet.
    """
    candidates = []
    if level.array_bytes:
        candidates += _moving(int(min(level.array_bytes, most_bytes / 3)), device)
    if level.again_bytes:
        candidates.append(_reading_again(level.again_bytes))
    return candidates


def _moving(array_bytes: int, device: str) -> list[Candidate]:
    """Return a copy, a triad and an op in place."""
    import torch

    pieces = PIECES if device == "cpu" and array_bytes >= CPU_ARRAY_BYTES else 1
    arrays = [torch.ones(array_bytes // 4, device=device).tensor_split(pieces) for _ in range(3)]
    n_bytes = 4.0 * arrays[0][-1].numel()  # the smallest of them
    following = itertools.cycle(zip(*arrays, strict=True))

    def copy() -> object:
        a, b, _ = next(following)
        return a.copy_(b)

    def triad() -> object:
        a, b, c = next(following)
        return torch.add(b, c, alpha=0.5, out=a)

    def in_place() -> object:
        a, _, _ = next(following)
        return torch.relu_(a)

    return [
        Candidate("copy (2N)", 2 * n_bytes, copy),
        Candidate("triad (3N)", 3 * n_bytes, triad),
        Candidate("in place (2N)", 2 * n_bytes, in_place),
    ]


def _reading_again(array_bytes: int) -> Candidate:
    """Return a sum of many rows that are all the same array: it stays where the first row put it.

    A sum needs an addition for each element, so this is what PyTorch reads at most, which is less
    than what the cache delivers: half of it in an L1, four fifths in an L2.
    """
    import torch

    rows = torch.get_num_threads() * max(1, AGAIN_BYTES // array_bytes)
    array = torch.ones(array_bytes // 4)
    call = partial(torch.sum, array.expand(rows, -1), 1)
    return Candidate("read again (N)", 4.0 * array.numel() * rows, call)
