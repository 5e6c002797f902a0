import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from flopprof.devices import (
    DEVICES,
    Device,
    find_device,
    keeping_random_states,
    random_state_of,
)
from flopprof.devices.cpu import CpuDevice, cache_bytes, free_memory_bytes
from flopprof.devices.cuda import CudaDevice, why_no_cuda
from flopprof.errors import UsageError
from flopprof.registry import import_all

ROOT = Path(__file__).resolve().parents[2]


def test_importing_devices_and_ceilings_leaves_torch_and_pynvml_alone():
    code = (
        "import sys, flopprof.ceilings, flopprof.ceilings.measure, flopprof.devices.cuda;"
        "flopprof.ceilings.ceilings_for_gpu({'name': 'MI300X'});"
        "sys.exit(bool({'torch', 'pynvml'} & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )

    assert done.returncode == 0


def test_the_cpu_describes_itself():
    import torch

    device = find_device("cpu")
    described = device.describe()

    assert device.torch_device == "cpu"
    assert described["kind"] == "cpu"
    assert described["name"]
    assert described["threads"] == torch.get_num_threads()
    assert 1 <= described["cores"] <= (os.cpu_count() or 1)
    assert [a.name for a in device.activities()] == ["CPU"]
    device.synchronize()
    with device.telemetry() as readings:
        pass
    assert readings == {}


@pytest.mark.parametrize("name", ["made-up", "gpu", "xpu:", ""])
def test_other_devices_are_not_supported_yet(name):
    with pytest.raises(UsageError, match="is not supported yet") as caught:
        find_device(name)
    supported = caught.value.problem.partition("these are: ")[2]
    assert {"cpu", "cuda", "xpu"} <= set(re.findall(r"\w+", supported))
    assert "--device cpu" in caught.value.remedy


def test_names_match_their_kind_of_device():
    assert CpuDevice.matches("cpu")
    assert CudaDevice.matches("cuda")
    assert CudaDevice.matches("cuda:1")
    assert not CudaDevice.matches("cuda:")
    assert not CudaDevice.matches("cuda:-1")
    assert not CpuDevice.matches("cuda")


def test_cuda_without_a_gpu_says_why_and_the_way_out():
    reason = why_no_cuda()
    if not reason:
        pytest.skip("this machine has a GPU")

    with pytest.raises(UsageError, match="cuda:1: ") as caught:
        find_device("cuda:1")

    assert reason in caught.value.problem
    assert caught.value.remedy == "--device cpu"
    assert find_device("auto").torch_device == "cpu"


def test_a_torch_without_cuda_is_told_from_a_machine_without_a_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)

    assert "built without CUDA" in why_no_cuda()


def test_cache_sizes_count_each_instance_once(tmp_path):
    # Two cores, each with its own L2, sharing one L3.
    for cpu in (0, 1):
        for index, (level, kind, size, sharers) in enumerate(
            [
                (1, "Instruction", "32K", cpu),
                (2, "Unified", "1024K", cpu),
                (3, "Unified", "8192K", "0-1"),
            ]
        ):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, value in (
                ("level", level),
                ("type", kind),
                ("size", size),
                ("shared_cpu_list", sharers),
            ):
                (folder / name).write_text(f"{value}\n")

    assert cache_bytes(tmp_path) == {2: 2 * 1024 * 1024, 3: 8 * 1024 * 1024}
    assert cache_bytes(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(("late_s", "expected"), [(0.0, 1500.0), (0.02, 21500.0)])
def test_a_call_on_a_gpu_is_timed_by_events_and_other_streams_are_waited_for(
    monkeypatch, late_s, expected
):
    class Event:
        def __init__(self, enable_timing: bool) -> None:
            done.append(f"event {enable_timing}")

        def record(self, stream: str) -> None:
            done.append(f"record on {stream}")

        def synchronize(self) -> None:
            done.append("wait for event")

        def elapsed_time(self, _end: "Event") -> float:
            return 1.5  # ms

    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: f"stream of {index}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _index: time.sleep(late_s))
    gpu = CudaDevice.__new__(CudaDevice)
    gpu.index = 1

    elapsed_us = gpu.elapsed_us(lambda: done.append("call"))

    assert done[2:] == ["record on stream of 1", "call", "record on stream of 1", "wait for event"]
    assert expected <= elapsed_us < expected + 15000


def group(folder: Path, version: int, limit: str, usage: int, cached: int) -> None:
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_is_the_least_that_machine_and_control_groups_leave(tmp_path, version):
    meminfo, membership = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    membership.write_text("4:memory:/a/b\n" if version == 1 else "0::/a/b\n")
    groups = tmp_path / "groups"
    root = groups / "memory" if version == 1 else groups

    def left() -> int | None:
        return free_memory_bytes(meminfo, membership, groups)

    assert left() == 8000 * 1024
    group(root / "a" / "b", version, "max" if version == 2 else str(2**63 - 4096), 100, 0)
    assert left() == 8000 * 1024
    # 5,000,000 less 2,000,000 in use, of which 500,000 are files that make way.
    group(root / "a", version, "5000000", 2_000_000, 500_000)
    assert left() == 3_500_000
    membership.write_text("4:memory:/elsewhere\n" if version == 1 else "0::/elsewhere\n")
    group(root, version, "1000000", 400_000, 0)  # as a container sees its own
    assert left() == 600_000


def test_free_memory_is_unknown_where_nothing_tells(tmp_path):
    nowhere = tmp_path / "none"

    assert free_memory_bytes(nowhere, nowhere, nowhere) is None


def test_this_machine_has_free_memory():
    described = find_device("cpu").describe()

    assert 0 < (find_device("cpu").free_bytes() or 0) <= described["memory_bytes"]


def test_an_intel_gpu_that_is_not_there_is_a_usage_error():
    if torch.xpu.is_available():
        pytest.skip("there is an Intel GPU")

    for name in ("xpu", "xpu:1", "XPU"):
        with pytest.raises(UsageError, match="torch finds no Intel GPU"):
            find_device(name)


def test_every_kind_of_device_answers_the_protocol():
    import_all("flopprof.devices")
    wanted = {name for name in vars(Device) if not name.startswith("_")}

    for kind, cls in DEVICES.items():
        assert wanted <= set(dir(cls)), kind


def test_the_random_state_of_a_device_is_read_and_set_by_its_own_functions():
    torch.manual_seed(1)
    of_cpu = random_state_of("cpu")
    assert of_cpu is not None
    get, put = of_cpu
    state = get()
    first = torch.rand(3)

    put(state)

    assert torch.equal(torch.rand(3), first)
    assert random_state_of("meta") is None
    for name in ("cuda:1", "xpu:1"):
        of_gpu: Any = random_state_of(name)
        assert (of_gpu[0].args, of_gpu[1].keywords) == ((name,), {"device": name})


def test_the_random_states_of_the_cpu_and_of_any_gpu_are_put_back(monkeypatch):
    states = {"xpu:1": "before"}
    monkeypatch.setattr(torch.xpu, "get_rng_state", states.__getitem__)
    monkeypatch.setattr(
        torch.xpu, "set_rng_state", lambda state, device: states.update({device: state})
    )
    torch.manual_seed(1)
    first = torch.rand(3)
    torch.manual_seed(1)

    with keeping_random_states("xpu:1"):
        torch.rand(7)
        states["xpu:1"] = "after drawing"

    assert states["xpu:1"] == "before"
    assert torch.equal(torch.rand(3), first)
