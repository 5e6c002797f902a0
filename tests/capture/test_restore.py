"""Every call is the same call: what inputs and model hold is as it was, before each and after."""

import array
import collections
import functools
import inspect
import io
import queue
import random
import threading
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attend

import flopprof
from flopprof.errors import UsageError


class Decodes(nn.Module):
    """One token attends to all that `push` has kept so far: 8 before, and itself."""

    def __init__(self, push):
        super().__init__()
        self.push = push
        self.project = nn.Linear(4, 4, bias=False)

    def forward(self, x, cache):
        keys = self.push(cache, self.project(x))
        return attend(x[None], keys[None], keys[None])


# Projection 2·4·4 = 32; two products of 1 × 9 tokens × 4 features: 2 · 2·9·4 = 144.
ONE_STEP = 32 + 144


@dataclass
class Grows:
    rows: torch.Tensor = field(default_factory=lambda: torch.ones(8, 4))

    def append(self, row):
        self.rows = torch.cat([self.rows, row])


class InSlots:
    __slots__ = ("rows", "unset")

    def __init__(self):
        self.rows = torch.ones(8, 4)


class Preallocated:
    def __init__(self):
        self.rows, self.length = torch.zeros(32, 4), 8
        self.lock = threading.Lock()  # which cannot be copied


def rows():
    return [torch.ones(1, 4) for _ in range(8)]


def grown(cache, row):
    cache.append(row)
    return torch.cat(list(cache))


def in_attribute(cache, row):
    cache.rows = torch.cat([cache.rows, row])
    return cache.rows


def in_dict(cache, row):
    cache["rows"] = torch.cat([cache["rows"], row])
    cache["steps"] = cache.get("steps", 0) + 1
    return cache["rows"]


def in_place(cache, row):
    cache.rows[cache.length] = row[0]
    cache.length += 1
    return cache.rows[: cache.length]


def from_queue(cache, row):
    cache.put(row)
    return torch.cat(list(cache.queue))


def queued():
    made: queue.Queue[torch.Tensor] = queue.Queue()
    for row in rows():
        made.put(row)
    return made


