"""The tokens decoded after a prompt: counted from shapes at any context, and timed one by one."""

import copy
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from flopprof.capture.alone import alone
from flopprof.capture.call import (
    Call,
    autocasting,
    guarded,
    home,
    unchanged,
    using_threads,
)
from flopprof.capture.generate import Decoder, choose_experts_by_shape, decoder_of
from flopprof.capture.held import bytes_of, weights_of_step
from flopprof.capture.subject import Subject
from flopprof.errors import FlopprofError
from flopprof.provenance import AtContext, Generation, Spread
from flopprof.settings import Progress, Settings

if TYPE_CHECKING:
    from flopprof.devices import Device
    from flopprof.run import Run

TIMING_BUDGET_S = 5.0
"""The tokens are decoded again, up to as often as calls are repeated, while that takes less."""

Count = Callable[[Subject, Settings], "Run"]
"""Counts a call, as `api` does."""


def count_generation(subject: Subject, settings: Settings, count: Count) -> Generation | None:
    """Return what the steps after the prefill do, from shapes; None where none are asked for.

    Args:
        subject: The model.
        settings: They say what it generates.
        count: Counts one call.

    Raises:
        UsageError: The model does not generate.
        ModelError: It raised.
    """
    if settings.prompt_len is None:
        return None
    from flopprof.capture.twin import meta_twin  # which imports torch

    decoder = decoder_of(subject.model, settings)
    twin = meta_twin(subject.model)
    if twin is not None:
        choose_experts_by_shape(twin)
        try:
            return _counted_steps(replace(decoder, model=twin), settings, count)
        except FlopprofError:
            if home(subject.model)[0] == "meta":
                raise
    return _counted_steps(decoder, settings, count)  # where values decide what is done


def _counted_steps(decoder: Decoder, settings: Settings, count: Count) -> Generation:
    plain = replace(
        settings, prompt_len=None, new_tokens=None, kv_cache=None, batch=None, memory=False
    )
    steps = _Steps(decoder, plain, count)
    first, last = decoder.first_context, decoder.last_context
    mean = {"matmul_flops": math.nan, "flops": math.nan}
    if decoder.new_tokens > 1:
        # The first new token comes of the prefill; the last is not read by any step.
        sums = steps.sums(first, last - 2)
        mean = {name: value / (decoder.new_tokens - 1) for name, value in sums.items()}
    by_context = tuple(
        AtContext(
            context=context,
            matmul_flops=_whole(steps.at(context)["matmul_flops"] / decoder.batch),
        )
        for context in _contexts(decoder)
    )
    kv_cache_bytes = steps.last_cache_bytes()
    weight_bytes, active_parameters = weights_of_step(decoder.model, steps.called, decoder.batch)
    return Generation(
        prompt_len=decoder.prompt_len,
        new_tokens=decoder.new_tokens,
        batch=decoder.batch,
        kv_cache="static" if decoder.is_static else "dynamic",
        step_matmul_flops=mean["matmul_flops"],
        step_flops=mean["flops"],
        by_context=by_context,
        kv_cache_bytes=kv_cache_bytes,
        kv_read_bytes=(steps.cache_bytes(first) + kv_cache_bytes) / 2,
        weight_bytes=weight_bytes,
        active_parameters=active_parameters,
    )


def _whole(value: float) -> float:
    """Return the nearest whole number: what all examples of a batch share is not divisible."""
    return float(round(value))


def _contexts(decoder: Decoder) -> list[int]:
    """Return the lengths to tell: 1, 64, four times that and so on, the prompt's and the last.

    A step reads the position behind its context: none is told that has no such position.
    """
    last = decoder.last_context
    rows = decoder.rows_of_positions
    furthest = last if rows is None else min(last, rows - 1)
    contexts = {1, decoder.first_context, last}
    length = 64
    while length < last:
        contexts.add(length)
        length *= 4
    return sorted({min(context, furthest) for context in contexts})


