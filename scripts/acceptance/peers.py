"""Stage `peers`: the same models under other tools: what each counts, and what it costs."""

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import flopprof
from acceptance import models
from acceptance.journal import Part
from acceptance.stage import Place, run_units

NEEDS_S = 30.0
REPEATS = 7
NAMES = ("resnet18", "vit_b_16", "gpt2", "llama_bf16", "lstm")
REHEARSED = ("resnet18", "lstm")


def units(place: Place) -> tuple[str, ...]:
    """Return the models' names."""
    return REHEARSED if place.rehearses else NAMES


def run(place: Place, part: Part) -> bool:
    """Compare on the models that are left; return whether all were reached."""
    return run_units("peers", place, part, units(place), compare, needs_s=NEEDS_S)


def compare(name: str, place: Place) -> dict[str, Any]:
    """Return each tool's time over a bare call's, and its FLOPs, all in one process."""
    model, inputs, _ = models.build(name, place.rehearses)
    model = model.to(place.device)
    tensors = _tensors(inputs, place.device)
    repeats = 2 if place.rehearses else REPEATS

    def call() -> object:
        with torch.no_grad():
            return model(*tensors)

    call()
    facts: dict[str, Any] = {"bare_ms": _ms(call, place, repeats)}
    for tool, (use, count) in _tools(model, tensors, call, place).items():
        facts[f"{tool}_ms"] = _ms(use, place, repeats)
        facts[f"{tool}_over_bare"] = facts[f"{tool}_ms"] / facts["bare_ms"]
        facts[f"{tool}_flops"] = count()
    few = models.FEW if place.rehearses else {"ceilings": False}
    result = flopprof.profile(model, tensors, device=place.device, **few)
    traced_ms = result.provenance.timing.traced_us / 1e3
    facts |= {
        "flopprof_traced_ms": traced_ms,
        "flopprof_traced_over_bare": traced_ms / facts["bare_ms"],
        "flopprof_traced_over_profiler": traced_ms / facts["torch_profiler_ms"],
        "flopprof_matmul_flops": result.totals.matmul_flops,
        "flopprof_vector_flops": result.totals.vector_flops,
    }
    facts["not_installed"] = [] if _has_deepspeed() else ["deepspeed"]
    theirs = facts["flop_counter_mode_flops"]
    faults = []
    if theirs > facts["flopprof_matmul_flops"]:
        faults.append(f"FlopCounterMode counts more: {theirs}")
    return facts | {"faults": faults}


Tool = tuple[Callable[[], object], Callable[[], float | None]]


def _tools(
    model: nn.Module, tensors: tuple[Any, ...], call: Callable[[], object], place: Place
) -> dict[str, Tool]:
    """Return each tool's name, its use on the model, and what it then counts."""
    activities = [ProfilerActivity.CPU]
    if not place.rehearses:
        activities.append(ProfilerActivity.CUDA)
    flops_by_tool: dict[str, float] = {}

    def under_profiler() -> None:
        with profile(activities=activities, record_shapes=True, with_flops=True) as profiler:
            call()
            _wait(place)
        flops_by_tool["profiler"] = float(
            sum(event.flops or 0 for event in profiler.key_averages())
        )

    def under_counter() -> None:
        with FlopCounterMode(display=False) as counter:
            call()
        flops_by_tool["counter"] = float(counter.get_total_flops())

    def counted() -> None:
        flops_by_tool["count"] = float(flopprof.count_flops(model, tensors).matmul_flops)

    tools: dict[str, Tool] = {
        "torch_profiler": (under_profiler, lambda: flops_by_tool.get("profiler")),
        "flop_counter_mode": (under_counter, lambda: flops_by_tool.get("counter")),
        "flopprof_count": (counted, lambda: flops_by_tool.get("count")),
    }
    if _has_deepspeed():
        tools["deepspeed"] = _deepspeed(model, tensors)
    return tools


def _has_deepspeed() -> bool:
    return importlib.util.find_spec("deepspeed") is not None


def _deepspeed(model: nn.Module, tensors: tuple[Any, ...]) -> Tool:
    from deepspeed.profiling.flops_profiler import get_model_profile

    counted: dict[str, float] = {}

    def use() -> None:
        flops, _, _ = get_model_profile(
            model, args=list(tensors), print_profile=False, detailed=False, as_string=False,
            warm_up=1,
        )  # fmt: skip
        counted["flops"] = float(flops)

    return use, lambda: counted.get("flops")


def _tensors(inputs: Any, device: str) -> tuple[Any, ...]:
    """Return the inputs on the device; a size makes random values."""
    if isinstance(inputs, tuple) and all(isinstance(size, int) for size in inputs):
        inputs = torch.randn(*inputs)
    positional = inputs if isinstance(inputs, tuple) else (inputs,)
    return tuple(one.to(device) if isinstance(one, torch.Tensor) else one for one in positional)


def _wait(place: Place) -> None:
    if not place.rehearses:
        torch.cuda.synchronize()


def _ms(call: Callable[[], object], place: Place, repeats: int) -> float:
    """Return the median time of a call, after one that warms up."""
    times = []
    for number in range(repeats + 1):
        _wait(place)
        started = time.perf_counter()
        call()
        _wait(place)
        if number:
            times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)
