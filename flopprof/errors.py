"""What can go wrong, each with a remedy and an exit code (ARCHITECTURE.md, "Exit codes")."""

from typing import Any, ClassVar, Literal, NotRequired, TypedDict

from flopprof.stored import Stored

ExitCode = Literal[1, 2, 3, 4, 5, 6, 70, 130]


class Problem(TypedDict):
    """What went wrong.

    Attributes:
        problem: The fact that was found.
        remedy: What to do.
        exit_code: As ARCHITECTURE.md lists them.
    """

    problem: str
    remedy: str
    exit_code: ExitCode


class Failure(TypedDict):
    """What a command prints with `--json` when it does not do what it was asked.

    Attributes:
        error: What went wrong.
        weights: Of `count`, where no code is known for a file: what its weights say alone.
    """

    error: Problem
    weights: NotRequired[Stored]


class FlopprofError(Exception):
    """A problem the user can fix.

    Attributes:
        problem: The fact found, with the file, op or value it concerns.
        remedy: The way out: usually a command to type.
        exit_code: What the command line exits with.
        details: What can be said all the same: `weights`, what a file's tensors tell alone.
    """

    exit_code: ClassVar[ExitCode] = 2

    def __init__(self, problem: str, *, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy
        self.details: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how another process makes this error again."""
        return _error_again, (type(self), self.problem, self.remedy, self.details)


class RankError(FlopprofError):
    """One process of a job failed, which all of them are told of.

    Attributes:
        is_told_here: Whether this process is the one that tells the user: the others keep silent.
    """

    def __init__(
        self, problem: str, *, remedy: str, exit_code: ExitCode = 6, is_told_here: bool = True
    ) -> None:
        super().__init__(problem, remedy=remedy)
        self.exit_code = exit_code  # type: ignore[misc]  # that of what the process failed of
        self.is_told_here = is_told_here


class UsageError(FlopprofError):
    """Bad arguments, a missing path, a wrong shape, no CUDA, output that cannot be written."""

    exit_code = 2


class LoadError(FlopprofError):
    """A file that is not a model or a trace, or is damaged."""

    exit_code = 3


class RefusedError(FlopprofError):
    """A file that would run code, and no permission to let it."""

    exit_code = 4


class UnknownArchitectureError(FlopprofError):
    """Weights without code, and no way to tell which code they belong to."""

    exit_code = 5


class ModelError(FlopprofError):
    """The model raised while it ran."""

    exit_code = 6


class GradientsError(ModelError):
    """The model asks for gradients, and was called without them."""


def _error_again(
    kind: type[FlopprofError], problem: str, remedy: str, details: dict[str, Any]
) -> FlopprofError:
    error = kind(problem, remedy=remedy)
    error.details = details
    return error
