"""Training steps on a GPU: forward, backward and optimizer by hand, every kernel linked."""

from typing import Any

import pytest
import torch
from torch import nn

from flopprof.run import Run
from tests.gpu.place import Place, assert_linked, compute_kernels, names, reasons


def by_phase(run: Run) -> dict[str, int]:
    phases = run.by_phase()
    pairs = zip(phases["phase"], phases["matmul_flops"], strict=True)
    return {phase: int(flops) for phase, flops in pairs if flops}


def assert_backward_linked(place: Place, run: Run) -> None:
    assert_linked(place, run)
    if place.has_cuda("backward kernels are linked to backward ops"):
        kernels = compute_kernels(run)
        phases = set(run.ops.set_index("op_id").loc[kernels["op_id"], "phase"])
        assert {"forward", "backward"} <= phases, names(kernels)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_a_step_of_two_linears_counts_both_gradients_but_the_inputs_of_the_first(place, optimizer):
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))

    run = place.profile(model, torch.randn(8, 64), train=True, optimizer=optimizer)

    # Forward 2·8·64·32 and 2·8·32·16; the gradients of both weights again, and the second's input.
    first, second = 2 * 8 * 64 * 32, 2 * 8 * 32 * 16
    assert by_phase(run) == {"forward": first + second, "backward": first + 2 * second}
    assert_backward_linked(place, run)
    if place.has_cuda("the optimizer's kernels"):
        kernels = compute_kernels(run)
        phases = run.ops.set_index("op_id").loc[kernels["op_id"], "phase"]
        assert (phases == "optimizer").any(), names(kernels)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_step_of_convolutions_counts_both_gradients_but_the_first_inputs(place, channels_last):
    model: nn.Module = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
    )  # fmt: skip
    x = torch.randn(2, 4, 16, 16)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)

    run = place.profile(model, x, train=True)

    # 2·8·16² outputs of 4·9, then of 8·9.
    first, second = 2 * 2 * 8 * 256 * 36, 2 * 2 * 8 * 256 * 72
    assert by_phase(run) == {"forward": first + second, "backward": first + 2 * second}
    assert_backward_linked(place, run)


def test_a_step_of_an_lstm_counts_its_backward_pass(place):
    model = nn.LSTM(8, 16, batch_first=True)

    run = place.profile(model, torch.randn(2, 5, 8), train=True)

    # 2 examples, 5 steps, 4 gates of 16 over input 8 and state 16.
    forward = 2 * 2 * 5 * 4 * 16 * (8 + 16)
    counts = by_phase(run)
    assert counts["forward"] == forward, reasons(run)
    # The weights' gradients are as much; those of inputs and states are what is asked for.
    assert forward <= counts["backward"] <= 2 * forward, reasons(run)
    assert_backward_linked(place, run)


def test_a_step_of_an_encoder_layer_counts_twice_its_products_backward(place):
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Linear(32, 32, bias=False), layer)

    run = place.profile(model, torch.randn(2, 16, 32), train=True)

    # 32 tokens: a first layer 32²; in and out projections 4·32², feed-forward 2·32·64; two
    # products of 16 by 16 in each of 2 examples.
    first = 2 * 32 * 32 * 32
    projections = 2 * 32 * (4 * 32 * 32 + 2 * 32 * 64)
    product = 2 * 2 * 16 * 16 * 32
    counts = by_phase(run)
    assert counts["forward"] == first + projections + 2 * product, reasons(run)
    # A kernel that does all of attention's backward pass makes the scores again: five products.
    expected = first + 2 * projections
    assert counts["backward"] in (expected + 4 * product, expected + 5 * product), reasons(run)
    assert_backward_linked(place, run)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_step_under_autocast_counts_as_one_without(place, dtype):
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))

    run = place.profile(model, torch.randn(8, 64), train=True, autocast=dtype)

    first, second = 2 * 8 * 64 * 32, 2 * 8 * 32 * 16
    assert by_phase(run) == {"forward": first + second, "backward": first + 2 * second}
    products = run.sites[run.sites["matmul_flops"] > 0]
    assert set(products["dtype"]) == {dtype}, reasons(run)
    assert_backward_linked(place, run)


def test_a_checkpointed_step_counts_its_recomputation(place):
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(32, 32)
            self.inner = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))

        def forward(self, x: torch.Tensor) -> Any:
            return checkpoint(self.inner, self.first(x), use_reentrant=True)

    run = place.profile(Checkpointed(), torch.randn(8, 32), train=True)

    # Each layer 2·8·32²: three forward, two again, five gradients (not the first's input).
    one = 2 * 8 * 32 * 32
    assert by_phase(run) == {"forward": 3 * one, "recompute": 2 * one, "backward": 5 * one}
    assert_backward_linked(place, run)


def test_a_step_leaves_parameters_gradients_and_random_state_as_they_were(place):
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.BatchNorm1d(8)).to(place.device)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = [torch.get_rng_state()]
    if place.is_gpu:
        states.append(torch.cuda.get_rng_state())

    place.profile(model, torch.randn(4, 8, device=place.device), train=True, optimizer="adam")

    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    if place.has_cuda("the random state of the GPU"):
        assert torch.equal(torch.cuda.get_rng_state(), states[1])
