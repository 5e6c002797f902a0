"""A backward pass inside forward: forces, GAN steps, a whole training step in one call."""

import pytest
import torch
from torch import nn

import flopprof
from flopprof.errors import ModelError


class Force(nn.Module):
    """The negative gradient of an energy, as force fields compute it."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 16)
        self.b = nn.Linear(16, 1)

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            energy = self.b(torch.tanh(self.a(x)))
            return -torch.autograd.grad(energy.sum(), x, create_graph=self.training)[0]


class Step(nn.Module):
    """A training step with gradient accumulation, written as a forward."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x):
        total = 0.0
        with torch.enable_grad():
            for part in x.chunk(2):
                loss = self.net(part).square().mean()
                (loss * 1024.0).backward()
                total = total + loss.detach()
        return total


class Adversary(nn.Module):
    """Generator and discriminator, a backward pass through each."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Linear(8, 16)
        self.discriminator = nn.Linear(16, 1)

    def forward(self, z):
        with torch.enable_grad():
            fake = self.generator(z)
            self.discriminator(fake.detach()).mean().backward()
            loss = -self.discriminator(fake).mean()
            loss.backward()
        return loss.detach()


def profiled(model, x):
    return flopprof.profile(model, (x,), repeats=1, warmup=1, ceilings=False)


def verdicts(run):
    return set(run.sites["verdict"])


def matmuls(run):
    sites = run.sites.query("matmul_flops > 0")
    return sites.groupby(["module_path", "phase"])["matmul_flops"].sum().to_dict()


def test_the_gradient_inside_a_force_field_disturbs_no_verdict():
    run = profiled(Force(), torch.randn(4, 8))

    # Forward 4·8·16 and 4·16·1 multiply-adds × 2; the input's gradient the same, no weight's.
    assert matmuls(run) == {
        ("a", "forward"): 1024,
        ("b", "forward"): 128,
        ("a", "backward"): 1024,
        ("b", "backward"): 128,
    }
    assert verdicts(run) <= {"free", "agrees", "formula_only", "functional"}
    linears = run.sites.query("op == 'aten::linear'")
    assert linears["verdict"].tolist() == ["agrees", "agrees"]


def test_a_training_step_through_a_force_keeps_its_verdicts():
    run = flopprof.profile(
        Force(), (torch.randn(4, 8),), repeats=1, warmup=1, ceilings=False, train=True
    )

    assert verdicts(run) <= {"free", "agrees", "formula_only", "functional"}
    assert set(run.sites.query("op == 'aten::linear'")["verdict"]) == {"agrees"}


def test_gradient_accumulation_inside_forward_disturbs_no_verdict():
    run = profiled(Step(), torch.randn(8, 8))

    # Two halves of 4 rows: forward 2 × 4·8·16·2 and 2 × 4·16·4·2; backward of the first layer
    # has the weight's gradient alone, that of the second also the input's.
    assert matmuls(run) == {
        ("net.0", "forward"): 2048,
        ("net.2", "forward"): 1024,
        ("net.0", "backward"): 2048,
        ("net.2", "backward"): 2048,
    }
    assert verdicts(run) <= {"free", "agrees", "formula_only", "functional"}
    assert set(run.sites.query("op == 'aten::linear'")["verdict"]) == {"agrees"}


def test_an_adversarial_step_inside_forward_disturbs_no_verdict():
    model = Adversary()
    run = profiled(model, torch.randn(4, 8))

    assert verdicts(run) <= {"free", "agrees", "formula_only", "functional"}
    # Generator: forward and its weight's gradient, 4·8·16·2 each. Discriminator, 4·16·1·2 = 128:
    # two forwards; back twice the weight's gradient and once the input's.
    assert matmuls(run) == {
        ("generator", "forward"): 1024,
        ("generator", "backward"): 1024,
        ("discriminator", "forward"): 256,
        ("discriminator", "backward"): 384,
    }
    assert all(parameter.grad is None for parameter in model.parameters())


def test_counting_agrees_with_profiling():
    for model in (Force(), Step(), Adversary()):
        x = torch.randn(4, 8)
        count = flopprof.count_flops(model, (x,))

        assert count.matmul_flops == profiled(model, x).totals.matmul_flops
        assert "not_run" not in set(count.run.sites["verdict"])


def test_each_call_with_a_backward_pass_inside_is_the_first_and_leaves_the_users_gradients():
    model = Step()
    x = torch.ones(2, 8)
    model(x)
    gradients = [parameter.grad for parameter in model.parameters()]
    before = [gradient.clone() for gradient in gradients if gradient is not None]

    count = flopprof.count_flops(model, (x,))
    run = profiled(model, x)

    # Both count one call that finds no gradients: two parts, the second adds to the first's.
    assert count.vector_flops == run.totals.vector_flops
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


class Asking(nn.Module):
    """A force field that leaves it to its caller to record gradients."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 7)

    def forward(self, x):
        x.requires_grad_(True)
        return torch.autograd.grad(self.layer(x).sum(), x)[0]


def test_a_forward_that_asks_for_gradients_is_called_with_them():
    model = Asking()
    x = torch.ones(4, 5)
    count = flopprof.count_flops(model, (x,))
    run = profiled(model, x)

    # 4·5·7 multiply-adds × 2 forward; the input's gradient as much.
    assert count.matmul_flops == run.totals.matmul_flops == 560
    assert any("asks for gradients" in text for text in run.provenance.warning_texts)
    assert not x.requires_grad
    assert model.layer.weight.grad is None


def test_a_forward_whose_own_no_grad_forbids_gradients_is_at_fault():
    class Forbids(Asking):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    with pytest.raises(ModelError, match="does not require grad"):
        flopprof.count_flops(Forbids(), (torch.ones(4, 5),))
