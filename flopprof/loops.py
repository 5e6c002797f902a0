"""Code with a loop of its own: a block measured once, a step measured now and then."""

import functools
import inspect
import time
import types
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from flopprof.api import ceilings_of, ceilings_of_user
from flopprof.assemble import Witnesses, as_call, assemble
from flopprof.errors import LoadError, UsageError
from flopprof.provenance import (
    Called,
    CallProvenance,
    DeviceFacts,
    Source,
    Spread,
    Timing,
    Warned,
    warned,
)
from flopprof.run import Run
from flopprof.settings import Settings, silent
from flopprof.trace.ranks import dtype_of_most_work

if TYPE_CHECKING:
    from torch import nn

    from flopprof.capture.region import WatchedBlock
    from flopprof.devices import Device

KEPT_RUNS = 20
"""Runs that `every` keeps, the newest: each holds tables of thousands of rows."""
TRACED_ONCE = (
    "a region runs once, while it is traced: its wall time has the profiler's and the hooks' in "
    "it, so rates are lower than without"
)
COMPILING = (
    "code was compiled while the region ran: what the compiler tried with tensors of its own is "
    "counted as well; run the block once before it"
)
COMPILED = "the model is compiled: its ops are known, and not which module they are in"


class Region:
    """A block of code that is measured while it runs, once; made by `flopprof.region`.

    Attributes:
        samples: Examples that the block works on; those the model was called with unless set.
        tokens: The same for tokens.
        has_compiled: Whether torch.compile was at work inside: its own tries are in the counts.
    """

    def __init__(
        self,
        model: "nn.Module | None",
        name: str,
        settings: Settings,
        device: "Device",
        *,
        keep_trace: bool = True,
    ) -> None:
        self.samples: int | None = None
        self.tokens: int | None = None
        self.has_compiled = False
        self._model = model
        self._name = name
        self._settings = settings
        self._device = device
        self._keep_trace = keep_trace
        self._cleanup = ExitStack()
        self._block: WatchedBlock | None = None
        self._run: Run | None = None
        self._problem: UsageError | None = None
        self._graphs_before = 0

    def __repr__(self) -> str:
        state = "not over" if self._run is None else repr(self._run)
        return f"<flopprof region {self._name!r}: {state}>"

    def __enter__(self) -> Self:
        from flopprof.capture.region import graphs_compiled, is_compiled, watch_block

        if self._block is not None:
            raise UsageError(
                f"the region {self._name!r} is entered twice",
                remedy="make one for each block: with flopprof.region(…) as region",
            )
        hooked = self._model
        if hooked is not None and is_compiled(hooked):
            hooked = None
        self._block = self._cleanup.enter_context(
            watch_block(hooked, self._device, keep_trace=self._keep_trace)
        )
        self._graphs_before = graphs_compiled()
        return self

    def __exit__(self, *exception: Any) -> None:
        from flopprof.capture.region import graphs_compiled

        self.has_compiled = graphs_compiled() > self._graphs_before
        try:
            self._cleanup.__exit__(*exception)
            if exception[0] is None:
                assert self._block is not None  # it was entered
                self._run = self._assembled(self._block)
        except LoadError:
            self._problem = UsageError(
                f"the region {self._name!r} ran no op of PyTorch",
                remedy="put the calls to be measured inside its block",
            )
        except UsageError as error:  # the block has done its work: no reason to stop the caller
            self._problem = error

    def abandon(self) -> None:
        """End without a run: what the block raised was caught elsewhere."""
        stopped = RuntimeError("the region is abandoned")
        self.__exit__(RuntimeError, stopped, None)

    @property
    def run(self) -> Run:
        """The run of the block.

        Raises:
            UsageError: The block is not over, it raised, or it could not be measured: it ran no op,
                or used a profiler itself.
        """
        if self._problem is not None:
            raise self._problem
        if self._run is None:
            raise UsageError(
                f"the region {self._name!r} has no run: its block is not over, or it raised",
                remedy="read region.run after the `with` block",
            )
        return self._run

    def _assembled(self, block: "WatchedBlock") -> Run:
        from flopprof.capture.describe import describe_environment
        from flopprof.capture.foreign import CallsSeen, foreign_modules

        assert block.trace is not None  # it is over
        dtype = dtype_of_most_work(block.trace.ops)
        ceilings = ceilings_of(
            self._device,
            block.trace,
            dtype,
            self._settings,
            ceilings_of_user(self._settings),
            silent,
        )
        wall_us = Spread(median=block.traced_us, p5=block.traced_us, p95=block.traced_us)
        provenance = CallProvenance(
            source=self._source(block),
            called=Called(
                dtype=dtype,
                train=bool((block.trace.ops["phase"] == "backward").any()),
                samples=block.samples if self.samples is None else self.samples,
                tokens=block.tokens if self.tokens is None else self.tokens,
            ),
            device=DeviceFacts(**block.device),
            environment=describe_environment(),
            timing=Timing(
                wall_us=wall_us,
                repeats=1,
                traced_us=block.traced_us,
                device_busy_us=block.trace.info.get("device_busy_us", float("nan")),
            ),
        )
        foreign: Collection[str] = ()
        if self._model is not None:  # all of its code may have run: the block was not looked into
            foreign = foreign_modules(self._model, CallsSeen(self._model))
        witnesses = Witnesses(block.module_calls, [as_call(block.trace, foreign)])
        doubts = [
            Warned(code="region", text=TRACED_ONCE),
            *warned("region", [COMPILING] if self.has_compiled else []),
            *warned("region", [COMPILED] if self._is_without_modules(block) else []),
            *warned("load", [block.busy] if block.busy else []),
            *warned("ceilings", ceilings.warnings),
            *warned("trace", block.trace.info["warnings"]),
        ]
        return assemble(
            witnesses,
            ceilings.rooflines(),
            provenance,
            doubts=doubts,
            trace=block.packed or None,
        )

    def _source(self, block: "WatchedBlock") -> Source:
        from flopprof.capture.describe import describe_source
        from flopprof.capture.subject import Origin

        if self._model is None:
            return Source(model=self._name)
        if self._is_without_modules(block):
            parameters = sum(parameter.numel() for parameter in self._model.parameters())
            return Source(model=self._title, parameters=parameters)
        source = describe_source(self._model, block.module_calls, Origin())
        return Source(
            model=self._title, parameters=source.parameters, never_called=source.never_called
        )

    @property
    def _title(self) -> str:
        return f"{self._name} of {type(self._model).__name__}"

    def _is_without_modules(self, block: "WatchedBlock") -> bool:
        from flopprof.capture.region import is_compiled

        return self._model is not None and not len(block.module_calls) and is_compiled(self._model)


