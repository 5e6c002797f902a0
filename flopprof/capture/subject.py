"""A model ready to be called: itself, its inputs, and where both come from."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopprof.capture.call import SEED, Inputs, as_inputs
from flopprof.capture.guess import guess_input
from flopprof.capture.training import Training
from flopprof.errors import UsageError
from flopprof.model.inputs import make_inputs, parse_input, with_floats
from flopprof.model.resize import resized
from flopprof.provenance import Alternative
from flopprof.settings import Settings

if TYPE_CHECKING:
    from torch import nn

    from flopprof.model import Loaded


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model and its inputs come from, if not from Python.

    Attributes:
        architecture: Its code: "torchvision:resnet18".
        architecture_source: What said so: "--arch", "the file".
        alternatives: What else the weights may be.
        file: What the file is, and its path.
        weights: Whose values they are: file, random, meta.
        input_source: Where the inputs come from.
        warnings: What loading found doubtful.
        missing: Keys of the model that the file lacks.
    """

    architecture: str | None = None
    architecture_source: str | None = None
    alternatives: tuple[Alternative, ...] = ()
    file: str | None = None
    weights: str | None = None
    input_source: str | None = None
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Subject:
    """What a pass is about.

    Attributes:
        model: The module, in eval mode where it was loaded.
        inputs: What it is called with.
        origin: Where the two come from, if not from Python.
    """

    model: "nn.Module"
    inputs: Inputs
    origin: Origin = field(default_factory=Origin)


def with_gradients(subject: Subject) -> Subject:
    """Return the subject to be called with gradients recorded, and the doubt that it says so."""
    doubt = "its forward asks for gradients: it was called with gradients recorded, in eval mode"
    origin = replace(subject.origin, warnings=(*subject.origin.warnings, doubt))
    return replace(subject, inputs=replace(subject.inputs, needs_gradients=True), origin=origin)


def find_subject(
    model_or_name: Any,
    inputs: Any,
    kwargs: Mapping[str, Any] | None,
    settings: Settings,
    *,
    device: str = "cpu",
    meta: bool = False,
) -> Subject:
    """Return what `named_subject` returns, with a prompt for its input where one is asked for.

    Raises:
        FlopprofError: The file, the architecture or the input is not usable.
    """
    from flopprof.capture.generate import of_prompt, says_empty_cache

    if settings.prompt_len is None:
        subject = named_subject(model_or_name, inputs, kwargs, settings, device=device, meta=meta)
        doubts = says_empty_cache(subject.model, subject.inputs)
        return _with_warnings(subject, doubts)
    if inputs is not None or kwargs:
        fact = "prompt_len makes the inputs, and these are given"
        raise UsageError(fact, remedy="give one of them")
    plain = replace(settings, prompt_len=None, new_tokens=None, kv_cache=None, batch=None)
    subject = named_subject(model_or_name, None, None, plain, device=device, meta=meta)
    prompt, doubts = of_prompt(
        subject.model, settings, is_ours=isinstance(model_or_name, str | Path)
    )
    origin = replace(subject.origin, input_source=f"a prompt of {settings.prompt_len} tokens")
    return _with_warnings(replace(subject, inputs=prompt, origin=origin), doubts)


def _with_warnings(subject: Subject, texts: list[str]) -> Subject:
    if not texts:
        return subject
    warnings = (*subject.origin.warnings, *texts)
    return replace(subject, origin=replace(subject.origin, warnings=warnings))


