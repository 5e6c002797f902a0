"""NVIDIA and AMD GPUs: ROCm answers to the name `cuda` in torch."""

import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from flopprof.devices import RandomState, device
from flopprof.devices.nvml import driver_version, sample_telemetry
from flopprof.errors import UsageError

_OTHER_STREAMS_US = 50.0  # what waiting for an idle device takes less than


@device("cuda")
class CudaDevice:
    """One GPU of this machine."""

    def __init__(self, name: str) -> None:
        import torch

        reason = why_no_cuda()
        if reason:
            raise UsageError(f"{name}: {reason}", remedy="--device cpu")
        self.index = int(name[5:]) if ":" in name else torch.cuda.current_device()
        last = torch.cuda.device_count() - 1
        if self.index > last:
            raise UsageError(
                f"there is no {name}: the last GPU that this machine shows is cuda:{last}",
                remedy=f"--device cuda:{last}, or set CUDA_VISIBLE_DEVICES",
            )
        self.torch_device = f"cuda:{self.index}"

    @classmethod
    def matches(cls, name: str) -> bool:
        """Return whether `name` is "cuda" or "cuda:N"."""
        return re.fullmatch(r"cuda(:\d+)?", name) is not None

    @classmethod
    def random_state(cls, name: str) -> RandomState:
        """Return torch.cuda's functions, for this device."""
        from torch import cuda

        return partial(cuda.get_rng_state, name), partial(cuda.set_rng_state, device=name)

    def activities(self) -> list[Any]:
        """Return host and device activities."""
        from torch.profiler import ProfilerActivity

        return [ProfilerActivity.CPU, ProfilerActivity.CUDA]

    def synchronize(self) -> None:
        """Wait until every stream of this GPU is empty."""
        import torch

        torch.cuda.synchronize(self.index)

    def elapsed_us(self, call: Callable[[], object]) -> float:
        """Return the time between two events on the stream; the wall's, if other streams go on."""
        import torch

        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream(self.index)
        begin.record(stream)
        call()
        end.record(stream)
        end.synchronize()
        ended = time.perf_counter()
        self.synchronize()
        later_us = (time.perf_counter() - ended) * 1e6
        own_us: float = begin.elapsed_time(end) * 1e3
        return own_us + (later_us if later_us > _OTHER_STREAMS_US else 0.0)

    def caches(self) -> dict[str, int]:
        """Return nothing: a launch takes longer than a kernel that stays in a cache."""
        return {}

    def free_bytes(self) -> int | None:
        """Return what the driver says is free on this GPU."""
        import torch

        return int(torch.cuda.mem_get_info(self.index)[0])

    @contextmanager
    def telemetry(self) -> Iterator[dict[str, Any]]:
        """Sample NVML, which ROCm has not, and note the most memory that torch gave to tensors."""
        import torch

        torch.cuda.reset_peak_memory_stats(self.index)
        with sample_telemetry(self.describe()["uuid"]) as readings:
            yield readings
        readings["peak_memory_bytes"] = torch.cuda.max_memory_allocated(self.index)

    @contextmanager
    def tf32(self) -> Iterator[None]:
        """Let the float32 products of cuBLAS and cuDNN round to TF32."""
        from torch import backends

        untyped: Any = backends  # torch's types leave these out
        settings = (untyped.cuda.matmul, untyped.cudnn.conv, untyped.cudnn.rnn)
        before = [setting.fp32_precision for setting in settings]
        try:
            for setting in settings:
                setting.fp32_precision = "tf32"
            yield
        finally:
            for setting, value in zip(settings, before, strict=True):
                setting.fp32_precision = value

    def describe(self) -> dict[str, Any]:
        """Return what torch's device properties say, None for what they leave out."""
        import torch

        properties = torch.cuda.get_device_properties(self.index)
        clock_khz = getattr(properties, "clock_rate", None)
        memory_khz = getattr(properties, "memory_clock_rate", None)
        rocm = torch.version.hip is not None
        return {
            "name": properties.name,
            "kind": "rocm" if rocm else "cuda",
            "index": self.index,
            "uuid": str(properties.uuid),
            "sm_count": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "arch": properties.gcnArchName.split(":")[0] if rocm else None,
            "memory_bytes": properties.total_memory,
            "l2_bytes": getattr(properties, "L2_cache_size", None),
            "bus_bits": getattr(properties, "memory_bus_width", None),
            "clock_mhz": clock_khz and clock_khz / 1e3,
            "memory_clock_mhz": memory_khz and memory_khz / 1e3,
            "driver": None if rocm else driver_version(),
            "runtime": torch.version.hip if rocm else torch.version.cuda,
        }


def why_no_cuda() -> str:
    """Return why torch has no CUDA or ROCm device to run on; "" if it has one."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return f"this torch ({torch.__version__}) is built without CUDA and ROCm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about an old driver, and init() says it too
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            return f"torch finds no GPU: {str(error).strip().splitlines()[0]}"
        return "" if torch.cuda.is_available() else "torch finds no GPU"
