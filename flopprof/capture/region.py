"""A block of the caller's own code watched once, under hooks and trace together.

It is the caller's real work: nothing is called again, and nothing of it is put back.
"""

import gc
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from flopprof.capture.alone import alone
from flopprof.capture.call import Inputs
from flopprof.capture.describe import count_samples, count_tokens
from flopprof.capture.hooks import module_ranges
from flopprof.capture.load import busy_warning, host_load
from flopprof.capture.modules import module_calls_of, module_rows
from flopprof.capture.passes import gzipped, read_traces
from flopprof.capture.record import exported, tracing
from flopprof.devices import Device
from flopprof.tables import MODULE_CALLS
from flopprof.trace.read import Trace


@dataclass(slots=True)
class WatchedBlock:
    """What was seen of a block; all but `device` is known once it is over.

    Attributes:
        device: What the device said of itself before.
        module_calls: What the hooks saw, table MODULE_CALLS; empty without a model.
        trace: The trace of the block; None until it is over.
        packed: The trace file, gzipped; empty where it is not kept.
        traced_us: Wall time of the block.
        samples: Examples that the model was called with; None where unsure.
        tokens: The same for tokens.
        busy: What to tell of a busy machine; "" of a quiet one.
    """

    device: dict[str, Any]
    module_calls: pd.DataFrame = field(default_factory=MODULE_CALLS.empty)
    trace: Trace | None = None
    packed: bytes = b""
    traced_us: float = math.nan
    samples: int | None = None
    tokens: int | None = None
    busy: str = ""


def graphs_compiled() -> int:
    """Return how many graphs Dynamo has compiled so far in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo is not None else 0


def is_compiled(model: nn.Module) -> bool:
    """Return whether part of a model is compiled: hooks would have it compiled anew."""
    return any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        for module in model.modules()
    )


@contextmanager
def watch_block(
    model: nn.Module | None, device: Device, *, keep_trace: bool = True
) -> Iterator[WatchedBlock]:
    """Watch what runs inside; if it raises, no hook and no profiler is left.

    Args:
        model: Whose calls are counted and named in the trace; None for ops alone.
        device: Where most of the work is.
        keep_trace: Whether to pack the trace file, which takes a tenth of what reading it does.

    Raises:
        UsageError: Another measurement is at work in this thread, or a profiler of PyTorch.
    """
    import torch

    block = WatchedBlock(device.describe())
    with tempfile.TemporaryDirectory(prefix="flopprof-") as folder:
        with ExitStack() as watching:
            watching.enter_context(alone())
            rows = []
            sizes: list[tuple[int | None, int | None]] = []
            if model is not None:
                watching.enter_context(module_ranges(model))
                rows = watching.enter_context(module_rows(model))
                watching.enter_context(_sizes_of_calls(model, sizes))
            gc.collect(1)  # now, and less of it inside, where it goes on: the block may be long
            load = watching.enter_context(host_load())
            traced = watching.enter_context(tracing(device))
            yield block
        recording = exported(
            traced.profiler, traced.elapsed_us, traced.waited_us, Path(folder) / "trace.json"
        )
        [block.trace] = read_traces([recording])
        if keep_trace:
            block.packed = gzipped(recording.path)
    block.module_calls = module_calls_of(rows)
    block.traced_us = traced.elapsed_us
    block.samples = _sum_of([samples for samples, _ in sizes])
    block.tokens = _sum_of([tokens for _, tokens in sizes])
    block.busy = busy_warning(load, torch.get_num_threads())


@contextmanager
def _sizes_of_calls(model: nn.Module, sizes: list[tuple[int | None, int | None]]) -> Iterator[None]:
    """Have each call of the model itself add its examples and tokens to `sizes`."""

    def seen(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = Inputs(args, kwargs)
        sizes.append((count_samples(called, inputs), count_tokens(called, inputs)))

    handle = model.register_forward_pre_hook(seen, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _sum_of(counts: list[int | None]) -> int | None:
    """Return the sum; None where there is nothing to add, or one is not known."""
    known_counts = [count for count in counts if count is not None]
    return sum(known_counts) if known_counts and len(known_counts) == len(counts) else None
