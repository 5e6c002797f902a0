"""Hugging Face folders and checkpoints in several files."""

import json

import pytest
import torch

from flopprof.errors import LoadError, RefusedError, UnknownArchitectureError
from flopprof.model import load_model

transformers = pytest.importorskip("transformers")
SMALL = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64,
}  # fmt: skip


@pytest.fixture
def bert(tmp_path):
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    model.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_folder_says_its_class_and_input(bert):
    loaded = load_model(bert, meta=True)

    assert loaded.architecture == "transformers:BertForMaskedLM"
    assert loaded.input_hint == "input_ids=1x128:int64:0-99"
    assert loaded.recognised_by == "config.json"
    assert loaded.warnings == ()


def test_weights_are_those_of_the_folder(bert):
    saved = transformers.BertForMaskedLM.from_pretrained(bert).state_dict()

    loaded = load_model(bert).model.state_dict()

    assert all(torch.equal(loaded[key], saved[key]) for key in saved)


def test_shards_are_read_together(tmp_path):
    config = transformers.LlamaConfig(**SMALL)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2

    loaded = load_model(tmp_path, meta=True)

    assert loaded.architecture == "transformers:LlamaForCausalLM"
    assert loaded.warnings == ()
    # Two tables of 99 × 32; per layer 4 · 32² of attention, 3 · 32 · 64 of the MLP and two norms
    # of 32; a last norm.
    assert loaded.parameters == 2 * 99 * 32 + 2 * (4 * 32**2 + 3 * 32 * 64 + 2 * 32) + 32


def test_a_config_without_weights_is_enough_to_count(bert):
    (bert / "model.safetensors").unlink()

    loaded = load_model(bert, meta=True)

    assert loaded.warnings == ("the folder holds no weights: their values are random",)


def test_a_config_with_code_of_its_own_is_refused(tmp_path):
    config = {"auto_map": {"AutoModel": "modeling_evil.Evil"}, "architectures": ["Evil"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling_evil.py").write_text("raise SystemExit('was run')")

    with pytest.raises(RefusedError, match="code of its own"):
        load_model(tmp_path, meta=True)


def test_a_model_type_that_is_not_known_is_said(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')

    with pytest.raises(UnknownArchitectureError, match="knows no model_type 'no_such_model'"):
        load_model(tmp_path, meta=True)


def test_an_index_does_not_reach_outside_its_folder(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../secret.safetensors"}}')

    with pytest.raises(LoadError, match="names files outside its folder"):
        load_model(index, meta=True)


def test_a_folder_without_weights_runs_on_random_ones(bert):
    (bert / "model.safetensors").unlink()

    loaded = load_model(bert)

    assert loaded.weights == "random"
    assert loaded.warnings == ("the folder holds no weights: their values are random",)
    assert not any(parameter.is_meta for parameter in loaded.model.parameters())


def test_weights_of_another_size_than_the_config_says_are_refused(bert):
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))

    for meta in (True, False):
        with pytest.raises(LoadError, match=r"is 99x32, by its config\.json 99x64"):
            load_model(bert, meta=meta)
