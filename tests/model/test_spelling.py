"""Code is named with its arguments, which are literals and never evaluated."""

import pytest

from flopprof.errors import UsageError
from flopprof.model.spelling import (
    CodeName,
    parse_code_name,
    read_arguments,
    with_arguments,
)
from flopprof.settings import Settings


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("torchvision:resnet18", CodeName("torchvision", "resnet18")),
        ("open_clip:ViT-B-32", CodeName("open_clip", "ViT-B-32")),
        ("timm:vit_tiny_patch16_224.augreg", CodeName("timm", "vit_tiny_patch16_224.augreg")),
        ("/a b/my_net.py:build", CodeName("/a b/my_net.py", "build")),
        ("C:/nets/my_net.py:build", CodeName("C:/nets/my_net.py", "build")),
        ("a.b:Crepe('tiny')", CodeName("a.b", "Crepe", ("tiny",))),
        ("a.b:C('x:y()')", CodeName("a.b", "C", ("x:y()",))),
        (
            "a.b:C(-1, [2, 3.5], pair=(1, None), on=True, more={'a': 1})",
            CodeName("a.b", "C", (-1, [2, 3.5]), {"pair": (1, None), "on": True, "more": {"a": 1}}),
        ),
        ("a:C.small(\n  1,\n)", CodeName("a", "C.small", (1,))),
    ],
)
def test_a_name_is_read_and_written_back_the_same(text, name):
    assert parse_code_name(text) == name
    assert parse_code_name(name.text) == name


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("resnet18", "names no architecture"),
        (":build", "names no architecture"),
        ("a.py:", "names no architecture"),
        ("a.b:C(1", "names no architecture"),
        ("a.b:C(print(1))", "no literals"),
        ("a.b:C(__import__('os').system('id'))", "no literals"),
        ("a.b:C(x)", "no literals"),
        ("a.b:C(**{'a': 1})", "no literals"),
        ("a.b:C(*[1])", "no literals"),
        ("a.b:C(1)(2)", "no literals"),
        ("a.b:C(a=1, a=2)", "no literals"),
        ("a.b:C(f'{1}')", "no literals"),
        ("a.b:C([i for i in (1, 2)])", "no literals"),
        ("a.b:C(1 if True else 2)", "no literals"),
        ("a.b:C(" + "(" * 500 + ")" * 500 + ")", "no literals"),
        ("a.b:C('" + "x" * 20_000 + "')", "more than 10000 letters"),
    ],
)
def test_what_is_no_name_or_no_literal_is_a_usage_error(text, fact):
    with pytest.raises(UsageError, match=fact):
        parse_code_name(text)


@pytest.mark.parametrize(
    "given",
    [
        '{"model": "tiny", "depth": 2, "on": true, "no": null}',
        "{'model': 'tiny', 'depth': 2, 'on': True, 'no': None}",
        {"model": "tiny", "depth": 2, "on": True, "no": None},
    ],
)
def test_arguments_are_json_a_python_dict_or_a_mapping(given):
    arguments = read_arguments(given)

    assert arguments == {"model": "tiny", "depth": 2, "on": True, "no": None}
    text = with_arguments("a.b:C(1)", arguments)
    assert parse_code_name(text) == CodeName("a.b", "C", (1,), arguments)


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ("tiny", "malformed"),
        ("[1]", "it is no dict"),
        ('{"a b": 1}', "'a b' is not the name of an argument"),
        ("{1: 2}", "1 is not the name of an argument"),
        ("{'a': open('f')}", "malformed"),
        ({"a": object()}, "a is no literal"),
        ({"a": float("inf")}, "a is no literal"),
    ],
)
def test_other_arguments_are_refused_by_the_settings_already(given, fact):
    with pytest.raises(UsageError, match=fact):
        Settings(arch="a.b:C", arch_args=given)


def test_an_argument_that_is_given_twice_is_a_usage_error():
    with pytest.raises(UsageError, match="'a' is in --arch and in --arch-args"):
        with_arguments("a.b:C(a=1)", {"a": 2})