def contents(value: Any) -> Any:
    """Return all that an object of the caches above holds, as plain values."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {name: contents(item) for name, item in value.items()}
    if isinstance(value, list | tuple | collections.deque):
        return [contents(item) for item in value]
    if isinstance(value, queue.Queue):
        return contents(value.queue)
    if isinstance(value, InSlots):
        return contents(value.rows)
    return contents(vars(value)) if hasattr(value, "__dict__") else str(value)


CACHES = {
    "a list": (rows, grown),
    "a deque": (lambda: collections.deque(rows()), grown),
    "a dict": (lambda: {"rows": torch.ones(8, 4)}, in_dict),
    "an ordered dict": (lambda: collections.OrderedDict(rows=torch.ones(8, 4)), in_dict),
    "a user's dict": (lambda: collections.UserDict(rows=torch.ones(8, 4)), in_dict),
    "an object": (Grows, in_attribute),
    "an object in a list": (lambda: [Grows()], lambda c, row: in_attribute(c[0], row)),
    "an object with slots": (InSlots, in_attribute),
    "a tensor written in place": (Preallocated, in_place),
    "a queue": (queued, from_queue),
}


@pytest.mark.parametrize("kind", CACHES)
def test_a_decode_step_gives_one_number_and_leaves_the_cache_alone(kind):
    make, push = CACHES[kind]
    model, cache = Decodes(push), make()
    before, inputs = contents(cache), (torch.ones(1, 4), cache)

    counts = [flopprof.count_flops(model, inputs).matmul_flops for _ in range(3)]
    run = flopprof.profile(model, inputs, ceilings=False, repeats=1)
    trained = flopprof.count_flops(model, inputs, train=True).run.by_phase()

    assert counts == [ONE_STEP] * 3
    assert run.totals.matmul_flops == ONE_STEP
    assert trained.set_index("phase").loc["forward", "matmul_flops"] == ONE_STEP
    assert not {"not_run", "disagrees"} & set(run.sites["verdict"])
    assert contents(cache) == before


class Remembers(nn.Module):
    """The same cache as an attribute of the model."""

    def __init__(self, make, push):
        super().__init__()
        self.inner, self.cache = Decodes(push), make()

    def forward(self, x):
        return self.inner(x, self.cache)


@pytest.mark.parametrize("kind", CACHES)
def test_a_cache_that_is_an_attribute_of_the_model_is_as_it_was(kind):
    model = Remembers(*CACHES[kind])
    cache, before = model.cache, contents(model.cache)

    counts = [flopprof.count_flops(model, (1, 4)).matmul_flops for _ in range(2)]
    run = flopprof.profile(model, (1, 4), ceilings=False, repeats=1)

    assert [*counts, run.totals.matmul_flops] == [ONE_STEP] * 3
    assert model.cache is cache
    assert contents(cache) == before


def test_attributes_that_a_forward_sets_counts_or_makes_are_as_they_were():
    class Notes(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.seen, self.last = set(), None
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            self.calls += 1
            self.seen.add(self.calls)
            self.last = x
            self.table = torch.ones(4)
            for _ in range(self.calls):
                x = self.fc(x)
            return x

    model = Notes()

    run = flopprof.profile(model, (1, 4), ceilings=False, repeats=1)

    assert run.totals.matmul_flops == 2 * 4 * 4  # the first call's, each time
    assert (model.calls, model.seen, model.last) == (0, set(), None)
    assert not hasattr(model, "table")


def test_a_hugging_face_cache_is_byte_for_byte_as_it_was():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=64,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    # q, k, v, o 4·2·32·32; MLP 3·2·32·64; head 2·32·64; attention to 9: 2·2·9·32.
    step = 8_192 + 12_288 + 4_096 + 1_152
    for cache in (
        transformers.DynamicCache(),
        transformers.StaticCache(config=config, max_cache_len=9),
    ):
        takes = inspect.signature(model.forward).parameters
        name = "cache" if "cache" in takes else "past_key_values"
        with torch.no_grad():
            model(torch.arange(8)[None], **{name: cache}, use_cache=True)
        keys, values = cache.layers[0].keys, cache.layers[0].values
        before = keys.clone(), values.clone()
        inputs = {"input_ids": torch.tensor([[3]]), name: cache, "use_cache": True}

        counts = [flopprof.count_flops(model, inputs) for _ in range(3)]
        run = flopprof.profile(model, inputs, ceilings=False, repeats=1)

        assert [count.matmul_flops for count in counts] == [step] * 3
        assert {count.flops for count in counts} == {run.totals.flops}
        assert cache.layers[0].keys is keys
        assert cache.layers[0].values is values
        assert torch.equal(keys, before[0])
        assert torch.equal(values, before[1])
        assert cache.get_seq_length() == 8


class Writes(nn.Module):
    def forward(self, x):
        x.mul_(2).sub_(1)
        return x


@pytest.mark.parametrize(
    "x",
    [
        torch.arange(6.0),
        torch.arange(12.0)[::2],
        torch.arange(6.0).to(torch.bfloat16),
        torch.tensor([float("nan"), -0.0, float("inf")]),
    ],
)
def test_an_input_that_is_written_in_place_is_as_it_was(x):
    before = x.clone()

    flopprof.count_flops(Writes(), x)
    flopprof.profile(Writes(), x, ceilings=False, repeats=1)

    as_bytes = [t.contiguous().view(torch.uint8).tolist() for t in (x, before)]
    assert as_bytes[0] == as_bytes[1]  # NaN and -0.0 too


def test_each_call_sees_the_input_as_it_was_given():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4, bias=False)

        def forward(self, x):
            while x.sum() > 1:
                x.mul_(0.5)
                self.fc(x)
            return x

    run = flopprof.profile(Halves(), torch.ones(1, 4), ceilings=False, repeats=1)

    assert run.totals.matmul_flops == 2 * 2 * 4 * 4  # the sum goes 4, 2, 1: two calls
    assert not {"not_run", "disagrees"} & set(run.sites["verdict"])


def test_an_inputs_gradient_history_and_flags_are_the_callers():
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            x.requires_grad_()
            x.note = 1
            return self.fc(x)

    leaf = torch.ones(2, 4, requires_grad=True)
    leaf.grad = torch.full((2, 4), 5.0)
    plain, made = torch.ones(2, 4), torch.ones(2, 4, requires_grad=True) * 2

    for x in (leaf, plain, made):
        for _ in range(2):
            flopprof.count_flops(Asks(), x, train=True)
        flopprof.profile(Asks(), x, train=True, ceilings=False, repeats=1)

    assert leaf.grad.tolist() == [[5.0] * 4] * 2
    assert not plain.requires_grad
    assert not hasattr(plain, "note")
    made.sum().backward()  # its history is still there, and nobody went through it
    assert leaf.grad.tolist() == [[5.0] * 4] * 2


def test_one_tensor_given_twice_stays_one_tensor():
    class Compares(nn.Module):
        def forward(self, a, b):
            return a + 1 if a is b else a @ b

    x = torch.ones(4, 4)

    assert flopprof.count_flops(Compares(), (x, x)).flops == 16
    assert flopprof.count_flops(Compares(), (x, x.clone())).flops == 2 * 4**3


def drawn(generator):
    if isinstance(generator, torch.Generator):
        return int(torch.randint(1, 100, (1,), generator=generator))
    if isinstance(generator, random.Random):
        return generator.randrange(1, 100)
    return int(generator.integers(1, 100))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.Generator().manual_seed(3),
        lambda: random.Random(3),
        lambda: np.random.default_rng(3),
    ],
)
def test_a_generator_gives_each_call_the_same_numbers(make):
    class Draws(nn.Module):
        def forward(self, x, generator):
            for _ in range(drawn(generator)):
                x = x + 1
            return x

    generator = make()
    times = drawn(make())

    run = flopprof.profile(Draws(), (torch.ones(4), generator), ceilings=False, repeats=1)

    assert run.totals.flops == 4 * times
    assert flopprof.count_flops(Draws(), (torch.ones(4), generator)).flops == 4 * times
    assert drawn(generator) == times


def test_random_numbers_of_python_and_numpy_go_on_as_if_nothing_had_run():
    class Draws(nn.Module):
        def forward(self, x):
            for _ in range(random.randrange(1, 9) + np.random.randint(1, 9)):
                x = x + 1
            return x

    random.seed(1)
    np.random.seed(1)
    times = random.randrange(1, 9) + np.random.randint(1, 9)
    random.seed(1)
    np.random.seed(1)

    run = flopprof.profile(Draws(), (4,), ceilings=False, repeats=1)

    assert run.totals.flops == 4 * times
    assert random.randrange(1, 9) + np.random.randint(1, 9) == times


class Adds(nn.Module):
    def forward(self, x, others):
        for other in others:
            x = x + len(other) if isinstance(other, bytes) else x + other
        return x


def yields():
    yield from (1.0, 2.0, 3.0)


def test_an_input_that_can_be_read_once_is_told_of():
    for once in (yields(), [yields()], (n for n in (1.0, 2.0)), enumerate(yields())):
        with pytest.raises(UsageError, match="can be read once") as caught:
            flopprof.count_flops(Adds(), (torch.ones(4), once))
        assert "a list or tuple" in caught.value.remedy
        with pytest.raises(UsageError, match="can be read once"):
            flopprof.profile(Adds(), (torch.ones(4), once), ceilings=False)


@pytest.mark.parametrize("make", [iter, reversed, enumerate])
def test_an_iterator_over_what_is_at_hand_is_read_anew_by_each_call(make):
    class Takes(nn.Module):
        def forward(self, x, others):
            for _ in others:
                x = x + 1
            return x

    values = make([1.0, 2.0, 3.0])

    assert flopprof.count_flops(Takes(), (torch.ones(4), values)).flops == 12
    run = flopprof.profile(Takes(), (torch.ones(4), values), ceilings=False, repeats=1)
    assert run.totals.flops == 12
    assert len(list(values)) == 3


def test_arrays_and_files_are_as_they_were():
    class Consumes(nn.Module):
        def forward(self, x, numbers, packed, raw, file):
            numbers += 1
            packed[0] += 1
            raw.append(0)
            for _ in file.read():
                x = x + 1
            return x

    numbers, packed, raw = np.zeros(3), array.array("d", [1.0]), bytearray(b"ab")
    file = io.BytesIO(b"abc")
    inputs = (torch.ones(4), numbers, packed, raw, file)

    run = flopprof.profile(Consumes(), inputs, ceilings=False, repeats=1)

    assert run.totals.flops == 3 * 4
    assert numbers.tolist() == [0, 0, 0]
    assert (packed[0], bytes(raw), file.tell()) == (1.0, b"ab", 0)


def test_inputs_that_may_not_be_written_are_not(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 4), np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with pytest.warns(UserWarning, match="not writable"):
        x = torch.from_numpy(mapped)

    run = flopprof.profile(nn.Linear(4, 3), x, ceilings=False, repeats=1)

    assert run.totals.matmul_flops == 2 * 2 * 4 * 3


def test_a_model_given_as_input_is_as_it_was():
    class Teaches(nn.Module):
        def forward(self, x, teacher):
            return teacher(x)

    teacher = nn.BatchNorm1d(4)

    flopprof.profile(Teaches(), (torch.randn(3, 4), teacher), ceilings=False, repeats=1)

    assert teacher.num_batches_tracked == 0
    assert teacher.state_dict()["running_mean"].tolist() == [0.0] * 4


KEPT: list[torch.Tensor] = []
TURN = 0


class Shared(nn.Module):
    """Keeps what it computed, or counts its calls, outside of itself."""

    kept: ClassVar[list[torch.Tensor]] = []
    turn = 0

    def __init__(self, keep):
        super().__init__()
        self.layer = nn.Linear(5, 5, bias=False)
        self.keep = keep

    def forward(self, x):
        return x @ torch.cat(self.keep(self, self.layer(x))).T


def in_class(module, y):
    type(module).kept.append(y)
    return type(module).kept


def in_global(_module, y):
    KEPT.append(y)
    return KEPT


def in_closure():
    kept = []

    def keep(_module, y):
        kept.append(y)
        return kept

    return keep


def by_rebound_variable():
    kept: tuple[Any, ...] = ()

    def keep(_module, y):
        nonlocal kept
        kept = (*kept, y)
        return kept

    return keep


def by_rebound_global(_module, y):
    global TURN
    TURN += 1
    return [y] * TURN


def by_rebound_attribute(module, y):
    type(module).turn += 1
    return [y] * type(module).turn


@functools.cache
def table(size):
    return torch.ones(size, 5, device=TABLE_DEVICE[0])


TABLE_DEVICE = ["cpu"]


def by_cached_function(_module, y):
    TABLE_DEVICE[0] = y.device
    return [y[:0], table(4)]


@pytest.mark.parametrize(
    "keep",
    [
        in_class,
        in_global,
        in_closure(),
        by_rebound_variable(),
        by_rebound_global,
        by_rebound_attribute,
        by_cached_function,
    ],
)
def test_what_code_keeps_outside_of_its_module_is_put_back(keep):
    model = Shared(keep)
    x = torch.ones(4, 5)

    count = flopprof.count_flops(model, (x,))
    run = flopprof.profile(model, (x,), repeats=2, warmup=1, ceilings=False)

    # The layer 4·5·5 multiply-adds × 2, and x with the four rows kept: 4·5·4 × 2.
    assert count.matmul_flops == run.totals.matmul_flops == 200 + 160
    assert model(x).shape == (4, 4)  # the first call, still
    KEPT.clear()
    Shared.kept.clear()
