"""Calling a model leaves it as it was, and says who is at fault where it raises."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import flopprof
from flopprof.capture.call import Inputs, as_inputs, guarded, unchanged
from flopprof.errors import ModelError, UsageError


class Calls(nn.Module):
    """A model whose forward is the given function."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        self.parts = nn.ModuleDict(modules)

    def forward(self, x):
        return self.function(self, x)


def raising(error):
    def forward(_model, x):
        raise error

    return Calls(forward)


def outer(x, mask):
    return x * mask


FLOATS, IDS = torch.zeros(2, 3, 8, 8), torch.full((1, 5), 9)
# The model, its input, its input as it is said, what the op said.
INPUTS_FAULT: dict[str, tuple[nn.Module, torch.Tensor, str, str]] = {
    "channels": (nn.Conv2d(4, 5, 3), FLOATS, "2x3x8x8", "to have 4 channels"),
    "features": (nn.Linear(4, 5), FLOATS, "2x3x8x8", "cannot be multiplied"),
    "a view's features": (
        Calls(lambda m, x: m.parts["fc"](x.flatten(1)), fc=nn.Linear(4, 5)),
        FLOATS, "2x3x8x8", "(2x192 and 4x5)",
    ),
    "dimensions": (nn.BatchNorm2d(3), IDS, "1x5:int64", "expected 4D input (got 2D input)"),
    "an element type": (nn.Conv2d(3, 4, 3), FLOATS.double(), "2x3x8x8:float64", "double"),
    "floats for ids": (nn.Embedding(9, 4), FLOATS, "2x3x8x8", "scalar types: Long, Int"),
    "ids too large": (nn.Embedding(9, 4), IDS, "1x5:int64", "IndexError: index out of range"),
    "too small": (nn.MaxPool2d(9), FLOATS, "2x3x8x8", "Output size is too small"),
    "recurrent": (nn.LSTM(4, 5), IDS[None].float(), "1x1x5", "Expected 4, got 5"),
    "a check by torch": (
        Calls(lambda m, x: torch._assert(x.shape[2] == 32, f"height 32, not {x.shape[2]}")),
        FLOATS, "2x3x8x8", "height 32, not 8",
    ),
}  # fmt: skip


def _torch_refuses_on_meta(model: nn.Module, x: torch.Tensor) -> bool:
    try:
        copy.deepcopy(model).to("meta")(x.to("meta"))
    except Exception:
        return True
    return False


# Meta tensors have no values, and which of their ops compare dtypes depends on torch's version.
ON_META = [name for name, (m, x, *_) in INPUTS_FAULT.items() if _torch_refuses_on_meta(m, x)]


@pytest.mark.parametrize(
    ("device", "name"), [("cpu", n) for n in INPUTS_FAULT] + [("meta", n) for n in ON_META]
)
def test_what_an_op_says_of_the_input_it_was_given_is_the_inputs_fault(device, name):
    model, x, spelled, said = INPUTS_FAULT[name]

    with pytest.raises(UsageError) as caught:
        guarded(copy.deepcopy(model).to(device), Inputs((x.to(device),)))()

    assert f"does not take the input {spelled}: " in caught.value.problem
    assert device == "meta" or said in caught.value.problem
    assert spelled in caught.value.remedy
    assert "1x3x224x224" not in caught.value.remedy


def test_of_several_inputs_the_one_at_fault_is_named():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.words = nn.Conv2d(3, 4, 3), nn.Embedding(9, 4)

        def forward(self, image, ids):
            return self.image(image).mean() + self.words(ids)

    with pytest.raises(UsageError, match="does not take the input ids=1x5:int64: IndexError"):
        guarded(Two(), Inputs((FLOATS,), {"ids": IDS}))()


def test_inputs_that_do_not_fit_the_signature_are_the_inputs_fault():
    with pytest.raises(UsageError, match="missing a required argument: 'input'") as caught:
        guarded(nn.ReLU(), Inputs((), {}))()
    with pytest.raises(UsageError, match="unexpected keyword argument 'ids'"):
        guarded(nn.ReLU(), Inputs((FLOATS,), {"ids": IDS}))()

    assert "(input: torch.Tensor)" in caught.value.remedy


