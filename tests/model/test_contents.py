"""What files and folders hold besides a plain state_dict: all of it is found, or told of."""

import json
import os
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

import flopprof
from flopprof.cli import main
from flopprof.errors import FlopprofError, LoadError, RefusedError, UnknownArchitectureError
from flopprof.model import load_model
from flopprof.model.contents import read_contents
from flopprof.model.detect import detect

NET = """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
"""


def net():
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


@pytest.fixture
def arch(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path}/net.py:build"


def contents_of(path):
    return read_contents(path, detect(path))


@pytest.mark.parametrize(
    ("wrap", "keys"),
    [
        (lambda s: [s, 5], ("0",)),
        (lambda s: (3, s), ("1",)),
        (lambda s: {"a": {"b": {"c": {"d": s}}}}, ("a", "b", "c", "d")),
        (lambda s: {"runs": [{"epoch": 1}, {"best": s}]}, ("runs", "1", "best")),
        (lambda s: {"epoch": torch.tensor(3), "state_dict": s}, ("state_dict",)),
        (lambda s: {"ema": dict(s), "model": s}, ("model",)),
        (lambda s: {"model": s, "optimizer": {"state": {0: {"m": s["0.weight"]}}}}, ("model",)),
    ],
)
@pytest.mark.parametrize("meta", [True, False])
def test_weights_are_found_wherever_a_checkpoint_keeps_them(wrap, keys, meta, arch, tmp_path):
    path = tmp_path / "m.pth"
    torch.save(wrap(net().state_dict()), path)

    loaded = load_model(path, arch=arch, meta=meta)

    assert contents_of(path).wrapper_keys == keys
    assert loaded.parameters == 4 * 3 + 3 + 3 * 2 + 2
    assert loaded.warnings == ()


def test_a_module_in_a_list_is_loaded_where_it_is_trusted(tmp_path):
    torch.save([net(), 5], tmp_path / "m.pth")

    assert load_model(tmp_path / "m.pth", trust=True).parameters == 23


def test_the_other_half_of_a_gan_is_told_of(arch, tmp_path):
    path = tmp_path / "gan.pth"
    other = {f"d.{n}": torch.zeros(2) for n in range(3)}
    torch.save({"G": net().state_dict(), "D": other}, path)

    loaded = load_model(path, arch=arch)

    (warning,) = loaded.warnings
    assert "3 other tensors under 'D'" in warning
    assert "the model under 'G' alone" in warning


def test_a_search_that_gave_up_reports_no_absence(tmp_path):
    deep = net().state_dict()
    for _ in range(20):
        deep = {"a": deep}
    torch.save(deep, tmp_path / "m.pth")

    with pytest.raises(LoadError, match=r"weights were looked for in .* there may be more"):
        load_model(tmp_path / "m.pth")


def test_counters_that_thop_left_are_left_out(arch, tmp_path):
    state = net().state_dict()
    for place in ("", "0.", "1."):
        for name in ("total_ops", "total_params"):
            state[place + name] = torch.zeros(1, dtype=torch.float64)
    torch.save(state, tmp_path / "m.pth")

    loaded = load_model(tmp_path / "m.pth", arch=arch)

    assert loaded.warnings == (
        "6 counters that thop left in it (total_ops, total_params) are left out",
    )


