"""Process groups of a job: what for, on one node or on several, and how long they communicate."""

import re
from collections import defaultdict
from typing import Annotated

from msgspec import Meta

from flopprof.jobfacts import Link, Part, ProcessGroup
from flopprof.provenance import TraceProvenance
from flopprof.report.answer import Time

_WORD = re.compile(r"[a-z]+")
_PARALLEL = {  # kind → words of a group's description or name that tell it
    "data": {"dp", "data", "ddp", "fsdp", "hsdp", "replicate", "shard", "zero"},
    "tensor": {"tp", "tensor"},
    "pipeline": {"pp", "pipeline", "pipe", "stage"},
    "expert": {"ep", "expert", "experts", "moe"},
    "context": {"cp", "context", "sp", "sequence", "ulysses"},
}
_MODEL = "model"  # Megatron's groups of tensor and pipeline ranks together


class JobGroup(Part, frozen=True, kw_only=True):
    """A process group, and the collectives in it.

    Attributes:
        name: Its name; groups of other ranks may have the same.
        description: What the code that made it says it is for; null for nothing.
        parallel: What that tells of it: data, tensor, pipeline, expert, context, or several of
            these; null where it tells none.
        size: Ranks in it; null where the trace does not tell.
        ranks: Which; empty where the trace does not tell.
        one_node: Whether all are on one node, where ranks are numbered node by node as torchrun
            does; null where the trace does not tell.
        time_us: Time of collectives in groups of this name, of all ranks.
    """

    name: str
    description: str | None
    parallel: str | None
    size: Annotated[int, Meta(ge=0)] | None
    ranks: tuple[int, ...]
    one_node: bool | None
    time_us: Time


def job_groups(provenance: TraceProvenance) -> list[JobGroup]:
    """Return the process groups that the traces list, those of most time first."""
    times_us: dict[str, float] = defaultdict(float)
    for times in provenance.collectives or ():
        times_us[times.process_group or ""] += times.time_us
    gpus = provenance.trace.visible_gpus
    groups = [
        JobGroup(
            name=group.name,
            description=group.description or None,
            parallel=parallel_of(group),
            size=group.size,
            ranks=group.ranks,
            one_node=is_on_one_node(group, gpus),
            time_us=times_us.get(group.name, 0.0),
        )
        for group in provenance.groups
    ]
    return sorted(groups, key=lambda group: (-group.time_us, group.name, group.ranks))


def parallel_of(group: ProcessGroup) -> str | None:
    """Return what a group is for, by the words of its description, else of its name."""
    for text in (group.description, group.name):
        words = set(_WORD.findall(text.lower()))
        kinds = [kind for kind, telling in _PARALLEL.items() if words & telling]
        if not kinds and _MODEL in words:
            kinds = ["tensor", "pipeline"]
        if kinds:
            return ", ".join(kinds)
    return None


def is_on_one_node(group: ProcessGroup, gpus: int | None) -> bool | None:
    """Return whether ranks that are numbered node by node are all on one; None if that is unsure.

    Args:
        group: The group.
        gpus: How many GPUs each rank's trace lists. One alone tells nothing: a process may be shown
            only its own.
    """
    if gpus is None or gpus < 2 or not group.ranks:
        return None
    return len({rank // gpus for rank in group.ranks}) == 1


def node_links(provenance: TraceProvenance) -> dict[str, Link]:
    """Return the link by name of group, where all groups of that name are each on one node."""
    link = provenance.link
    if link is None:
        return {}
    on_one_node: dict[str, bool] = {}
    for group in provenance.groups:
        is_on_one = is_on_one_node(group, provenance.trace.visible_gpus) is True
        on_one_node[group.name] = is_on_one and on_one_node.get(group.name, True)
    return {name: link for name, is_on_one in on_one_node.items() if is_on_one}