def region(
    model: "nn.Module | None" = None,
    name: str = "region",
    *,
    device: str | None = None,
    ceilings: bool | str | Path = True,
    formulas: str | Path | None = None,
    keep_trace: bool = True,
) -> Region:
    """Return a context whose block, any code, is measured while it runs, once.

    The block is the caller's real work: nothing is repeated and nothing put back. What it raises
    passes through as it is, and there is no run then. `with region(model, "step") as r: …; r.run`.

    Args:
        model: The module whose calls are counted by hooks and named; without one there are ops.
        name: What the block is called in reports.
        device: Where most of the work is: the model's device unless given; without a model the
            GPU where this process uses one, else the CPU.
        ceilings: Whether to find the device's ceilings, after the block; or a ceilings file.
        formulas: File with formulas for ops and modules of one's own.
        keep_trace: Whether the run keeps its trace file.

    Raises:
        UsageError: No such device, or `model` is no module; as it is entered: another measurement
            or a profiler is at work.
    """
    import torch

    from flopprof.capture.call import home
    from flopprof.devices import find_device
    from flopprof.formulas.external import load_formulas

    if model is not None and not isinstance(model, torch.nn.Module):
        raise UsageError(
            f"a region is given {type(model).__name__}, which is no module",
            remedy='flopprof.region(model, "step"), or flopprof.region(name="step")',
        )
    settings = Settings(device=device, ceilings=ceilings, formulas=formulas)
    ceilings_of_user(settings)  # a fault in the file is told before the block runs
    if formulas:
        load_formulas(formulas)
    if device is None:
        device = "cuda" if torch.cuda.is_initialized() else "cpu"
        if model is not None:
            device = home(model)[0]
    return Region(model, name, settings, find_device(device), keep_trace=keep_trace)


def prepare(
    model: "nn.Module | None", *, ceilings: bool | str | Path, dtypes: Iterable[str]
) -> None:
    """Do now what the first region would do besides its own work, so that a loop does not pay it.

    Imports what it needs, starts PyTorch's profiler once, and finds the device's ceilings, which
    are then in the user's cache.

    Args:
        model: As for `region`.
        ceilings: As for `region`.
        dtypes: Element types that the loop computes in, besides the model's.

    Raises:
        UsageError: As `region`.
    """
    import torch

    from flopprof.capture.call import home
    from flopprof.ceilings import find_ceilings
    from flopprof.devices import find_device, keeping_random_states

    where: str = "cpu"
    dtype: str | None = None
    if model is not None:
        where, dtype = home(model)
    with region(name="preparation", device=where, ceilings=False, keep_trace=False):
        torch.ones(8, device=where).sum()
    if not ceilings:
        return
    user = ceilings_of_user(Settings(ceilings=ceilings))
    with keeping_random_states(where):  # training goes on with its own random numbers
        wanted = dict.fromkeys((dtype or "float32", *dtypes))
        find_ceilings(find_device(where), user=user, dtypes=wanted)


