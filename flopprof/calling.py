"""Call a model and leave it as it was: its inputs, its mode, its copy on the meta device."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flopprof.errors import FlopprofError, ModelError, UsageError

if TYPE_CHECKING:
    from torch import nn

SEED = 0


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a model is called with."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None

    def call(self, model: "nn.Module") -> Any:
        """Call the model with these inputs."""
        return model(*self.args, **(self.kwargs or {}))

    def to(self, device: str) -> "Inputs":
        """Return the inputs with every tensor on `device`."""
        import torch
        from torch.utils._pytree import tree_map

        def move(value: Any) -> Any:
            return value.to(device) if isinstance(value, torch.Tensor) else value

        return Inputs(tree_map(move, self.args), tree_map(move, dict(self.kwargs or {})))

    @property
    def text(self) -> str:
        """The inputs as the command line spells them."""
        from flopprof.inputs import describe_inputs

        return describe_inputs(self.args, dict(self.kwargs or {}))


def as_inputs(inputs: Any, kwargs: Mapping[str, Any] | None, model: "nn.Module") -> Inputs:
    """Return `inputs` (tensors, a size, a spec such as "1x3x224x224", a dict) as `Inputs`.

    Raises:
        UsageError: It is none of these.
    """
    import torch

    device, dtype = home(model)
    if isinstance(inputs, Inputs):
        return inputs
    if inputs is None:
        return Inputs((), kwargs)
    if isinstance(inputs, torch.Tensor):
        return Inputs((inputs,), kwargs)
    if isinstance(inputs, Mapping):
        return Inputs((), {**inputs, **(kwargs or {})})
    if isinstance(inputs, str) or is_size(inputs) or are_sizes(inputs):
        from flopprof.inputs import make_inputs, parse_input

        sizes = [inputs] if isinstance(inputs, str) or is_size(inputs) else inputs
        texts = [s if isinstance(s, str) else "x".join(map(str, s)) for s in sizes]
        args, named = make_inputs(
            [parse_input(text) for text in texts], device=device, dtype=dtype, seed=SEED
        )
        return Inputs(args, {**named, **(kwargs or {})})
    if isinstance(inputs, tuple | list):
        return Inputs(tuple(inputs), kwargs)
    raise UsageError(
        f"inputs are a {type(inputs).__name__}",
        remedy='give tensors, a size (1, 3, 224, 224), a text "1x3x224x224" or a dict',
    )


def is_size(value: Any) -> bool:
    """Return whether `value` is a size such as (1, 3, 224, 224)."""
    return (
        isinstance(value, tuple | list)
        and len(value) > 0
        and all(isinstance(size, int) and not isinstance(size, bool) for size in value)
    )


def are_sizes(value: Any) -> bool:
    """Return whether `value` is a sequence of sizes."""
    return isinstance(value, tuple | list) and len(value) > 0 and all(map(is_size, value))


def home(model: "nn.Module") -> tuple[str, str | None]:
    """Return device and floating dtype of the model's parameters; ("cpu", None) without any."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            return str(tensor.device), str(tensor.dtype).removeprefix("torch.")
    return "cpu", None


@contextmanager
def unchanged(model: "nn.Module") -> Iterator[None]:
    """Run the block in eval mode and no_grad; modes and random state are restored after it."""
    import torch

    modes = {module: module.training for module in model.modules()}
    device = torch.device(home(model)[0])
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def first_float(inputs: Inputs) -> str | None:
    """Return the element type of the first floating-point input; None if there is none."""
    import torch
    from torch.utils._pytree import tree_leaves

    for value in tree_leaves((inputs.args, dict(inputs.kwargs or {}))):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return str(value.dtype).removeprefix("torch.")
    return None


def meta_twin(model: "nn.Module") -> "nn.Module | None":
    """Return a copy of the model on the meta device, or None where none can be made."""
    import torch
    from torch.utils._pytree import tree_leaves

    if isinstance(model, torch.jit.ScriptModule):
        return None
    memo: dict[int, Any] = {}
    held = tree_leaves([list(vars(module).values()) for module in model.modules()])
    for tensor in held:
        if not isinstance(tensor, torch.Tensor):
            continue
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            return None  # a subclass or uninitialised parameter knows more than its shape
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        memo[id(tensor)] = (
            torch.nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        )
    try:
        return copy.deepcopy(model, memo)
    except Exception:  # whatever a foreign __deepcopy__ raises: the model itself is counted
        return None


# What torch and common models say when an input has the wrong shape, type or number.
_INPUT_WORDS = re.compile(
    r"shape|size|channel|dimension|mat1|expected|wrong|must match|argument|input|scalar type|dtype",
    re.IGNORECASE,
)


def guarded(model: "nn.Module", inputs: Inputs) -> Callable[[], Any]:
    """Return a call of the model whose exceptions say whether input or model is at fault."""

    def call() -> Any:
        try:
            return inputs.call(model)
        except (FlopprofError, MemoryError):
            raise
        except Exception as error:
            said = str(error).strip().splitlines() or [""]
            what = f"{type(error).__name__}: {said[0][:300]}"
            if isinstance(error, RuntimeError | TypeError | AssertionError | ValueError) and (
                _INPUT_WORDS.search(said[0])
            ):
                raise UsageError(
                    f"the model does not take the input {inputs.text}; it said: {what}",
                    remedy="give the input it expects, such as --input 1x3x224x224",
                ) from error
            raise ModelError(
                f"the model raised while running on {inputs.text}: {what}",
                remedy="check that it runs on this input without flopprof",
            ) from error

    return call
