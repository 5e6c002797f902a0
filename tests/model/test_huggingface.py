"""Hugging Face folders and checkpoints in several files."""

import json

import pytest
import torch

from flopprof.cli import main
from flopprof.errors import (
    FlopprofError,
    LoadError,
    RefusedError,
    UnknownArchitectureError,
    UsageError,
)
from flopprof.model import load_model
from flopprof.model.inputs import make_inputs, parse_input

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
    assert loaded.input_hint == "input_ids=1x128:int64:0-98"
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


# Weights whose keys the library renames or joins.

TINY_VIT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
TINY_MOE = SMALL | {
    "num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
}  # fmt: skip


def renamed(name):
    if name == "vit":
        return transformers.ViTForImageClassification(transformers.ViTConfig(**TINY_VIT))
    if name == "qwen2_moe":
        return transformers.Qwen2MoeForCausalLM(transformers.Qwen2MoeConfig(**TINY_MOE))
    options = SMALL | {"num_key_value_heads": 4, "num_local_experts": 4}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**options))


@pytest.mark.parametrize("name", ["vit", "qwen2_moe", "mixtral"])
@pytest.mark.parametrize("meta", [True, False])
def test_weights_that_transformers_renames_are_all_placed(name, meta, tmp_path):
    model = renamed(name)
    model.save_pretrained(tmp_path)

    loaded = load_model(tmp_path, meta=meta)

    assert loaded.warnings == ()
    assert loaded.parameters == sum(parameter.numel() for parameter in model.parameters())
    if not meta:
        state = loaded.model.state_dict()
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_a_headless_folder_in_a_model_with_a_head_says_what_is_random(tmp_path):
    transformers.BertModel(transformers.BertConfig(**SMALL)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["BertForMaskedLM"]
    (tmp_path / "config.json").write_text(json.dumps(config))

    loaded = load_model(tmp_path, meta=True)

    # The head of BertForMaskedLM: a bias for each word, under two keys, transform's weight and
    # bias, and the weight and bias of its norm; the decoder's weight is the embedding's.
    assert loaded.warnings[0].startswith("6 of ")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes (4 bits"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes (8 bits"),
        ({"quant_method": "gptq", "bits": 4}, "gptq (4 bits"),
        ({"quant_method": "awq", "bits": 4}, "awq (4 bits"),
        ({}, ""),
    ],
)
def test_packed_weights_are_counted_as_the_dense_model(settings, said, tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    model.save_pretrained(tmp_path)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for key in [key for key in state if key.endswith("proj.weight")]:
        size = state.pop(key).numel()
        state[key] = torch.zeros(size // 2, 1, dtype=torch.uint8)  # two 4-bit numbers a byte
        state[f"{key}.absmax"] = torch.zeros(size // 64)
        state[f"{key}.quant_state.bitsandbytes__nf4"] = torch.zeros(9, dtype=torch.uint8)
    save_file(state, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))

    if not settings:
        with pytest.raises(LoadError, match=r"by its config\.json"):
            load_model(tmp_path, meta=True)
        return
    for meta in (True, False):
        loaded = load_model(tmp_path, meta=meta)

        (warning,) = loaded.warnings
        assert f"packed by {said}" in warning
        assert loaded.weights == ("meta" if meta else "random")
        assert loaded.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_missing_key_that_says_packed_makes_no_weights_random(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    config = transformers.XmodConfig(**SMALL, languages=["packed"], default_language="packed")
    model = transformers.XmodModel(config)
    model.save_pretrained(tmp_path)
    key = "encoder.layer.0.output.adapter_modules.packed.dense1.weight"
    state = {name: value.clone() for name, value in model.state_dict().items() if name != key}
    save_file(state, tmp_path / "model.safetensors")

    loaded = load_model(tmp_path)

    (warning,) = loaded.warnings
    assert warning.startswith(f"1 of {len(state) + 1} tensors are not in the folder: random ({key}")
    assert loaded.weights == "file"


# Configurations of any types and sizes.


def folder_with(tmp_path, **changes):
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SMALL}
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 10**400},
        {"num_hidden_layers": float("inf")},
        {"hidden_size": 10**9},
        {"vocab_size": 10**9},
        {"intermediate_size": 10**12},
        {"num_attention_heads": 10**9},
        {"text_config": {"num_hidden_layers": 10**9}},
        {"n_layer": 10**9},
        {"num_local_experts": 10**9},
    ],
)
def test_a_model_beyond_all_models_is_refused_before_it_is_built(changes, tmp_path):
    for meta in (True, False):
        with pytest.raises(LoadError, match="more than the"):
            load_model(folder_with(tmp_path, **changes), meta=meta)


