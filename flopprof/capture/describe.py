"""What is known of a model, its call and this machine, as parts of the provenance."""

import datetime
import math
import platform
import re
from typing import TYPE_CHECKING, Any

import msgspec

from flopprof._version import __version__
from flopprof.capture.call import Inputs, first_float, home
from flopprof.capture.subject import Origin
from flopprof.provenance import (
    COMMAND,
    Called,
    Environment,
    Source,
    Spread,
    Telemetry,
    Timing,
)
from flopprof.settings import Settings
from flopprof.units import percent, safe_text

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from flopprof.capture.watch import Watched

_CONTAINERS = ("ModuleList", "ModuleDict")  # are never called themselves
_NOT_TOKENS = re.compile("mask|position|type|label|target|length")  # in names of inputs


def main_dtype(model: "nn.Module", inputs: Inputs) -> str:
    """Return the element type of the model's parameters, else of its inputs, else float32."""
    return home(model)[1] or first_float(inputs) or "float32"


def describe_source(model: "nn.Module", module_calls: "pd.DataFrame", origin: Origin) -> Source:
    """Return what the model is, and which of its modules were never called."""
    from flopprof.capture.hooks import module_paths

    called = set(module_calls["module_path"])
    never_called = [
        path
        for module, path in module_paths(model).items()
        if path not in called and type(module).__name__ not in _CONTAINERS
    ]
    return Source(
        model=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        architecture=origin.architecture,
        architecture_source=origin.architecture_source,
        alternatives=origin.alternatives,
        file=origin.file,
        weights=origin.weights,
        never_called=tuple(never_called),
    )


def describe_call(
    model: "nn.Module", inputs: Inputs, origin: Origin, settings: Settings, dtype: str
) -> Called:
    """Return what the model is called with, and how.

    Args:
        model: The model.
        inputs: Its inputs.
        origin: Where they come from.
        settings: How it is called.
        dtype: Element type of most work.
    """
    return Called(
        dtype=dtype,
        input=inputs.text,
        input_source=origin.input_source,
        train=bool(settings.train),
        tf32=settings.tf32,
        autocast=settings.autocast,
        samples=count_samples(model, inputs),
        tokens=count_tokens(model, inputs),
    )


def count_samples(model: "nn.Module", inputs: Inputs) -> int | None:
    """Return the examples of the batch: the first size that all inputs share; None if unsure.

    A tensor of one dimension may be a batch or an example, and says nothing. The batch is the
    second size where the model's first layer of a kind that knows both orders says so.
    """
    from torch.nn.utils.rnn import PackedSequence

    packed = [value for value in inputs.args if isinstance(value, PackedSequence)]
    if packed:
        return int(packed[0].batch_sizes[0])
    shaped = [tensor for tensor in inputs.tensors if not tensor.is_nested and tensor.dim() >= 2]
    place = 1 if _is_sequence_first(model) and all(t.dim() == 3 for t in shaped) else 0
    sizes = {int(tensor.shape[place]) for tensor in shaped}
    return sizes.pop() if len(sizes) == 1 else None


def _is_sequence_first(model: "nn.Module") -> bool:
    orders = (getattr(module, "batch_first", None) for module in model.modules())
    return next((not order for order in orders if order is not None), False)


def count_tokens(model: "nn.Module", inputs: Inputs) -> int | None:
    """Return the tokens of the first input of whole numbers, [batch, length]; None without one.

    Masks, positions and labels are no tokens, and a model without an embedding reads none.
    """
    import torch

    if not any(isinstance(module, torch.nn.Embedding) for module in model.modules()):
        return None
    named_inputs = [*(("", value) for value in inputs.args), *inputs.kwargs.items()]
    for name, value in named_inputs:
        is_ids = isinstance(value, torch.Tensor) and value.dtype in (torch.int64, torch.int32)
        if is_ids and value.dim() == 2 and not _NOT_TOKENS.search(name):
            return int(value.numel())
    return None


def what_is_missing(
    origin: Origin, model: "nn.Module", module_calls: "pd.DataFrame", *, is_count: bool
) -> list[str]:
    """Return, in words, which of the model's tensors the file lacks, and what they amount to."""
    from flopprof.model.roles import place_of

    if not origin.missing:
        return []
    state = model.state_dict()
    sizes = {key: tensor.numel() for key, tensor in state.items() if hasattr(tensor, "numel")}
    missing = sum(sizes.get(key, 0) for key in origin.missing)
    flops = module_calls.groupby("module_path")["self_hook_matmul_flops"].sum()
    paths = {place_of(key)[0] for key in origin.missing}
    share = flops[flops.index.isin(paths)].sum() / flops.sum() if flops.sum() else math.nan
    shown = ", ".join(origin.missing[:3]) + (", …" if len(origin.missing) > 3 else "")
    values = "counted from the code's shapes" if is_count else "their values are random"
    text = (
        f"{len(origin.missing)} of the model's tensors are not in the file ({safe_text(shown)}): "
        f"{percent(missing / max(sum(sizes.values()), 1))} of its parameters"
    )
    if not math.isnan(share):
        text += f", {percent(share)} of its layers' matmul FLOPs"
    return [f"{text}; {values}"]


def describe_timing(watched: "Watched", settings: Settings) -> Timing:
    """Return how long the calls took that were watched."""
    from flopprof.capture.record import summarise_times

    eager_us = Spread(**summarise_times(watched.times_us))
    return Timing(
        wall_us=watched.compiled[1] if watched.compiled else eager_us,
        eager_wall_us=eager_us if watched.compiled else None,
        repeats=settings.repeats,
        traces=1 + len(watched.others),
        traced_us=watched.traced_us,
        slowdown_frac=watched.traced_us / eager_us.median - 1,
        device_busy_us=watched.trace.info.get("device_busy_us", math.nan),
        observer=watched.observer,
    )


def describe_environment() -> Environment:
    """Return versions, machine and moment; the command where the command line runs."""
    import torch

    return Environment(
        flopprof=__version__,
        date=now(),
        torch=str(torch.__version__),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        command=COMMAND.get(),
    )


def now() -> str:
    """Return this moment in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def describe_telemetry(readings: dict[str, Any], calls: int) -> Telemetry | None:
    """Return what a GPU said while `calls` calls were timed; None where nothing was asked."""
    if not readings:
        return None
    known_readings = {name: value for name, value in readings.items() if value is not None}
    return msgspec.convert(known_readings | {"calls": calls}, Telemetry)
