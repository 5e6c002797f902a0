"""Write results/executed.csv: what this CPU executes for ops at small sizes, beside their counts.

usage: python scripts/make_executed.py [OP …]

The ops and sizes are those of flopprof/executed/default_shapes.csv, in float32, float64 and
bfloat16, and those of scripts/executed/packed_calls.py, whose arguments are packed or sparse. What
an op does not take it has no row of. results/executed_none.csv says of every op with products that
has no row at all why it has none. Where ops are named, the rows of others stay. Takes 20 minutes.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from executed import packed_calls

from flopprof.devices.cpu import cpu_name
from flopprof.errors import FlopprofError
from flopprof.formulas import OP_FORMULAS, load_op_formulas
from flopprof.provenance import plain
from flopprof.report.stepped import stepped_call
from flopprof.run import to_json
from flopprof.stepped import SteppedOp, default_calls, step_calls, step_ops

RESULTS = Path(__file__).resolve().parents[1] / "results"
STATED = Path(__file__).parent / "executed" / "none.csv"
WITH_PRODUCTS = ("matmul", "convolution", "attention", "recurrent")
"""Kinds of ops whose formulas have products."""

COLUMNS = (
    "op",
    "arguments",
    "dtype",
    "counted_matmul_flops",
    "counted_vector_flops",
    "executed_fma_flops",
    "executed_flops",
    "executed_int_fma_ops",
    "masked_flops",
    "undecoded_instructions",
    "ratio",
    "verdict",
    "reason_code",
    "reason",
    "cpu",
    "torch",
)
BACKENDS = ("CPU", "QuantizedCPU", "MkldnnCPU", "SparseCPU", "SparseCsrCPU")
COMPOSITE = ("CompositeImplicitAutograd", "CompositeExplicitAutograd")


def main() -> None:
    """Step each op and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ops", nargs="*", metavar="OP")
    args = parser.parse_args()
    load_op_formulas()
    every = dict.fromkeys([*(op for op, _ in default_calls()), *of_products()])
    before = read("executed.csv") if args.ops else []
    rows = []
    refused = {}
    for op in every:
        if args.ops and op not in args.ops:
            rows += [each for each in before if each["op"] == op]
            continue
        for each in rows_of(op):
            if "refused" in each:
                refused[op] = each["refused"]
            else:
                rows.append(each)
    write("executed.csv", COLUMNS, rows)
    with_rows = {each["op"] for each in rows}
    without = [
        {"op": op, "reason": why_none(op, refused)} for op in of_products() if op not in with_rows
    ]
    write("executed_none.csv", ("op", "reason"), without)
    verdicts = [each["verdict"] for each in rows]
    for verdict in sorted(set(verdicts)):
        print(f"{verdicts.count(verdict)} {verdict}")
    print(f"{len(without)} ops with products have no row")


def of_products() -> list[str]:
    """Return the ops whose formulas have products, in alphabetical order."""
    return sorted(op for op, formula in OP_FORMULAS.items() if formula.kind in WITH_PRODUCTS)


def read(name: str) -> list[dict[str, Any]]:
    """Return the rows of a table."""
    with (RESULTS / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(name: str, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """Write a table."""
    with (RESULTS / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def rows_of(op: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each of an op's arguments and element types, or why it refused them."""
    for arguments in (text for name, text in default_calls() if name == op):
        takes_type = ":" not in arguments
        for dtype in ("float32", "float64", "bfloat16") if takes_type else ("",):
            print(f"{op} {arguments} {dtype}", file=sys.stderr)
            try:
                (stepped,) = step_ops([op], shapes=[arguments], dtype=dtype or None, force=True)
            except FlopprofError as error:
                yield {"refused": error.problem}
            else:
                yield row(stepped, arguments)
    for words, call in packed_calls.calls(op):
        print(f"{op} {words}", file=sys.stderr)
        (stepped,) = step_calls([call], force=True)
        yield row(stepped, words)


def row(stepped: SteppedOp, arguments: str) -> dict[str, Any]:
    """Return one op's row."""
    machine = {"cpu": cpu_name(), "torch": torch.__version__}
    values = to_json(plain(stepped_call(stepped)))
    return {name: values.get(name) for name in COLUMNS} | {"arguments": arguments} | machine


def why_none(op: str, refused: dict[str, str]) -> str:
    """Return why an op has no row."""
    with STATED.open(encoding="utf-8") as file:
        stated = {
            name: each["reason"] for each in csv.DictReader(file) for name in each["ops"].split()
        }
    if op in stated:
        return stated[op]
    namespace, _, name = op.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name, None) if name else None
    if packet is None:
        is_torch = namespace in ("aten", "quantized", "mkldnn", "onednn", "mkl")
        library = "another version of PyTorch" if is_torch else f"a library: {namespace}"
        return f"it is of {library}, and not installed here"
    if not has_kernel(packet):
        return "it has no kernel for a CPU"
    return refused.get(op, "")


def has_kernel(packet: Any) -> bool:
    """Return whether an op runs on a CPU otherwise than into a tensor that is given."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    overloads = [getattr(packet, name) for name in packet.overloads() if name != "out"]
    names = [each.name() for each in overloads if not each.name().endswith("_out")]
    return any(has(name, key) for name in names for key in (*BACKENDS, *COMPOSITE))


if __name__ == "__main__":
    main()
