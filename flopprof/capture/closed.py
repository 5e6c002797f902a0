"""Name the modules inside TorchScript and exported programs, which no hook enters, by their graphs.

A profiler asked for modules tells TorchScript's with each op; an exported program keeps them in the
nodes of its graph, which are run in their order.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from torch import nn

    from flopprof.trace.read import Trace


def holds_script(model: "nn.Module") -> bool:
    """Return whether any of the model's modules is of TorchScript."""
    import torch

    return any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())


def inner_paths(path: Path) -> dict[int, str]:
    """Return what a trace that was asked for modules tells: external id → path in TorchScript.

    It spells one "TOP(Net)::forward.a(Block)::forward.SELF(Block)::helper": SELF is no module.
    """
    paths = {}
    for event in json.loads(path.read_bytes())["traceEvents"]:
        arguments = event.get("args", {})
        if "Module Hierarchy" in arguments and "External id" in arguments:
            segments = re.findall(r"(?:^|\.)(\w+)\([^()]*\)::", arguments["Module Hierarchy"])
            names = [name for name in segments if name not in ("TOP", "SELF")]
            paths[int(arguments["External id"])] = ".".join(names)
    return paths


def name_inner_modules(
    trace: "Trace", model: "nn.Module", inner_path_of: Mapping[int, str]
) -> "Trace":
    """Return the trace, ops inside closed modules with paths there; types: `info["closed"]`.

    They are of no call that hooks saw. Where a graph's nodes and the ops do not agree, nothing is
    named.

    Args:
        trace: The trace of one call of the model.
        model: What was called.
        inner_path_of: External id → path inside the TorchScript module around it.
    """
    from flopprof.formulas.modules import canonical_name  # which imports torch

    ops = trace.ops
    outer = ops["module_path"].astype(str).tolist()
    inner = [inner_path_of.get(number, "") for number in ops["external_id"].tolist()]
    for path, module in model.named_modules():
        if nodes := _nodes(module):
            for op, inside in _aligned(ops, outer, path, nodes):
                inner[op] = inside
    parents = ops["parent_op_id"].tolist()
    for op, parent in enumerate(parents):  # a parent comes first
        if not inner[op] and parent >= 0 and outer[op] == outer[parent]:
            inner[op] = inner[parent]
    if not any(inner):
        return trace
    types = {path: canonical_name(type(module)) for path, module in model.named_modules()}
    pairs = list(zip(outer, inner, strict=True))
    joined = [".".join(filter(None, pair)) for pair in pairs]
    closed = {
        path: types.get(around, "")
        for path, (around, inside) in zip(joined, pairs, strict=True)
        if inside
    }
    calls = ops["call_id"].where([not inside for inside in inner], -1)
    ops_with_paths = ops.assign(module_path=pd.Categorical(joined), call_id=calls)
    return replace(trace, ops=ops_with_paths, info=trace.info | {"closed": closed})


def _nodes(module: "nn.Module") -> list[tuple[str, str]]:
    """Return the ops that a graph calls, in order, each with the path of the module it is of."""
    from torch._ops import OpOverload
    from torch.fx import GraphModule

    if not isinstance(module, GraphModule):
        return []
    nodes = []
    for node in module.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {"": ("", None)}).values())
        if isinstance(node.target, OpOverload):
            nodes.append((node.target._schema.name, str(stack[-1][0])))
    return nodes if any(path for _, path in nodes) else []


def _aligned(
    ops: pd.DataFrame, outer: Sequence[str], path: str, nodes: Sequence[tuple[str, str]]
) -> list[tuple[int, str]]:
    """Return the ops of each call of a program that its nodes are, with their modules' paths."""
    names = ops["op"].astype(str).tolist()
    phases = ops["phase"].astype(str).tolist()
    parents = ops["parent_op_id"].tolist()
    by_call: dict[int, list[int]] = {}
    for op, (call, parent) in enumerate(zip(ops["call_id"].tolist(), parents, strict=True)):
        is_outermost = parent < 0 or outer[parent] != path
        if outer[op] == path and is_outermost and phases[op] in ("forward", "recompute"):
            by_call.setdefault(call, []).append(op)
    node_counts = Counter(name for name, _ in nodes)
    aligned = []
    for outermost in by_call.values():
        op_counts = Counter(names[op] for op in outermost)
        recorded = [op for op in outermost if op_counts[names[op]] == node_counts[names[op]]]
        called = [(name, inside) for name, inside in nodes if op_counts[name] == node_counts[name]]
        if [names[op] for op in recorded] == [name for name, _ in called]:
            pairs = zip(recorded, called, strict=True)
            aligned += [(op, inside) for op, (_, inside) in pairs]
    return aligned
