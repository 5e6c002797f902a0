"""The whole chain on real models: agreement, laws, and a model left as it was."""

import math
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torchvision
from torch import nn
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode

import flopprof
from flopprof.capture.hooks import module_ranges
from flopprof.errors import ModelError, UsageError
from flopprof.settings import Options, Settings
from tests.builders import called, changed_ops

# Published GMACs: torchvision's weights.meta["_ops"].
MODELS = (
    "resnet18",
    "resnet50",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "vit_b_16",
    "swin_t",
    "convnext_tiny",
    "densenet121",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_real_models_agree_with_every_other_count(name):
    weights = torchvision.models.get_model_weights(name).DEFAULT
    size = weights.transforms().crop_size[0]
    model = torchvision.models.get_model(name).eval()

    run = flopprof.profile(model, (1, 3, size, size), repeats=1, warmup=1, ceilings=False)
    on_meta = flopprof.count_flops(model, (1, 3, size, size))

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.to("meta")(torch.zeros(1, 3, size, size, device="meta"))
    totals = run.totals
    assert totals.matmul_flops / 2 == pytest.approx(weights.meta["_ops"] * 1e9, rel=0.01)
    assert totals.matmul_flops == counter.get_total_flops()
    assert (on_meta.matmul_flops, on_meta.vector_flops) == (
        totals.matmul_flops,
        totals.vector_flops,
    )
    assert not {"disagrees", "unknown", "not_run"} & set(run.sites["verdict"])
    hooks = run.module_calls["self_hook_matmul_flops"].sum()
    assert (hooks == totals.matmul_flops) == (name != "swin_t")  # whose attention is functional
    known = run.sites[run.sites["verdict"] != "hidden"]  # a busy machine may interrupt
    assert known["flops"].notna().all()


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    )


SIZE = (2, 3, 8, 8)
# Convolution 2·4·6·6 outputs × 27 multiply-adds × 2 = 15,552; classifier 2·144·5·2 = 2,880.
# Bias 288, batch norm 2·288, relu 288; classifier's bias 10.
MATMUL, VECTOR = 15_552 + 2_880, 288 + 576 + 288 + 10


def test_a_count_gives_both_classes_and_no_times():
    count = flopprof.count_flops(net(), SIZE)

    assert (count.matmul_flops, count.vector_flops) == (MATMUL, VECTOR)
    assert count.flops == count.flops_at_most == MATMUL + VECTOR
    assert math.isnan(count.coverage_frac)
    assert math.isnan(count.wall_us)
    assert count.run.sites["time_us"].isna().all()
    assert count.run.ops["cpu_us"].isna().all()


def test_by_module_adds_up_to_the_total():
    modules = flopprof.count_flops(net(), SIZE).by_module().set_index("module_path")

    assert modules.loc["", "flops"] == MATMUL + VECTOR
    assert modules["self_flops"].sum() == MATMUL + VECTOR
    assert modules.loc["4", "matmul_flops"] == 2_880
    assert modules.loc["0", "calls"] == 1


def test_by_op_names_every_op():
    ops = flopprof.count_flops(net(), SIZE).by_op().set_index("op")

    assert ops.loc["aten::conv2d", "matmul_flops"] == 15_552
    assert ops.loc["aten::flatten", "flops"] == 0


@pytest.mark.parametrize(
    "inputs",
    [
        SIZE,
        "2x3x8x8",
        [(2, 3, 8, 8)][0],
        torch.zeros(SIZE),
        (torch.zeros(SIZE),),
        {"input": torch.zeros(SIZE)},
    ],
)
def test_inputs_may_be_tensors_sizes_texts_or_names(inputs):
    assert flopprof.count_flops(net(), inputs).matmul_flops == MATMUL


def test_several_sizes_give_a_row_each():
    table = flopprof.count_flops(net(), [SIZE, (4, 3, 8, 8)])

    assert list(table["input"]) == ["2x3x8x8", "4x3x8x8"]
    assert list(table["matmul_flops"]) == [MATMUL, 2 * MATMUL]  # twice the batch


def test_several_sizes_give_a_run_each():
    table = flopprof.profile(net(), [SIZE, "4x3x8x8"], repeats=1, traces=1, ceilings=False)

    assert list(table["input"]) == ["2x3x8x8", "4x3x8x8"]
    assert list(table["matmul_flops"]) == [MATMUL, 2 * MATMUL]  # twice the batch
    assert [run.totals.wall_us for run in table["run"]] == list(table["wall_us"])


def test_keyword_inputs():
    class Two(nn.Module):
        def forward(self, a, *, b):
            return a @ b

    count = flopprof.count_flops(Two(), torch.ones(2, 3), kwargs={"b": torch.ones(3, 4)})

    assert count.matmul_flops == 2 * 2 * 3 * 4


