"""The tools, each used as its documentation shows, and what of its answer is compared.

What is compared are the FLOPs of contractions. Tools that count multiply-adds are doubled. A tool
that tells classes apart gives its contractions; one that cannot (`mixes`) may be above by the
case's elementwise work. What a tool says that it left out is kept: being wrong and saying so is
another thing than being wrong.
"""

import contextlib
import importlib
import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from peers.case import Steps, Subject


@dataclass(slots=True)
class Answer:
    """What a tool says.

    Attributes:
        flops: Of contractions, two for each multiply-add; None where it gave no number.
        left_out: What it said that it did not count.
        with_elementwise: Its figure that has elementwise work in it, where it gives both and some
            contractions are only in this one. It is right if either is.
        all_work: Its figure for all work, elementwise too, where it tells the classes apart.
    """

    flops: float | None
    left_out: list[str] = field(default_factory=list)
    with_elementwise: float | None = None
    all_work: float | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """One way of counting.

    Attributes:
        name: As the page calls it.
        count: From a subject to an answer.
        package: What its environment installs beside torch; empty for what is there already.
        module: What is imported before the clock starts.
        how: What it counts, and what is taken, for the page.
        mixes: Whether elementwise work is in its figure.
        needs_values: Whether models on the meta device, whose ops decompose there, mislead it.
    """

    name: str
    count: Callable[[Subject], Answer]
    package: str
    module: str
    how: str
    mixes: bool = False
    needs_values: bool = False

    def version(self) -> str:
        """Return the version that is imported."""
        return version(self.package or self.module.split(".")[0])


def as_module(subject: Subject) -> nn.Module:
    """Return a module whose call is what is counted."""
    return Steps(subject.model, subject.step) if subject.step else subject.model


def by_flopprof(subject: Subject) -> Answer:
    """Call `count_flops`, with a training step where the case has one."""
    import flopprof

    options: dict[str, Any] = {}
    if subject.step is not None:
        step = subject.step

        def of_inputs(model: nn.Module, inputs: Any) -> object:
            return step(model, *(inputs if isinstance(inputs, tuple) else (inputs,)))

        options["train"] = flopprof.Training(step=of_inputs)
    count = flopprof.count_flops(subject.model, subject.args, kwargs=subject.kwargs, **options)
    left_out: list[str] = []
    if count.flops_at_most != count.flops:
        sites = count.run.sites
        left_out = sorted(set(sites.loc[sites["flops"].isna(), "op"])) or ["work outside PyTorch"]
    return Answer(count.matmul_flops, left_out, all_work=count.flops)


def by_counter_mode(subject: Subject) -> Answer:
    """Use torch's own mode around the call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call(subject)
    return Answer(counter.get_total_flops())


PRODUCTS = ("aten::conv2d", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


def by_profiler(subject: Subject) -> Answer:
    """Use `torch.profiler` with `with_flops=True`, and add up its products."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_flops=True) as traced:
        call(subject)
    events = traced.key_averages()
    return Answer(sum(event.flops or 0 for event in events if event.key in PRODUCTS))


MINOR_OPS = re.compile(
    r"(aten::)?(\w*norm\w*|\w*pool\w*|upsample\w*|grid_sampler\w*|\w*softmax|\w*relu\w*|gelu|sigmoid|tanh"
    r"|silu|mish|elu|hard\w+|softplus|dropout|r?sub|add|mul|div|sum|mean|pow|exp|sin|cos|sqrt|rsqrt|log"
    r"|neg|cumsum|pad|clamp\w*|where|masked_fill|fill|eq|ne|lt|le|gt|ge|diff|new_ones|ones|zeros|repeat"
    r"|clone|im2col|embedding|sign|abs|max|min|remainder|floor_divide|index\w*|arange|tril|triu|scatter\w*"
    r"|bitwise_\w+|logical_\w+|all|any|argmax|topk|sort|gather|roll|atan2|square|repeat_interleave)_?",
)
MAJOR_OPS = re.compile(  # it names each op that it does not count: those that hold contractions
    r"attention|lstm|rnn|gru|mv|dot|bmm|linear|euclidean|cdist|deform|grouped_mm|_mm|int8|int4"
    r"|sparse|conv|quantized|matmul|einsum"
)
MINOR_MODULES = re.compile(
    r"norm|pool|upsample|softmax|relu|gelu|sigmoid|tanh$|silu|mish|dropout|flatten|identity|embedding"
    r"|hardswish|hardsigmoid|elu$|swish|droppath|layerscale|stub$|sequential|modulelist|pixelshuffle",
    re.IGNORECASE,
)


