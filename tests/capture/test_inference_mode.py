"""Counting under inference_mode, where ops that only call others reach a dispatch mode whole."""

import pytest
import torch
from torch import nn

import flopprof


class Inside(nn.Module):
    """A model that calls its layer in a mode."""

    def __init__(self, layer, mode):
        super().__init__()
        self.layer = layer
        self.mode = mode

    def forward(self, x):
        with self.mode():
            return self.layer(x)


MODES = [torch.inference_mode, torch.no_grad, torch.enable_grad]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("layer", "size", "flops"),
    [
        # 4 channels × 8·8 positions × 3·3·3 multiply-adds × 2.
        (nn.Conv2d(3, 4, 3, padding="same"), (1, 3, 8, 8), 13_824),
        # An even filter is padded on one side more: 4 × 8·8 × 3·4·4 × 2.
        (nn.Conv2d(3, 4, 4, padding="same"), (1, 3, 8, 8), 24_576),
        # 4 × 8 × 3·3 × 2.
        (nn.Conv1d(3, 4, 3, padding="same"), (1, 3, 8), 576),
        # 2·3 rows × 5·7 × 2.
        (nn.Linear(5, 7), (2, 3, 5), 420),
    ],
)
def test_a_layer_counts_the_same_in_every_mode(mode, layer, size, flops):
    x = torch.randn(size)

    count = flopprof.count_flops(Inside(layer, mode), (x,))
    profiled = flopprof.profile(Inside(layer, mode), (x,), repeats=1, warmup=1, ceilings=False)

    assert count.matmul_flops == profiled.totals.matmul_flops == flops
    assert count.flops_at_most == count.flops
    assert count.coverage_calls_frac == 1
    assert set(count.run.sites["verdict"]) <= {"free", "agrees"}


def test_a_caller_in_inference_mode_gets_the_same_count():
    model = nn.Conv2d(3, 4, 3, padding="same")
    with torch.inference_mode():
        assert flopprof.count_flops(model, (1, 3, 8, 8)).matmul_flops == 13_824


@pytest.mark.parametrize("mode", MODES)
def test_what_an_op_without_count_calls_is_counted_on_the_meta_device(mode):
    class Declined(nn.Module):
        def forward(self, x):
            with mode():
                return nn.functional.conv2d(x, torch.ones(4, 3, 3, 3), padding="same")

    # As above, without a module: 13,824.
    assert flopprof.count_flops(Declined(), (1, 3, 8, 8)).matmul_flops == 13_824
