"""Paths of the modules inside TorchScript and exported programs, which no hook enters."""

import pytest
import torch
from torch import nn

import flopprof

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3, bias=False)

    def forward(self, x):
        return torch.relu(self.fc(x)) + self.helped(x)

    def helped(self, x):
        return x[:, :3] * 2.0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block())
        self.head = nn.Linear(3, 5, bias=False)

    def forward(self, x):
        return self.head(self.blocks(x)) @ torch.ones(5, 1)


def exported(net, x):
    return torch.export.export(net, (x,)).module()


def scripted(net, _x):
    return torch.jit.script(net)


def traced(net, x):
    return torch.jit.trace(net, x)


@pytest.mark.parametrize("closed", [exported, scripted, traced])
@pytest.mark.parametrize("around", ["", "0"])
def test_ops_have_the_paths_of_the_modules_inside(closed, around):
    x = torch.ones(2, 4)
    model = closed(Net().eval(), x)
    model = nn.Sequential(model) if around else model
    # Layers: 2 rows × 4·3 and 3·5 multiply-adds × 2; the last product: 2 × 5 × 2.
    expected = {
        ("aten::linear", "blocks.0.fc"): 48,
        ("aten::relu", "blocks.0"): 6,
        ("aten::mul", "blocks.0"): 6,
        ("aten::add", "blocks.0"): 6,
        ("aten::linear", "head"): 60,
        ("aten::matmul", ""): 20,
    }
    expected = {(op, ".".join(filter(None, (around, p)))): n for (op, p), n in expected.items()}

    count = flopprof.count_flops(model, (x,))
    run = flopprof.profile(model, (x,), repeats=1, warmup=1, ceilings=False)

    for sites in (count.run.sites, run.sites):
        sites = sites[sites["flops"] > 0]
        found = zip(sites["op"], sites["module_path"], sites["flops"], strict=True)
        assert {(op, path): flops for op, path, flops in found} == expected
        assert set(sites["verdict"]) == {"opaque"}


@pytest.mark.parametrize("closed", [scripted, traced])
def test_constants_that_torchscript_compares_in_its_first_calls_are_no_work_of_the_model(closed):
    x = torch.ones(2, 4)
    frozen = torch.jit.freeze(closed(Net().eval(), x))

    count = flopprof.count_flops(frozen, (x,))

    # A relu, a product and a sum of 2·3 elements each.
    assert (count.matmul_flops, count.vector_flops) == (48 + 60 + 20, 18)


def test_a_scripted_part_of_a_model_can_be_trained():
    count = flopprof.count_flops(nn.Sequential(torch.jit.script(Net())), (2, 4), train=True)

    # Forward 128; back the weights' gradients 48 + 60, and the input's of the head 60 and of the
    # last product 20: the ones need no gradient.
    assert count.matmul_flops == 128 + 48 + 60 + 60 + 20
