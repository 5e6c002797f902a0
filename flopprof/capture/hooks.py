"""Run callbacks around a model's module calls and leave nothing behind."""

import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch._C._profiler import _RecordFunctionFast  # 1.2 µs; record_function takes 10
from torch._library.custom_ops import OPDEFS
from torch._ops import HigherOrderOperator, OpOverload
from torch.nn.modules import module as base
from torch.utils import checkpoint

from flopprof.tables import AHEAD_OF_TIME, CALLED, KEPT, STOPPED

T = TypeVar("T")
Enter = Callable[[nn.Module, str, T | None], T]
Leave = Callable[[T, nn.Module, tuple[Any, ...], dict[str, Any], Any], None]

PREFIX: Final = "flopprof:"  # of a module call's range in a trace
RAISED: Final = object()  # the output of a module call that raised


def module_paths(model: nn.Module) -> dict[nn.Module, str]:
    """Return every module's dotted path, the first one of a shared module; '' for the model."""
    return {module: path for path, module in model.named_modules()}


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return [value]
    found: list[Tensor] = []
    _find_tensors(value, found)
    return found


_NO_TENSORS = frozenset((type(None), bool, int, float, str, torch.dtype, torch.Size))


def _find_tensors(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, tuple | list):
        inside = value
    elif isinstance(value, Mapping):
        inside = list(value.values())
    else:
        return
    for item in inside:
        if isinstance(item, Tensor):
            found.append(item)
        elif type(item) not in _NO_TENSORS:
            _find_tensors(item, found)


def examples_in(tensors: Iterable[Tensor]) -> int:
    """Return how many examples `torch.func.vmap` stacks in these tensors: 1 outside of it.

    A module called inside vmap sees the shapes of one example.
    """
    most = 1
    for tensor in tensors:
        examples = 1
        while _functorch.is_functorch_wrapped_tensor(tensor):
            inner = _functorch.get_unwrapped(tensor)
            if _functorch.is_batchedtensor(tensor):
                examples *= inner.shape[_functorch.maybe_get_bdim(tensor)]
            tensor = inner
        most = max(most, examples)
    return most


@contextmanager
def unrecorded() -> Iterator[None]:
    """Have a running profiler see none of the ops inside."""
    torch.autograd._enable_record_function(False)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.autograd._enable_record_function(True)  # type: ignore[attr-defined]


def innermost(tensor: Tensor) -> Tensor:
    """Return the tensor that torch.func's transforms wrapped, once or several times."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


@contextmanager
def watch_modules(
    model: nn.Module,
    enter: Enter[T],
    leave: Leave[T],
) -> Iterator[None]:
    """Call `enter` before and `leave` after each call of a module of `model`, properly nested.

    Compiled code and modules added later are not seen. Every call entered is left, after an
    exception too, but for those that other threads are in when the watch ends.

    Args:
        model: The root.
        enter: Maps the module, its path and the token of the call around it (None if outermost)
            to this call's token. Calls of other threads lie in the one the watching thread is in.
        leave: Takes that token, the module, its arguments and its output, or `RAISED`.
    """
    paths = module_paths(model)
    home: list[tuple[nn.Module, T]] = []
    open_calls = {threading.get_ident(): home}

    def entering(module: nn.Module, _args: Any) -> None:
        if torch.compiler.is_compiling() or module not in paths:
            return
        calls = open_calls.setdefault(threading.get_ident(), [])
        around = (calls or home)[-1:]
        calls.append((module, enter(module, paths[module], around[0][1] if around else None)))

    # After an exception torch passes neither the keyword arguments nor an output of its own.
    def leaving(module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        if torch.compiler.is_compiling() or module not in paths:
            return
        kwargs, output = rest if len(rest) == 2 else ({}, RAISED)
        calls = open_calls.get(threading.get_ident(), [])
        if not calls or calls[-1][0] is not module:
            if all(entered is not module for entered, _ in calls):
                return  # another hook raised before ours, or the watch began inside the call
            abandon(calls, module)  # KeyboardInterrupt, no Exception, calls no hooks
        leave(calls.pop()[1], module, args, kwargs, output)

    def abandon(calls: list[tuple[nn.Module, T]], until: nn.Module | None) -> None:
        while calls and calls[-1][0] is not until:
            module, token = calls.pop()
            leave(token, module, (), {}, RAISED)

    with ExitStack() as cleanup:  # global hooks only: hooks on modules switch off fused paths
        cleanup.callback(abandon, home, None)
        cleanup.callback(base.register_module_forward_pre_hook(entering).remove)
        handle = base.register_module_forward_hook(leaving, with_kwargs=True, always_call=True)
        # The handle forgets to clean this registry up (torch 2.15).
        cleanup.callback(base._global_forward_hooks_with_kwargs.pop, handle.id, None)
        cleanup.callback(handle.remove)
        yield


@contextmanager
def module_ranges(model: nn.Module) -> Iterator[None]:
    """Name each module call `flopprof:<path>` in a running profiler's trace."""

    def enter(_module: nn.Module, path: str, _around: object) -> _RecordFunctionFast:
        opened = _RecordFunctionFast(PREFIX + path)
        opened.__enter__()
        return opened

    def leave(opened: _RecordFunctionFast, *_call: object) -> None:
        opened.__exit__(None, None, None)

    with ops_named(), watch_modules(model, enter, leave):
        yield