def by_fvcore(subject: Subject) -> Answer:
    """Use FlopCountAnalysis; keyword inputs are put in order by a wrapper, since it traces."""
    from fvcore.nn import FlopCountAnalysis

    module = as_module(subject)
    args = subject.args
    if subject.kwargs:
        module = ByPosition(module, list(subject.kwargs), len(args))
        args = (*args, *subject.kwargs.values())
    analysis = FlopCountAnalysis(module, args)
    counts = analysis.by_operator()
    macs = sum(count for op, count in counts.items() if not MINOR_OPS.fullmatch(op))
    left_out = [op for op in analysis.unsupported_ops() if not MINOR_OPS.fullmatch(op)]
    left_out += [f"module {name}" for name in analysis.uncalled_modules() if name]
    return Answer(2 * macs, left_out)


class ByPosition(nn.Module):
    """Takes keyword inputs by position."""

    def __init__(self, inner: nn.Module, names: list[str], before: int) -> None:
        super().__init__()
        self.inner = inner
        self.names = names
        self.before = before

    def forward(self, *args: Any) -> Any:
        """Call the inner module."""
        keywords = dict(zip(self.names, args[self.before :], strict=True))
        return self.inner(*args[: self.before], **keywords)


def by_ptflops(subject: Subject, *, backend: str) -> Answer:
    """Use get_model_complexity_info; elementwise modules are left out by its own option."""
    from ptflops import get_model_complexity_info

    module = as_module(subject)
    if subject.args:
        module = FromKeywords(module, len(subject.args))
    inputs = {f"input_{i}": each for i, each in enumerate(subject.args)} | subject.kwargs
    said = io.StringIO()
    options: dict[str, Any] = {}
    if backend == "pytorch":
        options["ignore_modules"] = VECTOR_MODULES
    with contextlib.redirect_stdout(said):
        macs, _ = get_model_complexity_info(
            module, (1,), as_strings=False, print_per_layer_stat=False, backend=backend,
            input_constructor=lambda _: inputs, verbose=True, ost=said, **options,
        )  # fmt: skip
    if macs is None:
        raise RuntimeError(said.getvalue().partition("exception:")[2].strip()[:300])
    names = re.findall(
        r"Warning: (?:module )?(\S+)(?: operation)? is treated as a zero-op", said.getvalue()
    )
    if backend == "aten":
        return Answer(2 * macs, [name for name in names if MAJOR_OPS.search(name)])
    containers = {type(each).__name__ for each in module.modules() if any(each.children())}
    left_out = [name for name in names if name not in containers and not MINOR_MODULES.search(name)]
    return Answer(2 * macs, left_out)


VECTOR_MODULES = [
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d,
    nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm, nn.ReLU, nn.ReLU6, nn.PReLU, nn.ELU,
    nn.LeakyReLU, nn.GELU, nn.Hardswish, nn.SiLU, nn.MaxPool1d, nn.AvgPool1d, nn.AvgPool2d,
    nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool3d,
    nn.Upsample,
]  # fmt: skip


class FromKeywords(nn.Module):
    """Takes positional inputs as keywords, the only inputs that ptflops constructs several of."""

    def __init__(self, inner: nn.Module, count: int) -> None:
        super().__init__()
        self.inner = inner
        self.count = count

    def forward(self, **inputs: Any) -> Any:
        """Call the inner module."""
        args = [inputs.pop(f"input_{i}") for i in range(self.count)]
        return self.inner(*args, **inputs)


def by_thop(subject: Subject) -> Answer:
    """Use profile; keyword inputs are put in order by a wrapper, since it takes a tuple."""
    from thop import profile

    module = as_module(subject)
    args = subject.args
    if subject.kwargs:
        module = ByPosition(module, list(subject.kwargs), len(args))
        args = (*args, *subject.kwargs.values())
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        macs, _ = profile(module, inputs=args, report_missing=True)
    missing = re.findall(r"Cannot find rule for <class '([^']+)'>", said.getvalue())
    containers = {full_name(each) for each in module.modules() if any(each.children())}
    left_out = [
        name for name in missing if name not in containers and not MINOR_MODULES.search(name)
    ]
    return Answer(2 * macs, left_out)


