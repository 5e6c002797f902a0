"""What weights alone say: kinds, FLOPs per position, groups; each number by hand."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from flopprof.cli import main
from flopprof.cli.stored import weight_lines
from flopprof.errors import RefusedError, UnknownArchitectureError
from flopprof.model import load_model
from flopprof.model.account import account_of, add_up, weights_object
from flopprof.model.contents import Contents, read_contents
from flopprof.model.detect import detect
from flopprof.model.pickles import TensorInfo
from flopprof.stored import Experts


def account(model, config=None):
    """Return the account of a module's state, read from its shapes."""
    return add_up(infos(model.state_dict()), config=config or {})


def infos(state):
    return {
        key: TensorInfo(tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for key, value in state.items()
    }


def kinds(some):
    return {weight.name: weight.kind for weight in some.tensors}


def contents_of(path):
    return read_contents(path, detect(path))


def test_a_recurrent_layer_is_applied_once_per_step_and_a_linear_once_per_row():
    net = nn.ModuleDict({"lstm": nn.LSTM(40, 256, 3), "linear": nn.Linear(256, 256)})

    found = account(net)

    # 4·256 gates: of the first layer 40 + 256 inputs, of two more 256 + 256; 2 FLOPs per weight.
    lstm = 2 * 1024 * ((40 + 256) + 2 * (256 + 256))
    assert {g.path: g.matmul_flops_per_position for g in found.groups} == {
        "lstm": lstm,
        "linear": 2 * 256 * 256,
    }
    assert lstm == 2_703_360
    assert [(g.kind, g.per) for g in found.groups] == [("recurrent", "step"), ("linear", "row")]
    assert found.matmul_flops_per_position == 2_703_360 + 131_072


def test_every_kind_of_layer_is_told_from_names_and_shapes():
    net = nn.ModuleDict(
        {
            "embed_tokens": nn.Embedding(50, 8),
            "conv": nn.Conv2d(3, 6, 5),
            "depthwise": nn.Conv2d(6, 6, 3, groups=6, bias=False),
            "up": nn.ConvTranspose2d(6, 4, 2),
            "bn": nn.BatchNorm2d(4),
            "norm": nn.LayerNorm([2, 4]),
            "act": nn.PReLU(4),
            "cell": nn.GRUCell(5, 7),
            "attention": nn.MultiheadAttention(8, 2),
            "head": nn.Linear(8, 50, bias=False),
        }
    )

    found = account(net)

    assert kinds(found) == {
        "embed_tokens.weight": "embedding",
        "conv.weight": "convolution",
        "conv.bias": "bias",
        "depthwise.weight": "convolution",
        "up.weight": "transposed convolution",
        "up.bias": "bias",
        "bn.weight": "norm",
        "bn.bias": "norm",
        "bn.running_mean": "statistics",
        "bn.running_var": "statistics",
        "bn.num_batches_tracked": "statistics",
        "norm.weight": "norm",
        "norm.bias": "bias",
        "act.weight": "scale",
        "cell.weight_ih": "recurrent",
        "cell.weight_hh": "recurrent",
        "cell.bias_ih": "bias",
        "cell.bias_hh": "bias",
        "attention.in_proj_weight": "linear",
        "attention.in_proj_bias": "bias",
        "attention.out_proj.weight": "linear",
        "attention.out_proj.bias": "bias",
        "head.weight": "linear",
    }
    # conv 6·3·5·5, depthwise 6·1·3·3, up 6·4·2·2, cell 3·7·(5+7), attention 4·8·8, head 8·50
    products = 450 + 54 + 96 + 252 + 256 + 400
    assert found.matmul_flops_per_position == 2 * products
    assert found.parameters == sum(p.numel() for p in net.parameters())
    assert found.unknown == []


@pytest.mark.parametrize("normalise", [old_weight_norm, parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_of_a_weight_normalised_layer_the_directions_are_the_weight(normalise):
    found = account(nn.ModuleDict({"conv": normalise(nn.Conv1d(4, 6, 3))}))

    assert sorted(weight.kind for weight in found.tensors) == ["bias", "convolution", "scale"]
    assert found.matmul_flops_per_position == 2 * 6 * 4 * 3
    assert [group.path for group in found.groups] == ["conv"]


@pytest.mark.parametrize("normalise", [spectral_norm, parametrizations.spectral_norm])
def test_of_a_spectrally_normalised_layer_its_singular_vectors_are_no_weights(normalise):
    found = account(nn.Sequential(normalise(nn.Linear(4, 6))))

    assert found.matmul_flops_per_position == 2 * 6 * 4
    assert found.parameters == 6 * 4 + 6
    assert sorted(w.kind for w in found.tensors) == ["bias", "buffer", "buffer", "linear"]


def test_blocks_that_repeat_are_one_group():
    blocks = [nn.ModuleDict({"fc": nn.Linear(4, 4), "norm": nn.LayerNorm(4)}) for _ in range(12)]
    net = nn.ModuleDict({"layers": nn.ModuleList(blocks), "fc": nn.Linear(4, 2)})

    groups = {group.path: group for group in account(net).groups}

    assert list(groups) == ["layers.{0-11}.fc", "layers.{0-11}.norm", "fc"]
    assert groups["layers.{0-11}.fc"].modules == 12
    assert groups["layers.{0-11}.fc"].matmul_flops_per_position == 12 * 2 * 16


def test_what_names_do_not_tell_is_unknown_and_never_zero():
    state = {
        "net.linear.weight": TensorInfo((300,), "float32"),
        "mixer": TensorInfo((5, 6), "float32"),
        "fc.weight": TensorInfo((2, 3), "float32"),
    }

    found = add_up(state)

    assert found.unknown == ["net.linear.weight", "mixer"]
    unknown = [w for w in found.tensors if w.kind == "unknown"]
    assert [w.matmul_flops_per_position for w in unknown] == [None, None]
    assert all(w.why for w in unknown)
    assert found.matmul_flops_per_position == 2 * 2 * 3
    lines = "\n".join(weight_lines(weights_object(contents(state))))
    assert "at least 12 matmul FLOPs" in lines
    assert "without 2 tensors of unknown use: net.linear.weight, mixer" in lines


def contents(tensors):
    return Contents(Path("m.pth"), "state_dict", tensors)


def test_a_table_that_is_also_the_head_is_multiplied_and_stored_once(tmp_path):
    net = nn.ModuleDict({"wte": nn.Embedding(2000, 8), "lm_head": nn.Linear(8, 2000, bias=False)})
    net["lm_head"].weight = net["wte"].weight
    torch.save(net.state_dict(), tmp_path / "m.pth")

    found = account_of(contents_of(tmp_path / "m.pth"))

    assert found.parameters == 2000 * 8
    assert found.bytes == 4 * 2000 * 8
    assert found.matmul_flops_per_position == 2 * 8 * 2000
    assert "lm_head.weight is wte.weight" in found.notes[0]


def test_a_module_under_two_names_counts_once(tmp_path):
    conv = nn.Conv2d(3, 4, 3)
    net = nn.ModuleDict({"conv": conv, "body": nn.Sequential(conv, nn.ReLU())})
    torch.save(net.state_dict(), tmp_path / "m.pth")

    assert account_of(contents_of(tmp_path / "m.pth")).matmul_flops_per_position == 2 * 4 * 27


def test_a_decoder_whose_head_is_not_stored_is_told_of():
    state = {"model.embed_tokens.weight": TensorInfo((5000, 16), "float32")}
    for number in range(2):
        for name in "qkvo":
            state[f"model.layers.{number}.{name}_proj.weight"] = TensorInfo((16, 16), "float32")

    found = add_up(state)

    assert found.matmul_flops_per_position == 2 * 2 * 4 * 16 * 16
    assert "may be the head, too (tied)" in found.notes[0]
    assert "160,000 FLOPs more" in found.notes[0]  # 2 · 5000 · 16
    assert add_up(state, config={"tie_word_embeddings": False}).notes == []


@pytest.mark.parametrize("is_stacked", [False, True])
def test_of_experts_all_are_stored_and_those_that_run_are_told(is_stacked):
    state = {"layers.0.gate.weight": TensorInfo((8, 4), "float32")}
    if is_stacked:
        state["layers.0.experts.gate_up_proj"] = TensorInfo((8, 4, 6), "float32")
    else:
        for number in range(8):
            state[f"layers.0.experts.{number}.w1.weight"] = TensorInfo((6, 4), "float32")

    found = add_up(state, config={"num_experts_per_tok": 2})

    experts = 2 * 8 * 6 * 4
    router = 2 * 8 * 4
    assert found.matmul_flops_per_position == experts + router
    assert found.experts == Experts(
        stored=8,
        active=2,
        matmul_flops_per_position=experts,
        model_flops_per_position_active=router + experts // 4,
    )
    without_config = add_up(state).experts
    assert without_config is not None
    assert without_config.active is None


PACKED: dict[str, dict[str, Any]] = {
    # 64 inputs, 32 outputs: 2,048 weights, 4 bits each, eight in an int32
    "gptq": {"qweight": ((8, 32), "int32"), "g_idx": ((64,), "int32"), "scales": ((1, 32), "f")},
    "awq": {"qweight": ((64, 4), "int32"), "scales": ((1, 32), "f"), "qzeros": ((1, 4), "int32")},
    "bitsandbytes": {"weight": ((1024, 1), "uint8"), "weight.absmax": ((32,), "f")},
    "int8": {"weight": ((32, 64), "int8"), "SCB": ((32,), "f")},
    "fp8": {"weight": ((32, 64), "float8_e4m3fn"), "weight_scale_inv": ((1, 1), "f")},
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_weights_count_what_they_stand_for(name):
    state = {
        f"layers.0.q_proj.{leaf}": TensorInfo(shape, "float16" if dtype == "f" else dtype)
        for leaf, (shape, dtype) in PACKED[name].items()
    }

    found = add_up(state)

    assert found.matmul_flops_per_position == 2 * 64 * 32
    assert [g.path for g in found.groups] == ["layers.0.q_proj"]
    assert found.unknown == []


def test_a_moving_average_of_the_same_model_is_counted_once(tmp_path):
    state = nn.Linear(4, 3).state_dict()
    average = {key: value + 1 for key, value in state.items()}
    flat = {f"model.{key}": value for key, value in state.items()}
    flat |= {f"model_ema.{key}": value for key, value in average.items()}
    torch.save({"model": state, "ema": average, "optimizer": {"state": {}}}, tmp_path / "two.pth")
    torch.save(flat, tmp_path / "flat.pth")

    apart = weights_object(contents_of(tmp_path / "two.pth"))
    together = weights_object(contents_of(tmp_path / "flat.pth"))

    assert apart["matmul_flops_per_position"] == together["matmul_flops_per_position"] == 2 * 12
    assert "the same tensors lie under ema, too: counted once" in apart["notes"]
    assert "a trainer's state is left out: optimizer" in apart["notes"]
    assert "2 tensors are an average of the others (EMA): counted once" in together["notes"]


def test_several_models_in_one_file_are_each_told_of(tmp_path, capsys):
    generator, critic = nn.Linear(4, 3), nn.Conv2d(3, 5, 3)
    torch.save({"G": generator.state_dict(), "D": critic.state_dict()}, tmp_path / "gan.pth")

    assert main(["count", str(tmp_path / "gan.pth"), "--json"]) == 5

    weights = json.loads(capsys.readouterr().out)["weights"]
    flops = {weights["under"]: weights["matmul_flops_per_position"]}
    flops |= {k: v["matmul_flops_per_position"] for k, v in weights["others"].items()}
    assert flops == {"G": 2 * 12, "D": 2 * 5 * 27}


def test_lora_matrices_are_products_of_an_adapter():
    state = {
        "base_model.model.q_proj.lora_A.weight": TensorInfo((4, 64), "float32"),
        "base_model.model.q_proj.lora_B.weight": TensorInfo((32, 4), "float32"),
    }

    found = add_up(state)

    assert found.matmul_flops_per_position == 2 * (4 * 64 + 32 * 4)
    assert "an adapter's matrices" in found.notes[0]


def test_the_constructors_arguments_in_a_checkpoint_are_shown(tmp_path, capsys):
    path = tmp_path / "m.ckpt"
    options = argparse.Namespace(width=64, encoder={"depth": 3, "names": ["a", "b"]})
    torch.save(
        {
            "state_dict": nn.Linear(4, 3).state_dict(),
            "hyper_parameters": options,
            "optimizer_states": [{"lr": 0.1}],
        },
        path,
    )

    assert main(["count", str(path), "--json"]) == 5
    found = json.loads(capsys.readouterr().out)
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out

    wanted = {"width": 64, "encoder": {"depth": 3, "names": ["a", "b"]}}
    assert found["weights"]["configuration"] == {"hyper_parameters": wanted}
    assert "Config    hyper_parameters.encoder.depth = 3" in said


def test_a_count_without_code_says_what_the_weights_say_and_exits_with_5(tmp_path, capsys):
    path = tmp_path / "m.pth"
    torch.save(nn.ModuleDict({"fc": nn.Linear(4, 3)}).state_dict(), path)

    assert main(["count", str(path)]) == 5
    text = capsys.readouterr()
    assert main(["count", str(path), "--json"]) == 5
    found = json.loads(capsys.readouterr().out)

    assert "Products  24 matmul FLOPs" in text.out
    assert "of an unknown architecture" in text.err
    assert found["error"]["exit_code"] == 5
    assert found["weights"]["by_kind"]["linear"] == {
        "tensors": 1,
        "parameters": 12,
        "bytes": 48,
        "matmul_flops_per_position": 24,
    }
    first = found["weights"]["tensors"][0]
    assert (first["name"], first["shape"], first["dtype"]) == ("fc.weight", [3, 4], "float32")
    assert first["why"] == "2-d 3x4 with a bias"
    assert "matmul_flops" not in found


def test_python_has_what_the_command_line_prints(tmp_path):
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "m.pth")

    with pytest.raises(UnknownArchitectureError) as caught:
        load_model(tmp_path / "m.pth")

    assert caught.value.details["weights"]["matmul_flops_per_position"] == 24


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Linear(4, 300, bias=False)
        self.table = nn.Embedding(9, 4)
        self.up = nn.ConvTranspose2d(4, 4, 2, bias=False)


def test_of_a_pickled_module_its_classes_say_the_kinds(tmp_path):
    torch.save(Net(), tmp_path / "m.pth")

    with pytest.raises(RefusedError) as caught:
        load_model(tmp_path / "m.pth")

    weights = {w["name"]: w for w in caught.value.details["weights"]["tensors"]}
    assert weights["table.weight"]["kind"] == "embedding"
    assert weights["up.weight"]["kind"] == "transposed convolution"
    assert weights["words.weight"]["why"] == "of a pickled Linear"


def test_names_that_would_act_on_a_terminal_are_cleaned(tmp_path, capsys):
    torch.save({"a\x1b[2J.weight": torch.zeros(2, 3)}, tmp_path / "m.pth")

    assert main(["count", str(tmp_path / "m.pth")]) == 5

    assert "\x1b" not in capsys.readouterr().out


def test_many_groups_are_added_up_by_the_beginning_of_their_paths():
    sizes = range(2, 42)
    net = nn.ModuleDict(
        {
            "body": nn.Sequential(*[nn.Linear(n, n + 1, bias=False) for n in sizes]),
            "head": nn.Linear(3, 2, bias=False),
        }
    )

    lines = weight_lines(weights_object(contents(infos(net.state_dict()))))

    body = 2 * sum(n * (n + 1) for n in sizes)
    assert any(line.startswith("body ") and line.endswith(f"{body:,}") for line in lines)
    assert "41 groups are added up here; --json has each" in lines


def test_layers_are_listed_by_their_numbers_and_else_as_the_file_has_them(tmp_path):
    layers = nn.Sequential(*(nn.Linear(4 + n, 5 + n) for n in range(12)))
    state = nn.ModuleDict({"stem": nn.Linear(3, 4), "body": layers, "a_head": nn.Linear(16, 2)})
    by_text = dict(sorted(state["body"].state_dict(prefix="body.").items()))
    torch.save(layers, tmp_path / "pickled.pt")

    listed = [weight.name for weight in add_up(infos(by_text)).tensors]
    pickled = read_contents(tmp_path / "pickled.pt", detect(tmp_path / "pickled.pt"))

    assert [name for name in listed if name.endswith("weight")] == [
        f"body.{number}.weight" for number in range(12)
    ]
    assert account(state).tensors[0].name == "stem.weight"
    assert account(state).tensors[-1].name == "a_head.bias"
    assert list(pickled.tensors) == [
        f"{n}.{part}" for n in range(12) for part in ("weight", "bias")
    ]


def test_a_matrix_called_an_embedding_that_fits_as_a_linear_is_unknown():
    state = {
        "bond_embedding.weight": TensorInfo((64, 31), "float32"),  # of 31 radial functions
        "atom_embedding.weight": TensorInfo((94, 64), "float32"),
        "conv.weight": TensorInfo((64, 64), "float32"),
        "conv.bias": TensorInfo((64,), "float32"),
    }

    stored = add_up(state)

    # 64 is a width of the model, and 31 is none: a table would have it the other way.
    assert kinds(stored)["atom_embedding.weight"] == "embedding"
    assert stored.unknown == ["bond_embedding.weight"]
    assert stored.matmul_flops_per_position == 2 * 64 * 64


def test_one_number_is_no_product_whatever_its_name():
    stored = add_up({"metrics.0.task_weights": TensorInfo((1, 1), "float32")})

    assert kinds(stored) == {"metrics.0.task_weights": "scalar"}
    assert stored.matmul_flops_per_position == 0
