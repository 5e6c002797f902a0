"""Turn arguments into a call, and errors into a message and an exit code; a file per subcommand."""

import argparse
import errno
import importlib
import io
import json
import os
import pkgutil
import re
import signal
import sys
import time
import warnings
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from typing import Any, Final, NoReturn, TextIO

from flopprof._version import __version__
from flopprof.errors import ExitCode, Failure, FlopprofError, UsageError
from flopprof.registry import Registry, import_all
from flopprof.stages import Stage

Handler = Callable[[Namespace], int]
COMMANDS: Registry[Callable[[ArgumentParser], Handler]] = Registry("subcommand")
INTERRUPTED: Final = 130
OUT_OF_MEMORY: Final = 6
BUG: Final = 70
LONGEST_COMMAND = 2000  # letters of a command line that a run keeps
_answer: TextIO | None = None  # where the one JSON object goes


def command(
    name: str,
) -> Callable[[Callable[[ArgumentParser], Handler]], Callable[[ArgumentParser], Handler]]:
    """Register a subcommand: a function that adds its arguments and returns its handler."""
    return COMMANDS.register(name)


class _Parser(ArgumentParser):
    """A parser whose errors are ours: one message, one remedy, and JSON where asked for."""

    subcommands: dict[str, "_Parser"]

    def error(self, message: str) -> NoReturn:
        wrong = re.match(r"argument COMMAND: invalid choice: '(.+?)'", message)
        near = _nearest(wrong[1], self.subcommands) if wrong else ""
        meant = f"did you mean {near}? See " if near else ""
        raise UsageError(message, remedy=f"{meant}{self.prog} --help")

    def parse_all(self, arguments: Sequence[str]) -> Namespace:
        """Return the arguments parsed.

        Raises:
            UsageError: Some of them are unknown, or do not fit.
        """
        args, unknown = self.parse_known_args(arguments)
        if not unknown:
            return args
        parser = self.subcommands[args.command] if args.command else self
        option = unknown[0].partition("=")[0]
        names = [name for action in parser._actions for name in action.option_strings]
        near = _nearest(option, names) if option.startswith("-") else ""
        meant = f"did you mean {near}? See " if near else ""
        fact = f"unrecognized arguments: {' '.join(unknown)}"
        raise UsageError(fact, remedy=f"{meant}{parser.prog} --help")


def _nearest(text: str, names: Iterable[str]) -> str:
    """Return the name that is most like a text, which may be misspelled; "" if none is."""
    import difflib

    return next(iter(difflib.get_close_matches(text, [*names], n=1)), "")


def make_parser(first: str = "") -> _Parser:
    """Return the parser of the whole command line.

    Args:
        first: The first argument. Where it names a subcommand, only that one's file is imported;
            for the help of all, none gets its arguments: what it would import takes time.
    """
    if first in {info.name for info in pkgutil.iter_modules(__path__)}:
        importlib.import_module(f"{__name__}.{first}")
    if first not in COMMANDS:
        import_all(__name__)
    listed_only = first in ("-h", "--help")
    parser = _Parser(
        prog="flopprof",
        description="Count a PyTorch model's FLOPs, measure how fast this device does them, and "
        "say which part of that answer is missing.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print versions and exit")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    parser.subcommands = commands.choices
    for name, define in COMMANDS.items():
        summary, _, example = (define.__doc__ or "").partition("\n\n")
        sub = commands.add_parser(
            name,
            help=summary.rstrip("."),
            description=summary,
            epilog="\n".join(line.strip() for line in example.strip().splitlines()),
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,  # an option added later would change what "--min" means
        )
        if listed_only:
            continue
        sub.set_defaults(handler=define(sub))
        sub.add_argument(
            "--json",
            action="store_true",
            default=argparse.SUPPRESS,
            help="print one JSON object on stdout",
        )
    return parser


