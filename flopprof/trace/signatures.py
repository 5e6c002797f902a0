"""What calls of one op with equal arguments have in common: shapes, types and FLOPs, found once."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from flopprof import dtypes
from flopprof.formulas import COMPILED, Formula, OpCall, OpFormula, Work
from flopprof.formulas.external import find_op_formula
from flopprof.formulas.generated import knows_bytes
from flopprof.trace.decode import NO_ARGUMENTS, NOTHING, Arguments
from flopprof.trace.salvage import mend
from flopprof.units import safe_text, shapes_text

_REMEMBERED = 100_000  # signatures kept for later traces, of no more than a few hundred bytes each
_LONGEST_KEY = 4096  # bytes of arguments; longer ones are worked out again
_EVALUATED: dict[tuple[Any, ...], "Signature"] = {}  # by formula and call
_WRITTEN: dict[tuple[str, bytes, bytes, bytes, bytes], "_Read"] = {}  # as calls are written


@dataclass(slots=True)
class Signature:
    """What all calls of one op with one set of arguments have in common."""

    op: str
    kind: str
    shapes: str
    dtype: str
    work: Work | None
    knows_bytes: bool  # whether the formula's traffic is that of these tensors
    call: OpCall


class _Read(NamedTuple):
    """What a call's arguments as they are written hold, kept for later traces.

    Attributes:
        key: The name, and the arguments in one spelling.
        has_values: Whether there are values of what is no tensor.
        has_shapes: Whether there are shapes.
        function: The formula that was asked; None without one.
        signature: What it said.
    """

    key: tuple[str, bytes]
    has_values: bool
    has_shapes: bool
    function: OpFormula | None
    signature: Signature


@dataclass(slots=True)
class Signatures:
    """The signatures of one trace, numbered as they come."""

    every: list[Signature] = field(default_factory=list)
    has_values: bool = False  # whether any call has Concrete Inputs
    has_shapes: bool = False  # whether any has Input Dims, though they may be no shapes
    warnings: list[str] = field(default_factory=list)
    _as_written: dict[tuple[str, bytes, bytes, bytes, bytes], int] = field(default_factory=dict)
    _numbers: dict[tuple[str, bytes], int] = field(default_factory=dict)
    _odd: set[str] = field(default_factory=set)  # names of ops with arguments that are none
    _formulas: dict[str, Formula | None] = field(default_factory=dict)

    def number(self, name: str, args: Arguments) -> int:
        """Return the number of this op with these arguments; its formula is evaluated once."""
        dims = args.dims if args.dims is not NOTHING else args.dims_of_2021
        texts = (bytes(dims), bytes(args.types), bytes(args.values), bytes(args.strides))
        written = (name, *texts)
        number = self._as_written.get(written)
        if number is None:
            number = self._known(written)
            if number is None:
                number = self._number(name, *texts)
            self._as_written[written] = number
        return number

    def _known(self, written: tuple[str, bytes, bytes, bytes, bytes]) -> int | None:
        """Return the number of a call that an earlier trace has written alike; None if none has."""
        read = _WRITTEN.get(written)
        if read is None:
            return None
        formula = self._formula(written[0])
        if read.function is not (None if formula is None else formula.function):
            return None
        number = self._numbers.get(read.key)
        if number is None:
            self.has_values = self.has_values or read.has_values
            self.has_shapes = self.has_shapes or read.has_shapes
            number = self._numbers[read.key] = len(self.every)
            self.every.append(read.signature)
        return number

    def _formula(self, name: str) -> Formula | None:
        """Return the formula of an op, which is looked for once."""
        if name.startswith("Torch-Compiled Region"):  # its own time is that of generated code
            name = COMPILED
        if name not in self._formulas:
            self._formulas[name] = find_op_formula(name)
        return self._formulas[name]

    def _number(
        self, name: str, dims: bytes, types_text: bytes, values_text: bytes, strides_text: bytes
    ) -> int:
        """Return the number of a call whose arguments are written as no earlier call's."""
        shapes = self._list(name, dims)
        types = self._list(name, types_text)
        values = self._list(name, values_text)
        strides = self._list(name, strides_text)
        if strides and strides.count([]) == shapes.count([]):
            strides = []  # they change nothing, unless a sparse tensor has a shape and none
        try:
            arguments = b""
            if shapes or types or values:
                arguments = orjson.dumps((shapes, types, values, strides))
            key = (name, arguments)
        except TypeError:  # lists in lists, deeper than any argument's
            return self.number(name, NO_ARGUMENTS)
        number = self._numbers.get(key)
        if number is None:
            self.has_values = self.has_values or bool(values)
            self.has_shapes = self.has_shapes or bool(shapes)
            number = len(self.every)
            self._numbers[key] = number
            told = len(self.warnings)
            call = (self._shapes(name, shapes), types, values, self._shapes(name, strides))
            signature = self._evaluated(name, key, call)
            self.every.append(signature)
            if told == len(self.warnings) and len(key[1]) <= _LONGEST_KEY:
                formula = self._formula(name)
                function = None if formula is None else formula.function
                written = (name, dims, types_text, values_text, strides_text)
                _remember(
                    _WRITTEN, written, _Read(key, bool(values), bool(shapes), function, signature)
                )
        return number

    def _list(self, name: str, text: bytes) -> list[Any]:
        """Return the list that JSON text holds; an empty one where it holds none."""
        if not text:
            return []
        for attempt in (text, mend(text)):
            try:
                value = orjson.loads(attempt)
            except orjson.JSONDecodeError:
                continue
            return value if isinstance(value, list) else []
        self._warn(name, f"arguments of {safe_text(name)} are no JSON: left out")
        return []

    def _warn(self, name: str, text: str) -> None:
        """Warn once of an op."""
        if name not in self._odd:
            self._odd.add(name)
            self.warnings.append(text)

    def _shapes(self, name: str, shapes: list[Any]) -> tuple[Any, ...]:
        """Return the arguments' shapes; none, with a warning, where they are no lists of sizes."""
        if all(isinstance(shape, list) for shape in shapes):
            return _nested(shapes)
        text = safe_text(shapes, 60)
        self._warn(name, f"the shapes of {safe_text(name)} are {text}, no lists: left out")
        return ()

    def _evaluated(
        self, name: str, key: tuple[str, bytes], call: tuple[Any, Any, Any, Any]
    ) -> Signature:
        """Return the signature, from an earlier trace where its formula is the same."""
        formula = self._formula(name)
        if name.startswith("Torch-Compiled Region"):
            name = COMPILED
        same = (None if formula is None else formula.function, *key)
        signature = _EVALUATED.get(same)
        if signature is None:
            warnings_before = len(self.warnings)
            signature = _evaluate(name, formula, *call, self.warnings)
            if warnings_before == len(self.warnings) and len(key[1]) <= _LONGEST_KEY:
                _remember(_EVALUATED, same, signature)
        return signature


