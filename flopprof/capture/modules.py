"""Call a model under hooks and record each module call."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count
from operator import itemgetter
from typing import Any, Self

import pandas as pd
import torch
from torch import nn

from flopprof.capture.call import Inputs, guarded
from flopprof.capture.hooks import (
    RAISED,
    examples_in,
    in_ranges,
    ops_named,
    quiet_about_hooks,
    tensors_in,
    watch_modules,
)
from flopprof.capture.restore import Snapshot
from flopprof.devices import keeping_random_states
from flopprof.errors import UsageError
from flopprof.formulas import ModuleCall, ModuleFormula
from flopprof.formulas.modules import canonical_name, find_module_formula, nothing
from flopprof.tables import MODULE_CALLS
from flopprof.units import shapes_text

Row = dict[str, Any]

_BY_ROWS = (
    nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.Dropout, nn.Identity,
    nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh,
)  # fmt: skip
"""Layers that treat each row alike, wherever a sequence in a nested tensor ends."""


def count_modules(
    model: nn.Module, call: Callable[[], object], *, step: Callable[[], None] = lambda: None
) -> pd.DataFrame:
    """Return the table `module_calls` of one `call()`, which calls the model.

    `step` is called whenever a module's call has ended.
    """
    with module_rows(model, step=step) as rows:
        call()
    return module_calls_of(rows)


@contextmanager
def module_rows(
    model: nn.Module, *, ranges: bool = False, step: Callable[[], None] = lambda: None
) -> Iterator[list[Row]]:
    """Hand over a list that gets a row for each module call that ends inside.

    With `ranges` each call is named in a running profiler's trace, too. `step` is called whenever
    a module's call has ended.
    """
    rows: list[Row] = []

    def keep(row: Row) -> None:
        rows.append(row)
        step()

    with ops_named() if ranges else quiet_about_hooks(), _record(model, keep, ranges=ranges):
        yield rows


def module_calls_of(rows: list[Row]) -> pd.DataFrame:
    """Return the table `module_calls` of rows by `module_rows`."""
    return MODULE_CALLS.from_rows(sorted(rows, key=itemgetter("call_id")))


def _record(
    model: nn.Module,
    keep: Callable[[Row], None],
    *,
    whatever_weights: bool = False,
    ranges: bool = False,
) -> AbstractContextManager[None]:
    """Watch the model; hand over the row of each call when it ends.

    With `whatever_weights` a layer counts as its class does also where its weights are computed
    anew on each call, pruned or normalised: that work is not the layer's own. With `ranges` calls
    are named in a trace.
    """
    call_ids = count()
    names = _Classes()

    def entering(_module: nn.Module, path: str, parent: Row | None) -> Row:
        if parent:
            parent["called_others"] = True
        around = parent["call_id"] if parent else -1
        return {"call_id": next(call_ids), "parent_call_id": around, "module_path": path}

    def leaving(
        row: Row, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if any(map(_is_sharded, tensors_in((args, kwargs, output)))):
            args, kwargs, output = (_local_parts(value) for value in (args, kwargs, output))
        call = ModuleCall(module, args, kwargs, output)
        _describe(row, call, names, whatever_weights=whatever_weights)
        keep(row)

    if ranges:
        return watch_modules(model, *in_ranges(entering, leaving))
    return watch_modules(model, entering, leaving)


class _Classes:
    """The names and formulas of the classes that one watch meets, found once each."""

    def __init__(self) -> None:
        self._names: dict[type, str] = {}
        self.formulas: dict[type, ModuleFormula | None] = {}

    def name(self, cls: type) -> str:
        name = self._names.get(cls)
        if name is None:
            name = self._names[cls] = canonical_name(cls)
        return name


def _describe(row: Row, call: ModuleCall, classes: _Classes, *, whatever_weights: bool) -> None:
    """Fill in the row of a call: what went in and came out, and what the module's formula says."""
    module = call.module
    output = call.output
    went_in = tensors_in(call.args)
    if call.kwargs:
        went_in += tensors_in(call.kwargs)
    came_out = tensors_in(output)
    tensors = went_in + came_out
    floating = (t.dtype for t in tensors if t.is_floating_point() or t.is_complex())
    row["module_type"] = classes.name(type(module))
    row["self_parameters"] = _own_parameters(module)
    row["dtype"] = str(next(floating, "")).removeprefix("torch.")
    for name, some in (("input_shapes", went_in), ("output_shapes", came_out)):
        row[name] = shapes_text(tuple(t.shape) for t in some if not t.is_nested)
    formula = find_module_formula(
        module, whatever_weights=whatever_weights, formulas=classes.formulas
    )
    is_nested = any(t.is_nested for t in tensors)
    if is_nested and isinstance(module, _BY_ROWS):
        args, kwargs, output = map(_packed_rows, (call.args, call.kwargs, output))
        call = ModuleCall(module, args, kwargs, output)
        tensors = tensors_in((args, kwargs, output))
        is_nested = any(t.is_nested for t in tensors)
    # Unknown: a part done before raising, sizes hidden in nested tensors, tensor look-alikes.
    plain = (tensors or formula is nothing) and not is_nested
    if formula and plain and output is not RAISED and (work := formula(call)):
        examples = examples_in(came_out)
        row["self_hook_matmul_flops"] = work.matmul_flops * examples
        row["self_hook_vector_flops"] = work.vector_flops * examples
    elif output is RAISED:
        row["reason"] = "it raised"
    elif formula is None:
        row["reason"] = f"{row['module_type']} has no formula, or a forward of its own"
    else:
        row["reason"] = "its inputs do not show what it did"


