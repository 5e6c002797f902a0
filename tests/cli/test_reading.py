"""What a reader sees: no words about what was not measured, no figure for what is not known."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

import flopprof
from flopprof.cli import main
from flopprof.report.advice import advice
from flopprof.tables import SITES
from tests.builders import make_run


class Adding(nn.Module):
    """A linear layer and a sum that no hook sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self.layer(x) + x
        return total


def test_a_count_says_nothing_of_time():
    run = flopprof.count_flops(Adding(), (2, 4)).run

    for form in ("text", "md"):
        assert "of the time" not in run.report(form)
    assert "functional: 1 site, 8 FLOPs" in run.report("text")  # 2·4 additions


def test_misses_of_a_count_say_nothing_of_time(capsys, tmp_path):
    flopprof.count_flops(Adding(), (2, 4)).run.save(tmp_path / "adding.flopprof")

    assert main(["misses", str(tmp_path / "adding.flopprof")]) == 0
    out = capsys.readouterr().out

    assert "functional: 1 call\n" in out
    assert "aten::add: 1 call, 8 FLOPs" in out


def test_flops_that_are_unknown_are_called_so():
    assert ", FLOPs unknown" in make_run().report("text")


def test_a_long_reason_is_wrapped_in_the_list_of_misses(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sites = make_run().sites.to_dict("records")
    make_run([sites[0] | {"verdict": "unknown", "reason": "word " * 50}]).save(tmp_path / "a")

    assert main(["misses", str(tmp_path / "a")]) == 0

    assert max(map(len, capsys.readouterr().out.splitlines())) <= 120


def test_one_module_is_called_once():
    text = flopprof.count_flops(nn.Linear(4, 4), (2, 4)).run.report("text")

    assert "Modules   1 called once" in text


def test_what_is_unknown_has_no_flops_in_the_table_of_weights(capsys, tmp_path):
    weights = {"blob": torch.zeros(3, 4), "shift": torch.zeros(7)}
    torch.save(weights, tmp_path / "odd.pth")

    assert main(["inspect", str(tmp_path / "odd.pth")]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("(model)")]

    assert [row.split()[-1] for row in rows] == ["–"]


def test_lines_of_inspect_are_wrapped_between_words(capsys, tmp_path):
    path = tmp_path / "net.pt"
    torch.save(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), path)

    assert main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()

    first = next(place for place, line in enumerate(lines) if line.startswith("Globals"))
    assert lines[first + 1].startswith(" " * 10)
    assert max(map(len, lines[first:])) <= 120


def test_a_name_that_a_library_lacks_is_answered_with_names_to_type(capsys):
    assert main(["count", "torchvision:resnet19"]) == 2

    assert "torchvision:resnet18, torchvision:resnet" in capsys.readouterr().err


def test_an_onnx_graph_is_not_said_to_have_hooks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 8])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 8])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "one", [x], [y])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "one.onnx")

    assert main(["count", str(tmp_path / "one.onnx")]) == 0
    assert "the formulas missed nothing" in capsys.readouterr().out


def test_the_sentence_on_tracing_ends_with_its_consequence():
    run = make_run(slowdown_frac=2.0, observer={"changed_ops": {}})

    words = " ".join(run.report("text").split())

    assert "added +200 % and no other ops, so sites' times are too long" in words


def test_counting_a_model_of_transformers_asks_for_no_name_that_is_going_away(
    caplog, capsys, tmp_path
):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=16,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert main(["count", str(tmp_path), "--input", "input_ids=1x4:int64"]) == 0
    finally:
        logger.removeHandler(caplog.handler)

    assert "deprecated" not in caplog.text
    # Keys and values (2) of 1 layer, 1 head of 4 numbers, 4 tokens, 4 bytes each: 2·4·4·4.
    assert "KV cache 128 B" in capsys.readouterr().out

    assert (
        main(["count", str(tmp_path / "model.safetensors"), "--input", "input_ids=1x4:int64"]) == 0
    )
    assert "Hugging Face file " in capsys.readouterr().out


def test_kernels_that_are_fused_already_are_not_advised_to_be_fused():
    row = {
        "site_id": 0,
        "op": "triton_poi_fused_add_mul_0",
        "module_path": "",
        "phase": "forward",
        "dtype": "float32",
        "kind": "elementwise",
        "calls": 8,
        "flops": 8.0,
        "matmul_flops": 0.0,
        "vector_flops": 8.0,
        "time_us": 100.0,
        "verdict": "fused",
    }
    assert set(row) <= {column.name for column in SITES.columns}

    alone = make_run([row | {"verdict": "agrees"}])
    fused = make_run([row])

    assert "fuse" in {each.rule for each in advice(alone)}
    assert "fuse" not in {each.rule for each in advice(fused)}
