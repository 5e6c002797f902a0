"""`flopprof trace`: analyse profiler traces recorded elsewhere."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from flopprof.cli import Handler, Progress, command

if TYPE_CHECKING:
    from flopprof.trace.workers import Workers


@command("trace")
def trace(parser: ArgumentParser) -> Handler:
    """Analyse traces that torch.profiler recorded anywhere: FLOPs, kernels, coverage, rooflines.

    Several files are ranks of one job; they may lie in object storage: s3://bucket/ranks/*.json.gz
    example: flopprof trace trace.json.gz -o trace.flopprof
    example: flopprof trace 'ranks/*.json.gz' --workers 8
    example: flopprof trace trace.json.gz --steps 3:8
    """
    from flopprof.cli.options import add_view_arguments

    _add_arguments(parser)
    add_view_arguments(parser)

    def handle(args: Namespace) -> int:
        from flopprof.api import analyse_traces
        from flopprof.cli.options import view_of
        from flopprof.cli.run import print_saved
        from flopprof.formulas.external import load_formulas
        from flopprof.report.folder import folder_of_trace, save_run
        from flopprof.report.perfetto import annotate_trace
        from flopprof.trace.remote import base_name, expanded

        view = view_of(args)
        args.files = expanded(args.files)
        if args.annotate:
            _check_annotated(args)
        if args.formulas:
            load_formulas(args.formulas)
        with Progress() as progress:
            saved = save_run(
                lambda: analyse_traces(
                    args.files,
                    gpu=args.gpu,
                    ceilings=args.ceilings,
                    skip_steps=args.skip_steps,
                    steps=args.steps,
                    from_s=args.from_s,
                    to_s=args.to_s,
                    capture=args.capture,
                    workers=_workers(args),
                    progress=progress,
                ),
                Path(args.output) if args.output else folder_of_trace(base_name(args.files[0])),
                sources=args.files,
                force=args.force,
                progress=progress,
            )
        print_saved(saved, view, as_json=args.json)
        if args.annotate:
            with Progress() as progress:
                progress(f"writing {args.annotate}")
                annotate_trace(args.files[0], args.annotate, saved.run)
        return 0

    return handle


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="trace .json or .json.gz, pattern, address"
    )
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument(
        "--gpu", metavar="NAME", help="ceilings of this GPU, such as H100 SXM5 80GB"
    )
    limits.add_argument(
        "--ceilings", metavar="FILE", help="ceilings of your own, before the tables"
    )
    parser.add_argument("--formulas", metavar="FILE.py", help="file with formulas of your own")
    parser.add_argument(
        "--skip-steps", type=int, default=0, metavar="N", help="leave out the first N steps"
    )
    parser.add_argument(
        "--steps", metavar="A:B", help="only the profiler's steps A to B-1: 3:8, 3:, :8, or 3 alone"
    )
    parser.add_argument(
        "--from",
        dest="from_s",
        type=float,
        metavar="SECONDS",
        help="only calls that begin so long after the trace's first",
    )
    parser.add_argument(
        "--to", dest="to_s", type=float, metavar="SECONDS", help="only calls that begin before this"
    )
    who = parser.add_mutually_exclusive_group()
    who.add_argument(
        "--workers", type=int, metavar="N", help="processes that read ranks (default: the cores)"
    )
    who.add_argument(
        "--dask", metavar="ADDRESS", help="scheduler of a Dask cluster that reads them: tcp://…"
    )
    parser.add_argument(
        "--capture",
        metavar="FILE",
        help="trace of the capture of graphs that are replayed here: its ops get their kernels",
    )
    parser.add_argument(
        "--annotate",
        metavar="OUT",
        help="write the trace again, with FLOPs, rates and verdicts in it: out.json.gz",
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="folder to write (default: FILE's stem + .flopprof)"
    )
    parser.add_argument("--force", action="store_true", help="replace DIR even if it is no run")


def _workers(args: Namespace) -> "Workers":
    """Return who reads the ranks: a process for each core, unless said otherwise."""
    from flopprof.trace.workers import Workers

    processes = args.workers
    if processes is None:
        processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return Workers(processes=processes, dask=args.dask)


def _check_annotated(args: Namespace) -> None:
    """Raise `UsageError` unless there is one trace, and --annotate names a file to write."""
    from flopprof.errors import UsageError
    from flopprof.files import explain_os_errors, real_path

    if len(args.files) > 1:
        raise UsageError("--annotate writes one trace", remedy="give it one FILE at a time")
    target = Path(args.annotate)
    with explain_os_errors(target):
        if target.is_file() and not args.force:
            raise UsageError(f"{target} exists", remedy="name another file, or add --force")
        folder = real_path(target).parent
        if not folder.is_dir():
            raise UsageError(f"there is no folder {folder}", remedy="make it first")
        if real_path(target) == real_path(args.files[0]):
            raise UsageError("--annotate would replace the trace itself", remedy="another name")
