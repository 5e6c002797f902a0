"""Architectures recognised from keys and shapes, and what is said where they are not."""

import csv
import importlib
import json
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from flopprof.cli import main
from flopprof.errors import UnknownArchitectureError
from flopprof.model import Request, load_model
from flopprof.model.contents import Contents
from flopprof.model.identify import recognise_weights
from flopprof.model.pickles import TensorInfo
from flopprof.model.recognise import INDEX, fingerprint, recognise


def saved(path, model, wrap=lambda state: state):
    torch.save(wrap(dict(model.state_dict())), path)
    return path


def squeezenet(**options):
    return torchvision.models.squeezenet1_1(**options)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {f"module.{k}": v for k, v in state.items()},
        lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
        lambda state: {"epoch": 3, "state_dict": {f"model.{k}": v for k, v in state.items()}},
        lambda state: {
            "state_dict": {f"net.{k}": v for k, v in state.items()} | {"loss.weight": torch.ones(9)}
        },
        lambda state: {"model_ema": {f"module.model.{k}": v for k, v in state.items()}},
    ],
    ids=["bare", "parallel", "compiled", "lightning", "lightning_with_a_loss", "ema"],
)
@pytest.mark.parametrize("classes", [1000, 7])
def test_a_model_is_recognised_in_any_wrapper_and_with_any_head(tmp_path, wrap, classes):
    path = saved(tmp_path / "m.pth", squeezenet(num_classes=classes), wrap)

    loaded = load_model(path, meta=True)

    assert loaded.architecture == "torchvision:squeezenet1_1"
    assert loaded.input_hint == "1x3x224x224"
    assert loaded.model.state_dict()["classifier.1.weight"].shape[0] == classes
    assert loaded.recognised_by == "keys and shapes"


def test_input_channels_come_from_the_first_layer(tmp_path):
    model = squeezenet()
    model.features[0] = nn.Conv2d(1, 64, kernel_size=3, stride=2)

    loaded = load_model(saved(tmp_path / "m.pth", model), meta=True)

    assert loaded.architecture == "torchvision:squeezenet1_1"
    assert loaded.input_hint == "1x1x224x224"


def test_the_image_size_comes_from_the_position_embedding(tmp_path):
    # 10 × 10 patches of 32 pixels, and the class token.
    model = torchvision.models.vit_b_32(image_size=320)
    assert model.encoder.pos_embedding.shape[1] == 101

    loaded = load_model(saved(tmp_path / "m.pth", model), meta=True)

    assert loaded.architecture == "torchvision:vit_b_32"
    assert loaded.input_hint == "1x3x320x320"


def test_models_that_weights_cannot_tell_apart_are_named_with_their_flops(tmp_path, capsys):
    path = saved(tmp_path / "m.pth", torchvision.models.resnet18())

    assert main(["count", str(path), "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["architecture"] == "torchvision:resnet18"
    assert found["architecture_source"] == "keys and shapes"
    assert found["matmul_flops"] == 2 * 1_814_073_344  # published: 1.814 GMACs
    gflops = {other["architecture"]: other["gflops"] for other in found["alternatives"]}
    assert gflops["timm:resnet18"] == 3.628
    assert gflops["timm:resnetblur18"] > 4.6  # it blurs before it strides


def test_strict_makes_no_choice(tmp_path, capsys):
    path = saved(tmp_path / "m.pth", torchvision.models.resnet18())

    assert main(["count", str(path), "--strict"]) == 5

    said = capsys.readouterr().err
    assert "torchvision:resnet18 (3.628 GFLOPs), timm:resnetblur18 (4.675 GFLOPs)" in said


def test_alike_is_not_equal(tmp_path):
    model = torchvision.models.resnet18()
    model.layer4[1].conv2 = nn.Conv2d(512, 512, 1, bias=False)  # 1 × 1 in place of 3 × 3
    path = saved(tmp_path / "m.pth", model)

    with pytest.raises(UnknownArchitectureError, match=r"closest is .*resnet18, differs in 1 "):
        load_model(path, meta=True)


def test_an_unknown_network_is_not_guessed(tmp_path):
    path = saved(tmp_path / "m.pth", nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)))

    with pytest.raises(UnknownArchitectureError, match=r"4 tensors .* of an unknown architecture"):
        load_model(path, meta=True)