def test_a_model_that_cannot_run_on_meta_is_counted_where_it_is():
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) if x.sum().item() > 0 else self.fc(self.fc(x))

    # 1 × 4 × 4 multiply-adds × 2 FLOPs, once or twice.
    assert flopprof.count_flops(Looks(), torch.ones(1, 4)).matmul_flops == 32
    assert flopprof.count_flops(Looks(), -torch.ones(1, 4)).matmul_flops == 64


@pytest.mark.slow
def test_a_compiled_model_is_counted_as_the_eager_one_and_its_code_is_no_zero():
    torch._dynamo.reset()  # of what other tests compiled
    model: Any = torch.compile(nn.Sequential(nn.Linear(8, 16), nn.ReLU()))

    counted = flopprof.count_flops(model, (1, 8))
    profiled = flopprof.profile(model, (1, 8), ceilings=False)

    assert (counted.matmul_flops, counted.vector_flops) == (2 * 8 * 16, 16 + 16)
    # Generated code: no op says its FLOPs, so they are unknown.
    generated = profiled.sites[profiled.sites["op"] == "inductor::compiled_region"]
    assert set(generated["verdict"]) == {"fused"}
    assert generated["flops"].isna().all()
    assert math.isnan(profiled.totals.flops_at_most)


def test_a_complex_layer_agrees_though_the_profiler_counts_it_as_real():
    x = torch.ones(2, 4, dtype=torch.complex64)
    run = flopprof.profile(nn.Linear(4, 3, dtype=torch.complex64), x, ceilings=False)

    assert set(run.sites["verdict"]) <= {"agrees", "free"}
    assert run.totals.matmul_flops == 8 * 2 * 3 * 4


def test_waiting_for_ones_own_threads_is_not_hidden_work():
    class Threaded(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            workers = [threading.Thread(target=multiply, args=(x,)) for _ in range(2)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            return x + 1

    def multiply(x: torch.Tensor) -> None:
        with torch.no_grad():
            for _ in range(20):
                x @ x

    run = flopprof.profile(Threaded(), (400, 400), ceilings=False)

    assert "hidden" not in set(run.sites["verdict"])
    assert run.totals.matmul_flops == 2 * 20 * 2 * 400**3
    assert called(run).timing.host_overhead_us < called(run).timing.traced_us / 2


def test_a_shared_module_is_counted_at_each_call():
    shared = nn.Linear(4, 4)

    count = flopprof.count_flops(nn.Sequential(shared, shared, nn.ReLU(), shared), (1, 4))

    assert count.matmul_flops == 3 * 32
    assert count.by_module().set_index("module_path").loc["0", "calls"] == 3


@pytest.mark.parametrize("measure", ["profile", "count_flops"])
def test_the_model_is_left_as_it_was(measure):
    model = net().train()
    next(m for m in model.modules() if isinstance(m, nn.ReLU)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    options = {"repeats": 1, "ceilings": False} if measure == "profile" else {}

    first = getattr(flopprof, measure)(model, SIZE, **options)
    second = getattr(flopprof, measure)(model, SIZE, **options)

    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in model.parameters())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    flops = [
        result.totals.flops if measure == "profile" else result.flops for result in (first, second)
    ]
    assert flops == [MATMUL + VECTOR] * 2


def op_names(model: nn.Module, x: torch.Tensor) -> list[str]:
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        model(x)
    return [e.name for e in profiler.events() if "::" in e.name and not e.name.startswith("flop")]


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (1, 4, 16)),
        (nn.Sequential(nn.LSTM(4, 8)), (3, 1, 4)),
        (torchvision.models.squeezenet1_1(), (1, 3, 64, 64)),
    ],
)
def test_tracing_does_not_change_the_ops_that_run(model, size):
    model.eval()
    x = torch.zeros(size)
    with torch.no_grad():
        plain = op_names(model, x)
        with module_ranges(model):
            traced = op_names(model, x)

    assert traced == plain


def test_autocast_runs_products_in_its_type():
    run = flopprof.profile(net(), SIZE, ceilings=False, repeats=1, autocast="bfloat16")

    linear = run.ops[run.ops["op"] == "aten::addmm"]
    assert set(linear["dtype"]) == {"bfloat16"}
    assert run.provenance.called.dtype == run.provenance.called.autocast == "bfloat16"
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_and_tf32_say_where_they_do_not_apply():
    with pytest.raises(UsageError, match="autocast knows no 'int8'"):
        flopprof.profile(net(), SIZE, ceilings=False, autocast="int8")
    with pytest.raises(UsageError, match="--tf32 is for GPUs"):
        flopprof.profile(net(), SIZE, ceilings=False, device="cpu", tf32=True)


