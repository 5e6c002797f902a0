"""Modules that forward calls on other threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import flopprof


def by_threads(layers, x):
    results = [None] * len(layers)

    def call(place):
        results[place] = layers[place](x)

    threads = [threading.Thread(target=call, args=(place,)) for place in range(len(layers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def by_pool(layers, x):
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda layer: layer(x), layers))


class Parallel(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])
        self.call = call

    def forward(self, x):
        first, second = self.call(self.layers, x)
        return first + second


@pytest.mark.parametrize("call", [by_threads, by_pool])
def test_work_on_other_threads_is_known_and_waiting_for_it_is_not_hidden(call):
    run = flopprof.profile(
        Parallel(call), (torch.randn(32, 64),), repeats=1, warmup=1, ceilings=False
    )

    # Two products of 32·64·64 × 2.
    assert run.totals.matmul_flops == 524_288
    assert set(run.sites["verdict"]) <= {"free", "agrees", "functional"}
    assert run.totals.coverage_frac == 1


class Alongside(nn.Module):
    """Products on other threads, and a layer after them."""

    def __init__(self, start):
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.start = start

    def forward(self, x):
        first, second = self.start(x)
        return self.layer(first + second)


def products_by_pool(x):
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda _: x @ x, range(2)))


def test_the_start_of_threads_that_run_plain_ops_is_not_hidden():
    x = torch.randn(64, 64)
    run = flopprof.profile(Alongside(products_by_pool), (x,), repeats=1, warmup=1, ceilings=False)

    # Three products of 64·64·64 × 2.
    assert run.totals.matmul_flops == 1_572_864
    assert "hidden" not in set(run.sites["verdict"])


def test_a_gap_ends_its_wait_where_another_thread_runs_its_first_op(tmp_path):
    from flopprof.trace.read import read_trace
    from tests.events import op, write_trace

    module = op("flopprof:", 0, 1000) | {"cat": "user_annotation"}
    path = write_trace(
        tmp_path / "trace.json",
        module,
        op("aten::neg", 0, 100),
        op("aten::neg", 600, 100, tid=2),  # this thread's first
        op("aten::neg", 900, 100),
    )

    gaps = read_trace(path).gaps

    # 100 to 900 µs lie in no op of the module's thread; until 600 it waited for the other one,
    # which was at work for 100 µs: 200 are left.
    assert gaps["duration_us"].tolist() == [200]
