"""Training steps: each phase against counts by hand, and a model that is left as it was."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import flopprof
from flopprof.capture.training import Training
from flopprof.errors import UsageError
from flopprof.run import Count


def matmul_by_phase(count: Count) -> dict[str, int]:
    phases = count.run.by_phase()
    pairs = zip(phases["phase"], phases["matmul_flops"], strict=True)
    return {phase: int(flops) for phase, flops in pairs if flops}


def counted(model: nn.Module, size: tuple[int, ...], **options: str) -> dict[str, int]:
    return matmul_by_phase(flopprof.count_flops(model, size, train=Training(**options)))  # type: ignore[arg-type]


def test_a_linear_layers_backward_makes_both_gradients_but_the_inputs_of_the_first():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5))

    # Forward 2·2·4·3 = 48 and 2·2·3·5 = 60. Backward: weights 60 and 48, the second's input 60;
    # nobody asks for the first's.
    assert counted(model, (2, 4)) == {"forward": 48 + 60, "backward": 60 + 60 + 48}


def test_an_inputs_gradient_is_counted_where_it_is_asked_for():
    x = torch.zeros(2, 4, requires_grad=True)

    count = flopprof.count_flops(nn.Linear(4, 3), x, train=True)

    assert matmul_by_phase(count) == {"forward": 48, "backward": 48 + 48}


def test_frozen_weights_cost_no_gradient():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5))
    model[0].requires_grad_(False)

    # Only the second's weight: its input hangs on no parameter that learns.
    assert counted(model, (2, 4)) == {"forward": 48 + 60, "backward": 60}


@pytest.mark.parametrize(
    ("layer", "flops"),
    [
        # 16 places, 8 outputs, each 4/2 inputs × 9 taps.
        (nn.Conv2d(4, 8, 3, groups=2), 2 * 16 * 8 * 2 * 9),
        # Depthwise: one input per output.
        (nn.Conv2d(4, 4, 3, groups=4), 2 * 16 * 4 * 1 * 9),
        # Transposed: each of 4 × 36 inputs meets 6 outputs × 9 taps.
        (nn.ConvTranspose2d(4, 6, 3), 2 * 4 * 36 * 6 * 9),
    ],
)
def test_a_convolutions_backward_is_twice_its_forward(layer, flops):
    before = nn.Conv2d(4, 4, 1)  # so that the layer's input has a gradient
    first = 2 * 36 * 4 * 4

    counts = counted(nn.Sequential(before, layer), (1, 4, 6, 6))

    assert counts == {"forward": first + flops, "backward": first + 2 * flops}


def test_attentions_backward():
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    x = torch.zeros(1, 2, 5, 8, requires_grad=True)

    # Products Q·Kᵀ and P·V: 2·2 heads·5·5·8 each. In backward two products for each of the two;
    # a kernel that keeps no scores makes Q·Kᵀ once more, the meta device composes it of products.
    product = 2 * 2 * 5 * 5 * 8
    run = flopprof.profile(Attention(), x, train=True, ceilings=False)
    phases = run.by_phase().set_index("phase")["matmul_flops"]
    assert phases["forward"] == 2 * product
    assert phases["backward"] == 5 * product


def test_a_layer_norms_backward():
    count = flopprof.count_flops(nn.LayerNorm(16), (4, 16), train=Training(optimizer="none"))

    phases = count.run.by_phase().set_index("phase")["vector_flops"]
    n = 4 * 16
    # Forward 5n, + n weight, + n bias, and the loss's sum n. Backward without the input's
    # gradient, which nobody asks for: 2n for the weight's, n for the bias's.
    assert phases["forward"] == 7 * n + n
    assert phases["backward"] <= (9 + 1 + 2 + 1) * n
    assert phases["backward"] >= 3 * n


@pytest.mark.parametrize(
    ("optimizer", "per_parameter"),
    [
        ("sgd", 2),  # p + lr·g
        ("momentum", 4),  # m·v, + g, p + lr·v
        ("none", 0),
    ],
)
def test_an_optimizers_step(optimizer, per_parameter):
    model = nn.Linear(4, 3)

    count = flopprof.count_flops(model, (2, 4), train=Training(optimizer=optimizer))

    phases = count.run.by_phase().set_index("phase")["vector_flops"]
    assert phases.get("optimizer", 0) == per_parameter * (4 * 3 + 3)
    assert count.flops_at_most == count.flops


def test_recomputation_is_counted_as_what_ran():
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = checkpoint(self.inner, x, use_reentrant=False)
            return out

    forward = 2 * 2 * 4 * 8
    # Backward: both weights, and the second's input. Computed again: all up to the last tensor
    # that backward needs, which is the second layer's input.
    counts = counted(Checkpointed(), (2, 4))

    assert counts["forward"] == 2 * forward
    assert counts["backward"] == 3 * forward
    assert counts["recompute"] in (forward, 2 * forward)


def test_backward_work_belongs_to_the_forward_module():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5))

    sites = flopprof.count_flops(model, (2, 4), train=True).run.sites

    backward = sites[(sites["phase"] == "backward") & (sites["matmul_flops"] > 0)]
    assert backward.groupby("module_path")["matmul_flops"].sum().to_dict() == {"0": 48, "2": 120}
    assert set(backward["verdict"]) == {"formula_only"}
    assert set(sites.loc[sites["phase"] == "optimizer", "verdict"]) <= {"formula_only", "free"}


def test_a_trained_model_is_left_as_it_was():
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 3, bias=True)
    model = nn.Sequential(first, nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten())
    first.weight.grad = torch.ones_like(first.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    state = torch.get_rng_state()

    flopprof.profile(
        model, torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)),
        train=Training(optimizer="adamw"), ceilings=False,
    )  # fmt: skip

    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(module.training for module in model.modules())
    assert first.weight.grad is not None
    assert torch.equal(first.weight.grad, torch.ones_like(first.weight))
    assert first.bias is not None
    assert first.bias.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loss_of_ones_own():
    def loss(output: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(
            output, torch.zeros(2, dtype=torch.long, device=output.device)
        )

    count = flopprof.count_flops(nn.Linear(4, 3), (2, 4), train=Training(loss=loss))

    sites = count.run.sites
    of_loss = sites[(sites["module_path"] == "(loss)") & (sites["phase"] == "forward")]
    # 5n of the log-softmax, and of each of 2 targets negate and mean: 5·6 + 2·2.
    assert of_loss["vector_flops"].sum() == 5 * 6 + 2 * 2


def test_what_cannot_be_trained_says_so():
    with pytest.raises(UsageError, match="no optimizer 'lion'"):
        flopprof.count_flops(nn.Linear(2, 2), (1, 2), train=Training(optimizer="lion"))
    with pytest.raises(UsageError, match="no output of the model has a gradient"):
        flopprof.count_flops(nn.Identity(), (1, 2), train=True)


class Recipe:
    """A training step as people write it: accumulation, scaler, clipping, EMA, a schedule."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters())
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 1)
        self.average = torch.optim.swa_utils.AveragedModel(model)
        self.scaler = torch.amp.GradScaler("cpu")
        self.losses: list[float] = []

    def __call__(self, model: nn.Module, x: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        for part in x.chunk(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(part).float().square().mean()
            self.scaler.scale(loss / 2).backward()
            self.losses.append(loss.item())
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.average.update_parameters(model)

    def state(self) -> dict[str, object]:
        return {
            "model": {name: t.tolist() for name, t in self.model.state_dict().items()},
            "average": {name: t.tolist() for name, t in self.average.state_dict().items()},
            "optimizer": str(self.optimizer.state_dict()),
            "schedule": str(self.schedule.state_dict()),
            "scaler": str(self.scaler.state_dict()),
            "losses": list(self.losses),
            "gradients": [p.grad for p in self.model.parameters()],
        }


@pytest.mark.parametrize("taken_before", [0, 1])
def test_a_step_of_ones_own_is_counted_and_undone(taken_before):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    recipe = Recipe(model)
    for _ in range(taken_before):
        recipe(model, torch.ones(2, 4))
        recipe.optimizer.zero_grad()
    before = recipe.state()

    count = flopprof.count_flops(model, torch.ones(2, 4), train=recipe)
    run = flopprof.profile(
        model, torch.ones(2, 4), train=Training(step=recipe), ceilings=False, repeats=1
    )

    # Twice one row: forward 2·4·8 and 2·8·3; backward both weights, and the second's input.
    forward = 2 * (64 + 48)
    by_phase = matmul_by_phase(count)
    assert by_phase == {"forward": forward, "backward": forward + 2 * 48}
    phases = run.by_phase().set_index("phase")["matmul_flops"]
    assert (phases["forward"], phases["backward"]) == (forward, forward + 2 * 48)
    assert run.totals.flops == count.flops
    assert not {"not_run", "disagrees"} & set(run.sites["verdict"])
    assert recipe.state() == before


def test_a_step_may_be_a_function_that_trains_two_models():
    generator, judge = nn.Linear(2, 4), nn.Linear(4, 1)
    first = torch.optim.SGD(generator.parameters(), lr=0.1)
    second = torch.optim.SGD(judge.parameters(), lr=0.1, momentum=0.9)

    def step(model: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
        noise, real = inputs
        second.zero_grad()
        (judge(real).mean() - judge(model(noise).detach()).mean()).backward()
        second.step()
        first.zero_grad()
        judge(model(noise)).mean().backward()
        first.step()

    before = [p.tolist() for m in (generator, judge) for p in m.parameters()]

    count = flopprof.count_flops(generator, (torch.ones(1, 2), torch.ones(1, 4)), train=step)

    # The judge's: forward twice 8, the generator's 16; weight gradients 8 each. Then the
    # generator's: 16 + 8 forward; backward 8 for the judge's weight, 8 for its input, 16.
    assert count.matmul_flops == (8 + 16 + 8) + (8 + 8) + (16 + 8) + (8 + 8 + 16)
    assert [p.tolist() for m in (generator, judge) for p in m.parameters()] == before
    assert not second.state
    assert all(p.grad is None for m in (generator, judge) for p in m.parameters())


@pytest.mark.parametrize("kind", [torch.Tensor, tuple, dict])
def test_a_step_gets_the_inputs_as_they_were_given(kind):
    def step(model: nn.Module, inputs: Any) -> None:
        assert isinstance(inputs, kind)
        model(torch.ones(1, 4)).sum().backward()

    x = torch.ones(1, 4)
    inputs = {torch.Tensor: x, tuple: (x, x), dict: {"input": x}}[kind]

    # Forward and weight gradient, 2·4·3 each.
    assert flopprof.count_flops(nn.Linear(4, 3), inputs, train=step).matmul_flops == 48


def test_what_is_no_training_says_so():
    with pytest.raises(UsageError, match="train is 'adam'"):
        flopprof.count_flops(nn.Linear(2, 2), (1, 2), train="adam")  # type: ignore[call-overload]
