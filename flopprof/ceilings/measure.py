"""Measure what a device reaches: the best of many short calls, over several shapes."""

import datetime
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from flopprof import dtypes
from flopprof.ceilings.ceiling import MAIN, Ceiling, Key
from flopprof.devices import Device
from flopprof.units import counted, percent, si

FLOATS = ("float32", "bfloat16", "float64", "float16")
PRODUCTS = (*FLOATS, "int8", "float8_e4m3fn", "tfloat32")
TURN_S = 0.02  # one candidate's turn: longer than most disturbances are apart
PATIENCE_S = 0.5  # stop once this long has improved the best by less than GAIN …
MINIMUM_S = 2.0  # … but give a disturbance that starts with the search time to pass
LIMIT_S = 4.5  # of one search
ALL_S = 52.0  # of all searches: with what lies between them, within a minute
GAIN = 1.01
FIRST_RATE = 2e10  # candidates are first sized for this; the search doubles it as needed
BUSY_BELOW = 0.9  # CPU time over threads × wall time; less means that others had the cores
PATHOLOGICAL_FRAC = 0.1  # of float32's rate; fp16 without hardware reached 0.04 and less
CALLS_S = (0.0004, 0.0008, 0.0016)  # lengths of call aimed at: enough work, few interruptions
SHAPES = ((1, 1, 1), (2, 2, 1), (4, 1, 1), (8, 2, 1), (8, 4, 1), (8, 1, 2), (2, 1, 8), (16, 1, 16))
"""m : k : n of the products tried; which is fastest differs by library, dtype and cache."""
GPU_ARRAY_BYTES = 2**30  # four times the largest last-level cache (MI300X: 256 MiB, not in its L2)
CPU_ARRAY_BYTES = 2**26  # where the caches are unknown or small
PIECES = 32  # of an array beyond the caches, a call each
MEMORY_FRAC = 0.1  # of what is free: others, and the model itself, use this machine too
UNKNOWN_FREE_BYTES = 2**33  # where the system does not say


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
            calls[candidate.label] += _turn(candidate, synchronize, clock, cpu_clock)
        now = clock()
        if now - checked < PATIENCE_S:
            continue
        best = _best(calls, least_cpu)
        improves = best.per_s >= GAIN * best_then
        settled = best.is_quiet and best.is_steady and not improves and now - start >= MINIMUM_S
        if settled or now - start >= limit_s:
            break
        best_then = best.per_s
        checked = now
        if best.per_s > 2 * rate:
            rate = best.per_s
            active = []  # the old ones' memory is free before the new ones are made
            active = candidates_for(rate)
        else:  # only what may still win is worth more turns
            active = sorted(active, key=lambda c: max(calls[c.label]), reverse=True)
            active = active[: max(4, len(active) // 2)]
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


def _turn(
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


def keys_to_measure(described: dict[str, Any], dtypes: Iterable[str] | None) -> list[Key]:
    """Return what can be measured: main memory, these dtypes; everything if they are None.

    Not the vector rate of a GPU: no single op without products is free of its memory's limit.
    """
    on_cpu = described["kind"] == "cpu"
    keys = [MAIN] if dtypes is not None else [(name, "memory") for name in array_sizes(described)]
    for name in dict.fromkeys(PRODUCTS if dtypes is None else dtypes):
        if name in PRODUCTS and not (on_cpu and name == "tfloat32"):
            keys.append((name, "tensor"))
        if name in FLOATS and on_cpu:
            keys.append((name, "vector"))
    return keys


def measure_ceilings(
    device: Device, keys: Iterable[Key], *, notes: list[str], progress: Callable[[str], None]
) -> list[Ceiling]:
    """Return measured ceilings of those `keys` that run at a usual rate; `notes` says why not."""
    import torch

    described = device.describe()
    keys = list(keys)
    budget_bytes = memory_budget(device)
    sizes = array_sizes(described, budget_bytes)
    tf32 = torch.backends.cuda.matmul
    ceilings: list[Ceiling] = []
    with ExitStack() as cleanup:
        cleanup.enter_context(torch.no_grad())
        cleanup.callback(setattr, tf32, "fp32_precision", tf32.fp32_precision)
        for number, (name, unit) in enumerate(keys, start=1):
            tf32.fp32_precision = "tf32" if name == "tfloat32" else "ieee"
            reason = ""
            if unit == "tensor":
                reason = why_not_matmul(name, device.torch_device, device.synchronize)
            elif name == MAIN[0]:
                reason = why_not_memory(described, sizes[name])
            if reason:
                notes.append(reason)
                continue
            progress(f"measuring the ceiling of {_title(name, unit)}, {number} of {len(keys)}")
            limit_s = min(LIMIT_S, ALL_S / len(keys))
            array_bytes = sizes[name] if unit == "memory" else 0
            limits = _Limits(limit_s, budget_bytes, array_bytes)
            ceilings.append(_measured(device, (name, unit), described, limits))
    return ceilings


class _Limits(NamedTuple):
    """What one measurement may take."""

    seconds: float
    memory_bytes: int
    array_bytes: int  # of each array; 0 but for a memory


def _title(name: str, unit: str) -> str:
    """Return how people call a ceiling: "main memory", "L3", "float32 matmul"."""
    if unit == "memory":
        return "main memory" if name == MAIN[0] else name
    return f"{name} matmul" if unit == "tensor" else f"{name} {unit}"


def _measured(device: Device, key: Key, described: dict[str, Any], limits: _Limits) -> Ceiling:
    """Measure one ceiling."""
    import torch

    name, unit = key
    threads = described["threads"] if described["kind"] == "cpu" else None
    makers: dict[str, Callable[..., list[Candidate]]] = {
        "tensor": matmul_candidates,
        "vector": vector_candidates,
        "memory": memory_candidates,
    }
    subject = limits.array_bytes if unit == "memory" else name
    candidates_for = partial(
        makers[unit], subject, device.torch_device, most_bytes=limits.memory_bytes
    )
    details = search(
        candidates_for,
        rate=math.inf if unit == "memory" else FIRST_RATE,
        limit_s=limits.seconds,
        threads=threads,
        synchronize=device.synchronize,
    )
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    details |= {"torch": torch.__version__, "time": now}
    if unit == "memory":
        details["array_bytes"] = limits.array_bytes
    source = f"measured {now[:10]}, {details['shape']}"
    if threads:
        source += f", {counted(threads, 'thread')}"
    return Ceiling(
        "DRAM" if name == MAIN[0] else name,
        unit,
        details["best_per_s"],
        kind="measured",
        source=source,
        valid=details.pop("valid"),
        measurement=details,
    )


def memory_budget(device: Device) -> int:
    """Return the bytes that a measurement may take at one time."""
    free_bytes = device.free_bytes()
    return int(MEMORY_FRAC * (UNKNOWN_FREE_BYTES if free_bytes is None else free_bytes))


def why_not_memory(described: dict[str, Any], array_bytes: int) -> str:
    """Return why arrays of that size say nothing of the main memory; "" if they do."""
    cache_bytes = max(described.get("l2_bytes") or 0, described.get("l3_bytes") or 0)
    if array_bytes >= cache_bytes:  # two arrays at least, in turns: twice the cache
        return ""
    return (
        f"no ceiling for main memory: arrays beyond its caches of {si(float(cache_bytes), 'B')} "
        f"would take more than {percent(MEMORY_FRAC)} of the memory that is free"
    )


def why_not_matmul(dtype: str, device: str, synchronize: Wait) -> str:
    """Return why products of `dtype` are not worth measuring, from tiny ones; "" if they are."""
    try:
        probes = [_matmul(name, device, 128, 128, 128) for name in (dtype, "float32")]
        turns = [[max(_turn(probe, synchronize))[0] for probe in probes] for _ in range(5)]
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        return f"no ceiling for {dtype} products: {str(error).splitlines()[0]}"
    rate, usual = np.max(turns, axis=0)
    if rate < PATHOLOGICAL_FRAC * usual:
        return f"no ceiling for {dtype} products: they run at {rate / usual:.0%} of float32's rate"
    return ""


def matmul_candidates(
    dtype: str, device: str, rate: float, *, most_bytes: float = math.inf
) -> list[Candidate]:
    """Return products of several shapes that take 0.4 to 1.6 ms each at this rate.

    On a CPU convolutions too: another library does them, at times faster than any GEMM. All of
    them together take at most `most_bytes`: a smaller share of it makes smaller products.
    """
    both = device == "cpu" and dtype in FLOATS
    item_bytes = dtypes.itemsize(dtype) or 4  # tfloat32 is stored as float32
    share_bytes = most_bytes / (len(CALLS_S) * (len(SHAPES) + 1))
    candidates = []
    for seconds in CALLS_S if both else ():
        # Input, output, and what the library unfolds: 9 filter taps of 64 channels a pixel.
        pixels = share_bytes / (11 * 64 * item_bytes)
        candidates.append(_convolution(dtype, min(rate * seconds, 2 * pixels * (64 * 3) ** 2)))
    for seconds in CALLS_S:
        for shape in SHAPES:
            m, k, n = shape
            by_time = (rate * seconds / 2 / (m * k * n)) ** (1 / 3)
            # Made as float32 first.
            by_memory = (share_bytes / (4 + item_bytes) / (m * k + k * n + m * n)) ** 0.5
            unit = min(by_time, by_memory)
            sizes = [_rounded(factor * unit) for factor in shape]
            candidates.append(_matmul(dtype, device, *sizes))
    return candidates


def vector_candidates(
    dtype: str, device: str, rate: float, *, most_bytes: float = math.inf
) -> list[Candidate]:
    """Return ops without products, each over data of a few sizes that suit this rate.

    The data is one array, of which each takes its part; it takes half of `most_bytes` at most, and
    what an op returns the other half.

    Their FLOPs per element are by ARCHITECTURE.md's rules. With several for each element touched,
    a norm and an upsampling (nine for each of four outputs) come nearest to what the units can do.
    """
    import torch
    from torch.nn.functional import group_norm, interpolate

    kind = getattr(torch, dtype)
    ones_32 = torch.ones(32, dtype=kind, device=device)
    zero = torch.zeros(32, dtype=kind, device=device)

    def bilinear(x: torch.Tensor) -> torch.Tensor:
        return interpolate(x.movedim(3, 1), scale_factor=2, mode="bilinear")

    ops: dict[str, tuple[int, int, Callable[[torch.Tensor], torch.Tensor]]] = {
        "sum": (1, 1, torch.sum),
        "group_norm": (7, 1, lambda x: group_norm(x, 8, ones_32, zero)),
        "bilinear": (36, 4, bilinear),
    }  # FLOPs per element, elements returned per element, the op
    most = most_bytes / 2 / kind.itemsize
    sizes: list[tuple[str, int]] = []
    for op, (flops, returned, _) in ops.items():
        for seconds in CALLS_S:
            enough = min(rate * seconds / flops, 2.0**28)
            exponent = round(math.log2(enough))
            if 2**exponent * returned > most:
                exponent = math.floor(math.log2(most / returned))
            sizes.append((op, 2 ** max(exponent, 15)))
    source = torch.ones(max(size for _, size in sizes), dtype=kind, device=device)
    candidates = []
    for op, size in dict.fromkeys(sizes):
        flops, _, function = ops[op]
        part = source[:size].view(-1, 32, 32, 32)
        candidates.append(Candidate(f"{op} of {size}", flops * size, partial(function, part)))
    return candidates


def memory_candidates(
    array_bytes: int, device: str, _rate: float, *, most_bytes: float = math.inf
) -> list[Candidate]:
    """Return a copy and a triad over float32 arrays of this size; what is written counts once.

    On a CPU each call does the next piece of large arrays: short calls find a busy machine quiet.
    """
    import torch

    array_bytes = int(min(array_bytes, most_bytes / 3))
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

    return [Candidate("copy (2N)", 2 * n_bytes, copy), Candidate("triad (3N)", 3 * n_bytes, triad)]


def array_sizes(described: dict[str, Any], budget_bytes: float = math.inf) -> dict[str, int]:
    """Return the bytes of one of three arrays by memory level, for levels that can be measured.

    Not L1 and L2: a call that stays in them takes some microseconds, one of them torch's own (an
    EPYC's L2 came out at 88 GB/s, its L3 at 94).
    """
    l2_bytes = described.get("l2_bytes") or 0
    l3_bytes = described.get("l3_bytes") or 0
    least_bytes = CPU_ARRAY_BYTES if described["kind"] == "cpu" else GPU_ARRAY_BYTES
    most_bytes = min((described.get("memory_bytes") or 2**33) // 8, budget_bytes / 3)
    main_bytes = max(4 * l2_bytes, 4 * l3_bytes, least_bytes)
    sizes = {MAIN[0]: int(min(main_bytes, most_bytes))}
    if l3_bytes >= 4 * l2_bytes > 0:
        sizes["L3"] = int((l2_bytes * l3_bytes) ** 0.5) // 3  # three arrays, between L2 and L3
    return sizes


def _matmul(dtype: str, device: str, m: int, k: int, n: int) -> Candidate:
    import torch

    generator = torch.Generator(device).manual_seed(0)  # the user's random state stays as it is
    # Random values: a GPU draws less power on constants, and then clocks higher.
    a = torch.randn((m, k), generator=generator, device=device)
    b = torch.randn((k, n), generator=generator, device=device)
    label = f"mm {m}x{k}x{n}"
    work = 2.0 * m * k * n
    kind = getattr(torch, "float32" if dtype == "tfloat32" else dtype)
    if dtype == "int8":
        return Candidate(
            label, work, partial(torch._int_mm, a.mul(30).to(kind), b.mul(30).to(kind))
        )
    if dtype.startswith("float8"):
        a = a.to(kind)
        b = b.t().to(kind, memory_format=torch.contiguous_format).t()
        one = torch.ones((), device=device)
        call = partial(torch._scaled_mm, a, b, one, one, out_dtype=torch.bfloat16)
        return Candidate(label, work, call)
    out = torch.empty(m, n, dtype=kind, device=device)
    return Candidate(label, work, partial(torch.mm, a.to(kind), b.to(kind), out=out))


def _convolution(dtype: str, work: float) -> Candidate:
    import torch

    channels = 64
    filter_size = 3
    size = max(1, round((work / 2 / (channels * filter_size) ** 2) ** 0.5))  # of the output
    generator = torch.Generator().manual_seed(0)
    x, filters = (
        torch.randn(shape, generator=generator)
        .to(getattr(torch, dtype))
        .to(memory_format=torch.channels_last)
        for shape in (
            (1, channels, size + 2, size + 2),
            (channels, channels, filter_size, filter_size),
        )
    )
    flops = 2.0 * (size * channels * filter_size) ** 2
    label = f"conv2d 3x3 of 1x{channels}x{size + 2}x{size + 2}"
    return Candidate(label, flops, partial(torch.conv2d, x, filters))


def _rounded(size: float) -> int:
    step = 64 if size >= 128 else 16
    return max(step, step * round(size / step))
