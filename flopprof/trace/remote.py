"""Traces by name: patterns that the shell left alone, and what lies in object storage."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from flopprof.errors import FlopprofError, LoadError, UsageError
from flopprof.files import real_path
from flopprof.trace.foreign import check_is_no_model
from flopprof.units import file_text, safe_text


def is_remote(name: str | Path) -> bool:
    """Return whether a name is an address: `s3://bucket/rank0.json.gz`."""
    return "://" in str(name)


def base_name(name: str | Path) -> str:
    """Return the last part of a path or an address."""
    return str(name).rpartition("/")[2]


def expanded(names: Sequence[str | Path]) -> list[str | Path]:
    """Return the traces that are named; a pattern stands for what it matches, in order of name.

    Raises:
        UsageError: A pattern matches nothing, or an address cannot be looked into.
    """
    traces: list[str | Path] = []
    for name in names:
        text = str(name)
        if is_remote(name):
            traces += _remote_matches(text) if has_magic(text) else [text]
        elif has_magic(text) and not Path(name).exists():
            matches = sorted(glob(text, recursive=True))  # noqa: PTH207 - a Path's glob takes no absolute one
            if not matches:
                raise UsageError(f"no file matches {file_text(text)}", remedy="check the path")
            traces += [Path(match) for match in matches]
        else:
            traces.append(Path(name))
    return traces


def named_traces(names: Sequence[str | Path]) -> list[str | Path]:
    """Return the traces that are named, each of which may be one.

    Raises:
        UsageError: As `expanded`; there is no such file, or one is named twice.
        LoadError: The only file is no trace; of several, it is told when they are read.
    """
    traces = expanded(names)
    distinct = {str(trace) if is_remote(trace) else real_path(trace) for trace in traces}
    if len(distinct) < len(traces):
        raise UsageError("one trace is given twice", remedy="give each rank's trace once")
    for trace in traces:
        with suppress(LoadError) if len(traces) > 1 else nullcontext():
            if not is_remote(trace):
                check_is_no_model(Path(trace))
    return traces


@contextmanager
def local_copy(name: str | Path) -> Iterator[Path]:
    """Yield the file itself, or for a while a copy of what lies at an address.

    Raises:
        LoadError: It cannot be fetched.
    """
    if not is_remote(name):
        yield Path(name)
        return
    files, path = _file_system(str(name))
    with tempfile.TemporaryDirectory(prefix="flopprof-") as folder:
        copy = Path(folder) / (base_name(path) or "trace.json")
        try:
            files.get_file(path, str(copy))
        except Exception as error:  # each storage has its own
            raise _cannot_be_read(str(name), error) from error
        try:
            yield copy
        except FlopprofError as error:  # it is of the file at the address
            problem = error.problem.replace(file_text(copy), file_text(str(name)))
            raise type(error)(problem, remedy=error.remedy) from error


def _remote_matches(pattern: str) -> list[str | Path]:
    files, path = _file_system(pattern)
    try:
        matches = [files.unstrip_protocol(match) for match in sorted(files.glob(path))]
    except Exception as error:  # each storage has its own
        raise _cannot_be_read(pattern, error) from error
    if not matches:
        raise UsageError(f"no file matches {file_text(pattern)}", remedy="check the address")
    return list(matches)


def _file_system(name: str) -> tuple[Any, str]:
    """Return the storage that an address is of, and the path in it.

    Raises:
        UsageError: fsspec, or its package for this storage, is not installed, or knows none.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise UsageError(
            f"{file_text(name)} is an address, and fsspec is not installed",
            remedy="pip install 'flopprof[remote]'",
        ) from error
    try:
        files, path = url_to_fs(name)
    except ImportError as error:  # "Install s3fs to access S3"
        fact = f"{file_text(name)} cannot be read: {safe_text(error)}"
        raise UsageError(fact, remedy="pip install s3fs, gcsfs or what it names") from error
    except ValueError as error:
        fact = f"{file_text(name)} cannot be read: {safe_text(error)}"
        raise UsageError(fact, remedy="give a path, or s3://, gs://, hdfs://, https://") from error
    return files, path


def _cannot_be_read(name: str, error: Exception) -> LoadError:
    message = safe_text(error) or type(error).__name__
    return LoadError(
        f"{file_text(name)} cannot be read: {type(error).__name__}: {message}",
        remedy="check the address and your credentials for it",
    )
