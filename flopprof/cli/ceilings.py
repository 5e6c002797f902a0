"""`flopprof ceilings`: what the device can do at most."""

import datetime
import math
import re
import warnings
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopprof.cli import Handler, Progress, clean_lines, command, print_json, tell_written
from flopprof.errors import LoadError, UsageError

if TYPE_CHECKING:
    from flopprof.ceilings.ceiling import Ceiling, Ceilings


@command("ceilings")
def ceilings(parser: ArgumentParser) -> Handler:
    """Print a device's compute and bandwidth ceilings, measuring them where they are not known.

    example: flopprof ceilings --device cpu --dtypes float32 bfloat16 -o ceilings.json
             flopprof run model.pt --ceilings ceilings.json
    """
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, auto (default)")
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        help='print the datasheet\'s figures of a GPU: "H100 SXM"; list names them all',
    )
    parser.add_argument("--dtypes", nargs="+", metavar="DTYPE", help="only these (default: all)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own setting)")
    parser.add_argument("--refresh", action="store_true", help="measure again, cached or not")
    parser.add_argument("-o", "--output", metavar="FILE", help="write a ceilings file (JSON)")
    parser.add_argument("--force", action="store_true", help="replace FILE whatever it is")

    def handle(args: Namespace) -> int:
        from flopprof.ceilings.ceiling import load_ceilings, save_ceilings

        if args.gpu == "list":
            return _list_boards(as_json=args.json)
        path = Path(args.output) if args.output else None
        if path and path.is_file() and not args.force:
            try:
                load_ceilings(path)
            except LoadError as error:
                problem = f"{path} is there already, and is no ceilings file"
                raise UsageError(problem, remedy="give another name, or --force") from error
        its_ceilings = _find(args)
        if path:
            save_ceilings(path, its_ceilings)
            tell_written([path])
        if args.json:
            print_json(_to_object(its_ceilings))
            return 0
        for text in its_ceilings.warnings:
            warnings.warn(text, stacklevel=1)
        print("\n".join(map(clean_lines, _table(its_ceilings))))
        return 0

    return handle


def _list_boards(*, as_json: bool) -> int:
    """Print the names of the GPUs whose datasheets are known."""
    from flopprof.ceilings.datasheet import board_names
    from flopprof.run import SCHEMA_VERSION

    names = board_names()
    if as_json:
        print_json({"schema_version": SCHEMA_VERSION, "gpus": names})
    else:
        print("\n".join(names))
    return 0


def _find(args: Namespace) -> "Ceilings":
    from flopprof.ceilings.ceiling import Ceilings

    dtypes = [_dtype(name) for name in args.dtypes] if args.dtypes else None
    all_ceilings = _of_device(args, dtypes) if args.gpu is None else _of_gpu(args.gpu)
    entries = all_ceilings.entries
    if dtypes:
        entries = tuple(one for one in entries if one.unit == "memory" or one.name in dtypes)
    return Ceilings(all_ceilings.device, entries, all_ceilings.clocks, all_ceilings.warnings)


def _of_gpu(name: str) -> "Ceilings":
    from flopprof.ceilings.datasheet import ceilings_for_gpu

    of_gpu = ceilings_for_gpu({"name": name})
    if not of_gpu.entries:
        raise UsageError(
            of_gpu.warnings[0], remedy="all that are known: flopprof ceilings --gpu list"
        )
    return of_gpu


def _of_device(args: Namespace, dtypes: list[str] | None) -> "Ceilings":
    from flopprof.ceilings import find_ceilings

    with Progress() as progress:
        progress("loading torch")
        import torch

        from flopprof.devices import find_device
        from flopprof.settings import check_threads

        device = find_device(args.device)
        check_threads(args.threads)
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        return find_ceilings(device, refresh=args.refresh, dtypes=dtypes, progress=progress)


