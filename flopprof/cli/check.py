"""`flopprof check`: hold a saved run against the user's limits, for CI."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from flopprof.cli import Handler, clean_lines, command, print_json

if TYPE_CHECKING:
    from flopprof.report.limits import Limits

_VERDICTS = "one of those of the report: disagrees, unknown, hidden, …"


@command("check")
def check(parser: ArgumentParser) -> Handler:
    """Check a saved run against limits: exit code 1 and one line per broken rule.

    example: flopprof check net.flopprof --min-coverage 0.95 --no-verdict disagrees
    """
    parser.add_argument("run", metavar="DIR", help="folder written by flopprof run or trace")
    parser.add_argument(
        "--min-coverage", type=float, metavar="FRAC", help="least share of time with known FLOPs"
    )
    parser.add_argument(
        "--max-unknown-frac",
        type=float,
        metavar="FRAC",
        help="largest share of time with unknown FLOPs, hidden time included",
    )
    parser.add_argument(
        "--max-gflops",
        type=float,
        metavar="N",
        help="most GFLOPs of the run; those that are unknown count with their bound",
    )
    _add_measured(parser)
    parser.add_argument(
        "--allow-unknown",
        action="store_true",
        help="let what is not known pass the limits on FLOPs, time, MFU and memory",
    )
    parser.add_argument(
        "--no-verdict", action="append", default=[], metavar="V", help=f"repeatable; {_VERDICTS}"
    )
    parser.add_argument("--junit", metavar="FILE", help="write the outcome as JUnit XML, too")
    return _handle


def _add_measured(parser: ArgumentParser) -> None:
    """Add the limits on what was measured."""
    parser.add_argument(
        "--max-ms", type=float, metavar="N", help="longest median time of a call, in ms"
    )
    parser.add_argument(
        "--min-mfu", metavar="FRAC", help="least model FLOPs utilisation: 0.4, or 40%%"
    )
    parser.add_argument(
        "--max-memory", metavar="BYTES", help="most memory of a call at one time, such as 500M"
    )


def _handle(args: Namespace) -> int:
    from flopprof.files import write_atomically
    from flopprof.report.limits import judge_limits, junit, note_on_unknown, notes_on
    from flopprof.run import SCHEMA_VERSION, Run, to_json

    limits = _limits(args)
    run = Run.load(args.run)
    rules = judge_limits(run, limits)
    broken = [rule.broken for rule in rules if rule.broken]
    if args.junit:
        write_atomically(Path(args.junit), junit(args.run, rules))
    if args.json:
        rows = [rule._asdict() | {"holds": not rule.broken} for rule in rules]
        outcome = {"run": args.run, "holds": not broken, "rules": rows}
        print_json(to_json({"schema_version": SCHEMA_VERSION, **outcome}))
    elif broken:
        print("\n".join(broken))
    else:
        verdict = "1 rule holds" if len(rules) == 1 else f"{len(rules)} rules hold"
        notes = note_on_unknown(run, limits) + notes_on(rules)
        print(clean_lines(f"{args.run}: {verdict}{notes}"))
    return 1 if broken else 0


def _limits(args: Namespace) -> "Limits":
    """Return the limits that the arguments say.

    Raises:
        UsageError: One of them is none.
    """
    from flopprof.model.trusted import parse_bytes
    from flopprof.report.limits import Limits, share_of

    return Limits(
        min_coverage_frac=args.min_coverage,
        max_unknown_frac=args.max_unknown_frac,
        max_gflops=args.max_gflops,
        max_ms=args.max_ms,
        min_mfu_frac=share_of("--min-mfu", args.min_mfu),
        max_memory_bytes=parse_bytes(args.max_memory) if args.max_memory else None,
        allow_unknown=args.allow_unknown,
        no_verdicts=tuple(args.no_verdict),
    )
