"""The rules from readings to FLOPs and bytes, as data: rules.csv, tensor_paths.csv, opcodes.csv."""

import csv
import itertools
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

PATH = "sm__ops_path_tensor_"
"""What NVIDIA's counters of matrix operations begin with: a multiply and an add are two."""

_PATH_NAME = re.compile(
    rf"{PATH}(?:op_(?P<op>[a-z0-9]+)_)?src_(?P<src>(?:(?:tf|bf|fp|int)\d+_)*(?:tf|bf|fp|int)\d+)"
    r"(?:_dst_(?P<dst>[a-z]+\d+))?(?:_sparsity_(?P<sparsity>on|off))?"
)
_DTYPES = {  # as traces spell them here
    "bf16": "bfloat16",
    "fp16": "float16",
    "tf32": "tfloat32",
    "fp64": "float64",
    "fp8": "float8",
    "fp4": "float4",
    "fp4_fp6": "float6 or float4",
    "fp4_fp6_fp8": "float8, float6 or float4",
    "fp16_bf16_tf32": "float16",  # CC 7.5 has no other
}


class Term(NamedTuple):
    """One metric's part in a figure: value × weight.

    Attributes:
        required: Without it the figure is not known; else it counts where it is there.
    """

    metric: str
    weight: float
    required: bool


class PathName(NamedTuple):
    """A name of NVIDIA's counters of matrix operations in its parts; None where it has none."""

    src: str
    op: str | None
    dst: str | None
    sparsity: str | None

    @property
    def is_integer(self) -> bool:
        """Whether it counts integer operations."""
        return self.src.startswith("int")

    @property
    def dtype(self) -> str:
        """The element type of what is multiplied."""
        return _DTYPES.get(self.src, self.src)

    def holds(self, other: "PathName") -> bool:
        """Return whether this one counts all that the other counts, and more: its parent."""
        if self == other or self.src != other.src:
            return False
        pairs = zip(self[1:], other[1:], strict=True)
        return all(mine is None or mine == its for mine, its in pairs)


def path_name(metric: str) -> PathName | None:
    """Return a metric's name in its parts; None for what counts no matrix operations."""
    match = _PATH_NAME.fullmatch(metric.removesuffix(".sum"))
    if match is None:
        return None
    return PathName(match["src"], match["op"], match["dst"], match["sparsity"])


def rows(name: str) -> list[dict[str, str]]:
    """Return the rows of one of this room's data files."""
    with Path(__file__).with_name(name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def groups(tool: str, arch: str) -> dict[tuple[str, str], list[list[Term]]]:
    """Return, for each figure and dtype, the sets of terms that give it, the best first.

    Args:
        tool: "ncu" or "rocprof".
        arch: "sm_90", "gfx90a"; "" where it is not known: rules of no architecture alone hold.
    """
    choices: dict[tuple[str, str], dict[str, list[Term]]] = {}
    for row in rows("rules.csv"):
        if row["tool"] != tool:
            continue
        is_ours = _is_of(row["arch"], arch)
        is_packed = "2_pred_on" in row["metric"]  # counts where it is, whatever the architecture
        if not is_ours and not is_packed:
            continue
        of_figure = choices.setdefault((row["figure"], row["dtype"]), {})
        term = Term(row["metric"], float(row["weight"]), required=is_ours)
        of_figure.setdefault(row["choice"], []).append(term)
    return {key: list(sets.values()) for key, sets in choices.items()}


def _is_of(spec: str, arch: str) -> bool:
    if spec.startswith("not "):
        return arch not in spec.split()[1:]
    return not spec or arch in spec.split()


@cache
def tensor_metrics(arch: str) -> tuple[str, ...]:
    """Return the counters of matrix operations that an architecture has; () without any."""
    names: dict[str, None] = {}
    for row in rows("tensor_paths.csv"):
        if arch in row["arch"].split():
            names |= dict.fromkeys(PATH + name for name in expanded(row["metric"]))
    return tuple(names)


def expanded(pattern: str) -> Iterator[str]:
    """Yield the names that a pattern with braces stands for: "a_{b,c}" is a_b and a_c."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    options = [part.split(",") if at % 2 else [part] for at, part in enumerate(parts)]
    for chosen in itertools.product(*options):
        yield "".join(chosen)


@cache
def opcodes() -> dict[str, tuple[float, str]]:
    """Return FLOPs or operations of one warp instruction, and its element type, by opcode."""
    return {
        row["opcode"]: (float(row["matmul_flops"]), row["dtype"]) for row in rows("opcodes.csv")
    }


def opcode_work(opcode: str) -> tuple[float, str] | None:
    """Return FLOPs and element type of a matrix instruction; None for any other instruction.

    NaN for a matrix instruction whose size is not known, or that skips zeros (`.SP`).
    """
    parts = opcode.split(".")
    if not re.fullmatch(r"U?T?C?[HIDQOB]G?MMA", parts[0]):
        return None
    dtype = next((_OPCODE_DTYPES[p] for p in parts if p in _OPCODE_DTYPES), "")
    if "SP" in parts:
        return float("nan"), dtype
    for size in parts[1:]:
        if match := re.fullmatch(r"(\d+)x(\d+)x(\d+)", size):
            m, n, k = map(int, match.groups())
            return 2.0 * m * n * k, dtype or ("int8" if parts[0].startswith("I") else "float16")
        if listed := opcodes().get(f"{parts[0]}.{size}"):
            return listed[0], dtype or listed[1]
    return float("nan"), dtype


_OPCODE_DTYPES = {
    "BF16": "bfloat16",
    "TF32": "tfloat32",
    "S4": "int4",
    "U4": "int4",
    "S8": "int8",
    "U8": "int8",
    "E4M3": "float8",
    "E5M2": "float8",
}