MODELS_FAULT = {
    "KeyError": lambda m, x: {"shape": 1}["size"],
    "NameError": lambda m, x: undefined_input_size,  # type: ignore[name-defined]  # noqa: F821
    "AttributeError": lambda m, x: x.input_channels,
    "ZeroDivisionError": lambda m, x: x.shape[0] / 0,
    "IndexError": lambda m, x: x[:, 77],
    "TypeError": lambda m, x: outer(x),  # type: ignore[call-arg]
    "NotImplementedError": lambda m, x: nn.Module.forward(m, x),
    "RuntimeError": lambda m, x: x + x[..., 1:3],
    "internal shape": lambda m, x: m.parts["fc"](m.parts["conv"](x).flatten(1)),
    "own rule": lambda m, x: m.checks(x),
}


@pytest.mark.parametrize("name", MODELS_FAULT)
def test_what_goes_wrong_inside_is_the_models_fault(name):
    model = Calls(MODELS_FAULT[name], fc=nn.Linear(4, 5), conv=nn.Conv2d(3, 4, 3))

    with pytest.raises(ModelError, match="the model raised while running on 2x3x8x8: ") as caught:
        guarded(model, Inputs((FLOATS,)))()

    assert caught.value.exit_code == 6
    assert "another --input" in caught.value.remedy


class Stops(BaseException):
    pass


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), Stops("now")])
def test_a_forward_cannot_end_the_program(error):
    with pytest.raises(ModelError, match=type(error).__name__):
        flopprof.count_flops(raising(error), FLOATS)


def test_an_interrupt_stays_one():
    with pytest.raises(KeyboardInterrupt):
        guarded(raising(KeyboardInterrupt()), Inputs((FLOATS,)))()


@pytest.mark.parametrize("is_sorted", [True, False])
def test_a_packed_sequence_is_one_input(is_sorted):
    lengths = [5, 3] if is_sorted else [3, 5]
    packed = pack_padded_sequence(torch.zeros(5, 2, 3), lengths, enforce_sorted=is_sorted)
    model = nn.LSTM(3, 4)

    moved = as_inputs(packed, None, model).to("meta").args[0]
    count = flopprof.count_flops(model, packed)
    in_a_tuple = flopprof.count_flops(model, (packed,))

    assert moved.data.is_meta
    assert moved.batch_sizes.device.type == "cpu"
    assert count.flops == in_a_tuple.flops
    # 5 + 3 steps of 4 gates of 4 units over 3 inputs and 4 units: 8 · 16 · 7 multiply-adds
    assert count.matmul_flops == 2 * 8 * 16 * 7


def test_inputs_of_no_usable_kind_are_refused():
    with pytest.raises(UsageError, match="inputs are of type int") as caught:
        as_inputs(3, None, nn.ReLU())

    assert '"1x3x224x224"' in caught.value.remedy


class Remembers(nn.Module):
    """Counts its calls in one buffer, replaces another, and moves its weight."""

    written: torch.Tensor
    replaced: Any
    absent: Any

    def __init__(self, *, moves_weight=False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("written", torch.zeros(1))
        self.register_buffer("replaced", torch.zeros(1))
        self.register_buffer("absent", None)
        self.moves_weight = moves_weight

    def forward(self, x):
        self.written += 1
        self.replaced = self.replaced + 1
        self.absent = x
        if self.moves_weight:
            self.weight.data += 1
            self.weight.mul_(2)
        return x * self.weight


def test_what_a_forward_writes_to_its_buffers_is_undone():
    model = Remembers().train()
    buffers = dict(model.named_buffers())

    with unchanged(model):
        model(torch.zeros(2))
        assert model.written.tolist() == model.replaced.tolist() == [1.0]
    flopprof.profile(model, (2,), repeats=2, ceilings=False)

    assert model.training
    assert model.absent is None
    assert model.written.tolist() == model.replaced.tolist() == [0.0]
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())


