"""A model's copy on the meta device is the model, without values."""

import copy
from typing import Any

import torch
from torch import nn

from flopprof.capture.twin import meta_twin, tensors_held


class Net(nn.Module):
    """Layers of all kinds: plain ones, a shared one, one with a hook, one with a list inside."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4))
        self.again = self.layers[0]
        self.hooked = nn.ReLU()
        self.hooked.register_forward_hook(lambda *call: None)
        self.recurrent = nn.LSTM(4, 5)
        self.normalised = nn.LayerNorm([4, 8])
        self.scales = [torch.ones(2), {"more": torch.ones(3)}]


def attributes(module):
    """Return what a module holds that is no tensor, module or hook."""
    plain = (type(None), bool, int, float, str, tuple, set)
    return {name: value for name, value in vars(module).items() if type(value) in plain}


def test_every_layer_is_there_with_its_attributes_and_no_values():
    model: Any = Net().eval()
    model.layers[0].weight.requires_grad_(False)

    twin: Any = meta_twin(model)

    pairs = list(zip(model.named_modules(), twin.named_modules(), strict=True))
    for (path, layer), (twins_path, copied) in pairs:
        assert (path, type(layer)) == (twins_path, type(copied))
        assert attributes(layer) == attributes(copied)
        assert layer is not copied
        assert vars(layer).keys() == vars(copied).keys()
    for one, other in zip(model.state_dict().items(), twin.state_dict().items(), strict=True):
        assert one[0] == other[0]
        assert (one[1].shape, one[1].dtype) == (other[1].shape, other[1].dtype)
    assert {tensor.device.type for tensor in tensors_held(twin)} == {"meta"}
    assert twin.again is twin.layers[0]
    assert not twin.layers[0].weight.requires_grad
    assert twin.layers[0].bias.requires_grad
    assert len(twin.hooked._forward_hooks) == 1


def test_what_is_changed_in_the_copy_stays_out_of_the_model():
    model: Any = Net()
    before = [copy.copy(vars(module)) for module in model.modules()]

    twin: Any = meta_twin(model)
    twin.layers[0].extra = nn.Linear(2, 2)
    twin.layers[1]._buffers["running_mean"] = None
    twin.layers[1].eps = 1.0

    assert [vars(module) for module in model.modules()] == before
    assert "extra" not in model.layers[0]._modules
    assert model.layers[1].running_mean is not None


def test_tensors_are_found_however_nested():
    held = list(tensors_held(Net()))

    # Convolution and batch norm 2 + 2 + 3 buffers, met once though shared; recurrent 4, and again
    # in its flat list; layer norm 2; two of the list.
    assert len({id(tensor) for tensor in held}) == 2 + 2 + 3 + 4 + 2 + 2
