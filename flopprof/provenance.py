"""What a run says of itself: its source, what was called, what was measured, what is doubtful.

Each kind of run has its own type, `CountProvenance`, `CallProvenance` or `TraceProvenance`, made of
named parts. They are `meta.json` as it is saved: `to_json` and `from_json` are the only way there
and back. A number that is not known is NaN here and null there; a text that is not known is None.
"""

import math
from typing import Any

import msgspec

SCHEMA_VERSION = 2
"""Version of the run directory and of every JSON object printed; see CHANGELOG.md."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A named part of the provenance; every field but the essential ones may be left out."""


class Warned(Part, frozen=True, kw_only=True):
    """Something that makes figures doubtful.

    Attributes:
        code: What it is about, for scripts: "roof", "drift", "clock"; "" for what has no code.
        text: The sentence for people.
    """

    text: str
    code: str = ""


class Alternative(Part, frozen=True, kw_only=True):
    """An architecture whose weights have the same keys and shapes as the one that was chosen."""

    architecture: str
    input: str | None = None
    gflops: float = math.nan


class Source(Part, frozen=True, kw_only=True):
    """The model, and how it was found.

    Attributes:
        model: Class of the model, or name of the trace.
        parameters: Elements of all parameters.
        architecture: Its code, "torchvision:resnet18".
        architecture_source: What said so.
        alternatives: What else the weights may be.
        file: What the file is, and its path: "state_dict of resnet18.pth".
        weights: Whose values they are: file, random, or meta for shapes alone.
        never_called: Paths of modules that the call did not reach.
    """

    model: str
    parameters: int | None = None
    architecture: str | None = None
    architecture_source: str | None = None
    alternatives: tuple[Alternative, ...] = ()
    file: str | None = None
    weights: str | None = None
    never_called: tuple[str, ...] = ()


class Called(Part, frozen=True, kw_only=True):
    """What the model was called with, and how.

    Attributes:
        input: The inputs as the command line spells them, "1x3x224x224".
        input_source: Where they come from, if not from the user.
        dtype: Element type of most work.
        train: Whether one call is a training step.
        tf32: Whether float32 products may round to TF32.
        autocast: Element type that products were cast to.
    """

    dtype: str
    input: str = ""
    input_source: str | None = None
    train: bool = False
    tf32: bool = False
    autocast: str | None = None


class DeviceFacts(Part, frozen=True, kw_only=True):
    """The device that ran the model; a meta device runs nothing."""

    name: str
    kind: str
    index: int | None = None
    uuid: str | None = None
    cores: int | None = None
    threads: int | None = None
    capability: str | None = None
    arch: str | None = None
    sm_count: int | None = None
    memory_bytes: int | None = None
    l2_bytes: int | None = None
    l3_bytes: int | None = None
    bus_bits: int | None = None
    clock_mhz: float = math.nan
    memory_clock_mhz: float = math.nan
    driver: str | None = None
    runtime: str | None = None


class Environment(Part, frozen=True, kw_only=True):
    """Versions, machine and moment.

    Attributes:
        command: The command line, where a command made the run.
        extra: What the caller added, such as a commit.
    """

    flopprof: str
    date: str = ""
    torch: str | None = None
    python: str | None = None
    platform: str | None = None
    command: str = ""
    extra: dict[str, Any] = msgspec.field(default_factory=dict)


class Spread(Part, frozen=True, kw_only=True):
    """Median, 5th and 95th percentile of repeated measurements, in the unit of the field's name."""

    median: float = math.nan
    p5: float = math.nan
    p95: float = math.nan


class Observer(Part, frozen=True, kw_only=True):
    """What measuring changed.

    Attributes:
        changed_ops: Op → calls more (or fewer) with our ranges than without; None if not compared.
        drift_frac: How much slower the fastest bare call was after tracing than before.
    """

    changed_ops: dict[str, int] | None = None
    drift_frac: float = math.nan


class Timing(Part, frozen=True, kw_only=True):
    """How long calls took; times in µs.

    Attributes:
        wall_us: Bare calls, of the compiled model where it was compiled.
        eager_wall_us: Bare calls before it was compiled.
        repeats: How many bare calls were timed.
        traces: How many calls were traced.
        traced_us: Wall time of the traced call.
        slowdown_frac: How much longer that is than a bare call.
        host_overhead_us: Time between ops in the traced call.
        device_busy_us: Union of the intervals of compute kernels.
        observer: What measuring changed.
    """

    wall_us: Spread
    eager_wall_us: Spread | None = None
    repeats: int | None = None
    traces: int = 1
    traced_us: float = math.nan
    slowdown_frac: float = math.nan
    host_overhead_us: float = math.nan
    device_busy_us: float = math.nan
    observer: Observer | None = None


