"""Calls that an argument's text or rank hides: counted by their own definition all the same."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import flopprof


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def counted(function, *inputs):
    count = flopprof.count_flops(Of(function), inputs)
    assert count.flops == count.flops_at_most
    return count.matmul_flops, count.vector_flops


@pytest.mark.parametrize("padding", ["same", 1])
def test_a_complex_convolution_is_eight_flops_per_multiply_add_whatever_its_padding(padding):
    x, w = (torch.ones(1, 1, n, dtype=torch.complex64) for n in (16, 3))

    # 16 outputs of 3 multiply-adds, 8 FLOPs each.
    assert counted(lambda a: functional.conv1d(a, w.to(a.device), padding=padding), x) == (384, 0)


def test_padding_by_text_counts_bias_and_stride_as_numbers_do():
    x, w, bias = torch.ones(1, 3, 8, 8), torch.ones(4, 3, 3, 3), torch.ones(4)
    even = torch.ones(4, 3, 2, 2)

    def call(padding, taps=w, **more):
        return lambda a: functional.conv2d(
            a, taps.to(a.device), bias.to(a.device), padding=padding, **more
        )

    # 4·8·8 outputs of 3·9 multiply-adds, and their bias.
    assert counted(call("same"), x) == (13_824, 256)
    # 4·6·6; 4·3·3 in steps of two.
    assert counted(call("valid"), x) == (4 * 36 * 27 * 2, 144)
    assert counted(call("valid", stride=2), x) == (4 * 9 * 27 * 2, 36)
    # Even filters are padded on one side more: 4·8·8 outputs of 3·4.
    assert counted(call("same", even), x) == (4 * 64 * 12 * 2, 256)
    # Dilated to a reach of 5: 4·8·8 again.
    assert counted(call("same", dilation=2), x) == (13_824, 256)


def test_padding_by_text_is_counted_in_inference_mode():
    conv = nn.Conv2d(3, 4, 3, padding="same", bias=False)

    with torch.inference_mode():
        count = flopprof.count_flops(conv, torch.ones(1, 3, 8, 8))

    assert (count.flops, count.flops_at_most) == (13_824, 13_824)


@pytest.mark.parametrize("shape", [(10, 8), (1, 10, 8), (1, 1, 10, 8)])
def test_attention_counts_the_same_at_any_rank(shape):
    q = torch.ones(shape)

    # 10·10 scores: two products of width 8; softmax 5 and scale 1 each.
    assert counted(functional.scaled_dot_product_attention, q, q, q) == (3200, 600)
