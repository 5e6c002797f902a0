"""How ops are named in NVTX ranges: what writes them and what reads them share it."""

import re


def range_name(op: str) -> str:
    """Return an op's name as a range may have it: colons and slashes would split it."""
    name = op.replace("::", ".")
    return re.sub(r"[^\w.\[\]<>-]", "_", name)