def _own_parameters(module: nn.Module) -> float:
    """Return the elements of a module's own parameters."""
    own = vars(module).get("_parameters")
    if type(own) is not dict or len(set(map(id, own.values()))) != len(own):  # some are shared
        return float(sum(p.numel() for p in module.parameters(recurse=False)))
    return float(sum(p.numel() for p in own.values() if p is not None))


def _is_sharded(tensor: torch.Tensor) -> bool:
    return type(tensor) is not torch.Tensor and hasattr(tensor, "_local_tensor")


def _local_parts(value: Any) -> Any:
    """Return `value` with this process's part in the place of each sharded tensor."""
    if isinstance(value, torch.Tensor):
        return getattr(value, "_local_tensor", value)  # to_local() would be an op in the trace
    if type(value) in (tuple, list):
        return type(value)(_local_parts(item) for item in value)
    if type(value) is dict:
        return {name: _local_parts(item) for name, item in value.items()}
    return value


def _packed_rows(value: Any) -> Any:
    """Return `value` with the rows of all its jagged nested tensors one below the other."""
    if isinstance(value, torch.Tensor) and value.is_nested and value.layout == torch.jagged:
        return value._values  # values() would be an op in the trace
    if type(value) in (tuple, list):
        return type(value)(_packed_rows(item) for item in value)
    if type(value) is dict:
        return {name: _packed_rows(item) for name, item in value.items()}
    return value


