"""Activation checkpointing: what is computed again counts, what was stopped does not."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import (
    checkpoint,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

import flopprof


class Checkpointed(nn.Module):
    def __init__(self, net, *, reentrant=False):
        super().__init__()
        self.net = net
        self.reentrant = reentrant

    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=self.reentrant)


def mlp():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))


def both(model, x):
    """Return the matmul FLOPs of a training step by counting and by profiling."""
    count = flopprof.count_flops(model, (x,), train=True)
    run = flopprof.profile(model, (x,), train=True, repeats=1, warmup=1, ceilings=False)
    assert count.flops_at_most == count.flops
    return count.matmul_flops, run.totals.matmul_flops


PRODUCT = 131_072  # 16·64·64 multiply-adds × 2


def test_a_recomputation_that_stops_early_does_not_count_the_op_it_stops_at():
    # Forward 2 products; recomputed is the first alone, since the second's input is saved before
    # it multiplies; backward: both weights' gradients and the second's input's: 3.
    assert both(Checkpointed(mlp()), torch.randn(16, 64)) == (6 * PRODUCT, 6 * PRODUCT)


def test_without_early_stop_all_is_computed_again():
    with set_checkpoint_early_stop(False):
        assert both(Checkpointed(mlp()), torch.randn(16, 64)) == (7 * PRODUCT, 7 * PRODUCT)


def test_reentrant_checkpointing_computes_all_again():
    model = nn.Sequential(nn.Linear(64, 64), Checkpointed(mlp(), reentrant=True))

    # Forward 3, again 2, backward: the first layer's weight 1, the others' weights and inputs 4.
    assert both(model, torch.randn(16, 64)) == (10 * PRODUCT, 10 * PRODUCT)


def test_a_checkpoint_that_ends_in_an_activation_has_computed_it():
    # The last tensor saved is the relu's result: both products were computed again.
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.ReLU())

    assert both(Checkpointed(net), torch.randn(16, 64)) == (7 * PRODUCT, 7 * PRODUCT)


def test_a_stop_inside_a_convolution_does_not_count_it():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))

    # One convolution: 4 channels × 8·8 × 4·3·3 multiply-adds × 2 = 18,432. As the linears above.
    assert both(Checkpointed(net), torch.randn(1, 4, 8, 8)) == (6 * 18_432, 6 * 18_432)


def test_a_stop_inside_a_product_in_three_dimensions_does_not_count_it():
    assert both(Checkpointed(mlp()), torch.randn(2, 8, 64)) == (6 * PRODUCT, 6 * PRODUCT)


def test_attention_at_the_end_of_a_checkpoint_was_computed():
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(16, 48)

        def forward(self, x):
            q, k, v = self.project(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
            return F.scaled_dot_product_attention(q, k, v)

    x = torch.randn(1, 4, 16)
    run = flopprof.profile(
        Checkpointed(Attend()), (x,), train=True, repeats=1, warmup=1, ceilings=False
    )
    phases = run.by_phase().set_index("phase")["matmul_flops"]

    # 4·16·48 multiply-adds × 2, and two products of 2 heads × 4·4·8 × 2: its result is saved.
    assert phases["forward"] == phases["recompute"] == 6144 + 1024
    # Back: the weight's gradient, and five products of attention, of which one makes the scores
    # again: 2·7,168 + 6,144 + 5·512.
    count = flopprof.count_flops(Checkpointed(Attend()), (x,), train=True)
    assert run.totals.matmul_flops == count.matmul_flops == 23_040


def test_nested_checkpoints_count_what_each_computed_again():
    inner = Checkpointed(mlp())
    model = Checkpointed(nn.Sequential(nn.Linear(64, 64), inner, nn.Linear(64, 64)))

    counted, profiled = both(model, torch.randn(16, 64))

    assert counted == profiled


def test_the_count_of_a_step_does_not_leave_the_stop_changed():
    from torch.utils import checkpoint as module

    flopprof.count_flops(Checkpointed(mlp()), (torch.randn(16, 64),), train=True)

    assert "__init__" not in vars(module._StopRecomputationError)


@pytest.mark.parametrize("shape", [(16, 64), (2, 8, 64)])
def test_a_trace_recorded_elsewhere_shows_where_a_recomputation_stopped(tmp_path, shape):
    model = Checkpointed(mlp())
    x = torch.randn(shape)
    with torch.profiler.profile(record_shapes=True) as profiler:
        model(x).sum().backward()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))

    assert flopprof.analyse_traces(tmp_path / "trace.json").totals.matmul_flops == 6 * PRODUCT


class Selective(nn.Module):
    """A checkpoint that keeps what its products return."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        contexts = partial(create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default])
        return checkpoint(self.net, x, use_reentrant=False, context_fn=contexts)


def test_what_a_selective_checkpoint_keeps_is_not_computed_again():
    # Forward 2 products, none again; backward 3.
    assert both(Selective(), torch.randn(16, 64)) == (5 * PRODUCT, 5 * PRODUCT)
