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