def named_subject(
    model_or_name: Any,
    inputs: Any,
    kwargs: Mapping[str, Any] | None,
    settings: Settings,
    *,
    device: str = "cpu",
    meta: bool = False,
) -> Subject:
    """Return the subject of a module, a path, or code such as "torchvision:resnet50".

    Args:
        model_or_name: A module, a subject, or what the command line takes for MODEL.
        inputs: Its inputs, as for `count_flops`; None for what settings or architecture say.
        kwargs: Its keyword inputs.
        settings: How it is found.
        device: Where a file's model is put.
        meta: Whether a file's model has shapes only.

    Raises:
        FlopprofError: The file, the architecture or the input is not usable.
    """
    if settings.formulas:
        from flopprof.formulas.external import load_formulas

        load_formulas(settings.formulas)
    if inputs is not None and (settings.batch or settings.input_size):
        raise UsageError(
            "batch and input_size change inputs that are not given, and these are",
            remedy="give inputs of that size, or leave them out",
        )
    if isinstance(model_or_name, Subject):
        return model_or_name
    if not isinstance(model_or_name, str | Path):
        return _of_module(model_or_name, inputs, kwargs, settings)
    from flopprof.model import Take, load_model

    loaded = load_model(
        model_or_name,
        arch=settings.arch,
        arch_args=settings.arguments,
        trust=settings.trust,
        device=device,
        dtype=settings.dtype,
        meta=meta,
        take=Take(strict=settings.strict, partial=settings.partial),
    )
    where = "meta" if meta else device
    if inputs is not None or kwargs:
        inputs_of_call = as_inputs(inputs, kwargs, loaded.model).to(where)
        source = "given"
    else:
        inputs_of_call, source = _inputs_of_file(loaded, settings, where)
    return Subject(
        loaded.model, inputs_of_call, _origin_of(loaded, model_or_name, settings, source)
    )


def _of_module(
    model: "nn.Module", inputs: Any, kwargs: Mapping[str, Any] | None, settings: Settings
) -> Subject:
    """Return a module of the caller's and its inputs; where a dtype is asked for, copies in it."""
    if settings.dtype is not None:
        model = _copied_as(settings.dtype, model)
    if inputs is None and settings.input_from:
        of_call = inputs_from(settings.input_from, kwargs, model)
    else:
        specs = resized(settings.input_specs, batch=settings.batch, input_size=settings.input_size)
        its_inputs = " ".join(specs) if inputs is None and specs else inputs
        of_call = as_inputs(its_inputs, kwargs, model)
    return Subject(model, _cast(of_call, settings.dtype))


def _copied_as(dtype: str, model: "nn.Module") -> "nn.Module":
    """Return a copy of the model with its floating tensors as `dtype`; the caller's stays.

    Raises:
        UsageError: It is no floating element type, or the model cannot be copied.
    """
    import torch

    from flopprof.model import check_floating

    check_floating(dtype)
    try:
        return copy.deepcopy(model).to(getattr(torch, dtype))
    except Exception as error:  # whatever a foreign __deepcopy__ raises
        raise UsageError(
            f"the model cannot be copied as {dtype}: {type(error).__name__}: {error}",
            remedy=f"cast it yourself: model.to(torch.{dtype}), and leave dtype out",
        ) from error


def _origin_of(loaded: "Loaded", name: str | Path, settings: Settings, input_source: str) -> Origin:
    """Return where a loaded model and its inputs come from."""
    alternatives = tuple(
        Alternative(
            architecture=other.name,
            input=other.input or None,
            gflops=other.gflops or math.nan,
        )
        for other in loaded.alternatives
    )
    return Origin(
        architecture=loaded.architecture,
        architecture_source="--arch" if settings.arch else loaded.recognised_by,
        alternatives=alternatives,
        file=f"{loaded.source} {name}",
        weights=loaded.weights,
        input_source=input_source,
        warnings=loaded.warnings,
        missing=loaded.missing,
    )