class Telemetry(Part, frozen=True, kw_only=True):
    """What NVML said of a GPU while calls were timed; NaN and None for what it does not say.

    Attributes:
        calls: How many calls the energy is of.
        samples: How often NVML was asked.
        energy_j: Energy of these calls.
        throttle_reasons: Every reason seen for which clocks were held.
        unavailable: Field → why NVML does not give it.
    """

    calls: int = 0
    uuid: str | None = None
    sm_clock_mhz: Spread | None = None
    memory_clock_mhz: Spread | None = None
    power_w: Spread | None = None
    temperature_c: Spread | None = None
    maximum_sm_clock_mhz: float = math.nan
    maximum_memory_clock_mhz: float = math.nan
    power_limit_w: float = math.nan
    energy_j: float = math.nan
    peak_memory_bytes: float = math.nan
    samples: int = 0
    throttle_reasons: tuple[str, ...] | None = None
    unavailable: dict[str, str] = msgspec.field(default_factory=dict)


class GeneratedKernel(Part, frozen=True, kw_only=True):
    """A kernel that torch.compile generated, and the ops that its name lists."""

    kernel: str
    calls: int
    time_us: float = math.nan
    fuses: tuple[str, ...] = ()


class Compiled(Part, frozen=True, kw_only=True):
    """What torch.compile made of the model: its times are in `Timing`, its FLOPs the eager call's.

    Attributes:
        mode: Mode of torch.compile.
        graphs: Graphs compiled before the timed calls.
        recompilations: Graphs compiled during them.
        graph_breaks: Why graphs were cut → how often.
        min_bytes: Inductor's own count of bytes moved.
        eager_min_bytes: Compulsory bytes of the eager ops.
        saved_bytes: The difference.
        extern_calls: Calls of library products beside the generated kernels.
        extern_matmul_flops: Their FLOPs.
    """

    mode: str
    graphs: int = 0
    recompilations: int = 0
    graph_breaks: dict[str, int] = msgspec.field(default_factory=dict)
    min_bytes: float = math.nan
    eager_min_bytes: float = math.nan
    saved_bytes: float = math.nan
    kernels: tuple[GeneratedKernel, ...] = ()
    extern_calls: int = 0
    extern_matmul_flops: float = math.nan


class KernelTimes(Part, frozen=True, kw_only=True):
    """Sums over the kernels of a trace or a rank; times in µs, NaN without kernels."""

    kernels: int = 0
    kernel_time_us: float = math.nan
    device_busy_us: float = math.nan
    communication_us: float = math.nan
    communication_frac: float = math.nan
    overlap_frac: float = math.nan
    span_us: float = math.nan


class TraceFacts(KernelTimes, frozen=True, kw_only=True):
    """What traces recorded elsewhere say of themselves, all ranks together.

    Attributes:
        files: The trace files.
        origin_us: Time stamp at which tables count from zero.
        linked_kernel_frac: Share of compute kernels that belong to an op.
        linked_kernel_time_frac: The same by time.
        slowest_rank: The rank whose own kernels took longest; None for one rank or no straggler.
    """

    files: tuple[str, ...]
    origin_us: float = math.nan
    linked_kernel_frac: float = math.nan
    linked_kernel_time_frac: float = math.nan
    slowest_rank: int | None = None


class Rank(KernelTimes, frozen=True, kw_only=True):
    """One rank's part of a job."""

    rank: int
    file: str
    gpu: str | None = None
    matmul_flops: float = math.nan
    flops: float = math.nan
    linked_kernels: int = 0
    linked_kernel_time_us: float = math.nan
    all_kernels_us: float = math.nan
    overlapped_us: float = math.nan


class Step(Part, frozen=True, kw_only=True):
    """One profiler step of one rank."""

    rank: int
    step: str
    start_us: float = math.nan
    duration_us: float = math.nan
    matmul_flops: float = math.nan
    flops: float = math.nan
    kernel_time_us: float = math.nan


class SavedTotals(Part, frozen=True, kw_only=True):
    """The totals as they were when the run was saved: tables that add up otherwise are damaged."""

    matmul_flops: int
    vector_flops: int
    flops: int
    flops_at_most: float = math.nan
    coverage_frac: float = math.nan


