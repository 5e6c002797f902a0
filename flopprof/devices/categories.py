"""What a trace event's category stands for, by vendor: a table, trace_categories.csv.

Kinds: host (an op or range), annotation, python, launch (a call that queues work on the device),
and of what ran there: compute, memcpy, memset. Vendor "any" has its categories from all of them.
"""

from csv import DictReader
from pathlib import Path

with Path(__file__).with_name("trace_categories.csv").open(encoding="utf-8", newline="") as _file:
    _ROWS = list(DictReader(_file))
_KINDS = {row["category"]: row["is"] for row in _ROWS}
_VENDORS = {row["category"]: row["vendor"] for row in _ROWS}


def category_kind(category: str) -> str:
    """Return what an event of this category is; "" for what is left out. Case tells nothing."""
    return _KINDS.get(category.lower(), "")


def category_vendor(category: str) -> str:
    """Return whose devices write this category: nvidia, amd, intel, …; "" for anybody's."""
    vendor = _VENDORS.get(category.lower(), "")
    return "" if vendor in ("any", "torch") else vendor
