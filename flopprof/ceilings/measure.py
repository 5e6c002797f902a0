"""Measure what a device reaches: the best of many short calls, over several shapes."""

import datetime
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from flopprof import dtypes
from flopprof.ceilings.ceiling import MAIN, Ceiling, Key
from flopprof.ceilings.memories import (
    MEMORY_FRAC,
    Level,
    memory_candidates,
    memory_levels,
    why_not_memory,
)
from flopprof.ceilings.search import (
    FIRST_RATE,
    LIMIT_S,
    MINIMUM_S,
    PATIENCE_S,
    Candidate,
    Wait,
    search,
    take_turn,
)
from flopprof.devices import Device
from flopprof.stages import Stage
from flopprof.units import counted

FLOATS = ("float32", "bfloat16", "float64", "float16")
PRODUCTS = (*FLOATS, "int8", "float8_e4m3fn", "tfloat32")
ALL_S = 52.0  # of all searches: with what lies between them, within a minute
CACHE_LIMIT_S = 1.0  # of one cache: its calls are so short that a disturbance spares most
PATHOLOGICAL_FRAC = 0.1  # of float32's rate; fp16 without hardware reached 0.04 and less
CALLS_S = (0.0004, 0.0008, 0.0016)  # lengths of call aimed at: enough work, few interruptions
SHAPES = ((1, 1, 1), (2, 2, 1), (4, 1, 1), (8, 2, 1), (8, 4, 1), (8, 1, 2), (2, 1, 8), (16, 1, 16))
"""m : k : n of the products tried; which is fastest differs by library, dtype and cache."""
CHANNELS = (64, 128, 256)
"""In and out of the convolutions tried: which is fastest differs by the units' width and caches."""
UNKNOWN_FREE_BYTES = 2**33  # where the system does not say
PROBE_TURNS = 5  # of tiny products that tell whether a dtype has any hardware
PROBE_SIZE = 128  # of their rows, columns and depth
# Elements of the arrays that vector ops are tried on: below the first a call is mostly overhead.
LEAST_ELEMENTS = 2**15
MOST_ELEMENTS = 2.0**28


def keys_to_measure(
    described: dict[str, Any], caches: Mapping[str, int], dtypes: Iterable[str] | None
) -> list[Key]:
    """Return what can be measured: memory and caches, these dtypes; every dtype if they are None.

    Not the vector rate of a GPU: no single op without products is free of its memory's limit.
    """
    on_cpu = described["kind"] == "cpu"
    keys = [(name, "memory") for name in memory_levels(described, caches)]
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
    levels = memory_levels(described, device.caches(), budget_bytes)
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
                reason = why_not_memory(described, levels[name].array_bytes)
            if reason:
                notes.append(reason)
                continue
            title = f"measuring the ceiling of {_title(name, unit)}, {number} of {len(keys)}"
            progress(Stage(title, done=number - 1, total=len(keys)))
            level = levels[name] if unit == "memory" else None
            is_cache = level is not None and level.holds_bytes is not None
            limits = _Limits(
                seconds=CACHE_LIMIT_S if is_cache else min(LIMIT_S, ALL_S / len(keys)),
                minimum_s=PATIENCE_S if is_cache else MINIMUM_S,
                memory_bytes=budget_bytes,
                level=level,
            )
            ceilings.append(_measured(device, (name, unit), described, limits))
    return ceilings


class _Limits(NamedTuple):
    """What one measurement may take."""

    seconds: float
    minimum_s: float
    memory_bytes: int
    level: Level | None  # None but for a memory


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
    level = limits.level
    candidates_for = partial(
        makers[unit], level or name, device.torch_device, most_bytes=limits.memory_bytes
    )
    details = search(
        candidates_for,
        rate=math.inf if unit == "memory" else FIRST_RATE,
        limit_s=limits.seconds,
        minimum_s=limits.minimum_s,
        threads=threads,
        synchronize=device.synchronize,
    )
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    details |= {"torch": torch.__version__, "time": now}
    if level is not None:
        details["array_bytes"] = level.array_bytes or level.again_bytes
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
        holds_bytes=level.holds_bytes if level is not None else None,
    )


def memory_budget(device: Device) -> int:
    """Return the bytes that a measurement may take at one time."""
    free_bytes = device.free_bytes()
    return int(MEMORY_FRAC * (UNKNOWN_FREE_BYTES if free_bytes is None else free_bytes))


