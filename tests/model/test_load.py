"""Sound files become models that compute what the original computes."""

import argparse
import copy
import json
import pickle
import struct
import sys
import zipfile

import pytest
import torch
from torch import nn
from torchvision import models

from flopprof.errors import LoadError, ModelError, RefusedError, UsageError
from flopprof.model import load_model
from flopprof.model.architectures import build, find_architecture
from flopprof.model.contents import read_contents
from flopprof.model.detect import detect
from flopprof.model.weights import read_weights


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(name, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.get_model(name, weights=None, **options).eval()


def image(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def same(left, right, x):
    with torch.no_grad():
        return torch.equal(left(x), right(x))


@pytest.mark.parametrize(
    ("name", "parameters"),  # as torchvision publishes them in weights.meta["num_params"]
    [
        ("resnet18", 11_689_512),
        ("mobilenet_v3_small", 2_542_856),
        pytest.param("vit_b_16", 86_567_656, marks=pytest.mark.slow),
        pytest.param("swin_t", 28_288_354, marks=pytest.mark.slow),
        ("regnet_y_400mf", 4_344_144),
    ],
)
def test_a_state_dict_of_torchvision_computes_what_the_original_does(name, parameters, tmp_path):
    original, path = make(name), tmp_path / "m.pth"
    torch.save(original.state_dict(), path)

    loaded = load_model(path, arch=f"torchvision:{name}")

    assert loaded.architecture == f"torchvision:{name}"
    assert (loaded.source, loaded.weights, loaded.dtype) == ("state_dict of", "file", "float32")
    assert (loaded.parameters, loaded.input_hint) == (parameters, "1x3x224x224")
    assert not loaded.model.training
    assert same(loaded.model, original, image(1, 3, 224, 224))


@pytest.fixture(scope="module")
def small():
    return make("mobilenet_v3_small")


WRAPPED = {
    "bare": lambda s: s,
    "lightning": lambda s: {
        "pytorch-lightning_version": "2.5",
        "state_dict": {f"model.{k}": v for k, v in s.items()} | {"loss.weight": torch.ones(9)},
    },
    "parallel": lambda s: {
        "epoch": 1,
        "model_state_dict": {f"module.{k}": v for k, v in s.items()},
    },
    "compiled": lambda s: {"model": {f"_orig_mod.{k}": v for k, v in s.items()}},
    "twice": lambda s: {"net": {f"module.student.backbone.{k}": v for k, v in s.items()}},
    "average": lambda s: {"model_ema": s},
    "old": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("legacy", [False, True])
def test_wrapper_keys_and_prefixes_are_seen_through(name, legacy, small, tmp_path):
    path = tmp_path / "m.pth"
    options = {"_use_new_zipfile_serialization": False} if legacy else {}
    torch.save(WRAPPED[name](small.state_dict()), path, **options)

    loaded = load_model(path, arch="torchvision:mobilenet_v3_small")

    assert same(loaded.model, small, image(1, 3, 32, 32))
    left_out = {"lightning": ("1 of the file's tensors",)}
    assert [w[:23] for w in loaded.warnings] == list(left_out.get(name, ()))


def test_on_meta_only_shapes_are_read(small, tmp_path):
    path = tmp_path / "m.pth"
    torch.save(small.state_dict(), path)
    data = path.read_bytes()
    start = data.index(small.state_dict()["features.0.0.weight"].numpy().tobytes())
    path.write_bytes(data[:start] + b"\xff" * 64 + data[start + 64 :])

    loaded = load_model(path, arch="torchvision:mobilenet_v3_small", meta=True)

    tensors = [*loaded.model.parameters(), *loaded.model.buffers()]
    assert all(tensor.is_meta for tensor in tensors)
    assert (loaded.weights, loaded.parameters) == ("meta", 2_542_856)
    assert loaded.model(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 1000)


def test_the_number_of_classes_is_read_from_the_weights(tmp_path):
    changed = make("resnet18", num_classes=7)
    torch.save(changed.state_dict(), tmp_path / "r.pth")

    loaded = load_model(tmp_path / "r.pth", arch="torchvision:resnet18")

    assert loaded.input_hint == "1x3x224x224"
    assert loaded.warnings == ("num_classes = 7, as the weights say",)
    assert same(loaded.model, changed, image(1, 3, 64, 64))


@pytest.mark.parametrize("meta", [False, True])
def test_the_input_channels_are_read_from_the_weights(meta, tmp_path):
    changed = make("resnet18", num_classes=10)
    changed.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    torch.save(changed.state_dict(), tmp_path / "r.pth")

    loaded = load_model(tmp_path / "r.pth", arch="torchvision:resnet18", meta=meta)

    assert loaded.input_hint == "1x1x224x224"
    assert loaded.warnings == (
        "num_classes = 10, as the weights say",
        "channels = 1, as the weights say",
    )
    # of 11,689,512: without 2 of conv1's 3 channels (64·2·7·7) and 990 classes (of 512 + 1)
    assert loaded.parameters == 11_689_512 - 6_272 - 990 * 513
    assert "conv1): Conv2d(1, 64" in str(loaded.model)
    assert meta or same(loaded.model, changed, image(1, 1, 64, 64))


def test_a_first_convolution_of_other_filters_does_not_fit(tmp_path):
    changed = make("resnet18")
    changed.conv1 = nn.Conv2d(1, 64, 5, bias=False)
    torch.save(changed.state_dict(), tmp_path / "r.pth")

    with pytest.raises(UsageError, match=r"conv1\.weight is 64x1x5x5 float32, not 64x3x7x7"):
        load_model(tmp_path / "r.pth", arch="torchvision:resnet18", meta=True)


@pytest.mark.slow
def test_the_image_size_of_a_vit_is_read_from_its_positions(tmp_path):
    torch.save(make("vit_b_16", image_size=384).state_dict(), tmp_path / "v.pth")

    loaded = load_model(tmp_path / "v.pth", arch="torchvision:vit_b_16", meta=True)

    assert loaded.input_hint == "1x3x384x384"
    assert loaded.warnings == ("image_size = 384, as the weights say",)


def test_a_googlenet_without_auxiliary_heads_fits(tmp_path):
    original = make("googlenet", init_weights=False, aux_logits=False)
    torch.save(original.state_dict(), tmp_path / "g.pth")

    loaded = load_model(tmp_path / "g.pth", arch="torchvision:googlenet", meta=True)

    assert loaded.warnings == ("aux_logits = False, as the weights say",)


def test_modules_that_ask_for_the_version_of_their_weights_are_told(tmp_path):
    original = make("mnasnet0_5")
    torch.save(original.state_dict(), tmp_path / "m.pth")

    loaded = load_model(tmp_path / "m.pth", arch="torchvision:mnasnet0_5")

    assert same(loaded.model, original, image(1, 3, 64, 64))


def test_densenets_of_old_files_fit(tmp_path):
    state = make("densenet121").state_dict()
    old = {}
    for key, value in state.items():
        for name in ("norm", "relu", "conv"):
            for digit in "12":
                key = key.replace(f".{name}{digit}.", f".{name}.{digit}.")
        old[key] = value
    torch.save(old, tmp_path / "d.pth")

    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    loaded = load_model(tmp_path / "d.pth", arch="torchvision:densenet121", meta=True)
    assert loaded.parameters == 7_978_856


def test_what_does_not_fit_is_listed(small, tmp_path):
    path = tmp_path / "m.pth"
    state = dict(small.state_dict())
    del state["features.1.block.0.0.weight"]
    state["extra"] = torch.zeros(2)
    state["features.2.block.0.0.weight"] = torch.zeros(5, 5)
    torch.save(state, path)

    with pytest.raises(UsageError) as caught:
        load_model(path, arch="torchvision:mobilenet_v3_small")

    assert caught.value.exit_code == 2
    for fact in (
        f"{path} does not fit torchvision:mobilenet_v3_small",
        "1 missing (features.1.block.0.0.weight)",
        "1 unexpected (extra)",
        "features.2.block.0.0.weight is 5x5 float32, not 72x16x1x1",
    ):
        assert fact in caught.value.problem


def test_another_family_does_not_fit(small, tmp_path):
    torch.save(small.state_dict(), tmp_path / "m.pth")

    # resnet18 has 122 tensors, 20 of them num_batches_tracked
    with pytest.raises(UsageError, match=r"102 missing \(conv1.weight, bn1.weight, bn1.bias, …\)"):
        load_model(tmp_path / "m.pth", arch="torchvision:resnet18")


CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.embedding = nn.Embedding(9, width)
        self.head = nn.Linear(width, 9, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("positions", torch.empty(width).fill_(3.0), persistent=False)

    def forward(self, ids):
        return self.head(self.embedding(ids) + self.positions)

def build():
    return Net()

def wide(width):
    return Net(width)

def broken():
    raise KeyError("no such config")

def leaves():
    raise SystemExit(3)

def stops():
    raise GeneratorExit

def number():
    return 5

steps = []
def strict():
    steps.append(torch.empty(2).sum().item())
    return Net()
"""


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "my_net.py"
    path.write_text(CODE)
    return path


def tied_net(code):
    return build(find_architecture(f"{code}:build")).eval()


@pytest.mark.parametrize("name", ["build", "Net", "strict"])
def test_a_factory_or_class_of_the_users_file_is_filled(name, code, tmp_path):
    original = tied_net(code)
    torch.save(original.state_dict(), tmp_path / "m.pth")
    before = torch.get_rng_state()

    loaded = load_model(tmp_path / "m.pth", arch=f"{code}:{name}")

    assert torch.equal(torch.get_rng_state(), before)
    assert same(loaded.model, original, torch.tensor([1, 2]))  # positions are real: not on meta
    assert len(list(loaded.model.parameters())) == 1  # the tied weights are one
    assert loaded.parameters == 36  # 9 · 4, once
    assert loaded.input_hint is None


def test_a_module_path_is_imported(tmp_path):
    torch.save(nn.Identity().state_dict() | {"weight": torch.zeros(1)}, tmp_path / "m.pth")

    loaded = load_model(tmp_path / "m.pth", arch="torch.nn:PReLU")

    assert loaded.model.state_dict()["weight"].tolist() == [0.0]


@pytest.mark.parametrize(
    ("arch", "error", "problem", "remedy"),
    [
        ("resnet18", UsageError, "'resnet18' names no architecture", "torchvision:resnet18"),
        ("torchvision:resnet81", UsageError, "no model 'resnet81'", "torchvision:resnet18,"),
        (
            "torchvision:ResNet-18",
            UsageError,
            "no model 'ResNet-18'",
            "torchvision:resnet18,",
        ),
        ("gone.py:build", UsageError, "there is no file gone.py", "check the path"),
        ("no_such_module:build", UsageError, "no module 'no_such_module'", "install it"),
        ("{code}:biuld", UsageError, "no model 'biuld'", "my_net.py:build,"),
        ("{code}:net", UsageError, "no model 'net'", "my_net.py:Net,"),
        ("{code}:steps", UsageError, "no model 'steps'", "Net"),
        ("torch.nn:Convd2", UsageError, "no model 'Convd2'", "torch.nn:Conv2d,"),
        ("my_empty.py:build", UsageError, "no model 'build'", "define a function there"),
        ("{code}:wide", UsageError, "cannot be called without arguments", "function without"),
        ("{code}:number", UsageError, "returned what is of type int", "nn.Module"),
        ("{code}:broken", ModelError, "raised KeyError: 'no such config'", "by itself"),
        ("{code}:leaves", ModelError, "raised SystemExit: 3", "by itself"),
        ("{code}:stops", ModelError, "raised GeneratorExit", "by itself"),
    ],
)
def test_a_wrong_arch_says_what_is_wrong(arch, error, problem, remedy, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_empty.py").write_text("import math\nfrom torch.nn import Linear\nsize = 3")
    torch.save({"w": torch.zeros(1)}, tmp_path / "m.pth")

    with pytest.raises(error) as caught:
        load_model(tmp_path / "m.pth", arch=arch.format(code=code))

    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


def test_what_the_users_file_has_is_its_own_and_the_nearest_comes_first(code, tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "m.pth")

    with pytest.raises(UsageError) as caught:
        load_model(tmp_path / "m.pth", arch=f"{code}:nosuch")

    # not torch, nn (imported) and steps (a list)
    listed = caught.value.remedy.removeprefix("name one that it has: ").split(", ")
    names = [name.removeprefix(f"{code}:") for name in listed]
    assert set(names) <= {"Net", "build", "wide", "broken", "leaves", "stops", "number", "strict"}
    assert len(names) == 6


@pytest.mark.parametrize("code", ["raise SystemExit(0)", "import sys; sys.exit(0)"])
def test_a_module_that_exits_when_imported_does_not_end_the_program(code, tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "m.pth")
    (tmp_path / "script.py").write_text(code)

    with pytest.raises(ModelError, match="raised SystemExit: 0"):
        load_model(tmp_path / "m.pth", arch=f"{tmp_path}/script.py:build")


def test_safetensors_are_mapped_also_where_they_are_not_aligned(code, tmp_path):
    original = tied_net(code)
    (weight,) = original.parameters()
    header = json.dumps(
        {"head.weight": {"dtype": "F32", "shape": [9, 4], "data_offsets": [0, 144]}}
    ).encode()
    header += b" " * (1 + -len(header) % 4)  # 8 + header is odd
    data = struct.pack("<Q", len(header)) + header + weight.detach().numpy().tobytes()
    (tmp_path / "m.safetensors").write_bytes(data)

    loaded = load_model(tmp_path / "m.safetensors", arch=f"{code}:build")

    assert same(loaded.model, original, torch.tensor([1, 2]))  # the tied embedding came along
    assert loaded.source == "safetensors weights of"


def test_a_checkpoint_with_more_than_tensors_is_read_without_the_rest(code, tmp_path):
    original, path = tied_net(code), tmp_path / "m.pth"
    torch.save({"model": original.state_dict(), "args": argparse.Namespace(lr=0.1)}, path)

    loaded = load_model(path, arch=f"{code}:build")

    assert (loaded.weights, loaded.source) == ("file", "state_dict under 'model' of")
    assert same(loaded.model, original, torch.tensor([1, 2]))


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_are_read_where_their_pickle_says(legacy, tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "transposed": base[1:3].t(), "whole": base, "row": base[2], "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 5), "half": torch.arange(3).bfloat16(), "flags": base[0] > 2,
        "repeated": torch.ones(2).expand(3, 2), "parameter": nn.Parameter(base[:1]),
        "complex": torch.tensor([1 + 2j]),
    }  # fmt: skip
    path = tmp_path / "m.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)

    weights = read_weights(read_contents(path, detect(path)))

    assert weights.keys() == state.keys()
    for key, tensor in state.items():
        assert weights[key].dtype == tensor.dtype
        assert torch.equal(weights[key], tensor), key


def test_a_pickled_module_is_fitted_to_code_without_running_its_own(code, tmp_path):
    original, path = tied_net(code), tmp_path / "m.pth"
    nn.init.ones_(original.head.weight)
    vars(original)["extra"] = Quits()
    torch.save(original, path)

    loaded = load_model(path, arch=f"{code}:build")

    assert loaded.source == "pickled nn.Module, read without its code, of"
    assert torch.equal(loaded.model.state_dict()["head.weight"], torch.ones(9, 4))


def test_dtype_casts_and_the_files_dtype_is_told(code, tmp_path):
    torch.save(tied_net(code).bfloat16().state_dict(), tmp_path / "m.pth")

    as_saved = load_model(tmp_path / "m.pth", arch=f"{code}:build")
    cast = load_model(tmp_path / "m.pth", arch=f"{code}:build", dtype="float64", meta=True)

    assert (as_saved.dtype, cast.dtype) == ("bfloat16", "float64")
    assert {p.dtype for p in as_saved.model.parameters()} == {torch.bfloat16}
    with pytest.raises(UsageError, match="'int8' is no floating dtype"):
        load_model(tmp_path / "m.pth", arch=f"{code}:build", dtype="int8")


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m, "epoch": 1}])
def test_a_pickled_module_needs_trust(wrap, small, tmp_path):
    path = tmp_path / "m.pth"
    small = copy.deepcopy(small)
    small.note = "changed: no model of the library's, which needs no trust"
    torch.save(wrap(small), path)

    with pytest.raises(RefusedError, match=r"MobileNetV3.*runs its code") as refused:
        load_model(path)
    loaded = load_model(path, trust=True)
    on_meta = load_model(path, trust=True, meta=True)

    assert "--trust" in refused.value.remedy
    assert loaded.architecture == "torchvision.models.mobilenetv3.MobileNetV3"
    assert loaded.source == "pickled nn.Module of"
    assert same(loaded.model, small, image(1, 3, 32, 32))
    assert all(p.is_meta for p in on_meta.model.parameters())


def test_torchscript_needs_trust(tmp_path):
    original, path = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), tmp_path / "m.pt"
    with pytest.warns((FutureWarning, DeprecationWarning)):
        torch.jit.script(original).save(path)

    with pytest.raises(RefusedError, match="a TorchScript archive, and loading it runs its code"):
        load_model(path)
    loaded = load_model(path, trust=True)
    on_meta = load_model(path, trust=True, meta=True)

    assert loaded.architecture == "torch.nn.modules.container.Sequential"
    assert loaded.parameters == 112  # 4·3·3·3 + 4
    assert same(loaded.model, original, image(1, 3, 8, 8))
    assert on_meta.model(torch.empty(1, 3, 8, 8, device="meta")).shape == (1, 4, 6, 6)


class Quits:
    def __reduce__(self):
        return sys.exit, (0,)


def test_a_trusted_file_that_exits_does_not_end_the_program(small, tmp_path):
    torch.save({"model": small, "extra": Quits()}, tmp_path / "m.pth")

    with pytest.raises(LoadError, match="raised SystemExit: 0"):
        load_model(tmp_path / "m.pth", trust=True)


def test_a_trusted_module_whose_class_is_gone_says_so(code, tmp_path):
    body = pickle.dumps({"_modules": {}, "_parameters": {}, "_buffers": {}}, 2).removesuffix(b".")[
        2:
    ]
    with zipfile.ZipFile(tmp_path / "m.pth", "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02cgone_package\nNet\n)\x81" + body + b"b.")
        archive.writestr("m/version", "3\n")

    with pytest.raises(LoadError, match="No module named 'gone_package'") as caught:
        load_model(tmp_path / "m.pth", trust=True)

    assert "PYTHONPATH" in caught.value.remedy
