"""Join launches in counter files to the kernels and ops of a run, or say why they do not fit.

By NVTX range where flopprof pushed them; else by order, where each stream has the same launches in
the same order; else by totals of a kernel's name. A figure is never given to an op on a guess.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from flopprof.executed.launches import bare_kernel
from flopprof.executed.names import range_name
from flopprof.tables import tuples
from flopprof.units import counted, safe_text

NVTX = "nvtx"
ORDER = "order"
NAME = "name"
_NAMED = 3  # kernels or ops that a note names


@dataclass
class Joined:
    """Which launch belongs to what.

    Attributes:
        op_of: For each launch, the op's row; -1 where it was not found, or no op launched it.
        kernel_of: For each launch, the kernel's row; -1 where it was not found.
        by: For each launch, how it was found: `NVTX`, `ORDER`, `NAME` (its name's total only) or
            "" where it was not.
        notes: What did not fit, each in a sentence.
    """

    op_of: np.ndarray
    kernel_of: np.ndarray
    by: list[str]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def nothing(cls, size: int) -> "Joined":
        """Return that no launch was found."""
        return cls(np.full(size, -1), np.full(size, -1), [""] * size)


def join(launches: pd.DataFrame, kernels: pd.DataFrame, ops: pd.DataFrame) -> Joined:
    """Return what of a run each launch belongs to.

    Args:
        launches: Table LAUNCHES.
        kernels: Table KERNELS of the run; may be empty, as of a run on a CPU.
        ops: Table OPS of the run.
    """
    ran = kernels[kernels["kind"].isin(("compute", "communication"))]
    if (launches["range_id"] >= 0).any():
        return _by_ranges(launches, ran, ops)
    joined = _by_order(launches, ran)
    return joined or _by_name(launches, ran)


def _by_ranges(launches: pd.DataFrame, ran: pd.DataFrame, ops: pd.DataFrame) -> Joined:
    """Join by the number of the op in the range; an op with too few or too many gets none."""
    joined = Joined.nothing(len(launches))
    ids = launches["range_id"].to_numpy()
    others = _other_ops(launches, ops)
    if others:
        joined.notes.append(
            f"the ranges are of another run: {'; '.join(others[:_NAMED])}: nothing was joined"
        )
        return joined
    ops_in_ranges = {int(op) for op in ids if op >= 0}
    op_of_kernel = ran["op_id"].to_numpy()
    range_of_kernel = np.append(_nearest(ops, ops_in_ranges), -1)[op_of_kernel]
    order = _launch_order(ran)
    rows_of = _places_of(ids, np.arange(len(ids)))
    places_of = _places_of(range_of_kernel[order], order)
    odd = []
    for op in sorted(ops_in_ranges):
        rows = rows_of[op]
        places = places_of.get(op, np.zeros(0, dtype=np.int64))
        if len(ran) and (fault := _fault(op, launches.iloc[rows], ran.iloc[places])):
            odd.append(fault)
            continue
        joined.op_of[rows] = op
        for row in rows:
            joined.by[row] = NVTX
        if len(ran) and _alike(launches.iloc[rows], ran.iloc[places]):
            joined.kernel_of[rows] = places
            joined.op_of[rows] = op_of_kernel[places]
    joined.kernel_of = _rows_of_table(joined.kernel_of, ran)
    joined.notes += _notes_of_ranges(odd, int((range_of_kernel < 0).sum()), int((ids < 0).sum()))
    return joined


def _places_of(numbers: np.ndarray, places: np.ndarray) -> dict[int, np.ndarray]:
    """Return, for each number, the places where it stands, in their order."""
    order = np.argsort(numbers, kind="stable")
    distinct, first = np.unique(numbers[order], return_index=True)
    parts = np.split(places[order], first[1:])
    return dict(zip(distinct.tolist(), parts, strict=True)) if len(distinct) else {}


def _fault(op: int, mine: pd.DataFrame, theirs: pd.DataFrame) -> str:
    """Return why the launches in an op's range are not what it launched in the run; "" if they are.

    A kernel that the run does not have at all is another choice of a library: that is possible.
    """
    if len(mine) != len(theirs):
        return f"op {op} has {len(mine)} launches in the counters, {len(theirs)} in the run"
    in_counters = Counter(bare_kernel(name) for name in mine["kernel"])
    in_run = Counter(bare_kernel(name) for name in theirs["kernel"])
    if any(in_counters[name] > number for name, number in in_run.items()):
        return f"op {op} has one of its kernels too often in the counters"
    return ""


def _notes_of_ranges(odd: list[str], absent: int, outside: int) -> list[str]:
    """Return what did not fit of ranges: ops, kernels of the run, launches."""
    notes = []
    if odd:
        more = f" and {len(odd) - _NAMED} ops more" if len(odd) > _NAMED else ""
        notes.append(f"{'; '.join(odd[:_NAMED])}{more}: these ops have no executed figure")
    if absent:
        notes.append(
            f"{counted(absent, 'kernel')} of the run are in no range of the counters: their ops "
            "have no executed figure"
        )
    if outside:
        notes.append(
            f"{counted(outside, 'launched kernel')} of the counters lie in no range: not joined"
        )
    return notes


def _other_ops(launches: pd.DataFrame, ops: pd.DataFrame) -> list[str]:
    """Return where a range names another op than the run has under its number."""
    names = ops["op"].astype("str").to_numpy(object)
    differences = []
    pairs = launches.loc[launches["range_id"] >= 0, ["range_id", "range_op"]].drop_duplicates()
    for number, op_in_range in tuples(pairs, ("range_id", "range_op")):
        if number >= len(names):
            differences.append(f"range {number} is of no op")
            continue
        own = range_name(names[number])
        if op_in_range and op_in_range != own and not op_in_range.startswith(own + "."):
            differences.append(
                f"range {number} is {safe_text(op_in_range, 60)}, op {number} is {own}"
            )
    return differences


def _nearest(ops: pd.DataFrame, chosen: set[int]) -> np.ndarray:
    """Return, for each op, the nearest one around it, or itself, of the chosen; -1 for none."""
    parents = ops["parent_op_id"].tolist()
    nearest = [-1] * len(parents)
    for op, parent in enumerate(parents):  # a parent comes first
        if op in chosen:
            nearest[op] = op
        elif parent >= 0:
            nearest[op] = nearest[parent]
    return np.array(nearest, dtype=np.int64)


def _launch_order(ran: pd.DataFrame) -> np.ndarray:
    """Return the kernels' places in the order of their launches, which ids of launches tell."""
    ids = ran["correlation_id"].to_numpy()
    starts = ran["start_us"].to_numpy()
    ids_tell = len(ids) > 0 and bool((ids > 0).all()) and len(np.unique(ids)) == len(ids)
    order: np.ndarray = np.lexsort((starts, ids)) if ids_tell else np.argsort(starts, kind="stable")
    return order


def _rows_of_table(places: np.ndarray, ran: pd.DataFrame) -> np.ndarray:
    """Return places among the kernels that ran as numbers of kernels."""
    return np.append(ran["kernel_id"].to_numpy(), -1)[places] if len(ran) else places


_Key = tuple[str, str, str]


def _keys_of_launches(launches: pd.DataFrame, *, sized: bool) -> list[_Key]:
    """Return name, grid and block of each launch; AMD's sizes are in threads."""
    names = ("kernel", "grid", "block")
    return [
        (bare_kernel(kernel), grid if sized else "", block if sized else "")
        for kernel, grid, block in tuples(launches, names)
    ]


def _keys_of_kernels(ran: pd.DataFrame, *, sized: bool, in_threads: bool) -> list[_Key]:
    bare: dict[str, str] = {}
    keys = []
    for kernel, grid, block in tuples(ran, ("kernel", "grid", "block")):
        name = bare.setdefault(kernel, "") or bare_kernel(kernel)
        bare[kernel] = name
        if not sized:
            keys.append((name, "", ""))
        elif in_threads:
            threads = _product(block)
            keys.append((name, str(_product(grid) * threads), str(threads)))
        else:
            keys.append((name, grid, block))
    return keys


def _product(size: str) -> int:
    return math.prod(int(axis) for axis in re.findall(r"\d+", size)) if size else -1


def _both_keys(launches: pd.DataFrame, ran: pd.DataFrame) -> tuple[list[_Key], list[_Key], bool]:
    """Return the keys of launches and kernels, and whether both tell sizes."""
    in_threads = bool((launches["executed_source"] == "rocprof").any()) or bool(
        launches["grid"].str.fullmatch(r"\d+").any()
    )
    sized = bool(len(ran)) and bool((ran["grid"] != "").all() and (launches["grid"] != "").all())
    keys = _keys_of_launches(launches, sized=sized)
    if in_threads and sized:
        keys = [(name, str(_product(grid)), str(_product(block))) for name, grid, block in keys]
    return keys, _keys_of_kernels(ran, sized=sized, in_threads=in_threads), sized


def _alike(mine: pd.DataFrame, theirs: pd.DataFrame) -> bool:
    """Return whether launches of an op are the kernels that it has in the run, one by one."""
    own, others, _ = _both_keys(mine, theirs)
    return own == others


def _by_order(launches: pd.DataFrame, ran: pd.DataFrame) -> Joined | None:
    """Join launch by launch where every stream has the same ones in the same order."""
    if not len(ran) or ran["rank"].nunique() > 1 or len(launches) != len(ran):
        return None
    mine, theirs, sized = _both_keys(launches, ran)
    order = _launch_order(ran)
    # AMD's files tell queues, which are no streams: there the order of all is compared.
    by_stream = bool((launches["executed_source"] != "rocprof").all())
    streams = launches["stream"].to_numpy() if by_stream else np.zeros(len(launches))
    streams_of_kernels = ran["stream"].to_numpy() if by_stream else np.zeros(len(ran))
    joined = Joined.nothing(len(launches))
    for stream in np.unique(np.concatenate((streams, streams_of_kernels))):
        rows = np.flatnonzero(streams == stream)
        places = order[streams_of_kernels[order] == stream]
        if [mine[row] for row in rows] != [theirs[place] for place in places]:
            return None
        joined.kernel_of[rows] = places
    joined.op_of = ran["op_id"].to_numpy()[joined.kernel_of]
    joined.kernel_of = _rows_of_table(joined.kernel_of, ran)
    joined.by = [ORDER] * len(launches)
    if not sized:
        joined.notes.append("joined by names and streams alone: grids are not told on both sides")
    return joined


def _by_name(launches: pd.DataFrame, ran: pd.DataFrame) -> Joined:
    """Mark the launches whose name has as many of each size as in the run: its total holds."""
    joined = Joined.nothing(len(launches))
    mine, theirs, _ = _both_keys(launches, ran)
    in_files = _by_kernel(mine)
    in_run = _by_kernel(theirs)
    equal = {name for name, sizes in in_files.items() if sizes == in_run.get(name)}
    for row, key in enumerate(mine):
        joined.by[row] = NAME if key[0] in equal else ""
    joined.notes.append(
        f"the counters' {counted(len(mine), 'launched kernel')} are not the run's "
        f"{counted(len(theirs), 'kernel')} in the same order: no op has an executed figure"
    )
    lost = [name for name in in_files if name not in equal]
    if lost:
        some = ", ".join(safe_text(name, 60) for name in lost[:_NAMED])
        joined.notes.append(
            f"of {counted(len(lost), 'name')} of kernels the numbers or sizes differ: {some}"
        )
    absent = [name for name in in_run if name not in in_files]
    if absent:
        some = ", ".join(safe_text(name, 60) for name in absent[:_NAMED])
        joined.notes.append(
            f"{counted(len(absent), 'name')} of the run's kernels are not in the counters: {some}"
        )
    return joined


def _by_kernel(keys: Sequence[_Key]) -> dict[str, Counter[tuple[str, str]]]:
    sizes: dict[str, Counter[tuple[str, str]]] = {}
    for name, grid, block in keys:
        sizes.setdefault(name, Counter())[grid, block] += 1
    return sizes
