"""What to do next: rules, each with its evidence, a threshold and a source (`advice.csv`).

A rule is a function from a run to its figure, which is held against the threshold, and the
evidence in words. A rule without a figure says nothing.
"""

import csv
import math
import re
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from flopprof.jobfacts import Part
from flopprof.provenance import CallProvenance, CountProvenance, TraceProvenance
from flopprof.registry import Registry
from flopprof.report.answer import json_block
from flopprof.report.figures import peak_bytes_per_s
from flopprof.report.noise import was_busy
from flopprof.run import Run
from flopprof.units import counted, duration, percent, safe_text, three_digits

with Path(__file__).with_name("advice.csv").open(encoding="utf-8", newline="") as _file:
    ROWS = {row["rule"]: row for row in csv.DictReader(_file)}

SMALL_KERNEL_US = 10.0  # launching a kernel takes about 5 µs of the host: shorter ones wait for it
BETTER_CEILING = 1.5  # × the ceiling in use: from here on another type is worth a trial
TILE = 8  # elements of 16 bits: 16 bytes, what matrix units and vectorised loads want
BIG_FLOPS = 30e6  # of a product: smaller ones ran slower in bfloat16 on a CPU with AMX
CONVERTED = 1.5  # × a product's bytes: float32 is read, and half as many are written
_SMALL_KINDS = ("elementwise", "normalisation", "reduction", "other")
_PRODUCTS = ("matmul", "convolution", "attention", "recurrent")
_LAYOUT_KERNEL = re.compile(r"nchwToNhwc|nhwcToNchw|convertTensor_kernel|batched_transpose", re.I)

SHOWN: ContextVar[bool] = ContextVar("advice", default=True)
"""Whether advice is given: the command line's --no-advice."""


class Advice(Part, frozen=True, kw_only=True):
    """One thing to do next.

    Attributes:
        rule: Its name in `advice.csv`.
        text: What to do.
        evidence: The figures that it follows from.
        source: Where it is explained.
    """

    rule: str
    text: str
    evidence: str
    source: str


class Finding(NamedTuple):
    """What a rule found: its figure, and the evidence in words."""

    figure: float
    evidence: str


Rule = Callable[[Run], Finding | None]
RULES: Registry[Rule] = Registry("rule of advice")


@json_block("advice")
def advice(run: Run) -> list[Advice]:
    """What to do next, the largest share of the time first; empty where no rule has a figure."""
    if not SHOWN.get() or isinstance(run.provenance, CountProvenance):
        return []
    if not run.sites["time_us"].gt(0).any():
        return []
    findings: dict[str, Finding] = {}
    for name, rule in RULES.items():
        finding = rule(run)
        if finding is not None and finding.figure >= float(ROWS[name]["threshold"]):
            findings[name] = finding
    excluded = {ROWS[name]["excludes"] for name in findings}
    order = sorted(findings, key=lambda name: -findings[name].figure)
    return [
        Advice(
            rule=name,
            text=_remedy(run, name),
            evidence=findings[name].evidence,
            source=ROWS[name]["source"],
        )
        for name in order
        if name not in excluded
    ]


def _remedy(run: Run, rule: str) -> str:
    """Return what to do: options of ours are for what ran here, not for a trace from elsewhere."""
    row = ROWS[rule]
    elsewhere = row["text_of_trace"] if isinstance(run.provenance, TraceProvenance) else ""
    return elsewhere or row["text"]


def advice_lines(run: Run) -> list[str]:
    """Return the advice as lines for people: what to do, and why."""
    return [f"{each.text} ({each.evidence})" for each in advice(run)]


def _share(run: Run, chosen: "pd.Series[bool]") -> float:
    """Return the share of the sites' time that the chosen ones take."""
    time_us = run.sites["time_us"].fillna(0.0)
    whole_us = float(time_us.sum())
    return float(time_us[chosen].sum()) / whole_us if whole_us > 0 else math.nan


def _kinds(run: Run, *kinds: str) -> "pd.Series[bool]":
    return run.sites["kind"].isin(kinds)


def _is_compiled(run: Run) -> bool:
    provenance = run.provenance
    return isinstance(provenance, CallProvenance) and provenance.compiled is not None


def _on_gpu(run: Run) -> bool:
    return run.has_kernels


