"""Forward-mode differentiation: an op on dual numbers does its own work and its tangent's."""

import pytest
import torch
import torch.autograd.forward_ad as fw
from torch import nn
from torch.func import jvp

import flopprof


class Dual(nn.Module):
    """A model that returns the tangent of a function of its layer at the input, for ones."""

    def __init__(self, function, layer=None):
        super().__init__()
        self.layer = layer or nn.Identity()
        self.function = function

    def forward(self, x):
        with fw.dual_level():
            dual = fw.make_dual(x, torch.ones_like(x))
            return fw.unpack_dual(self.function(self.layer, dual)).tangent


class Pushed(Dual):
    """The same by torch.func."""

    def forward(self, x):
        return jvp(lambda x: self.function(self.layer, x), (x,), (torch.ones_like(x),))[1]


def both(model, *size):
    """Return both classes' FLOPs by counting, and by profiling."""
    x = torch.randn(*size)
    count = flopprof.count_flops(model, (x,))
    run = flopprof.profile(model, (x,), repeats=1, warmup=1, ceilings=False, traces=1)
    assert count.flops == count.flops_at_most
    assert run.totals.matmul_flops == count.matmul_flops
    assert run.totals.vector_flops == count.vector_flops
    return count.matmul_flops, count.vector_flops


# torch.func.jvp looks its rules up in torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")


@pytest.mark.parametrize("kind", [Dual, Pushed])
def test_a_product_and_a_function_count_themselves_and_their_tangents(kind):
    counted = both(kind(lambda _, d: (d @ d).sin()), 10, 10)

    # d·d, then dt·d and d·dt: three products of 10·10·10 × 2. Of 100 elements: the sum of the two,
    # sin, and cos and a product for its tangent.
    assert counted == (6000, 400)


@pytest.mark.parametrize("kind", [Dual, Pushed])
@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (torch.exp, 200),  # exp; its tangent is a product with the result
        (torch.sum, 200),  # the sum of values, and of tangents
        (lambda d: d + d, 200),
        (lambda d: d * d, 400),  # its own; two products and their sum
        (torch.cumsum, 200),
        (torch.neg, 200),
    ],
)
def test_elementwise_work_counts_itself_and_its_tangent(kind, function, flops):
    if function is torch.cumsum:
        function = lambda d: torch.cumsum(d, 0)  # noqa: E731

    assert both(kind(lambda _, d: function(d)), 10, 10) == (0, flops)


def test_a_linear_layer_counts_the_product_with_a_weight_s_tangent_of_zeros():
    counted = both(Dual(lambda layer, d: layer(d), nn.Linear(5, 7)), 4, 5)

    # Values, the tangent of the input, and that of the weight, for which PyTorch makes zeros and
    # multiplies: three times 4·5·7 multiply-adds × 2. The bias, and two sums of tangents: 28 each.
    assert counted == (840, 84)


def test_a_convolution_counts_the_product_with_a_filter_s_tangent_of_zeros():
    layer = nn.Conv2d(3, 4, 3, padding=1)

    counted = both(Dual(lambda layer, d: layer(d), layer), 1, 3, 8, 8)

    # Values, the tangent of the input, and that of the filter, for which PyTorch makes zeros and
    # multiplies: three times 4·8·8 outputs × 27 multiply-adds × 2. Bias adds of the first and
    # last, and the sum of both tangents: three times 256.
    assert counted == (41_472, 768)
