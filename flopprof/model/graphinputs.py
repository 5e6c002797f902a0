"""Give an ONNX graph's inputs their sizes and values, and ask for those that it leaves open."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flopprof.errors import UsageError
from flopprof.model.inputs import InputSpec, Spec
from flopprof.units import safe_text

_SOUND = re.compile("(?i)wav|audio|sound|samples|pcm|speech")
_NUMBERS = {"float": "float32", "double": "float64"}  # element types that ONNX calls otherwise


def element_type(name: str) -> str:
    """Return an element type as we spell it, by ONNX's name of it."""
    lower = name.lower()
    return _NUMBERS.get(lower, re.sub("^float8e", "float8_e", lower))


def give_inputs(graph: Any, path: Path, specs: Sequence[Spec]) -> tuple[dict[str, Any], str, str]:
    """Write the sizes of the inputs into the graph; return values that were given, and a text."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in weights}
    chosen = _by_name(inputs, specs, path)
    values: dict[str, Any] = {}
    symbols: dict[str, int] = {}
    for name, spec in chosen.items():
        if isinstance(spec, InputSpec):
            _check_rank(inputs[name], spec, path)
            for dim, size in zip(_dims(inputs[name]), spec.shape, strict=True):
                if dim.dim_param:
                    symbols[dim.dim_param] = size
                dim.dim_value = size
        else:
            values[name] = _shaped(spec.value, inputs[name])
    is_default = _fill_batch(inputs, symbols)
    lacking = {name: v for name, v in inputs.items() if any(d.dim_value < 1 for d in _dims(v))}
    if lacking:
        opened = "; ".join(f"{name} is {_text_of(value)}" for name, value in lacking.items())
        example = " ".join(f"--input {n}={_example(v)}" for n, v in lacking.items())
        fact = f"{safe_text(path)}: sizes of its inputs are open: {safe_text(opened)}"
        command = safe_text(f"flopprof count {path} {example}", 1000)
        raise UsageError(fact, remedy=f"give them, such as {command}")
    shown = {name: str(values.get(name, _text_of(value))) for name, value in inputs.items()}
    text = ", ".join(f"{name}={spelled}" for name, spelled in shown.items())
    source = "the graph's own, batch 1" if is_default else "the graph's own"
    if specs:
        source = "--input"
    return values, safe_text(text), source


def _shaped(value: Any, declared: Any) -> Any:
    """Return a value as an array of the rank that the input has: a number may be a list of one."""
    import numpy as np

    array = np.asarray(value)
    dims = _dims(declared)
    if array.size != 1 or any(dim.dim_value > 1 for dim in dims):
        return array
    for dim in dims:
        dim.dim_value = 1
    return array.reshape([1] * len(dims))


def _by_name(inputs: Mapping[str, Any], specs: Sequence[Spec], path: Path) -> dict[str, Spec]:
    free = [name for name in inputs if name not in {spec.name for spec in specs}]
    chosen: dict[str, Spec] = {}
    for spec in specs:
        name = spec.name or (free.pop(0) if free else "")
        if name not in inputs:
            fact = f"{safe_text(path)} has no input {name!r}; it has {', '.join(inputs)}"
            raise UsageError(safe_text(fact), remedy=f"--input {next(iter(inputs), 'x')}=SHAPE")
        chosen[name] = spec
    return chosen


def _dims(value: Any) -> Any:
    return value.type.tensor_type.shape.dim


def _check_rank(value: Any, spec: InputSpec, path: Path) -> None:
    dims = _dims(value)
    fixed = [dim.dim_value for dim in dims]
    fits = len(dims) == len(spec.shape) and all(
        size < 1 or size == size_given for size, size_given in zip(fixed, spec.shape, strict=True)
    )
    if not fits and value.type.tensor_type.HasField("shape"):
        fact = f"{safe_text(path)}: the input {value.name} is {_text_of(value)}, not {spec.text}"
        raise UsageError(safe_text(fact), remedy=f"--input {safe_text(value.name)}=SHAPE")
    if len(dims) != len(spec.shape):  # nothing is said of it
        for _ in spec.shape:
            dims.add()


def _fill_batch(inputs: Mapping[str, Any], symbols: Mapping[str, int]) -> bool:
    """Fill in sizes of a name that was given elsewhere, and a batch of 1 where it alone is open."""
    is_default = False
    for value in inputs.values():
        dims = list(_dims(value))
        for dim in dims:
            if dim.dim_value < 1 and dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
        opened = [place for place, dim in enumerate(dims) if dim.dim_value < 1]
        if opened == [0] and len(dims) > 1:
            dims[0].dim_value = 1
            is_default = True
    return is_default


def _text_of(value: Any) -> str:
    sizes = [str(d.dim_value) if d.dim_value > 0 else d.dim_param or "?" for d in _dims(value)]
    between = "x" if all(size.isdecimal() for size in sizes) else " × "
    return between.join(sizes) or "()"


def _example(value: Any) -> str:
    """Return a shape that may be given: the sizes that are open are common ones, of no meaning."""
    from onnx import TensorProto

    dims = _dims(value)
    kind = element_type(TensorProto.DataType.Name(value.type.tensor_type.elem_type))
    names = f"{value.name} {' '.join(dim.dim_param for dim in dims)}"
    if _SOUND.search(names):
        common = 16_000  # a second
    elif len(dims) == 4 and all(dim.dim_value < 1 for dim in (dims[2], dims[3])):
        common = 224  # an image's side
    else:
        common = 128
    open_sizes = [1, *[common] * (len(dims) - 1)]  # the first is the batch
    sizes = [
        dim.dim_value if dim.dim_value > 0 else open_size
        for dim, open_size in zip(dims, open_sizes, strict=False)
    ]
    sizes = [3 if place == 1 and size == 224 else size for place, size in enumerate(sizes)]
    spelled = "x".join(map(str, sizes))
    return f"{spelled}:{kind}" if len(sizes) == 1 else spelled  # else it would be a number
