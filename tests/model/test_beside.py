"""What lies beside a named weights file: its config.json, the other parts of it."""

import json

import pytest
import torch
from torch import nn

from flopprof.cli import main
from flopprof.errors import UnknownArchitectureError
from flopprof.model import load_model
from flopprof.model.beside import with_neighbours
from flopprof.model.contents import read_contents
from flopprof.model.detect import detect


def contents_of(path):
    return with_neighbours(read_contents(path, detect(path)))


@pytest.fixture
def bert(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=30, intermediate_size=16, **sizes)
    model = transformers.BertModel(config)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(config.to_json_string())
    return model


def test_a_named_file_is_counted_with_the_config_beside_it(bert, tmp_path):
    loaded = load_model(tmp_path / "pytorch_model.bin", meta=True)

    assert loaded.architecture == "transformers:BertModel"
    assert loaded.parameters == sum(p.numel() for p in bert.parameters())


def test_a_file_under_another_name_is_not_of_the_config(bert, tmp_path):
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "best.pth")

    with pytest.raises(UnknownArchitectureError, match="unknown architecture"):
        load_model(tmp_path / "best.pth", meta=True)


def test_a_config_that_is_another_models_is_left_aside(tmp_path):
    state = {"0.weight": torch.zeros(3, 4)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": "wide"}')

    with pytest.raises(UnknownArchitectureError, match="unknown architecture"):
        load_model(tmp_path / "pytorch_model.bin", meta=True)


@pytest.mark.parametrize("text", ["no JSON", "[1]", "{" * 100_000])
def test_a_broken_config_beside_hides_no_weights(text, tmp_path, capsys):
    torch.save({"fc.weight": torch.zeros(3, 4)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(text)

    assert main(["count", str(tmp_path / "pytorch_model.bin"), "--json"]) == 5

    assert json.loads(capsys.readouterr().out)["weights"]["matmul_flops_per_position"] == 24


def test_a_part_is_read_with_the_others_beside_it(tmp_path):
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    names = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
    for number, name in enumerate(names):
        part = {k: v for k, v in net.state_dict().items() if k[0] == str(number)}
        torch.save(part, tmp_path / name)
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build():\n"
        "    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))\n"
    )

    contents = contents_of(tmp_path / names[1])
    loaded = load_model(tmp_path / names[1], arch=f"{tmp_path}/net.py:build")

    assert contents.tensors.keys() == net.state_dict().keys()
    assert contents.notes == ("it is one of 2 parts: all of them were read",)
    assert torch.equal(loaded.model.state_dict()["0.weight"], net.state_dict()["0.weight"])


def test_a_part_alone_says_that_it_is_one(tmp_path):
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "model-00002-of-00003.bin")

    contents = contents_of(tmp_path / "model-00002-of-00003.bin")

    assert contents.notes == ("it is one of 3 parts, and 2 of them are not beside it",)
    assert len(contents.tensors) == 2
