"""Write files and folders whole or not at all, and say why one cannot be written."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flopprof.errors import UsageError

_FOLDER = "choose another folder with -o"
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), f"free space or {_FOLDER}"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), f"{_FOLDER}, one you may write to"),
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR, errno.EEXIST), f"make its folder first, or {_FOLDER}"
    ),
    errno.EISDIR: "name a file in it",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "choose another name",
    errno.EILSEQ: "choose another name",
    errno.EINVAL: "choose another name",
    **dict.fromkeys((errno.EBUSY, errno.ETXTBSY), "choose another name, or wait and try again"),
    errno.EIO: _FOLDER,
}
_FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_folder() -> Path:
    """Return where what can be made again is kept for this user; it need not be there."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(folder) / "flopprof"


def real_path(path: str | Path) -> Path:
    """Return where `path` leads once links are followed; it need not be there.

    Raises:
        UsageError: Its links lead round in a circle, or it cannot be a name.
    """
    with explain_os_errors(path):
        try:
            resolved = Path(path).resolve()
            is_loop = resolved.is_symlink()
        except RuntimeError:  # of pathlib up to Python 3.12
            is_loop = True
        if is_loop:
            raise OSError(errno.ELOOP, "its links lead round in a circle")
        return resolved


def check_target(path: str | Path, *, force: bool = False) -> Path:
    """Return `path` if a run may be written there.

    Raises:
        UsageError: It is a file, or a folder that holds something other than a run.
    """
    with explain_os_errors(path):
        return _checked(Path(path), force=force)


def _checked(target: Path, *, force: bool) -> Path:
    if real_path(target) in (Path.cwd(), *Path.cwd().parents, Path.home()):
        raise UsageError(
            f"{target} is the current folder, one above it or your home; a run replaces its folder",
            remedy="choose a folder of its own with -o",
        )
    if target.is_dir() and any(target.iterdir()) and not force:
        if not (target / "meta.json").exists() or not (target / "sites.csv").exists():
            raise UsageError(
                f"{target} exists and is not a run of flopprof",
                remedy="choose another folder with -o, or add --force to replace it",
            )
    elif target.exists() and not target.is_dir() and not (force and target.is_file()):
        raise UsageError(
            f"{target} exists and is no folder", remedy="choose a folder with -o, or add --force"
        )
    return target


@contextmanager
def writing(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends, and vanishes if it raises.

    Raises:
        UsageError: `path` may not be replaced, or the disk is full or not writable.
    """
    target = real_path(check_target(path, force=force))  # what a link leads to is replaced
    with explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            yield staging
            staging.chmod(0o777 & ~_umask())
            _swap(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _swap(staging: Path, target: Path) -> None:
    """Put `staging` in the place of `target`; the old one goes only once the new one is there."""
    if not target.exists():
        staging.rename(target)
        return
    old = staging.with_name(staging.name + "-old")
    target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old) if old.is_dir() else old.unlink()


@contextmanager
def explain_os_errors(path: str | Path) -> Iterator[None]:
    """Turn an operating system's refusal to write below `path` into a `UsageError`."""
    _check_name(path)
    try:
        yield
    except (OSError, _UnwritableError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError) or not is_refusal(cause):
            raise
        fact = f"cannot be written: {str(cause.strerror).lower()}"
        if cause.errno in _FULL:
            fact = "could not be finished: the disk is full"
        remedy = _REMEDIES[cause.errno or 0]
        raise _UnwritableError(f"{path} {fact}", remedy=remedy) from cause


class _UnwritableError(UsageError):
    """The system refused what was written; a block around it names its own path instead."""


def is_refusal(error: OSError) -> bool:
    """Return whether the system refuses a path or what is written there: no fault of ours."""
    return error.errno in _REMEDIES


def _check_name(path: str | Path) -> None:
    """Raise `UsageError` where the operating system has no way to write `path` as a name."""
    try:
        is_name = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        is_name = False
    if not is_name:
        problem = f"{str(path)!r} holds a letter that no file's name can have"
        raise UsageError(problem, remedy="choose another name")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a file to write, which becomes `path` in one step when the block ends.

    What a link leads to is replaced; into a pipe or device its bytes are written.

    Raises:
        UsageError: It cannot be written.
    """
    path = Path(path)
    with explain_os_errors(path):
        special = path.exists() and not path.is_file()
        target = path if special else real_path(path)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.is_file() and not target.stat().st_mode & 0o222:  # which root might replace
            raise PermissionError(errno.EACCES, "it is read-only")
        folder = None if special else target.parent
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=path.suffix, dir=folder)
        os.close(handle)
        unfinished = Path(name)
        try:
            yield unfinished
            if special:
                target.write_bytes(unfinished.read_bytes())
            else:
                unfinished.chmod(0o666 & ~_umask())
                unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)


def _umask() -> int:
    """Return the process's mask, which can only be read by setting another."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write text or bytes to `path` in one step: readers see the old file or the new one.

    Raises:
        UsageError: It cannot be written.
    """
    with replacing(path) as unfinished:
        if isinstance(content, bytes):
            unfinished.write_bytes(content)
        else:
            unfinished.write_text(content, encoding="utf-8")