def test_a_refusal_names_the_riskiest_classes_first(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    class Own(nn.Linear):
        pass

    Own.__qualname__ = "Own"
    globals()["Own"] = Own
    model = nn.Sequential(Own(2, 2), nn.ReLU(), nn.Conv2d(1, 1, 1), nn.Dropout(), nn.GELU())
    vars(model)["extra"] = Evil()
    torch.save(model, tmp_path / "m.pth")

    with pytest.raises(RefusedError) as caught:
        load_model(tmp_path / "m.pth")

    names = caught.value.problem.partition(" names: ")[2].split(", ")
    assert names[0] == "posix.system"
    assert names[1].endswith(".Own")
    assert names[2].startswith("torch.nn.modules.")
    assert " more" in names[5]


# Folders: every file in one is checked as one that is named.


def write_safetensors(path, state):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(state, path)


@pytest.mark.parametrize(
    "name", ["config.json", "adapter_config.json", "model.safetensors.index.json", "a.safetensors"]
)
@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "dangling", "folder", "huge", "deep"])
def test_an_odd_file_in_a_folder_is_refused_at_once(name, kind, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / name
    if name == "a.safetensors":
        (folder / "config.json").write_text("{}")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(folder / "gone")
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    else:
        path.write_text("[" * 200_000)

    with pytest.raises(FlopprofError) as caught:
        load_model(folder, meta=True)

    assert caught.value.exit_code in (2, 3, 5)
    assert name in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize("name", [".", "..", "/etc/passwd", "../x.safetensors", "sub/x", 5, None])
def test_an_index_names_files_beside_it_only(name, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))

    with pytest.raises(LoadError, match="its index names"):
        load_model(tmp_path, meta=True)