def _remember(memory: dict[Any, Any], key: Any, value: Any) -> None:
    if len(memory) >= _REMEMBERED:
        memory.clear()
    memory[key] = value


def forget_signatures() -> None:
    """Forget what was evaluated for earlier traces."""
    _EVALUATED.clear()
    _WRITTEN.clear()


def _evaluate(
    name: str,
    formula: Formula | None,
    shapes: Any,
    types: Any,
    values: Any,
    strides: Any,
    warnings: list[str],
) -> Signature:
    parsed = tuple(dtypes.parse_dtype(str(kind)) for kind in types)
    tensors = [kind for kind in parsed if dtypes.itemsize(kind)]
    floating = [kind for kind in tensors if dtypes.is_floating(kind)]
    dtype = (floating or tensors or [""])[0]
    call = OpCall(
        op=name,
        shapes=shapes,
        strides=strides,
        itemsize=dtypes.itemsize(dtype) or 4,
        dtypes=parsed,
        values=tuple(str(value) for value in values),
    )
    work = work_of(formula, call, warnings)
    kind = "unknown" if formula is None else formula.kind
    source = "none" if formula is None else formula.source
    if work is not None and not (work.matmul_flops or work.vector_flops or work.flops_at_most):
        kind = "free"  # integers, or a dropout in eval
    has_bytes = bool(tensors) and source != "torch" and parsed[:1] != ("TensorList",)
    if source == "generated":
        has_bytes = has_bytes and knows_bytes(call)
    return Signature(name, kind, shapes_text(call.shapes), dtype, work, has_bytes, call)


def work_of(formula: Formula | None, call: OpCall, warnings: list[str]) -> Work | None:
    """Return what the formula says of a call; None, and perhaps a warning, where it does not."""
    if formula is None:
        return None
    try:
        work = formula(call)
        if work is not None:
            figures = map(float, (work.matmul_flops, work.vector_flops, work.min_bytes))
            if not all(0 <= figure < math.inf for figure in figures):
                raise ValueError("it counts less than nothing, or without end")
    except (LookupError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        warnings.append(
            f"the formula of {call.op} does not fit {shapes_text(call.shapes)}: "
            f"{type(error).__name__}: {error}"
        )
        return None
    return work


def _nested(value: Any, depth: int = 3) -> tuple[Any, ...]:
    """Return sizes, lists of sizes and lists of such lists, as tuples; what is none is empty."""
    if not isinstance(value, list) or not depth:
        return ()
    if all(isinstance(item, list) for item in value):
        return tuple(_nested(item, depth - 1) for item in value)
    return tuple(value) if all(type(item) is int and item >= 0 for item in value) else ()
