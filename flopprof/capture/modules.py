"""Call a model under hooks and record each module call."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import count
from operator import itemgetter
from typing import Any, Self

import pandas as pd
import torch
from torch import nn

from flopprof.capture.hooks import RAISED, examples_in, quiet_about_hooks, tensors_in, watch_modules
from flopprof.errors import UsageError
from flopprof.formulas import ModuleCall
from flopprof.formulas.modules import canonical_name, find_module_formula, nothing
from flopprof.tables import MODULE_CALLS
from flopprof.units import shapes_text

Row = dict[str, Any]


def count_modules(model: nn.Module, call: Callable[[], object]) -> pd.DataFrame:
    """Return the table `module_calls` of one `call()`, which calls the model."""
    rows: list[Row] = []
    with quiet_about_hooks(), _record(model, rows.append):
        call()
    return MODULE_CALLS.from_rows(sorted(rows, key=itemgetter("call_id")))


def _record(model: nn.Module, keep: Callable[[Row], None]) -> AbstractContextManager[None]:
    """Watch the model; hand over the row of each call when it ends."""
    call_ids = count()

    def entering(_module: nn.Module, path: str, parent: Row | None) -> Row:
        if parent:
            parent["called_others"] = True
        around = parent["call_id"] if parent else -1
        return {"call_id": next(call_ids), "parent_call_id": around, "module_path": path}

    def leaving(
        row: Row, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        went_in, came_out = list(tensors_in((args, kwargs))), list(tensors_in(output))
        tensors = went_in + came_out
        floating = (t.dtype for t in tensors if t.is_floating_point() or t.is_complex())
        row["module_type"] = canonical_name(type(module))
        row["dtype"] = str(next(floating, "")).removeprefix("torch.")
        for name, some in (("input_shapes", went_in), ("output_shapes", came_out)):
            row[name] = shapes_text(tuple(t.shape) for t in some if not t.is_nested)
        formula = find_module_formula(module)
        # Unknown: a part done before raising, sizes hidden in nested tensors, tensor look-alikes.
        plain = (tensors or formula is nothing) and not any(t.is_nested for t in tensors)
        call = ModuleCall(module, args, kwargs, output)
        if formula and plain and output is not RAISED and (work := formula(call)):
            examples = examples_in(came_out)
            row["self_hook_matmul_flops"] = work.matmul_flops * examples
            row["self_hook_vector_flops"] = work.vector_flops * examples
        keep(row)

    return watch_modules(model, entering, leaving)


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
        self._hooks.enter_context(_record(model, self._add))

    def remove_hooks(self) -> None:
        """Stop counting; the counts stay."""
        self._hooks.close()

    def __repr__(self) -> str:
        unknown = self.unknown_modules
        lacking = f", without {len(unknown)} unknown modules: {unknown[:3]}" if unknown else ""
        return f"FlopsCounter({self.total_flops} FLOPs by hooks{lacking})"

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
            tally["lacking"] = True

    @property
    def matmul_flops(self) -> int:
        """FLOPs of contractions, as far as known."""
        return sum(tally.get("matmul_flops", 0) for tally in self._tallies.values())

    @property
    def vector_flops(self) -> int:
        """All other FLOPs, as far as known."""
        return sum(tally.get("vector_flops", 0) for tally in self._tallies.values())

    @property
    def total_flops(self) -> int:
        """Both classes together, as far as known: `unknown_modules` are missing."""
        return self.matmul_flops + self.vector_flops

    @property
    def unknown_modules(self) -> list[str]:
        """Paths of the modules that have no count and called no other: the total lacks them."""
        return [path for path, tally in self._tallies.items() if "lacking" in tally]

    def by_module(self) -> pd.DataFrame:
        """Return one row per module called, with its own FLOPs; NaN where no call is known."""
        names = ["module_path", "module_type", "calls", "matmul_flops", "vector_flops"]
        tallies = sorted(self._tallies.values(), key=itemgetter("call_id"))
        frame = pd.DataFrame(tallies, columns=names).astype(dict.fromkeys(names[3:], float))
        return frame.assign(flops=frame["matmul_flops"] + frame["vector_flops"])


def calculate_flops_for_size(model: nn.Module, input_size: Sequence[int]) -> int:
    """Return the FLOPs by hooks of one call on a float tensor of `input_size`, batch included.

    The mode (train, eval) is kept; buffers and random state are put back as they were.
    """
    tensors = (t for t in (*model.parameters(), *model.buffers()) if not nn.parameter.is_lazy(t))
    like = next((t for t in tensors if t.is_floating_point()), torch.zeros(()))
    buffers = [(b, b.clone()) for b in model.buffers() if not nn.parameter.is_lazy(b)]
    counter, generators = FlopsCounter(model), [like.device] if like.is_cuda else []
    try:
        with quiet_about_hooks(), torch.random.fork_rng(generators), torch.no_grad(), counter:
            model(like.new_zeros(tuple(input_size)))
    finally:
        for buffer, saved in buffers:
            buffer.data.copy_(saved)
    return counter.total_flops
