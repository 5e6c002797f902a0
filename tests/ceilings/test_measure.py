import math
import subprocess
import sys
from typing import Any

import pytest

from flopprof.ceilings import measure
from flopprof.ceilings.measure import keys_to_measure, why_not_matmul
from flopprof.ceilings.memories import Level, memory_candidates, memory_levels, why_not_memory
from flopprof.ceilings.search import LIMIT_S, MINIMUM_S, Candidate, search


class FakeMachine:
    """A clock that the calls themselves move on, and the CPU time that goes with it."""

    def __init__(self, threads=2, share=1.0):
        self.now_s = self.cpu_s = 0.0
        self.threads, self.share = threads, share

    def spend(self, seconds):
        self.now_s += seconds
        self.cpu_s += seconds * self.threads * self.share

    def candidate(self, label, durations_s, work=1e6):
        """Return a candidate whose calls take these times, the last one for ever."""
        left = list(durations_s)
        return Candidate(label, work, lambda: self.spend(left.pop(0) if len(left) > 1 else left[0]))

    def search(self, *candidates, **options):
        return search(
            lambda _rate: list(candidates),
            threads=self.threads,
            clock=lambda: self.now_s,
            cpu_clock=lambda: self.cpu_s,
            **options,
        )


def test_the_best_of_many_calls_wins_not_the_mean():
    machine = FakeMachine()

    # One call in 20 takes 1 ms, the others 4 ms: 10⁶ / 1 ms = 10⁹ a second at best.
    found = machine.search(machine.candidate("a", [0.004] * 19 + [0.001] + [0.004]))

    assert found["best_per_s"] == pytest.approx(1e9)
    assert found["median_per_s"] == pytest.approx(0.25e9)
    assert found["p5_per_s"] == pytest.approx(0.25e9)
    assert found["valid"]


def test_the_fastest_of_several_shapes_is_named():
    machine = FakeMachine()
    slow, fast = machine.candidate("slow", [0.002]), machine.candidate("fast", [0.001])

    assert machine.search(slow, fast)["shape"] == "fast"


def test_the_search_stops_when_half_a_second_brings_no_gain():
    machine = FakeMachine()

    steady = machine.search(machine.candidate("steady", [0.001]))

    assert MINIMUM_S <= steady["seconds"] < MINIMUM_S + 1


def test_the_search_never_takes_much_longer_than_its_limit():
    machine = FakeMachine()
    # Each call is a little faster than the last: always improving.
    improving = [0.02 * 0.999**n for n in range(2000)]

    found = machine.search(machine.candidate("improving", improving))

    assert LIMIT_S <= found["seconds"] < LIMIT_S + 1


def test_a_process_without_its_cores_gives_no_valid_measurement():
    busy = FakeMachine(share=0.85)
    quiet = FakeMachine(share=0.95)

    without = busy.search(busy.candidate("a", [0.001]))
    having = quiet.search(quiet.candidate("a", [0.001]))

    assert not without["valid"]
    assert without["cpu_over_wall"] == pytest.approx(0.85)
    assert having["valid"]
    assert having["cpu_over_wall"] == pytest.approx(0.95)


def test_a_quiet_turn_counts_before_a_disturbed_one():
    machine = FakeMachine()

    def call():
        # The first second is disturbed: shorter calls by the clock, but without the cores.
        machine.share = 0.5 if machine.now_s < 1 else 1.0
        machine.spend(0.001 if machine.now_s < 1 else 0.002)

    found = machine.search(Candidate("a", 1e6, call))

    assert found["valid"]
    assert found["best_per_s"] == pytest.approx(0.5e9)


def test_work_done_elsewhere_needs_no_cpu_time():
    machine = FakeMachine(share=0.0)
    kernel = machine.candidate("kernel", [0.001])

    found = search(lambda _rate: [kernel], clock=lambda: machine.now_s, cpu_clock=lambda: 0.0)

    assert found["valid"]
    assert "cpu_over_wall" not in found


def test_candidates_grow_with_the_rate_that_is_reached():
    machine = FakeMachine()
    asked = []

    def sized_for(rate):
        asked.append(rate)
        # A machine of 10⁹ a second with an overhead of 1 ms a call.
        return [Candidate(f"for {rate:.0e}", rate, lambda: machine.spend(0.001 + rate / 1e9))]

    search(
        sized_for,
        rate=1e5,
        threads=2,
        clock=lambda: machine.now_s,
        cpu_clock=lambda: machine.cpu_s,
    )

    # 10⁵ takes 1.1 ms: 0.91·10⁸ a second; that much takes 92 ms: 0.99·10⁹; no doubling follows.
    assert asked[1] == pytest.approx(0.909e8, rel=0.01)
    assert asked[2] == pytest.approx(0.989e9, rel=0.01)
    assert len(asked) == 3


