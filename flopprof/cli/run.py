"""`flopprof run`: the whole job on one model file."""

import gc
import os
import shlex
from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from flopprof.cli import Handler, Progress, clean_lines, command, print_json, speechless
from flopprof.errors import RankError, UsageError

if TYPE_CHECKING:
    from flopprof.report.folder import Saved
    from flopprof.report.text import View
    from flopprof.run import Run
    from flopprof.settings import Settings


@command("run")
def run(parser: ArgumentParser) -> Handler:
    """Profile a model file: count, measure, reconcile, and save everything in a folder.

    example: flopprof run resnet18.pth --arch torchvision:resnet18
    """
    _add_arguments(parser)

    def handle(args: Namespace) -> int:
        from flopprof.cli.options import contain, settings_of, view_of
        from flopprof.collector import import_quickly
        from flopprof.model import model_name

        import_quickly("pandas")
        from flopprof.report.folder import folder_of_model, save_run

        settings = settings_of(args)
        view = view_of(args)
        name = model_name(args.model)
        target = Path(args.output) if args.output else folder_of_model(name)
        if (code := contain(args, target)) is not None:
            return code
        _check_processes(args)
        if args.distributed:
            return _run_together(args, settings, view, target)
        with Progress() as progress:
            saved = save_run(
                lambda: _profile_file(args.model, settings, progress),
                target,
                sources=[args.model],
                force=args.force,
                progress=progress,
            )
        print_saved(saved, view, as_json=args.json)
        return 0

    return handle


def _add_arguments(parser: ArgumentParser) -> None:
    from flopprof.cli.options import (
        add_generation_arguments,
        add_measuring_arguments,
        add_model_arguments,
        add_view_arguments,
    )

    add_model_arguments(parser)
    add_generation_arguments(parser)
    add_measuring_arguments(parser)
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="folder to write (default: MODEL's stem + .flopprof)"
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="take weights that lack keys of --arch (their values stay random) or have others",
    )
    parser.add_argument("--force", action="store_true", help="replace DIR even if it is no run")
    parser.add_argument(
        "--distributed",
        metavar="HOW",
        help="below torchrun: how its processes share the model: ddp, fsdp, tp, or "
        "FILE.py:FUNCTION, which gets the model and returns the shared one; one run is saved, with "
        "every rank in it",
    )
    add_view_arguments(parser)
    parser.set_defaults(memory=True)


def _profile_file(model: str, settings: "Settings", progress: Progress) -> "Run":
    """Return the run of a model file, in this process, which is for it alone."""
    from flopprof.api import ceilings_of_user, find_to_profile, profile_subject  # and torch

    user_ceilings = ceilings_of_user(settings)  # a fault in the file is told before long work
    subject, device = find_to_profile(model, None, None, settings, progress)
    gc.freeze()  # what is loaded is no garbage: walking its 600,000 objects takes 0.2 s each time
    return profile_subject(subject, device, settings, user_ceilings, progress)


def _check_processes(args: Namespace) -> None:
    """Refuse several processes that know nothing of each other, and one that is to be several."""
    from flopprof.capture.peers import is_started_by_torchrun

    if is_started_by_torchrun() and not args.distributed:
        raise UsageError(
            "torchrun started several processes, which would all write one folder",
            remedy="say how they share the model: --distributed ddp, fsdp or tp",
        )
    if args.distributed and "RANK" not in os.environ:
        again = shlex.join(["-m", "flopprof", *args.arguments])
        raise UsageError(
            f"--distributed {args.distributed} needs several processes, and this is one",
            remedy=f"type: torchrun --nproc-per-node 2 {again}",
        )


def _run_together(args: Namespace, settings: "Settings", view: "View", target: Path) -> int:
    """Profile this rank's part; rank 0 alone writes and prints, a fault whoever is to tell it."""
    from flopprof.capture.peers import joined_peers
    from flopprof.distributed import run_of_rank
    from flopprof.files import check_target
    from flopprof.report.folder import save_run

    try:
        with joined_peers(settings.device, "torchrun", leave=True) as peers, ExitStack() as quiet:
            if peers.rank:
                quiet.enter_context(speechless())
                run_of_rank(args.model, None, None, settings, peers)
                return 0
            check_target(target, force=args.force)  # before long work; it is made after that
            with Progress() as progress:
                run = run_of_rank(args.model, None, None, settings, peers, progress)
                saved = save_run(
                    lambda: run,
                    target,
                    sources=[args.model],
                    force=args.force,
                    progress=progress,
                )
    except RankError as error:
        if error.is_told_here:
            raise
        return error.exit_code
    print_saved(saved, view, as_json=args.json)
    return 0


def print_saved(saved: "Saved", view: "View", *, as_json: bool) -> None:
    """Print a run, and where its chart and its report are."""
    from flopprof.report.folder import CHART, PAGE
    from flopprof.report.json import to_object
    from flopprof.report.text import text_report

    if as_json:
        print_json(to_object(saved.run, [str(path) for path in saved.files]))
        return
    print(text_report(saved.run, view))
    for label, name in (("Chart", CHART), ("Report", PAGE)):
        path = saved.folder / name
        if path in saved.files:
            print(f"{label:8}{clean_lines(path)}")
