"""Write flopprof/formulas/composite.json: the ops of PyTorch that only call other ops.

usage: python scripts/make_composite.py
"""

import json
from pathlib import Path

import torch

TARGET = Path(__file__).parents[1] / "flopprof" / "formulas" / "composite.json"

ALSO = ("aten::_sparse_sum",)
"""Ops with a kernel of their own, which only calls others: a sparse tensor's values are summed."""


def main() -> None:
    """Ask the dispatcher which ops have no kernel but the composite one."""
    kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    overloads = [
        name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")
    ]
    composite: dict[str, bool] = {}
    for name in overloads:
        op, _, overload = name.partition(".")
        calls_others = kernel(name, "CompositeImplicitAutograd")
        if overload.endswith("out") and not kernel(name, "CPU"):  # generated: calls the other
            calls_others = calls_others or kernel(name, "CompositeExplicitAutograd")
        composite[op] = composite.get(op, True) and calls_others
    composite |= dict.fromkeys(ALSO, True)
    names = sorted(op for op, only in composite.items() if only)
    TARGET.write_text(json.dumps(names, indent=0) + "\n")
    print(f"{len(names)} of {len(composite)} ops, torch {torch.__version__}: {TARGET}")


if __name__ == "__main__":
    main()
