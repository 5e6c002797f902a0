"""The CPU, through torch's own thread pool."""

import os
import platform
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from flopprof.devices import device
from flopprof.errors import UsageError


@device("cpu")
class CpuDevice:
    """The processor this process runs on."""

    torch_device = "cpu"

    def __init__(self, name: str) -> None:
        pass

    @classmethod
    def matches(cls, name: str) -> bool:
        """Return whether `name` is "cpu"."""
        return name in ("cpu", "cpu:0")

    def activities(self) -> list[Any]:
        """Return the host activity alone."""
        from torch.profiler import ProfilerActivity

        return [ProfilerActivity.CPU]

    def synchronize(self) -> None:
        """Return at once: ops on a CPU are done when they return."""

    def telemetry(self) -> AbstractContextManager[dict[str, Any]]:
        """Return a context without readings: no clock or energy counter is to be relied on."""
        return nullcontext({})

    def tf32(self) -> AbstractContextManager[None]:
        """Raise: a CPU has no TF32."""
        raise UsageError("--tf32 is for GPUs, and this is the CPU", remedy="--device cuda")

    def elapsed_us(self, call: Callable[[], object]) -> float:
        """Return the wall time."""
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e6

    def describe(self) -> dict[str, Any]:
        """Return the model's name, usable cores, torch's threads, vector extension and caches."""
        import torch

        caches, cores, memory_bytes = cache_bytes(), os.cpu_count(), None
        if hasattr(os, "sched_getaffinity"):
            cores = len(os.sched_getaffinity(0))
        if hasattr(os, "sysconf"):
            memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {
            "name": cpu_name(),
            "kind": "cpu",
            "cores": cores,
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "memory_bytes": memory_bytes,
            "l2_bytes": caches.get(2),
            "l3_bytes": caches.get(3),
        }


def cpu_name() -> str:
    """Return the processor's model name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), "") or platform.processor() or platform.machine()


def cache_bytes(root: Path = Path("/sys/devices/system/cpu")) -> dict[int, int]:
    """Return the data caches' sizes by level, all instances together; empty where unknown."""
    found: dict[tuple[int, str], int] = {}
    for index in root.glob("cpu[0-9]*/cache/index*"):
        try:
            kind, level, size, sharers = (
                (index / name).read_text().strip()
                for name in ("type", "level", "size", "shared_cpu_list")
            )
        except OSError:
            continue  # a container may hide it: then the size is unknown
        if kind != "Instruction":
            found[int(level), sharers] = int(size.removesuffix("K")) * 1024  # Linux prints "%uK"
    levels: Counter[int] = Counter()
    for (number, _), n_bytes in found.items():
        levels[number] += n_bytes
    return dict(levels)
