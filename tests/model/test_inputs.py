import pytest
import torch

from flopprof.errors import UsageError
from flopprof.model.inputs import (
    InputSpec,
    TensorSpec,
    ValueSpec,
    describe_inputs,
    make_inputs,
    parse_input,
    specs_of,
    split_specs,
    with_floats,
)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("1x3x224x224", InputSpec((1, 3, 224, 224))),
        ("1x3x224x224:float16", InputSpec((1, 3, 224, 224), "float16")),
        ("ids=1x128:int64", InputSpec((1, 128), "int64", "ids")),
        ("mask=1x128:bool", InputSpec((1, 128), "bool", "mask")),
        ("ids=1x128:int64:0-999", InputSpec((1, 128), "int64", "ids", 0, 999)),
        ("1x3:int64:-5-7", InputSpec((1, 3), "int64", None, -5, 7)),
        ("t=()", InputSpec((), "float32", "t")),
        ("t=():int64", InputSpec((), "int64", "t")),
        ("5:float32", InputSpec((5,))),
        ("5", ValueSpec(5)),
        ("sr=16000", ValueSpec(16000, "sr")),
        ("scale=-0.5", ValueSpec(-0.5, "scale")),
        ("on=True", ValueSpec(value=True, name="on")),
        ("off=False", ValueSpec(value=False, name="off")),
        ("x=None", ValueSpec(None, "x")),
        ("mode='it is [fast], x=1'", ValueSpec("it is [fast], x=1", "mode")),
        ("t=tensor(5)", ValueSpec(TensorSpec(5), "t")),
        ("t=tensor([[1, 2], [3, 4]]):int32", ValueSpec(TensorSpec([[1, 2], [3, 4]], "int32"), "t")),
        ("[]", ValueSpec([])),
        ("[1x3, 2]", ValueSpec([InputSpec((1, 3)), 2])),
        ("(1x3, 'a',)", ValueSpec((InputSpec((1, 3)), "a"))),
        (
            "b={'image': 1x3, 'more': [{1: None}]}",
            ValueSpec({"image": InputSpec((1, 3)), "more": [{1: None}]}, "b"),
        ),
    ],
)
def test_a_spec_is_read_and_written_back_the_same(text, spec):
    assert parse_input(text) == spec
    assert spec.text == text


def test_other_spellings_mean_the_same():
    assert parse_input(" 1×3,8X8:bf16 ") == InputSpec((1, 3, 8, 8), "bfloat16")
    assert parse_input("2:long").text == "2:int64"
    assert parse_input("on=true") == parse_input("on=True")
    assert parse_input("x=null") == parse_input("x=None")
    assert parse_input("1e3") == ValueSpec(1000.0)
    assert parse_input("[1x3,1x4]") == parse_input(" [ 1x3 , 1x4 ] ")
    assert parse_input('{a: 1x3:int64:0-9, "b" : 2}').text == "{'a': 1x3:int64:0-9, 'b': 2}"


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
        ("1x3:int64:8-7", "'8-7' is not a range"),
        ("1x3:uint8:0-256", "uint8 does not reach 256"),
        ("1x3:int8:-129-0", "int8 does not reach -129"),
        ("1x3:uint8:-1-0", "uint8 does not reach -1"),
        ("mode=fast", "'fast' is not a size; a text needs quotes"),
        ("[1x3", "a comma or ']' is wanted"),
        ("[1x3] 2", "'2' stands behind it"),
        ("{1x3}", "a dict has 'key: value'"),
        ("tensor('a')", "tensor(…) takes a number"),
        ("tensor(1, 2)", "tensor(…) takes a number"),
        ("t=tensor(5):flot", "'flot' is not an element type"),
        ("[" * 50 + "]" * 50, "lists are more than 20 deep"),
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
    assert set(kwargs["ids"].unique().tolist()) == {5, 6, 7, 8, 9}  # 64 draws; both ends occur
    assert kwargs["mask"].tolist() == [True] * 4


def test_integers_without_a_range_are_0_and_1():
    (ids,), _ = make_inputs([parse_input("1x64:int32")], device="cpu")

    assert ids.dtype == torch.int32
    assert set(ids.unique().tolist()) == {0, 1}


def test_dtype_replaces_floating_dtypes_only():
    specs = [parse_input("2x1"), parse_input("2:float64"), parse_input("2:int64")]

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

    assert text == "1x3, [():int64], mask=1x8:bool, flag=True"


def test_values_are_given_as_they_are_and_tensors_in_them_are_made():
    texts = ["16000", "t=tensor([1.5, 2])", "lens=tensor(7)", "b={image: [2x3:float16, None]}"]

    args, kwargs = make_inputs([parse_input(text) for text in texts], device="cpu", dtype="float64")

    assert args == (16000,)
    assert kwargs["t"].tolist() == [1.5, 2.0]
    assert (kwargs["t"].dtype, kwargs["lens"].dtype) == (torch.float64, torch.int64)
    assert kwargs["lens"].shape == ()
    image, nothing = kwargs["b"]["image"]
    assert (image.shape, image.dtype, nothing) == ((2, 3), torch.float64, None)


def test_specs_in_one_text_are_split_outside_of_brackets_and_quotes():
    text = " 1x3  sr=16000, mode='a b' x=[1x3, 2x4] y={a: 1, b: (1x2, 3)} "

    assert split_specs(text) == [
        "1x3",
        "sr=16000",
        "mode='a b'",
        "x=[1x3, 2x4]",
        "y={a: 1, b: (1x2, 3)}",
    ]


def test_a_size_of_one_dimension_is_a_tensors():
    assert specs_of((5,)) == [InputSpec((5,))]
    assert specs_of([(1, 3), (4,)]) == [InputSpec((1, 3)), InputSpec((4,))]


def test_the_models_own_dtype_reaches_tensors_in_lists():
    spec = with_floats(parse_input("[1x3, 1x4:int64, 2]"), "float16")

    assert spec.text == "[1x3:float16, 1x4:int64, 2]"
