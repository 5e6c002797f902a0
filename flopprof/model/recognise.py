"""Say which architecture a set of weights belongs to, from a shipped index; no torch, no library.

`index.csv` (scripts/make_index.py) has a row per model of torchvision and timm: a fingerprint of
its keys and shapes, and a sketch of them, by which models with other heads or inputs are found; a
hash of the shapes in their order, by which ports with other names are, and a sketch of their steps.
"""

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

INDEX = Path(__file__).with_name("index.csv")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "encoder.", "student.")
"""What wrappers put before every key: DataParallel, torch.compile, Lightning, own classes."""
LIBRARIES = ("torchvision.", "timm.")  # whose models the index has: what their classes begin with
LEAST = 20  # tensors at least of which the order says something
NEAR_STEPS = 0.3  # share of steps in common from which on a model is near
SKETCH = 16  # the least hashes of keys and shapes; two sets share as many as they are alike
NEAREST = 12  # candidates that are tried, most alike first
_NO_HASH = 0xFFFFFFFF  # fills a sketch of fewer hashes
_MOST_FRAC = 0.9  # of the keys that a wrapper's prefix must be on for it to be left out
_READINGS = 3  # of the keys, with and without prefixes, whose candidates are tried

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the index."""

    name: str  # "torchvision:resnet18", as --arch takes it
    cls: str  # its class, with the module
    input: str  # its canonical input, "1x3x224x224"; '' where there is none
    gflops: float | None  # matmul FLOPs at that input, in 10⁹
    fingerprint: str
    order: str = ""  # a hash of the shapes in their order, without the first and the head's


@dataclass(frozen=True, slots=True)
class Match:
    """What the index says of weights.

    Attributes:
        candidates: Whose keys and shapes are equal (`exact`), else the most alike, plainest first.
        exact: Whether they are equal.
    """

    candidates: tuple[Entry, ...]
    exact: bool


def fingerprint(shapes: Shapes) -> str:
    """Return a hash of all keys and shapes, in any order."""
    text = "\n".join(sorted(_lines(shapes)))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def sketch(shapes: Shapes) -> bytes:
    """Return the least hashes of keys and shapes, 4 bytes each, a set's own whatever its order."""
    return _least_hashes(_lines(shapes))


def recognise(shapes: Shapes) -> Match | None:
    """Return the models whose weights these are or may be; None where nothing is alike.

    Args:
        shapes: Key → shape, as in a state_dict; wrappers' prefixes are looked through.
    """
    import numpy as np

    entries, sketches = _index()
    ranked: list[tuple[float, list[Entry]]] = []
    for keys in _without_prefixes(shapes):
        mark = fingerprint(keys)
        exact = [entry for entry in entries if entry.fingerprint == mark]
        if exact and len(keys) == len(shapes):
            return Match(tuple(sorted(exact, key=_plainness)), exact=True)
        if exact:  # but for some keys beside: of a loss, or of a head that others have too
            ranked.append((1.0, sorted(exact, key=_plainness)))
            continue
        hashes = np.frombuffer(sketch(keys), dtype=">u4")
        common = np.isin(sketches[:, :SKETCH], hashes[hashes < _NO_HASH]).sum(axis=1)
        most = int(common.max())
        if most:
            likeness = most / max(min(len(set(keys)), SKETCH), 1)
            ranked.append((min(likeness, 1.0), _most_alike(entries, common)))
    if not ranked:
        return None
    ranked.sort(key=lambda pair: -pair[0])
    count = NEAREST if len(ranked) == 1 else NEAREST // 2  # a backbone's keys are a model's too
    nearest: dict[Entry, None] = {}
    for _, candidates in ranked[:_READINGS]:
        nearest |= dict.fromkeys(candidates[:count])
    return Match(tuple(nearest), exact=False)


def _by_common(entries: list[Entry], common: "np.ndarray[Any, Any]") -> list[int]:
    """Return the entries' places: those with most hashes in common first, then the plainest."""
    return sorted(
        range(len(entries)), key=lambda place: (-common[place], _plainness(entries[place]))
    )


def _most_alike(entries: list[Entry], common: "np.ndarray[Any, Any]") -> list[Entry]:
    """Return the entries with most hashes in common, one for each fingerprint."""
    alike: dict[str, Entry] = {}
    for place in _by_common(entries, common):
        if not common[place] or len(alike) == NEAREST:
            break
        alike.setdefault(entries[place].fingerprint, entries[place])
    return list(alike.values())