def _peak(run: Run, dtype: str) -> float:
    """Return the matmul ceiling of a type; NaN where it is not known."""
    roofs = run.rooflines
    chosen = roofs[(roofs["dtype"] == dtype) & (roofs["unit"] == "tensor") & roofs["valid"]]
    return float(chosen["peak_flops_per_s"].max())


@RULES.register("batch")
def _batch(run: Run) -> Finding | None:
    products = _kinds(run, "matmul", "convolution") & (run.sites["bound"] == "memory")
    share = _share(run, products)
    if not products.any():
        return None
    first = run.sites[products].iloc[0]
    intensity = three_digits(first["intensity_flops_per_byte"])
    evidence = f"products left of the ridge take {percent(share)} of the time, such as "
    return Finding(share, evidence + f"{_place(first)} at {intensity} FLOP/byte")


@RULES.register("fuse")
def _fuse(run: Run) -> Finding | None:
    if _is_compiled(run):
        return None
    small = _kinds(run, *_SMALL_KINDS) & (run.sites["verdict"] != "fused")  # no kernel of many
    calls = int(run.sites.loc[small, "calls"].sum())
    share = _share(run, small)
    if calls < 2:  # one op has nothing to be fused with
        return None
    return Finding(
        share, f"{counted(calls, 'elementwise or normalising op')}, {percent(share)} of the time"
    )


@RULES.register("attention")
def _attention(run: Run) -> Finding | None:
    """Products of four sizes beside a softmax in one module: attention by hand."""
    forward = run.sites[run.sites["phase"] == "forward"]
    softmax = forward[forward["op"].str.endswith(("softmax", "_softmax"))]
    products = forward[(forward["kind"] == "matmul") & forward["op"].str.contains("bmm|matmul")]
    modules = set(softmax["module_path"]) & set(products["module_path"])
    if not modules:
        return None
    parts = pd.concat([softmax, products])
    of_attention = parts.index[parts["module_path"].isin(modules)]
    chosen = run.sites.index.isin(of_attention)
    share = _share(run, pd.Series(chosen, index=run.sites.index))
    where = safe_text(min(modules) or "the model itself", 60)
    return Finding(share, f"softmax between products in {where}, {percent(share)} of the time")


@RULES.register("copies")
def _copies(run: Run) -> Finding | None:
    moving = _kinds(run, "free") & run.sites["min_bytes"].gt(0)
    share = _share(run, moving)
    if not moving.any():
        return None
    names = ", ".join(run.sites.loc[moving, "op"].str.removeprefix("aten::").unique()[:3])
    return Finding(share, f"{safe_text(names, 60)} take {percent(share)} of the time")


@RULES.register("channels_last")
def _channels_last(run: Run) -> Finding | None:
    if not _on_gpu(run) or not _kinds(run, "convolution").any():
        return None
    kernels = run.kernel_sums
    times = kernels["time_us"].where(kernels["kind"] == "compute", 0.0)
    turning = kernels["kernel"].astype(str).str.contains(_LAYOUT_KERNEL)
    if not times.sum() > 0 or not turning.any():
        return None
    share = float(times[turning].sum() / times.sum())
    return Finding(share, f"kernels that turn the layout take {percent(share)} of kernel time")


@RULES.register("tile")
def _tile(run: Run) -> Finding | None:
    if not _on_gpu(run):
        return None
    narrow = run.sites["dtype"].isin(("float16", "bfloat16")) & _kinds(run, "matmul")
    odd = narrow & run.sites["input_shapes"].map(_has_odd_size)
    if not odd.any():
        return None
    share = _share(run, odd)
    first = run.sites[odd].iloc[0]
    return Finding(
        share,
        f"products of {safe_text(first['input_shapes'], 60)} and the like take "
        f"{percent(share)} of the time",
    )


def _has_odd_size(shapes: str) -> bool:
    """Return whether a product's inner or second outer size is no multiple of a tile.

    The rows of the first operand may be of any number: they are not contiguous.
    """
    operands = [text.split("x") for text in str(shapes).split(", ")]
    matrices = [sizes for sizes in operands if len(sizes) > 1 and all(map(str.isdigit, sizes))]
    if len(matrices) < 2:
        return False
    sizes = [matrices[0][-1], *matrices[1][-2:]]
    return any(int(size) % TILE for size in sizes)


@RULES.register("tf32")
def _tf32(run: Run) -> Finding | None:
    if not _on_gpu(run) or run.provenance.called.tf32:
        return None
    return _other_type(run, "tfloat32", converts=False)


