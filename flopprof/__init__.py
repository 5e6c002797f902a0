"""Count a PyTorch model's FLOPs, measure them, and say which part of the answer is missing."""

import sys

# `python -m flopprof` imports this file first, with the current folder first on sys.path: a
# typing.py that lies beside a downloaded model would be imported in place of Python's own.
if sys.argv[:1] == ["-m"] and "flopprof" in sys.orig_argv and not sys.flags.safe_path:
    del sys.path[0]

from flopprof._version import __version__ as __version__

TYPE_CHECKING = False  # as checkers of types take it: typing itself costs time here
if TYPE_CHECKING:
    from flopprof.api import analyse_traces, count_flops, load, profile
    from flopprof.capture.modules import FlopsCounter, calculate_flops_for_size
    from flopprof.capture.training import Training
    from flopprof.errors import FlopprofError
    from flopprof.executed.attach import join_counters
    from flopprof.executed.read import read_counters
    from flopprof.formulas import module_formula, op_formula
    from flopprof.formulas.kernels import kernel_formula
    from flopprof.loops import Region, Sampled, every, region
    from flopprof.run import Count, Run
    from flopprof.sweeps.measure import sweep
    from flopprof.sweeps.result import Sweep
    from flopprof.testing import assert_flops

_HOMES = {
    "Count": "flopprof.run",
    "FlopprofError": "flopprof.errors",
    "FlopsCounter": "flopprof.capture.modules",
    "Region": "flopprof.loops",
    "Run": "flopprof.run",
    "Sampled": "flopprof.loops",
    "Sweep": "flopprof.sweeps.result",
    "Training": "flopprof.capture.training",
    "analyse_traces": "flopprof.api",
    "assert_flops": "flopprof.testing",
    "calculate_flops_for_size": "flopprof.capture.modules",
    "count_flops": "flopprof.api",
    "every": "flopprof.loops",
    "join_counters": "flopprof.executed.attach",
    "kernel_formula": "flopprof.formulas.kernels",
    "load": "flopprof.api",
    "module_formula": "flopprof.formulas",
    "op_formula": "flopprof.formulas",
    "profile": "flopprof.api",
    "read_counters": "flopprof.executed.read",
    "region": "flopprof.loops",
    "sweep": "flopprof.sweeps.measure",
}

__all__ = [
    "Count",
    "FlopprofError",
    "FlopsCounter",
    "Region",
    "Run",
    "Sampled",
    "Sweep",
    "Training",
    "analyse_traces",
    "assert_flops",
    "calculate_flops_for_size",
    "count_flops",
    "every",
    "join_counters",
    "kernel_formula",
    "load",
    "module_formula",
    "op_formula",
    "profile",
    "read_counters",
    "region",
    "sweep",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use: `import flopprof` costs nothing, torch waits."""
    if name not in _HOMES:
        raise AttributeError(f"module 'flopprof' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
