"""Memory from shapes: each part by hand, and the model left as it was."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import flopprof
from flopprof.capture.call import Inputs
from flopprof.capture.memory import describe_memory
from flopprof.capture.training import Training
from flopprof.cli import main


def mlp():
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))


BATCH = Inputs((torch.zeros(16, 64),))
PARAMETERS = 4 * (64 * 32 + 32 + 32 * 8 + 8)  # float32: 9,376 bytes


def test_inference_holds_parameters_input_and_what_is_alive_at_once():
    needed = describe_memory(mlp(), BATCH, None)

    assert needed.parameters_bytes == PARAMETERS
    assert (needed.gradients_bytes, needed.optimizer_bytes, needed.activations_bytes) == (0, 0, 0)
    # Input 16·64·4; at its most the hidden layer before and after the ReLU: 2 × 16·32·4.
    assert needed.peak_bytes == PARAMETERS + 4_096 + 4_096
    assert needed.peak_source == "shapes"


@pytest.mark.parametrize(
    ("optimizer", "state"),
    [
        ("sgd", 0),
        ("none", 0),
        ("momentum", PARAMETERS),
        ("adam", 2 * PARAMETERS + 4 * 4),  # and a count of steps for each of four parameters
        ("adamw", 2 * PARAMETERS + 4 * 4),
    ],
)
def test_a_training_step_holds_gradients_state_and_what_backward_needs(optimizer, state):
    needed = describe_memory(mlp(), BATCH, Training(optimizer=optimizer))

    assert needed.gradients_bytes == PARAMETERS
    assert needed.optimizer_bytes == state
    # Saved: the input, 16·64·4, and the ReLU's result, 16·32·4, which the second layer needs too.
    assert needed.activations_bytes == 4_096 + 2_048
    assert needed.peak_bytes >= 2 * PARAMETERS + state + 4_096


def test_frozen_parameters_have_no_gradients():
    model = mlp()
    model[0].requires_grad_(False)

    needed = describe_memory(model, BATCH, Training())

    assert needed.gradients_bytes == 4 * (32 * 8 + 8)


def test_buffers_are_apart():
    needed = describe_memory(nn.BatchNorm1d(8).eval(), Inputs((torch.zeros(4, 8),)), None)

    assert needed.parameters_bytes == 2 * 8 * 4
    assert needed.buffers_bytes == 2 * 8 * 4 + 8  # mean and variance, and a count as int64


def test_shared_parameters_and_views_count_once():
    layer = nn.Linear(8, 8, bias=False)
    needed = describe_memory(nn.Sequential(layer, layer), Inputs((torch.zeros(2, 8),)), None)

    assert needed.parameters_bytes == 8 * 8 * 4


def test_what_is_freed_on_the_way_is_no_peak():
    deep = nn.Sequential(*[nn.Linear(8, 8, bias=False) for _ in range(10)])

    needed = describe_memory(deep, Inputs((torch.zeros(4, 8),)), None)

    # One layer's input and output, 4·8·4 each, beside the model's own input.
    assert needed.peak_bytes == 10 * 8 * 8 * 4 + 128 + 2 * 128


def test_keys_and_values_that_are_left_for_the_next_call():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=50,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()

    needed = describe_memory(model, Inputs((torch.zeros(1, 6, dtype=torch.int64),)), None)

    # 2 layers × keys and values × 2 heads × 6 tokens × 32/4 numbers × 4 bytes.
    assert needed.kv_cache_bytes == 2 * 2 * 2 * 6 * 8 * 4


def test_a_step_of_ones_own_says_what_is_known_without_a_call():
    needed = describe_memory(mlp(), BATCH, Training(step=lambda model, x: model(x)))

    assert needed.parameters_bytes == PARAMETERS
    assert math.isnan(needed.peak_bytes)
    assert math.isnan(needed.optimizer_bytes)


def test_a_model_that_needs_values_says_what_is_known_without_them():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x):
            return self.layer(x) if x.sum().item() >= 0 else x

    needed = describe_memory(Branch(), Inputs((torch.zeros(2, 8),)), None)

    assert needed.parameters_bytes == 4 * (8 * 4 + 4)
    assert math.isnan(needed.peak_bytes)


def test_the_model_is_left_as_it_was():
    model = mlp()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    describe_memory(model, BATCH, Training(optimizer="adam"))

    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def test_the_command_says_it_and_python_only_where_it_is_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(64, 32)\n")

    assert main(["count", "net.py:build", "--input", "16x64", "--json"]) == 0

    said = json.loads(capsys.readouterr().out)["memory"]
    assert said["parameters_bytes"] == 4 * (64 * 32 + 32)
    assert said["peak_bytes"] == 4 * (64 * 32 + 32) + 4_096 + 2_048
    assert flopprof.count_flops(mlp(), (16, 64)).run.provenance.memory is None
    counted = flopprof.count_flops(mlp(), (16, 64), memory=True)
    assert counted.run.provenance.memory is not None
