"""What `run`, `count`, `trace` and `report` print with `--json`, as types that give its schema.

The types here are the only description of that object: `schema` makes the JSON Schema of them, with
the sentences of their docstrings, and `report.json` fills them in. A feature adds a block of its
own to the object by one function in its own file:

    @json_block("memory")
    def memory_block(run: Run) -> Memory | None:
        \"\"\"Memory at its peak, and what held it; null where it was not measured.\"\"\"

The type that it returns (structs, lists, dictionaries) and its docstring are the block's schema.
"""

import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_type_hints

import msgspec
from msgspec import UNSET, Meta, UnsetType

from flopprof.errors import Failure
from flopprof.jobfacts import Parallel, Part, Rank, Step
from flopprof.judge.verdicts import VERDICTS
from flopprof.provenance import Alternative, Observer, Spread, Telemetry, plain
from flopprof.provenance import Compiled as CompiledFacts
from flopprof.registry import Registry, import_all
from flopprof.run import SCHEMA_VERSION, Run
from flopprof.tables import Table
from flopprof.totals import PHASES

Whole = Annotated[int, Meta(ge=0)]
Count = Annotated[float, Meta(ge=0)]
Time = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1.000001)]  # sums of shares are rounded
Rate = Annotated[float, Meta(ge=0)]
ByPhase = Meta(extra_json_schema={"propertyNames": {"enum": list(PHASES)}})
ByVerdict = Meta(extra_json_schema={"propertyNames": {"enum": list(VERDICTS)}})


class PhaseSums(Part, frozen=True, kw_only=True):
    """Sums over the sites of one phase.

    Attributes:
        calls: Calls of ops.
        unknown_sites: Sites without known FLOPs, left out of the sums.
    """

    calls: Whole
    matmul_flops: Count
    vector_flops: Count
    flops: Count
    time_us: Time
    unknown_sites: Whole


class VerdictSums(Part, frozen=True, kw_only=True):
    """Sums over the sites of one verdict.

    Attributes:
        sites: Sites of this verdict.
        time_frac: Their share of the time.
        matmul_flops: What is known of them.
    """

    sites: Annotated[int, Meta(ge=1)]
    time_frac: Share
    matmul_flops: Count


class OpSums(Part, frozen=True, kw_only=True):
    """Sums over all calls of an op, with the ops below them.

    Attributes:
        calls: Calls, wherever in the tree.
        counted_calls: Those that totals count.
        flops_at_most: Bound of the calls whose FLOPs values decide; absent without such calls.
    """

    calls: Annotated[int, Meta(ge=1)]
    counted_calls: Whole
    matmul_flops: Count
    vector_flops: Count
    time_us: Time
    achieved_flops_per_s: Rate
    flops_at_most: Count | UnsetType = UNSET


class Compiled(CompiledFacts, frozen=True, kw_only=True):
    """What torch.compile made of the model, with the time of a bare call of that."""

    wall_us: Spread


