"""Hooks: what they see, and that nothing of them remains."""

import threading
import warnings
from typing import Any

import pytest
import torch
import torch.nn.modules.module as torch_module
from torch import nn
from torch.profiler import ProfilerActivity, profile

from flopprof.capture.hooks import RAISED, module_paths, module_ranges, watch_modules

torch.set_num_threads(1)
X = torch.zeros(2, 3)


class Boom(nn.Module):
    def __init__(self, error=ValueError):
        super().__init__()
        self.error = error

    def forward(self, x, *, factor=1):
        raise self.error("boom")


class Catches(nn.Module):
    """Calls a module that raises, then another."""

    def __init__(self, error):
        super().__init__()
        self.inner = nn.Sequential(Boom(error))
        self.other = nn.ReLU()

    def forward(self, x):
        try:
            self.inner(x)
        except BaseException:
            x = x + 1
        return self.other(x)


class Log:
    """Notes what the watch tells."""

    def __init__(self):
        self.events = []
        self.parents = {}
        self.outputs = {}

    def enter(self, module, path, around):
        self.events.append(f"+{path}")
        self.parents[path] = around
        return path

    def leave(self, path, module, args, kwargs, output):
        self.events.append(f"-{path}")
        self.outputs[path] = output

    def watch(self, model):
        return watch_modules(model, self.enter, self.leave)


def all_hooks():
    names = [n for n in vars(torch_module) if n.startswith("_global_") and "hooks" in n]
    return {name: dict(getattr(torch_module, name)) for name in names}


def test_modules_are_named_by_their_first_path():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.Sequential(shared, nn.ReLU()))

    paths = module_paths(model)

    assert list(paths.values()) == ["", "0", "1", "1.1"]
    assert paths[model] == ""
    assert paths[shared] == "0"


def test_calls_are_nested_and_a_shared_module_has_several():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.Sequential(shared, nn.ReLU()))
    log = Log()

    with log.watch(model):
        result = model(X)

    assert log.events == ["+", "+0", "-0", "+1", "+0", "-0", "+1.1", "-1.1", "-1", "-"]
    assert log.parents == {"": None, "0": "1", "1": "", "1.1": "1"}  # the last call of each
    assert log.outputs[""] is result


def test_keyword_arguments_are_handed_over():
    seen = []
    module = nn.Softmax(-1)

    with watch_modules(module, lambda *_: None, lambda *call: seen.append(call[2:4])):
        module(input=X)

    args, kwargs = seen[0]
    assert args == ()
    assert kwargs["input"] is X


def test_other_models_are_left_alone():
    log = Log()

    with log.watch(nn.ReLU()):
        nn.Sequential(nn.ReLU())(X)

    assert log.events == []


def test_nothing_remains_after_the_watch():
    before = all_hooks()

    with Log().watch(nn.ReLU()):
        assert all_hooks() != before

    assert all_hooks() == before


def test_an_exception_passes_and_every_call_is_left():
    log, before = Log(), all_hooks()
    model = nn.Sequential(nn.ReLU(), Boom())

    with pytest.raises(ValueError, match="boom"), log.watch(model):
        model[1](X, factor=2)
    with pytest.raises(ValueError, match="boom"), log.watch(model):
        model(X)

    assert log.events == ["+1", "-1", "+", "+0", "-0", "+1", "-1", "-"]
    assert log.outputs["1"] is RAISED
    assert log.outputs[""] is RAISED
    assert all_hooks() == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_calls_stay_balanced_where_the_model_catches(error):
    # torch calls no hook for what is no Exception; the call around it takes care.
    log, model = Log(), Catches(error)

    with log.watch(model):
        model(X)

    for path in ("", "inner", "inner.0", "other"):
        assert log.events.index(f"+{path}") < log.events.index(f"-{path}")
    assert len(log.events) == 8
    assert log.events[-1] == "-"
    assert log.outputs["inner.0"] is RAISED
    assert log.outputs["inner"] is RAISED
    assert log.outputs["other"] is not RAISED


def test_an_uncaught_interrupt_leaves_every_call():
    log, model = Log(), nn.Sequential(Boom(KeyboardInterrupt))

    with pytest.raises(KeyboardInterrupt), log.watch(model):
        model(X)

    assert log.events == ["+", "+0", "-0", "-"]


def test_threads_have_calls_of_their_own():
    class Forks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh())

        def forward(self, x):
            threads = [threading.Thread(target=m, args=(x,)) for m in (self.a, self.b)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return x

    log, model = Log(), Forks()

    with log.watch(model):
        model(X)

    assert log.parents == {"": None, "a": "", "a.0": "a", "b": "", "b.0": "b"}
    assert len(log.events) == 10


def test_a_recursive_call_is_nested_in_itself():
    class Countdown(nn.Module):
        def forward(self, x, n=2):
            return self(x, n - 1) if n else x

    log = Log()
    model = Countdown()

    with log.watch(model):
        model(X)

    assert log.events == ["+", "+", "+", "-", "-", "-"]


def test_modules_made_during_the_call_are_not_seen():
    class Grows(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner: nn.Module = nn.ReLU()

        def forward(self, x):
            self.inner = nn.Tanh()
            return self.inner(x)

    log, model = Log(), Grows()

    with log.watch(model):
        model(X)

    assert log.events == ["+", "-"]


def test_a_script_module_fires_at_the_top_only():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still what people have on disk
        model = nn.Sequential(torch.jit.script(nn.Sequential(nn.ReLU(), nn.Tanh())))
    log = Log()

    with log.watch(model):
        model(X)

    assert log.events == ["+", "+0", "-0", "-"]


@pytest.mark.slow  # imports the compiler
def test_a_compiled_model_fires_at_the_top_and_is_not_compiled_again():
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    model: Any = torch.compile(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), backend=counter)
    with torch.no_grad():
        model(X)
        assert counter.frame_count == 1

        with profile(activities=[ProfilerActivity.CPU]) as profiler, module_ranges(model):
            model(X)

    assert counter.frame_count == 1
    names = {event.name for event in profiler.events()}
    assert {n for n in names if n.startswith("flopprof:")} == {"flopprof:"}


def traced(call):
    """Return the names of the profiler's events in order of start."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    return [event.name for event in sorted(profiler.events(), key=lambda e: e.time_range.start)]


def test_ranges_enclose_the_ops_of_their_module():
    model = nn.Sequential(nn.ReLU(), nn.Tanh())

    with module_ranges(model):
        names = traced(lambda: model(X))

    assert [n for n in names if n != "aten::clamp_min"] == [
        "flopprof:", "flopprof:0", "aten::relu", "flopprof:1", "aten::tanh",
    ]  # fmt: skip


def test_ranges_survive_an_exception():
    model = nn.Sequential(Boom(), nn.ReLU())

    def call():
        with pytest.raises(ValueError, match="boom"):
            model(X)
        model[1](X)

    with module_ranges(model):
        names = traced(call)

    assert [n for n in names if n.startswith("flopprof:")] == [
        "flopprof:",
        "flopprof:0",
        "flopprof:1",
    ]


def test_tracing_does_not_change_the_ops_that_run():
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.zeros(1, 4, 16)

    with torch.no_grad():
        plain = traced(lambda: model(x))
        with module_ranges(model):
            named = traced(lambda: model(x))

    assert "aten::_transformer_encoder_layer_fwd" in plain
    assert [n for n in named if not n.startswith("flopprof:")] == plain
    assert "flopprof:" in named
