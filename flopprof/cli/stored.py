"""Print what a file's weights say alone: products by group, and what is apart from them."""

import re
from collections import Counter
from typing import Any

from flopprof.units import UNKNOWN

ROWS = 24  # of groups; where there are more, they are added up by the beginning of their paths
CONFIG_LINES = 12
_NAME_WIDTH = 46
_TEXTS = 3  # columns of the table that are texts, the first; the others are numbers
_MOST_NAMED = 3  # tensors of unknown use
_MOST_LETTERS = 2000  # of a line: a file chooses its names
_CONFIG_WIDTH = 150  # letters of a name and its value


def print_weights(weights: dict[str, Any]) -> None:
    """Print an object of `weights_object` for people."""
    from flopprof.units import safe_text

    for line in weight_lines(weights):
        print(safe_text(line, _MOST_LETTERS))


def weight_lines(weights: dict[str, Any]) -> list[str]:
    """Return the lines: the sums, the groups, what is apart, notes, configuration, other models."""
    lines = [*_sums(weights), "", *_table(weights["groups"]), ""]
    lines += [_field("Note", note) for note in weights["notes"]]
    lines += _configuration(weights.get("configuration") or {})
    others = weights.get("others") or {}
    if others:
        lines += ["", *_in_all(weights, others)]
    for where, other in others.items():
        lines += ["", f"Under {where}:", *_sums(other), "", *_table(other["groups"])]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _field(label: str, text: str) -> str:
    return f"{label:10}{text}"


def _sums(weights: dict[str, Any]) -> list[str]:
    from flopprof.units import counted, si

    count = sum(kind["tensors"] for kind in weights["by_kind"].values())
    lines = [
        _field(
            "Weights",
            f"{counted(count, 'tensor')}, {si(float(weights['parameters']), '')} parameters, "
            f"{si(float(weights['bytes']), 'B')}",
        )
    ]
    flops = weights["matmul_flops_per_position"]
    unknown = weights["unknown"]
    least = "at least " if unknown else ""
    lines.append(
        _field("Products", f"{least}{flops:,} matmul FLOPs: each weight applied at one position")
    )
    if unknown:
        shown = ", ".join(unknown[:_MOST_NAMED])
        if len(unknown) > _MOST_NAMED:
            shown += ", …"
        lines.append(
            _field("", f"without {counted(len(unknown), 'tensor')} of unknown use: {shown}")
        )
    lines.append(_field("", _meaning(weights["by_kind"])))
    if experts := weights["experts"]:
        lines.append(_field("Experts", _experts(experts)))
    return lines


def _in_all(weights: dict[str, Any], others: dict[str, Any]) -> list[str]:
    from flopprof.units import counted, si

    every = [weights, *others.values()]
    parameters = sum(float(some["parameters"]) for some in every)
    flops = sum(some["matmul_flops_per_position"] for some in every)
    count = counted(len(every), "set")
    first = weights["under"] or "the top"
    return [
        _field(
            "In all",
            f"the file holds {count} of weights, the one above under {first}: "
            f"{si(parameters, '')} parameters, {flops:,} matmul FLOPs at one position of each",
        )
    ]


def _meaning(by_kind: dict[str, Any]) -> str:
    """Return what the sum of the products is, and is not."""
    if any("convolution" in kind for kind in by_kind):
        return "a convolution has as many positions as its output: no total, which needs the code"
    if "recurrent" in by_kind:
        return "that is per step of the sequence, for layers that see each step"
    return "in a transformer that is per token, without attention's two products"


def _experts(experts: dict[str, Any]) -> str:
    stored = experts["stored"]
    active = experts["active"]
    flops = experts["matmul_flops_per_position"]
    if active is None:
        return f"{flops:,} of these FLOPs are of {stored} experts, of which a router runs fewer"
    total = experts["model_flops_per_position_active"]
    return (
        f"{flops:,} of these FLOPs are of {stored} experts; with the {active} that run, "
        f"the whole is {total:,} per position"
    )