def test_an_input_of_the_wrong_shape_is_the_users():
    with pytest.raises(UsageError, match="2x5x8x8") as caught:
        flopprof.count_flops(net(), (2, 5, 8, 8))

    assert "channels" in caught.value.problem


def test_a_model_that_raises_is_named():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("the reactor is offline")

    with pytest.raises(ModelError, match="reactor"):
        flopprof.profile(Broken(), (1, 3), ceilings=False)


def test_a_run_reports_saves_and_loads(tmp_path):
    run = flopprof.profile(net(), SIZE, repeats=2, ceilings=False)

    loaded = flopprof.Run.load(run.save(tmp_path / "net.flopprof"))

    pd.testing.assert_frame_equal(loaded.sites, run.sites, check_dtype=False)
    assert loaded.totals == run.totals
    assert loaded.totals.coverage_frac > 0.5
    assert "conv2d" in loaded.report("md")
    assert loaded.plot_roofline(tmp_path / "chart.svg").stat().st_size > 1000


def test_a_model_that_changes_the_threads_is_told_of():
    class Greedy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.set_num_threads(2)
            return x + 1

    run = flopprof.profile(Greedy(), (4,), threads=1, repeats=1, warmup=1, ceilings=False)

    assert any("from 1 threads to 2" in warning for warning in run.provenance.warning_texts)


def test_custom_ops_are_no_change_by_tracing():
    @torch.library.custom_op("flopprof_observed::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return torch.mul(x, 2)

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = twice(x)
            return found

    run = flopprof.profile(Net(), (4,), repeats=1, warmup=1, ceilings=False)

    assert changed_ops(run) == {}
    assert not [text for text in run.provenance.warning_texts if "changed which ops" in text]


def test_a_class_is_no_model():
    with pytest.raises(UsageError, match=r"no torch\.nn\.Module"):
        flopprof.count_flops(nn.Linear, (1, 2))


# The front doors take what the command line takes.


def test_what_may_be_a_files_name_code_or_a_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(5, 7)\n")
    torch.save(nn.Linear(5, 7).state_dict(), "net.pth")

    counts = [
        flopprof.count_flops("net.py:build", (4, 5)),
        flopprof.count_flops("net.pth", (4, 5), arch="net.py:build"),
        flopprof.count_flops(tmp_path / "net.pth", arch="net.py:build", input="4x5"),
        flopprof.count_flops(nn.Linear(5, 7), input="4x5"),
    ]

    # 4 rows × 7 outputs × 5 multiply-adds × 2; one bias add each.
    assert [(c.matmul_flops, c.vector_flops) for c in counts] == [(280, 28)] * 4
    assert [c.run.provenance.source.weights for c in counts] == ["meta", "meta", "meta", None]


def test_profile_loads_a_file_and_says_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(5, 7)\n")
    torch.save(nn.Linear(5, 7).state_dict(), "net.pth")

    run = flopprof.profile("net.pth", (4, 5), arch="net.py:build", repeats=1, ceilings=False)

    assert run.totals.matmul_flops == 280
    assert run.provenance.source.file == "state_dict of net.pth"
    assert run.provenance.source.architecture == "net.py:build"


def test_load_returns_the_model_and_inputs_that_it_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(5, 7)\n")

    subject = flopprof.load("net.py:build", input="4x5")

    assert subject.inputs.call(subject.model).shape == (4, 7)
    assert subject.origin.architecture == "net.py:build"
    # A subject is what the other doors take, too: 4 × 7 × 5 × 2.
    assert flopprof.count_flops(subject).matmul_flops == 280


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"repeats": 0}, "repeats is 0"),
        ({"traces": 0}, "traces is 0"),
        ({"warmup": -1}, "warmup is -1"),
        ({"threads": 0}, "threads is 0"),
        ({"autocast": "int8"}, "autocast knows no 'int8'"),
        ({"loss": "f.py:g"}, "loss is given without --train"),
        ({"optimizer": "adam"}, "optimizer is given without --train"),
        ({"repeat": 3}, "there is no option 'repeat'"),
    ],
)
def test_options_are_checked_once_for_every_door(options, says):
    for door in (flopprof.count_flops, flopprof.profile, flopprof.load):
        with pytest.raises(UsageError, match=says):
            door(nn.Linear(2, 2), (1, 2), **options)


def test_options_are_the_settings():
    from dataclasses import fields

    assert {field.name: field.type for field in fields(Settings)}.keys() == (
        Options.__annotations__.keys()
    )
