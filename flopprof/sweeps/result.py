"""What a sweep found: a tidy table, the cells that none beats, and which one to take."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from flopprof.run import SCHEMA_VERSION, to_json
from flopprof.sweeps.cell import DONE
from flopprof.sweeps.grid import Cell
from flopprof.units import percent

FIGURES = (
    "status",
    "latency_p50_us",
    "latency_p95_us",
    "samples_per_s",
    "tokens_per_s",
    "matmul_flops",
    "flops",
    "flops_at_most",
    "achieved_flops_per_s",
    "mfu_frac",
    "mbu_frac",
    "bound",
    "peak_memory_bytes",
    "energy_per_sample_j",
    "coverage_frac",
    "input",
    "latency_p5_us",
    "min_bytes",
    "peak_flops_per_s",
    "peak_bytes_per_s",
    "reason",
)
"""Columns of the table, after those of the axes."""

_ENDINGS = ("us", "s", "flops", "most", "frac", "bytes", "j")  # of figures that are numbers
NEARLY_BEST = 0.9
"""× the best throughput: from here on a shorter latency is worth more than the rest of it."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Which cell to take, and why.

    Attributes:
        cell: Axis → value.
        throughput_frac: Its throughput over the best of all cells.
        latency_frac: Its latency over that of the cell with the best throughput.
        text: The sentence for people.
    """

    cell: dict[str, Any]
    throughput_frac: float
    latency_frac: float
    text: str


@dataclass(frozen=True)
class Sweep:
    """A model over a grid of settings.

    Attributes:
        what: The model.
        axes: Names of what varies.
        rows: One dictionary per cell: its values, `status`, figures, `reason`.
    """

    what: str
    axes: Sequence[str]
    rows: Sequence[dict[str, Any]]

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row per cell: the axes, status and figures; NaN is not known."""
        columns = [*self.axes, *FIGURES]
        listed = [{name: row.get(name) for name in columns} for row in self.rows]
        table = pd.DataFrame(listed, columns=columns)
        numbers = [name for name in FIGURES if name.rpartition("_")[2] in _ENDINGS]
        table[numbers] = table[numbers].astype(float)
        return table

    @property
    def done(self) -> pd.DataFrame:
        """The cells that have figures."""
        return self.table[self.table["status"] == DONE]

    @property
    def pareto(self) -> pd.DataFrame:
        """The cells that no other beats in latency without losing throughput, fastest first."""
        columns = ["latency_p50_us", "samples_per_s"]
        by_latency = self.done.dropna(subset=columns).sort_values(
            columns, ascending=[True, False], kind="stable"
        )
        best_before = by_latency["samples_per_s"].cummax().shift(fill_value=-math.inf)
        return by_latency[by_latency["samples_per_s"] > best_before]

    @property
    def recommendation(self) -> Recommendation | None:
        """The shortest latency with nearly the best throughput; None without two cells."""
        front = self.pareto
        if len(self.done) < 2 or not len(front):
            return None
        best = front.iloc[-1]  # of the front the slowest has most throughput
        near = front[front["samples_per_s"] >= NEARLY_BEST * best["samples_per_s"]]
        chosen = near.iloc[0]
        throughput_frac = float(chosen["samples_per_s"] / best["samples_per_s"])
        latency_frac = float(chosen["latency_p50_us"] / best["latency_p50_us"])
        values = {axis: _plain(chosen[axis]) for axis in self.axes}
        why = "the best throughput of all, and no other is as fast"
        if throughput_frac < 1:
            why = f"{percent(throughput_frac)} of the best throughput at "
            why += f"{percent(latency_frac)} of its latency"
        text = f"{Cell(values).label}: {why}"
        return Recommendation(values, throughput_frac, latency_frac, text)

    def to_object(self) -> dict[str, Any]:
        """Return the sweep as a JSON object: `cells`, `pareto`, `recommendation`; null: unknown."""
        advised = self.recommendation
        recommended = None
        if advised is not None:
            recommended = {
                "cell": advised.cell,
                "throughput_frac": advised.throughput_frac,
                "latency_frac": advised.latency_frac,
                "text": advised.text,
            }
        value: dict[str, Any] = to_json(
            {
                "schema_version": SCHEMA_VERSION,
                "model": self.what,
                "axes": list(self.axes),
                "cells": list(self.rows),
                "pareto": _records(self.pareto[[*self.axes, "latency_p50_us", "samples_per_s"]]),
                "recommendation": recommended,
            }
        )
        return value


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(name): _plain(value) for name, value in row.items()}
        for row in table.to_dict("records")
    ]


def _plain(value: Any) -> Any:
    """Return the Python value of one of numpy's."""
    return value.item() if hasattr(value, "item") else value
