"""How a model is found, called and measured: one set of options, checked once."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from flopprof.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from flopprof.capture.training import Train
    from flopprof.model.trusted import Trust

Progress = Callable[[str], None]
"""Called with the name of each stage as it begins."""

AUTOCASTS = ("bfloat16", "float16")
REPEATS = 10
WARMUP = 3
TRACES = 5
NEW_TOKENS = 32
KV_CACHES = ("dynamic", "static")
STRATEGIES = ("ddp", "fsdp", "tp")


class Options(TypedDict, total=False):
    """The fields of `Settings`, as keyword arguments of the front doors."""

    arch: str | None
    arch_args: "Mapping[str, Any] | str | None"
    strict: bool
    partial: bool
    dtype: str | None
    formulas: str | Path | None
    trust: "bool | Trust"
    input: str | Sequence[str] | None
    batch: int | None
    input_size: int | None
    input_from: str | None
    prompt_len: int | None
    new_tokens: int | None
    kv_cache: str | None
    train: "Train"
    loss: "str | Callable[[Any], Tensor] | None"
    optimizer: str
    device: str | None
    threads: int | None
    repeats: int
    warmup: int
    traces: int
    ceilings: bool | str | Path
    tf32: bool
    autocast: str | None
    compile: bool | str
    memory: bool
    distributed: "str | Callable[[Any], Any] | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a model is found, called and measured.

    Attributes:
        arch: Code for a file's weights: "torchvision:NAME", "timm:NAME", "FILE.py:BUILD",
            "package.module:Class('tiny', depth=2)" (literals); recognised from their keys and
            shapes unless given.
        arch_args: Keyword arguments, literals, for the code that `arch` or the model names: a
            mapping, or JSON.
        strict: Whether to choose no architecture where weights fit several that count differently.
        partial: Whether weights may lack keys of the model (their values stay random) or have
            others; a count needs no weights, and takes them so in any case.
        dtype: Element type to cast the model and its inputs to.
        formulas: File with formulas for ops and modules of one's own.
        trust: Whether the file may run code when it is loaded.
        input: Specs of the inputs, "1x3x224x224" or ["ids=1x128:int64:0-999", "sr=16000", …];
            the architecture's own unless given.
        input_from: "FILE.py:FUNCTION" that returns them: a tensor, a tuple, a dict of keyword
            inputs, or (args, kwargs).
        batch: Batch of these inputs, in place of their own first size.
        input_size: Height and width of these inputs, where they are pictures.
        prompt_len: Tokens of a prompt for a model of transformers that generates: its call is the
            prefill, and the tokens that it decodes after that are counted and timed apart.
        new_tokens: With `prompt_len`: tokens to generate, 32 unless given.
        kv_cache: With `prompt_len`: "dynamic", which grows (unless given), or "static", as long
            from the start as prompt and new tokens.
        train: Whether to take a training step: forward, loss (the sum of the outputs), backward
            and an SGD step; or a `Training` that says which loss and optimizer; or a function of
            model and inputs that takes a whole step of one's own: accumulation, scaler, EMA.
        loss: With `train`: maps the output to a scalar, a function or "FILE.py:FUNCTION"; the sum
            of the outputs unless given.
        optimizer: With `train`: sgd, momentum, adam, adamw or none.
        device: "cpu", "cuda", "cuda:1", "auto"; the model's own, or the CPU for a file.
        threads: CPU threads for the passes; torch's own setting unless given.
        repeats: Bare calls that are timed.
        warmup: Calls before them.
        traces: Calls that are traced, as many of them as two seconds take.
        ceilings: Whether to find the device's ceilings (measured once on a CPU, for the dtypes of
            this run, then cached); or a ceilings file, whose entries go before all others.
        tf32: Whether float32 products on a GPU may round to TF32; torch's own setting unless so.
        autocast: Element type that `torch.autocast` runs products in: bfloat16 or float16.
        compile: Whether to time the model as `torch.compile` makes it, or the mode to compile in.
            FLOPs and sites are those of the eager call: the mathematics is the same.
        memory: Whether to say what the call needs of memory: one more call, on the meta device.
        distributed: How the processes of a job share the call, each of which profiles its part:
            "ddp", "fsdp" or "tp"; or a function, or "FILE.py:FUNCTION", that gets the model and
            returns the shared one. Each rank is called with the inputs given.
    """

    arch: str | None = None
    arch_args: "Mapping[str, Any] | str | None" = None
    strict: bool = False
    partial: bool = False
    dtype: str | None = None
    formulas: str | Path | None = None
    trust: "bool | Trust" = False
    input: str | Sequence[str] | None = None
    batch: int | None = None
    input_size: int | None = None
    input_from: str | None = None
    prompt_len: int | None = None
    new_tokens: int | None = None
    kv_cache: str | None = None
    train: "Train" = False
    loss: "str | Callable[[Any], Tensor] | None" = None
    optimizer: str = "sgd"
    device: str | None = None
    threads: int | None = None
    repeats: int = REPEATS
    warmup: int = WARMUP
    traces: int = TRACES
    ceilings: bool | str | Path = True
    tf32: bool = False
    autocast: str | None = None
    compile: bool | str = False
    memory: bool = False
    distributed: "str | Callable[[Any], Any] | None" = None

    def __post_init__(self) -> None:
        """Refuse what no call can be run with; options are spelled as the command line does.

        Raises:
            UsageError: A number is out of range, an autocast is not known, or an option of
                training is given without it.
        """
        for name in ("batch", "input_size", "prompt_len", "new_tokens"):
            size = getattr(self, name)
            if size is not None:
                _check_least(name.replace("_", "-"), size, 1)
        _check_least("repeats", self.repeats, 1)
        _check_least("warmup", self.warmup, 0)
        _check_least("traces", self.traces, 1)
        check_threads(self.threads)
        if self.autocast is not None and self.autocast not in AUTOCASTS:
            problem = f"autocast knows no {self.autocast!r}"
            raise UsageError(problem, remedy="give bfloat16 or float16")
        if not self.train and self.loss is not None:
            raise UsageError("--loss is given without --train", remedy="add --train")
        if not self.train and self.optimizer != "sgd":
            raise UsageError("--optimizer is given without --train", remedy="add --train")
        if self.input and self.input_from:
            raise UsageError("--input and --input-from are both given", remedy="give one of them")
        self._check_generation()
        self._check_distributed()
        _ = self.arguments  # raises where --arch-args says none

    def _check_generation(self) -> None:
        """Refuse options of generation without a prompt, and what does not go with one."""
        if self.kv_cache is not None and self.kv_cache not in KV_CACHES:
            fact = f"--kv-cache knows no {self.kv_cache!r}"
            raise UsageError(fact, remedy="give dynamic or static")
        if self.prompt_len is None:
            for name in ("new_tokens", "kv_cache"):
                if getattr(self, name) is not None:
                    fact = f"--{name.replace('_', '-')} is given without --prompt-len"
                    raise UsageError(fact, remedy="add --prompt-len 128")
            return
        for name in ("input", "input_from", "input_size", "train", "compile"):
            if getattr(self, name):
                fact = f"--prompt-len and --{name.replace('_', '-')} are both given"
                raise UsageError(fact, remedy="give one of them")

    def _check_distributed(self) -> None:
        """Refuse a way of sharing that there is not, and what does not go with several ranks."""
        if self.distributed is None:
            return
        is_known = self.distributed in STRATEGIES or callable(self.distributed)
        if not is_known and ".py:" not in str(self.distributed):
            fact = f"--distributed knows no {self.distributed!r}"
            raise UsageError(fact, remedy="give ddp, fsdp, tp, or FILE.py:FUNCTION")
        for name in ("prompt_len", "compile"):
            if getattr(self, name):
                fact = f"--distributed and --{name.replace('_', '-')} are both given"
                raise UsageError(fact, remedy="give one of them")

    @property
    def arguments(self) -> dict[str, Any] | None:
        """Keyword arguments for the code that `arch` or the model names; None for none."""
        if self.arch_args is None:
            return None
        from flopprof.model.spelling import read_arguments

        return read_arguments(self.arch_args)

    @classmethod
    def of(cls, options: Options) -> "Settings":
        """Return the settings that these options make.

        Raises:
            UsageError: There is no such option, or its value is refused.
        """
        names = {field.name for field in fields(cls)}
        if unknown := sorted(set(options) - names):
            problem = f"there is no option {unknown[0]!r}"
            raise UsageError(problem, remedy=f"there are: {', '.join(sorted(names))}")
        return cls(**options)

    @property
    def input_specs(self) -> list[str]:
        """The specs of the inputs, one each; none where the architecture's own are wanted."""
        if isinstance(self.input, str):
            from flopprof.model.inputs import split_specs

            return split_specs(self.input)
        return list(self.input or ())


def silent(_stage: str) -> None:
    """Show no progress."""


def check_threads(threads: int | None) -> None:
    """Refuse a number of CPU threads that this machine cannot run at once; None is torch's own.

    Raises:
        UsageError: It is such a number.
    """
    cores = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= cores:
        raise UsageError(f"--threads is {threads}", remedy=f"give 1 to {cores}, the cores here")


def _check_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"--{name} is {value}", remedy=f"give at least {least}")