@RULES.register("bf16")
def _bf16(run: Run) -> Finding | None:
    return _other_type(run, "bfloat16", converts=True)


def _other_type(run: Run, dtype: str, *, converts: bool) -> Finding | None:
    """Return what share of the time float32 products would save at another type's ceiling.

    A product saves no more than what its own ceiling explains of its time, and only a large one
    that is held by arithmetic; each product's operands and result are converted, read in float32
    and written in 16 bits.
    """
    now = _peak(run, "float32")  # FLOP/s
    ratio = _peak(run, dtype) / now if now > 0 else math.nan
    if math.isnan(ratio) or ratio < BETTER_CEILING:
        return None
    sites = run.sites[_kinds(run, *_PRODUCTS) & (run.sites["dtype"] == "float32")]
    flops = sites["matmul_flops"].fillna(0.0)
    gains = (flops / sites["calls"] >= BIG_FLOPS) & (sites["bound"] == "compute")
    saved_us = (flops / now * (1 - 1 / ratio) * 1e6).where(gains, 0.0)
    if converts:
        bandwidth = peak_bytes_per_s(run)
        saved_us -= CONVERTED * sites["min_bytes"].fillna(0.0) / bandwidth * 1e6
    share = float(saved_us.sum() / run.sites["time_us"].sum())
    included = ", conversions included" if converts else ""
    return Finding(
        share,
        f"the ceiling of {dtype} is {three_digits(ratio)} times as high; at it, "
        f"{counted(int(gains.sum()), 'large product')} would save {percent(share)} of the "
        f"time{included}",
    )


@RULES.register("graphs")
def _graphs(run: Run) -> Finding | None:
    idle = run.figures.overhead_frac
    if not _on_gpu(run) or math.isnan(idle):
        return None
    count, median_us = _compute_kernels(run)
    if not median_us < SMALL_KERNEL_US:
        return None
    each = duration(median_us)
    return Finding(
        idle, f"the device idles {percent(idle)} of the time; {count} kernels of {each} each"
    )


def _compute_kernels(run: Run) -> tuple[int, float]:
    """Return how many there are and their median time; of a job that of the sites' means."""
    if len(run.kernels):
        each_us = run.kernels.loc[run.kernels["kind"] == "compute", "duration_us"]
        return len(each_us), float(each_us.median())
    sums = run.kernel_sums[run.kernel_sums["kind"] == "compute"]
    means_us = (sums["time_us"] / sums["calls"]).repeat(sums["calls"])
    return len(means_us), float(means_us.median())


@RULES.register("host")
def _host(run: Run) -> Finding | None:
    outside = run.figures.overhead_frac
    if _on_gpu(run) or _is_compiled(run) or math.isnan(outside) or was_busy(run):
        return None  # on a busy machine others' work lies between ops, too
    return Finding(outside, f"{percent(outside)} of the time lies between ops")


@RULES.register("hidden")
def _hidden(run: Run) -> Finding | None:
    hidden = run.sites["op"] == "(gap)"
    if not hidden.any():
        return None
    share = _share(run, hidden)
    where = safe_text(run.sites.loc[hidden, "module_path"].iloc[0] or "the model itself", 60)
    return Finding(share, f"{percent(share)} of the time is in no op, most of it in {where}")


@RULES.register("threads")
def _threads(run: Run) -> Finding | None:
    device = run.provenance.device
    cores = device.cores
    if device.kind != "cpu" or not device.threads or not cores:
        return None
    if not (run.sites["bound"] == "compute").any():
        return None
    evidence = f"{counted(device.threads, 'thread')} of {counted(cores, 'core')}"
    return Finding(1 - device.threads / cores, evidence)


@RULES.register("collectives")
def _collectives(run: Run) -> Finding | None:
    provenance = run.provenance
    if not isinstance(provenance, TraceProvenance):
        return None
    facts = provenance.trace
    hidden_frac = 0.0 if math.isnan(facts.overlap_frac) else facts.overlap_frac
    exposed = facts.communication_frac * (1 - hidden_frac)
    if math.isnan(exposed):
        return None
    return Finding(
        exposed,
        f"collectives take {percent(facts.communication_frac)} of kernel time, "
        f"{percent(hidden_frac)} of that behind computation",
    )


def _place(site: "pd.Series[str]") -> str:
    op = str(site["op"]).removeprefix("aten::")
    return safe_text(f"{site['module_path'] or '(model)'} {op}", 60)
