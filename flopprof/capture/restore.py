"""Put back what calls change in Python objects and tensors, so that each call is the same call."""

import array
import copy
import functools
import inspect
import io
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from operator import is_
from types import (
    BuiltinFunctionType,
    FunctionType,
    GeneratorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import TYPE_CHECKING, Any

import numpy as np

from flopprof.capture.code import outer_state
from flopprof.devices import random_state_of
from flopprof.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made by Python code
PutBack = Callable[[], None]

MOST_OBJECTS = 100_000
"""Objects looked into at most (0.2 s): what lies beyond, such as a data set, is left alone."""
_NOT_OURS = (
    "torch._", "torch.fx", "torch.distributed", "torch.jit", "torch.cuda",
    "asyncio", "concurrent", "functools", "logging", "multiprocessing", "threading", "weakref",
)  # fmt: skip
"""Modules whose objects hold what C++, other threads or compilers rely on."""
_ATOMS: tuple[type, ...] = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    range,
    slice,
    type,
    ModuleType,
)
_ATOMS += (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)
_COMMON_ATOMS = frozenset((type(None), bool, int, float, str, type))  # found out fastest
_CONTAINERS = (dict, list, set, deque, bytearray, array.array)
_KINDS_OF_CONTAINER: tuple[Any, ...] = (OrderedDict, *_CONTAINERS)
_WITH_STATE: tuple[type, ...] = (
    np.ndarray,
    np.random.Generator,
    np.random.RandomState,
    random.Random,
    functools._lru_cache_wrapper,
    io.IOBase,
)
"""Objects of C that keep a state of their own; torch's generators too."""


class Snapshot:
    """What a model and its inputs hold besides parameters; `restore` puts it back.

    Kept are attributes, lists, dicts, sets and arrays, as deep as they lie, the values of tensors
    that are no parameters, what the model's code uses outside of the model, and random states.
    Containers and objects stay the same ones. A change by C++ to an object of its own is not seen.
    """

    _put_back: list[PutBack]
    _tensors: "list[_TensorBytes]"
    _seen: dict[int, Any]
    _keeps_parameters: bool

    def __init__(self, model: "nn.Module", inputs: Iterable[Any] = (), *, device: str = "cpu"):
        self._forget()
        self._keep_random_states(device)
        self._walk(inputs, is_input=True)
        self._walk(model.modules(), is_input=False)
        outside, put_back = outer_state(model.modules())
        self._put_back += put_back
        self._walk(outside, is_input=False)

    @classmethod
    def around(cls, model: "nn.Module", objects: Iterable[Any]) -> "Snapshot":
        """Return what these objects hold: other models' parameters too, but nothing of `model`."""
        objects = list(objects)
        if not objects:
            nothing = cls.__new__(cls)
            nothing._forget()
            return nothing
        snapshot = cls(model)
        snapshot._put_back.clear()
        snapshot._tensors.clear()
        snapshot._seen |= {id(parameter): parameter for parameter in model.parameters()}
        snapshot._keeps_parameters = True
        snapshot._walk(objects, is_input=False)
        return snapshot

    def _forget(self) -> None:
        self._put_back = []
        self._tensors = []
        self._seen = {}
        self._keeps_parameters = False

    def restore(self, *, fully: bool = False) -> None:
        """Put everything back; tensors of the model by their versions alone unless `fully`."""
        for put_back in self._put_back:
            put_back()
        for tensor in self._tensors:
            tensor.restore(surely=fully)

    def drop_gradients(self, parameters: "Sequence[torch.Tensor]") -> None:
        """Take these parameters' gradients away at each restoring: each call finds none."""

        def drop() -> None:
            for parameter in parameters:
                parameter.grad = None

        self._put_back.append(drop)

    def _keep_random_states(self, device: str) -> None:
        def keep(get: Callable[[], Any], put: Callable[[Any], Any]) -> None:
            state = get()
            self._put_back.append(lambda: put(state))

        keep(random.getstate, random.setstate)
        keep(np.random.get_state, np.random.set_state)
        for name in dict.fromkeys(("cpu", device)):
            state = random_state_of(name)
            if state is not None:
                keep(*state)

    def _walk(self, roots: Iterable[Any], *, is_input: bool) -> None:
        import torch

        todo: list[Any] = list(roots)
        while todo and len(self._seen) < MOST_OBJECTS:
            value = todo.pop()
            if type(value) in _COMMON_ATOMS or id(value) in self._seen:
                continue
            if isinstance(value, _ATOMS):
                continue
            self._seen[id(value)] = value  # held, so that no other object gets its id
            if isinstance(value, torch.Tensor):
                todo += self._keep_tensor(value, is_input)
            elif isinstance(value, GeneratorType) and is_input:
                raise cannot_repeat(value)
            else:
                todo += self._keep_object(value)

    def _keep_tensor(self, tensor: "torch.Tensor", is_input: bool) -> list[Any]:
        """Keep a tensor's bytes, or return the tensors that it is made of."""
        import torch

        if isinstance(tensor, torch.nn.Parameter) and not self._keeps_parameters:
            return []
        parts = _parts(tensor)
        if not parts and _has_bytes(tensor):
            self._tensors.append(_TensorBytes(tensor, is_input))
        return [*parts, tensor.grad] if tensor.is_leaf else parts

    def _keep_object(self, value: Any) -> list[Any]:
        """Keep what an object holds, and return that."""
        import torch

        inner: list[Any] = []
        if isinstance(value, torch.nn.Module):
            containers = _fields_of_module(value)
            inner += _modules_and_parameters(value)
        else:
            self._put_back += _state_keepers(value)
            if type(value).__module__.startswith(_NOT_OURS):
                return []
            if isinstance(value, tuple | frozenset):
                return list(value)
            containers = [value] if isinstance(value, _CONTAINERS) else []
            containers += _fields(value)
        inner += self._keep_slots(value)
        for container in containers:
            self._put_back.append(_keep_container(container))
            inner += _items(container)
        return inner

    def _keep_slots(self, value: Any) -> list[Any]:
        """Keep the attributes of a class with `__slots__`, and return their values."""
        filled_slots = _slots(value)

        def put_back() -> None:
            present = dict(_slots(value))
            for slot, content in filled_slots:
                if present.get(slot) is not content:
                    slot.__set__(value, content)

        if filled_slots:
            self._put_back.append(put_back)
        return [content for _, content in filled_slots]