class Answer(Part, frozen=True, kw_only=True):
    """A run, a count, or traces. A field that is absent is of another kind of run.

    Attributes:
        schema_version: Version of this object; raised when a field changes its meaning or goes, not
            when one is added.
        flopprof: Version of flopprof that made the run.
        model: Class of the model, or name of the trace.
        architecture: Architecture as given or recognised, else the model.
        architecture_source: How the architecture is known, where it was recognised.
        alternatives: Other architectures that fit the weights as well.
        parameters: Elements of all parameters.
        input: Shapes of the inputs: `1x3x224x224`.
        input_source: Where the input comes from, if not from the user.
        device: Kind of device: cpu, cuda, meta.
        device_name: Its name.
        threads: CPU threads.
        dtype: Element type of most work.
        torch: Version of torch that ran; null for a trace that does not tell.
        matmul_flops: FLOPs of contractions that were counted, two per multiply-add.
        vector_flops: All other FLOPs that were counted.
        flops: Sum of both: a lower bound where coverage_frac is below 1.
        flops_at_most: Upper bound: unknown time at the matmul ceiling; null without a ceiling.
        untimed_flops: The part of flops that has no time in a trace: not run, captured, or on the
            host.
        coverage_frac: Share of time in sites whose FLOPs are known; null in a count.
        coverage_calls_frac: Share of op calls whose FLOPs are known, also in a count.
        wall_us: Median time of a bare call; null in a count and in a trace.
        wall_p5_us: Its 5th percentile.
        wall_p95_us: Its 95th percentile.
        achieved_flops_per_s: flops over wall_us; in a trace, over device_busy_us.
        slowdown_frac: How much slower the traced call was than a bare one; may be below 0.
        observer: What measuring changed; null in a count.
        host_overhead_us: Time between ops, on a CPU.
        phases: By phase: forward, backward, recompute, optimizer.
        verdicts: By verdict that occurs (README.md explains them).
        ops: By name of each op that has a formula: its calls with all ops below them. Entries
            overlap; never sum them.
        never_called: Modules that the call did not reach; null for a trace.
        warnings: What makes figures doubtful.
        warning_codes: What each of these is about, in the same order: a code of
            `warning_codes.csv`, "" in older runs.
        files: Files written.
        traced_calls: Calls that were traced: the time of each site is their median; absent where
            nothing was timed here.
        telemetry: Clocks, power and temperature while a GPU ran; absent without one.
        flops_per_j: FLOPs per joule; absent without telemetry.
        compiled: Of run --compile: times, generated kernels and what they fuse, graph breaks,
            bytes; wall_us is then the compiled model's.
        eager_wall_us: Of run --compile: median wall time of the model before it was compiled.
        macs: With count --macs: multiply-adds, half of matmul_flops as far as exact.
        macs_without_attention: With count --macs: the same without attention's own products.
        traces: This and all below: only for traces recorded elsewhere. The trace files.
        gpu: Device that the trace names.
        kernels: Compute kernels.
        kernel_time_us: Sum of their durations.
        device_busy_us: Union of their intervals.
        communication_us: Union of the collectives' intervals.
        communication_frac: Collectives' time over that of all kernels.
        overlap_frac: Share of the collectives' time that lies behind computation; null without any.
        span_us: From the first event to the end of the last.
        linked_kernel_frac: Kernels that belong to an op in the trace.
        linked_kernel_time_frac: The same by time.
        slowest_rank: The rank whose own kernels took longest; null for one rank.
        parallel: How several processes shared the call.
        ranks: One per rank, with its part of the figures above.
        steps: One per profiler step.
    """

    schema_version: Annotated[int, Meta(extra_json_schema={"const": SCHEMA_VERSION})]
    flopprof: str | None
    model: str | None
    architecture: str | None
    architecture_source: str | None
    alternatives: tuple[Alternative, ...]
    parameters: Whole | None
    input: str | None
    input_source: str | None
    device: str | None
    device_name: str | None
    threads: Annotated[int, Meta(ge=1)] | None
    dtype: str | None
    torch: str | None
    matmul_flops: Whole
    vector_flops: Whole
    flops: Whole
    flops_at_most: Count
    untimed_flops: Count
    coverage_frac: Share
    coverage_calls_frac: Share
    wall_us: Time
    wall_p5_us: Time
    wall_p95_us: Time
    achieved_flops_per_s: Rate
    slowdown_frac: float
    observer: Observer | None
    host_overhead_us: Time
    phases: Annotated[dict[str, PhaseSums], ByPhase]
    verdicts: Annotated[dict[str, VerdictSums], ByVerdict]
    ops: dict[str, OpSums]
    never_called: tuple[str, ...] | None
    warnings: list[str]
    warning_codes: list[str]
    files: list[str]
    traced_calls: Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    telemetry: Telemetry | UnsetType = UNSET
    flops_per_j: Rate | UnsetType = UNSET
    compiled: Compiled | UnsetType = UNSET
    eager_wall_us: Time | UnsetType = UNSET
    macs: Whole | UnsetType = UNSET
    macs_without_attention: Whole | UnsetType = UNSET
    traces: tuple[str, ...] | UnsetType = UNSET
    gpu: str | UnsetType | None = UNSET
    kernels: Whole | UnsetType = UNSET
    kernel_time_us: Time | UnsetType = UNSET
    device_busy_us: Time | UnsetType = UNSET
    communication_us: Time | UnsetType = UNSET
    communication_frac: Share | UnsetType = UNSET
    overlap_frac: Share | UnsetType = UNSET
    span_us: Time | UnsetType = UNSET
    linked_kernel_frac: Share | UnsetType = UNSET
    linked_kernel_time_frac: Share | UnsetType = UNSET
    slowest_rank: int | UnsetType | None = UNSET
    parallel: Parallel | UnsetType = UNSET
    ranks: tuple[Rank, ...] | UnsetType = UNSET
    steps: tuple[Step, ...] | UnsetType = UNSET


Block = Callable[[Run], Any]
AnyBlock = TypeVar("AnyBlock", bound=Block)
AnyPart = TypeVar("AnyPart", bound=Part)
JSON_BLOCKS: Registry[Block] = Registry("JSON block")
JSON_FIELDS: Registry[Block] = Registry("set of JSON fields")
JSON_OBJECTS: Registry[type[Part]] = Registry("JSON object")
"""What is printed in place of an answer, by the names of their types."""