class FlopsCounter:
    """Counts what a model's module calls do, by hooks alone, until it is reset.

    `register_hooks(model)` … `remove_hooks()`, or `with FlopsCounter(model) as counter:`. Work that
    a `forward` does outside modules is not seen; `count_flops` sees it.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self._model = model
        self._hooks = ExitStack()
        self._tallies: dict[str, Row] = {}

    def register_hooks(self, model: nn.Module) -> None:
        """Count the calls of `model` from now on, in place of any other model."""
        self.remove_hooks()
        self._hooks.enter_context(_record(model, self._add, whatever_weights=True))

    def remove_hooks(self) -> None:
        """Stop counting; the counts stay."""
        self._hooks.close()

    def __repr__(self) -> str:
        unknown = self.unknown_modules
        lacking = f", without {len(unknown)} unknown modules: {unknown[:3]}" if unknown else ""
        total = "unknown" if math.isnan(self.total_flops) else self.total_flops
        return f"FlopsCounter({total} FLOPs by hooks{lacking})"

    def reset(self) -> None:
        """Forget the counts."""
        self._tallies.clear()

    def __enter__(self) -> Self:
        if self._model is None:
            raise UsageError("no model to watch", remedy="with FlopsCounter(model) as counter: …")
        self.register_hooks(self._model)
        return self

    def __exit__(self, *_exception: object) -> None:
        self.remove_hooks()

    def _add(self, row: Row) -> None:
        tally = self._tallies.setdefault(row["module_path"], row | {"calls": 0})
        tally["module_type"] = row["module_type"]
        tally["calls"] += 1
        if "self_hook_matmul_flops" in row:
            for name in ("matmul_flops", "vector_flops"):
                tally[name] = tally.get(name, 0) + row[f"self_hook_{name}"]
        elif "called_others" not in row:
            tally["lacking"] = row["reason"]

    @property
    def matmul_flops(self) -> int | float:
        """FLOPs of contractions, as far as known; NaN where no module with work is known."""
        return self._sum("matmul_flops")

    @property
    def vector_flops(self) -> int | float:
        """All other FLOPs, as far as known; NaN where no module with work is known."""
        return self._sum("vector_flops")

    @property
    def total_flops(self) -> int | float:
        """Both classes together, as far as known: `unknown_modules` are missing. NaN if all are."""
        return self.matmul_flops + self.vector_flops

    def _sum(self, name: str) -> int | float:
        tallies = self._tallies.values()
        works = any(tally.get(n) for tally in tallies for n in ("matmul_flops", "vector_flops"))
        if not works and self.unknown_modules:
            return math.nan  # what is known is the nothing that containers do
        return int(sum(tally.get(name, 0) for tally in tallies))

    @property
    def unknown_modules(self) -> list[str]:
        """Paths of the modules that have no count and called no other: the total lacks them."""
        return list(self.why_unknown)

    @property
    def why_unknown(self) -> dict[str, str]:
        """Path of each of the `unknown_modules` → why it has no count."""
        return {p: tally["lacking"] for p, tally in self._tallies.items() if "lacking" in tally}

    def by_module(self) -> pd.DataFrame:
        """Return one row per module called, with its own FLOPs; NaN where no call is known."""
        names = ["module_path", "module_type", "calls", "matmul_flops", "vector_flops"]
        tallies = sorted(self._tallies.values(), key=itemgetter("call_id"))
        frame = pd.DataFrame(tallies, columns=names).astype(dict.fromkeys(names[3:], float))
        return frame.assign(flops=frame["matmul_flops"] + frame["vector_flops"])


def calculate_flops_for_size(model: nn.Module, input_size: Sequence[int]) -> int | float:
    """Return the FLOPs by hooks of one call on a tensor of `input_size`, batch included.

    The tensor holds floats, or ids where the model's first layer is an `nn.Embedding`. The mode
    (train, eval) is kept; buffers, attributes and random state are put back as they were. A total
    that lacks modules is warned of; it is NaN where nothing is known.

    Raises:
        UsageError: The model does not take such a tensor.
        ModelError: The model raised.
    """
    like = next((t for t in _tensors_of(model) if t.is_floating_point()), torch.zeros(()))
    size = tuple(input_size)
    counter = FlopsCounter(model)
    layers = (m for m in model.modules() if not list(m.children()))
    takes_ids = isinstance(next(layers, None), nn.Embedding)
    x = like.new_zeros(size, dtype=torch.int64) if takes_ids else like.new_zeros(size)
    buffers = [(b, b.clone()) for b in _tensors_of(model, buffers_only=True)]
    snapshot = Snapshot(model)
    try:
        with quiet_about_hooks(), keeping_random_states(str(like.device)), torch.no_grad(), counter:
            guarded(model, Inputs((x,)))()
    finally:
        snapshot.restore(fully=True)
        for buffer, saved in buffers:
            buffer.data.copy_(saved)
    if why := counter.why_unknown:
        path, reason = next(iter(why.items()))
        warnings.warn(
            f"the count lacks {len(why)} modules, first {path or '(model)'}: {reason}; "
            "flopprof.count_flops sees inside",
            stacklevel=2,
        )
    return counter.total_flops


def _tensors_of(model: nn.Module, *, buffers_only: bool = False) -> list[torch.Tensor]:
    tensors = [*([] if buffers_only else model.parameters()), *model.buffers()]
    return [tensor for tensor in tensors if not nn.parameter.is_lazy(tensor)]
