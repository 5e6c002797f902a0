"""`flopprof diff`: what is other in one saved run than in another."""

from argparse import ArgumentParser, Namespace
from pathlib import Path, PurePath
from typing import Any

from flopprof.cli import Handler, command, print_json
from flopprof.errors import UsageError

_SUFFIXES = {".md": "md", ".txt": "text", ".json": "json"}


@command("diff")
def diff(parser: ArgumentParser) -> Handler:
    """Compare two saved runs: conditions, totals, modules, ops; what is a change, what noise.

    example: flopprof diff before.flopprof after.flopprof --fail-slower 5% --fail-flops 0
    """
    parser.add_argument("before", metavar="BEFORE", help="folder written by flopprof run or trace")
    parser.add_argument("after", metavar="AFTER", help="another")
    parser.add_argument(
        "--format", choices=("text", "md", "json"), help="default: what -o ends in, else text"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write to this file (.md, .txt)")
    parser.add_argument(
        "--top", type=int, default=15, metavar="N", help="list so many of each (default: 15)"
    )
    parser.add_argument(
        "--fail-slower",
        metavar="SHARE",
        help="exit with 1 where AFTER's time is longer by more than this, as 5%%, and that is "
        "no noise",
    )
    parser.add_argument(
        "--fail-flops",
        metavar="SHARE",
        help="exit with 1 where AFTER does more FLOPs by more than this, as 0",
    )
    parser.add_argument(
        "--allow-unknown", action="store_true", help="let what is not known pass these"
    )
    return _handle


def _handle(args: Namespace) -> int:
    from flopprof.files import write_atomically
    from flopprof.report.diff import compared
    from flopprof.report.growth import GrowthLimits, judge_growth
    from flopprof.report.limits import share_of
    from flopprof.run import Run

    form = _form(args)
    limits = GrowthLimits(
        slower_frac=share_of("--fail-slower", args.fail_slower),
        flops_frac=share_of("--fail-flops", args.fail_flops),
        allow_unknown=args.allow_unknown,
    )
    comparison = compared(Run.load(args.before), Run.load(args.after))
    rules = judge_growth(comparison, limits)
    broken = [rule.broken for rule in rules if rule.broken]
    if args.output:
        write_atomically(Path(args.output), _written(form, args, comparison, rules))
    if args.json:
        print_json(_object(comparison, rules))
    elif args.output:
        if broken:
            print("\n".join(broken))
    else:
        print(_written(form, args, comparison, rules), end="")
    return 1 if broken else 0


def _form(args: Namespace) -> str:
    """Return the format that is asked for, or that the file's name says."""
    if args.top < 0:
        raise UsageError(f"--top is {args.top}", remedy="give 0 or more")
    suffix = PurePath(args.output).suffix.lower() if args.output else ""
    if args.format:
        return str(args.format)
    if args.output and suffix not in _SUFFIXES:
        from flopprof.units import safe_text

        fact = f"{safe_text(args.output)} says nothing of its format"
        raise UsageError(fact, remedy="end it in .md, .txt or .json, or add --format")
    return _SUFFIXES.get(suffix, "text")


def _written(form: str, args: Namespace, comparison: dict[str, Any], rules: list[Any]) -> str:
    import json

    from flopprof.report.difftext import compared_markdown, compared_text

    if form == "json":
        return json.dumps(_object(comparison, rules), indent=1) + "\n"
    write = compared_markdown if form == "md" else compared_text
    return write(comparison, (args.before, args.after), args.top, rules)


def _object(comparison: dict[str, Any], rules: list[Any]) -> dict[str, Any]:
    """Return the one JSON object."""
    from flopprof.run import SCHEMA_VERSION, to_json

    rows = [rule._asdict() | {"holds": not rule.broken} for rule in rules]
    whole = {"schema_version": SCHEMA_VERSION, **comparison, "rules": rows}
    cleaned: dict[str, Any] = to_json(whole)
    return cleaned
