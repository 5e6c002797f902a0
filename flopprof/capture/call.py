"""Call a model and leave it as it was: its inputs, its mode, its copy on the meta device."""

import dataclasses
import inspect
import re
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from flopprof.capture.restore import Snapshot, is_bare_iterator, repeated
from flopprof.devices import keeping_random_states
from flopprof.errors import FlopprofError, GradientsError, ModelError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

SEED = 0


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a model is called with.

    Attributes:
        args: Positional inputs.
        kwargs: Inputs by name.
        needs_gradients: Whether a call outside training records what gradients need.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    needs_gradients: bool = False

    def call(self, model: "nn.Module") -> Any:
        """Call the model with these inputs."""
        return model(*self.args, **self.kwargs)

    def to(self, device: str) -> "Inputs":
        """Return the inputs with every tensor on `device`; lengths of packed ones stay on CPU."""
        import torch
        from torch.nn.utils.rnn import PackedSequence
        from torch.utils._pytree import tree_map

        moved: dict[int, Any] = {}  # one tensor given twice stays one

        def move(value: Any) -> Any:
            if not isinstance(value, torch.Tensor | PackedSequence):
                return value
            if id(value) not in moved:
                can_move: Any = value  # each of the two has its own `to`
                moved[id(value)] = can_move.to(device)
            return moved[id(value)]

        arguments = (self.args, dict(self.kwargs))
        args, kwargs = tree_map(move, arguments, is_leaf=lambda v: isinstance(v, PackedSequence))
        return Inputs(args, kwargs, self.needs_gradients)

    def fresh(self) -> Self:
        """Return the inputs for one call: containers and iterators of its own, the same values.

        Plain tensors share their values with the caller's and nothing else: what a call does to
        their gradient, shape or history stays with it.
        """
        import torch
        from torch.nn.utils.rnn import PackedSequence
        from torch.utils._pytree import tree_map

        of_call: dict[int, torch.Tensor] = {}

        def renew(value: Any) -> Any:
            if is_bare_iterator(value):
                return repeated(value)
            if type(value) is not torch.Tensor or value.layout != torch.strided:
                return value
            if id(value) not in of_call:  # one tensor given twice stays one
                of_call[id(value)] = value.detach().requires_grad_(value.requires_grad)
            return of_call[id(value)]

        arguments = (self.args, dict(self.kwargs))
        args, kwargs = tree_map(renew, arguments, is_leaf=lambda v: isinstance(v, PackedSequence))
        return dataclasses.replace(self, args=args, kwargs=kwargs)

    @property
    def leaves(self) -> list[Any]:
        """What lies in the inputs' tuples, lists and dicts: tensors, and objects of any kind."""
        from torch.utils._pytree import tree_leaves

        return tree_leaves((self.args, dict(self.kwargs)))

    @property
    def tensors(self) -> list["torch.Tensor"]:
        """The tensors in the inputs, however nested."""
        import torch

        return [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]

    @property
    def has_shapes(self) -> bool:
        """Whether shapes say all: not of nested and sparse tensors, nor of subclasses."""
        import torch

        plain = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
        return all(
            type(t) in plain and t.layout == torch.strided and not t.is_nested for t in self.tensors
        )

    @property
    def text(self) -> str:
        """The inputs as the command line spells them."""
        from flopprof.model.inputs import describe_inputs

        return describe_inputs(self.args, self.kwargs)


def as_inputs(inputs: Any, kwargs: Mapping[str, Any] | None, model: "nn.Module") -> Inputs:
    """Return `inputs` (tensors, a size, a spec such as "1x3x224x224", a dict) as `Inputs`.

    Raises:
        UsageError: It is none of these.
    """
    import torch
    from torch.nn.utils.rnn import PackedSequence

    keywords = dict(kwargs or {})
    if isinstance(inputs, Inputs):
        return inputs
    if isinstance(inputs, torch.Tensor | PackedSequence):
        return Inputs((inputs,), keywords)
    if isinstance(inputs, Mapping):
        return Inputs((), {**inputs, **keywords})
    if isinstance(inputs, str) or is_size(inputs) or are_sizes(inputs):
        from flopprof.model.inputs import make_inputs, specs_of

        device, dtype = home(model)
        args, by_name = make_inputs(specs_of(inputs), device=device, dtype=dtype, seed=SEED)
        return Inputs(args, {**by_name, **keywords})
    if inputs is None or isinstance(inputs, tuple | list):
        return Inputs(tuple(inputs or ()), keywords)
    raise UsageError(
        f"inputs are of type {type(inputs).__name__}",
        remedy='give tensors, a size (1, 3, 224, 224), a text "1x3x224x224" or a dict',
    )


def is_size(value: Any) -> bool:
    """Return whether `value` is a size such as (1, 3, 224, 224)."""
    return isinstance(value, tuple | list) and bool(value) and {type(n) for n in value} == {int}


