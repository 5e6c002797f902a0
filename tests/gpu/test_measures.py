"""What is measured on a GPU against other witnesses: events, NVML, memory, the bare profiler."""

import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import flopprof
from flopprof.capture.call import as_inputs, guarded, unchanged
from flopprof.capture.hooks import module_ranges
from flopprof.capture.record import _trace_once
from flopprof.cli import main
from flopprof.devices import find_device
from flopprof.errors import ModelError, UsageError
from tests.builders import called, changed_ops
from tests.gpu.place import Place, assert_linked, compute_kernels, names, reasons
from tests.planted import Calls

MB = 10**6


def small_net(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, 10),
    ).eval()  # fmt: skip


MODELS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "convolutions": lambda: (small_net(16), torch.randn(2, 3, 32, 32)),
    "encoder": lambda: (
        nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval(), torch.randn(2, 16, 64)),
    "decoder": lambda: (
        Calls(lambda m, x: m.inner(x, x),
              inner=nn.TransformerDecoderLayer(64, 4, 128, batch_first=True).eval()),
        torch.randn(2, 16, 64)),
    "lstm": lambda: (nn.LSTM(16, 32, batch_first=True).eval(), torch.randn(2, 5, 16)),
    "embedding": lambda: (
        nn.Sequential(nn.Embedding(100, 32), nn.Linear(32, 100)), torch.arange(16)[None]),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_tracing_changes_no_op(place, name):
    model, x = MODELS[name]()

    run = place.profile(model, x)

    assert changed_ops(run) == {}
    assert_linked(place, run)


@pytest.mark.parametrize("name", ["convolutions", "embedding"])
def test_matmul_flops_equal_those_of_torchs_own_counter(place, name):
    model, x = MODELS[name]()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.to(place.device)(x.to(place.device))

    run = place.profile(model, x)

    assert run.totals.matmul_flops == counter.get_total_flops(), reasons(run)


def test_a_count_on_the_meta_device_equals_the_run(place):
    model, x = MODELS["convolutions"]()

    run = place.profile(model, x)

    counted = flopprof.count_flops(model, x)
    assert counted.matmul_flops == run.totals.matmul_flops
    assert counted.vector_flops == run.totals.vector_flops


def test_a_run_stays_below_its_ceilings(place):
    n = place.size(4096, 64)
    model = nn.Sequential(*[nn.Linear(n, n) for _ in range(8)])

    run = place.profile(model, torch.randn(n, n), ceilings=place.is_gpu)

    assert run.totals.matmul_flops == 8 * 2 * n**3
    if place.has_cuda("efficiency below the datasheet's ceiling"):
        known = run.sites[run.sites["efficiency_frac"].notna()]
        assert len(known) > 0
        assert (known["efficiency_frac"] > 0).all()
        above = known[known["efficiency_frac"] > 1.05]
        assert above["reason"].str.contains("above the").all(), reasons(run)


def test_tracing_by_module_costs_little_more_than_the_bare_profiler(place):
    width = place.size(256, 8)
    layers = [nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True) for _ in range(6)]
    model = nn.Sequential(*layers).eval().to(place.device)
    x = torch.randn(place.size(32, 1), place.size(256, 4), width, device=place.device)
    device = find_device(place.device)
    inputs = as_inputs(x, None, model)
    times: dict[str, list[float]] = {"bare": [], "ours": []}
    with unchanged(model, inputs) as snapshot:
        call = guarded(model, inputs, snapshot)
        for _ in range(2):
            call()
        for _ in range(place.size(15, 2)):  # in turns: a change of clocks hits both
            times["bare"].append(_trace_once(call, device)[0])
            with module_ranges(model):
                times["ours"].append(_trace_once(call, device)[0])

    medians = {name: statistics.median(values) for name, values in times.items()}
    assert min(medians.values()) > 0
    if place.has_cuda("tracing costs at most 5 % more than the bare profiler"):
        assert medians["ours"] <= 1.05 * medians["bare"], medians


def test_events_agree_with_wall_time_where_the_device_is_busy(place):
    device = find_device(place.device)
    n = place.size(8192, 128)
    a = torch.randn(n, n, device=place.device)

    def work() -> None:
        for _ in range(place.size(5, 1)):
            a @ a

    work()
    device.synchronize()
    started = time.perf_counter()
    own_us = device.elapsed_us(work)
    wall_us = (time.perf_counter() - started) * 1e6

    assert 0 < own_us <= wall_us * 1.01
    if place.has_cuda("CUDA events"):
        assert own_us > 0.8 * wall_us


