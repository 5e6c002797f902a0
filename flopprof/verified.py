"""Run a model again under hardware's counters, and join what they say to its run."""

import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopprof.api import ceilings_of_user, find_to_profile, profile_subject, run_profile
from flopprof.capture.subject import training_of
from flopprof.errors import FlopprofError, UsageError
from flopprof.executed.attach import join_counters
from flopprof.executed.measured import hidden_gaps, join_measured, sites_without_formula
from flopprof.executed.stepping import check_can_step
from flopprof.executed.underncu import check_there, run_under_ncu
from flopprof.run import Run
from flopprof.settings import Progress, Settings, silent
from flopprof.stepped import measure_uncounted

if TYPE_CHECKING:
    from flopprof.devices import Device

RANGES = "--ranges"
"""The option by which the command, run again under a profiler, makes its one call in ranges."""


def verify_under_ncu(
    model_name: str | Path,
    settings: Settings,
    arguments: Sequence[str],
    progress: Progress = silent,
) -> Run:
    """Return the profiled run of a model with what its kernels executed.

    The model is profiled as by `profile`; then the command line of `arguments` is run again below
    `ncu`, in a pass of its own: that makes kernels one after another and lowers clocks.

    Args:
        model_name: What `load` takes for a model, as text.
        settings: How it is called.
        arguments: The arguments of the command line that names the same model and settings.
        progress: Called with the name of each stage as it begins.

    Raises:
        UsageError: There is no `ncu`, or no GPU: all that is missing is told.
        LoadError: The driver refuses access to counters, or nothing was profiled.
    """
    ncu = check_there(_problem_of_gpu(settings))
    run = run_profile(model_name, None, None, settings, progress)
    capability = run.provenance.device.capability or ""
    arch = f"sm_{capability.replace('.', '')}" if capability else ""
    with tempfile.TemporaryDirectory(prefix="flopprof-") as name:
        saved = run.save(Path(name) / "run.flopprof")
        progress("counting in hardware: kernels run several times each")
        command = [sys.executable, "-m", "flopprof", *arguments, RANGES, str(saved)]
        report = run_under_ncu(ncu, arch, Path(name), command)
        progress("reading counters")
        return join_counters(run, report)


def verify_by_stepping(
    model: Any,
    settings: Settings,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> Run:
    """Return the profiled run of a model on a CPU, with what of it executed that nothing counts.

    The model is profiled as by `profile`; then its ops without formula, and what its own code does
    between ops where time is hidden, are stepped through one thread: such sites get
    `executed_flops`, and are *measured*.

    Args:
        model: A module, or what `load` takes.
        settings: How it is called.
        force: Whether to step what takes more than a minute.
        progress: Called with the name of each stage as it begins.

    Raises:
        UsageError: The model or its input is not usable, or calls cannot be stepped here.
        ModelError: The model raised.
    """
    check_can_step()
    if settings.distributed is not None:
        raise UsageError(
            "ops of one process are stepped, not of several", remedy="leave out --distributed"
        )
    user_ceilings = ceilings_of_user(settings)
    subject, device = find_to_profile(model, None, None, settings, progress)
    run = profile_subject(subject, device, settings, user_ceilings, progress)
    sites = sites_without_formula(run)
    wanted = set(zip(sites["op"], sites["input_shapes"], strict=True))
    paths = list(dict.fromkeys(hidden_gaps(run)["module_path"]))
    training = training_of(settings)
    if training:
        paths = [path for path in paths if path]  # outside of all modules is backward, too
    if not wanted and not paths:
        return join_measured(run, [])
    measured, gaps = measure_uncounted(
        subject, wanted, paths, training=training, force=force, progress=progress
    )
    return join_measured(run, measured, gaps)


def _problem_of_gpu(settings: Settings) -> str:
    """Return why the GPU that the settings name cannot be used; "" where it can."""
    try:
        _device(settings)
    except FlopprofError as error:
        return error.problem
    return ""


def _device(settings: Settings) -> "Device":
    from flopprof.devices import find_device

    return find_device(settings.device or "cuda")


def make_ranged_call(model_name: str | Path, settings: Settings, folder: str | Path) -> None:
    """Make the one call that a profiler of kernels watches, each op in a range with its number.

    Args:
        model_name: The model, as text.
        settings: How it is called.
        folder: The saved run whose ops have these numbers.
    """
    from flopprof.capture.ranges import profile_in_ranges
    from flopprof.capture.subject import find_subject

    ops = Run.load(folder).ops
    device = _device(settings)
    subject = find_subject(model_name, None, None, settings, device=device.torch_device)
    if not profile_in_ranges(subject, device, settings, ops):
        warnings.warn(
            "the call under the profiler did other ops than the run: launches are joined by order",
            stacklevel=1,
        )
