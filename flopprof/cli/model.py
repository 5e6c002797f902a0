"""Arguments and loading that the subcommands on a model file share."""

import math
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopprof.cli import answer_stream
from flopprof.errors import UsageError

if TYPE_CHECKING:
    from flopprof.capture.call import Inputs
    from flopprof.capture.describe import Origin
    from flopprof.capture.training import Training
    from flopprof.model import Loaded
    from flopprof.model.trusted import Trust


def add_model_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that say which model and which input."""
    from flopprof.capture.call import SEED
    from flopprof.model.trusted import MEMORY_LIMIT, TIME_LIMIT_S

    parser.add_argument(
        "model",
        metavar="MODEL",
        help="model file: a state_dict, a checkpoint, …; or code, with random weights: "
        "torchvision:NAME, timm:NAME, FILE.py:BUILD",
    )
    parser.add_argument(
        "--arch",
        help="code for a state_dict: torchvision:NAME, timm:NAME, or FILE.py:BUILD (factory or "
        "class); default: recognised from its keys and shapes",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="choose no architecture where weights fit several that count differently",
    )
    parser.add_argument(
        "--input",
        action="append",
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="1x3x224x224, 1x3x224x224:float16, ids=1x128:int64:0-999 (values from 0 to 999); "
        "again for each further input (default: the architecture's own size, batch 1); "
        f"random values, seed {SEED}",
    )
    parser.add_argument(
        "--dtype", help="cast model and inputs: float32, bfloat16, … (default: as is)"
    )
    parser.add_argument(
        "--formulas", metavar="FILE.py", help="file with formulas for your own ops and modules"
    )
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
        default=MEMORY_LIMIT,
        metavar="BYTES",
        help="with --trust: resident memory at most, such as 500M (default: %(default)s)",
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        default=TIME_LIMIT_S,
        metavar="SECONDS",
        help="with --trust: wall time at most (default: %(default)g)",
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
    for option, given in (("loss", args.loss), ("optimizer", args.optimizer != "sgd")):
        if given and not args.train:
            raise UsageError(f"--{option} is given without --train", remedy="add --train")
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


def _trust(args: Namespace) -> "Trust | bool":
    from flopprof.model.trusted import Trust

    if not (args.trust or args.trust_sha256):
        return False
    return Trust(args.trust_sha256, contained=True)


def load(args: Namespace, *, device: str, meta: bool = False) -> "tuple[Loaded, Inputs, Origin]":
    """Return the model, its inputs and where they come from.

    Raises:
        FlopprofError: The file, the architecture or the input is not usable.
    """
    from flopprof.capture.call import SEED, Inputs, guess_input
    from flopprof.capture.describe import Origin
    from flopprof.formulas.external import load_formulas
    from flopprof.model import load_model
    from flopprof.model.inputs import make_inputs, parse_input
    from flopprof.provenance import Alternative

    if args.formulas:
        load_formulas(args.formulas)
    specs = [parse_input(text) for text in args.input or []]
    loaded = load_model(
        args.model,
        arch=args.arch,
        trust=_trust(args),
        device=device,
        dtype=args.dtype,
        meta=meta,
        strict=args.strict,
    )
    source = "--input"
    if not specs:
        hint, source = loaded.input_hint, f"canonical for {loaded.architecture}"
        if hint is None:
            hint, source = guess_input(loaded.model), "rule: what its first layer takes"
        if hint is None:
            raise UsageError(
                f"nothing says which input {loaded.architecture} takes",
                remedy="give its shape, such as --input 1x3x224x224",
            )
        specs = [parse_input(text) for text in hint.split()]
    where = next((str(t.device) for t in loaded.model.parameters()), "cpu") if meta else device
    specs = [replace(s, dtype=loaded.dtype) if s.dtype == "float32" else s for s in specs]
    positional, named = make_inputs(specs, device=where, dtype=args.dtype, seed=SEED)
    origin = Origin(
        architecture=loaded.architecture,
        architecture_source="--arch" if args.arch else loaded.recognised_by,
        alternatives=tuple(
            Alternative(
                architecture=other.name, input=other.input or None, gflops=other.gflops or math.nan
            )
            for other in loaded.alternatives
        ),
        file=f"{loaded.source} {args.model}",
        weights=loaded.weights,
        input_source=source,
        warnings=loaded.warnings,
    )
    return loaded, Inputs(positional, named), origin


def training(args: Namespace) -> "Training | bool":
    """Return how the model is trained; False where it is not."""
    from flopprof.capture.training import Training
    from flopprof.model.usercode import find_function, foreign_code

    if not args.train:
        return False
    if not args.loss:
        return Training(None, args.optimizer)
    loss = find_function(args.loss, "--loss")

    def guarded(output: Any) -> Any:
        with foreign_code(f"--loss {args.loss}, given the model's output,"):
            return loss(output)

    return Training(guarded, args.optimizer)
