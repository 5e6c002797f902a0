"""Traces made odd: ids, parents, times, types, depth, names, order, text and truncation."""

import bz2
import copy
import gzip
import json
import random
from collections.abc import Callable
from typing import Any

from flopprof.formulas import FREE_OPS, OP_FORMULAS, load_op_formulas
from tests.events import ADDMM, kernel, launch, op, with_shapes

Event = dict[str, Any]
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 7, 1.5, -0.0, 1e300, -1e300, 1e-300, 2**31, 2**53 + 1),
    *(2**63 - 1, 2**63, 2**64 - 1, -(2**63), 10**30, "", "x", "5", "-5", "²", "\ud800", "a" * 5000),
    *([], [[]], [[[]]], [1, 2], [[1, 2], 3], [[2, 3], [3, 4]], [[-1]], [[10**18] * 9] * 3, {}),
    *({"a": [1]}, "float", "c10::BFloat16", "TensorList", ["float", 5], "aten::mm", "[1, 2]"),
]
ID_KEYS = ("correlation", "External id", "Sequence number", "stream", "device", "graph id")
SHAPES: list[Any] = [[], [0], [1], [4], [2, 3], [3, 4], [2, 3, 8, 8], [4, 3, 3, 3], [2, 4, 16, 8]]
TYPES = ["float", "c10::Half", "long int", "bool", "", "Scalar", "ScalarList", "TensorList", "int"]
VALUES = ["", "1", "-1", "0", "[1, 1]", "[]", "True", "None", "1e400", "nan", "9" * 30, "[[1]]"]


def originals() -> list[dict[str, Any]]:
    """Return small traces of several kinds, as JSON objects."""
    step = op("ProfilerStep#1", 0, 400) | {"cat": "user_annotation"}
    training = [
        step,
        op("nn.Module: Net_0", 1, 100) | {"cat": "python_function"},
        op("nn.Module: Linear_1", 2, 50) | {"cat": "python_function"},
        with_shapes(op("aten::linear", 3, 40, External_id=1, Sequence_number=5), ADDMM),
        with_shapes(op("aten::addmm", 5, 30, External_id=2, Sequence_number=5), ADDMM),
        launch(1, 8),
        with_shapes(kernel(1, 200, 30), {"External id": 2}),
        op("autograd::engine::evaluate_function: AddmmBackward0", 120, 60, 2, Sequence_number=5),
        op("MyFnBackward", 125, 50, 2, Sequence_number=5),
        launch(2, 130, 2),
        kernel(2, 240, 20, name="their_kernel"),
        with_shapes(op("aten::mm", 150, 10, 2), {"Input Dims": [[4, 6], [6, 5]]}),
        op("Optimizer.step#Adam.step", 300, 50) | {"cat": "user_annotation"},
        op("aten::add_", 310, 10),
        launch(3, 315),
        kernel(3, 360, 5, name="ncclDevKernel_AllReduce_Sum_f32"),
    ]
    replay = [
        op("CompiledFunction", 0, 50),
        launch(4, 20) | {"name": "cudaGraphLaunch"},
        *(kernel(4, 30 + n, 1, name=name) for n, name in enumerate("abc")),
        op("triton_poi_fused_relu_0", 60, 5, kernel_backend="triton", Input_Dims=[[8, 8]]),
        launch(5, 62),
        kernel(5, 70, 3, cat="gpu_memset"),
    ]
    shapes = {"Input Dims": [[2, 3, 8, 8], [4, 3, 3, 3]], "Input type": ["float"] * 2}
    old = [
        with_shapes(op("aten::conv2d", 0, 10, "9", Sequence_number=7), shapes)
        | {"cat": "Operator"},
        with_shapes(op("aten::batch_norm", 20, 5, "9"), {"Input Dims": [[2, 4, 6, 6]]})
        | {"cat": "Operator"},
        launch(6, 3, "9") | {"cat": "Runtime"},
        kernel(6, 40, 0, cat="Kernel"),
    ]
    ranges = [
        op("flopprof:", 0, 100),
        op("flopprof:fc", 10, 50),
        with_shapes(op("aten::linear", 20, 10), ADDMM),
        op("aten::relu", 70, 5),
    ]
    intel = [op("aten::relu", 0, 9), launch(1, 2) | {"cat": "xpu_runtime"}, kernel(1, 20, 4)]
    header = {
        "schemaVersion": 1,
        "deviceProperties": [{"id": 0, "name": "NVIDIA H100 80GB HBM3", "numSms": 132}],
        "distributedInfo": {"rank": 0, "world_size": 2},
    }
    return [{**header, "traceEvents": events} for events in (training, replay, old, ranges, intel)]


def mutated(trace: dict[str, Any], chance: random.Random) -> bytes:
    """Return the trace with one to six mutations, as the bytes of a file."""
    trace = copy.deepcopy(trace)
    for _ in range(chance.randint(1, 6)):
        chance.choice(MUTATIONS)(trace, chance)
    text = json.dumps(trace).encode()
    if chance.random() < 0.3:
        text = _damaged(text, chance)
    if chance.random() < 0.1:
        text = chance.choice((gzip.compress, bz2.compress))(text)
        if chance.random() < 0.5:
            text = text[: chance.randrange(len(text))]
    return text