def _version(args: Namespace) -> int:
    from importlib.metadata import PackageNotFoundError, version

    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "not installed"
    if args.json:
        print_json({"flopprof": __version__, "torch": torch})
    else:
        print(f"flopprof {__version__} (torch {torch})")
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run one subcommand and return its exit code; nothing the user can cause is a traceback."""
    as_json = "--json" in arguments
    for stream in (sys.stdout, sys.stderr):  # which may know fewer letters than we write
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    before = signal.getsignal(signal.SIGTERM)
    with _answering(as_json), warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            signal.signal(signal.SIGTERM, _interrupt)
            return _run(arguments)
        except FlopprofError as error:
            return _fail(
                error.problem,
                error.remedy,
                error.exit_code,
                as_json=as_json,
                details=error.details,
            )
        except KeyboardInterrupt:
            return _fail(
                "interrupted", "nothing half-written is left", INTERRUPTED, as_json=as_json
            )
        except BrokenPipeError:
            _discard_output()
            return 0
        except MemoryError:
            remedy = "try a smaller input or batch"
            return _fail("there is not enough memory", remedy, OUT_OF_MEMORY, as_json=as_json)
        except Exception as error:
            import traceback

            traceback.print_exc()
            remedy = "this is a bug in flopprof; report it with the lines above"
            return _fail(f"{type(error).__name__}: {error}", remedy, BUG, as_json=as_json)
        finally:
            signal.signal(signal.SIGTERM, before)


def _run(arguments: Sequence[str]) -> int:
    parser = make_parser(next((text for text in arguments if text != "--json"), ""))
    args = parser.parse_all(arguments)
    args.arguments = list(arguments)
    if args.command is None and not args.version:
        parser.error("no COMMAND was given")
    try:
        code = _version(args) if args.version else _handle(args)
        for stream in filter(None, (sys.stdout, _answer)):
            stream.flush()
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        if error.filename is not None:
            refusal = _refusal(error)
            if refusal is None:
                raise
            raise refusal from error
        _discard_output()
        raise UsageError(
            f"stdout cannot be written: {str(error.strerror).lower()}",
            remedy="free space there, or redirect it elsewhere",
        ) from error
    return code


def _refusal(error: OSError) -> UsageError | None:
    """Return what the system refused of a path that the user may have named; None for a bug."""
    from flopprof.files import is_refusal

    if error.errno == errno.ENOENT or not is_refusal(error):
        return None
    fact = f"{error.filename}: {str(error.strerror).lower()}"
    return UsageError(fact, remedy="name another file or folder")


def _handle(args: Namespace) -> int:
    """Run the subcommand; runs that it makes say by which command."""
    import shlex

    from flopprof.provenance import COMMAND
    from flopprof.units import file_text

    with ExitStack() as cleanup:
        command_line = shlex.join(["flopprof", *args.arguments])
        before = COMMAND.set(file_text(command_line, LONGEST_COMMAND))
        cleanup.callback(COMMAND.reset, before)
        if getattr(args, "no_advice", False):
            from flopprof.report.advice import SHOWN

            cleanup.callback(SHOWN.reset, SHOWN.set(False))
        code: int = args.handler(args)
    return code


def _discard_output() -> None:
    """Let the interpreter's last flush of stdout succeed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    if _answer is not None:
        os.dup2(nowhere, _answer.fileno())


@contextmanager
def _answering(as_json: bool) -> Iterator[None]:
    """With `as_json`, keep stdout for the one object: what a model prints goes to stderr."""
    global _answer
    own = sys.stdout
    is_real = own is not None and own is sys.__stdout__
    if as_json and is_real:  # code in C and C++ writes to the descriptor itself
        own.flush()
        own = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
    _answer = own
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        try:
            yield
        finally:
            _answer = None


