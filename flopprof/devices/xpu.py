"""Intel GPUs, through torch.xpu. Written after its documentation: no such device was at hand."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from flopprof.devices import RandomState, device
from flopprof.errors import UsageError


@device("xpu")
class XpuDevice:
    """One Intel GPU of this machine."""

    def __init__(self, name: str) -> None:
        import torch

        if not torch.xpu.is_available():
            raise UsageError(f"{name}: torch finds no Intel GPU", remedy="--device cpu")
        self.index = int(name[4:]) if ":" in name else torch.xpu.current_device()
        last = torch.xpu.device_count() - 1
        if self.index > last:
            raise UsageError(
                f"there is no {name}: the last Intel GPU that this machine shows is xpu:{last}",
                remedy=f"--device xpu:{last}",
            )
        self.torch_device = f"xpu:{self.index}"

    @classmethod
    def matches(cls, name: str) -> bool:
        """Return whether `name` is "xpu" or "xpu:N"."""
        return re.fullmatch(r"xpu(:\d+)?", name) is not None

    @classmethod
    def random_state(cls, name: str) -> RandomState:
        """Return torch.xpu's functions, for this device."""
        from torch import xpu

        return partial(xpu.get_rng_state, name), partial(xpu.set_rng_state, device=name)

    def activities(self) -> list[Any]:
        """Return host and device activities."""
        from torch.profiler import ProfilerActivity

        return [ProfilerActivity.CPU, ProfilerActivity.XPU]

    def synchronize(self) -> None:
        """Wait until every stream of this GPU is empty."""
        import torch

        torch.xpu.synchronize(self.index)

    def elapsed_us(self, call: Callable[[], object]) -> float:
        """Return the wall time until the device is idle again."""
        start = time.perf_counter()
        call()
        self.synchronize()
        return (time.perf_counter() - start) * 1e6

    def caches(self) -> dict[str, int]:
        """Return nothing: a launch takes longer than a kernel that stays in a cache."""
        return {}

    def free_bytes(self) -> int | None:
        """Return the memory that the driver says is free; None where it does not say."""
        import torch

        try:
            free, _ = torch.xpu.mem_get_info(self.index)
        except RuntimeError:  # drivers without Level Zero's sysman
            return None
        return int(free)

    @contextmanager
    def telemetry(self) -> Iterator[dict[str, Any]]:
        """Note the most memory that torch gave to tensors; clocks and power are not asked for."""
        import torch

        torch.xpu.reset_peak_memory_stats(self.index)
        readings: dict[str, Any] = {}
        yield readings
        readings["peak_memory_bytes"] = torch.xpu.max_memory_allocated(self.index)

    def tf32(self) -> AbstractContextManager[None]:
        """Raise: it is not asked for here."""
        raise UsageError("--tf32 is for GPUs of CUDA, and this is XPU", remedy="--device cuda")

    def describe(self) -> dict[str, Any]:
        """Return what torch's device properties say, None for what they leave out."""
        import torch

        properties = torch.xpu.get_device_properties(self.index)
        return {
            "name": properties.name,
            "kind": "xpu",
            "index": self.index,
            "sm_count": getattr(properties, "gpu_subslice_count", None),
            "memory_bytes": properties.total_memory,
            "driver": getattr(properties, "driver_version", None),
        }
