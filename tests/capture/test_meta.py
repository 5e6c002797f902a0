"""Running on the meta device with repeated results, against running each op."""

import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

import flopprof
from flopprof.capture.meta import ShapesOnce


def meta(*shape):
    return torch.empty(shape, device="meta", requires_grad=True)


class Twice(nn.Module):
    """The same layers again, views, changes in place, several results, a list."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        for _ in range(2):
            x = self.norm(self.conv(x)).relu_()
            top, at = x.flatten(2).max(-1)
            x = torch.cat(torch.split(x, 2, 1), 1).add_(1.0) + top[..., None, None]
        return x, at, x.transpose(1, 2).contiguous()


@pytest.mark.parametrize("training", [False, True])
def test_results_have_the_shapes_strides_and_types_that_ops_give(training):
    model = Twice().to("meta").train(training)
    x = torch.empty(2, 4, 8, 8, device="meta").to(memory_format=torch.channels_last)

    expected = model(x)
    with ShapesOnce():
        found = model(x)

    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.shape, ours.stride(), ours.dtype) == (
            theirs.shape,
            theirs.stride(),
            theirs.dtype,
        )
        assert ours.requires_grad == theirs.requires_grad


def test_gradients_are_found_by_the_same_ops():
    x = meta(3, 5)
    weight = meta(5, 5)

    with ShapesOnce(), profile(activities=[ProfilerActivity.CPU]) as recorded:
        y = (x @ weight).tanh() @ weight
        y.sum().backward()

    names = [event.name for event in recorded.events()]
    # Two products forward; backward two for the first and two for the second.
    assert names.count("aten::mm") == 6
    assert [x.grad.shape, weight.grad.shape] == [(3, 5), (5, 5)]


def test_a_value_that_differs_is_another_call():
    x = meta(2, 6)

    with ShapesOnce():
        shapes = [tuple(nn.functional.adaptive_avg_pool1d(x[None], n).shape) for n in (1, 2, 1)]
        kinds = [(x.detach().to(torch.int32) + s).dtype for s in (1, 1.0, True)]

    assert shapes == [(1, 2, 1), (1, 2, 2), (1, 2, 1)]
    assert kinds == [torch.int32, torch.float32, torch.int32]


def test_an_op_of_neither_list_is_recorded_once_with_what_lies_in_it():
    library = torch.library.Library("shapes_once_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: torch.mm(torch.mm(x, x), x), "CompositeExplicitAutograd")

    with (
        torch.no_grad(),
        ShapesOnce(),
        profile(activities=[ProfilerActivity.CPU]) as recorded,
    ):
        for _ in range(2):
            torch.ops.shapes_once_test.twice(meta(4, 4).detach())

    names = [event.name for event in recorded.events()]
    assert names.count("shapes_once_test::twice") == 2
    assert names.count("aten::mm") == 4


def test_what_cannot_run_without_values_still_raises():
    with ShapesOnce(), pytest.raises((NotImplementedError, RuntimeError)):
        torch.nonzero(meta(3).detach()).tolist()


def test_an_op_that_only_allocates_on_the_meta_device_is_unknown_and_no_zero():
    class Exponential(nn.Module):
        def forward(self, x):
            return torch.linalg.matrix_exp(x)

    count = flopprof.count_flops(Exponential(), torch.ones(6, 6))

    # Its products, which the matrix's norm decides, are only seen where there are values.
    assert math.isnan(count.flops_at_most)
    assert "unknown" in set(count.run.sites["verdict"])


class AttendsToItself(nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.rows = nn.Parameter(torch.ones(1, 2, 8, 16))
        self.backend = backend

    def forward(self, factor):
        rows = self.rows * factor
        with sdpa_kernel(self.backend):
            return nn.functional.scaled_dot_product_attention(rows, rows, rows)


# Forward: 2·8·8 scores, from 16 products and to 16 sums, × 2: 8,192. Backward: of each of the two
# products two, 4·2·128·16 = 16,384; a fused op makes the scores again, 4,096 more.
@pytest.mark.parametrize(
    ("backend", "matmul"),
    [(SDPBackend.FLASH_ATTENTION, 28_672), (SDPBackend.MATH, 24_576)],
)
def test_attention_that_is_trained_counts_the_op_that_a_cpu_runs(backend, matmul):
    model = AttendsToItself(backend)
    factor = torch.ones(1)

    count = flopprof.count_flops(model, (factor,), train=True)
    run = flopprof.profile(model, (factor,), train=True, repeats=1, warmup=1, ceilings=False)

    assert count.run.provenance.device.name == "meta"
    assert (count.matmul_flops, run.totals.matmul_flops) == (matmul, matmul)
    assert count.vector_flops == run.totals.vector_flops


def test_making_a_result_again_is_no_op_of_the_models():
    conv = nn.Conv2d(4, 4, 3, padding=1).to("meta")
    x = torch.empty(2, 4, 8, 8, device="meta")

    with ShapesOnce(), torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(3):
            x = conv(x)

    names = [event.name for event in recorded.events()]
    assert names.count("aten::conv2d") == 3
    assert "aten::empty_strided" not in names


def test_a_change_in_place_returns_its_tensor_the_second_time_too():
    x = torch.empty(2, 4, device="meta")
    wider = torch.empty(3, 2, 4, device="meta")

    with ShapesOnce(), torch.no_grad():
        results = [x.relu_(), x.relu_(), x.add_(x), x.add_(x)]
        with pytest.raises(RuntimeError):
            x.add_(wider)  # whose shape it cannot take

    assert all(result is x for result in results)
    assert x._version == 4
    assert x.shape == (2, 4)


def test_a_change_in_place_of_a_shape_is_made_each_time():
    x = torch.empty(2, 4, device="meta")

    with ShapesOnce(), torch.no_grad():
        for _ in range(3):
            x.t_()

    assert x.shape == (4, 2)
