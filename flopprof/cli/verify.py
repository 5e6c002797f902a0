"""`flopprof verify`: compare what was counted with what was executed."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from flopprof.cli import Handler, Progress, command, print_json
from flopprof.errors import UsageError

if TYPE_CHECKING:
    from flopprof.run import Run
    from flopprof.settings import Progress as Told


@command("verify")
def verify(parser: ArgumentParser) -> Handler:
    """Compare what was counted with what the hardware executed.

    example: flopprof verify resnet18.flopprof --counters counters.csv -o verified.flopprof
    """
    parser.add_argument(
        "what",
        nargs="?",
        metavar="RUN",
        help="folder written by flopprof run or trace, or a trace; without it, counters alone",
    )
    parser.add_argument(
        "--counters",
        nargs="+",
        metavar="FILE",
        help="hardware counters: CSV of Nsight Compute, .ncu-rep, rocprofv3, rocprof-compute",
    )
    parser.add_argument("-o", "--output", metavar="DIR", help="write the run with its counters")
    parser.add_argument("--force", action="store_true", help="replace DIR even if it is no run")
    parser.add_argument(
        "--annotate", metavar="OUT", help="of a trace: write it again, with what was executed in it"
    )
    return run


def run(args: Namespace) -> int:
    """Hand the arguments to what compares these."""
    if not args.counters:
        raise UsageError(
            "no counters were named", remedy="flopprof verify RUN --counters FILE; see --help"
        )
    if args.what is None:
        return _show_launches(args)
    return _join(args)


def _show_launches(args: Namespace) -> int:
    from flopprof.executed.read import read_counters
    from flopprof.report.launches import launches_object, launches_text

    if args.output or args.annotate:
        raise UsageError("counters alone are no run", remedy="name the RUN before --counters")
    with Progress() as progress:
        progress("reading counters")
        launches = read_counters(args.counters)
    if args.json:
        print_json(launches_object(launches))
    else:
        print(launches_text(launches))
    return 0


def _join(args: Namespace) -> int:
    """Join counters to a saved run, or to a trace, and show or save it."""
    from flopprof.executed.attach import join_counters
    from flopprof.report.folder import save_run
    from flopprof.report.launches import verified_object, verified_text
    from flopprof.report.perfetto import annotate_trace

    if args.annotate and Path(args.what).is_dir():
        raise UsageError("--annotate writes a trace again", remedy="name the trace in place of DIR")
    files: list[str] = []
    with Progress() as progress:

        def make() -> "Run":
            loaded = _loaded(args.what, progress)
            progress("reading counters")
            return join_counters(loaded, args.counters)

        if args.output:
            sources = [*args.counters] + ([] if Path(args.what).is_dir() else [args.what])
            saved = save_run(
                make, Path(args.output), sources=sources, force=args.force, progress=progress
            )
            verified = saved.run
            files = [str(path) for path in saved.files]
        else:
            verified = make()
        if args.annotate:
            progress(f"writing {args.annotate}")
            files.append(str(annotate_trace(args.what, args.annotate, verified)))
    if args.json:
        print_json(verified_object(verified, files))
    else:
        print(verified_text(verified))
    return 0


def _loaded(what: str, progress: "Told") -> "Run":
    """Return the run that a folder or a trace is.

    Raises:
        UsageError: There is neither.
        LoadError: It is no run and no trace, or damaged.
    """
    from flopprof.run import Run

    progress(f"loading {what}")
    if Path(what).is_dir():
        return Run.load(what)
    from flopprof.api import analyse_traces

    return analyse_traces(what, progress=progress)