class _TensorBytes:
    """The bytes of one tensor, of a slice no more than it spans; its gradient and its history."""

    def __init__(self, tensor: "torch.Tensor", is_input: bool) -> None:
        self._tensor = tensor
        self._is_input = is_input
        self._is_leaf = tensor.is_leaf
        self._requires_grad = tensor.requires_grad
        self._grad = tensor.grad if tensor.is_leaf else None
        self._saved = _bytes_of(tensor).clone()
        self._version = self._now()

    def _now(self) -> int:
        return -1 if self._tensor.is_inference() else self._tensor._version

    def restore(self, *, surely: bool) -> None:
        """Put the bytes back where they differ: what did not change may not be writable."""
        import torch

        if self._is_leaf:
            self._forget_history()
        if not surely and not self._is_input and self._now() == self._version:
            return
        present = _bytes_of(self._tensor)
        if not torch.equal(present, self._saved):
            present.copy_(self._saved)
        self._version = self._now()

    def _forget_history(self) -> None:
        """Make a leaf again of what a training step computed into."""
        if not self._tensor.is_leaf and not self._tensor._is_view():  # a view cannot be
            self._tensor.detach_()
        if self._tensor.is_leaf:
            if self._tensor.requires_grad != self._requires_grad:
                self._tensor.requires_grad_(self._requires_grad)
            if self._tensor.grad is not self._grad:
                self._tensor.grad = self._grad


def _bytes_of(tensor: "torch.Tensor") -> "torch.Tensor":
    """Return the stretch of storage that the tensor spans, as bytes, without copying."""
    import torch

    sizes = tensor.size()
    strides = tensor.stride()
    elements = 1 + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    size = tensor.element_size()
    empty = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    place = tensor.storage_offset() * size
    return empty.set_(tensor.untyped_storage(), place, (elements * size,), (1,))


def _has_bytes(tensor: "torch.Tensor") -> bool:
    import torch

    plain = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    if type(tensor) not in plain or tensor.layout != torch.strided:
        return False
    return not (tensor.is_meta or tensor.is_nested) and tensor.numel() > 0


def _parts(tensor: "torch.Tensor") -> list[Any]:
    """Return the tensors that a sparse, nested or wrapping tensor is made of."""
    import torch

    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if hasattr(tensor, "__tensor_flatten__"):
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    if tensor.is_nested:
        return [tensor.values()]
    return []


def _fields_of_module(module: "nn.Module") -> list[Any]:
    """Return the dicts of a module to keep: all of the user's own, the buffers of torch's.

    torch's modules hold no state in attributes that grows; what they note of a first call, such as
    DDP's, C++ notes too. A lazy module becomes another one at its first call, and stays it.
    """
    from torch.nn.parameter import is_lazy

    fields = vars(module)
    buffers = fields.get("_buffers")
    if any(is_lazy(p) for p in module._parameters.values() if p is not None):
        return []
    if type(module).__module__.startswith("torch."):
        return [buffers] if isinstance(buffers, dict) else []
    return [fields]


def _modules_and_parameters(module: "nn.Module") -> list[Any]:
    """Return a module's children and own parameters."""
    fields = vars(module)
    if "_modules" not in fields or "_parameters" not in fields:  # TorchScript's are elsewhere
        return [*module.children(), *module.parameters(recurse=False)]
    return [*fields["_modules"].values(), *fields["_parameters"].values()]