def in_ranges(enter: Enter[T], leave: Leave[T]) -> tuple[Enter[Any], Leave[Any]]:
    """Return callbacks for `watch_modules` that name each call as `module_ranges` does, and these.

    One pair of hooks costs half of two pairs.
    """

    def entering(
        module: nn.Module, path: str, around: tuple[T, _RecordFunctionFast] | None
    ) -> tuple[T, _RecordFunctionFast]:
        token = enter(module, path, around[0] if around else None)
        opened = _RecordFunctionFast(PREFIX + path)
        opened.__enter__()
        return token, opened

    def leaving(
        token: tuple[T, _RecordFunctionFast],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        try:
            leave(token[0], module, args, kwargs, output)
        finally:
            token[1].__exit__(None, None, None)

    return entering, leaving


@contextmanager
def ops_named() -> Iterator[None]:
    """Have a trace tell of ops and checkpoints what it would not, and be quiet about hooks."""
    with quiet_about_hooks(), _calls_named(), _stops_named(), _kept_named():
        yield


@contextmanager
def _calls_named() -> Iterator[None]:
    """Have the profiler see what else it would not, or not by its name.

    `torch.library.custom_op`s are called as `torch.ops` does; AOTInductor's programs get a range,
    and calls of operators of functions, which are ops for Dynamo alone, a mark.
    """
    call_op = OpOverload.__call__
    call_functions = HigherOrderOperator.__call__

    def marked(self: HigherOrderOperator, /, *args: Any, **kwargs: Any) -> Any:
        with _RecordFunctionFast(CALLED):
            pass
        return call_functions(self, *args, **kwargs)  # type: ignore[no-untyped-call]  # torch's

    def custom(self: OpOverload, /, *args: Any, **kwargs: Any) -> Any:
        if self._schema.name in OPDEFS and len(self.overloadpacket.overloads()) == 1:
            return self.overloadpacket(*args, **kwargs)
        return call_op(self, *args, **kwargs)

    with ExitStack() as cleanup:
        cleanup.callback(setattr, OpOverload, "__call__", call_op)
        OpOverload.__call__ = custom  # type: ignore[method-assign]
        cleanup.callback(setattr, HigherOrderOperator, "__call__", call_functions)
        HigherOrderOperator.__call__ = marked  # type: ignore[method-assign]
        if package := sys.modules.get("torch._inductor.package.package"):
            program = package.AOTICompiledModel
            run = program.__call__

            def ranged(*args: Any, **kwargs: Any) -> Any:
                with _RecordFunctionFast(AHEAD_OF_TIME):
                    return run(*args, **kwargs)

            cleanup.callback(setattr, program, "__call__", run)
            program.__call__ = ranged
        yield


@contextmanager
def _stops_named() -> Iterator[None]:
    """Have a trace show at which op checkpointing stops: that op began and does no work.

    It raises, inside the op that saves the last tensor that the backward pass needs.
    """
    stop = getattr(checkpoint, "_StopRecomputationError", None)
    if stop is None or "__init__" in vars(stop):
        yield
        return

    def raised(self: Exception, *args: object) -> None:
        Exception.__init__(self, *args)
        with _RecordFunctionFast(STOPPED):
            pass

    stop.__init__ = raised
    try:
        yield
    finally:
        del stop.__init__


@contextmanager
def _kept_named() -> Iterator[None]:
    """Have a trace show which recomputed ops a selective checkpoint had kept: they do no work."""
    wrapper = getattr(checkpoint, "_VersionWrapper", None)
    if wrapper is None or not hasattr(wrapper, "get_val"):
        yield
        return
    get_value = wrapper.get_val

    def ranged(*args: Any, **kwargs: Any) -> Any:
        with _RecordFunctionFast(KEPT):
            pass
        return get_value(*args, **kwargs)

    wrapper.get_val = ranged
    try:
        yield
    finally:
        wrapper.get_val = get_value


@contextmanager
def quiet_about_hooks() -> Iterator[None]:
    """Silence torch's remark that a compiled module's hooks fire for its wrapper too."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global")
        yield
