"""The module tree: parameters, FLOPs, time and rate of each module with all inside it."""

import math

import pandas as pd

from flopprof.report.rows import is_timed, module_sums
from flopprof.run import Run
from flopprof.units import percent, shown, si

_INDENT = "  "


def module_tree(run: Run, depth: int) -> list[list[str]]:
    """Return the modules as rows of text, the first of them the header.

    Args:
        run: The result.
        depth: Levels below the model itself: 1 are its own parts.
    """
    sums = module_sums(run)
    parameters = parameters_inside(run)
    timed = is_timed(run)
    whole_flops = float(run.totals.flops)
    header = ["module", "type", "params", "FLOPs", "share"]
    if timed:
        header += ["time", "FLOP/s"]
    rows = [header]
    for module in sums.sort_values("module_path", key=_in_tree_order).itertuples(index=False):
        level = _level(module.module_path)
        if level > depth:
            continue
        name = module.module_path.rpartition(".")[2] or "(model)"
        mark = "≥ " if module.unknown_sites else ""
        share = module.flops / whole_flops if whole_flops else math.nan
        row = [
            _INDENT * level + name,
            module.module_type.rpartition(".")[2],
            si(parameters.get(module.module_path, math.nan), ""),
            mark + si(float(module.flops), ""),
            percent(share),
        ]
        if timed:
            row.append(percent(module.time_share_frac))
            row.append(shown("achieved_flops_per_s", module.achieved_flops_per_s))
        rows.append(row)
    return rows


def parameters_inside(run: Run) -> dict[str, float]:
    """Return, per module path, the elements of its parameters and of all modules inside it.

    A module called twice has its parameters once; what two modules share counts in each of them.
    NaN in runs that were saved before this was kept.
    """
    calls = run.module_calls.drop_duplicates("module_path")
    own = dict(zip(calls["module_path"], calls["self_parameters"], strict=True))
    inside = dict.fromkeys(own, 0.0)
    for path, count in own.items():
        parts = path.split(".") if path else []
        for length in range(len(parts) + 1):
            above = ".".join(parts[:length])
            if above in inside:
                inside[above] += count
    return inside


def _level(path: str) -> int:
    return path.count(".") + 1 if path else 0


def _in_tree_order(paths: "pd.Series[str]") -> "pd.Series[str]":
    """Return keys that sort a module before those inside it, and layer 2 before layer 10."""
    return paths.map(lambda path: [part.zfill(8) for part in path.split(".")] if path else [])
