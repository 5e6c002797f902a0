"""The link between the GPUs of one node, by their name (links.csv): at most so fast, one way.

Traces name no link. A board that always has one kind of link tells it; where boards of one name
come with and without a bridge (A100 PCIe, H100 NVL), and between nodes, it is not known.
"""

import csv
import re
from functools import cache
from pathlib import Path

from flopprof.jobfacts import Link


@cache
def _links() -> tuple[tuple[re.Pattern[str], Link], ...]:
    with Path(__file__).with_name("links.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    links = []
    for row in rows:
        link = Link(
            name=row["link"],
            peak_bytes_per_s=float(row["peak_gbs"]) * 1e9,
            source=row["source"],
        )
        links.append((re.compile(row["torch_name_regex"]), link))
    return tuple(links)


def link_of(gpu: str) -> Link | None:
    """Return the link between GPUs of this name on one node; None where it is not known.

    Args:
        gpu: Its name as traces have it, "NVIDIA H100 80GB HBM3".
    """
    return next((link for pattern, link in _links() if pattern.search(gpu)), None)