def why_not_matmul(dtype: str, device: str, synchronize: Wait) -> str:
    """Return why products of `dtype` are not worth measuring, from tiny ones; "" if they are."""
    try:
        sizes = (PROBE_SIZE, PROBE_SIZE, PROBE_SIZE)
        probes = [_matmul(name, device, *sizes) for name in (dtype, "float32")]
        turns = [_best_rates(probes, synchronize) for _ in range(PROBE_TURNS)]
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        return f"no ceiling for {dtype} products: {str(error).splitlines()[0]}"
    rate, usual = np.max(turns, axis=0)
    if rate < PATHOLOGICAL_FRAC * usual:
        return f"no ceiling for {dtype} products: they run at {rate / usual:.0%} of float32's rate"
    return ""


def _best_rates(probes: list[Candidate], synchronize: Wait) -> list[float]:
    """Return the best rate of each in one turn."""
    return [max(take_turn(probe, synchronize))[0] for probe in probes]


def matmul_candidates(
    dtype: str, device: str, rate: float, *, most_bytes: float = math.inf
) -> list[Candidate]:
    """Return products of several shapes that take 0.4 to 1.6 ms each at this rate.

    On a CPU convolutions too: another library does them, at times faster than any GEMM. All of
    them together take at most `most_bytes`: a smaller share of it makes smaller products.
    """
    with_convolutions = device == "cpu" and dtype in FLOATS
    item_bytes = dtypes.itemsize(dtype) or 4  # tfloat32 is stored as float32
    share_bytes = most_bytes / (len(CALLS_S) * (len(SHAPES) + len(CHANNELS)))
    candidates = []
    for seconds in CALLS_S if with_convolutions else ():
        for channels in CHANNELS:
            # Input, output, and what the library unfolds: 9 filter taps of each channel a pixel.
            pixels = share_bytes / (11 * channels * item_bytes)
            work = min(rate * seconds, 2 * pixels * (channels * 3) ** 2)
            candidates.append(_convolution(dtype, channels, work))
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
    scale = torch.ones(32, dtype=kind, device=device)
    shift = torch.zeros(32, dtype=kind, device=device)

    def bilinear(x: torch.Tensor) -> torch.Tensor:
        return interpolate(x.movedim(3, 1), scale_factor=2, mode="bilinear")

    # FLOPs per element, elements returned per element, the op.
    ops: dict[str, tuple[int, int, Callable[[torch.Tensor], torch.Tensor]]] = {
        "sum": (1, 1, torch.sum),
        "group_norm": (7, 1, lambda x: group_norm(x, 8, scale, shift)),
        "bilinear": (36, 4, bilinear),
    }
    most = most_bytes / 2 / kind.itemsize
    sizes: list[tuple[str, int]] = []
    for op, (flops, returned, _) in ops.items():
        for seconds in CALLS_S:
            enough = min(rate * seconds / flops, MOST_ELEMENTS)
            exponent = round(math.log2(enough))
            if 2**exponent * returned > most:
                exponent = math.floor(math.log2(most / returned))
            sizes.append((op, max(2**exponent, LEAST_ELEMENTS)))
    source = torch.ones(max(size for _, size in sizes), dtype=kind, device=device)
    candidates = []
    for op, size in dict.fromkeys(sizes):
        flops, _, function = ops[op]
        part = source[:size].view(-1, 32, 32, 32)
        candidates.append(Candidate(f"{op} of {size}", flops * size, partial(function, part)))
    return candidates


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


def _convolution(dtype: str, channels: int, work: float) -> Candidate:
    import torch

    filter_size = 3
    size = max(1, round((work / 2 / (channels * filter_size) ** 2) ** 0.5))  # of the output
    generator = torch.Generator().manual_seed(0)

    def channels_last(*sizes: int) -> torch.Tensor:
        values = torch.randn(sizes, generator=generator).to(getattr(torch, dtype))
        return values.to(memory_format=torch.channels_last)

    x = channels_last(1, channels, size + 2, size + 2)
    filters = channels_last(channels, channels, filter_size, filter_size)
    flops = 2.0 * (size * channels * filter_size) ** 2
    label = f"conv2d 3x3 of 1x{channels}x{size + 2}x{size + 2}"
    return Candidate(label, flops, partial(torch.conv2d, x, filters))


def _rounded(size: float) -> int:
    """Return the nearest multiple of what units work on: 64, and 16 of a small size."""
    step = 64 if size >= 128 else 16
    return max(step, step * round(size / step))
