"""Read how code is named: "package.module:Class", with the arguments that it is to be called with.

Arguments are literals: numbers, texts, None, True, lists, tuples and dicts of them. They are parsed
and never evaluated, so what an argument says cannot run.
"""

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flopprof.errors import UsageError

_NAMED = re.compile(r"(?P<place>.+?):(?P<name>[A-Za-z_][\w.-]*)(?P<call>\(.*\))?", re.DOTALL)
_MAX_LETTERS = 10_000  # of arguments: Python's parser recurses
_EXAMPLES = (
    "--arch torchvision:resnet18, --arch my_net.py:build, --arch package.module:Class or "
    "--arch \"package.module:Class('small', depth=2)\""
)


@dataclass(frozen=True, slots=True)
class CodeName:
    """Code and the arguments that it is called with, as a user names them."""

    place: str  # FILE.py, a module or a library
    name: str  # in it; with dots for an attribute of a class
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Return the name as `--arch` takes it; `parse_code_name(name.text) == name`."""
        shown = [repr(value) for value in self.args]
        shown += [f"{key}={value!r}" for key, value in self.kwargs.items()]
        call = f"({', '.join(shown)})" if shown else ""
        return f"{self.place}:{self.name}{call}"


def parse_code_name(text: str) -> CodeName:
    """Return what "PLACE:NAME" or "PLACE:NAME(literal, key=literal)" says.

    Raises:
        UsageError: It names nothing, or an argument is no literal.
    """
    match = _NAMED.fullmatch(text)
    if match is None:
        raise UsageError(f"--arch {text!r} names no architecture", remedy=_EXAMPLES)
    args, kwargs = _literals(match["call"], text) if match["call"] else ((), {})
    return CodeName(match["place"], match["name"], args, kwargs)


def _literals(call: str, text: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of "(…)", positional and by name."""
    try:
        if len(call) > _MAX_LETTERS:
            raise ValueError(f"the arguments have more than {_MAX_LETTERS} letters")
        node = ast.parse(f"f{call}", mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError("it is not one call")
        args = tuple(ast.literal_eval(value) for value in node.args)
        kwargs = {}
        for keyword in node.keywords:
            if keyword.arg is None or keyword.arg in kwargs:
                raise ValueError("it has ** or names an argument twice")
            kwargs[keyword.arg] = ast.literal_eval(keyword.value)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        fact = f"--arch {text!r}: its arguments are no literals: {reason}"
        remedy = (
            "write numbers, 'texts', None, True, lists, tuples or dicts of them; for anything "
            "else a function in a file: --arch my_net.py:build"
        )
        raise UsageError(fact, remedy=remedy) from error
    return args, kwargs


def read_arguments(value: Mapping[str, Any] | str) -> dict[str, Any]:
    """Return the keyword arguments that `--arch-args` says: a mapping, JSON or a Python dict.

    Raises:
        UsageError: They are none, or no literals.
    """
    arguments: Any = value
    if isinstance(value, str):
        arguments = _parsed(value)
    if not isinstance(arguments, Mapping):
        raise _no_arguments(value, "it is no dict")
    for key, item in arguments.items():
        if not isinstance(key, str) or not key.isidentifier():
            raise _no_arguments(value, f"{key!r} is not the name of an argument")
        if not _is_literal(item):
            raise _no_arguments(value, f"{key} is no literal")
    return dict(arguments)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip()) if len(text) <= _MAX_LETTERS else None
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise _no_arguments(text, str(error).partition("\n")[0]) from error


def _is_literal(value: Any) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return False


def _no_arguments(value: Any, fact: str) -> UsageError:
    shown = repr(value)[:100]
    remedy = """--arch-args '{"model": "tiny"}': JSON, literals only"""
    return UsageError(f"--arch-args {shown}: {fact}", remedy=remedy)


def with_arguments(text: str, arguments: Mapping[str, Any] | None) -> str:
    """Return the name of code with these keyword arguments besides its own.

    Raises:
        UsageError: It names nothing, or has one of them already.
    """
    if not arguments:
        return text
    code = parse_code_name(text)
    twice = sorted(set(code.kwargs) & set(arguments))
    if twice:
        fact = f"the argument {twice[0]!r} is in --arch and in --arch-args"
        raise UsageError(fact, remedy="give it once")
    return CodeName(code.place, code.name, code.args, {**code.kwargs, **arguments}).text
