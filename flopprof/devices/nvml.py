"""Clocks, power, temperature and energy of an NVIDIA GPU while something runs on it."""

import csv
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

INTERVAL_S = 0.02
"""NVML itself refreshes power every 20 to 100 ms; sampling faster reads the same values again."""


def _table(name: str, key: str) -> dict[str, dict[str, str]]:
    with Path(__file__).with_name(name).open(encoding="utf-8", newline="") as file:
        return {row[key]: row for row in csv.DictReader(file)}


_FIELDS = _table("nvml.csv", "field")  # field → calls (nvmlDeviceGet…), argument, scale, when
_REASONS = _table("throttle_reasons.csv", "bit")  # bits of nvmlClocksEventReason…, nvml.h


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
    import pynvml

    missing: dict[str, str] = {}
    readings: dict[str, Any] = dict.fromkeys(_FIELDS)
    readings |= {"uuid": uuid, "samples": 0, "unavailable": missing}
    with ExitStack() as stack:
        try:
            stack.enter_context(_initialised(pynvml))
            read = partial(_read, pynvml, _handle(pynvml, uuid), missing)
        except pynvml.NVMLError as error:
            missing["nvml"] = f"UUID {uuid}: {error}"
            yield readings
            return
        before = read("before")
        samples = [read("sampled")]
        stop = threading.Event()

        def sample_until_the_end() -> None:
            while not stop.wait(interval_s):
                samples.append(read("sampled"))
            samples.append(read("sampled"))

        thread = threading.Thread(target=sample_until_the_end, daemon=True)
        thread.start()
        try:
            yield readings
        finally:
            stop.set()
            thread.join()
        after = read("before")
    readings |= before | {"samples": len(samples), "energy_j": None}
    if "energy_j" in before and "energy_j" in after:
        readings["energy_j"] = after["energy_j"] - before["energy_j"]
    for field in {field for sample in samples for field in sample}:
        values = [sample[field] for sample in samples if field in sample]
        spread = map(float, np.percentile(values, (50, 5, 95)))
        readings[field] = dict(zip(("median", "p5", "p95"), spread, strict=True))
        if field == "throttle_reasons":
            all_bits = np.bitwise_or.reduce([int(bits) for bits in values])
            readings[field] = [
                row["reason"] for bit, row in _REASONS.items() if all_bits & int(bit)
            ]


def driver_version() -> str | None:
    """Return the NVIDIA driver's version, or None where NVML is not there or does not say."""
    import pynvml

    with suppress(pynvml.NVMLError), _initialised(pynvml):
        return str(pynvml.nvmlSystemGetDriverVersion())
    return None


@contextmanager
def _initialised(nvml: Any) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        with suppress(nvml.NVMLError):  # nothing is left to be lost
            nvml.nvmlShutdown()


def _handle(nvml: Any, uuid: str | None) -> Any:
    """Return the GPU's handle; torch leaves out the prefix of a UUID."""
    for name in (str(uuid), f"MIG-{uuid}"):
        with suppress(nvml.NVMLError):
            return nvml.nvmlDeviceGetHandleByUUID(name)
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")


def _read(nvml: Any, handle: Any, missing: dict[str, str], when: str) -> dict[str, float]:
    """Return the fields that NVML gives; `missing` holds why it does not give the others."""
    values: dict[str, float] = {}
    for field, row in _FIELDS.items():
        for call in row["calls"].split() if row["when"] == when else ():
            arguments = [int(text) for text in row["argument"].split()]
            try:
                value = getattr(nvml, f"nvmlDeviceGet{call}")(handle, *arguments)
            except (nvml.NVMLError, AttributeError) as error:  # an old pynvml lacks functions
                missing[field] = str(error)
            else:
                values[field] = value * float(row["scale"])
                missing.pop(field, None)
                break
    return values