def test_a_model_of_a_library_that_is_not_there_is_named_all_the_same(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    path = saved(tmp_path / "m.pth", timm.create_model("mobilenetv3_small_050"))
    real = importlib.import_module

    def without_timm(name, package=None):
        if name == "timm":
            raise ImportError("No module named 'timm'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without_timm)

    with pytest.raises(UnknownArchitectureError, match="is timm mobilenetv3_small_050") as said:
        load_model(path, meta=True)
    assert said.value.remedy == "pip install timm"


def test_a_timm_model_is_recognised_with_its_own_input_size(tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model("efficientnet_b1_pruned", num_classes=3)

    loaded = load_model(saved(tmp_path / "m.pth", model), meta=True)

    assert loaded.architecture == "timm:efficientnet_b1_pruned"
    assert loaded.input_hint == "1x3x240x240"


def test_a_fingerprint_is_of_a_set_and_leaves_out_counters():
    shapes = {"a": (1, 2), "b.num_batches_tracked": (), "c": (3,)}

    assert fingerprint(shapes) == fingerprint({"c": (3,), "a": (1, 2)})
    assert fingerprint(shapes) != fingerprint({"c": (3,), "a": (2, 1)})
    assert recognise({}) is None


def test_the_index_is_small_and_names_its_versions():
    assert INDEX.stat().st_size < 1_000_000
    first, *lines = INDEX.read_text("utf-8").splitlines()
    names = [row["name"] for row in csv.DictReader(lines) if row["library"] == "torchvision"]

    assert first.startswith("# torchvision 0.")
    assert len(names) > 100
    assert set(names) >= {"resnet18", "vit_b_16", "r3d_18", "fasterrcnn_resnet50_fpn"}


@pytest.mark.parametrize(
    ("file", "wrap", "wanted"),
    [
        ("model.pth", lambda state: state, "torchvision:resnet18"),
        ("resnetblur18-84f4748f.pth", lambda state: state, "timm:resnetblur18"),
        ("resnet18-5c106cde.pth", lambda state: state, "torchvision:resnet18"),
        ("last.ckpt", lambda s: {"arch": "resnetblur18", "state_dict": s}, "timm:resnetblur18"),
        ("myresnetblur18x.pth", lambda state: state, "torchvision:resnet18"),
        ("resnet34.pth", lambda state: state, "torchvision:resnet18"),  # a name alone is nothing
    ],
)
def test_a_name_decides_between_models_of_equal_weights(tmp_path, file, wrap, wanted):
    pytest.importorskip("timm")

    loaded = load_model(saved(tmp_path / file, torchvision.models.resnet18(), wrap), meta=True)

    others = {"timm:resnetblur18", "torchvision:resnet18"} - {wanted}
    assert loaded.architecture == wanted
    assert others <= {entry.name for entry in loaded.alternatives}
    by_name = wanted == "timm:resnetblur18"
    assert loaded.recognised_by == ("keys, shapes and name" if by_name else "keys and shapes")


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn"])
def test_a_detectors_head_has_as_many_outputs_for_each_anchor(tmp_path, name):
    fixed = {"weights": None, "weights_backbone": None}
    model = torchvision.models.get_model(name, num_classes=7, **fixed)

    loaded = load_model(saved(tmp_path / "m.pth", model), meta=True)

    assert loaded.architecture == f"torchvision:{name}"
    assert loaded.warnings == ("num_classes = 7, as the weights say",)


def test_a_model_without_its_head_is_recognised(tmp_path):
    pytest.importorskip("timm")
    state = torchvision.models.resnet18().state_dict()
    headless = {key: value for key, value in state.items() if not key.startswith("fc.")}
    torch.save(headless, tmp_path / "backbone.pth")

    loaded = load_model(tmp_path / "backbone.pth", meta=True)

    assert loaded.architecture == "timm:resnet18"
    assert loaded.warnings == ("num_classes = 0, as the weights say",)


def test_a_backbone_below_another_head_is_no_model_without_head(tmp_path, monkeypatch):
    import flopprof.model.recognise as index

    pytest.importorskip("timm")
    fixed = {"weights": None, "weights_backbone": None}
    model = torchvision.models.get_model("fcn_resnet50", **fixed)
    torch.save(model.state_dict(), tmp_path / "m.pth")
    entries, sketches = index._index()
    kept = [i for i, e in enumerate(entries) if not e.name.startswith("torchvision:fcn")]
    monkeypatch.setattr(index, "_index", lambda: ([entries[i] for i in kept], sketches[kept]))

    with pytest.raises(UnknownArchitectureError):
        load_model(tmp_path / "m.pth", meta=True)


def renamed(state):
    """Return a state with other keys, as ports to another library have them."""
    return {f"port.{number}.{key.rpartition('.')[2]}": v for number, (key, v) in enumerate(state)}


@pytest.mark.parametrize("classes", [1000, 7])
@pytest.mark.parametrize("channels", [3, 1])
def test_a_port_with_other_keys_is_recognised_by_its_shapes_in_order(tmp_path, classes, channels):
    model = torchvision.models.mobilenet_v2(num_classes=classes)
    model.features[0][0] = nn.Conv2d(channels, 32, 3, stride=2, padding=1, bias=False)
    torch.save(renamed(model.state_dict().items()), tmp_path / "m.pth")

    loaded = load_model(tmp_path / "m.pth")

    assert loaded.architecture == "torchvision:mobilenet_v2"
    assert loaded.recognised_by == "shapes in their order"
    assert any("matched by shape and order" in warning for warning in loaded.warnings)
    x = torch.rand(1, channels, 32, 32)
    with torch.no_grad():
        assert torch.allclose(loaded.model(x), model.eval()(x), atol=1e-5)


def test_a_port_without_its_head_is_counted_without_it(tmp_path, capsys):
    pytest.importorskip("timm")
    state = torchvision.models.mobilenet_v2().state_dict()
    body = [(key, value) for key, value in state.items() if not key.startswith("classifier")]
    torch.save(renamed(body), tmp_path / "m.pth")

    assert main(["count", str(tmp_path / "m.pth"), "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    # published: 0.301 GMACs, 300,774,272, of which the classifier has 1280 · 1000
    assert found["matmul_flops"] == 2 * (300_774_272 - 1_280_000)


def test_a_changed_block_of_the_same_library_is_no_port(tmp_path):
    timm = pytest.importorskip("timm")
    state = timm.create_model("legacy_seresnet50").state_dict()
    path = tmp_path / "m.pth"
    changed = {key.replace("se_module", "se_block"): value for key, value in state.items()}
    torch.save(changed, path)

    with pytest.raises(UnknownArchitectureError, match="closest is "):
        load_model(path, meta=True)


def test_the_module_inside_of_a_wrapper_is_not_taken_for_the_wrapper(monkeypatch):
    import flopprof.model.recognise as index

    timm = pytest.importorskip("timm")
    if "gemma4_vit_167m_enc" not in timm.list_models():
        pytest.skip("this timm has no such encoder")
    with torch.device("meta"):  # the classifier's keys are these below "encoder."
        state = timm.create_model("gemma4_vit_167m_enc").state_dict()
    tensors = {
        key: TensorInfo(tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for key, value in state.items()
    }
    entries, sketches = index._index()
    kept = [i for i, e in enumerate(entries) if e.name != "timm:gemma4_vit_167m_enc"]
    monkeypatch.setattr(index, "_index", lambda: ([entries[i] for i in kept], sketches[kept]))
    contents = Contents(Path("encoder.pth"), "state_dict", tensors)

    with pytest.raises(UnknownArchitectureError, match="gemma4_vit_167m"):
        recognise_weights(Request(contents, None, trust=None, meta=True))


def test_what_is_near_by_shapes_is_named_where_keys_and_order_are_others(tmp_path, capsys):
    state = list(torchvision.models.mobilenet_v2().state_dict().items())
    weights = [(key, value) for key, value in state if value.dim() > 1]  # as folded into them
    torch.save(renamed(weights), tmp_path / "m.pth")

    assert main(["inspect", str(tmp_path / "m.pth"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    assert found["architecture"] is None
    assert "torchvision:mobilenet_v2" in found["nearest"]
    with pytest.raises(UnknownArchitectureError, match=r"near .*mobilenet_v2"):
        load_model(tmp_path / "m.pth", meta=True)