@contextmanager
def speechless() -> Iterator[None]:
    """Run the block with nothing on stdout, and no warnings: another process says them.

    What a model prints goes to stderr.
    """
    own = sys.stdout
    with ExitStack() as cleanup:
        cleanup.enter_context(redirect_stdout(sys.stderr))
        if isinstance(own, io.TextIOWrapper) and own is sys.__stdout__:  # code in C writes past it
            own.flush()
            kept = os.dup(1)
            cleanup.callback(os.close, kept)
            cleanup.callback(os.dup2, kept, 1)
            os.dup2(2, 1)
        cleanup.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(
    problem: str,
    remedy: str,
    exit_code: ExitCode,
    *,
    as_json: bool,
    details: dict[str, Any] | None = None,
) -> int:
    if as_json:
        failure: Failure = {"error": {"problem": problem, "remedy": remedy, "exit_code": exit_code}}
        print_json({**failure, **(details or {})})
    print(f"flopprof: {clean_lines(problem)}\n  {clean_lines(remedy)}", file=sys.stderr)
    return exit_code


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"flopprof: warning: {clean_lines(message)}", file=sys.stderr)


def clean_lines(text: object) -> str:
    """Return `text`, in which a file may have had a say, fit for a terminal; its lines stay."""
    from flopprof.units import clean_text

    return "\n".join(map(clean_text, str(text).expandtabs().split("\n")))


def answer_stream() -> TextIO | None:
    """Return where a child process writes its answer: the stdout that is kept for it."""
    return _answer if _answer is not None and _answer is not sys.stdout else None


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout."""
    print(json.dumps(value, indent=1), file=_answer, flush=True)


def tell_written(paths: Iterable[object]) -> None:
    """Say on stderr which files were written: stdout has nothing but what was asked for."""
    for path in paths:
        print(f"written: {clean_lines(path)}", file=sys.stderr)


class Progress:
    """The stage under way, on stderr: on a terminal in one line, with a bar where it has steps.

    Elsewhere nothing but a line now and then of a stage with steps that takes long.
    """

    _EVERY_S = 30.0  # between two lines where there is no terminal

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._bar: Any = None  # of rich
        self._steps = 0  # of the stage that the bar is of
        self._told_s = time.monotonic()
        self._begun_s = self._told_s  # of the stage

    def __call__(self, stage: str) -> None:
        """Show `stage` in place of the last one."""
        steps = stage if isinstance(stage, Stage) and stage.total > 1 else None
        if not self._is_terminal:
            if steps is not None:
                self._tell(steps)
        elif steps is not None:
            self._show_bar(steps)
        else:
            self._clear()
            print(f"\r\x1b[K{clean_lines(stage)} …", end="", file=sys.stderr, flush=True)

    def _tell(self, stage: Stage) -> None:
        """Print a line, where the last one is long ago."""
        now_s = time.monotonic()
        if stage.done == 0:
            self._begun_s = now_s
        if now_s - self._told_s >= self._EVERY_S:
            self._told_s = now_s
            print(f"flopprof: {clean_lines(stage)}{self._left(stage)}", file=sys.stderr, flush=True)

    def _left(self, stage: Stage) -> str:
        """Return how long the rest takes if it goes on so; "" where nothing is done yet."""
        from flopprof.units import duration

        if stage.done == 0:
            return ""
        each_s = (time.monotonic() - self._begun_s) / stage.done
        return f"; about {duration(each_s * (stage.total - stage.done) * 1e6)} left"

    def _show_bar(self, stage: Stage) -> None:
        """Draw the bar anew, from here: a thread that does so would disturb what is measured."""
        from rich import progress
        from rich.table import Column

        if self._bar is None or stage.total != self._steps or stage.done == 0:
            self._clear()
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            name = Column(ratio=1, no_wrap=True, overflow="ellipsis")
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}", markup=False, table_column=name),
                progress.BarColumn(bar_width=20),
                progress.TaskProgressColumn(),
                progress.TimeRemainingColumn(elapsed_when_finished=True),
                console=_console(),
                auto_refresh=False,
                expand=True,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bar.start()
            self._steps = stage.total
            self._bar.add_task("", total=stage.total)
        task = self._bar.task_ids[0]
        self._bar.update(task, description=clean_lines(stage), completed=stage.done, refresh=True)

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_terminal:
            self._clear()
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _console() -> Any:
    """Return rich's console on stderr, in colours that a terminal takes (NO_COLOR turns off)."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)