class _Steps:
    """Counts steps at any context, each once.

    Attributes:
        called: Paths of the modules that a step calls, or whose weights it reads.
    """

    def __init__(self, decoder: Decoder, settings: Settings, count: Count) -> None:
        self._decoder = decoder
        self._settings = settings
        self._count = count
        self._sums: dict[int, dict[str, int]] = {}
        self._cache_bytes: dict[int, float] = {}
        self._met: set[int] = set()  # modules that prefills call
        self.called: set[str] = set()

    def at(self, context: int) -> dict[str, int]:
        """Return the FLOPs of a step of the whole batch with so many tokens in the cache."""
        if context not in self._sums:
            self._count_step(context)
        return self._sums[context]

    def cache_bytes(self, context: int) -> float:
        """Return the size of a cache of so many tokens."""
        if context not in self._cache_bytes:
            self._prefilled(context)
        return self._cache_bytes[context]

    def last_cache_bytes(self) -> float:
        """Return the size of the cache of all tokens, though no step reads the last one.

        That one may be the first without a position: it takes as much as the one before it.
        """
        last = self._decoder.last_context
        rows = self._decoder.rows_of_positions
        if rows is None or last <= rows:
            return self.cache_bytes(last)
        return 2 * self.cache_bytes(last - 1) - self.cache_bytes(last - 2)

    def sums(self, low: int, high: int) -> dict[str, float]:
        """Return the sums over the steps at contexts `low` to `high`, both included.

        FLOPs grow by equal amounts from step to step, up to a window's length and beyond it: where
        the middle lies on the line between the ends, the sum is that of the line.
        """
        middle = (low + high) // 2
        ends = (self.at(low), self.at(middle), self.at(high))
        steps = high - low + 1
        is_line = all(
            (ends[1][name] - ends[0][name]) * (high - low)
            == (ends[2][name] - ends[0][name]) * (middle - low)
            for name in ends[0]
        )
        if is_line:
            return {name: (ends[0][name] + ends[2][name]) * steps / 2 for name in ends[0]}
        lower = self.sums(low, middle)
        upper = self.sums(middle + 1, high)
        return {name: lower[name] + upper[name] for name in lower}

    def _prefilled(self, context: int) -> tuple[Any, Any]:
        """Return what a prefill of so many tokens leaves, and its cache."""
        from torch.nn.modules.module import register_module_forward_pre_hook

        from flopprof.capture.meta import ShapesOnce

        decoder = self._decoder
        model = decoder.model
        # A static cache has no room beyond its end, and the same work at every context.
        prefilled = min(context, decoder.last_context - 2) if decoder.is_static else context
        prefill = decoder.prefill(prefilled)
        with ExitStack() as stack:
            stack.enter_context(unchanged(model, prefill))
            if home(model)[0] == "meta":
                stack.enter_context(ShapesOnce())
            stack.callback(register_module_forward_pre_hook(self._meet).remove)
            output = guarded(model, prefill)()
            cache = copy.deepcopy(decoder.cache_of(output))
        self._cache_bytes[context] = bytes_of(cache)
        return output, cache

    def _count_step(self, context: int) -> None:
        import torch

        output, cache = self._prefilled(context)
        with torch.no_grad():
            inputs = self._decoder.step(output, self._decoder.token(), cache)
            run = self._count(Subject(self._decoder.model, inputs), self._settings)
        self._sums[context] = {
            "matmul_flops": int(run.totals.matmul_flops),
            "flops": int(run.totals.flops),
        }
        called = set(run.module_calls["module_path"])
        self.called = called | self._read_by_parents(called)

    def _meet(self, module: Any, _inputs: Any) -> None:
        self._met.add(id(module))

    def _read_by_parents(self, called: set[str]) -> set[str]:
        """Return the layers that no call ever meets: a called module uses their weights itself.

        What the prefill calls and a step does not, such as the keys of an encoder's output, is
        left out of a step.
        """
        return {
            path
            for path, module in self._decoder.model.named_modules()
            if not list(module.children())
            and id(module) not in self._met
            and path.rpartition(".")[0] in called
        }


@alone()
def measure_generation(
    subject: Subject,
    device: "Device",
    settings: Settings,
    count: Count,
    progress: Progress,
) -> Generation | None:
    """Return what `count_generation` does, with the steps' times on the device where the model is.

    Raises:
        UsageError: The model does not generate.
        ModelError: It raised.
    """
    from flopprof.capture.record import summarise_times  # which imports torch

    if settings.prompt_len is None:
        return None
    progress("counting decoded tokens")
    counted = count_generation(subject, settings, count)
    if counted is None or counted.new_tokens < 2:
        return counted
    progress(f"timing {counted.new_tokens - 1} decoded tokens")
    decoder = decoder_of(subject.model, settings)
    times_us = _step_times_us(decoder, subject, device, settings)
    spread = Spread(**summarise_times(times_us))
    return msgspec.structs.replace(counted, step_us=spread, timed_steps=len(times_us))


def _step_times_us(
    decoder: Decoder, subject: Subject, device: "Device", settings: Settings
) -> list[float]:
    """Decode greedily after the real prefill, several times from its cache; return steps' times.

    Choosing the next token is not timed.
    """
    model = decoder.model
    times_us: list[float] = []
    with ExitStack() as stack:
        stack.enter_context(using_threads(settings.threads))
        if settings.tf32:
            stack.enter_context(device.tf32())
        snapshot = stack.enter_context(unchanged(model, subject.inputs))
        snapshot.restore()
        output = _autocast(guarded(model, subject.inputs), device, settings)()
        left = decoder.cache_of(output)
        began = time.perf_counter()
        for repeat in range(settings.repeats + 1):
            step_times_us = _decode(decoder, output, copy.deepcopy(left), device, settings)
            if repeat:  # the first time warms up
                times_us += step_times_us
            if times_us and time.perf_counter() - began > TIMING_BUDGET_S:
                break
            if not times_us and time.perf_counter() - began > TIMING_BUDGET_S:
                times_us += step_times_us[1:] or step_times_us
                break
    return times_us


def _decode(
    decoder: Decoder, output: Any, cache: Any, device: "Device", settings: Settings
) -> list[float]:
    """Decode every new token but the first, with this cache, and return the steps' times."""
    times_us = []
    token = output.logits[:, -1:].argmax(-1)
    for _ in range(decoder.new_tokens - 1):
        inputs = decoder.step(output, token, cache)
        call = _autocast(guarded(decoder.model, inputs), device, settings)
        call.prepare()
        outputs: list[Any] = []
        device.synchronize()
        times_us.append(device.elapsed_us(_keeping(call, outputs)))
        cache = decoder.cache_of(outputs[0])
        token = outputs[0].logits[:, -1:].argmax(-1)
    return times_us


def _keeping(call: Call, outputs: list[Any]) -> Callable[[], None]:
    """Return the call, whose output goes into the list."""
    return lambda: outputs.append(call())


def _autocast(call: Call, device: "Device", settings: Settings) -> Call:
    if settings.autocast:
        return autocasting(call, device.torch_device, settings.autocast)
    return call
