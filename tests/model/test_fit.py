"""Weights are compared with code as torch loads them; what is missing or unexpected is told."""

import json

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import weight_norm as old_weight_norm

from flopprof.cli import main
from flopprof.errors import UsageError
from flopprof.model import Take, load_model
from flopprof.model.torchload import what_torch_loads

CODE = """
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm


class Renames(nn.Module):
    def __init__(self):
        super().__init__()
        self.new = nn.Linear(4, 3)
        self._register_load_state_dict_pre_hook(self.rename)

    def rename(self, state, prefix, *_):
        for name in ("weight", "bias"):
            if f"{prefix}old.{name}" in state:
                state[f"{prefix}new.{name}"] = state.pop(f"{prefix}old.{name}")

    def forward(self, x):
        return self.new(x)


class Joins(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12, bias=False)

    def _load_from_state_dict(self, state, prefix, *rest):
        parts = [state.pop(f"{prefix}{name}.weight", None) for name in "qkv"]
        if None not in parts:
            state[f"{prefix}qkv.weight"] = torch.cat(parts)
        super()._load_from_state_dict(state, prefix, *rest)

    def forward(self, x):
        return self.qkv(x)


def joins():
    return nn.Sequential(Joins())


def new_norm():
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))


def old_norm():
    return nn.Sequential(weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 30), nn.Linear(30, 10))
        self.head = nn.Linear(10, 2)

    def forward(self, x):
        return self.head(self.backbone(x))
"""


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(CODE)
    return path


def net():
    return nn.ModuleDict(
        {
            "backbone": nn.Sequential(nn.Linear(4, 30), nn.Linear(30, 10)),
            "head": nn.Linear(10, 2),
        }
    )


def count(capsys, *arguments):
    code = main(["count", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("meta", [False, True])
def test_a_hook_before_loading_may_rename(meta, code, tmp_path):
    old = nn.Linear(4, 3)
    torch.save({f"module.old.{k}": v for k, v in old.state_dict().items()}, tmp_path / "m.pth")

    loaded = load_model(tmp_path / "m.pth", arch=f"{code}:Renames", meta=meta)

    assert loaded.warnings == loaded.missing == ()
    if not meta:
        assert torch.equal(loaded.model.state_dict()["new.weight"], old.weight)


@pytest.mark.parametrize("meta", [False, True])
def test_a_module_may_join_what_it_is_given(meta, code, tmp_path):
    parts = {name: torch.rand(4, 4) for name in "qkv"}
    torch.save({f"0.{name}.weight": part for name, part in parts.items()}, tmp_path / "m.pth")

    loaded = load_model(tmp_path / "m.pth", arch=f"{code}:joins", meta=meta)

    assert loaded.warnings == loaded.missing == ()
    if not meta:
        joined = torch.cat([parts[name] for name in "qkv"])
        assert torch.equal(loaded.model.state_dict()["0.qkv.weight"], joined)


@pytest.mark.parametrize("saved", [old_weight_norm, parametrizations.weight_norm])
@pytest.mark.parametrize("name", ["new_norm", "old_norm"])
@pytest.mark.parametrize("prefix", ["", "generator."])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_weight_normalisation_is_one_however_it_is_spelled(saved, name, prefix, code, tmp_path):
    original = nn.Sequential(saved(nn.Linear(4, 3)), nn.Linear(3, 2))
    state = {prefix + key: value for key, value in original.state_dict().items()}
    torch.save(state, tmp_path / "m.pth")
    x = torch.rand(5, 4)

    loaded = load_model(tmp_path / "m.pth", arch=f"{code}:{name}")

    assert loaded.warnings == loaded.missing == ()
    with torch.no_grad():
        assert torch.allclose(loaded.model(x), original(x))


def test_what_torch_would_load_is_found_without_loading(code):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {"0.weight": torch.ones(3, 4), "1.extra": torch.ones(1), "2.weight": torch.ones(1)}

    loads = what_torch_loads(model, state)

    assert loads is not None
    assert list(loads.loaded) == ["0.weight"]
    assert sorted(loads.unexpected) == ["1.extra", "2.weight"]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_count_tells_what_is_missing_with_its_share(code, tmp_path, capsys):
    state = net().state_dict()
    del state["head.weight"], state["head.bias"]
    torch.save(state, tmp_path / "m.pth")

    exit_code, found = count(capsys, tmp_path / "m.pth", "--arch", f"{code}:Net", "--input", "1x4")

    assert exit_code == 0
    # backbone 4·30 + 30·10 = 420 weights with 40 biases; head 10·2 = 20 with 2: 22 of 482
    assert found["matmul_flops"] == 2 * (420 + 20)
    texts = found["warnings"]
    (text,) = [text for text in texts if "not in the file" in text]
    assert text.startswith("2 of the model's tensors are not in the file (head.weight, head.bias)")
    assert "4.6 % of its parameters, 4.5 % of its layers' matmul FLOPs" in text
    assert any("holds a part of" in text and "backbone" in text for text in texts)


def test_a_count_tells_what_is_unexpected_with_its_share(code, tmp_path, capsys):
    state = net().state_dict() | {"loss.fc.weight": torch.ones(11, 10), "scale": torch.ones(1)}
    torch.save(state, tmp_path / "m.pth")

    exit_code, found = count(capsys, tmp_path / "m.pth", "--arch", f"{code}:Net", "--input", "1x4")

    assert exit_code == 0
    text = json.dumps(found["warnings"], ensure_ascii=False)
    assert "2 tensors of the file are unexpected (loss.fc.weight, scale)" in text
    # 111 of 482 + 111 parameters; 110 of 440 + 110 weights are multiplied
    assert "18.7 % of its parameters, 20.0 % of its matmul FLOPs at one position" in text


def test_a_run_takes_weights_in_part_only_when_it_is_told_to(code, tmp_path):
    state = net().state_dict()
    del state["head.weight"]
    torch.save(state, tmp_path / "m.pth")

    with pytest.raises(UsageError, match=r"1 missing \(head\.weight\)") as caught:
        load_model(tmp_path / "m.pth", arch=f"{code}:Net")
    loaded = load_model(tmp_path / "m.pth", arch=f"{code}:Net", take=Take(partial=True))

    assert "--partial" in caught.value.remedy
    assert loaded.missing == ("head.weight",)
    assert torch.equal(loaded.model.state_dict()["backbone.0.weight"], state["backbone.0.weight"])


def test_a_backbone_alone_is_a_part_of_the_model(code, tmp_path):
    backbone = net()["backbone"]
    torch.save(backbone.state_dict(), tmp_path / "m.pth")

    loaded = load_model(tmp_path / "m.pth", arch=f"{code}:Net", take=Take(partial=True))

    assert "the part 'backbone' of" in loaded.warnings[0]
    assert loaded.missing == ("head.weight", "head.bias")
    assert torch.equal(loaded.model.state_dict()["backbone.1.bias"], backbone[1].bias)


def test_another_network_does_not_fit_in_part_either(code, tmp_path):
    state = {"head.bias": torch.ones(2), "body.weight": torch.ones(40, 40)}
    torch.save(state, tmp_path / "m.pth")

    with pytest.raises(UsageError, match="does not fit"):
        load_model(tmp_path / "m.pth", arch=f"{code}:Net", take=Take(partial=True))