def are_sizes(value: Any) -> bool:
    """Return whether `value` is a sequence of sizes."""
    return isinstance(value, tuple | list) and bool(value) and all(map(is_size, value))


def home(model: "nn.Module") -> tuple[str, str | None]:
    """Return device and floating dtype of the model's parameters; ("cpu", None) without any.

    Raises:
        UsageError: It is no module.
    """
    if not hasattr(model, "parameters") or isinstance(model, type):
        fact = f"{model!r:.100} is no torch.nn.Module"
        raise UsageError(fact, remedy="give a model, not its class or a function")
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.is_floating_point():
            return str(tensor.device), str(tensor.dtype).removeprefix("torch.")
    return "cpu", None


@contextmanager
def unchanged(
    model: "nn.Module",
    inputs: Inputs | None = None,
    *,
    training: bool = False,
    besides: Iterable[Any] = (),
) -> Iterator[Snapshot]:
    """Run the block without gradients and in eval mode, or `training`; then restore all.

    Restored are modes, random state, gradients (no call finds any) and buffers, what the inputs
    hold, and what the model's attributes hold; when training, parameters too, from copies.
    Elsewhere a change of parameters is only told of, since copies would take too much memory. What
    is yielded restores inputs, attributes, buffers and random state before each of several calls;
    what there is `besides`, such as an optimizer, goes on and is restored at the end.

    Raises:
        UsageError: An input can be read only once.
    """
    import torch

    # A frozen TorchScript module has no mode.
    before = [(m, getattr(m, "training", False), dict(m._buffers.items())) for m in model.modules()]
    parameters = initialised(model.parameters())
    gradients = [parameter.grad for parameter in parameters]
    versions = [None if p.is_inference() else p._version for p in parameters]
    restored = [*initialised(model.buffers()), *(parameters if training else ())]
    dense = [tensor for tensor in restored if tensor.layout == torch.strided and not tensor.is_meta]
    copies = [tensor.detach().clone() for tensor in dense]
    device = torch.device(home(model)[0])
    needed = inputs is not None and inputs.needs_gradients
    with keeping_random_states(str(device)), torch.set_grad_enabled(needed):
        _set_mode(model, training)
        for parameter in parameters:
            parameter.grad = None  # else a backward pass would add to them
        leaves = inputs.leaves if inputs else ()
        try:
            snapshot = Snapshot(model, leaves, device=str(device))
            around = Snapshot.around(model, besides)
            snapshot.drop_gradients(() if training else parameters)
            try:
                yield snapshot
            finally:
                snapshot.restore(fully=True)
                around.restore(fully=True)
        finally:
            for module, mode, buffers in before:
                module.training = mode
                for name, buffer in buffers.items():
                    setattr(module, name, buffer)
            for tensor, value in zip(dense, copies, strict=True):
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
    after = [None if p.is_inference() else p._version for p in parameters]
    if after != versions and not training:
        warnings.warn("the model's parameters change when it is called, and stay so", stacklevel=3)


def _set_mode(model: "nn.Module", training: bool) -> None:
    try:
        model.train(training)
    except NotImplementedError:  # within is an exported program, whose mode is fixed
        for module in model.modules():
            module.training = training


def initialised(tensors: "Iterable[torch.Tensor]") -> "list[torch.Tensor]":
    """Return those that have a shape: lazy modules' have none before the first call."""
    from torch.nn.parameter import is_lazy

    return [tensor for tensor in tensors if not is_lazy(tensor)]


def first_float(inputs: Inputs) -> str | None:
    """Return the element type of the first floating-point input; None if there is none."""
    dtypes = (str(t.dtype) for t in inputs.tensors if t.is_floating_point())
    return next(dtypes, "").removeprefix("torch.") or None


@dataclass(slots=True)
class Call:
    """A call of the model that can be repeated; its errors say whether input or model is at fault.

    Attributes:
        model: What is called.
        inputs: What it is called with; each call gets its own.
        snapshot: What model and inputs hold, to be put back before each call.
        context: What each call runs in.
    """

    model: "nn.Module"
    inputs: Inputs
    snapshot: Snapshot | None = None
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    _ready: Inputs | None = None

    def prepare(self) -> None:
        """Make the next call's inputs: what takes time and is no part of the call."""
        if self.snapshot:
            self.snapshot.restore()
        self._ready = self.inputs.fresh()

    def __call__(self) -> Any:
        """Call the model once.

        Raises:
            UsageError: The input is at fault.
            ModelError: The model raised.
        """
        if self._ready is None:
            self.prepare()
        inputs = self._ready or self.inputs
        self._ready = None
        try:
            with self.context():
                return inputs.call(self.model)
        except (FlopprofError, MemoryError, KeyboardInterrupt):
            raise
        except BaseException as error:  # also sys.exit, which would end the program in silence
            if is_out_of_memory(error):
                raise _no_memory(f"the model ran on {inputs.text}", error) from error
            raise _blame(self.model, inputs, error) from error