def full_name(module: nn.Module) -> str:
    """Return the class's name with its package."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def by_calflops(subject: Subject) -> Answer:
    """Use calculate_flops; of a training step its own option for the backward pass."""
    from calflops import calculate_flops

    flops, macs, _ = calculate_flops(
        subject.model, args=list(subject.args), kwargs=dict(subject.kwargs), print_results=False,
        output_as_string=False, include_backPropagation=subject.step is not None,
    )  # fmt: skip
    return Answer(2 * macs, with_elementwise=flops)


def by_deepspeed(subject: Subject) -> Answer:
    """Use get_model_profile, and take its multiply-adds."""
    from deepspeed.profiling.flops_profiler import get_model_profile

    flops, macs, _ = get_model_profile(
        as_module(subject), args=list(subject.args), kwargs=dict(subject.kwargs),
        print_profile=False, detailed=False, as_string=False, warm_up=0,
    )  # fmt: skip
    return Answer(2 * macs, with_elementwise=flops)


def by_torchinfo(subject: Subject) -> Answer:
    """Use summary, and take its mult-adds."""
    from torchinfo import summary

    summed = summary(
        as_module(subject), input_data=list(subject.args) or subject.kwargs, verbose=0,
        mode="eval" if subject.step is None else "train", device=torch.device(home(subject)),
        **(subject.kwargs if subject.args else {}),
    )  # fmt: skip
    return Answer(2 * summed.total_mult_adds)


def home(subject: Subject) -> str:
    """Return where the model is."""
    return next((each.device.type for each in subject.model.parameters()), "cpu")


def by_torchlens(subject: Subject) -> Answer:
    """Use trace, saving nothing, and take its multiply-adds; it says which ops it does not know."""
    import torchlens
    from torchlens.utils import display

    # It refuses to work in forked processes, since several might capture at once. Ours is alone.
    display._WARN_PARALLEL_IMPORT_PID = os.getpid()
    log = torchlens.trace(as_module(subject), list(subject.args), dict(subject.kwargs), save=None)
    macs = int(log.total_macs_forward or 0) + int(log.total_macs_backward or 0)
    return Answer(2 * macs, unknown_of(log))


def unknown_of(log: Any) -> list[str]:
    """Return the ops whose FLOPs or multiply-adds torchlens says it does not know."""
    names: list[str] = []
    for attribute in ("unknown_flop_ops", "macs_unknown_split_ops"):
        value = getattr(log, attribute, None)
        if isinstance(value, int) and value:
            names.append(f"{value} {attribute}")
        elif value and not isinstance(value, int):
            names += [str(getattr(each, "func_name", each)) for each in value]
    return sorted(set(names))


def call(subject: Subject) -> Any:
    """Call the model, or take the step."""
    if subject.step is not None:
        with torch.enable_grad():
            return subject.step(subject.model, *subject.args, **subject.kwargs)
    return subject.model(*subject.args, **subject.kwargs)


TOOLS = {
    tool.name: tool
    for tool in (
        Tool("flopprof", by_flopprof, "", "flopprof", "`matmul_flops` of `count_flops`"),
        Tool("FlopCounterMode", by_counter_mode, "", "torch.utils.flop_counter",
             "`get_total_flops()`: contractions"),
        Tool("with_flops", by_profiler, "", "torch.profiler",
             "FLOPs of conv2d, mm, addmm, bmm, baddbmm under `torch.profiler`", needs_values=True),
        Tool("fvcore", by_fvcore, "fvcore", "fvcore.nn",
             "multiply-adds, doubled, without its norms, pooling and interpolation"),
        Tool("ptflops", partial(by_ptflops, backend="pytorch"), "ptflops", "ptflops",
             "multiply-adds, doubled; norms, activations and pooling left out by `ignore_modules`",
             mixes=True),
        Tool("ptflops aten", partial(by_ptflops, backend="aten"), "ptflops", "ptflops",
             "multiply-adds of its second backend, doubled", mixes=True),
        Tool("thop", by_thop, "thop", "thop", "multiply-adds, doubled", mixes=True),
        Tool("calflops", by_calflops, "calflops", "calflops",
             "its MACs, doubled, or its FLOPs; of training steps with `include_backPropagation`"),
        Tool("torchinfo", by_torchinfo, "torchinfo", "torchinfo", "`total_mult_adds`, doubled",
             mixes=True),
        Tool("torchlens", by_torchlens, "torchlens", "torchlens", "`total_macs`, doubled"),
        Tool("DeepSpeed", by_deepspeed, "deepspeed",
             "deepspeed.profiling.flops_profiler", "its MACs, doubled, or its FLOPs"),
    )
}  # fmt: skip


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep warnings and logs of models and tools off the terminal."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def import_tool(tool: Tool) -> None:
    """Import what the tool needs, so that no clock counts it."""
    importlib.import_module(tool.module)
