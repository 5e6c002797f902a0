"""Which layers of a model are shared by tensor parallelism, and how: columns, then rows.

A layer that is split by columns makes a part of its outputs on each rank; the one after it, split
by rows, takes that part in; the sum over the ranks is the output: one collective for the two.
"""

import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

COLUMNS = "columns"
ROWS = "rows"
GATHERED = "columns, gathered"
ROWS_OF_IDS = "rows of an embedding"

_OF_TRANSFORMERS = {
    "colwise": COLUMNS,
    "rowwise": ROWS,
    "colwise_gather_output": GATHERED,
    "colwise_rep": GATHERED,
    "embedding_rowwise": ROWS_OF_IDS,
}
"""The styles of a plan by transformers that PyTorch's own know; experts stay whole on each rank."""

_INTO_HEADS = (
    ("q_proj", "k_proj", "v_proj"),
    ("q", "k", "v"),
    ("wq", "wk", "wv"),
    ("to_q", "to_k", "to_v"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
)
_OUT_OF_HEADS = ("o_proj", "out_proj", "o", "wo", "to_out", "out_lin", "proj", "dense")
_GATED = ("w1", "w3", "w2")
_ELEMENTWISE = frozenset(
    (
        *("ReLU", "ReLU6", "GELU", "SiLU", "Mish", "Tanh", "Sigmoid", "ELU", "SELU", "CELU"),
        *("LeakyReLU", "Hardswish", "Hardtanh", "Softplus", "Dropout", "Identity"),
    )
)
"""Layers that do the same to a part of the channels as to all of them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How layers are split.

    Attributes:
        splits: Path of a layer → `COLUMNS`, `ROWS`, ….
    """

    splits: dict[str, str]

    @property
    def texts(self) -> tuple[str, ...]:
        """The splits as texts, "fc1: columns"."""
        return tuple(f"{path or '(model)'}: {split}" for path, split in self.splits.items())

    def styles(self) -> dict[str, Any]:
        """Return what `parallelize_module` takes."""
        from torch.distributed.tensor import Replicate
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

        make: dict[str, Callable[[], Any]] = {
            COLUMNS: ColwiseParallel,
            ROWS: RowwiseParallel,
            GATHERED: lambda: ColwiseParallel(output_layouts=Replicate()),
            ROWS_OF_IDS: lambda: RowwiseParallel(input_layouts=Replicate()),
        }
        return {path: make[split]() for path, split in self.splits.items()}


def plans_of(model: "nn.Module", ranks: int) -> list[Plan]:
    """Return the plans for a model, the one that shares most first; none where nothing can be.

    That of transformers goes first, where the model has one; then pairs that shapes and names tell,
    with attention's layers and without.

    Args:
        model: The model.
        ranks: How many share it: the size between two layers must be a multiple.
    """
    attention = dict(_attention(model, ranks))
    feeding = dict(_feed_forward(model, ranks, around=set(attention)))
    candidates = [_plan_of_transformers(model), {**attention, **feeding}, feeding, attention]
    plans: list[Plan] = []
    for splits in candidates:
        if splits and Plan(splits) not in plans:
            plans.append(Plan(splits))
    return plans


def _plan_of_transformers(model: "nn.Module") -> dict[str, str]:
    """Return the splits of the model's own plan; none where it has none, or unknown ones only."""
    from torch import nn

    plan = getattr(model, "tp_plan", None) or getattr(model, "_tp_plan", None)
    if not isinstance(plan, dict):
        return {}
    splits = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        for pattern, style in plan.items():
            split = _OF_TRANSFORMERS.get(style)
            if split and fnmatch.fnmatchcase(path, pattern):
                splits[path] = split
    return splits if ROWS in splits.values() else {}


def _linears(parent: "nn.Module") -> dict[str, "nn.Linear"]:
    from torch import nn

    return {name: child for name, child in parent.named_children() if type(child) is nn.Linear}


def _attention(model: "nn.Module", ranks: int) -> Iterator[tuple[str, str]]:
    """Yield the splits of attention's layers: heads are shared, as names tell them."""
    for path, parent in model.named_modules():
        linears = _linears(parent)
        into = next((names for names in _INTO_HEADS if set(names) <= set(linears)), ())
        out = next((name for name in _OUT_OF_HEADS if name in linears and name not in into), "")
        if not into or not out:
            continue
        sizes = [linears[name].out_features for name in into]
        if sizes[0] != linears[out].in_features or any(size % ranks for size in sizes):
            continue
        for name in into:
            yield _joined(path, name), COLUMNS
        yield _joined(path, out), ROWS


def _feed_forward(model: "nn.Module", ranks: int, *, around: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the splits of layers one after the other: each rank has a part of what is between."""
    from torch import nn

    for path, parent in model.named_modules():
        linears = _linears(parent)
        if any(_joined(path, name) in around for name in linears):
            continue
        if isinstance(parent, nn.Sequential):
            yield from _in_sequence(path, parent, ranks)
            continue
        if set(_GATED) <= set(linears):  # whose order in the class is not that of the call
            linears = {name: linears[name] for name in _GATED}
        up: list[str] = []
        for name, linear in linears.items():
            size = linear.in_features
            last = linears[up[-1]] if up else None
            if last is not None and last.out_features == size != last.in_features:
                if size % ranks == 0:
                    yield from ((_joined(path, one), COLUMNS) for one in up)
                    yield _joined(path, name), ROWS
                up = []
            elif last is not None and (last.in_features, last.out_features) == (
                linear.in_features,
                linear.out_features,
            ):
                up.append(name)
            else:
                up = [name]


def _in_sequence(path: str, parent: "nn.Sequential", ranks: int) -> Iterator[tuple[str, str]]:
    """Yield the splits of linear layers with nothing but elementwise work between them."""
    from torch import nn

    first = ""
    size = 0
    for name, child in parent.named_children():
        if type(child) is nn.Linear:
            if first and size == child.in_features and size % ranks == 0:
                yield _joined(path, first), COLUMNS
                yield _joined(path, name), ROWS
                first = ""
            else:
                first = name
                size = child.out_features
        elif type(child).__name__ not in _ELEMENTWISE:
            first = ""


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
