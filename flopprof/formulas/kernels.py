"""Formulas of kernels that no op launched, by name: a trace shows the user's own bare."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from flopprof.formulas import Work
from flopprof.registry import Registry


@dataclass(frozen=True, slots=True)
class KernelCall:
    """One launch of a kernel, as a trace tells it: by its name alone.

    Attributes:
        kernel: The full name, template arguments included.
    """

    kernel: str


KernelFormula = Callable[[KernelCall], Work | None]

KERNEL_FORMULAS: Registry[KernelFormula] = Registry("kernel formula")


def kernel_formula(*names: str) -> Callable[[KernelFormula], KernelFormula]:
    """Register a formula for kernels that no op owns, such as "matmul_k".

    The formula maps a `KernelCall` to the `Work` of one launch, or to None where it does not know.

    Args:
        names: A kernel's whole name, or a word in it: "matmul_k" is also `void matmul_k<float>(…)`.
    """
    return KERNEL_FORMULAS.register(*names)


def kernel_work(kernel: str) -> tuple[Work | None, str]:
    """Return what one launch of `kernel` does, or None; and why its formula does not say."""
    formula = KERNEL_FORMULAS.get(kernel) or _by_word(kernel)
    if formula is None:
        return None, ""
    try:
        work = formula(KernelCall(kernel))
        if work is None:
            return None, "its formula does not know this call"
        figures = map(float, (work.matmul_flops, work.vector_flops, work.min_bytes))
        if not all(0 <= figure < math.inf for figure in figures):
            raise ValueError("it counts less than nothing, or without end")
    except Exception as error:  # the user's own code
        return None, f"its formula raised {type(error).__name__}: {error}"
    return work, ""


def _by_word(kernel: str) -> KernelFormula | None:
    for name, formula in KERNEL_FORMULAS.items():
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", kernel):
            return formula
    return None
