import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")
ROOT = Path(__file__).resolve().parents[2]
SAMPLED = ("sm_clock_mhz", "memory_clock_mhz", "power_w", "temperature_c")
FIXED = ("maximum_sm_clock_mhz", "maximum_memory_clock_mhz", "power_limit_w")

PRELUDE = """
import ctypes, json, time
from flopprof.devices.nvml import driver_version, sample_telemetry
try:
    fake = ctypes.CDLL("libnvidia-ml.so.1")
except OSError:
    fake = None
def sample(uuid="11-22", during=lambda: None):
    with sample_telemetry(uuid, interval_s=0.001) as found:
        during()
    return found
"""


@pytest.fixture(scope="module")
def fake_nvml(tmp_path_factory):
    """Return a function that runs code against the library built with these switches."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to build the fake NVML with")
    built = {}

    def run(code, *switches):
        if switches not in built:
            built[switches] = tmp_path_factory.mktemp("nvml")
            library = built[switches] / "libnvidia-ml.so.1"
            flags = [f"-D{switch}" for switch in switches]
            subprocess.run(
                ["gcc", "-shared", "-fPIC", *flags, str(SOURCE), "-o", str(library)], check=True
            )
        return run_python(code, built[switches])

    return run


def run_python(code, library_folder):
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library_folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_reading_comes_in_its_own_unit(fake_nvml):
    found = fake_nvml("print(json.dumps(sample(during=lambda: fake.fake_add_energy(2500))))")

    steady = {"median", "p5", "p95"}
    assert set(found["sm_clock_mhz"]) == steady
    assert found["sm_clock_mhz"]["median"] == 1000
    assert found["memory_clock_mhz"]["p95"] == 2619
    assert found["power_w"]["median"] == 350.5  # 350,500 mW
    assert found["temperature_c"]["p5"] == 61
    assert found["maximum_sm_clock_mhz"] == 1980
    assert found["power_limit_w"] == 700
    assert found["energy_j"] == pytest.approx(2.5)  # the counter rose by 2,500 mJ
    assert found["throttle_reasons"] == ["idle", "power cap"]  # 0x5 = 0x1 + 0x4
    assert found["samples"] >= 2
    assert found["unavailable"] == {}


def test_a_clock_that_changes_is_summarised_over_the_samples(fake_nvml):
    code = """
def during():
    fake.fake_set_clock(2000)
    time.sleep(0.2)
print(json.dumps(sample(during=during)))
"""
    found = fake_nvml(code)

    # The first sample says 1000, all later ones 2000.
    assert found["sm_clock_mhz"]["median"] == 2000
    assert found["samples"] > 10


def test_each_error_code_leaves_every_field_unknown_and_says_why(fake_nvml):
    code = """
found = {}
for code in [*range(1, 31), 999]:
    fake.fake_set_code(code)
    found[code] = sample()
print(json.dumps(found))
"""
    by_code = fake_nvml(code)

    assert len(by_code) == 31
    for found in by_code.values():
        fields = (*SAMPLED, *FIXED, "throttle_reasons", "energy_j")
        assert [found[field] for field in fields] == [None] * len(fields)
        assert set(found["unavailable"]) == set(fields)
    assert by_code["3"]["unavailable"]["power_w"] == "Not Supported"


def test_functions_that_an_old_driver_lacks_cost_their_own_fields_only(fake_nvml):
    found = fake_nvml("print(json.dumps(sample()))", "OLD_DRIVER")

    assert found["energy_j"] is None
    assert found["power_limit_w"] is None
    assert found["power_w"]["median"] == 350.5
    # The older call for the reasons says 0x24 = 0x4 + 0x20.
    assert found["throttle_reasons"] == ["power cap", "thermal, by software"]
    assert set(found["unavailable"]) == {"energy_j", *FIXED}


def test_a_driver_that_is_not_loaded_is_said_once(fake_nvml):
    found = fake_nvml("print(json.dumps([sample(), driver_version()]))", "NO_DRIVER")

    assert found[0]["sm_clock_mhz"] is None
    assert list(found[0]["unavailable"]) == ["nvml"]
    assert found[1] is None


def test_a_uuid_that_nvml_does_not_know_gives_no_readings(fake_nvml):
    found = fake_nvml("print(json.dumps([sample('99-99'), sample(None), sample('GPU-11-22')]))")

    assert found[0]["unavailable"]["nvml"] == "UUID 99-99: Not Found"
    assert found[1]["unavailable"]["nvml"] == "UUID None: Not Found"
    assert found[2]["samples"] >= 2


def test_the_driver_version_is_read(fake_nvml):
    assert fake_nvml("print(json.dumps(driver_version()))") == "580.12"


def test_without_the_library_every_field_is_unknown(tmp_path):
    code = "print(json.dumps([sample(), fake is None]))"

    found, absent = run_python(code, tmp_path)

    if not absent:
        pytest.skip("this machine has the NVML library")
    assert found["power_w"] is None
    assert "Not Found" in found["unavailable"]["nvml"]


def test_what_raises_inside_the_block_stops_the_sampling(fake_nvml):
    code = """
import threading
try:
    sample(during=lambda: 1 / 0)
except ZeroDivisionError:
    print(json.dumps([t.name for t in threading.enumerate()]))
"""
    assert fake_nvml(code) == ["MainThread"]
