"""Give an ONNX graph's inputs their sizes and values, and ask for those that it leaves open."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flopprof.errors import UsageError
from flopprof.model.inputs import InputSpec, Spec
from flopprof.units import safe_text

_SOUND = re.compile("(?i)wav|audio|sound|samples|pcm|speech")
_OTHER_NAMES = {"float": "float32", "double": "float64"}  # what ONNX calls element types
_SECOND = 16_000  # samples of sound
_IMAGE_SIDE = 224
_COMMON_SIZE = 128


def element_type(name: str) -> str:
    """Return an element type as we spell it, by ONNX's name of it."""
    lower = name.lower()
    return _OTHER_NAMES.get(lower, re.sub("^float8e", "float8_e", lower))


def give_inputs(graph: Any, path: Path, specs: Sequence[Spec]) -> tuple[dict[str, Any], str, str]:
    """Write the sizes of the inputs into the graph.

    Returns:
        The values that were given for inputs, by name; all inputs as a text; who said their sizes.

    Raises:
        UsageError: An input is not the graph's, does not fit it, or has a size that nothing says.
    """
    weights = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in weights}
    chosen = _by_name(inputs, specs, path)
    values: dict[str, Any] = {}
    symbols: dict[str, int] = {}
    for name, spec in chosen.items():
        if isinstance(spec, InputSpec):
            _check_fit(inputs[name], spec, path)
            for dim, size in zip(_dims(inputs[name]), spec.shape, strict=True):
                if dim.dim_param:
                    symbols[dim.dim_param] = size
                dim.dim_value = size
        else:
            values[name] = _shaped(spec.value, inputs[name])
    is_default = _fill_batch(inputs, symbols)
    open_inputs = {
        name: value
        for name, value in inputs.items()
        if any(dim.dim_value < 1 for dim in _dims(value))
    }
    if open_inputs:
        opened = "; ".join(f"{name} is {_text_of(value)}" for name, value in open_inputs.items())
        example = " ".join(
            f"--input {name}={_example(value)}" for name, value in open_inputs.items()
        )
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
    """Return the specs by the input that each is for; those without a name go in order."""
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


def _check_fit(value: Any, spec: InputSpec, path: Path) -> None:
    """Raise unless the spec has the input's rank and fixed sizes; add dims where none are said."""
    dims = _dims(value)
    fits = len(dims) == len(spec.shape) and all(
        dim.dim_value < 1 or dim.dim_value == size
        for dim, size in zip(dims, spec.shape, strict=True)
    )
    if not fits and value.type.tensor_type.HasField("shape"):
        fact = f"{safe_text(path)}: the input {value.name} is {_text_of(value)}, not {spec.text}"
        raise UsageError(safe_text(fact), remedy=f"--input {safe_text(value.name)}=SHAPE")
    if len(dims) != len(spec.shape):  # the graph says no shape
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
    sizes = [
        str(dim.dim_value) if dim.dim_value > 0 else dim.dim_param or "?" for dim in _dims(value)
    ]
    between = "x" if all(size.isdecimal() for size in sizes) else " × "
    return between.join(sizes) or "()"


def _example(value: Any) -> str:
    """Return a shape that may be given, with a common size for each that is open."""
    from onnx import TensorProto

    dims = _dims(value)
    kind = element_type(TensorProto.DataType.Name(value.type.tensor_type.elem_type))
    names = f"{value.name} {' '.join(dim.dim_param for dim in dims)}"
    if _SOUND.search(names):
        common = _SECOND
    elif len(dims) == 4 and all(dim.dim_value < 1 for dim in (dims[2], dims[3])):
        common = _IMAGE_SIDE
    else:
        common = _COMMON_SIZE
    sizes = []
    for place, dim in enumerate(dims):
        if dim.dim_value > 0:
            sizes.append(dim.dim_value)
        elif place == 0:
            sizes.append(1)  # the batch
        elif place == 1 and common == _IMAGE_SIDE:
            sizes.append(3)  # channels
        else:
            sizes.append(common)
    spelled = "x".join(map(str, sizes))
    return f"{spelled}:{kind}" if len(sizes) == 1 else spelled  # a lone size would be a number