class Sampled:
    """A step that is called plainly, and measured now and then; made by `flopprof.every`.

    Attributes:
        runs: The newest runs, 20 at most, oldest first; without their trace files.
        calls: How often the step was called.
        skipped: How many calls were not measured in their turn: too costly, or not possible.
    """

    __name__: str  # the step's

    def __init__(
        self,
        step: Callable[..., Any],
        number: int,
        model: "nn.Module | None",
        max_overhead: float,
        ceilings: bool | str | Path,
    ) -> None:
        functools.update_wrapper(self, step)
        self.runs: deque[Run] = deque(maxlen=KEPT_RUNS)
        self.calls = 0
        self.skipped = 0
        self._step = step
        self._number = number
        self._model = model
        self._max_overhead = max_overhead
        self._ceilings = ceilings
        self._began_s: float | None = None
        self._plain_s = 0.0
        self._plain_calls = 0
        self._extra_s = 0.0
        self._last_extra_s = 0.0

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    @property
    def latest(self) -> Run | None:
        """The newest run; None before the first."""
        return self.runs[-1] if self.runs else None

    @property
    def overhead_frac(self) -> float:
        """Share of the time since the first call that measuring took; NaN before any call."""
        if self._began_s is None:
            return float("nan")
        return self._extra_s / max(time.perf_counter() - self._began_s, 1e-9)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the step; measure it if it is its turn and there is time for it."""
        start = time.perf_counter()
        if self._began_s is None:
            self._began_s = start
        self.calls += 1
        if self.calls % self._number == 0:
            if self._has_time(start):
                return self._measured(start, args, kwargs)
            self.skipped += 1
        result = self._step(*args, **kwargs)
        self._plain_s += time.perf_counter() - start
        self._plain_calls += 1
        return result

    def _has_time(self, now_s: float) -> bool:
        """Return whether a measurement like the last one keeps the overhead below its bound."""
        if not self._last_extra_s:
            return True  # nothing is known of its cost yet
        assert self._began_s is not None
        after_s = now_s - self._began_s + self._last_extra_s
        return self._extra_s + self._last_extra_s <= self._max_overhead * after_s

    def _measured(self, start: float, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = getattr(self._step, "__name__", "step")
        began = False
        returned: list[Any] = []
        problem: Exception | None = None
        try:
            with region(self._model, name, ceilings=self._ceilings, keep_trace=False) as measured:
                began = True
                returned.append(self._step(*args, **kwargs))
            self.runs.append(measured.run)
        except Exception as error:
            if began and not returned:
                raise  # the step's own
            problem = error
        finally:
            if began:
                self._add_extra(time.perf_counter() - start)
        if problem is not None:
            self.skipped += 1
        if not began:  # another measurement is around this call
            return self._step(*args, **kwargs)
        if problem is not None:
            warnings.warn(f"{name} ran, and could not be measured: {problem}", stacklevel=3)
        return returned[0]

    def _add_extra(self, spent_s: float) -> None:
        plain_s = self._plain_s / self._plain_calls if self._plain_calls else 0.0
        self._last_extra_s = max(spent_s - plain_s, 1e-9)
        self._extra_s += self._last_extra_s


def every(
    number: int,
    *,
    model: "nn.Module | None" = None,
    max_overhead: float = 0.03,
    ceilings: bool | str | Path = False,
) -> Callable[[Callable[..., Any]], Sampled]:
    """Return a decorator that calls a step plainly and measures every `number`th call as a region.

    The first measurement tells what one costs; a later one is skipped where it would bring the
    overhead, as a share of the time since the first call, above `max_overhead`.

    Args:
        number: Which calls are measured: 100 for the 100th, the 200th, …
        model: As for `region`.
        max_overhead: The most that measuring may take, 0.03 for three percent.
        ceilings: As for `region`; none unless given, since a CPU's take seconds to measure.

    Raises:
        UsageError: `number` or `max_overhead` is out of range; or, as it decorates, the step is a
            generator or coroutine, whose call does not run it.
    """
    if number < 1:
        raise UsageError(f"every is given {number}", remedy="give at least 1, such as every(100)")
    if not 0 < max_overhead <= 1:
        raise UsageError(f"max_overhead is {max_overhead}", remedy="give a share, such as 0.03")

    def decorate(step: Callable[..., Any]) -> Sampled:
        kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction)
        if any(is_kind(step) for is_kind in (*kinds, inspect.isasyncgenfunction)):
            raise UsageError(
                "the step is a generator or a coroutine: its call does not run it",
                remedy="decorate the plain function inside it",
            )
        return Sampled(step, number, model, max_overhead, ceilings)

    return decorate
