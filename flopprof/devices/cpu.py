"""The CPU, through torch's own thread pool."""

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from flopprof.devices import device


@device("cpu")
class CpuDevice:
    """The processor this process runs on."""

    def __init__(self, name: str) -> None:
        self.torch_device = name.split(":")[0]

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

    def describe(self) -> dict[str, Any]:
        """Return the model's name, usable cores, torch's threads, vector extension and caches."""
        import torch

        caches = cache_bytes()
        return {
            "name": cpu_name(),
            "kind": "cpu",
            "cores": usable_cores(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "memory_bytes": _memory_bytes(),
            "l2_bytes": caches.get(2),
            "l3_bytes": caches.get(3),
        }


def cpu_name() -> str:
    """Return the processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), "") or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return how many logical cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_bytes(root: Path = Path("/sys/devices/system/cpu")) -> dict[int, int]:
    """Return the data caches' sizes by level, all instances together; empty where unknown."""
    found: dict[tuple[int, str], int] = {}
    units = {"K": 2**10, "M": 2**20}
    for index in root.glob("cpu[0-9]*/cache/index*"):
        try:
            kind, level, size, sharers = (
                (index / name).read_text().strip()
                for name in ("type", "level", "size", "shared_cpu_list")
            )
        except OSError:
            continue  # a container may hide it: then the size is unknown
        if kind != "Instruction" and size[-1:] in units:
            found[int(level), sharers] = int(size[:-1]) * units[size[-1]]
    levels = {level for level, _ in found}
    return {n: sum(size for (level, _), size in found.items() if level == n) for n in levels}


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