def _state_keepers(value: Any) -> list[PutBack]:
    """Return what puts back the state that an object of C keeps, of the kinds known."""
    import torch

    if type(value) in _CONTAINERS or not isinstance(value, (*_WITH_STATE, torch.Generator)):
        return []
    if isinstance(value, np.ndarray):
        kept = value.copy()
        return [lambda: None if _same_bytes(value, kept) else np.copyto(value, kept)]
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return [lambda: void(value.set_state(state))]
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        held = copy.deepcopy(bits.state)
        return [lambda: setattr(bits, "state", held)]
    if isinstance(value, np.random.RandomState):
        numbers = value.get_state()
        return [lambda: value.set_state(numbers)]
    if isinstance(value, random.Random):
        before = value.getstate()
        return [lambda: value.setstate(before)]
    if isinstance(value, functools._lru_cache_wrapper):
        size = value.cache_info().currsize
        return [lambda: None if value.cache_info().currsize == size else value.cache_clear()]
    if isinstance(value, io.IOBase) and not value.closed and value.seekable():
        place = value.tell()
        return [lambda: void(value.seek(place))]
    return []


def void(_result: object) -> None:
    """Return nothing, whatever a call returned."""


def _same_bytes(one: Any, other: Any) -> bool:
    return bool(one.shape == other.shape and one.tobytes() == other.tobytes())


def _keep_container(container: Any) -> PutBack:
    """Return what gives a container its present items back, in place."""
    if isinstance(container, dict):
        return _keep_dict(container)
    items_before = tuple(container)
    kind: Any = next(kind for kind in _KINDS_OF_CONTAINER if isinstance(container, kind))

    def put_back() -> None:
        if len(container) == len(items_before) and all(map(is_, container, items_before)):
            return
        if kind in (list, bytearray, array.array):
            contents = list(items_before) if kind is list else _packed(container, items_before)
            kind.__setitem__(container, slice(None), contents)
            return
        kind.clear(container)
        if kind is deque:
            kind.extend(container, items_before)
        else:
            kind.update(container, items_before)

    return put_back


def _keep_dict(container: dict[Any, Any]) -> PutBack:
    """Return what gives a dict its present items back, in order and in place."""
    kind: Any = OrderedDict if isinstance(container, OrderedDict) else dict
    keys = list(kind.keys(container))
    values = list(kind.values(container))

    def put_back() -> None:
        if (
            len(container) == len(keys)
            and all(map(is_, kind.values(container), values))
            and all(map(is_, kind.keys(container), keys))
        ):
            return
        kind.clear(container)
        kind.update(container, zip(keys, values, strict=True))

    return put_back


def _packed(container: Any, numbers: tuple[Any, ...]) -> Any:
    if isinstance(container, bytearray):
        return bytes(numbers)
    return array.array(container.typecode, numbers)


def _items(container: Any) -> list[Any]:
    if isinstance(container, dict):
        return [*container.keys(), *container.values()]
    return [] if isinstance(container, bytearray | array.array) else list(container)


def _fields(value: Any) -> list[dict[str, Any]]:
    """Return the dict of an object's attributes, asked past any `__getattr__` of its own."""
    try:
        fields = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return []
    return [fields] if isinstance(fields, dict) else []


def _slots(value: Any) -> list[tuple[Any, Any]]:
    """Return the slots of an object that hold something, each with what it holds."""
    filled = []
    kind: Any = type(value)
    for slot in _slots_of(kind):
        try:
            filled.append((slot, slot.__get__(value)))
        except AttributeError:  # empty
            continue
    return filled


@functools.lru_cache(maxsize=1000)
def _slots_of(kind: Any) -> list[MemberDescriptorType]:
    """Return the slots of a class; not those of a type written in C, which are not ours to set."""
    bases = [base for base in kind.__mro__ if base.__flags__ & _HEAP_TYPE]
    values = [value for base in bases for value in vars(base).values()]
    return [value for value in values if isinstance(value, MemberDescriptorType)]


def held_by(function: Any) -> list[Any]:
    """Return the objects that a function uses besides its arguments, and so may change."""
    objects: list[Any] = []
    seen_ids: set[int] = set()
    pending = [function]
    while pending:
        value = pending.pop()
        if id(value) in seen_ids:
            continue
        seen_ids.add(id(value))
        if isinstance(value, functools.partial):
            pending += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, MethodType):
            pending += [value.__self__, value.__func__]
        elif isinstance(value, FunctionType):
            pending += inspect.getclosurevars(value).nonlocals.values()
            pending += inspect.getclosurevars(value).globals.values()
            pending += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        else:
            objects.append(value)
    return objects


def repeated(value: Any) -> Any:
    """Return a copy of an iterator that is at the same place.

    Raises:
        UsageError: It can be read only once.
    """
    try:
        return copy.deepcopy(value)
    except Exception as error:  # whatever a foreign __deepcopy__ raises
        raise cannot_repeat(value) from error


def is_bare_iterator(value: Any) -> bool:
    """Return whether `value` yields things and keeps its place where no attribute shows it."""
    keeps_place = hasattr(value, "__dict__") or isinstance(value, io.IOBase)
    return hasattr(type(value), "__next__") and not keeps_place


def cannot_repeat(value: Any) -> UsageError:
    """Return the error that says that an input can be read only once."""
    return UsageError(
        f"an input is a {type(value).__name__}, which can be read once, and the model is called "
        "several times",
        remedy="give a list or tuple of what it yields",
    )