class Provenance(Part, tag_field="kind", frozen=True, kw_only=True):
    """What every run says of itself."""

    source: Source
    called: Called
    device: DeviceFacts
    environment: Environment
    warnings: tuple[Warned, ...] = ()
    totals: SavedTotals | None = None


class CountProvenance(Provenance, tag="count", frozen=True, kw_only=True):
    """Of a count from shapes: nothing was timed."""


class CallProvenance(Provenance, tag="call", frozen=True, kw_only=True):
    """Of a call that was timed and traced here."""

    timing: Timing
    telemetry: Telemetry | None = None
    compiled: Compiled | None = None


class TraceProvenance(Provenance, tag="trace", frozen=True, kw_only=True):
    """Of traces recorded elsewhere."""

    trace: TraceFacts
    ranks: tuple[Rank, ...] = ()
    steps: tuple[Step, ...] = ()


AnyProvenance = CountProvenance | CallProvenance | TraceProvenance


def to_json(provenance: AnyProvenance) -> bytes:
    """Return the provenance as JSON text, as `meta.json` holds it; NaN is null."""
    fields: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(provenance))
    whole = {"schema_version": SCHEMA_VERSION, **fields}
    return msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n"


def from_json(text: bytes) -> AnyProvenance:
    """Return the provenance that `text` holds, of this version or an earlier one.

    Raises:
        NewerVersionError: It was written by a newer flopprof.
        ValueError: It is no JSON, or something in it is of another type than declared.
    """
    fields = msgspec.json.decode(text)
    if not isinstance(fields, dict):
        raise ValueError(f"it holds {type(fields).__name__}, no object")
    version = fields.pop("schema_version", None)
    if type(version) is not int or version < 1:
        raise ValueError(f"its schema_version is {version!r}")
    if version > SCHEMA_VERSION:
        raise NewerVersionError(version)
    if version == 1:
        fields = _from_version_1(fields)
    provenance: AnyProvenance = msgspec.convert(_without_nulls(fields), AnyProvenance)
    return provenance


class NewerVersionError(Exception):
    """A run was written by a newer flopprof; `version` is that of its schema."""

    def __init__(self, version: int) -> None:
        super().__init__(f"schema {version}, this one reads {SCHEMA_VERSION}")
        self.version = version


def _without_nulls(value: Any) -> Any:
    """Return `value` without the keys that are null: not known is what a field is by default."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


# Field of a part → its key in version 1, where all keys stood side by side.
_VERSION_1: dict[str, dict[str, str]] = {
    "source": {
        "model": "model",
        "parameters": "parameters",
        "architecture": "architecture",
        "architecture_source": "architecture_source",
        "alternatives": "alternatives",
        "file": "source",
        "weights": "weights",
        "never_called": "never_called",
    },
    "called": {
        "dtype": "dtype",
        "input": "input",
        "input_source": "input_source",
        "train": "train",
        "tf32": "tf32",
        "autocast": "autocast",
    },
    "environment": {
        "flopprof": "flopprof",
        "date": "date",
        "torch": "torch",
        "python": "python",
        "platform": "platform",
        "command": "command",
    },
    "timing": {
        "wall_us": "wall_us",
        "eager_wall_us": "eager_wall_us",
        "repeats": "repeats",
        "traced_us": "traced_us",
        "slowdown_frac": "slowdown_frac",
        "host_overhead_us": "host_overhead_us",
        "device_busy_us": "device_busy_us",
        "observer": "observer",
    },
}


def _from_version_1(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of version 1 as the parts of today."""
    parts: dict[str, Any] = {}
    for part, names in _VERSION_1.items():
        parts[part] = {name: fields[old] for name, old in names.items() if old in fields}
    parts["source"].setdefault("model", "")
    parts["called"].setdefault("dtype", "float32")
    parts["environment"].setdefault("flopprof", "")
    for name in ("device", "totals"):
        parts[name] = fields.get(name)
    parts["device"] = parts["device"] or {"name": "", "kind": ""}
    parts["warnings"] = [{"text": text} for text in fields.get("warnings") or ()]
    if "trace" in fields:
        parts["kind"] = "trace"
        for name in ("trace", "ranks", "steps"):
            parts[name] = fields.get(name) or []
    elif fields.get("wall_us"):
        parts["kind"] = "call"
        parts["telemetry"] = fields.get("telemetry") or None
        parts["compiled"] = fields.get("compiled") or None
    else:
        parts["kind"] = "count"
    if parts["kind"] != "call":
        del parts["timing"]
    return parts
