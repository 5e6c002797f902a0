"""`flopprof misses`: what a saved run says was missed, and what to do about it."""

import warnings
from argparse import ArgumentParser, Namespace
from pathlib import Path

from flopprof.cli import Handler, command, print_json


@command("misses")
def misses(parser: ArgumentParser) -> Handler:
    """List what hooks or formulas missed in a saved run: by cause, with bounds and what to do.

    example: flopprof misses net.flopprof --stub my_formulas.py
    """
    parser.add_argument("run", metavar="DIR", help="folder written by flopprof run or trace")
    parser.add_argument(
        "--stub", metavar="FILE.py", help="write a formula to fill in for each op without one"
    )
    parser.add_argument("--force", action="store_true", help="replace FILE.py if it is there")

    def handle(args: Namespace) -> int:
        from flopprof.report.misses import missed, missed_text, stubs, to_rows
        from flopprof.run import SCHEMA_VERSION, Run, to_json, whole

        run = Run.load(args.run)
        source = stubs(run)
        if args.stub:
            _write_stub(Path(args.stub), source, force=args.force)
        if args.json:
            totals = run.totals
            answer = {
                "schema_version": SCHEMA_VERSION,
                "flops": totals.flops,
                "flops_at_most": whole(totals.flops_at_most),
                "coverage_frac": totals.coverage_frac,
                "coverage_calls_frac": totals.coverage_calls_frac,
                "misses": to_rows(missed(run)),
                "stub": source,
            }
            print_json(to_json(answer))
        else:
            print(missed_text(run))
            if source and not args.stub:
                print(f"\nFormulas to fill in (--stub FILE.py writes them):\n\n{source}")
        return 0

    return handle


def _write_stub(path: Path, source: str, *, force: bool) -> None:
    from flopprof.errors import UsageError
    from flopprof.files import write_atomically

    if not source:
        warnings.warn("no op of this run lacks a formula: no stub is written", stacklevel=1)
        return
    if path.is_file() and not force:
        raise UsageError(
            f"{path} exists, and may be filled in", remedy="name another file, or add --force"
        )
    write_atomically(path, source)