def guarded(model: "nn.Module", inputs: Inputs, snapshot: Snapshot | None = None) -> Call:
    """Return a call of the model, from the same state each time where there is a snapshot of it."""
    return Call(model, inputs, snapshot)


@contextmanager
def telling_of_memory(doing: str) -> Iterator[None]:
    """Run the block, in which memory may run out, and say so if it does.

    Args:
        doing: What it does, as a clause: "the model moved to cuda:0".

    Raises:
        ModelError: The device's memory, or the host's, ran out.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise _no_memory(doing, error) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch says by this error that a device's memory, or the host's, ran out."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    # The host's allocator and CUDA's libraries raise plain errors.
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


_NO_MEMORY = re.compile(r"can't allocate memory|CUDA error: out of memory|_STATUS_ALLOC_FAILED")


def _no_memory(doing: str, error: BaseException) -> ModelError:
    """Return what to tell of memory that ran out while this was done, and let go of what it holds.

    The frames that the error passed through hold what was allocated so far, which would stay as
    long as the error is kept.
    """
    first_line = (str(error).strip().splitlines() or [""])[0][:300]
    traceback.clear_frames(error.__traceback__)
    return ModelError(
        f"memory ran out while {doing}: {first_line}",
        remedy="try a smaller input or batch, a smaller --dtype, or a device with more memory",
    )


def _blame(model: "nn.Module", inputs: Inputs, error: BaseException) -> FlopprofError:
    """Return the input's error where the input is certainly at fault, else the model's."""
    first_line = (str(error).strip().splitlines() or [""])[0][:300]
    message = f"{type(error).__name__}: {first_line}"
    if isinstance(error, TypeError):
        signature = inspect.signature(model.forward)
        try:
            signature.bind(*inputs.args, **inputs.kwargs)
        except TypeError as misfit:
            return UsageError(
                f"the model does not take the input {inputs.text or '(none)'}: {misfit}",
                remedy=f"it takes {signature}; give each with --input [NAME=]SHAPE[:DTYPE]",
            )
    if refused := _refused(inputs, error):
        return UsageError(
            f"the model does not take the input {refused}: {message}",
            remedy=f"give {refused} another shape, dtype or range: "
            "--input [NAME=]SHAPE[:DTYPE[:LOW-HIGH]]",
        )
    if "does not require grad" in first_line and not inputs.needs_gradients:
        return GradientsError(
            f"the model asks for gradients, and is called without them: {message}",
            remedy="have its forward say `with torch.enable_grad():`",
        )
    remedy = "check that it runs on this input without flopprof, or give another --input"
    lone = next((leaf for leaf in inputs.leaves if type(leaf) is int), None)
    if lone is not None and isinstance(error, TypeError | AttributeError):
        remedy = f"{lone} is a number: for a tensor of as many elements, --input {lone}:float32"
    return ModelError(f"the model raised while running on {inputs.text}: {message}", remedy=remedy)


def _refused(inputs: Inputs, error: BaseException) -> str:
    """Return, as a spec, the input that the failing code was given; '' if that is not certain.

    It is certain where a module or function of torch.nn raised, or an assertion of any code, that
    had been given the input itself or a view of it. All else may be a mistake within the model.
    """
    import torch

    if type(error) not in (RuntimeError, ValueError, IndexError, AssertionError, TypeError):
        return ""  # not their subclasses: NotImplementedError, out of memory, …
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    # An op on the meta device may be implemented in Python, anywhere in torch: those are left out.
    frames = [f for f in frames if not re.match(r"(torch\b(?!\.nn\.)|flopprof\b)", _module(f))]
    if not frames:  # such as backward's, which the step calls
        return ""
    if not (_module(frames[-1]).startswith("torch.nn.") or isinstance(error, AssertionError)):
        return ""
    local_tensors = [
        value for value in frames[-1].f_locals.values() if isinstance(value, torch.Tensor)
    ]
    tensor_ids = {id(tensor) for value in local_tensors for tensor in (value, value._base)}
    one_by_one = [Inputs((arg,)) for arg in inputs.args]
    one_by_one += [Inputs((), {name: value}) for name, value in inputs.kwargs.items()]
    at_fault = (each.text for each in one_by_one if tensor_ids & set(map(id, each.tensors)))
    return next(at_fault, "")


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__"))


def autocasting(call: Call, device: str, dtype: str) -> Call:
    """Return `call` under autocast; each call casts the weights anew, as a training loop does."""
    import torch

    if dtype not in ("bfloat16", "float16"):
        raise UsageError(f"autocast knows no {dtype!r}", remedy="give bfloat16 or float16")
    context = torch.autocast(device.partition(":")[0], getattr(torch, dtype))
    return dataclasses.replace(call, context=lambda: context)


@contextmanager
def using_threads(threads: int | None) -> Iterator[None]:
    """Run the block with so many CPU threads; as many as there are for None."""
    import torch

    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