def _dtype(name: str) -> str:
    """Return a dtype's name from it or its usual short one: fp32, bf16, tf32, fp8."""
    from flopprof.ceilings.measure import PRODUCTS

    full = name.lower()
    full = re.sub(r"^(b|t)f(?=\d)", r"\1float", full)  # bf16, tf32
    full = re.sub(r"^fp(?=\d)", "float", full)  # fp32
    for dtype in PRODUCTS:
        if full in (dtype, dtype.partition("_")[0]):
            return dtype
    problem = f"there are no ceilings of {name!r}"
    raise UsageError(problem, remedy=f"use one of {', '.join(PRODUCTS)}")


def _age_s(time_text: str) -> float:
    """Return the seconds since a time in ISO format; NaN where it is not known."""
    try:
        moment = datetime.datetime.fromisoformat(time_text)
    except ValueError:
        return math.nan
    return (datetime.datetime.now(datetime.UTC) - moment.astimezone()).total_seconds()


def _to_object(ceilings: "Ceilings") -> dict[str, Any]:
    """Return the content of the file, each ceiling with its age and whether it counts; roofs."""
    from flopprof.run import SCHEMA_VERSION, to_json

    content = ceilings.to_json()
    counting = {id(entry) for entry in ceilings.resolved.values()}
    memory = [entry for entry in ceilings.entries if entry.unit == "memory"]
    compute = [entry for entry in ceilings.entries if entry.unit != "memory"]
    for rows, entries in ((content["compute"], compute), (content["memory"], memory)):
        for row, entry in zip(rows, entries, strict=True):
            row["counts"] = id(entry) in counting
            row["age_s"] = _age_s(entry.measurement.get("time", ""))
    roofs = ceilings.rooflines().to_dict("records")
    answer = {"schema_version": SCHEMA_VERSION, "rooflines": roofs, **content}
    shown: dict[str, Any] = to_json(answer)
    return shown


_HEADINGS = ("Ceiling", "Unit", "Value", "Ridge, FLOP/B", "Origin", "Valid", "Age", "Source")
_LONG = 50  # letters of a source that is said once, below the table


def _table(ceilings: "Ceilings") -> list[str]:
    """Return one line per ceiling, those that count first of their name, for people."""
    from flopprof.ceilings.ceiling import MAIN
    from flopprof.report.text import aligned
    from flopprof.units import counted

    resolved = ceilings.resolved
    bytes_per_s = resolved[MAIN].per_s if MAIN in resolved else math.nan
    order = {key: rank for rank, key in enumerate(resolved)}
    counting = {id(entry) for entry in resolved.values()}
    long_sources: dict[str, int] = {}
    rows = [_HEADINGS]
    for entry in sorted(ceilings.entries, key=lambda e: (e.unit == "memory", order[e.key])):
        source = ", ".join(filter(None, (entry.source, entry.clock)))
        if len(source) > _LONG:
            number = long_sources.setdefault(source, 1 + len(long_sources))
            source = f"[{number}]"
        name = entry.name if id(entry) in counting else f"({entry.name})"
        rows.append((name, *_cells(entry, bytes_per_s), source))
    lines = aligned(rows)
    if len(counting) < len(ceilings.entries):
        lines.append("(…) gives way to the line before it")
    lines += [f"[{number}] {source}" for source, number in long_sources.items()]
    heading = ceilings.device.get("name") or "GPU"
    threads = ceilings.device.get("threads")
    if threads:
        heading += f", {counted(threads, 'thread')}"
    return [heading, "", *lines]


def _cells(entry: "Ceiling", bytes_per_s: float) -> tuple[str, str, str, str, str, str]:
    """Return unit, value, ridge over that bandwidth, origin, whether it is valid, and age."""
    from flopprof.units import si, three_digits

    is_memory = entry.unit == "memory"
    return (
        "matmul" if entry.unit == "tensor" else entry.unit,
        si(entry.per_s, "B/s" if is_memory else "FLOP/s"),
        "" if is_memory else three_digits(entry.per_s / bytes_per_s),
        entry.kind,
        "yes" if entry.valid else "no: busy",
        _age(_age_s(entry.measurement.get("time", ""))),
    )


def _age(seconds: float) -> str:
    """Return an age for people; "–" where it is not known."""
    if math.isnan(seconds):
        return "–"
    for unit, scale in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.0f} {unit}"
    return "now"
