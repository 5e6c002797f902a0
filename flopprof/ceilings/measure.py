"""Measure what a device reaches: the best of many short calls, over several shapes."""

import datetime
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from flopprof.ceilings.file import MAIN, Ceiling, Key
from flopprof.devices import Device

UNITS: dict[str, tuple[str, ...]] = {  # what is measured; integers do FLOPs in products alone
    **dict.fromkeys(("float32", "bfloat16", "float64", "float16"), ("tensor", "vector")),
    **dict.fromkeys(("tfloat32", "int8"), ("tensor",)),
}
TURN_S = 0.02  # one candidate's turn: longer than most disturbances are apart
PATIENCE_S = 0.5  # stop once this long has improved the best by less than GAIN …
MINIMUM_S = 2.0  # … but give a disturbance that starts with the search time to pass
LIMIT_S = 5.0
GAIN = 1.01
BUSY_BELOW = 0.9  # CPU time over threads × wall time; less means that others had the cores
PATHOLOGICAL_FRAC = 0.1  # of float32's rate; fp16 without hardware reached 0.04 and less
CALLS_S = (0.0004, 0.0008, 0.0016)  # lengths of call aimed at: enough work, few interruptions
SHAPES = ((1, 1, 1), (2, 2, 1), (4, 1, 1), (8, 2, 1), (8, 4, 1), (8, 1, 2), (2, 1, 8), (16, 1, 16))
"""m : k : n of the products tried; which is fastest differs by library, dtype and cache."""
VECTOR_OPS = {"mul_": 1, "sum": 1, "layer_norm": 7, "group_norm": 7}
"""Ops without products and their FLOPs per element by ARCHITECTURE.md's rules; the fused ones
touch each element once for seven, and so come nearest to what the vector units can do."""
GPU_ARRAY_BYTES = 2**30  # four times the largest last-level cache (MI300X: 256 MiB, not in its L2)
CPU_ARRAY_BYTES = 2**26  # where the caches are unknown or small

