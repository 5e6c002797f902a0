"""The CPU, through torch's own thread pool."""

import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from flopprof.devices import RandomState, device
from flopprof.errors import UsageError

CPUS = Path("/sys/devices/system/cpu")
_LOW_PRECISION = ("avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8", "avx512_fp16")


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

    @classmethod
    def random_state(cls, name: str) -> RandomState:  # noqa: ARG003  # there is one CPU
        """Return torch's own functions."""
        import torch

        return torch.get_rng_state, torch.set_rng_state

    def activities(self) -> list[Any]:
        """Return the host activity alone."""
        from torch.profiler import ProfilerActivity

        return [ProfilerActivity.CPU]

    def synchronize(self) -> None:
        """Return at once: ops on a CPU are done when they return."""

    def caches(self) -> dict[str, int]:
        """Return what torch's threads, each on a core of its own, can use of each level."""
        import torch

        usable = usable_cache_bytes(torch.get_num_threads())
        return {f"L{level}": n_bytes for level, n_bytes in sorted(usable.items())}

    def free_bytes(self) -> int | None:
        """Return the least that the machine, control groups and `ulimit` leave."""
        return free_memory_bytes()

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

        caches = cache_bytes()
        cores = os.cpu_count()
        memory_bytes = None
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
            "features": low_precision_features(),
            "memory_bytes": memory_bytes,
            "l2_bytes": caches.get(2),
            "l3_bytes": caches.get(3),
        }


def low_precision_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Return what this CPU multiplies narrow types with: "amx_bf16"; empty where it is not told."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return ()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return tuple(flag for flag in flags if flag in _LOW_PRECISION)


def free_memory_bytes(
    meminfo: Path = Path("/proc/meminfo"),
    membership: Path = Path("/proc/self/cgroup"),
    groups: Path = Path("/sys/fs/cgroup"),
) -> int | None:
    """Return the memory that this process can take; None where the system tells nothing."""
    left = [n for n in (_available(meminfo), _left_of_address_space()) if n is not None]
    left += _left_of_groups(membership, groups)
    return max(0, min(left)) if left else None


def _available(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(sizes[0]) * 1024 if sizes else None  # Linux prints "kB" for 1,024 bytes


def _left_of_address_space() -> int | None:
    """Return what `ulimit -v` leaves; None where it sets no limit."""
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return None
    return None if limit == resource.RLIM_INFINITY else limit - pages * resource.getpagesize()


def _left_of_groups(membership: Path, groups: Path) -> list[int]:
    """Return what each control group around this process leaves of its memory, v1 and v2."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = groups / controllers
        inner = root / place.strip("/")
        # In a container its own group is mounted as the root, and the place is the host's.
        for folder in (inner, *inner.parents):
            left += _left_of_group(folder)
            if folder == root:
                break
    return left


def _left_of_group(folder: Path) -> list[int]:
    for limit_name, usage_name, cache_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit = int((folder / limit_name).read_text())
            usage = int((folder / usage_name).read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
        stat = folder / "memory.stat"
        pairs = [line.split() for line in stat.read_text().splitlines()] if stat.exists() else []
        files = [int(value) for name, value in pairs if name == cache_name]
        return [limit - usage + sum(files)]  # cached files make way
    return []


def cpu_name() -> str:
    """Return the processor's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), "") or platform.processor() or platform.machine()


def cache_bytes(root: Path = CPUS) -> dict[int, int]:
    """Return the data caches' sizes by level, all instances together; empty where unknown."""
    return {level: sum(sizes) for level, sizes in _cache_instances(root).items()}


def usable_cache_bytes(threads: int, root: Path = CPUS) -> dict[int, int]:
    """Return by level what so many threads can use: the caches of as many cores at most."""
    usable = {}
    for level, sizes in _cache_instances(root).items():
        usable[level] = sum(sorted(sizes, reverse=True)[:threads])
    return usable


def _cache_instances(root: Path) -> dict[int, list[int]]:
    """Return the size of each data cache, by level."""
    sizes: dict[tuple[int, str], int] = {}
    for index in root.glob("cpu[0-9]*/cache/index*"):
        try:
            kind = (index / "type").read_text().strip()
            level = int((index / "level").read_text())
            size = (index / "size").read_text().strip()
            sharers = (index / "shared_cpu_list").read_text().strip()
        except OSError:
            continue  # a container may hide it: then the size is unknown
        if kind != "Instruction":
            sizes[level, sharers] = int(size.removesuffix("K")) * 1024  # Linux prints "%uK"
    levels: dict[int, list[int]] = defaultdict(list)
    for (level, _), n_bytes in sizes.items():
        levels[level].append(n_bytes)
    return dict(levels)
