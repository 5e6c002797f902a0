"""Arguments that the subcommands on a model share, and the settings that they make."""

from argparse import ArgumentParser, Namespace
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flopprof.cli import answer_stream
from flopprof.errors import UsageError

if TYPE_CHECKING:
    from flopprof.report.text import View
    from flopprof.settings import Settings


def add_model_arguments(
    parser: ArgumentParser, *, swept: bool = False, without_model: bool = False
) -> None:
    """Add the arguments that say which model and which input.

    Args:
        parser: The subcommand's.
        swept: Whether sizes and dtype are lists, which the subcommand adds itself.
        without_model: Whether the subcommand adds the argument MODEL itself.
    """
    if not without_model:
        parser.add_argument(
            "model",
            metavar="MODEL",
            help="model file: a state_dict, a checkpoint, …; or code, with random weights: "
            "PLACE:NAME, as for --arch",
        )
    _add_architecture(parser)
    _add_input(parser)
    if not swept:
        _add_sizes(parser)
    _add_training(parser)
    _add_trust(parser, swept=swept)


def _add_architecture(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--arch",
        metavar="PLACE:NAME",
        help="code for a file's weights: FILE.py:BUILD or package.module:Class (factory or class), "
        "with arguments: \"package.module:Class('tiny', depth=2)\" (literals only); or a name of "
        "a library that is installed: torchvision:, timm:, ultralytics:, open_clip:, smp:, "
        "diffusers:; default: recognised from keys and shapes",
    )
    parser.add_argument(
        "--arch-args",
        metavar="JSON",
        help="""keyword arguments for that code: '{"model": "tiny"}' (literals only)""",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="choose no architecture where weights fit several that count differently",
    )


def _add_input(parser: ArgumentParser) -> None:
    from flopprof.capture.call import SEED

    parser.add_argument(
        "--input",
        action="append",
        metavar="[NAME=]VALUE",
        help="a tensor: 1x3x224x224, 1x3x224x224:float16, ids=1x128:int64:0-999 (values from 0 to "
        "999, both included), t=():int64 (without dimensions), t=tensor(5); or a value: sr=16000, "
        "flag=True, x=None, \"mode='fast'\", [1x3x8x8,1x3x4x4], {a:1x3,b:2}; again for each "
        "further input (default: the architecture's own, or what its first layer takes); "
        f"random values, seed {SEED}",
    )
    parser.add_argument(
        "--formulas", metavar="FILE.py", help="file with formulas for your own ops and modules"
    )


def _add_sizes(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--batch", type=int, metavar="N", help="batch of the inputs, in place of their first size"
    )
    parser.add_argument(
        "--input-size", type=int, metavar="N", help="height and width of the inputs, if pictures"
    )
    parser.add_argument(
        "--input-from",
        metavar="FILE.py:FUNCTION",
        help="function that returns the inputs: a tensor, a tuple, a dict of keyword inputs, or "
        "(args, kwargs)",
    )
    parser.add_argument(
        "--dtype", help="cast model and inputs: float32, bfloat16, … (default: as is)"
    )