Call = Callable[[], object]
Synchronize = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something to run: its name, its work (FLOPs or bytes), and the call."""

    label: str
    work: float
    call: Call


@dataclass(frozen=True, slots=True)
class Measurement:
    """The fastest candidate, its best rate (work per second), and how its calls spread."""

    label: str
    best_per_s: float
    valid: bool
    details: dict[str, float]


def search(
    candidates_for: Callable[[float], Sequence[Candidate]],
    *,
    rate: float = math.inf,
    threads: int | None = None,
    synchronize: Synchronize = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> Measurement:
    """Return the best rate of any candidate, in turns, until it no longer improves.

    A turn in which the process had less than 0.9 of its threads' time counts only if there is no
    other; the measurement is then not valid.

    Args:
        candidates_for: Returns candidates sized for a rate; called again when twice it is reached.
        rate: The rate to begin with.
        threads: Threads that work; None where the CPU does not do the work.
        synchronize: Waits for a call to be done.
        clock: Wall time in seconds.
        cpu_clock: CPU time of the process in seconds.
    """
    candidates = list(candidates_for(rate))
    rates: list[list[float]] = [[] for _ in candidates]
    turns: list[tuple[bool, float, int, float]] = []  # quiet, best rate, candidate, CPU over wall
    active = list(range(len(candidates)))
    start = checked = clock()
    best_then = 0.0
    while True:
        for index in active:
            begun, cpu_begun = clock(), cpu_clock()
            turn = list(_turn(candidates[index], synchronize, clock))
            cpu_frac = (cpu_clock() - cpu_begun) / ((clock() - begun) * (threads or 1))
            rates[index] += turn
            turns.append((not threads or cpu_frac >= BUSY_BELOW, max(turn), index, cpu_frac))
        now = clock()
        if now - checked < PATIENCE_S:
            continue
        quiet, best, index, cpu_frac = max(turns)
        settled = quiet and best < GAIN * best_then and now - start >= MINIMUM_S
        if settled or now - start >= LIMIT_S:
            break
        best_then, checked = best, now
        if best > 2 * rate:
            rate, grown = best, candidates_for(best)
            active = list(range(len(candidates), len(candidates) + len(grown)))
            candidates += grown
            rates += [[] for _ in grown]
        else:  # only what may still win is worth more turns
            active = sorted(active, key=lambda i: -max(rates[i]))[:4]
    spread = statistics.quantiles(rates[index] * 2, n=20, method="inclusive")
    details = {
        "best_per_s": best,
        "median_per_s": statistics.median(rates[index]),
        "p5_per_s": spread[0],
        "p95_per_s": spread[-1],
        "calls": len(rates[index]),
        "seconds": now - start,
        **({"threads": threads, "cpu_over_wall": cpu_frac} if threads else {}),
    }
    return Measurement(candidates[index].label, best, quiet, details)


def _turn(
    candidate: Candidate, synchronize: Synchronize, clock: Callable[[], float] = time.perf_counter
) -> Iterator[float]:
    """Yield the rates of calls for `TURN_S`."""
    begun = clock()
    while True:
        start = clock()
        candidate.call()
        synchronize()
        end = clock()
        yield candidate.work / max(end - start, 1e-9)
        if end - begun >= TURN_S:
            return


def measure_ceilings(
    device: Device,
    described: dict[str, Any],
    keys: Iterable[Key],
    *,
    notes: list[str],
    progress: Callable[[str], None],
) -> list[Ceiling]:
    """Return measured ceilings for those of `keys` that can be measured; `notes` says why not."""
    import torch

    threads = described["threads"] if described["kind"] == "cpu" else None
    sizes, place = array_sizes(described), device.torch_device
    found: list[Ceiling] = []
    for name, unit in keys:
        if not (name in sizes if unit == "memory" else unit in UNITS.get(name, ())):
            continue
        with _settings(threads, name):
            reason = why_not_matmul(name, place, device.synchronize) if unit == "tensor" else ""
            if reason:
                notes.append(reason)
                continue
            progress(f"measuring the ceiling of {name} {unit}")
            make, rate = {
                "tensor": (partial(matmul_candidates, name, place), 5e10),
                "vector": (partial(vector_candidates, name, place), 1e10),
                "memory": (partial(memory_candidates, sizes.get(name, 0), place), math.inf),
            }[unit]
            result = search(make, rate=rate, threads=threads, synchronize=device.synchronize)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        details = {"shape": result.label, **result.details, "torch": torch.__version__, "time": now}
        if unit == "memory":
            details["array_bytes"] = sizes[name]
        source = f"measured {now[:10]}, {result.label}" + (f", {threads} threads" * bool(threads))
        level = "DRAM" if name == MAIN[0] else name
        found.append(
            Ceiling(level, unit, result.best_per_s, "measured", source, "", result.valid, details)
        )
    return found


def why_not_matmul(dtype: str, device: str, synchronize: Synchronize) -> str:
    """Return why products of `dtype` are not worth measuring, from tiny ones; "" if they are."""
    names = (dtype, "float32")
    try:
        probes = [_matmul(name, device, 128, 128, 128) for name in names]
        turns = [[max(_turn(probe, synchronize)) for probe in probes] for _ in range(5)]
    except (RuntimeError, TypeError, AttributeError) as error:
        return f"no ceiling for {dtype} products: {str(error).splitlines()[0]}"
    rate, usual = (max(of_one) for of_one in zip(*turns, strict=True))
    if rate < PATHOLOGICAL_FRAC * usual:
        return f"no ceiling for {dtype} products: they run at {rate / usual:.0%} of float32's rate"
    return ""


def matmul_candidates(dtype: str, device: str, rate: float) -> list[Candidate]:
    """Return products of several shapes that take 0.4 to 1.6 ms each at this rate."""
    found: dict[str, Candidate] = {}
    for seconds in CALLS_S:
        for shape in SHAPES:
            unit = (rate * seconds / 2 / math.prod(shape)) ** (1 / 3)
            candidate = _matmul(dtype, device, *(_rounded(unit * factor) for factor in shape))
            found[candidate.label] = candidate
    return list(found.values())


def vector_candidates(dtype: str, device: str, rate: float) -> list[Candidate]:
    """Return the `VECTOR_OPS`, each over data of a few sizes that suit this rate."""
    import torch
    import torch.nn.functional as functional

    kind = getattr(torch, dtype)
    found: dict[str, Candidate] = {}
    for op, flops in VECTOR_OPS.items():
        for seconds in CALLS_S:
            exponent = round(math.log2(rate * seconds / flops))
            x = torch.ones(2 ** min(max(exponent, 15), 28), dtype=kind, device=device)
            weight, bias = torch.ones_like(x[:512]), torch.zeros_like(x[:512])
            rows, images = x.view(-1, 512), x.view(-1, 32, 32, 32)
            call: Call = {
                "mul_": partial(x.mul_, 1.0),
                "sum": partial(torch.sum, x),
                "layer_norm": partial(functional.layer_norm, rows, (512,), weight, bias),
                "group_norm": partial(functional.group_norm, images, 8, weight[:32], bias[:32]),
            }[op]
            label = f"{op} of {x.numel()}"
            found[label] = Candidate(label, flops * x.numel(), call)
    return list(found.values())


def memory_candidates(array_bytes: int, device: str, _rate: float) -> list[Candidate]:
    """Return a copy and a triad over float32 arrays of this size; what is written counts once."""
    import torch

    a, b, c = (torch.ones(array_bytes // 4, device=device) for _ in range(3))
    n_bytes = 4.0 * a.numel()
    return [
        Candidate("copy (2N)", 2 * n_bytes, partial(a.copy_, b)),
        Candidate("triad (3N)", 3 * n_bytes, partial(torch.add, b, c, alpha=0.5, out=a)),
    ]


def array_sizes(described: dict[str, Any]) -> dict[str, int]:
    """Return the bytes of one array by memory level, for the levels that can be measured."""
    l2, l3 = described.get("l2_bytes") or 0, described.get("l3_bytes") or 0
    least = CPU_ARRAY_BYTES if described["kind"] == "cpu" else GPU_ARRAY_BYTES
    most = (described.get("memory_bytes") or 2**33) // 8
    sizes = {MAIN[0]: min(max(4 * l2, 4 * l3, least), most)}
    if l3 >= 4 * l2 > 0:
        sizes["L3"] = int((l2 * l3) ** 0.5) // 3  # three arrays, between L2 and L3
    return sizes


@contextmanager
def _settings(threads: int | None, dtype: str) -> Iterator[None]:
    """Hold torch's thread count, no gradients, and TF32 for "tfloat32" alone, for the block."""
    import torch

    before, matmul = torch.get_num_threads(), torch.backends.cuda.matmul
    precision = matmul.fp32_precision
    try:
        torch.set_num_threads(threads or before)
        if threads is None:
            matmul.fp32_precision = "tf32" if dtype == "tfloat32" else "ieee"
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)
        if threads is None:
            matmul.fp32_precision = precision


def _matmul(dtype: str, device: str, m: int, k: int, n: int) -> Candidate:
    import torch

    generator = torch.Generator(device).manual_seed(0)  # the user's random state stays as it is
    # Random values: a GPU draws less power on constants, and then clocks higher.
    a, b = (torch.randn(s, generator=generator, device=device) for s in ((m, k), (k, n)))
    label, work = f"mm {m}x{k}x{n}", 2.0 * m * k * n
    if dtype == "int8":
        a, b = a.mul(30).to(torch.int8), b.mul(30).to(torch.int8)
        return Candidate(label, work, partial(torch._int_mm, a, b))
    kind = getattr(torch, "float32" if dtype == "tfloat32" else dtype)
    out = torch.empty(m, n, dtype=kind, device=device)
    return Candidate(label, work, partial(torch.mm, a.to(kind), b.to(kind), out=out))


def _rounded(size: float) -> int:
    step = 64 if size >= 128 else 16
    return max(step, step * round(size / step))
