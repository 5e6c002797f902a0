"""Count the same work by flopprof and ten other ways: results/peers.csv and results/peers.md.

usage: python scripts/bench_peers.py [--work DIR] [--tools NAME …] [--sources hand torchvision timm]
                                     [--again NAME …] [--page]

Every tool runs in an environment of its own, on cases whose truth was derived by hand and on
models with published figures; each case in a process of its own, so that a crash is a result.
What was counted is kept in --work, and an interrupted run goes on there. Needs the extra `test`
(torchvision, timm, transformers), a C++ compiler and an index for pip; two cores take about half
an hour.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
SOURCES = ("hand", "torchvision", "timm")
FULL = {"torchvision": ("flopprof", "FlopCounterMode"), "timm": ("flopprof",)}
SAMPLE_EVERY = {"torchvision": 3, "timm": 16}  # of what the other tools count, unless --all-models


def main() -> None:
    """Count what is left, and write table and page."""
    from peers.page import write_page
    from peers.run import Journal, count_all, say_on_terminal
    from peers.table import read_csv, rows_of, to_csv
    from peers.tools import TOOLS

    from flopprof.files import write_atomically

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "peers", metavar="DIR")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS), metavar="NAME")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES)
    parser.add_argument(
        "--again", nargs="+", choices=TOOLS, default=(), metavar="NAME",
        help="count by these tools anew",
    )  # fmt: skip
    parser.add_argument(
        "--all-models", action="store_true", help="have every tool count every model, not a sample"
    )
    parser.add_argument("--page", action="store_true", help="write the page from the table alone")
    args = parser.parse_args()
    table = RESULTS / "peers.csv"
    if not args.page:
        work = work_of(args.tools, args.sources, all_models=args.all_models)
        journal = Journal(args.work / "answers.jsonl")
        journal.forget(args.again)
        journal = count_all(work, args.work, say_on_terminal)
        write_atomically(
            table, to_csv(rows_of(work_of(list(TOOLS), SOURCES, all_models=True), journal))
        )
    rows = read_csv(table.read_text())
    write_atomically(RESULTS / "peers.md", write_page(rows))
    print(f"{len(rows)} rows: {table}", file=sys.stderr)


def work_of(
    tools: list[str], sources: list[str] | tuple[str, ...], *, all_models: bool = False
) -> dict[str, list[str]]:
    """Return which cases each tool counts."""
    from peers.models import (
        ON_CPU,
        hand_cases,
        needs_values,
        timm_names,
        too_large,
        torchvision_names,
    )
    from peers.tools import TOOLS

    models = {"torchvision": list(torchvision_names()), "timm": timm_names()}
    work: dict[str, list[str]] = {}
    for tool in tools:
        cases = list(hand_cases()) if "hand" in sources else []
        for source in ("torchvision", "timm"):
            if source not in sources:
                continue
            names = models[source]
            if tool not in FULL[source] and not all_models:
                sampled = names[:: SAMPLE_EVERY[source]]
                names = [name for name in names if name in sampled or name in ON_CPU]
            if source == "torchvision" and tool != "flopprof":
                names = [name for name in names if not too_large(name)]
            if TOOLS[tool].needs_values:
                names = [
                    n for n in names if source == "torchvision" and (n in ON_CPU or needs_values(n))
                ]
            cases += [f"{source}:{name}" for name in names]
        work[tool] = cases
    return work


if __name__ == "__main__":
    main()
