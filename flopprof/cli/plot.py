"""`flopprof plot`: the roofline chart of saved runs."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from flopprof.cli import Handler, clean_lines, command, print_json


@command("plot")
def plot(parser: ArgumentParser) -> Handler:
    """Draw the roofline chart of a saved run, or of several on one chart.

    example: flopprof plot resnet18.flopprof -o roofline.svg
             flopprof plot batch1.flopprof batch8.flopprof --group-by module -o both.png
    """
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
    parser.add_argument("--dark", action="store_true", help="light on dark")

    def handle(args: Namespace) -> int:
        from flopprof.errors import UsageError
        from flopprof.report.chart import plot_roofline
        from flopprof.run import SCHEMA_VERSION, Run

        if args.top < 0:
            raise UsageError(f"--top is {args.top}", remedy="give 0 or more")
        folders = {Path(path).stem: path for path in args.runs}
        if len(folders) < len(args.runs):  # batch1/net.flopprof, batch8/net.flopprof
            folders = {path: path for path in args.runs}
        runs = {name: Run.load(folder) for name, folder in folders.items()}
        paths = plot_roofline(
            runs if len(runs) > 1 else next(iter(runs.values())),
            args.output or ["roofline.png"],
            title=args.title,
            size=args.size,
            dark=args.dark,
            top=args.top,
            group_by=args.group_by,
            level=args.level,
            measured=args.measured,
        )
        files = [str(path) for path in paths]
        if args.json:
            print_json({"schema_version": SCHEMA_VERSION, "files": files})
        else:
            print("\n".join(map(clean_lines, files)))
        return 0

    return handle
