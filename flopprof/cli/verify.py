"""`flopprof verify`: compare what was counted with what was executed."""

from argparse import SUPPRESS, ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from flopprof.cli import Handler, Progress, command, print_json
from flopprof.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flopprof.run import Run
    from flopprof.settings import Progress as Told
    from flopprof.settings import Settings
    from flopprof.stepped import SteppedOp


@command("verify")
def verify(parser: ArgumentParser) -> Handler:
    """Compare what was counted with what the hardware executed.

    example: flopprof verify resnet18.flopprof --counters counters.csv -o verified.flopprof
             flopprof verify torchvision:resnet18 --device cuda
             flopprof verify aten::mm aten::conv2d --device cpu
    """
    from flopprof.cli.options import add_measuring_arguments, add_model_arguments

    parser.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        help="with --counters: a folder written by flopprof run or trace, or a trace, or nothing; "
        "else a model, to run under counters: MODEL as for flopprof run; with --device cpu a "
        "model or ops, such as aten::mm, to step through one thread",
    )
    parser.add_argument(
        "--counters",
        nargs="+",
        metavar="FILE",
        help="hardware counters: CSV of Nsight Compute, .ncu-rep, rocprofv3, rocprof-compute",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="write the run with its counters; with --device cpu: profile the model, and step its "
        "ops without formula",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace DIR even if it is no run; step what takes more than a minute",
    )
    parser.add_argument(
        "--shapes",
        action="append",
        metavar="ARGUMENTS",
        help="of ops: their arguments in order, such as 32x32,32x32 or "
        "1x16x8x8,16x16x3x3,None,[2,2]; again for other ones (default: small ones of ours)",
    )
    parser.add_argument(
        "--annotate", metavar="OUT", help="of a trace: write it again, with what was executed in it"
    )
    parser.add_argument("--ranges", metavar="DIR", help=SUPPRESS)  # for itself, below a profiler
    add_model_arguments(parser, without_model=True)
    add_measuring_arguments(parser)
    return _handle


def _handle(args: Namespace) -> int:
    """Join counters, step ops, or run a model under counters, by what is named and given."""
    if args.counters:
        return _join(args) if args.what else _show_launches(args)
    if not args.what:
        raise UsageError(
            "nothing to verify was named", remedy="flopprof verify RUN --counters FILE; see --help"
        )
    if any("::" in name for name in args.what):
        return _step_ops(args)
    return _measure(args)


def _only(args: Namespace) -> str:
    """Return the one thing that is named.

    Raises:
        UsageError: Several are.
    """
    if len(args.what) > 1:
        raise UsageError(f"{len(args.what)} were named: {', '.join(args.what)}", remedy="name one")
    return str(args.what[0])


def _measure(args: Namespace) -> int:
    """Run a model where its work can be counted by hardware."""
    from flopprof.cli.options import contain, settings_of

    args.model = _only(args)
    if args.compile:
        raise UsageError("compiled code is not verified", remedy="leave out --compile")
    settings = settings_of(args)
    if (code := contain(args, Path(args.output) if args.output else None)) is not None:
        return code
    if args.ranges:
        from flopprof.verified import make_ranged_call

        make_ranged_call(args.model, settings, args.ranges)
        return 0
    if args.device == "cpu":
        return _step_model(args, settings)
    if not str(args.device).startswith("cuda") and not _is_gpu(args.device):
        raise UsageError(
            f"nothing here counts what {args.device} executes",
            remedy="--device cpu steps through one thread; --device cuda; or join counters of "
            "elsewhere: --counters FILE",
        )
    from flopprof.verified import verify_under_ncu

    with Progress() as progress:
        return _finish(
            args,
            lambda: verify_under_ncu(args.model, settings, args.arguments, progress),
            sources=[args.model],
            progress=progress,
        )


