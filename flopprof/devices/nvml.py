"""Clocks, power, temperature and energy of an NVIDIA GPU while something runs on it."""

import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

INTERVAL_S = 0.02
"""NVML itself refreshes power every 20 to 100 ms; sampling faster reads the same values again."""

_SAMPLED: dict[str, tuple[str, tuple[int, ...], float]] = {  # field → call, arguments, scale
    "sm_clock_mhz": ("nvmlDeviceGetClockInfo", (1,), 1.0),  # NVML_CLOCK_SM
    "memory_clock_mhz": ("nvmlDeviceGetClockInfo", (2,), 1.0),  # NVML_CLOCK_MEM
    "power_w": ("nvmlDeviceGetPowerUsage", (), 1e-3),  # mW
    "temperature_c": ("nvmlDeviceGetTemperature", (0,), 1.0),  # NVML_TEMPERATURE_GPU
}
_FIXED: dict[str, tuple[str, tuple[int, ...], float]] = {
    "maximum_sm_clock_mhz": ("nvmlDeviceGetMaxClockInfo", (1,), 1.0),
    "maximum_memory_clock_mhz": ("nvmlDeviceGetMaxClockInfo", (2,), 1.0),
    "power_limit_w": ("nvmlDeviceGetEnforcedPowerLimit", (), 1e-3),
}
_ENERGY = ("nvmlDeviceGetTotalEnergyConsumption", (), 1e-3)  # mJ since the driver was loaded
_REASON_CALLS = (  # the second is what drivers before 535 have
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
)
_REASONS = {  # bits of nvmlClocksEventReason…, nvml.h
    0x1: "idle",
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal, by software",
    0x40: "thermal, by hardware",
    0x80: "power brake",
    0x100: "display clocks",
}


@contextmanager
def sample_telemetry(
    uuid: str | None, *, interval_s: float = INTERVAL_S
) -> Iterator[dict[str, Any]]:
    """Yield a dict that, on exit, holds what NVML said of the GPU in the meantime.

    Sampled fields are {median, p5, p95}; `throttle_reasons` names every reason seen; `energy_j` is
    the counter's difference. What NVML does not give is None, and `unavailable` says why.

    Args:
        uuid: The GPU's UUID, with or without its "GPU-" or "MIG-" prefix.
        interval_s: Time between samples.
    """
    found: dict[str, Any] = dict.fromkeys((*_SAMPLED, *_FIXED, "throttle_reasons", "energy_j"))
    missing: dict[str, str] = {}
    found |= {"uuid": uuid, "samples": 0, "unavailable": missing}
    nvml, handle = _open(uuid, missing)
    if handle is None:
        yield found
        return
    values: dict[str, list[float]] = {field: [] for field in _SAMPLED}
    reasons: list[int] = []

    def ask(field: str, name: str, arguments: tuple[int, ...], scale: float) -> float | None:
        try:
            value = float(getattr(nvml, name)(handle, *arguments) * scale)
        except (nvml.NVMLError, AttributeError) as error:  # no such function in an old pynvml
            missing[field] = str(error)
            return None
        missing.pop(field, None)
        return value

    def sample() -> None:
        for field, call in _SAMPLED.items():
            value = ask(field, *call)
            if value is not None:
                values[field].append(value)
        for name in _REASON_CALLS:
            bits = ask("throttle_reasons", name, (), 1.0)
            if bits is not None:
                reasons.append(int(bits))
                break
        found["samples"] += 1

    try:
        found |= {field: ask(field, *call) for field, call in _FIXED.items()}
        before_j = ask("energy_j", *_ENERGY)
        with _in_background(sample, interval_s):
            yield found
        after_j = ask("energy_j", *_ENERGY)
    finally:
        _close(nvml)
    if before_j is not None and after_j is not None:
        found["energy_j"] = after_j - before_j
    found |= {field: _summary(samples) for field, samples in values.items()}
    if reasons:
        found["throttle_reasons"] = [
            text for bit, text in _REASONS.items() if any(bits & bit for bits in reasons)
        ]


def driver_version() -> str | None:
    """Return the NVIDIA driver's version, or None where NVML is not there or does not say."""
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            _close(pynvml)
    except pynvml.NVMLError:
        return None


def _open(uuid: str | None, missing: dict[str, str]) -> tuple[Any, Any]:
    """Return pynvml and the GPU's handle; the handle is None, and `missing` says why, if not."""
    import pynvml

    if uuid is None:
        missing["nvml"] = "the device has no UUID to find it by"
        return pynvml, None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        missing["nvml"] = str(error)
        return pynvml, None
    for name in (uuid,) if uuid.startswith(("GPU-", "MIG-")) else (f"GPU-{uuid}", f"MIG-{uuid}"):
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(name)
        except pynvml.NVMLError as error:
            missing.setdefault("nvml", f"{name}: {error}")
        else:
            missing.clear()
            return pynvml, handle
    _close(pynvml)
    return pynvml, None


def _close(nvml: Any) -> None:
    with suppress(nvml.NVMLError):  # nothing is left to be lost
        nvml.nvmlShutdown()


@contextmanager
def _in_background(sample: Callable[[], None], interval_s: float) -> Iterator[None]:
    """Call `sample` now, then every `interval_s` in a thread, and once more at the end."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(interval_s):
            sample()

    sample()
    thread = threading.Thread(target=loop, name="flopprof-nvml", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sample()


def _summary(samples: list[float]) -> dict[str, float] | None:
    if not samples:
        return None
    if len(samples) == 1:
        return dict.fromkeys(("median", "p5", "p95"), samples[0])
    steps = statistics.quantiles(samples, n=20, method="inclusive")
    return {"median": statistics.median(samples), "p5": steps[0], "p95": steps[-1]}
