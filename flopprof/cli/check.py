"""`flopprof check`: hold a saved run against the user's limits, for CI."""

import math
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flopprof.cli import Handler, clean_lines, command, print_json

if TYPE_CHECKING:
    from flopprof.run import Run

_VERDICTS = "one of those of the report: disagrees, unknown, hidden, …"


class Rule(NamedTuple):
    """One limit and what was found: `broken` is '' where it holds."""

    name: str
    value: float
    broken: str


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
    parser.add_argument(
        "--allow-unknown",
        action="store_true",
        help="let FLOPs that are unknown pass --max-gflops",
    )
    parser.add_argument(
        "--no-verdict", action="append", default=[], metavar="V", help=f"repeatable; {_VERDICTS}"
    )
    parser.add_argument("--junit", metavar="FILE", help="write the outcome as JUnit XML, too")

    def handle(args: Namespace) -> int:
        from flopprof.errors import UsageError
        from flopprof.files import write_atomically
        from flopprof.run import SCHEMA_VERSION, Run, to_json

        _refuse_nonsense(args)
        run = Run.load(args.run)
        rules = _rules(run, args)
        if not rules:
            raise UsageError("no rule was given", remedy="flopprof check --help lists them")
        broken = [rule.broken for rule in rules if rule.broken]
        if args.junit:
            write_atomically(Path(args.junit), _junit(args.run, rules))
        if args.json:
            rows = [rule._asdict() | {"holds": not rule.broken} for rule in rules]
            found = {"schema_version": SCHEMA_VERSION, "run": args.run, "holds": not broken}
            print_json(to_json(found | {"rules": rows}))
        else:
            held = f"{len(rules)} rule{'s' * (len(rules) > 1)} hold{'s' * (len(rules) == 1)}"
            print("\n".join(broken) or clean_lines(f"{args.run}: {held}{_note(run, args)}"))
        return 1 if broken else 0

    return handle


def _refuse_nonsense(args: Namespace) -> None:
    from flopprof.errors import UsageError
    from flopprof.judge.verdicts import VERDICTS

    for name in ("min_coverage", "max_unknown_frac"):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} is {value}", remedy="give a fraction between 0 and 1: 0.95")
    if args.max_gflops is not None and not args.max_gflops >= 0:
        raise UsageError(f"--max-gflops is {args.max_gflops}", remedy="give 0 or more")
    for verdict in args.no_verdict:
        if verdict not in VERDICTS:
            raise UsageError(
                f"there is no verdict {verdict!r}", remedy="known: " + ", ".join(VERDICTS)
            )


def _rules(run: "Run", args: Namespace) -> list[Rule]:
    """Return the rules that were given, each judged: what is not known holds no rule."""
    from flopprof.units import clean_text, percent

    rules, totals = [], run.totals
    covered, of_what = totals.coverage_frac, "time"
    if math.isnan(covered):  # a pure count
        covered, of_what = totals.coverage_calls_frac, "calls"
    if args.min_coverage is not None:
        name = f"--min-coverage {args.min_coverage:g}"
        said = f"{name}: FLOPs are known for {percent(covered)} of the {of_what}"
        rules.append(Rule(name, covered, "" if covered >= args.min_coverage else said))
    if args.max_unknown_frac is not None:
        name, unknown = f"--max-unknown-frac {args.max_unknown_frac:g}", 1 - covered
        said = f"{name}: FLOPs are unknown for {percent(unknown)} of the {of_what}"
        rules.append(Rule(name, unknown, "" if unknown <= args.max_unknown_frac else said))
    if args.max_gflops is not None:
        name, least = f"--max-gflops {args.max_gflops:g}", float(totals.flops)
        rules.append(Rule(name, least / 1e9, _too_much(name, run, args)))
    for verdict in dict.fromkeys(args.no_verdict):
        sites = run.sites[run.sites["verdict"] == verdict]
        name, broken = f"--no-verdict {verdict}", ""
        if len(sites):
            first = sites.iloc[0]
            where = f"{first['op']} in {first['module_path'] or 'the model'}"
            share = percent(sites["time_share_frac"].sum(min_count=1))
            broken = f"{name}: {len(sites)} sites ({share} of the time), such as {where}: "
            broken = clean_text(broken + " ".join(first["reason"].split()))
        rules.append(Rule(name, float(len(sites)), broken))
    return rules


def _too_much(name: str, run: "Run", args: Namespace) -> str:
    """Return how the run's FLOPs break the limit: by what was counted, or by what may be more."""
    from flopprof.units import si

    totals, limit = run.totals, args.max_gflops * 1e9
    least, most = float(totals.flops), float(totals.flops_at_most)
    if not least <= limit:
        return f"{name}: the run does at least {si(least, 'FLOPs')}"
    if args.allow_unknown or most <= limit:
        return ""
    bound = "their number has no bound" if math.isnan(most) else f"at most {si(most, 'FLOPs')}"
    return (
        f"{name}: {si(least, 'FLOPs')} were counted and some are unknown ({bound}); "
        "--allow-unknown lets them pass"
    )


def _note(run: "Run", args: Namespace) -> str:
    """Return what a limit on the FLOPs cannot promise, where some are unknown."""
    from flopprof.units import UNKNOWN, si

    totals = run.totals
    if args.max_gflops is None or totals.flops_at_most == totals.flops:
        return ""
    most = si(totals.flops_at_most, "FLOPs").replace(UNKNOWN, "unknown")
    return f"; counted {si(float(totals.flops), 'FLOPs')}, with what is unknown at most {most}"


def _junit(run: str, rules: list[Rule]) -> str:
    """Return the rules as a JUnit test suite: one test case each."""
    from xml.etree import ElementTree as Xml

    from flopprof.units import clean_text

    failures = sum(bool(rule.broken) for rule in rules)
    counts = {"tests": str(len(rules)), "failures": str(failures), "errors": "0"}
    suite = Xml.Element("testsuite", {"name": "flopprof check", **counts})
    for rule in rules:
        case = Xml.SubElement(suite, "testcase", classname=clean_text(run), name=rule.name)
        if rule.broken:
            Xml.SubElement(case, "failure", message=rule.broken, type="rule").text = rule.broken
    Xml.indent(suite)
    return Xml.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
