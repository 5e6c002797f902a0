"""Pickled modules of installed libraries, rebuilt without the file's code."""

import pytest
import torch
import torchvision
from torch import nn

from flopprof.errors import RefusedError
from flopprof.model import load_model


def pickled(path, model):
    torch.save(model, path)
    return path


@pytest.mark.parametrize("classes", [1000, 5])
def test_a_pickled_torchvision_model_needs_no_trust(tmp_path, classes):
    path = pickled(tmp_path / "m.pth", torchvision.models.squeezenet1_1(num_classes=classes))

    loaded = load_model(path, meta=True)

    assert loaded.architecture == "torchvision:squeezenet1_1"
    assert loaded.input_hint == "1x3x224x224"
    assert loaded.model.state_dict()["classifier.1.weight"].shape[0] == classes


def test_its_weights_are_the_files(tmp_path):
    model = torchvision.models.squeezenet1_1()
    path = pickled(tmp_path / "m.pth", model)

    loaded = load_model(path)

    assert loaded.weights == "file"
    state = loaded.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_a_stride_that_no_weight_shows_is_seen(tmp_path):
    model = torchvision.models.squeezenet1_1()
    model.features[0].stride = (1, 1)  # four times the FLOPs, and the same keys and shapes

    with pytest.raises(RefusedError):
        load_model(pickled(tmp_path / "m.pth", model), meta=True)


def test_a_hostile_attribute_is_not_run(tmp_path):
    model = torchvision.models.squeezenet1_1()

    class Runs:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'was_executed')!r}, 'w')",)

    vars(model)["extra"] = Runs()

    load_model(pickled(tmp_path / "m.pth", model), meta=True)

    assert not (tmp_path / "was_executed").exists()


def test_a_module_of_no_library_needs_trust(tmp_path):
    with pytest.raises(RefusedError, match="Sequential"):
        load_model(pickled(tmp_path / "m.pth", nn.Sequential(nn.Linear(2, 2))), meta=True)
