"""`flopprof run`: the whole job on one model file."""

import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flopprof.cli import Handler, Progress, clean_lines, command, print_json

if TYPE_CHECKING:
    from flopprof.provenance import AnyProvenance
    from flopprof.run import Run


@command("run")
def run(parser: ArgumentParser) -> Handler:
    """Profile a model file: count, measure, reconcile, and save everything in a folder.

    example: flopprof run resnet18.pth --arch torchvision:resnet18
    """
    from flopprof.cli.options import add_model_arguments
    from flopprof.settings import AUTOCASTS, REPEATS, TRACES, WARMUP

    add_model_arguments(parser)
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1; auto: cuda if there is one (default)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own setting)")
    parser.add_argument("--tf32", action="store_true", help="on a GPU: TF32 in float32 products")
    parser.add_argument(
        "--autocast",
        metavar="DTYPE",
        choices=AUTOCASTS,
        help="run under torch.autocast: bfloat16 or float16",
    )
    parser.add_argument(
        "--compile",
        nargs="?",
        const="default",
        default=False,
        metavar="MODE",
        help="time the model compiled by torch.compile, too; MODE: max-autotune, …",
    )
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help="bare calls to time (default: %(default)s)"
    )
    parser.add_argument(
        "--warmup", type=int, default=WARMUP, help="calls before them (default: %(default)s)"
    )
    parser.add_argument(
        "--traces",
        type=int,
        default=TRACES,
        help="calls to trace, as many of them as two seconds take (default: %(default)s)",
    )
    parser.add_argument(
        "--ceilings", metavar="FILE", help="written by flopprof ceilings -o; goes before all others"
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="folder to write (default: MODEL's stem + .flopprof)"
    )
    parser.add_argument("--force", action="store_true", help="replace DIR even if it is no run")

    def handle(args: Namespace) -> int:
        from flopprof.ceilings.ceiling import load_ceilings
        from flopprof.cli.options import contain, settings_of
        from flopprof.files import check_target
        from flopprof.model import names_code
        from flopprof.model.detect import detect

        settings = settings_of(args)
        name = Path(args.model).stem
        if names_code(args.model):
            name = args.model.rpartition(":")[2]
        else:
            detect(Path(args.model))  # what is no file is said before the long work
        target = Path(args.output or f"{name}.flopprof")
        if args.ceilings:
            load_ceilings(args.ceilings)  # what is wrong with it is said before the long work
        check_target(target, force=args.force)
        if (code := contain(args, target)) is not None:
            return code

        def profile(progress: Progress) -> "Run":
            from flopprof.api import run_profile

            return run_profile(args.model, None, None, settings, progress)

        return deliver(args, target, profile)

    return handle


def deliver(args: Namespace, target: Path, make: "Callable[[Progress], Run]") -> int:
    """Make a run, write it with chart and report into `target`, and print it."""
    from flopprof.errors import UsageError
    from flopprof.files import check_target, real_path, writing

    check_target(target, force=args.force)
    for name in getattr(args, "files", None) or [args.model]:
        source = real_path(name)
        if real_path(target) in (source, *source.parents):
            raise UsageError(f"{target} holds {name}, and is replaced", remedy="another -o DIR")
    with Progress() as progress, writing(target, force=args.force) as folder:
        made = make(progress)
        if told := _replaced(target, made.provenance):
            warnings.warn(f"{target} {told}: replaced; -o DIR keeps both", stacklevel=1)
        progress("drawing")
        made.write(folder)
        (folder / "report.html").write_text(made.report("html"), encoding="utf-8")
        try:
            made.plot_roofline(folder / "roofline.png")
        except Exception as error:  # what was measured is not lost for want of a picture
            if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
                raise
            warnings.warn(f"no chart was drawn: {error}", stacklevel=1)
        (folder / "report.md").write_text(made.report("md"), encoding="utf-8")
        names = sorted(path.name for path in folder.iterdir())
    files = [str(target / name) for name in names]
    if args.json:
        from flopprof.report.json import to_object

        print_json(to_object(made, files))
    else:
        print(made.report("text"))
        for label, name in (("Chart", "roofline.png"), ("Report", "report.html")):
            if name in names:
                print(f"{label:8}{clean_lines(target / name)}")
    return 0


def _replaced(target: Path, now: "AnyProvenance") -> str:
    """Return what the run at `target`, if any, was of, where that is another; else ''."""
    from flopprof.errors import FlopprofError
    from flopprof.provenance import TraceProvenance
    from flopprof.saved import read_provenance

    try:
        old = read_provenance(target)
    except FlopprofError:
        return ""
    if isinstance(old, TraceProvenance) or isinstance(now, TraceProvenance):
        files = [p.trace.files if isinstance(p, TraceProvenance) else () for p in (old, now)]
        return "" if files[0] == files[1] else "held the run of another trace or model"
    if old.source.file != now.source.file:
        return f"held the run of another model, {old.source.file}"
    differ = [
        f"{name} {getattr(old.called, name)}, now {getattr(now.called, name)}"
        for name in ("input", "dtype", "train", "autocast", "tf32")
        if getattr(old.called, name) != getattr(now.called, name)
    ]
    return f"held another run of this model ({'; '.join(differ)})" if differ else ""
