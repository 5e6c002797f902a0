"""The process groups of a job, as a trace's header lists them."""

from collections.abc import Mapping
from typing import Any

from flopprof.jobfacts import ProcessGroup

_MOST = 10_000  # groups of one rank; more is a damaged header
_LARGEST = 1_000_000  # ranks of a job; more is a damaged number


def process_groups(job: Mapping[str, Any]) -> tuple[ProcessGroup, ...]:
    """Return the process groups that a rank is in; none where its trace does not list them.

    Args:
        job: The header's `distributedInfo`. A group without a list of ranks that is as large as the
            job has all of them: so PyTorch shortens it.
    """
    listed = job.get("pg_config")
    if isinstance(listed, dict):
        listed = list(listed.values())
    if not isinstance(listed, list):
        return ()
    world_size = _count(job.get("world_size"))
    groups = []
    for entry in listed[:_MOST]:
        if not isinstance(entry, dict):
            continue
        name = entry.get("pg_name")
        if not isinstance(name, str | int):
            continue
        group_size = entry.get("pg_size", entry.get("group_size"))
        ranks = _ranks(entry.get("ranks"))
        size = _count(group_size) or len(ranks) or None
        if not ranks and size is not None and size == world_size:
            ranks = tuple(range(size))
        groups.append(
            ProcessGroup(
                name=str(name),
                description=_text(entry.get("pg_desc")),
                size=size,
                ranks=ranks,
            )
        )
    return tuple(groups)


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 < value <= _LARGEST else None


def _ranks(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _LARGEST:
        return ()
    if not all(type(rank) is int and 0 <= rank < _LARGEST for rank in value):
        return ()
    return tuple(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