def add_generation_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that say which prompt, and how many tokens to generate after it."""
    from flopprof.settings import KV_CACHES, NEW_TOKENS

    parser.add_argument(
        "--prompt-len",
        type=int,
        metavar="N",
        help="for language models of transformers: a prompt of N tokens is the input, and the "
        "tokens decoded after it are told apart: prefill and decode",
    )
    parser.add_argument(
        "--new-tokens",
        type=int,
        metavar="N",
        help=f"with --prompt-len: tokens to generate (default: {NEW_TOKENS})",
    )
    parser.add_argument(
        "--kv-cache",
        choices=KV_CACHES,
        help="with --prompt-len: a cache that grows (dynamic, the default), or one as long from "
        "the start as prompt and new tokens (static)",
    )


def _add_training(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--train",
        action="store_true",
        help="one training step: forward, loss, backward, optimizer (default: inference)",
    )
    parser.add_argument(
        "--loss",
        metavar="FILE.py:FUNCTION",
        help="with --train: maps the output to a scalar (default: the sum of the outputs)",
    )
    parser.add_argument(
        "--optimizer",
        default="sgd",
        help="with --train: sgd (default), momentum, adam, adamw, none",
    )


def _add_trust(parser: ArgumentParser, *, swept: bool) -> None:
    from flopprof.model.trusted import MEMORY_LIMIT, TIME_LIMIT_S

    parser.add_argument(
        "--trust",
        action="store_true",
        help="let the file run code (pickled modules, TorchScript), in a child process with "
        "limits: that contains crashes, and is no sandbox",
    )
    parser.add_argument(
        "--trust-sha256", metavar="SUM", help="trust the file if this is its sha256, for scripts"
    )
    parser.add_argument(
        "--memory-limit",
        default=None if swept else MEMORY_LIMIT,
        metavar="BYTES",
        help="memory of a cell at most, such as 500M (default: most of what is free)"
        if swept
        else "with --trust: resident memory at most, such as 500M (default: %(default)s)",
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        default=TIME_LIMIT_S,
        metavar="SECONDS",
        help=("of a cell" if swept else "with --trust") + ": wall time at most "
        "(default: %(default)g)",
    )


def add_measuring_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that say on what device and how often the model is called."""
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1; auto: cuda if there is one (default)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own setting)")
    parser.add_argument(
        "--compile",
        nargs="?",
        const="default",
        default=False,
        metavar="MODE",
        help="time the model compiled by torch.compile, too; MODE: max-autotune, …",
    )
    add_repeat_arguments(parser)


def add_repeat_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that say in what mode and how often to call, and ceilings."""
    from flopprof.settings import AUTOCASTS, REPEATS, TRACES, WARMUP

    parser.add_argument("--tf32", action="store_true", help="on a GPU: TF32 in float32 products")
    parser.add_argument(
        "--autocast",
        metavar="DTYPE",
        choices=AUTOCASTS,
        help="run under torch.autocast: bfloat16 or float16",
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


def add_view_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that say what of a run is printed."""
    parser.add_argument(
        "--depth", type=int, metavar="N", help="print the module tree, N levels below the model"
    )
    parser.add_argument("--top", type=int, metavar="N", help="sites to print (default: 15)")
    parser.add_argument(
        "--sort", choices=("time", "flops", "bytes", "calls"), help="what sites are sorted by"
    )
    parser.add_argument("--no-advice", action="store_true", help="do not say what to do next")


def view_of(args: Namespace) -> "View":
    """Return what of a run the arguments want to be printed.

    Raises:
        UsageError: A number is below what there can be.
    """
    from flopprof.report.text import SORTS, View

    for name in ("depth", "top"):
        number = getattr(args, name)
        if number is not None and number < 1:
            raise UsageError(f"--{name} is {number}", remedy="give at least 1")
    view = View(sort=SORTS.get(args.sort or ""), depth=args.depth)
    return view if args.top is None else replace(view, top=args.top)


def settings_of(args: Namespace) -> "Settings":
    """Return the settings that the arguments say.

    Raises:
        UsageError: One of them is refused.
    """
    from flopprof.model.trusted import Trust
    from flopprof.settings import Settings

    trusted = args.trust or args.trust_sha256
    names = {field.name for field in fields(Settings)} - {"trust"}
    options = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    return Settings(
        trust=Trust(args.trust_sha256, contained=True) if trusted else False,
        **options,
    )


def contain(args: Namespace, output: Path | None = None) -> int | None:
    """Run the command in a child process if the file is trusted; None if it is to be run here.

    Raises:
        FlopprofError: The file is not the one that is trusted, or a limit stopped it.
    """
    from flopprof.model.trusted import announce, is_contained, parse_bytes, run_contained

    memory_bytes = parse_bytes(args.memory_limit)
    if not args.time_limit > 0:
        raise UsageError(f"--time-limit is {args.time_limit}", remedy="give seconds, such as 600")
    if not (args.trust or args.trust_sha256) or is_contained():
        return None
    announce(Path(args.model), args.trust_sha256)
    exit_code, printed = run_contained(
        args.arguments,
        Path(args.model),
        memory_bytes=memory_bytes,
        time_s=args.time_limit,
        output=output,
    )
    print(printed, end="", file=answer_stream(), flush=True)
    return exit_code
