"""The table of module calls, and FlopsCounter."""

import math
import warnings

import pytest
import torch
import torch.nn.modules.module as torch_module
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from flopprof.capture.modules import FlopsCounter, calculate_flops_for_size, count_modules
from flopprof.errors import ModelError, UsageError
from flopprof.tables import MODULE_CALLS

torch.set_num_threads(1)

# On 2×3: Linear 3 → 4 is 2·4·3 = 24 multiply-adds and 8 adds; ReLU 8. In all 48 and 16.
X = torch.zeros(2, 3)


def small():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU())


class Custom(nn.Module):
    """Functional work of its own, around a layer; takes and returns nested structures."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 4)

    def forward(self, batch, *, scale):
        return {"out": (self.inner(batch["x"]) * scale, [batch["ids"]]), "note": None}


class Functional(nn.Module):
    def forward(self, x):
        return x * 2


class Boom(nn.Module):
    def forward(self, x):
        raise ValueError("boom")


def test_each_call_is_a_row_and_parents_come_first():
    shared = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(shared, nn.Sequential(shared, nn.ReLU()))

    calls = count_modules(model, lambda: model(X))

    assert MODULE_CALLS.check(calls) is calls
    assert calls["call_id"].tolist() == [0, 1, 2, 3, 4]
    assert calls["parent_call_id"].tolist() == [-1, 0, 0, 2, 2]
    assert calls["module_path"].tolist() == ["", "0", "1", "0", "1.1"]
    assert calls["module_type"].tolist()[:2] == ["torch.nn.Sequential", "torch.nn.Linear"]
    # 2·3 outputs × 3 multiply-adds × 2 = 36, twice; ReLU 6; the containers do nothing themselves.
    assert calls["self_hook_matmul_flops"].tolist() == [0, 36, 0, 36, 0]
    assert calls["self_hook_vector_flops"].tolist() == [0, 0, 0, 0, 6]


def test_shapes_and_dtype_are_found_in_nested_structures():
    model = Custom()
    batch = {"x": X, "ids": torch.zeros(5, dtype=torch.int64)}

    calls = count_modules(model, lambda: model(batch, scale=torch.ones(1)))

    row = calls.iloc[0]
    assert row["input_shapes"] == "2x3, 5, 1"
    assert row["output_shapes"] == "2x4, 5"
    assert row["dtype"] == "float32"


def test_an_unknown_forward_is_nan_and_not_zero():
    model = Custom()

    calls = count_modules(model, lambda: model({"x": X, "ids": X}, scale=2.0))

    assert math.isnan(calls["self_hook_matmul_flops"][0])
    assert math.isnan(calls["self_hook_vector_flops"][0])
    assert calls["self_hook_matmul_flops"][1] == 48


def test_the_dtype_is_the_first_floating_point_one():
    model = nn.Embedding(10, 4, dtype=torch.bfloat16)

    calls = count_modules(model, lambda: model(torch.tensor([1, 2])))

    assert calls["dtype"].tolist() == ["bfloat16"]
    assert calls["self_hook_vector_flops"].tolist() == [0]


def test_a_lazy_module_is_named_by_what_it_becomes():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.LazyLinear(4)

        calls = count_modules(model, lambda: model(X))

    assert calls["module_type"].tolist() == ["torch.nn.Linear"]
    assert calls["self_hook_matmul_flops"].tolist() == [48]


def jagged(*lengths, width=3):
    rows = [torch.zeros(length, width) for length in lengths]
    return torch.nested.nested_tensor(rows, layout=torch.jagged)


def test_layers_that_treat_rows_alike_are_counted_on_nested_tensors():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())

    calls = count_modules(model, lambda: model(jagged(2, 1)))

    # Three rows, 4 outputs of 3 multiply-adds each.
    assert calls["self_hook_matmul_flops"].tolist()[1:] == [2 * 3 * 4 * 3, 0]
    assert calls["self_hook_vector_flops"].tolist()[1:] == [3 * 4, 3 * 4]


def test_another_layer_has_unknown_sizes_on_a_nested_tensor():
    model = nn.Softmax(-1)

    calls = count_modules(model, lambda: model(jagged(2, 1)))

    assert math.isnan(calls["self_hook_vector_flops"][0])
    assert calls["input_shapes"].tolist() == [""]


def test_a_call_that_raised_and_was_caught_is_unknown():
    class Falls(nn.Module):
        def __init__(self):
            super().__init__()
            self.boom, self.back = nn.Conv2d(3, 3, 3), nn.ReLU()

        def forward(self, x):
            try:
                return self.boom(x)
            except RuntimeError:
                return self.back(x)

    model = Falls()

    calls = count_modules(model, lambda: model(X))

    assert calls["module_path"].tolist() == ["", "boom", "back"]
    assert math.isnan(calls["self_hook_matmul_flops"][1])
    assert calls["output_shapes"][1] == ""
    assert calls["self_hook_vector_flops"][2] == 6


def test_an_exception_passes_through():
    model = nn.Sequential(nn.ReLU(), Boom())

    with pytest.raises(ValueError, match="boom"):
        count_modules(model, lambda: model(X))


def test_a_call_of_nothing_is_an_empty_table():
    assert len(count_modules(small(), lambda: None)) == 0


def test_the_counter_adds_up_until_it_is_reset():
    model, counter = small(), FlopsCounter()
    counter.register_hooks(model)
    model(X)
    model(X)
    counter.remove_hooks()
    model(X)

    assert (counter.matmul_flops, counter.vector_flops, counter.total_flops) == (96, 32, 128)
    assert isinstance(counter.total_flops, int)
    counter.reset()
    assert counter.total_flops == 0
    assert len(counter.by_module()) == 0


def test_registering_twice_does_not_count_twice():
    model, counter = small(), FlopsCounter()
    counter.register_hooks(model)
    counter.register_hooks(model)
    model(X)
    counter.remove_hooks()
    counter.remove_hooks()

    assert counter.total_flops == 64
    assert counter.by_module()["calls"].tolist() == [1, 1, 1]


def test_two_counters_do_not_disturb_each_other():
    model = small()

    with FlopsCounter(model) as outer:
        model(X)
        with FlopsCounter(model[1]) as inner:
            model(X)

    assert outer.total_flops == 128
    assert inner.total_flops == 8
    assert inner.by_module()["module_path"].tolist() == [""]


def test_the_counter_lets_go_after_an_exception():
    model = nn.Sequential(nn.ReLU(), Boom())

    with pytest.raises(ValueError, match="boom"), FlopsCounter(model) as counter:
        model(X)

    assert not torch_module._global_forward_hooks
    assert counter.total_flops == 6
    assert counter.unknown_modules == ["1"]


def test_a_counter_without_a_model_says_so():
    with pytest.raises(UsageError, match="no model"), FlopsCounter():
        pass


def test_what_the_total_lacks_is_named():
    encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    model = nn.ModuleDict(
        {"custom": Custom(), "encoder": encoder, "bag": nn.Embedding(3, 4, max_norm=1.0)}
    )

    with torch.no_grad(), FlopsCounter(model) as counter:
        model["custom"]({"x": X, "ids": X}, scale=1)
        model["encoder"](torch.zeros(1, 3, 4))
        model["bag"](torch.tensor([1]))

    # The custom module called another one; the encoder ran as one fused op, and called none.
    assert counter.unknown_modules == ["encoder", "bag"]


def pruned(layer):
    return prune.random_unstructured(layer, "weight", amount=0.5)


def masked(layer):
    class Halves(nn.Module):
        def forward(self, weight):
            return weight / 2

    parametrize.register_parametrization(layer, "weight", Halves())
    return layer


@pytest.mark.parametrize(
    "wrap",
    [pruned, masked, weight_norm, spectral_norm, parametrizations.weight_norm,
     parametrizations.spectral_norm, parametrizations.orthogonal],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_layer_whose_weight_is_computed_counts_as_the_layer(wrap):
    model = wrap(nn.Linear(8, 4))

    with FlopsCounter(model) as counter:
        model(torch.zeros(2, 8))

    # 2 rows × 4 outputs × 8 multiply-adds × 2, and 8 biases. How the weight is made is not its own.
    assert (counter.matmul_flops, counter.vector_flops) == (128, 8)
    assert set(counter.unknown_modules) <= {"parametrizations.weight.0", "parametrizations.weight"}


class Doubles(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def test_a_total_of_which_nothing_is_known_is_not_zero():
    patched = nn.Linear(8, 4)
    patched.forward = lambda x: x @ patched.weight.T  # type: ignore[method-assign, assignment]
    for model in (Doubles(8, 4), patched, nn.Sequential(Doubles(8, 4))):
        with FlopsCounter(model) as counter:
            model(torch.zeros(2, 8))

        assert math.isnan(counter.total_flops)
        assert math.isnan(counter.matmul_flops)
        assert "a forward of its own" in next(iter(counter.why_unknown.values()))
        assert "unknown FLOPs by hooks" in repr(counter)
        with pytest.warns(UserWarning, match=r"lacks 1 modules, first .*count_flops sees inside"):
            assert math.isnan(calculate_flops_for_size(model, (2, 8)))


def test_a_counter_that_saw_no_call_counts_zero():
    assert FlopsCounter(Doubles(8, 4)).total_flops == 0


def test_a_size_for_a_model_of_words_makes_ids():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3))

    assert calculate_flops_for_size(model, (2, 5)) == 2 * 2 * 5 * 4 * 3 + 2 * 5 * 3


def test_a_size_for_a_hugging_face_model_makes_ids():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=64,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)

    with pytest.warns(UserWarning, match="the count lacks .* flopprof.count_flops sees inside"):
        flops = calculate_flops_for_size(model, (1, 16))

    # 16 tokens: q, k, v, o 4·2·32·32; MLP 3·2·32·64; head 2·32·64. Attention, norms and activation
    # are the library's own: what the warning is about.
    assert flops == 16 * (8_192 + 12_288 + 4_096)


def test_a_size_that_a_model_does_not_take_says_so():
    with pytest.raises(UsageError, match="does not take the input 2x5"):
        calculate_flops_for_size(small(), (2, 5))


def test_modules_are_listed_with_their_own_counts():
    model = nn.Sequential(small(), Functional(), nn.ReLU())

    with FlopsCounter(model) as counter:
        model(X)

    table = counter.by_module()
    assert table.columns.tolist() == [
        "module_path", "module_type", "calls", "matmul_flops", "vector_flops", "flops",
    ]  # fmt: skip
    assert table["module_path"].tolist() == ["", "0", "0.0", "0.1", "1", "2"]
    assert table["flops"].tolist()[:4] == [0, 0, 56, 8]
    assert math.isnan(table["flops"][4])
    assert table["flops"].sum() == counter.total_flops == 72


def test_flops_for_a_size_leave_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).double()
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)

    flops = calculate_flops_for_size(model, (2, 3))

    # 48 + 8, batch norm in training 7·8, dropout 2·8.
    assert flops == 128
    assert model.training
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert calculate_flops_for_size(model.eval(), (2, 3)) == 48 + 8 + 16
    assert not model.training


def test_flops_for_a_size_scale_with_the_batch():
    model = small()

    assert calculate_flops_for_size(model, (6, 3)) == 3 * calculate_flops_for_size(model, [2, 3])


def test_flops_for_a_size_clean_up_after_an_exception():
    model = nn.Sequential(nn.BatchNorm1d(3), Boom())

    with pytest.raises(ModelError, match="boom"):
        calculate_flops_for_size(model, (2, 3))

    assert not torch_module._global_forward_hooks
    assert model[0].num_batches_tracked == 0


def test_flops_for_a_size_work_on_the_meta_device():
    with torch.device("meta"):
        model = small()

    assert calculate_flops_for_size(model, (2, 3)) == 64


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "convnext_tiny"])
def test_products_agree_with_torchvision(name):
    models = pytest.importorskip("torchvision").models
    published = models.get_model_weights(name).DEFAULT.meta["_ops"]  # multiply-adds in 10⁹
    with torch.device("meta"):
        model = models.get_model(name).eval()

    with torch.no_grad(), FlopsCounter(model) as counter:
        model(torch.zeros(1, 3, 224, 224, device="meta"))

    assert counter.matmul_flops / 2e9 == pytest.approx(published, rel=0.01)


def test_the_counter_prints_its_total_and_what_it_lacks():
    class Product(nn.Module):
        def forward(self, x):
            return x @ x

    assert repr(FlopsCounter()) == "FlopsCounter(0 FLOPs by hooks)"
    with FlopsCounter(net := nn.Sequential(nn.Linear(4, 4), Product())) as counter:
        net(torch.ones(4, 4))
    # 2·4·4·4 + 16 of the linear; of the product, 128 more, hooks see nothing.
    assert repr(counter) == "FlopsCounter(144 FLOPs by hooks, without 1 unknown modules: ['1'])"
