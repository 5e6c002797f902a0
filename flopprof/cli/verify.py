"""`flopprof verify`: compare what was counted with what was executed."""

from argparse import ArgumentParser, Namespace

from flopprof.cli import Handler, Progress, command, print_json
from flopprof.errors import UsageError


@command("verify")
def verify(parser: ArgumentParser) -> Handler:
    """Compare what was counted with what the hardware executed.

    flopprof verify --counters counters.csv
    """
    parser.add_argument(
        "--counters",
        nargs="+",
        metavar="FILE",
        help="hardware counters: CSV of Nsight Compute, .ncu-rep, rocprofv3, rocprof-compute",
    )
    return run


def run(args: Namespace) -> int:
    """Hand the arguments to what compares these."""
    if not args.counters:
        raise UsageError("nothing to verify was named", remedy="flopprof verify --counters FILE")
    return _show_launches(args)


def _show_launches(args: Namespace) -> int:
    from flopprof.executed.read import read_counters
    from flopprof.report.launches import launches_object, launches_text

    with Progress() as progress:
        progress("reading counters")
        launches = read_counters(args.counters)
    if args.json:
        print_json(launches_object(launches))
    else:
        print(launches_text(launches))
    return 0
