"""Compile a model apart from every hook of ours, and say what the generated code fuses."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from flopprof.errors import FlopprofError, ModelError, UsageError
from flopprof.formulas import GENERATED
from flopprof.formulas.generated import ops_in_name
from flopprof.provenance import GeneratedKernel, ProgramOp

if TYPE_CHECKING:
    from torch import nn

_WARM_CALLS = 3  # compile; adapt, such as to a new layout of the inputs; settle
_CALLS_ALLOWED = 10_000  # versions of one function: profiling a model again compiles it again


@dataclass(slots=True)
class Compiled:
    """A compiled model and what is known of its compilation.

    Attributes:
        model: What torch.compile returned.
        mode: As `torch.compile` takes it.
        graphs: Graphs compiled so far: more after the warm-up than before is a recompilation.
        min_bytes: What Inductor's kernels read and write, by its own account; 0 before warm-up.
        graph_breaks: Why Dynamo cut the model into several graphs → how often.
    """

    model: Any
    mode: str
    graphs: int = 0
    min_bytes: int = 0
    graph_breaks: dict[str, int] = field(default_factory=dict)


def compile_model(model: "nn.Module", mode: bool | str) -> Compiled:
    """Return `model` compiled by Inductor, with kernels that name themselves in a trace.

    Nothing is compiled before the first call, and nothing is shared with what the user compiled.

    Raises:
        UsageError: There is no such mode.
    """
    import torch
    from torch._inductor.compile_fx import compile_fx

    name = "default" if mode is True else str(mode)
    modes = torch._inductor.list_mode_options()
    if name not in modes:
        raise UsageError(
            f"there is no mode {name!r} to compile in", remedy="known: " + ", ".join(modes)
        )
    compiled = Compiled(None, name)
    patches = {**modes[name], "cpp.enable_kernel_profile": True, "fx_graph_cache": False}

    def backend(graph: Any, inputs: Any) -> Any:  # one per model: Dynamo shares code by backend
        compiled.graphs += 1
        return compile_fx(graph, inputs, config_patches=patches)

    compiled.model = torch.compile(model, backend=backend)
    return compiled


def warm_up(compiled: Compiled, call: Callable[[], object]) -> None:
    """Call until all is compiled, and note graph breaks and bytes; outside our hooks.

    Raises:
        ModelError: It cannot be compiled.
    """
    from torch._dynamo.utils import counters
    from torch._inductor import metrics

    breaks = counters["graph_break"].copy()
    before = metrics.num_bytes_accessed
    try:
        with _measuring_bytes():
            for _ in range(_WARM_CALLS):
                call()
    except FlopprofError as error:
        if "torch._" in type(error.__cause__).__module__:  # Dynamo's or Inductor's own
            raise ModelError(
                f"the model cannot be compiled: {error.problem.partition(': ')[2]}",
                remedy="on a CPU, Inductor needs a C++ compiler (g++); or leave out --compile",
            ) from error
        raise
    compiled.min_bytes = metrics.num_bytes_accessed - before
    for why, times in (counters["graph_break"] - breaks).items():
        lines = [line.strip() for line in why.splitlines()]
        detail = next((line for line in lines if line.startswith("Explanation: ")), "")
        text = lines[0] + (f": {detail.removeprefix('Explanation: ')}" if detail else "")
        compiled.graph_breaks[text] = compiled.graph_breaks.get(text, 0) + times


@contextmanager
def _measuring_bytes() -> Iterator[None]:
    """Have Inductor add up its kernels' bytes, which it does only for its log; print no log."""
    import torch

    log = logging.getLogger("torch._inductor.compile_fx.__inductor_metrics")
    with ExitStack() as cleanup:
        cleanup.callback(setattr, log, "propagate", log.propagate)
        cleanup.callback(log.setLevel, log.level)
        cleanup.enter_context(
            torch._dynamo.config.patch(
                recompile_limit=_CALLS_ALLOWED, accumulated_recompile_limit=_CALLS_ALLOWED
            )
        )
        log.propagate = False
        log.setLevel(logging.INFO)
        yield


def kernels_of(ops: pd.DataFrame, kernels: pd.DataFrame) -> list[GeneratedKernel]:
    """Return the generated kernels of a compiled call, most time first, and what each fuses.

    Args:
        ops: Ops of the compiled call's trace: on a CPU, generated kernels are among them.
        kernels: Its kernels on a GPU.
    """
    names = ops["op"].astype("str")
    times = ops["cpu_us"]
    if len(kernels):
        names = kernels["kernel"].astype("str")
        times = kernels["duration_us"]
    generated = names.str.match(GENERATED)
    totals = times[generated].groupby(names[generated]).agg(["size", "sum"])
    return [
        GeneratedKernel(
            kernel=str(name),
            calls=int(calls),
            time_us=float(time_us),
            fuses=tuple(op.removeprefix("aten::") for op in _fused_ops(str(name))),
        )
        for name, calls, time_us in totals.sort_values("sum", ascending=False).itertuples()
    ]


def program_of(ops: pd.DataFrame, *, on_device: bool) -> tuple[ProgramOp, ...]:
    """Return what a compiled call calls, most time first: what counts, and generated kernels.

    Args:
        ops: Ops of its trace.
        on_device: Whether their time is that of their kernels.
    """
    names = ops["op"].astype("str")
    generated = names.str.match(GENERATED)
    chosen = ops[ops["counted"] | generated].assign(
        op=names, is_generated=generated, time_us=ops["device_us" if on_device else "cpu_us"]
    )
    keys = ["op", "input_shapes", "dtype", "kind", "is_generated"]
    sums = ["time_us", "matmul_flops", "vector_flops", "min_bytes"]
    groups = chosen.groupby(keys, sort=False, observed=True)
    totals = groups[sums].agg(lambda values: values.sum(skipna=False))
    totals = totals.assign(calls=groups.size()).sort_values("time_us", ascending=False)
    return tuple(
        ProgramOp(
            op=str(row.op),
            input_shapes=str(row.input_shapes),
            dtype=str(row.dtype),
            kind=str(row.kind),
            is_generated=bool(row.is_generated),
            calls=int(row.calls),
            time_us=float(row.time_us),
            matmul_flops=float(row.matmul_flops),
            vector_flops=float(row.vector_flops),
            min_bytes=float(row.min_bytes),
        )
        for row in totals.reset_index().itertuples(index=False)
    )


def _fused_ops(kernel: str) -> list[str]:
    """Return the ops that a generated kernel's name lists."""
    without_number = re.sub(r"_\d+$", "", kernel)
    return list(ops_in_name(re.sub(GENERATED, "", without_number)))
