"""LoRA adapters: counted with their base, or said what they are for."""

import json
import sys

import pytest
import torch

from flopprof.errors import LoadError, UnknownArchitectureError
from flopprof.model import load_model
from flopprof.model.adapters import LoraLinear

transformers = pytest.importorskip("transformers")
SMALL = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64,
}  # fmt: skip
RANK = 4


@pytest.fixture
def base(tmp_path):
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapter(tmp_path, base_name, *, width=32, layer="q_proj", **settings):
    save_file = pytest.importorskip("safetensors.torch").save_file
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": base_name, "r": RANK, "lora_alpha": 8}
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    state = {}
    for number in range(2):
        name = f"base_model.model.model.layers.{number}.self_attn.{layer}"
        state[f"{name}.lora_A.weight"] = torch.ones(RANK, width)
        state[f"{name}.lora_B.weight"] = torch.ones(32, RANK)
    save_file(state, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("named", ["path", "name"])
@pytest.mark.parametrize("meta", [True, False])
def test_an_adapter_is_loaded_with_its_base(named, meta, base, tmp_path):
    folder = adapter(tmp_path, str(base) if named == "path" else "someone/base")

    alone = load_model(base, meta=True)
    loaded = load_model(folder, meta=meta)

    # Two layers of rank 4, in and out 32 each.
    assert loaded.parameters == alone.parameters + 2 * (4 * 32 + 32 * 4)
    assert loaded.input_hint == alone.input_hint
    layer = loaded.model.get_submodule("model.layers.1.self_attn.q_proj")
    assert isinstance(layer, LoraLinear)
    if not meta:
        x = torch.ones(1, 32)
        # A gives 32 four times, B their sum, 128; alpha / r = 8 / 4.
        assert torch.allclose(layer(x) - layer.base_layer(x), torch.tensor(256.0), rtol=1e-4)


def test_an_adapter_without_its_base_says_what_it_is_for(tmp_path):
    folder = adapter(tmp_path, "someone/not-here-7B")

    with pytest.raises(UnknownArchitectureError) as caught:
        load_model(folder, meta=True)

    assert "adapter by LORA with 4 tensors for someone/not-here-7B" in caught.value.problem
    assert "base_model_name_or_path" in caught.value.remedy


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"peft_type": "IA3"}, "flopprof reads LoRA alone"),
        ({"peft_type": 5}, "an unnamed method"),
        ({"width": 16}, "32x32 in its base, 32x16 in the adapter"),
        ({"layer": "no_such_layer"}, "which is no linear layer of its base"),
    ],
)
def test_what_does_not_fit_is_said(options, said, base, tmp_path):
    with pytest.raises(LoadError, match=said):
        load_model(adapter(tmp_path, str(base), **options), meta=True)


@pytest.mark.parametrize("name", [5, None, "", "..", "/", "a" * 5000, "\ud800", "\x00"])
def test_any_name_of_a_base_is_our_error(name, tmp_path):
    with pytest.raises(UnknownArchitectureError):
        load_model(adapter(tmp_path, name), meta=True)


def test_no_code_of_peft_is_needed():
    assert "peft" not in sys.modules
