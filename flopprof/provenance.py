"""What a run says of itself: its source, what was called, what was measured, what is doubtful.

Each kind of run has its own type, `CountProvenance`, `CallProvenance` or `TraceProvenance`, made of
named parts; `metafile` writes and reads them. A number that is not known is NaN, a text None.
"""

import math
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

import msgspec

from flopprof.jobfacts import (
    CollectiveTimes,
    Link,
    ModuleLoad,
    Parallel,
    Part,
    ProcessGroup,
    Rank,
    Step,
    TraceFacts,
)

COMMAND: ContextVar[str] = ContextVar("command", default="")
"""The command line under way; empty where Python code calls, whose arguments are its own."""


class Warned(Part, frozen=True, kw_only=True):
    """Something that makes figures doubtful.

    Attributes:
        code: What it is about, for scripts: one of `warning_codes.csv`; "" in older runs.
        text: The sentence for people.
    """

    text: str
    code: str = ""


class Alternative(Part, frozen=True, kw_only=True):
    """An architecture whose weights have the same keys and shapes as the one that was chosen.

    Attributes:
        architecture: Its code, "timm:resnet18".
        input: Its library's own input, "1x3x224x224".
        gflops: Matmul FLOPs of one call with that, in 10⁹.
    """

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
        samples: Examples of the batch; None where the inputs do not tell.
        tokens: Tokens of the input; None where no input is tokens.
    """

    dtype: str
    input: str = ""
    input_source: str | None = None
    train: bool = False
    tf32: bool = False
    autocast: str | None = None
    samples: int | None = None
    tokens: int | None = None


class DeviceFacts(Part, frozen=True, kw_only=True):
    """The device that ran the model; a meta device runs nothing.

    Attributes:
        kind: cpu, cuda, rocm, xpu, or a vendor's name; meta where nothing ran.
        cores: Of a CPU: those that the process may use.
        capability: Of a CPU its vector extension, of a GPU its compute capability.
        features: Of a CPU: what it multiplies narrow types with.
        l2_bytes: Of a CPU all instances together, as `l3_bytes`.
        clock_mhz: The clock that the driver reports, as `memory_clock_mhz`.
        runtime: Version of CUDA or ROCm that torch is built with.
    """

    name: str = ""
    kind: str = ""
    index: int | None = None
    uuid: str | None = None
    cores: int | None = None
    threads: int | None = None
    capability: str | None = None
    arch: str | None = None
    features: tuple[str, ...] = ()
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
        uuid: The GPU's own.
        sm_clock_mhz: Clock of the multiprocessors.
        memory_clock_mhz: Clock of the memory.
        power_w: Power of the board.
        temperature_c: Temperature in °C.
        maximum_sm_clock_mhz: The most that the first clock can be.
        maximum_memory_clock_mhz: The most that the second can be.
        power_limit_w: The power at which clocks are held.
        energy_j: Energy of these calls.
        peak_memory_bytes: The most memory that torch gave to tensors.
        samples: How often NVML was asked.
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
    """A kernel that torch.compile generated.

    Attributes:
        kernel: Its name.
        calls: How often it ran.
        time_us: Sum of their times.
        fuses: The ops that its name lists.
    """

    kernel: str
    calls: int
    time_us: float = math.nan
    fuses: tuple[str, ...] = ()


class ProgramOp(Part, frozen=True, kw_only=True):
    """What a compiled program calls: a kernel that was generated for it, or a library's op.

    Calls of one name, shapes and type are added up; FLOPs of a generated kernel are an estimate,
    and NaN where its trace tells no shapes, as on a CPU.

    Attributes:
        op: Name of the kernel or op.
        kind: What it does, as the sites' column `kind`.
        is_generated: Whether torch.compile generated it.
        calls: How often it was called.
        time_us: Sum of their times.
        min_bytes: Compulsory traffic.
    """

    op: str
    input_shapes: str = ""
    dtype: str = ""
    kind: str = "unknown"
    is_generated: bool = False
    calls: int = 0
    time_us: float = math.nan
    matmul_flops: float = math.nan
    vector_flops: float = math.nan
    min_bytes: float = math.nan


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
        kernels: The kernels that were generated, most time first.
        extern_calls: Calls of library products beside the generated kernels.
        extern_matmul_flops: Their FLOPs.
        program: What the compiled program calls, most time first; empty in older runs.
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
    program: tuple[ProgramOp, ...] = ()


class Memory(Part, frozen=True, kw_only=True):
    """What one call needs of memory; NaN where it is not known.

    Attributes:
        parameters_bytes: All parameters.
        buffers_bytes: All buffers.
        gradients_bytes: Of a training step: one for each parameter that is trained.
        optimizer_bytes: Of a training step: the optimizer's state.
        activations_bytes: Of a training step: what is saved for the backward pass, inputs included.
        kv_cache_bytes: Keys and values that the call leaves for the next.
        peak_bytes: The most at one time, of all of these and what is made on the way.
        peak_source: Where the peak comes from: "shapes", or "device" as the allocator counted it.
    """

    parameters_bytes: float = math.nan
    buffers_bytes: float = math.nan
    gradients_bytes: float = math.nan
    optimizer_bytes: float = math.nan
    activations_bytes: float = math.nan
    kv_cache_bytes: float = math.nan
    peak_bytes: float = math.nan
    peak_source: str | None = None


class SavedTotals(Part, frozen=True, kw_only=True):
    """The totals as they were when the run was saved: tables that add up otherwise are damaged."""

    matmul_flops: int
    vector_flops: int
    flops: int
    flops_at_most: float = math.nan
    coverage_frac: float = math.nan


class Executed(Part, frozen=True, kw_only=True):
    """What joined a run to hardware's counters: the figures are in its tables.

    Attributes:
        files: Files of counters.
        source: The instrument: ncu, rocprof, stepping.
        launches: How many launches these have.
        joined: How launches were found → how many: nvtx, order, or name, of which only totals hold;
            of stepped ops by their shapes, of hidden time by its module: at how many sites.
        sites_stepped: Sites that nothing counts, whose calls or gaps were to be stepped.
        notes: What did not fit.
    """

    files: tuple[str, ...] = ()
    source: str = ""
    launches: int = 0
    sites_stepped: int = 0
    joined: dict[str, int] = msgspec.field(default_factory=dict)
    notes: tuple[str, ...] = ()


class AtContext(Part, frozen=True, kw_only=True):
    """One decoded token with so many tokens in the cache before it.

    Attributes:
        context: Tokens in the cache.
        matmul_flops: FLOPs of contractions for one token of one example.
    """

    context: int
    matmul_flops: float = math.nan


class Generation(Part, frozen=True, kw_only=True):
    """What a decoder does after the prompt, which is the run itself: one token after the other.

    Attributes:
        prompt_len: Tokens of the prompt; of an encoder-decoder, those of the encoder.
        new_tokens: Tokens generated; the first comes of the prompt's call, and is no step.
        batch: Examples.
        kv_cache: Kind of cache: dynamic or static.
        step_matmul_flops: Mean over the steps, of the whole batch; NaN without a step.
        step_flops: The same of all FLOPs.
        step_us: Wall times of the steps; None where they were not timed.
        timed_steps: How many steps these are.
        by_context: FLOPs of one token at several lengths of the cache.
        kv_cache_bytes: The cache with prompt and new tokens in it, of the whole batch.
        kv_read_bytes: The cache halfway between the prompt's end and that.
        weight_bytes: Weights that a step reads, each once: of an embedding the rows, of experts
            those that are chosen.
        active_parameters: Parameters that one token uses: of experts those that are chosen.
    """

    prompt_len: int
    new_tokens: int
    batch: int
    kv_cache: str = ""
    step_matmul_flops: float = math.nan
    step_flops: float = math.nan
    step_us: Spread | None = None
    timed_steps: int = 0
    by_context: tuple[AtContext, ...] = ()
    kv_cache_bytes: float = math.nan
    kv_read_bytes: float = math.nan
    weight_bytes: float = math.nan
    active_parameters: float = math.nan


class Provenance(Part, tag_field="kind", frozen=True, kw_only=True):
    """What every run says of itself."""

    source: Source
    called: Called
    device: DeviceFacts
    environment: Environment
    warnings: tuple[Warned, ...] = ()
    totals: SavedTotals | None = None
    memory: Memory | None = None
    executed: Executed | None = None
    generate: Generation | None = None

    @property
    def title(self) -> str:
        """The architecture where it is known, else the model."""
        return self.source.architecture or self.source.model

    @property
    def wall_us(self) -> float:
        """Median wall time of a bare call; NaN where none was timed."""
        return math.nan

    @property
    def warning_texts(self) -> list[str]:
        """The warnings as sentences."""
        return [warning.text for warning in self.warnings]


class CountProvenance(Provenance, tag="count", frozen=True, kw_only=True):
    """Of a count from shapes: nothing was timed."""


class CallProvenance(Provenance, tag="call", frozen=True, kw_only=True):
    """Of a call that was timed and traced here, by one process or by several."""

    timing: Timing
    telemetry: Telemetry | None = None
    compiled: Compiled | None = None
    parallel: Parallel | None = None
    ranks: tuple[Rank, ...] = ()
    collectives: tuple[CollectiveTimes, ...] | None = None

    @property
    def wall_us(self) -> float:
        """Median wall time of a bare call, of the compiled model where it was compiled."""
        return self.timing.wall_us.median


class TraceProvenance(Provenance, tag="trace", frozen=True, kw_only=True):
    """Of traces recorded elsewhere."""

    trace: TraceFacts
    ranks: tuple[Rank, ...] = ()
    steps: tuple[Step, ...] = ()
    collectives: tuple[CollectiveTimes, ...] | None = None  # None: saved before they were kept
    groups: tuple[ProcessGroup, ...] = ()
    loads: tuple[ModuleLoad, ...] = ()
    link: Link | None = None

    @property
    def has_kernels(self) -> bool:
        """Whether anything ran on a device: times are that device's."""
        return not math.isnan(self.trace.kernel_time_us)


def ranks_of(provenance: Provenance) -> tuple[Rank, ...]:
    """Return the ranks of a run: those of traces, or of processes that shared a call; else none."""
    return provenance.ranks if isinstance(provenance, TraceProvenance | CallProvenance) else ()


AnyProvenance = CountProvenance | CallProvenance | TraceProvenance


def warned(code: str, texts: Iterable[str]) -> list[Warned]:
    """Return each text as a warning of that code (`warning_codes.csv`)."""
    return [Warned(code=code, text=text) for text in texts]


def plain(part: Any) -> Any:
    """Return a part, or what holds parts, as plain values: a dictionary, as JSON has it."""
    return msgspec.to_builtins(part, enc_hook=_of_numpy)


def _of_numpy(value: Any) -> Any:
    """Return the Python number of one of numpy's, which tables' sums are."""
    if hasattr(value, "item"):
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} in a provenance")
