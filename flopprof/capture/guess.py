"""Guess an input from the first layer that the data meets, or say why none can be guessed."""

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from flopprof.capture.call import as_inputs
from flopprof.units import safe_text

if TYPE_CHECKING:
    from torch import nn

_LAYERS = 6  # that are taken for the first one, at most


class Guess(NamedTuple):
    """An input that a model takes, or the reason why none was found.

    Attributes:
        spec: The input; None where none is known.
        reason: The layer that it was made for, or why there is none, in words.
        example: An `--input` to begin with where there is no spec.
    """

    spec: str | None
    reason: str
    example: str = "--input 1x3x224x224"


def guess_input(model: "nn.Module") -> Guess:
    """Return an input that the model's first layer takes; each is tried on the meta device.

    The first layer is the one that a call meets first: where a try reaches another layer before
    the one that it was made for, the next try is made for that one.
    """
    needed = _required(model)
    layers = [(path, module) for path, module in model.named_modules() if _specs(module)]
    if not layers:
        return Guess(None, f"no layer of it says what it takes{_takes(needed)}")
    path, layer = layers[0]
    specs = _specs(layer)
    if len(needed) > 1:
        example = " ".join(f"--input {name}=…" for name in needed)
        return Guess(None, f"it takes {len(needed)} inputs, {', '.join(needed)}", example)
    from flopprof.capture.twin import meta_twin  # which imports torch

    twin = meta_twin(model)
    if twin is None:  # which cannot be tried
        return Guess(specs[0], _made_for(path, layer))
    twin.eval()
    tried: set[str] = set()
    pending = [path]
    while pending and len(tried) < _LAYERS:
        path = pending.pop(0)
        tried.add(path)
        layer = twin.get_submodule(path)
        for spec in _specs(layer):
            met = _first_met(twin, spec)
            if met == "":
                return Guess(spec, _made_for(path, layer))
            if met is not None and met not in tried and met not in pending:
                pending.insert(0, met)
        if not pending:
            pending = [other for other, _ in layers if other not in tried][:1]
    path, layer = layers[0]
    fact = f"{_made_for(path, layer)}, and no size that was tried goes through the model"
    return Guess(None, fact + _takes(needed), f"--input {specs[0]}")


def _required(model: "nn.Module") -> list[str]:
    """Return the names of the inputs without which the model cannot be called."""
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return []
    return [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]


def _takes(names: list[str]) -> str:
    return f"; it takes {safe_text(', '.join(names))}" if names else ""


def _made_for(path: str, layer: "nn.Module") -> str:
    kind = getattr(layer, "original_name", type(layer).__name__)
    where = f" {safe_text(path)}" if path else ""
    return f"its first layer{where} is {safe_text(kind)}"


def _first_met(twin: "nn.Module", spec: str) -> str | None:
    """Call the copy; return '' if that works, else the path of the first layer that it met."""
    import torch

    met: list[str] = []

    def hook(path: str) -> Callable[..., None]:
        def meeting(layer: "nn.Module", args: tuple[Any, ...]) -> None:
            met.append(path)
            if isinstance(layer, torch.nn.Embedding) and args and args[0].is_floating_point():
                raise TypeError("ids are whole numbers")  # torch 2.10 does not check on meta

        return meeting

    handles = [
        module.register_forward_pre_hook(hook(path))
        for path, module in twin.named_modules()
        if _specs(module)
    ]
    try:
        inputs = as_inputs(spec, None, twin).to("meta")
        with torch.no_grad():
            inputs.call(twin)
    except Exception:  # whatever its code says to an input that it does not take
        return met[0] if met else None
    finally:
        for handle in handles:
            handle.remove()
    return ""


def _specs(module: "nn.Module") -> list[str]:
    """Return inputs that the layer would take as a model's first one, likeliest first."""
    kind = getattr(module, "original_name", type(module).__name__)
    rules = (_of_convolution, _of_words, _of_sequence, _of_features)
    return next((specs for rule in rules if (specs := list(rule(kind, module)))), [])


def _of_convolution(kind: str, module: Any) -> Iterator[str]:
    weight: Any = getattr(module, "weight", None)
    if "Conv" not in kind or not hasattr(weight, "shape") or weight.dim() < 3:
        return
    is_transposed = "Transpose" in kind
    groups = int(getattr(module, "groups", 1))
    channels = weight.shape[0] if is_transposed else weight.shape[1] * groups
    sizes: dict[int, list[str]] = {
        1: ["1024", "16000", "128"],
        2: [f"{side}x{side}" for side in (224, 299, 256, 64, 32, 28)],
        3: ["16x112x112", "32x32x32"],
    }
    if is_transposed:  # of small maps large ones are made
        sizes = {1: ["16"], 2: ["1x1", "8x8"], 3: ["1x1x1", "4x4x4"]}
    for size in sizes.get(weight.dim() - 2, []):
        yield f"1x{channels}x{size}"


def _of_words(kind: str, module: Any) -> Iterator[str]:
    if "Embedding" in kind and hasattr(getattr(module, "weight", None), "shape"):
        for length in (128, 16):
            yield f"1x{length}:int64:0-{module.weight.shape[0] - 1}"
        yield f"16:int64:0-{module.weight.shape[0] - 1}"


def _of_sequence(kind: str, module: Any) -> Iterator[str]:
    width = getattr(module, "input_size", None)
    if kind in ("LSTM", "GRU", "RNN") and isinstance(width, int):
        yield f"1x16x{width}" if getattr(module, "batch_first", False) else f"16x1x{width}"
        yield f"1x128x{width}"
    if kind in ("LSTMCell", "GRUCell", "RNNCell") and isinstance(width, int):
        yield f"1x{width}"


def _of_features(kind: str, module: Any) -> Iterator[str]:
    weight: Any = getattr(module, "weight", None)
    if not hasattr(weight, "shape"):
        return
    if kind == "Linear" and weight.dim() == 2:
        width = weight.shape[1]
        yield from (f"1x{width}", f"1x16x{width}", f"1x8x8x{width}")
    if kind in ("LayerNorm", "RMSNorm") and weight.dim() == 1:
        yield from (f"1x{weight.shape[0]}", f"1x16x{weight.shape[0]}")
    if kind == "BatchNorm1d":
        yield from (f"1x{weight.shape[0]}", f"1x{weight.shape[0]}x1024")
    if kind == "BatchNorm2d":
        yield f"1x{weight.shape[0]}x224x224"
