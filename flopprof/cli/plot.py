"""`flopprof plot`: the roofline chart of saved runs."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from flopprof.cli import Handler, command, print_json, tell_written


@command("plot")
def plot(parser: ArgumentParser) -> Handler:
    """Draw the roofline chart of a saved run, or of several on one chart.

    example: flopprof plot resnet18.flopprof -o roofline.svg
             flopprof plot batch1.flopprof batch8.flopprof --group-by module -o both.png
    """
    _add_arguments(parser)

    def handle(args: Namespace) -> int:
        from flopprof.errors import UsageError
        from flopprof.report.chart import plot_paper, plot_roofline
        from flopprof.report.chart.paper import COLUMN_INCHES
        from flopprof.run import SCHEMA_VERSION, Run

        if args.top < 0:
            raise UsageError(f"--top is {args.top}", remedy="give 0 or more")
        folders = {Path(path).stem: path for path in args.runs}
        if len(folders) < len(args.runs):  # batch1/net.flopprof, batch8/net.flopprof
            folders = {path: path for path in args.runs}
        runs = {name: Run.load(folder) for name, folder in folders.items()}
        shown = runs if len(runs) > 1 else next(iter(runs.values()))
        outputs = args.output or ["roofline.png"]
        select = {
            "top": args.top,
            "group_by": args.group_by,
            "level": args.level,
            "measured": args.measured,
        }
        if args.chart_only:
            width = COLUMN_INCHES if args.width is None else args.width
            paths = plot_paper(shown, outputs, width=width, **select)
        elif args.width is not None:
            raise UsageError("--width is given without --chart-only", remedy="add --chart-only")
        else:
            paths = plot_roofline(
                shown,
                outputs,
                title=args.title,
                size=args.size,
                dark=args.dark,
                **select,
            )
        files = [str(path) for path in paths]
        tell_written(files)
        if args.json:
            print_json({"schema_version": SCHEMA_VERSION, "files": files})
        return 0

    return handle


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("runs", metavar="DIR", nargs="+", help="folder written by flopprof run")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        action="append",
        help=".png, .svg, .pdf, or .csv for the points; may be repeated (default: roofline.png)",
    )
    parser.add_argument("--title", help="title (default: what the chart shows)")
    parser.add_argument("--top", metavar="N", type=int, default=8, help="points with a number (8)")
    parser.add_argument(
        "--group-by", default="op", help="op (default), site, module, kind, or kernel (of a GPU)"
    )
    parser.add_argument(
        "--level", help="memory that bounds the rates: dram (default), or another of the run's"
    )
    parser.add_argument(
        "--measured",
        action="store_true",
        help="also at the bytes that counters measured: of a run written by flopprof verify",
    )
    parser.add_argument("--size", default="wide", help="wide (default), compact, page (A4)")
    parser.add_argument(
        "--chart-only",
        action="store_true",
        help="the panel alone, for a paper: 300 dots per inch, no table and caption",
    )
    parser.add_argument(
        "--width",
        type=float,
        metavar="INCHES",
        help="with --chart-only: 3.3 for a column (default), 7 for a page",
    )
    parser.add_argument("--dark", action="store_true", help="light on dark")