def _step_ops(args: Namespace) -> int:
    """Step ops through one thread of the CPU."""
    from flopprof.stepped import step_ops

    models = [name for name in args.what if "::" not in name]
    if models:
        raise UsageError(f"{models[0]} is no op like the others", remedy="name ops, or one model")
    if args.device not in ("cpu", "auto"):
        raise UsageError(f"ops are stepped on a CPU, not on {args.device}", remedy="--device cpu")
    _refuse_what_is_not_stepped(args, "output", "train")
    if args.formulas:
        from flopprof.formulas.external import load_formulas

        load_formulas(args.formulas)
    with Progress() as progress:
        rows = step_ops(
            args.what,
            shapes=args.shapes or (),
            dtype=args.dtype,
            force=args.force,
            progress=progress,
        )
        progress("done")
    return _show_stepped(args, rows)


def _step_model(args: Namespace, settings: "Settings") -> int:
    """Step the ops of a model through one thread of the CPU; with -o those that nothing counts."""
    from flopprof.stepped import step_model

    _refuse_what_is_not_stepped(args)
    if args.shapes:
        raise UsageError("--shapes is for ops", remedy="give a model's input by --input")
    if args.output:
        return _save_stepped(args, settings)
    with Progress() as progress:
        rows = step_model(args.model, settings, force=args.force, progress=progress)
        progress("done")
    return _show_stepped(args, rows)


def _save_stepped(args: Namespace, settings: "Settings") -> int:
    """Profile a model on the CPU, and step what nothing counts of it."""
    from flopprof.verified import verify_by_stepping

    with Progress() as progress:

        def make() -> "Run":
            return verify_by_stepping(args.model, settings, force=args.force, progress=progress)

        return _finish(args, make, sources=[args.model], progress=progress)


def _refuse_what_is_not_stepped(args: Namespace, *others: str) -> None:
    """Raise `UsageError` for an option that stepping has no use for, and for `others`."""
    for option in ("annotate", "autocast", "compile", *others):
        if getattr(args, option):
            raise UsageError(
                f"--{option} does not go with stepping a CPU", remedy=f"leave out --{option}"
            )


def _show_stepped(args: Namespace, rows: "Sequence[SteppedOp]") -> int:
    from flopprof.report.stepped import stepped_object, stepped_text

    if args.json:
        print_json(stepped_object(rows))
    else:
        print(stepped_text(rows))
    return 0


def _is_gpu(name: str) -> bool:
    """Return whether a device's name, such as auto, means a GPU here."""
    from flopprof.devices import find_device

    return find_device(name).torch_device.startswith("cuda")


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

    subject = _only(args)
    is_folder = Path(subject).is_dir()
    if args.annotate and is_folder:
        raise UsageError("--annotate writes a trace again", remedy="name the trace in place of DIR")
    sources = [*args.counters] if is_folder else [*args.counters, subject]
    with Progress() as progress:

        def make() -> "Run":
            loaded = _loaded(subject, progress)
            progress("reading counters")
            return join_counters(loaded, args.counters)

        return _finish(args, make, sources=sources, progress=progress)


def _finish(
    args: Namespace, make: "Callable[[], Run]", *, sources: list[str], progress: Progress
) -> int:
    """Make a run with counters; save it and write its trace where asked for; print it."""
    from flopprof.report.folder import save_run
    from flopprof.report.launches import verified_object, verified_text
    from flopprof.report.perfetto import annotate_trace

    files: list[str] = []
    if args.output:
        saved = save_run(
            make, Path(args.output), sources=sources, force=args.force, progress=progress
        )
        verified = saved.run
        files = [str(path) for path in saved.files]
    else:
        verified = make()
    if args.annotate:
        progress(f"writing {args.annotate}")
        files.append(str(annotate_trace(args.what[0], args.annotate, verified)))
    progress("done")
    if args.json:
        print_json(verified_object(verified, files))
    else:
        print(verified_text(verified))
    return 0


def _loaded(folder_or_trace: str, progress: "Told") -> "Run":
    """Return the run that a folder or a trace is.

    Raises:
        UsageError: There is neither.
        LoadError: It is no run and no trace, or damaged.
    """
    from flopprof.run import Run

    progress(f"loading {folder_or_trace}")
    if Path(folder_or_trace).is_dir():
        return Run.load(folder_or_trace)
    from flopprof.api import analyse_traces

    return analyse_traces(folder_or_trace, progress=progress)