def test_arrays_are_four_times_the_last_cache_and_fit_the_memory():
    mib = 2**20
    cpu = {"kind": "cpu", "l2_bytes": 2 * mib, "l3_bytes": 32 * mib, "memory_bytes": 16 * 2**30}

    sizes = memory_levels(cpu, {})

    assert list(sizes) == ["main"]
    assert sizes["main"].array_bytes == 4 * 32 * mib
    small = memory_levels({**cpu, "memory_bytes": 2**29}, {})
    assert small["main"].array_bytes == 2**26  # an eighth of 512 MiB
    gpu = memory_levels({"kind": "cuda", "l2_bytes": 50 * mib}, {})
    assert gpu["main"].array_bytes >= 4 * 256 * mib


def test_arrays_of_a_cache_lie_in_it_and_not_in_the_one_before():
    kib = 1024
    caches = {"L1": 96 * kib, "L2": 4096 * kib, "L3": 32768 * kib}  # of two threads

    levels = memory_levels({"kind": "cpu", "threads": 2}, caches)

    assert list(levels) == ["main", "L1", "L2", "L3"]
    # Half of one thread's own: 48 KiB of L1, 2 MiB of L2.
    assert levels["L1"] == Level(0, 24 * kib, 96 * kib)
    assert levels["L2"].again_bytes == 1024 * kib
    assert 96 * kib < 3 * levels["L2"].array_bytes <= 2048 * kib
    assert 4096 * kib < 3 * levels["L3"].array_bytes < 32768 * kib
    assert levels["L3"].holds_bytes == 32768 * kib
    # An L3 of twice the L2, as of desktops, cannot be told from it.
    assert "L3" not in memory_levels({"kind": "cpu"}, caches | {"L3": 8192 * kib})


def test_what_is_measured_depends_on_the_device():
    def asked(kind, dtypes, caches):
        return keys_to_measure({"kind": kind}, caches, dtypes)

    main, product, vector = ("main", "memory"), ("float32", "tensor"), ("float32", "vector")
    # There is no benchmark of complex products; TF32 is NVIDIA's.
    dtypes = ["float32", "complex64", "tfloat32", "float32"]
    caches = {"L2": 2**20, "L3": 2**25}
    levels = [main, ("L2", "memory"), ("L3", "memory")]
    assert asked("cpu", dtypes, caches) == [*levels, product, vector]
    assert asked("cuda", dtypes, {}) == [main, product, ("tfloat32", "tensor")]
    everything = asked("cpu", None, caches)
    # Three memories, products of six dtypes, four of them also without products.
    assert len(everything) == 3 + 6 + 4


def test_pathological_products_are_left_out(monkeypatch):
    real = measure._matmul

    def slow_half(dtype, *rest):
        candidate = real("float32", *rest)
        share = 0.01 if dtype == "float16" else 1.0
        return Candidate(candidate.label, candidate.work * share, candidate.call)

    monkeypatch.setattr(measure, "_matmul", slow_half)

    assert "float16 products: they run at" in why_not_matmul("float16", "cpu", lambda: None)
    assert why_not_matmul("bfloat16", "cpu", lambda: None) == ""


def test_a_dtype_that_does_not_run_is_said_so():
    reason = why_not_matmul("bool", "cpu", lambda: None)

    assert reason.startswith("no ceiling for bool products: ")


def test_candidates_count_their_work_and_keep_the_random_state():
    import torch

    torch.manual_seed(7)
    before = torch.get_rng_state()
    products = measure.matmul_candidates("float32", "cpu", 1e9)
    vectors = measure.vector_candidates("float32", "cpu", 1e7)
    level = Level(4096, again_bytes=1024)
    copy, triad, in_place, again = memory_candidates(level, "cpu", math.inf)

    result: Any
    convolutions, products = products[:9], products[9:]
    for number, convolution in enumerate(convolutions):
        result = convolution.call()
        channels = (64, 128, 256)[number % 3]
        side = int(convolution.label.rpartition("x")[2])
        # 3x3 filters without padding: two less a side; a multiply-add for each pair of channels.
        assert result.shape == (1, channels, side - 2, side - 2)
        assert convolution.work == 2 * channels**2 * 9 * (side - 2) ** 2
    for product in products:
        result = product.call()
        m, k, n = map(int, product.label.removeprefix("mm ").split("x"))
        assert product.work == 2 * m * k * n
        assert result.shape == (m, n)
    for vector in vectors:
        result = vector.call()
        op, _, text = vector.label.partition(" of ")
        size = int(text)
        # Nine FLOPs for each of bilinear's outputs, four for each input; 7 for a norm's element.
        assert vector.work == {"sum": 1, "group_norm": 7, "bilinear": 36}[op] * size
        assert result.numel() == {"sum": 1, "group_norm": size, "bilinear": 4 * size}[op]
    # 4,096 bytes an array: a copy reads one and writes one, a triad reads two and writes one.
    assert (copy.work, triad.work, in_place.work) == (8192, 12288, 8192)
    # A thread's rows of 1 KiB: 4 MiB of them.
    result = again.call()
    assert again.work == 1024 * result.numel() == 2**22 * torch.get_num_threads()
    assert set(result.tolist()) == {256.0}  # each row is a sum of 256 ones
    assert torch.equal(torch.get_rng_state(), before)


