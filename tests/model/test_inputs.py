import pytest
import torch

from flopprof.errors import UsageError
from flopprof.model.inputs import InputSpec, describe_inputs, make_inputs, parse_input


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("1x3x224x224", InputSpec((1, 3, 224, 224))),
        ("1x3x224x224:float16", InputSpec((1, 3, 224, 224), "float16")),
        ("ids=1x128:int64", InputSpec((1, 128), "int64", "ids")),
        ("mask=1x128:bool", InputSpec((1, 128), "bool", "mask")),
        ("ids=1x128:int64:0-1000", InputSpec((1, 128), "int64", "ids", 0, 1000)),
        ("t=()", InputSpec((), "float32", "t")),
        ("5", InputSpec((5,))),
    ],
)
def test_a_spec_is_read_and_written_back_the_same(text, spec):
    assert parse_input(text) == spec
    assert spec.text == text


def test_other_spellings_mean_the_same():
    assert parse_input(" 1×3,8X8:bf16 ") == InputSpec((1, 3, 8, 8), "bfloat16")
    assert parse_input("2:long").text == "2:int64"


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("", "'' is not a size"),
        ("1x3xaxb", "'a' is not a size"),
        ("1x-3", "'-3' is not a size"),
        ("1xx3", "'' is not a size"),
        ("1x3:flot16", "'flot16' is not an element type"),
        ("1x3:qint8", "'qint8' is not an element type"),
        ("my ids=1x3", "'my ids' is not the name"),
        ("=1x3", "'' is not the name"),
        ("1x3:int64:5", "'5' is not a range"),
        ("1x3:int64:7-7", "'7-7' is not a range"),
        ("1x3:uint8:0-1000", "uint8 does not reach 1000"),
        ("1x3:float32:0-5", "a range is for integers"),
        ("1x3:int64:0-5:9", "'0-5:9' is not a range"),
    ],
)
def test_a_bad_spec_states_the_fact_and_an_example(text, fact):
    with pytest.raises(UsageError, match="input") as caught:
        parse_input(text)

    assert fact in caught.value.problem
    assert "--input 1x3x224x224:float16" in caught.value.remedy


def test_inputs_are_seeded_and_leave_the_global_random_state_alone():
    specs = [parse_input("2x3"), parse_input("ids=1x64:int64:5-9"), parse_input("mask=4:bool")]
    before = torch.get_rng_state()

    args, kwargs = make_inputs(specs, device="cpu", seed=7)
    again, _ = make_inputs(specs, device="cpu", seed=7)
    other, _ = make_inputs(specs, device="cpu", seed=8)

    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(args[0], again[0])
    assert not torch.equal(args[0], other[0])
    assert set(kwargs["ids"].unique().tolist()) == {5, 6, 7, 8}  # 64 draws; the end is left out
    assert kwargs["mask"].tolist() == [True] * 4


def test_integers_without_a_range_are_0_and_1():
    (ids,), _ = make_inputs([parse_input("1x64:int32")], device="cpu")

    assert ids.dtype == torch.int32
    assert set(ids.unique().tolist()) == {0, 1}


def test_dtype_replaces_floating_dtypes_only():
    specs = [parse_input("2"), parse_input("2:float64"), parse_input("2:int64")]

    args, _ = make_inputs(specs, device="cpu", dtype="bfloat16")

    assert [arg.dtype for arg in args] == [torch.bfloat16, torch.bfloat16, torch.int64]


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "complex64", "uint16", "float64", "int8"])
def test_every_dtype_that_a_spec_may_name_can_be_made(dtype):
    (made,), _ = make_inputs([parse_input(f"2x2:{dtype}")], device="cpu")
    (shape_only,), _ = make_inputs([parse_input(f"2x2:{dtype}")], device="meta")

    assert made.dtype == shape_only.dtype == getattr(torch, dtype)
    assert shape_only.is_meta


def test_one_name_twice_and_too_large_an_input_are_usage_errors():
    twice = [parse_input("a=1"), parse_input("a=2")]

    with pytest.raises(UsageError, match="two inputs are called 'a'"):
        make_inputs(twice, device="cpu")
    with pytest.raises(UsageError, match="cannot be made on cpu"):
        make_inputs([parse_input("999999x9999999")], device="cpu")  # 40 TB of float32
    with pytest.raises(UsageError, match="cannot be made on meta"):
        make_inputs([parse_input("999999999999x999999999999")], device="meta")


def test_inputs_are_described_as_specs():
    kwargs = {"mask": torch.zeros(1, 8, dtype=torch.bool), "flag": True}

    text = describe_inputs((torch.zeros(1, 3), [torch.tensor(1)]), kwargs)

    assert text == "1x3, [():int64], mask=1x8:bool, flag=bool"
