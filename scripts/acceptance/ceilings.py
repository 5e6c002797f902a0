"""Stage `ceilings`: what the device reaches beside its datasheet: products, vectors, memory."""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from acceptance.journal import Part
from acceptance.stage import NEEDS_CUDA, Place, SkipUnitError, run_units
from flopprof.ceilings.ceiling import MAIN, Ceiling, Key
from flopprof.ceilings.datasheet import ceilings_for_gpu
from flopprof.ceilings.measure import PRODUCTS, measure_ceilings
from flopprof.devices import Device, find_device

NEEDS_S = 15.0
LEAST_OF_MATMUL = 0.85  # of the datasheet's: less is a measurement that misses the device
MOST = 1.005  # × the datasheet's: events have half a microsecond
CHAINS = 8  # as in kernels.cu
THREADS = 256
LAUNCHES = 30
AIM_S = 0.002  # of one launch
# FLOPs of one multiply-add of the type that a lane holds: halves come in pairs.
VECTORS = {"float32": 2, "float64": 2, "float16": 4, "bfloat16": 4}
MEMORY = "main memory"
L2 = "L2 (read)"


def units(place: Place) -> list[str]:
    """Return what is measured, each a unit."""
    if place.rehearses:
        return [MEMORY, "float32 matmul", "float32 vector", L2]
    products = [f"{dtype} matmul" for dtype in PRODUCTS]
    return [MEMORY, *products, *(f"{dtype} vector" for dtype in VECTORS), L2]


def run(place: Place, part: Part) -> bool:
    """Measure what is left; return whether all was reached."""
    return run_units("ceilings", place, part, units(place), measure, needs_s=NEEDS_S)


def measure(unit: str, place: Place) -> dict[str, Any]:
    """Measure one ceiling; its row has the datasheet's, their ratio and the clocks."""
    device = find_device(place.device)
    with device.telemetry() as readings:
        key, per_s, how = _rate(unit, place, device)
    facts = {"per_s": per_s, "how": how, **_clocks(readings)}
    known = {} if place.rehearses else ceilings_for_gpu(device.describe()).resolved
    sheet = known.get(key)
    if sheet is None:
        return facts | {"datasheet_per_s": None, "faults": []}
    frac = per_s / sheet.per_s
    faults = []
    if frac > MOST:
        faults.append(f"{frac:.3f} × the datasheet's {sheet.per_s:.4g}: above it")
    if key[1] == "tensor" and frac < LEAST_OF_MATMUL:
        faults.append(f"{frac:.3f} × the datasheet's {sheet.per_s:.4g}, less than 0.85")
    about = {"datasheet_per_s": sheet.per_s, "datasheet": sheet.source, "frac": frac}
    return facts | about | {"faults": faults}


def _rate(unit: str, place: Place, device: Device) -> tuple[Key, float, dict[str, Any]]:
    """Return what a unit is of, its FLOP/s or byte/s, and how it was measured."""
    name, _, kind = unit.partition(" ")
    if unit == MEMORY:
        return MAIN, *_by_flopprof(device, MAIN)
    if kind == "matmul":
        key = (name, "tensor")
        return key, *_by_flopprof(device, key)
    if place.rehearses:
        raise SkipUnitError(NEEDS_CUDA)
    library = _library()
    if unit == L2:
        return ("L2", "memory"), *_l2(library, device)
    return (name, "vector"), *_vector(library, name)


def _by_flopprof(device: Device, key: Key) -> tuple[float, dict[str, Any]]:
    notes: list[str] = []
    entries: list[Ceiling] = measure_ceilings(device, [key], notes=notes, progress=lambda _: None)
    if not entries:
        raise SkipUnitError("; ".join(notes) or "not measured, for no reason that is known")
    return entries[0].per_s, entries[0].measurement


def _library() -> ctypes.CDLL:
    """Return kernels.cu, compiled for the GPU that is here."""
    if not shutil.which("nvcc"):
        raise SkipUnitError("not installed: nvcc")
    major, minor = torch.cuda.get_device_capability()
    with tempfile.TemporaryDirectory(prefix="flopprof-nvcc-") as folder:
        target = Path(folder) / "kernels.so"
        source = Path(__file__).with_name("kernels.cu")
        options = ["-O3", f"-arch=sm_{major}{minor}", "-shared", "-Xcompiler", "-fPIC"]
        subprocess.run(["nvcc", *options, "-o", str(target), str(source)], check=True)
        return ctypes.CDLL(str(target))


def _vector(library: ctypes.CDLL, dtype: str) -> tuple[float, dict[str, Any]]:
    """Return the FLOP/s of chains of multiply-adds that touch no memory."""
    out = torch.zeros(THREADS * CHAINS * 8, dtype=torch.uint8, device="cuda")
    blocks = 8 * torch.cuda.get_device_properties(0).multi_processor_count
    function = getattr(library, f"vector_{dtype}")
    function.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]

    def launch(rounds: int) -> int:
        code: int = function(out.data_ptr(), blocks, rounds, _stream())
        return code

    flops = blocks * THREADS * CHAINS * VECTORS[dtype]
    return _best(launch, flops, f"{CHAINS} chains of multiply-adds in each thread")


def _l2(library: ctypes.CDLL, device: Device) -> tuple[float, dict[str, Any]]:
    """Return the bytes a second that all SMs read of an array of a quarter of L2."""
    l2_bytes = device.describe()["l2_bytes"]
    if not l2_bytes:
        raise SkipUnitError("torch does not say how large L2 is")
    n_bytes = 1 << ((l2_bytes // 4).bit_length() - 1)  # H100: L2 in two halves of 25 MB
    data = torch.rand(n_bytes // 4, device="cuda").add(1.0)
    out = torch.zeros(1, device="cuda")
    blocks = 8 * torch.cuda.get_device_properties(0).multi_processor_count
    function = library.read_l2
    function.argtypes = [
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long),
        *(ctypes.c_int, ctypes.c_int, ctypes.c_void_p),
    ]

    def launch(rounds: int) -> int:
        pointers = (data.data_ptr(), out.data_ptr())
        code: int = function(*pointers, n_bytes // 16, blocks, rounds, _stream())
        return code

    return _best(launch, n_bytes, f"reads of {n_bytes} bytes again and again, past L1")


def _stream() -> int:
    stream: int = torch.cuda.current_stream().cuda_stream
    return stream


def _best(
    launch: Callable[[int], int], work_a_round: float, label: str
) -> tuple[float, dict[str, Any]]:
    """Return the best rate of many launches, of rounds enough that each takes some time."""
    rounds = 64
    seconds = _seconds(launch, rounds)
    while seconds < AIM_S:
        rounds *= 2
        seconds = _seconds(launch, rounds)
    times = sorted(_seconds(launch, rounds) for _ in range(LAUNCHES))
    rates = [rounds * work_a_round / one for one in times]
    median = rates[len(rates) // 2]
    details = {"shape": label, "rounds": rounds, "median_per_s": median, "launches": LAUNCHES}
    return rates[0], details


def _seconds(launch: Callable[[int], int], rounds: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    code = launch(rounds)
    end.record()
    if code:
        raise RuntimeError(f"a launch ended with CUDA's error {code}")
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _clocks(readings: dict[str, Any]) -> dict[str, Any]:
    """Return what telemetry says of clocks and power meanwhile."""
    names = ("sm_clock_mhz", "memory_clock_mhz", "power_w", "temperature_c", "throttle_reasons")
    return {name: readings.get(name) for name in names}
