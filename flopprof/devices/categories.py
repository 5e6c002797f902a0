"""What a trace event's category stands for, by vendor: a table, trace_categories.csv.

Kinds: host (an op or range), annotation, python, launch (a call that queues work on the device),
and of what ran there: compute, memcpy, memset. Vendor "any" has its categories from all of them.
"""

from collections.abc import Iterable
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


_KIND_OF_VENDOR = {"nvidia": "cuda", "amd": "rocm", "intel": "xpu"}


def device_kind(vendors: Iterable[str]) -> str:
    """Return the kind of device that these vendors' categories tell: the first that is no CUDA.

    ROCm writes CUDA's categories too; a trace without launches may be of any, and is taken for one
    of CUDA, as its properties are.
    """
    others = [vendor for vendor in vendors if vendor != "nvidia"]
    return _KIND_OF_VENDOR.get(others[0], others[0]) if others else "cuda"