def test_a_call_over_a_large_array_does_its_next_piece():
    copy, triad, in_place = memory_candidates(Level(2**26), "cpu", math.inf)

    first, second, third = copy.call(), copy.call(), triad.call()

    # 64 MiB in 32 pieces are 2 MiB each: 4 MiB moved by a copy, 6 by a triad.
    assert (copy.work, triad.work) == (4 * 2**20, 6 * 2**20)
    assert in_place.work == copy.work
    places: Any = [piece.data_ptr() for piece in (first, second, third)]  # type: ignore[attr-defined]
    assert [place - places[0] for place in places] == [0, 2**21, 2 * 2**21]


@pytest.mark.slow
def test_a_real_measurement_holds_together():
    import torch

    from flopprof.devices import find_device

    device = find_device("cpu")
    notes: list[str] = []
    said: list[str] = []
    keys = [("main", "memory"), ("float32", "tensor"), ("bool", "tensor")]
    before, precision = torch.get_num_threads(), torch.backends.cuda.matmul.fp32_precision
    torch.set_num_threads(1)

    try:
        found = measure.measure_ceilings(device, keys, notes=notes, progress=said.append)
    finally:
        torch.set_num_threads(before)

    assert [(c.name, c.unit) for c in found] == [("DRAM", "memory"), ("float32", "tensor")]
    for entry in found:
        details = entry.measurement
        assert entry.per_s == details["best_per_s"] >= details["median_per_s"]
        assert details["p5_per_s"] <= details["median_per_s"] <= details["p95_per_s"]
        assert details["threads"] == 1
        assert details["torch"] == torch.__version__
    assert found[0].measurement["array_bytes"] >= 2**26
    assert len(said) == 2
    assert notes[0].startswith("no ceiling for bool products")
    assert torch.backends.cuda.matmul.fp32_precision == precision


@pytest.mark.parametrize("kind", ["matmul", "vector", "memory"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_measurement_takes_no_more_memory_than_it_may(kind, dtype):
    # As on a machine with 2 GB free, whose rate asks for far more: 10¹⁴ FLOP/s.
    budget_bytes = 200 * 10**6
    first = "memories.Level(2**30)" if kind == "memory" else repr(dtype)
    code = f"""
import resource, torch
torch.set_num_threads(1)
from flopprof.ceilings import measure, memories
make = (memories if {kind!r} == "memory" else measure).{kind}_candidates
for candidate in make({first.replace("2**30", "4096")}, "cpu", 1e6):
    candidate.call()  # libraries take memory of their own
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for candidate in make({first}, "cpu", 1e14, most_bytes={budget_bytes}):
    candidate.call()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    taken = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)

    assert int(taken.stdout) < 1.2 * budget_bytes  # the allocator's own share


def test_the_budget_is_a_tenth_of_what_is_free():
    class Small:
        def free_bytes(self):
            return 3_000_000_000

    class Silent:
        def free_bytes(self):
            return None

    budget: Any = measure.memory_budget
    assert budget(Small()) == 300_000_000
    assert budget(Silent()) == 858_993_459  # a tenth of 8 GiB
    mib = 2**20
    cpu = {"kind": "cpu", "l2_bytes": 2 * mib, "l3_bytes": 64 * mib, "memory_bytes": 2**34}
    assert memory_levels(cpu, {}, 300_000_000)["main"].array_bytes == 100_000_000  # three arrays


def test_a_memory_that_cannot_be_told_from_a_cache_is_not_measured():
    described = {"kind": "cpu", "l2_bytes": 2**21, "l3_bytes": 256 * 2**20}

    assert why_not_memory(described, 2**28) == ""
    reason = why_not_memory(described, 2**28 - 4)
    assert "268 MB" in reason
    assert "10.0 % of the memory that is free" in reason