def _table(groups: list[dict[str, Any]]) -> list[str]:
    """Return the products' groups as a table, then one line for all that is apart."""
    from flopprof.units import si

    products = [group for group in groups if group["per"] or group["kind"] == "unknown"]
    rows, is_added_up = _few(products)
    lines = _aligned(rows) if rows else []
    if is_added_up:
        lines.append(f"{len(products)} groups are added up here; --json has each")
    apart: Counter[str] = Counter()
    for group in groups:
        if not group["per"] and group["kind"] != "unknown":
            apart[group["kind"]] += group["parameters"]
    if apart:
        parts = [f"{kind} {si(float(parameters), '')}" for kind, parameters in apart.items()]
        lines.append(f"apart, no products: {', '.join(parts)} parameters")
    return lines


def _aligned(rows: list[dict[str, Any]]) -> list[str]:
    """Return the rows as columns: texts to the left, numbers to the right."""
    from flopprof.units import clean_text, columns, shorten_path, si

    table = [("group", "kind", "weights", "parameters", "FLOPs/position")]
    for row in rows:
        flops = row["matmul_flops_per_position"]
        path = shorten_path(clean_text(row["path"] or "(model)"), _NAME_WIDTH)
        size = si(float(row["parameters"]), "")
        shown = UNKNOWN if flops is None else f"{flops:,}"
        table.append((path, row["kind"], row["shape"], size, shown))
    widths = [max(map(columns, cells)) for cells in zip(*table, strict=True)]
    lines = []
    for line in table:
        cells = []
        for place, (cell, width) in enumerate(zip(line, widths, strict=True)):
            padding = " " * (width - columns(cell))
            cells.append(cell + padding if place < _TEXTS else padding + cell)
        lines.append("  ".join(cells))
    return lines


def _few(groups: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """Return at most ROWS rows: the groups, or their sums by the first parts of their paths."""
    deepest = max((group["path"].count(".") for group in groups), default=0)
    for depth in range(deepest + 1, 0, -1):
        rows = _rows(groups, depth)
        if len(rows) <= ROWS:
            return rows, depth <= deepest
    return sorted(rows, key=lambda r: -(r["matmul_flops_per_position"] or 0))[:ROWS], True


def _rows(groups: list[dict[str, Any]], depth: int) -> list[dict[str, Any]]:
    """Return the groups, those added up that begin alike."""
    rows: dict[str, dict[str, Any]] = {}
    for group in groups:
        parts = re.split(r"\.(?![^{]*})", group["path"])
        path = ".".join(parts[:depth])
        shapes = group["shapes"]
        shape = shapes[0] if len(set(shapes)) == 1 else f"{len(shapes)} matrices"
        flops = group["matmul_flops_per_position"]
        if path not in rows:
            times = f"{group['modules']} × " if group["modules"] > 1 else ""
            rows[path] = {
                "path": path,
                "kind": group["kind"],
                "shape": times + shape,
                "parameters": group["parameters"],
                "matmul_flops_per_position": flops,
            }
            continue
        row = rows[path]
        row["parameters"] += group["parameters"]
        row["shape"] = "several"
        if row["kind"] != group["kind"]:
            row["kind"] = "several"
        if flops is not None:
            row["matmul_flops_per_position"] = (row["matmul_flops_per_position"] or 0) + flops
    return list(rows.values())


def _configuration(values: dict[str, Any]) -> list[str]:
    """Return the leaves of a nested configuration, a line each, and how many are left out."""
    leaves: list[tuple[str, Any]] = []
    pending = [(str(key), value) for key, value in reversed(values.items())]
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict) and value:
            pending += [(f"{name}.{key}", inner) for key, inner in reversed(value.items())]
        else:
            leaves.append((name, value))
    lines = []
    for name, value in leaves[:CONFIG_LINES]:
        lines.append(_field("Config", f"{name} = {value}"[:_CONFIG_WIDTH]))
    if len(leaves) > CONFIG_LINES:
        lines.append(_field("", f"… and {len(leaves) - CONFIG_LINES} more values (--json)"))
    return lines
