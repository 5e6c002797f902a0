"""`flopprof ceilings`: what the device can do at most."""

import datetime
import math
import re
import warnings
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopprof.cli import Handler, Progress, check_threads, clean_lines, command, print_json
from flopprof.errors import LoadError, UsageError

if TYPE_CHECKING:
    from flopprof.ceilings.ceiling import Ceilings


@command("ceilings")
def ceilings(parser: ArgumentParser) -> Handler:
    """Print a device's compute and bandwidth ceilings, measuring them where they are not known.

    example: flopprof ceilings --device cpu --dtypes float32 bfloat16 -o ceilings.json
             flopprof run model.pt --ceilings ceilings.json
    """
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, auto (default)")
    parser.add_argument(
        "--gpu", metavar="NAME", help='print the datasheet\'s figures of a GPU: "H100 SXM"'
    )
    parser.add_argument("--dtypes", nargs="+", metavar="DTYPE", help="only these (default: all)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own setting)")
    parser.add_argument("--refresh", action="store_true", help="measure again, cached or not")
    parser.add_argument("-o", "--output", metavar="FILE", help="write a ceilings file (JSON)")
    parser.add_argument("--force", action="store_true", help="replace FILE whatever it is")

    def handle(args: Namespace) -> int:
        from flopprof.ceilings.ceiling import load_ceilings, save_ceilings

        path = Path(args.output) if args.output else None
        if path and path.is_file() and not args.force:
            try:
                load_ceilings(path)
            except LoadError as error:
                problem = f"{path} is there already, and is no ceilings file"
                raise UsageError(problem, remedy="give another name, or --force") from error
        found = _find(args)
        if path:
            save_ceilings(path, found)
        if args.json:
            print_json(_to_object(found))
            return 0
        for text in found.warnings:
            warnings.warn(text, stacklevel=1)
        print("\n".join(map(clean_lines, _table(found))))
        if path:
            print(clean_lines(path))
        return 0

    return handle


def _find(args: Namespace) -> "Ceilings":
    from flopprof.ceilings import find_ceilings
    from flopprof.ceilings.ceiling import Ceilings

    dtypes = [_dtype(name) for name in args.dtypes] if args.dtypes else None
    if args.gpu is not None:
        from flopprof.ceilings.datasheet import ceilings_for_gpu

        found = ceilings_for_gpu({"name": args.gpu})
        if not found.entries:
            raise UsageError(found.warnings[0], remedy="name one of those, or part of its name")
    else:
        with Progress() as progress:
            progress("loading torch")
            import torch

            from flopprof.devices import find_device

            device = find_device(args.device)
            if args.threads is not None:
                check_threads(args.threads)
                torch.set_num_threads(args.threads)
            found = find_ceilings(device, refresh=args.refresh, dtypes=dtypes, progress=progress)
    kept = [e for e in found.entries if not dtypes or e.unit == "memory" or e.name in dtypes]
    return Ceilings(found.device, tuple(kept), found.clocks, found.warnings)


def _dtype(name: str) -> str:
    """Return a dtype's name from it or its usual short one: fp32, bf16, tf32, fp8."""
    from flopprof.ceilings.measure import PRODUCTS

    full = re.sub(r"^fp(?=\d)", "float", re.sub(r"^(b|t)f(?=\d)", r"\1float", name.lower()))
    found = [dtype for dtype in PRODUCTS if dtype.split("_")[0] == full or dtype == full]
    if not found:
        problem = f"there are no ceilings of {name!r}"
        raise UsageError(problem, remedy=f"use one of {', '.join(PRODUCTS)}")
    return found[0]


def _age_s(taken: str) -> float:
    """Return the seconds since a time in ISO format; NaN where it is not known."""
    try:
        then = datetime.datetime.fromisoformat(taken)
    except ValueError:
        return math.nan
    return (datetime.datetime.now(datetime.UTC) - then.astimezone()).total_seconds()


def _to_object(found: "Ceilings") -> dict[str, Any]:
    """Return the content of the file, each ceiling with its age and whether it counts; roofs."""
    from flopprof.run import SCHEMA_VERSION, to_json

    content, counts = found.to_json(), {id(e) for e in found.resolved.values()}
    memory = [entry for entry in found.entries if entry.unit == "memory"]
    compute = [entry for entry in found.entries if entry.unit != "memory"]
    for rows, entries in ((content["compute"], compute), (content["memory"], memory)):
        for row, entry in zip(rows, entries, strict=True):
            row |= {"counts": id(entry) in counts}
            row |= {"age_s": _age_s(entry.measurement.get("time", ""))}
    roofs = found.rooflines().to_dict("records")
    shown: dict[str, Any] = to_json(
        {"schema_version": SCHEMA_VERSION, "rooflines": roofs, **content}
    )
    return shown


def _table(found: "Ceilings") -> list[str]:
    """Return one line per ceiling, those that count first of their name, for people."""
    from flopprof.ceilings.ceiling import MAIN
    from flopprof.report.text import aligned
    from flopprof.units import si, three_digits

    name, threads = found.device.get("name") or "GPU", found.device.get("threads")
    bandwidth = found.resolved[MAIN].per_s if MAIN in found.resolved else math.nan
    order = {key: rank for rank, key in enumerate(found.resolved)}
    counts = {id(entry) for entry in found.resolved.values()}
    sources: dict[str, int] = {}
    rows = [("Ceiling", "Unit", "Value", "Ridge, FLOP/B", "Origin", "Valid", "Age", "Source")]
    for entry in sorted(found.entries, key=lambda e: (e.unit == "memory", order[e.key])):
        memory = entry.unit == "memory"
        source = ", ".join(filter(None, (entry.source, entry.clock)))
        long = len(source) > 50
        if long:  # said once, below
            number = sources.setdefault(source, 1 + len(sources))
        rows.append(
            (
                entry.name if id(entry) in counts else f"({entry.name})",
                {"tensor": "matmul"}.get(entry.unit, entry.unit),
                si(entry.per_s, "B/s" if memory else "FLOP/s"),
                "" if memory else three_digits(entry.per_s / bandwidth),
                entry.kind,
                "yes" if entry.valid else "no: busy",
                _age(_age_s(entry.measurement.get("time", ""))),
                f"[{number}]" if long else source,
            )
        )
    lines = aligned(rows)
    also = ["(…) gives way to the line before it"] if len(counts) < len(found.entries) else []
    notes = [f"[{number}] {source}" for source, number in sources.items()]
    threads = f", {threads} thread{'s' if threads > 1 else ''}" if threads else ""
    return [f"{name}{threads}", "", *lines, *also, *notes]


def _age(seconds: float) -> str:
    """Return an age for people; "–" where it is not known."""
    scales = (("days", 86400), ("h", 3600), ("min", 60), ("s", 1))
    found = (f"{seconds / scale:.0f} {unit}" for unit, scale in scales if seconds >= 2 * scale)
    return "–" if math.isnan(seconds) else next(found, "now")