def test_work_on_another_stream_is_waited_for_and_busy_time_is_a_union(place):
    if not place.has_cuda("streams"):
        return
    cycles = 20_000_000  # some 10 ms

    def forward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(cycles)
        torch.cuda._sleep(cycles)
        y = x @ x
        torch.cuda.current_stream().wait_stream(side)
        return y

    run = place.profile(Calls(forward), torch.randn(64, 64))

    kernels = compute_kernels(run)
    assert kernels["stream"].nunique() >= 2, kernels[["kernel", "stream"]].to_dict("records")
    total_us = kernels["duration_us"].sum()
    busy_us = called(run).timing.device_busy_us
    assert busy_us < 0.8 * total_us, (busy_us, total_us)
    assert called(run).timing.wall_us.median > 0.4 * total_us
    assert "aten::matmul" in set(run.sites["op"])


def nvidia_smi(asked: str) -> list[str]:
    index = find_device("cuda").describe()["uuid"]
    uuid = index if index.startswith(("GPU-", "MIG-")) else f"GPU-{index}"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader,nounits", "-i", uuid]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [text.strip() for text in done.stdout.strip().split(",")]


def test_telemetry_agrees_with_nvidia_smi(place):
    n = place.size(4096, 64)
    device = find_device(place.device)
    a = torch.randn(n, n, device=place.device)
    with device.telemetry() as readings:
        for _ in range(place.size(200, 2)):
            a @ a
        device.synchronize()

    if not place.has_cuda("NVML"):
        return
    assert readings["samples"] >= 2
    if not shutil.which("nvidia-smi"):
        pytest.skip("not installed: nvidia-smi")
    said = nvidia_smi("uuid,driver_version,clocks.max.sm,power.limit,memory.total")
    assert readings["uuid"] in said[0]
    assert device.describe()["driver"] == said[1]
    assert readings["maximum_sm_clock_mhz"] == float(said[2]), readings["unavailable"]
    assert abs(readings["power_limit_w"] - float(said[3])) < 1
    assert 0 < readings["sm_clock_mhz"]["median"] <= readings["maximum_sm_clock_mhz"]
    # nvidia-smi counts MiB of the board, torch what the driver leaves.
    board = float(said[4]) * 2**20
    assert 0.9 * board < device.describe()["memory_bytes"] <= board


def test_energy_is_power_over_time_within_a_factor(place):
    if not place.has_cuda("the energy counter"):
        return
    device = find_device("cuda")
    a = torch.randn(8192, 8192, device="cuda")
    started = time.perf_counter()
    with device.telemetry() as readings:
        while time.perf_counter() - started < 1.0:
            a @ a
            device.synchronize()
    seconds = time.perf_counter() - started

    if readings["energy_j"] is None:
        pytest.skip(f"no energy counter: {readings['unavailable']}")
    by_power = readings["power_w"]["median"] * seconds
    assert 0.5 < readings["energy_j"] / by_power < 2


def test_peak_memory_is_what_tensors_took(place):
    elements = place.size(64 * 2**20, 1000)  # 256 MiB of float32 on a GPU

    def forward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        one = torch.ones(elements, device=x.device)
        two = one + 1
        return x + two[0]

    baseline = torch.cuda.memory_allocated() if place.is_gpu else 0
    run = place.profile(Calls(forward), torch.ones(8))

    if not place.has_cuda("peak memory"):
        return
    telemetry = called(run).telemetry
    assert telemetry is not None
    peak = telemetry.peak_memory_bytes - baseline
    # Two arrays of 4 bytes each at once; what the run holds besides is a few megabytes.
    assert 2 * 4 * elements <= peak < 2 * 4 * elements + 16 * 2**20, peak


TOO_MANY = 2**50  # elements: 4 PiB


def held_bytes(place: Place) -> int:
    return torch.cuda.memory_allocated() if place.is_gpu else 0


def test_memory_that_runs_out_is_told_and_the_device_is_usable_after(place):
    def forward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        first = torch.ones(place.size(2**24, 8), device=x.device)
        return torch.empty(TOO_MANY, device=x.device) + first[0]

    x = torch.ones(8, device=place.device)
    before = held_bytes(place)

    with pytest.raises(ModelError, match="memory ran out while the model ran on 8"):
        place.profile(Calls(forward), x)

    assert held_bytes(place) - before < MB
    run = place.profile(nn.Linear(8, 4), x)
    assert run.totals.matmul_flops == 2 * 8 * 4