def _inputs_of_file(loaded: "Loaded", settings: Settings, device: str) -> tuple[Inputs, str]:
    """Return inputs for a loaded model, and where they come from."""
    if settings.input_from:
        inputs = inputs_from(settings.input_from, None, loaded.model)
        return _cast(inputs, settings.dtype).to(_home(loaded, device)), "--input-from"
    texts = settings.input_specs
    source = "--input"
    if not texts and loaded.input_hint:
        texts = loaded.input_hint.split()
        source = f"canonical for {loaded.architecture}"
    if not texts:
        guess = guess_input(loaded.model)
        if guess.spec is None:
            raise UsageError(
                f"nothing says which input {loaded.architecture} takes: {guess.reason}",
                remedy=f"give its shape, such as {guess.example}; or what a function returns: "
                "--input-from FILE.py:FUNCTION",
            )
        texts = guess.spec.split()
        source = f"rule: {guess.reason}"
    texts = resized(texts, batch=settings.batch, input_size=settings.input_size)
    specs = [with_floats(parse_input(part), loaded.dtype) for part in texts]
    where = _home(loaded, device)
    positional_inputs, keyword_inputs = make_inputs(
        specs, device=where, dtype=settings.dtype, seed=SEED
    )
    return Inputs(positional_inputs, keyword_inputs), source


def _home(loaded: "Loaded", device: str) -> str:
    """Return where the inputs go: on meta only if the model's parameters are there."""
    if device != "meta":
        return device
    return next((str(tensor.device) for tensor in loaded.model.parameters()), "cpu")


def _cast(inputs: Inputs, dtype: str | None) -> Inputs:
    """Return the inputs with every floating tensor as `dtype`, where one is asked for."""
    import torch
    from torch.utils._pytree import tree_map

    if dtype is None:
        return inputs

    def cast(value: Any) -> Any:
        is_floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(getattr(torch, dtype)) if is_floating else value

    return Inputs(*tree_map(cast, (inputs.args, dict(inputs.kwargs))))


def inputs_from(spec: str, kwargs: Mapping[str, Any] | None, model: "nn.Module") -> Inputs:
    """Return what the function FILE.py:FUNCTION makes as inputs.

    It takes no arguments, and returns a tensor, a tuple of inputs, a dict of keyword inputs, or
    both as (args, kwargs). Torch's random state is seeded for it, and goes back.

    Raises:
        UsageError: There is no such function.
        ModelError: It raised.
    """
    import torch

    from flopprof.model.usercode import find_function, foreign_code

    function = find_function(spec, "--input-from")
    with torch.random.fork_rng(devices=[]), foreign_code(f"--input-from {spec}"):
        torch.default_generator.manual_seed(SEED)
        returned = function()
    if _are_both(returned):
        return as_inputs(tuple(returned[0]), {**returned[1], **(kwargs or {})}, model)
    if not isinstance(returned, dict | tuple | list):
        returned = (returned,)
    if isinstance(returned, tuple | list):
        return Inputs(tuple(returned), dict(kwargs or {}))
    return as_inputs(returned, kwargs, model)


def _are_both(returned: Any) -> bool:
    """Return whether these are positional and keyword inputs: (args, kwargs)."""
    if (
        not isinstance(returned, tuple)
        or len(returned) != 2
        or not isinstance(returned[0], tuple | list)
    ):
        return False
    return isinstance(returned[1], dict) and all(isinstance(key, str) for key in returned[1])


def training_of(settings: Settings) -> Training | None:
    """Return how a call trains; None where it does not.

    Raises:
        UsageError: `train` says nothing of the kind, or the loss is not to be found.
    """
    train = settings.train
    if isinstance(train, bool):
        return Training(_loss(settings), settings.optimizer) if train else None
    if isinstance(train, Training):
        return train
    if callable(train):
        return Training(step=train)
    raise UsageError(
        f"train is {train!r}",
        remedy="give True, a flopprof.Training, or a function of the model and its inputs",
    )


def _loss(settings: Settings) -> Callable[[Any], Any] | None:
    """Return the loss function; one of the user's file says whose it is when it raises."""
    if not isinstance(settings.loss, str):
        return settings.loss
    from flopprof.model.usercode import find_function, foreign_code

    name = settings.loss
    loss = find_function(name, "--loss")

    def guarded(output: Any) -> Any:
        with foreign_code(f"--loss {name}, given the model's output,"):
            return loss(output)

    return guarded