def _events(trace: dict[str, Any]) -> list[Event]:
    """Return those events that are still objects, at least one."""
    listed = trace["traceEvents"]
    kept = [event for event in listed if isinstance(event, dict)]
    if not kept:
        listed.append(op("aten::relu", 0, 1))
        kept = listed[-1:]
    return kept


def _args(event: Event) -> dict[str, Any]:
    if not isinstance(event.get("args"), dict):
        event["args"] = {}
    args: dict[str, Any] = event["args"]
    return args


def _ids(trace: dict[str, Any], chance: random.Random) -> None:
    event = chance.choice(_events(trace))
    number = chance.choice([chance.randint(0, 8), chance.choice(ODD)])
    _args(event)[chance.choice(ID_KEYS)] = number


def _parents(trace: dict[str, Any], chance: random.Random) -> None:
    """Move an event into, over or beside another."""
    inner = chance.choice(_events(trace))
    outer = chance.choice(_events(trace))
    start = outer.get("ts")
    length = outer.get("dur")
    if isinstance(start, int | float) and isinstance(length, int | float):
        inner["ts"] = start + chance.choice([-1, 0, 0.5, length])
        inner["dur"] = chance.choice([0, length, length * 2, 0.001])
        inner["tid"] = chance.choice([outer.get("tid"), inner.get("tid")])


def _times(trace: dict[str, Any], chance: random.Random) -> None:
    event = chance.choice(_events(trace))
    event[chance.choice(("ts", "dur"))] = chance.choice([*ODD[:20], chance.uniform(-1e6, 1e6)])


def _types(trace: dict[str, Any], chance: random.Random) -> None:
    event = chance.choice(_events(trace))
    part = chance.choice([event, _args(event), trace])
    keys = [key for key in part if key != "traceEvents"]
    if keys:
        part[chance.choice(keys)] = chance.choice(ODD)


def _headers(trace: dict[str, Any], chance: random.Random) -> None:
    key = chance.choice(("deviceProperties", "distributedInfo", "schemaVersion"))
    fields = ("id", "name", "numSms", "rank", "world_size", "warpSize", "totalGlobalMem")
    odd = {chance.choice(fields): chance.choice(ODD)}
    trace[key] = chance.choice([[odd], odd, chance.choice(ODD)])


def _depth(trace: dict[str, Any], chance: random.Random) -> None:
    """Nest nodes, or an argument, deeply."""
    depth = chance.choice([3, 50, 800])
    if chance.random() < 0.3:
        nested: Any = 1
        for _ in range(min(depth, 200)):
            nested = [nested]
        _args(chance.choice(_events(trace)))["Input Dims"] = nested
        return
    name = chance.choice(
        ["aten::relu", "MyFn", "nn.Module: A_0", "layer", "flopprof:a", "XBackward"]
    )
    category = {"n": "python_function", "l": "user_annotation"}.get(name[0], "cpu_op")
    for n in range(depth):
        node = op(name + str(n % 9), n * 0.01, 500 - 0.02 * n) | {"cat": category}
        trace["traceEvents"].append(node)


def _names(trace: dict[str, Any], chance: random.Random) -> None:
    """Call another op, one with a formula, with arguments that it does not expect."""
    load_op_formulas()
    event = chance.choice(_events(trace))
    event["name"] = chance.choice([name for name, _ in (*OP_FORMULAS.items(), *FREE_OPS.items())])
    count = chance.randint(0, 9)
    args = _args(event)
    args["Input Dims"] = [chance.choice(SHAPES) for _ in range(count)]
    args["Input type"] = [chance.choice(TYPES) for _ in range(chance.choice([count, 1]))]
    args["Concrete Inputs"] = [chance.choice(VALUES) for _ in range(chance.choice([count, 2]))]
    args["Input Strides"] = [chance.choice(SHAPES) for _ in range(chance.choice([count, 0]))]


def _order(trace: dict[str, Any], chance: random.Random) -> None:
    listed = trace["traceEvents"]
    action = chance.randrange(4)
    if action == 0:
        chance.shuffle(listed)
    elif action == 1:
        listed.extend(copy.deepcopy(chance.choices(_events(trace), k=chance.choice([1, 20]))))
    elif action == 2 and len(listed) > 1:
        del listed[chance.randrange(len(listed))]
    else:
        listed.insert(chance.randrange(len(listed) + 1), chance.choice(ODD))


def _kinds(trace: dict[str, Any], chance: random.Random) -> None:
    """Make an event one of another category, thread or process."""
    categories = [
        "cpu_op",
        "kernel",
        "cuda_runtime",
        "gpu_memcpy",
        "user_annotation",
        "Kernel",
        "x",
    ]
    event = chance.choice(_events(trace))
    event[chance.choice(("cat", "pid", "tid", "ph"))] = chance.choice([*categories, *ODD])


MUTATIONS: list[Callable[[dict[str, Any], random.Random], None]] = [
    *(_ids, _parents, _times, _types, _headers, _depth, _names, _names, _order, _kinds)
]


def _damaged(text: bytes, chance: random.Random) -> bytes:
    """Return the text cut off, or with a few bytes changed, put in or taken out."""
    if chance.random() < 0.3:
        return text[: chance.randrange(len(text))]
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text) + 1)
        until = at + chance.choice([0, 0, 1, 1, 30])
        put = chance.choice(
            [b"", b"NaN", b'"', b"\\", b"}", b"{", b"]", b"[", b",", b"\xff", b"},{"]
        )
        text = text[:at] + put + text[until:]
    return text or b" "
