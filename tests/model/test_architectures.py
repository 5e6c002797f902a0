"""Code in one line: with arguments, by a library's name, and a hint of its own for each trouble."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

import flopprof
from flopprof.errors import ModelError, UsageError
from flopprof.model import load_model, model_name
from flopprof.model.architectures import build, find_architecture

CODE = """
import copy
import urllib.error
from torch import nn

class Net(nn.Module):
    def __init__(self, width, depth=1, *, name="small"):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))

    def forward(self, x):
        return self.layers(x)

    @classmethod
    def deep(cls):
        return cls(4, 3)

ready = Net(2)

def downloads(pretrained=True):
    if pretrained:
        try:
            raise urllib.error.URLError("Name or service not known")
        except OSError as error:
            raise RuntimeError("no weights") from error
    return Net(2)

def needs():
    import cv2_that_is_not_there.core

def needs_more():
    import skimage
"""


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(CODE)
    return path


@pytest.mark.parametrize(
    ("call", "flops"),
    # A linear layer of w × w on one row: w² multiply-adds of 2 FLOPs and w bias adds, per layer.
    [
        ("Net(3)", 2 * 9 + 3),
        ("Net(3, depth=2)", 2 * (2 * 9 + 3)),
        ("Net(width=4)", 2 * 16 + 4),
        ("Net.deep", 3 * (2 * 16 + 4)),
        ("Net.deep()", 3 * (2 * 16 + 4)),
        ("ready", 2 * 4 + 2),
        ("downloads(pretrained=False)", 2 * 4 + 2),
    ],
)
def test_code_is_called_with_the_literals_that_its_name_has(call, flops, code):
    assert flopprof.count_flops(f"{code}:{call}").flops == flops


def test_arguments_come_from_arch_args_too_and_fit_a_files_weights(code, tmp_path):
    model = build(find_architecture(f"{code}:Net(3, depth=2)"))
    torch.save(model.state_dict(), tmp_path / "m.pth")

    count = flopprof.count_flops(
        tmp_path / "m.pth", arch=f"{code}:Net", arch_args={"width": 3, "depth": 2}
    )

    assert count.matmul_flops == 2 * 2 * 9  # two layers of 3·3 multiply-adds


def test_a_model_of_code_is_called_by_its_name_alone(code):
    assert model_name(f"{code}:Net(3, depth=2)") == "Net"
    assert model_name("torch.nn:Linear(1, 2)") == "Linear"


def test_arguments_without_code_are_a_usage_error(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "m.pth")

    with pytest.raises(UsageError, match="nothing names the code"):
        load_model(tmp_path / "m.pth", arch_args={"a": 1})


@pytest.mark.parametrize(
    ("name", "error", "problem", "remedy"),
    [
        ("Net", UsageError, "it takes (width, depth=1, *, name='small')", ":Net(width=…)"),
        ("Net(1, 2, 3)", UsageError, "with (1, 2, 3): too many positional", "Net(width=…)"),
        ("Net(4, deep=1)", UsageError, "unexpected keyword argument 'deep'", "Net(width=…)"),
        ("downloads", ModelError, "tries to download something: RuntimeError", "pretrained=False"),
        ("needs", UsageError, "needs the module 'cv2_that_is_not_there'", "pip install cv2_that"),
        ("needs_more", UsageError, "needs the module 'skimage'", "pip install scikit-image"),
        ("Nett", UsageError, "no model 'Nett'", "nets.py:Net,"),
    ],
)
def test_each_trouble_with_code_has_a_hint_of_its_own(
    name, error, problem, remedy, code, monkeypatch
):
    monkeypatch.setitem(sys.modules, "skimage", None)

    with pytest.raises(error) as caught:
        load_model(f"{code}:{name}")

    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


def test_a_file_whose_sibling_is_missing_is_told_to_name_its_folder(tmp_path):
    (tmp_path / "blocks_of_ours.py").write_text("")
    (tmp_path / "net.py").write_text("import blocks_of_ours")

    with pytest.raises(UsageError) as caught:
        load_model(f"{tmp_path}/net.py:build")

    assert "needs the module 'blocks_of_ours'" in caught.value.problem
    assert f"PYTHONPATH={tmp_path}" in caught.value.remedy


def test_a_class_in_another_module_of_the_package_is_found(monkeypatch):
    package, inner = ModuleType("ours_pkg"), ModuleType("ours_pkg.model")
    inner.Net = nn.Identity  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ours_pkg", package)
    monkeypatch.setitem(sys.modules, "ours_pkg.model", inner)

    with pytest.raises(UsageError) as caught:
        load_model("ours_pkg:Net")

    assert caught.value.remedy == "--arch ours_pkg.model:Net"


@pytest.mark.parametrize(
    ("library", "module", "package"),
    [
        ("ultralytics", "ultralytics", "ultralytics"),
        ("open_clip", "open_clip", "open_clip_torch"),
        ("smp", "segmentation_models_pytorch", "segmentation-models-pytorch"),
        ("diffusers", "diffusers", "diffusers"),
    ],
)
def test_a_library_that_is_not_installed_is_named_as_pip_calls_it(
    library, module, package, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(UsageError) as caught:
        load_model(f"{library}:x")

    assert caught.value.remedy == f"pip install {package}"


class Unet(nn.Module):
    """Stands for the one of segmentation_models_pytorch, whose default downloads weights."""

    def __init__(self, encoder_name="resnet34", encoder_weights="imagenet", in_channels=3):
        super().__init__()
        assert encoder_weights is None
        self.stem = nn.Conv2d(in_channels, 2, 1, bias=False)

    def forward(self, x):
        return self.stem(x)


def test_a_model_of_segmentation_models_downloads_no_weights(monkeypatch):
    library = ModuleType("segmentation_models_pytorch")
    library.Unet = Unet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", library)

    count = flopprof.count_flops("smp:Unet('resnet18', in_channels=5)", "1x5x4x4")

    assert count.flops == 4 * 4 * 2 * 5 * 2  # 16 places, 2 filters of 5 multiply-adds

    with pytest.raises(UsageError, match="smp has no model 'Umet'") as caught:
        load_model("smp:Umet")
    assert caught.value.remedy == "name one that it has: smp:Unet"
