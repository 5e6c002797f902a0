"""Write results/executed.csv: what this CPU executes for ops at small sizes, beside their counts.

usage: python scripts/make_executed.py [OP …]

The ops and sizes are those of flopprof/executed/default_shapes.csv: all in float32, products in
float64 and bfloat16, too. Named ops are printed and not written. Takes some minutes.
"""

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import torch

from flopprof.devices.cpu import cpu_name
from flopprof.errors import FlopprofError
from flopprof.provenance import plain
from flopprof.report.stepped import stepped_call
from flopprof.run import to_json
from flopprof.stepped import default_calls, step_ops

TARGET = Path(__file__).resolve().parents[1] / "results" / "executed.csv"
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "matmul", "mv", "dot", "linear")
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


def main() -> None:
    """Step each op and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ops", nargs="*", metavar="OP")
    args = parser.parse_args()
    rows = []
    for op, arguments in default_calls():
        if args.ops and op not in args.ops:
            continue
        for dtype in dtypes_of(op):
            print(f"{op} {arguments} {dtype}", file=sys.stderr)
            rows.append(row(op, arguments, dtype))
    if args.ops:
        for each in rows:
            print(each)
        return
    with TARGET.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    verdicts = [each["verdict"] for each in rows]
    for verdict in sorted(set(verdicts)):
        print(f"{verdicts.count(verdict)} {verdict}")


def dtypes_of(op: str) -> tuple[str, ...]:
    """Return the element types that an op is stepped in."""
    if op.partition("::")[2] in PRODUCTS:
        return ("float32", "float64", "bfloat16")
    return ("int8",) if op == "aten::_int_mm" else ("float32",)


def row(op: str, arguments: str, dtype: str) -> dict[str, Any]:
    """Return one op's row."""
    floats = None if dtype == "int8" else dtype
    about = {"op": op, "arguments": arguments, "dtype": dtype}
    machine = {"cpu": cpu_name(), "torch": torch.__version__}
    try:
        (stepped,) = step_ops([op], shapes=[arguments], dtype=floats, force=True)
    except FlopprofError as error:
        return about | machine | {"verdict": "unknown", "reason": error.problem}
    values = to_json(plain(stepped_call(stepped)))
    return {name: values.get(name) for name in COLUMNS} | about | machine


if __name__ == "__main__":
    main()