@pytest.mark.parametrize(
    "files",
    [
        ["open_clip_config.json", "open_clip_model.safetensors"],
        ["params.json", "consolidated.safetensors"],
        ["weights.safetensors"],
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ["model.fp16.safetensors"],
    ],
)
def test_weights_are_found_in_folders_by_any_librarys_names(files, arch, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    state = net().state_dict()
    weights = [name for name in files if name.endswith(".safetensors")]
    for number, name in enumerate(weights):
        part = {k: v for i, (k, v) in enumerate(state.items()) if i % len(weights) == number}
        write_safetensors(folder / name, part)
    for name in set(files) - set(weights):
        (folder / name).write_text("{}")

    assert load_model(folder, arch=arch).parameters == 23


@pytest.mark.parametrize("name", ["consolidated.00.pth", "pytorch_model.bin", "best.ckpt"])
def test_pickled_weights_are_found_in_folders_too(name, arch, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save(net().state_dict(), folder / name)
    (folder / "training_args.bin").write_bytes(b"beside it")

    assert load_model(folder, arch=arch).parameters == 23


def test_an_index_of_pickled_parts_is_followed(arch, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    state = net().state_dict()
    torch.save({k: v for k, v in state.items() if k[0] == "0"}, folder / names[0])
    torch.save({k: v for k, v in state.items() if k[0] == "1"}, folder / names[1])
    weight_map = {key: names[int(key[0])] for key in state}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))

    assert load_model(folder, arch=arch).parameters == 23


def test_parts_that_are_missing_are_counted(tmp_path):
    write_safetensors(tmp_path / "model-00001-of-00003.safetensors", net().state_dict())

    with pytest.raises(LoadError, match="holds 1 of 3 parts"):
        load_model(tmp_path, meta=True)


def test_weights_cut_for_several_gpus_are_named(tmp_path):
    for number in range(2):
        torch.save(net().state_dict(), tmp_path / f"consolidated.0{number}.pth")

    with pytest.raises(LoadError, match="cut for 2 GPUs"):
        load_model(tmp_path, meta=True)


def test_of_several_weight_files_none_is_chosen(tmp_path):
    for name in ("a.pth", "b.pth"):
        torch.save(net().state_dict(), tmp_path / name)

    with pytest.raises(LoadError, match=r"2 files that may be its weights: a\.pth, b\.pth"):
        load_model(tmp_path, meta=True)


def test_a_pipeline_of_diffusers_tells_the_tensors_of_its_models(tmp_path, monkeypatch):
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "../elsewhere": ["diffusers", "UNet2DModel"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for name in ("unet", "vae"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"_class_name": "UNet2DModel"}')
        weights = tmp_path / name / "diffusion_pytorch_model.safetensors"
        write_safetensors(weights, net().state_dict())
    monkeypatch.setitem(sys.modules, "diffusers", None)

    assert {key.partition(".")[0] for key in contents_of(tmp_path).tensors} == {"unet", "vae"}
    with pytest.raises(UnknownArchitectureError, match="diffusers is not installed") as caught:
        load_model(tmp_path, meta=True)
    assert caught.value.details["weights"]["matmul_flops_per_position"] > 0


def test_a_pipeline_without_its_models_is_told(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "A", "unet": ["diffusers", "B"]}')

    with pytest.raises(LoadError, match="of which no model is here"):
        load_model(tmp_path, meta=True)


def test_a_folder_of_diffusers_has_its_tensors_and_class(arch, tmp_path):
    folder = tmp_path / "unet"
    folder.mkdir()
    (folder / "config.json").write_text('{"_class_name": "UNet9DModel"}')
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", net().state_dict())

    assert len(contents_of(folder).tensors) == 4
    with pytest.raises(UnknownArchitectureError, match="diffusers' UNet9DModel with 4 tensors"):
        load_model(folder, meta=True)
    assert load_model(folder, arch=arch).parameters == 23


def test_inspecting_tells_what_lies_beside_the_weights(tmp_path, capsys):
    path = tmp_path / "gan.pth"
    state = net().state_dict() | {"total_ops": torch.zeros(1, dtype=torch.float64)}
    other = {f"d.{n}": torch.zeros(2) for n in range(3)}
    # 10⁶⁰⁰⁰ has more digits than Python turns into text, and JSON knows no infinity.
    torch.save({"G": state, "D": other, "epoch": 10**6000, "loss": float("inf")}, path)

    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)

    assert "Beside    3 tensors under D" in said
    assert "1 counters that thop left" in said
    assert found["beside"] == {"D": 3}
    assert found["metadata"] == {"epoch": "a number of many digits", "loss": "inf"}
    assert found["tensors"] == 4


def test_inspecting_an_adapter_names_its_base(tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/base"}')
    write_safetensors(tmp_path / "adapter_model.safetensors", net().state_dict())

    assert main(["inspect", str(tmp_path)]) == 0

    assert "Adapter   of someone/base" in capsys.readouterr().out


class UNet2DModel(nn.Module):
    """Stands for diffusers' class of this name, which tests do not install."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, 1, bias=False)

    @classmethod
    def from_config(cls, config):
        return cls(config["in_channels"])

    def forward(self, sample, timestep):
        return self.conv(sample) + timestep


def test_a_folder_of_diffusers_is_counted_for_the_inputs_of_its_config(tmp_path, monkeypatch):
    diffusers = ModuleType("diffusers")
    monkeypatch.setattr(diffusers, "UNet2DModel", UNet2DModel, raising=False)
    monkeypatch.setitem(sys.modules, "diffusers", diffusers)
    config = {"_class_name": "UNet2DModel", "in_channels": 3, "sample_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = UNet2DModel(3).state_dict()
    write_safetensors(tmp_path / "diffusion_pytorch_model.safetensors", weights)

    count = flopprof.count_flops(str(tmp_path))

    # 2 channels × 16·16 positions × 3 multiply-adds × 2; an add each for the timestep.
    assert (count.matmul_flops, count.vector_flops) == (3072, 512)


def test_an_index_whose_files_are_not_here_names_them(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    parts = {
        f"{name}.weight": f"model-0000{n}-of-00002.safetensors" for n, name in ((1, "a"), (2, "b"))
    }
    index.write_text(json.dumps({"weight_map": parts}))

    with pytest.raises(
        LoadError, match="names 2 files of weights, of which 2 are not here"
    ) as caught:
        load_model(index, meta=True)
    assert caught.value.remedy.startswith("download them")


def test_a_config_is_counted_where_its_weights_are_not_here(tmp_path):
    pytest.importorskip("transformers")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    config = {"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 50}
    (tmp_path / "config.json").write_text(json.dumps(config))

    loaded = load_model(index, meta=True)

    assert any("config.json alone is counted" in warning for warning in loaded.warnings)