def order_mark(shapes: Shapes, *, is_headless: bool = False) -> str:
    """Return a hash of the shapes in their order, but for the first tensor and the head.

    The first takes the input's channels, the head has as many rows as there are classes.

    Args:
        shapes: Key → shape, in the order of the state_dict.
        is_headless: Whether there is no head to leave out.
    """
    row = list(in_order(shapes).values())
    if not is_headless and len(row) > 2:
        weight, bias = row[-2:]
        if len(bias) == 1 and weight[:1] == bias:
            row = row[:-2]
    text = "\n".join("x".join(map(str, shape)) for shape in row[1:])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def in_order(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the tensors in the order in which models have them, without counters."""
    return {
        key: tuple(shape)
        for key, shape in shapes.items()
        if not key.endswith("num_batches_tracked")
    }


def steps_sketch(shapes: Shapes) -> bytes:
    """Return the least hashes of each three weights that follow each other, by their shapes."""
    row = ["x".join(map(str, shape)) for shape in in_order(shapes).values() if len(shape) > 1]
    steps = {" ".join(row[place : place + 3]) for place in range(max(len(row) - 2, 0))}
    return _least_hashes(steps)


def _least_hashes(texts: Iterable[str]) -> bytes:
    """Return the least of the texts' hashes, 4 bytes each, filled up where there are fewer."""
    hashes = {hashlib.blake2b(text.encode(), digest_size=4).digest() for text in texts}
    return b"".join(sorted(hashes)[:SKETCH]).ljust(4 * SKETCH, b"\xff")


def same_order(shapes: Shapes) -> list[Entry]:
    """Return the models with these shapes in this order whatever their keys, plainest first.

    Heads may have other classes, or be left out; a safetensors file has lost the order.
    """
    if len(in_order(shapes)) < LEAST:
        return []
    marks = (order_mark(shapes), order_mark(shapes, is_headless=True))
    entries, _ = _index()
    matching = [entry for entry in entries if entry.order and entry.order in marks]
    return sorted(matching, key=_plainness)


def near_by_steps(shapes: Shapes) -> list[Entry]:
    """Return the models that have most steps from weight to weight in common with these shapes."""
    import numpy as np

    entries, sketches = _index()
    filled = np.frombuffer(steps_sketch(shapes), dtype=">u4")
    hashes = filled[filled < _NO_HASH]
    if len(hashes) == 0:
        return []
    common = np.isin(sketches[:, SKETCH:], hashes).sum(axis=1)
    nearest = _by_common(entries, common)[:NEAREST]
    return [entries[place] for place in nearest if common[place] >= NEAR_STEPS * len(hashes)]


def alternatives(entry: Entry) -> tuple[Entry, ...]:
    """Return the other models with the keys and shapes of this one, plainest first."""
    entries, _ = _index()
    same = [other for other in entries if other.fingerprint == entry.fingerprint and other != entry]
    return tuple(sorted(same, key=_plainness))


def named_first(entries: Iterable[Entry], texts: Iterable[str]) -> list[Entry]:
    """Return `entries` with those first whose names are in `texts`, the longest name before all.

    Of models with equal weights a file's name, "resnetblur18-84f4748f.pth", may say which it is.
    """
    words = [f"_{re.sub('[^a-z0-9]+', '_', text.lower())}_" for text in texts]

    def unnamed(entry: Entry) -> int:
        name = entry.name.partition(":")[2]
        return -len(name) if any(f"_{name}_" in text for text in words) else 0

    return sorted(entries, key=unnamed)


def _plainness(entry: Entry) -> tuple[bool, int, str]:
    """Sort torchvision before timm, and a base model before its variants."""
    return not entry.name.startswith("torchvision:"), len(entry.name), entry.name


def _lines(shapes: Shapes) -> list[str]:
    return [
        f"{key}:{'x'.join(map(str, shape))}"
        for key, shape in shapes.items()
        if not key.endswith("num_batches_tracked")  # checkpoints of before 2018 lack them
    ]


def _without_prefixes(shapes: Shapes) -> Iterator[Shapes]:
    """Yield the keys as they are, then without each prefix that nearly all of them have."""
    yield shapes
    for prefix in PREFIXES:
        inside = {
            key.removeprefix(prefix): shape
            for key, shape in shapes.items()
            if key.startswith(prefix)
        }
        if len(inside) > _MOST_FRAC * len(shapes):
            yield from _without_prefixes(inside)


@cache
def _index() -> tuple[list[Entry], "np.ndarray[tuple[int, int], np.dtype[np.uint32]]"]:
    """Return the index's models, and a row for each of the hashes of its sketch and its steps."""
    import numpy as np

    with INDEX.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    raw = bytes.fromhex("".join(row["sketch"] + row["steps"] for row in rows))
    entries = [
        Entry(
            f"{row['library']}:{row['name']}",
            row["class"],
            row["input"],
            float(row["gflops"]) if row["gflops"] else None,
            row["fingerprint"],
            row["order"],
        )
        for row in rows
    ]
    return entries, np.frombuffer(raw, dtype=">u4").reshape(len(rows), 2 * SKETCH)