def json_block(name: str) -> Callable[[Block], Block]:
    """Register a function from a run to what the object has as `name`; None is null.

    Raises:
        ValueError: The object has a field of that name.
    """
    if name in Answer.__struct_fields__:
        raise ValueError(f"the JSON object has a field {name!r} already")
    return JSON_BLOCKS.register(name)


def blocks_of(run: Run) -> dict[str, Any]:
    """Return what every registered block and set of fields says of the run, as plain values."""
    import_all("flopprof.report")
    fields: dict[str, Any] = {}
    for fill in dict(JSON_FIELDS.items()).values():
        fields |= plain(fill(run))
    return fields | {name: plain(block(run)) for name, block in JSON_BLOCKS.items()}


def json_fields(block: AnyBlock) -> AnyBlock:
    """Register a function from a run to a struct whose fields stand in the object beside others.

    The fields' descriptions are the struct's. Its name here is the function's.
    """
    JSON_FIELDS.register(block.__name__)(block)
    return block


def described_by(table: Table) -> Callable[[type[AnyPart]], type[AnyPart]]:
    """Give a type whose fields are columns of a table the sentences on these."""

    def describe(kind: type[AnyPart]) -> type[AnyPart]:
        meanings = {column.name: column.doc for column in table.columns}
        lines = [f"    {name}: {meanings[name]}" for name in kind.__struct_fields__]
        kind.__doc__ = "\n".join([f"{kind.__doc__}\n", "Attributes:", *lines])
        return kind

    return describe


def json_object(kind: type[AnyPart]) -> type[AnyPart]:
    """Register a type that a command prints in place of an answer."""
    JSON_OBJECTS.register(kind.__name__)(kind)
    return kind


def is_count(name: str) -> bool:
    """Return whether a field of that name holds FLOPs: those are printed as integers."""
    return "flops" in name and "gflops" not in name and "_per_" not in name


def schema() -> dict[str, Any]:
    """Return the JSON Schema of what is printed: an answer, what stands for one, or a failure."""
    import_all("flopprof.report")
    blocks = dict(JSON_BLOCKS.items())
    beside = [get_type_hints(fill)["return"] for _, fill in JSON_FIELDS.items()]
    printed = [Answer, Failure, *(kind for _, kind in JSON_OBJECTS.items())]
    types = [*printed, *(get_type_hints(block)["return"] for block in blocks.values())]
    references, components = msgspec.json.schema_components([*types, *beside])
    for component in components.values():
        _describe_fields(component)
    answer = components["Answer"]
    for fields in beside:
        described = components.pop(fields.__name__)
        answer["properties"] |= described["properties"]
        answer["required"] += described["required"]
    for (name, block), reference in zip(
        blocks.items(), references[len(printed) : len(types)], strict=True
    ):
        sentence = " ".join((block.__doc__ or "").split("\n\n")[0].split())
        answer["properties"][name] = {"description": sentence, **reference}
        answer["required"].append(name)
    components["Failure"]["additionalProperties"] = False
    cleaned: dict[str, Any] = _with_nulls(components)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:flopprof:json:{SCHEMA_VERSION}",
        "title": "What run, count, trace, report and verify print with --json",
        "description": "Names carry units: _flops, _us (microseconds), _frac (0 to 1), "
        "_flops_per_s. null is not known; 0 is known to be zero.",
        "oneOf": list(references[: len(printed)]),
        "$defs": cleaned,
    }


def _describe_fields(component: dict[str, Any]) -> None:
    """Move the sentences on a type's fields from its docstring to the fields."""
    text = inspect.cleandoc(component.get("description", ""))  # as Python 3.13 keeps docstrings
    summary, _, rest = text.partition("Attributes:\n")
    if summary:
        component["description"] = " ".join(summary.split())
    for match in re.finditer(r"^ {4}(\w+): ((?:.+\n?)(?: {8}.+\n?)*)", rest, re.MULTILINE):
        name, sentence = match.groups()
        properties = component["properties"]
        properties[name] = {"description": " ".join(sentence.split()), **properties[name]}
    for name, field in component.get("properties", {}).items():
        if is_count(name) and field.get("type") == "number":
            field["type"] = ["integer", "null"]
    # A field that has a default is printed all the same: only one that is UNSET is left out.
    fields = component.get("properties", {}).items()
    required = [name for name, field in fields if "default" in field]
    component["required"] = [*component.get("required", ()), *required]


def _with_nulls(value: Any) -> Any:
    """Return a schema without defaults, in which a number may be null: NaN is printed as that."""
    if isinstance(value, list):
        return [_with_nulls(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    cleaned = {key: _with_nulls(inner) for key, inner in value.items() if key != "default"}
    if cleaned.get("type") == "number":
        cleaned["type"] = ["number", "null"]
    return cleaned