def test_what_a_scripted_forward_writes_is_undone():
    class Counts(nn.Module):
        calls: torch.Tensor
        sums: torch.Tensor

        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))
            self.register_buffer("sums", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.sums = self.sums + x
            return x

    with pytest.warns((FutureWarning, DeprecationWarning)):  # it depends on torch's version
        model = torch.jit.trace(Counts(), torch.ones(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    with unchanged(model):
        model(torch.ones(1))
        assert model.calls != before["calls"]

    assert model.calls == before["calls"]
    assert model.sums == before["sums"]


def test_a_forward_that_changes_its_weights_is_told_of():
    model = Remembers(moves_weight=True)

    with pytest.warns(UserWarning, match="parameters change when it is called"):  # noqa: SIM117
        with unchanged(model):
            model(torch.zeros(2))


@pytest.mark.parametrize("moves_weight", [False, True])
def test_a_training_step_is_undone(moves_weight):
    model = Remembers(moves_weight=moves_weight).eval()
    model.weight.grad = torch.full((2,), 5.0)
    given, modes = model.weight.grad, list[bool]()

    with unchanged(model, training=True):
        modes.append(model.training)
        assert not [p for p in model.parameters() if p.grad is not None]
        with torch.enable_grad():
            (model.weight * 3).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        model(torch.zeros(2))
        assert model.weight.tolist() != [1.0, 1.0]

    modes.append(model.training)
    assert modes == [True, False]
    assert model.weight.grad is given
    assert given.tolist() == [5.0, 5.0]
    assert model.weight.tolist() == [1.0, 1.0]
    assert model.written.tolist() == [0.0]


def test_models_with_unusual_tensors_are_left_alone_too():
    class Unusual(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("sparse", torch.eye(3).to_sparse())
            self.register_buffer("expanded", torch.zeros(1, 1).expand(3, 3))
            self.register_buffer("nan", torch.full((1,), torch.nan))
            with torch.inference_mode():
                self.frozen = nn.Linear(3, 3)

        def forward(self, x):
            return self.frozen(x) + self.expanded

    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())

    # 3 rows of 3 outputs of 3 multiply-adds; 6 · 6 · 4 outputs of 3 · 3 · 3 multiply-adds
    assert flopprof.count_flops(Unusual(), (3, 3)).matmul_flops == 2 * 27
    assert flopprof.count_flops(lazy, (1, 3, 8, 8)).matmul_flops == 2 * 144 * 27


def nested(layout, *lengths, width):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a prototype
        rows = [torch.ones(length, width) for length in lengths]
        return torch.nested.nested_tensor(rows, layout=layout)


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_a_nested_tensor_is_counted_alike_with_and_without_time(layout):
    x = nested(layout, 3, 5, width=8)
    model = nn.Linear(8, 4, bias=False)

    count = flopprof.count_flops(model, x)
    run = flopprof.profile(model, x, ceilings=False, repeats=1)

    # 3 + 5 rows, 4 outputs of 8 multiply-adds.
    assert count.matmul_flops == run.totals.matmul_flops == 2 * 8 * 4 * 8 == 512
    assert count.run.provenance.called.input == run.provenance.called.input == "nested tensor of 2"
    # The outer aten::linear, recorded without sizes, only calls itself again on the values.
    assert count.flops_at_most == run.totals.flops_at_most == 512
    assert run.totals.coverage_frac == 1


def test_ops_on_a_nested_tensor_are_known_by_those_that_they_call_on_its_values():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.linear = nn.Linear(8, 4)

        def forward(self, x):
            return torch.nn.functional.relu(self.linear(self.norm(x))) * 2

    count = flopprof.count_flops(Block(), nested(torch.jagged, 3, 5, width=8))

    # 8 rows: layer norm 7 × 64, bias, relu and product 3 × 32; the layer 2 × 8 × 8 × 4.
    assert (count.matmul_flops, count.vector_flops) == (512, 448 + 96)
    assert count.flops_at_most == 512 + 448 + 96


def test_what_a_nested_tensor_cannot_do_is_an_error_of_ours():
    with pytest.raises((UsageError, ModelError), match="nested tensor of 2"):
        flopprof.count_flops(nn.Conv2d(3, 4, 3), nested(torch.strided, 3, 5, width=8))


def test_sparse_inputs_are_counted_where_their_values_are():
    class Product(nn.Module):
        def forward(self, a, b):
            return torch.sparse.mm(a, b)

    count = flopprof.count_flops(Product(), (torch.eye(4).to_sparse(), torch.ones(4, 3)))

    assert count.run.provenance.device.kind == "cpu"