def test_a_model_that_does_not_fit_the_device_is_told_so(place):
    if not place.has_cuda("a model larger than the GPU"):
        return
    free = torch.cuda.mem_get_info()[0]
    # Shared by expansion on the CPU; on a GPU each is an array of its own.
    weight = torch.ones(1, 2**20).expand(free // 2**22 + 1024, 2**20)
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_buffer("large", weight)

    before = held_bytes(place)
    with pytest.raises(ModelError, match="memory ran out while the model moved to cuda"):
        flopprof.profile(model, (1, 2), device="cuda", ceilings=False)
    assert held_bytes(place) - before < MB


def write_greedy(folder: Path) -> Path:
    code = folder / "greedy.py"
    code.write_text(
        "import torch\n"
        "class Greedy(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        f"        return x + torch.empty({TOO_MANY}, device=x.device)\n"
        "def build():\n"
        "    return Greedy()\n"
        "def linear():\n"
        "    return torch.nn.Linear(64, 32)\n"
    )
    return code


def test_the_command_exits_with_6_where_memory_runs_out(place, tmp_path, capsys):
    code = write_greedy(tmp_path)
    target = ["-o", str(tmp_path / "run.flopprof")]

    exit_code = main(
        [
            "run",
            f"{code}:build",
            "--input",
            "8:float32",
            "--device",
            place.device,
            *target,
            "--repeats=1",
        ]
    )

    assert exit_code == 6
    assert "memory ran out while the model ran on 8" in capsys.readouterr().err


def test_the_command_profiles_draws_and_saves_on_the_device(place, tmp_path, capsys):
    code = write_greedy(tmp_path)
    folder = tmp_path / "run.flopprof"

    exit_code = main(
        ["run", f"{code}:linear", "--input", "16x64", "--device", place.device, "-o", str(folder),
         "--repeats=2", "--traces=1", "--json"]
    )  # fmt: skip

    assert exit_code == 0
    answer = json.loads(capsys.readouterr().out)
    assert (folder / "roofline.png").stat().st_size > 1000
    run = flopprof.Run.load(folder)
    # 16 rows, 64 to 32.
    assert run.totals.matmul_flops == 2 * 16 * 64 * 32 == answer["matmul_flops"]
    assert run.provenance.device.kind == place.device


def test_the_saved_trace_read_again_has_the_same_kernels(place, tmp_path):
    model, x = MODELS["convolutions"]()
    run = place.profile(model, x, traces=1)
    path = tmp_path / "trace.json.gz"
    assert run.trace is not None
    path.write_bytes(run.trace)

    again = flopprof.analyse_traces(path)

    assert names(again.kernels) == names(run.kernels)
    assert len(again.kernels) == len(run.kernels)
    assert again.totals.matmul_flops == run.totals.matmul_flops


def test_a_model_on_the_cpu_is_profiled_on_the_device_and_stays_where_it_is(place):
    model = nn.Linear(8, 4)

    run = place.profile(model, torch.ones(2, 8))

    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert run.provenance.device.kind == place.device


def test_auto_takes_the_gpu_and_a_gpu_that_is_not_there_is_told(place):
    found = find_device("auto")

    assert found.torch_device.startswith(place.device)
    if place.has_cuda("an index beyond the last GPU"):
        with pytest.raises(UsageError, match="there is no cuda:99"):
            find_device("cuda:99")
        described = found.describe()
        assert described["sm_count"] > 0
        assert described["memory_bytes"] > 0
        assert described["driver"]
        assert described["clock_mhz"] is None or described["clock_mhz"] > 100


def test_a_measured_ceiling_is_at_most_the_datasheets(place):
    from flopprof.ceilings import measure
    from flopprof.ceilings.datasheet import ceilings_for_gpu

    if not place.has_cuda("ceilings of a GPU"):
        return
    device = find_device("cuda")
    keys = [("main", "memory"), ("bfloat16", "tensor"), ("tfloat32", "tensor")]
    notes: list[str] = []

    found = measure.measure_ceilings(device, keys, notes=notes, progress=lambda _stage: None)

    tables: Any = ceilings_for_gpu(device.describe()).resolved
    assert len(found) == 3, notes
    for entry in found:
        assert entry.per_s > 0
        if entry.key in tables:
            assert entry.per_s <= 1.05 * tables[entry.key].per_s, entry