def test_a_model_beyond_this_machines_memory_is_counted_and_not_run(tmp_path):
    # Two tables of 90,000,000 × 65,536 of 4 bytes: 47 TB.
    folder = folder_with(tmp_path, hidden_size=65_536, vocab_size=90_000_000)

    assert load_model(folder, meta=True).parameters > 2 * 90_000_000 * 65_536
    with pytest.raises(UsageError, match="of memory, and"):
        load_model(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": 5}, {"architectures": [5]}, {"architectures": {"a": 1}},
        {"architectures": []}, {"architectures": ["nn.Module"]}, {"architectures": "Llama"},
        {"model_type": 5}, {"model_type": ["llama"]}, {"model_type": None},
        {"model_type": "\ud800"},
        {"num_hidden_layers": "two"}, {"num_hidden_layers": "2"}, {"num_hidden_layers": -1},
        {"num_hidden_layers": None}, {"num_hidden_layers": 2.5}, {"hidden_size": 0},
        {"hidden_size": [32]}, {"hidden_size": True}, {"vocab_size": "99"}, {"vocab_size": -5},
        {"text_config": 5}, {"text_config": []}, {"vision_config": "x"},
        {"max_position_embeddings": "long"}, {"max_position_embeddings": float("nan")},
        {"quantization_config": 5}, {"quantization_config": []}, {"auto_map": 5},
        {"architecture": 5}, {"architecture": "no_such_model"}, {"architecture": "a:b"},
        {"image_size": {}}, {"image_size": {"height": "x"}}, {"num_channels": None},
        {"is_encoder_decoder": "yes"}, {"_class_name": 5}, {"_class_name": "../x"},
        {"rope_scaling": 5}, {"dtype": 5}, {"dtype": "nonsense"}, {"torch_dtype": []},
        {"hidden_act": 5}, {"hidden_act": "eval"}, {"head_dim": 0}, {"num_key_value_heads": 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_of_odd_types_is_a_model_or_our_error(changes, tmp_path):
    folder = folder_with(tmp_path, **changes)

    code = main(["inspect", str(folder), "--json"])
    try:
        outcome = 0 if load_model(folder, meta=True).parameters else 1
    except FlopprofError as error:
        outcome = error.exit_code if error.problem.isprintable() else 70

    assert code == 0
    assert outcome in (0, 2, 3, 5)


SPEECH = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 50,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
WORDS = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "vocab_size": 50,
}  # fmt: skip
FEW = {"max_position_embeddings": 20}
# Its configuration; the inputs that it has positions for.
FEW_POSITIONS = {
    "WhisperForConditionalGeneration": (
        {**SPEECH, "max_source_positions": 50, "max_target_positions": 20, "num_mel_bins": 16},
        "input_features=1x16x100 decoder_input_ids=1x20:int64:0-49",
    ),
    "Speech2TextForConditionalGeneration": (
        {**SPEECH, "max_source_positions": 80, "max_target_positions": 20,
         "input_feat_per_channel": 16, "conv_channels": 32},
        "input_features=1x80x16 decoder_input_ids=1x20:int64:0-49",
    ),
    "LEDForConditionalGeneration": (
        {**SPEECH, "max_encoder_position_embeddings": 40, "max_decoder_position_embeddings": 20,
         "attention_window": 8},
        "input_ids=1x40:int64:0-49 decoder_input_ids=1x20:int64:0-49",
    ),
    "BartForConditionalGeneration": (
        {**SPEECH, **FEW}, "input_ids=1x20:int64:0-49 decoder_input_ids=1x20:int64:0-49",
    ),
    "BertForMaskedLM": ({**WORDS, **FEW}, "input_ids=1x20:int64:0-49"),
    # Positions 0 and 1 are the padding's and what lies before.
    "RobertaForMaskedLM": ({**WORDS, **FEW, "pad_token_id": 1}, "input_ids=1x18:int64:0-49"),
    "MPNetForMaskedLM": ({**WORDS, **FEW, "pad_token_id": 1}, "input_ids=1x18:int64:0-49"),
    "ASTForAudioClassification": (
        {**WORDS, "max_length": 64, "num_mel_bins": 32}, "input_values=1x64x32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FEW_POSITIONS)
def test_inputs_are_as_long_as_the_model_has_positions(tmp_path, name):
    settings, inputs = FEW_POSITIONS[name]
    config = getattr(transformers, name).config_class(**settings, architectures=[name])
    config.save_pretrained(tmp_path)

    loaded = load_model(tmp_path)

    assert loaded.input_hint == inputs
    specs = [parse_input(text) for text in inputs.split()]
    positional, named = make_inputs(specs, device="cpu")
    with torch.no_grad():
        loaded.model.eval()(*positional, **named)  # raises if a position is missing
