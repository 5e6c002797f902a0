"""One measurement at a time: nested calls, other threads, other profilers."""

import threading

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity

import flopprof
from flopprof.capture import alone
from flopprof.errors import FlopprofError, UsageError

LINEAR = 2 * 1 * 3 * 4  # FLOPs of the products of Linear(3, 4) on one row


def count():
    return flopprof.count_flops(nn.Linear(3, 4), (1, 3)).matmul_flops


def profiled():
    run = flopprof.profile(nn.Linear(3, 4), (1, 3), ceilings=False, repeats=1, warmup=0)
    return run.totals.matmul_flops


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        self.function()
        return x + 1


@pytest.mark.parametrize("inner", [count, profiled])
def test_a_forward_that_measures_is_told_so(inner):
    with pytest.raises(UsageError, match="called by the model that it is measuring"):
        flopprof.count_flops(Calls(inner), (3,))
    with pytest.raises(UsageError, match="called by the model that it is measuring"):
        flopprof.profile(Calls(inner), (3,), ceilings=False)

    assert count() == LINEAR  # and all works afterwards


def test_a_counter_by_hooks_may_be_used_inside(capsys):
    layer = nn.Linear(3, 4)

    def counted():
        with flopprof.FlopsCounter(layer) as counter:
            layer(torch.ones(1, 3))
        print(counter.matmul_flops)  # a list of the test's would be put back

    flopprof.count_flops(Calls(counted), (torch.ones(3),))

    assert set(capsys.readouterr().out.split()) == {str(LINEAR)}


@pytest.mark.parametrize("measure", [count, profiled])
def test_threads_measure_one_after_the_other(measure):
    totals = []
    threads = [threading.Thread(target=lambda: totals.append(measure())) for _ in range(4)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert totals == [LINEAR] * 4


def test_a_forward_that_waits_for_a_thread_that_measures_is_told_so(monkeypatch, capsys):
    monkeypatch.setattr(alone, "PATIENCE_S", 1.0)

    def measure():
        try:
            count()
        except FlopprofError as error:
            print(error.problem)  # a list of the test's would be put back

    def in_thread():
        thread = threading.Thread(target=measure)
        thread.start()
        thread.join()

    flopprof.count_flops(Calls(in_thread), (torch.ones(3),))

    said = capsys.readouterr().out.splitlines()
    assert said
    assert all("waits for this thread" in text for text in said)


def test_a_profiler_of_the_users_goes_on_undisturbed():
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        torch.ones(3).exp()
        for measure in (count, profiled):
            with pytest.raises(UsageError, match="a profiler of PyTorch is at work"):
                measure()
        torch.ones(3).tanh()

    assert {"aten::exp", "aten::tanh"} <= {event.name for event in profiler.events()}
    assert count() == LINEAR


def test_a_forward_that_profiles_itself_is_told_so():
    def profile():
        with torch.profiler.profile(activities=[ProfilerActivity.CPU]):
            pass

    with pytest.raises(UsageError, match="starts or stops a profiler"):
        flopprof.count_flops(Calls(profile), (3,))

    assert count() == LINEAR
