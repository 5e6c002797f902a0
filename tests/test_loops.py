"""A block of one's own code measured once, and a step measured now and then."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as base
from torch.profiler import ProfilerActivity, profile

import flopprof
from flopprof import loops
from flopprof.errors import UsageError
from flopprof.run import Run

# Two layers, 64 → 32 → 8, on 16 rows. Forward: 16·64·32 and 16·32·8 multiply-adds of two FLOPs.
# Backward: as many again for the weights of each, and for the input of the second; the first
# one's input needs no gradient.
FORWARD = 2 * 16 * (64 * 32 + 32 * 8)
STEP = FORWARD + FORWARD + 2 * 16 * 32 * 8


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))


def accumulate(model, optimizer, rows):
    """Take one step over two halves of a batch of 16 rows."""
    for half in rows.chunk(2):
        model(half).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def nothing_is_left(model):
    return not (
        base._global_forward_hooks
        or base._global_forward_pre_hooks
        or model._forward_pre_hooks
        or torch.autograd.profiler._is_profiler_enabled
    )


def test_a_region_counts_its_block_and_leaves_its_work_as_it_is(tmp_path):
    model = net()
    twin = copy.deepcopy(model)
    optimizer, other = (torch.optim.Adam(m.parameters()) for m in (model, twin))
    rows = torch.randn(16, 64)

    for _ in range(2):
        accumulate(twin, other, rows)
    with flopprof.region(model, "step", ceilings=False) as region:
        accumulate(model, optimizer, rows)
    with flopprof.region(model, "step", ceilings=False):
        accumulate(model, optimizer, rows)

    run = region.run
    assert run.totals.matmul_flops == STEP
    phases = run.by_phase().set_index("phase")["matmul_flops"]
    assert phases["forward"] == FORWARD
    assert phases["backward"] == STEP - FORWARD
    first = run.sites[(run.sites["module_path"] == "0") & (run.sites["phase"] == "forward")]
    assert (first["verdict"] == "agrees").all()  # hooks and formulas
    assert run.provenance.title == "step of Sequential"
    assert run.provenance.called.samples == 16  # 8 and 8
    assert run.provenance.called.train
    assert "traced" in run.provenance.warning_texts[0]
    assert Run.load(run.save(tmp_path / "step.flopprof")).totals == run.totals
    for mine, its in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(mine, its)
    assert str(optimizer.state_dict()) == str(other.state_dict())
    assert nothing_is_left(model)


def test_a_region_without_a_model_counts_ops():
    rows = torch.randn(16, 64)

    with flopprof.region(name="gram", ceilings=False) as region:
        rows @ rows.T

    assert region.run.totals.matmul_flops == 2 * 16 * 64 * 16
    assert region.run.provenance.title == "gram"
    assert not len(region.run.module_calls)


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), StopIteration()])
def test_what_a_block_raises_passes_through_and_leaves_nothing(error):
    model = net()

    region = flopprof.region(model, ceilings=False)

    def block():
        with region:
            model(torch.ones(1, 64))
            raise error

    with pytest.raises(type(error)) as caught:
        block()

    assert caught.value is error
    assert error.__cause__ is None
    assert nothing_is_left(model)
    with pytest.raises(UsageError, match="it raised"):
        _ = region.run
    with flopprof.region(model, ceilings=False) as region:
        model(torch.ones(1, 64))
    assert region.run.totals.matmul_flops == FORWARD // 16


def test_measuring_inside_a_region_is_refused_and_the_region_goes_on():
    model = net()
    with flopprof.region(model, ceilings=False) as region:
        with pytest.raises(UsageError, match="inside a region"):
            flopprof.count_flops(model, (1, 64))
        with pytest.raises(UsageError, match="inside a region"):
            flopprof.region(name="inner").__enter__()
        model(torch.ones(1, 64))

    assert region.run.totals.matmul_flops == FORWARD // 16


def test_what_no_region_can_be_made_of_is_told():
    with pytest.raises(UsageError, match="no module"):
        flopprof.region("step")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not supported"):
        flopprof.region(device="abacus")
    entered = flopprof.region(ceilings=False)
    with pytest.raises(UsageError, match="not over"):
        _ = entered.run
    with entered:
        _ = torch.ones(1) + 1
    with pytest.raises(UsageError, match="entered twice"):
        entered.__enter__()
    around = profile(activities=[ProfilerActivity.CPU], acc_events=True)
    with around, pytest.raises(UsageError, match="profiler"):
        flopprof.region(ceilings=False).__enter__()


def test_a_block_that_cannot_be_measured_does_its_work_and_says_so_afterwards():
    with flopprof.region(name="empty") as empty:
        done = [1]
    profiled = flopprof.region(ceilings=False)
    with profiled, profile(activities=[ProfilerActivity.CPU]):
        done.append(2)

    assert done == [1, 2]
    with pytest.raises(UsageError, match="'empty' ran no op"):
        _ = empty.run
    with pytest.raises(UsageError, match="starts or stops a profiler"):
        _ = profiled.run


def test_a_compiled_model_gets_no_hooks_that_would_compile_it_anew():
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    model: Any = torch.compile(net(), backend=backend)
    rows = torch.randn(16, 64)
    model(rows)
    with flopprof.region(model, ceilings=False) as region:
        model(rows)
    model(rows)

    assert len(graphs) == 1
    assert region.run.totals.matmul_flops == FORWARD
    assert loops.COMPILED in region.run.provenance.warning_texts
    torch._dynamo.reset()


def test_a_region_that_compiles_says_so():
    torch._dynamo.reset()
    model: Any = torch.compile(net(), backend="eager")
    rows = torch.randn(16, 64)

    with flopprof.region(model, ceilings=False) as first:
        model(rows)
    with flopprof.region(model, ceilings=False) as second:
        model(rows)
    torch._dynamo.reset()

    assert first.has_compiled
    assert loops.COMPILING in first.run.provenance.warning_texts
    assert not second.has_compiled
    assert loops.COMPILING not in second.run.provenance.warning_texts
    assert second.run.totals.matmul_flops == FORWARD


def test_every_measures_its_calls_and_returns_what_the_step_does():
    model = net()

    @flopprof.every(3, model=model, max_overhead=1.0)
    def step(rows, scale=1):
        """Step."""
        return model(rows).sum() * scale

    rows = torch.ones(16, 64)
    results = [step(rows, scale=2) for _ in range(7)]

    assert all(torch.equal(result, model(rows).sum() * 2) for result in results)
    assert len(step.runs) == 2
    assert step.latest is step.runs[-1]
    assert step.latest.totals.matmul_flops == FORWARD
    assert (step.__name__, step.__doc__) == ("step", "Step.")
    assert (step.calls, step.skipped) == (7, 0)
    assert 0 < step.overhead_frac < 1


def test_every_measures_no_more_than_its_bound_allows():
    @flopprof.every(2, max_overhead=1e-9)
    def step():
        return torch.ones(2) + 1

    for _ in range(6):
        step()

    assert (len(step.runs), step.skipped) == (1, 2)  # the first, since nothing told its cost


def test_every_fits_methods_and_passes_errors_through():
    class Trainer:
        @flopprof.every(1, max_overhead=1.0)
        def step(self, number):
            if number < 0:
                raise ValueError(number)
            return self, (torch.ones(2) * number).shape[0] * number

    trainer = Trainer()

    assert trainer.step(1) == (trainer, 2)
    with pytest.raises(ValueError, match="-1"):
        trainer.step(-1)
    assert len(Trainer.step.runs) == 1
    assert not torch.autograd.profiler._is_profiler_enabled


def test_every_within_another_measurement_calls_plainly():
    step = flopprof.every(1, max_overhead=1.0)(lambda: torch.ones(2, 2) @ torch.ones(2, 2))
    with flopprof.region(ceilings=False) as region:
        step()

    assert region.run.totals.matmul_flops == 2 * 2 * 2 * 2
    assert (len(step.runs), step.skipped) == (0, 1)


async def _coroutine():
    pass


@pytest.mark.parametrize("step", [_coroutine, lambda: (yield)])
def test_every_refuses_what_its_call_does_not_run(step):
    with pytest.raises(UsageError, match="does not run it"):
        flopprof.every(2)(step)
    with pytest.raises(UsageError, match="every is given 0"):
        flopprof.every(0)
    with pytest.raises(UsageError, match="max_overhead is 0"):
        flopprof.every(1, max_overhead=0)
