"""What callbacks of any framework share: one step is counted once, then only the clock is read."""

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from flopprof.errors import FlopprofError
from flopprof.loops import Region, prepare, region
from flopprof.report.figures import mathematics_flops, peak_flops_per_s
from flopprof.run import Run

if TYPE_CHECKING:
    from torch import nn


_MOST_COMPILED = 4  # steps with compilations in them before one is taken as it is


class StepMeter:
    """Turns the steps of a training loop into rates: FLOP/s, MFU, tokens/s.

    The first step is measured as a region, and every later one is taken to do as much. A step in
    which torch.compile was at work is left out, and the next one measured.

    Attributes:
        run: Of the measured step; None before it, and where it could not be measured.
        problem: Why it could not; "" where it could.
        measuring_s: Time that measured steps took, with what they needed afterwards.
        preparing_s: Time that was taken before the loop: imports, the profiler's start, ceilings
            where they are not in the cache. None of it is in the loop's time.
    """

    def __init__(
        self, *, tokens_per_step: int | None = None, ceilings: bool | str | Path = True
    ) -> None:
        self.run: Run | None = None
        self.problem = ""
        self.measuring_s = 0.0
        self.preparing_s = 0.0
        self._tokens_per_step = tokens_per_step
        self._ceilings = ceilings
        self._region: Region | None = None
        self._began_s = 0.0
        self._since_s: float | None = None
        self._spent_s = 0.0
        self._steps = 0
        self._compiled_steps = 0

    def prepare(self, model: "nn.Module | None", dtypes: Iterable[str] = ()) -> None:
        """Do before the loop what the first measurement would do inside it besides the step.

        Args:
            model: As for `flopprof.region`.
            dtypes: Element types of autocast.
        """
        if self.run is not None or self.problem:
            return
        began_s = time.perf_counter()
        try:
            prepare(model, ceilings=self._ceilings, dtypes=dtypes)
        except FlopprofError as error:
            self.problem = str(error)
        self.preparing_s = time.perf_counter() - began_s

    def begin_step(self, model: "nn.Module | None") -> None:
        """Begin a step; the first one is measured.

        Args:
            model: As for `flopprof.region`.
        """
        if self._since_s is None:
            self._since_s = time.perf_counter()
        if self.run is not None or self.problem or self._region is not None:
            return
        self._began_s = time.perf_counter()
        try:
            step = region(model, "step", ceilings=self._ceilings, keep_trace=False)
            self._region = step.__enter__()
        except FlopprofError as error:
            self.problem = str(error)

    def end_step(self) -> None:
        """End a step: its time counts, unless it is the one that is measured."""
        if self._region is None:
            self._add_time()
            self._steps += 1
            return
        measured = self._region
        self._region = None
        measured.__exit__(None, None, None)
        self._take(measured)
        self.measuring_s += time.perf_counter() - self._began_s
        self.skip_time()

    def _take(self, measured: Region) -> None:
        """Keep the run of a step, unless the next one tells more."""
        if measured.has_compiled and self._compiled_steps < _MOST_COMPILED:
            self._compiled_steps += 1
            return
        try:
            self.run = measured.run
        except FlopprofError as error:
            self.problem = str(error)

    def close(self) -> None:
        """Stop measuring a step that never ended; forget what was timed."""
        if self._region is not None:
            self._region.abandon()
            self._region = None
        self._since_s = None
        self._spent_s = 0.0
        self._steps = 0
        self._compiled_steps = 0

    def skip_time(self) -> None:
        """Leave out the time since the last step: evaluation, a checkpoint."""
        self._since_s = time.perf_counter()

    def _add_time(self) -> None:
        now_s = time.perf_counter()
        if self._since_s is not None:
            self._spent_s += now_s - self._since_s
        self._since_s = now_s

    def figures(self) -> dict[str, float]:
        """Return what is known of the steps since the last call: FLOPs, rates, coverage, MFU.

        What is not known is left out. Time until now counts: a loop that logs has waited for its
        device.
        """
        self._add_time()
        step_s = self._spent_s / self._steps if self._steps else math.nan
        self._spent_s = 0.0
        self._steps = 0
        if self.run is None:
            return {}
        totals = self.run.totals
        tokens = self._tokens_per_step or self.run.provenance.called.tokens or math.nan
        figures = {
            "flops_per_step": float(totals.flops),
            "coverage_frac": totals.coverage_frac,
            "step_s": step_s,
            "flops_per_s": totals.flops / step_s,
            "mfu_frac": mathematics_flops(self.run) / step_s / peak_flops_per_s(self.run),
            "tokens_per_s": tokens / step_s,
        }
        return {name: value for name, value in figures.items() if math.isfinite(value)}


class MeteredCallback:
    """What the callbacks share: a meter, and the names of its figures in a log.

    It stands before the framework's own class in a callback's bases.

    Attributes:
        meter: Holds the run of the counted step, and what counting took.
    """

    def __init__(
        self,
        *,
        tokens_per_step: int | None = None,
        ceilings: bool | str | Path = True,
        prefix: str = "flopprof/",
    ) -> None:
        """Make a callback.

        Args:
            tokens_per_step: Tokens of one step; those of the model's ids unless given.
            ceilings: Whether to find the device's ceilings, for MFU; or a ceilings file.
            prefix: Of the names in the log.
        """
        super().__init__()
        self.meter = StepMeter(tokens_per_step=tokens_per_step, ceilings=ceilings)
        self._prefix = prefix

    def named_figures(self) -> dict[str, float]:
        """Return the meter's figures since the last call, by their names in the log."""
        return {self._prefix + name: value for name, value in self.meter.figures().items()}
