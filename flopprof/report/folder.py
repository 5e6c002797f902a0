"""A run's folder: where it is by default, and the run in it with its chart and its reports."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flopprof.errors import FlopprofError, UsageError
from flopprof.files import real_path, writing
from flopprof.provenance import AnyProvenance, TraceProvenance
from flopprof.report.chart import Drawn, save_figure
from flopprof.report.chart.decode import draw_decode
from flopprof.report.html import chart_of, or_why_not, page
from flopprof.run import Run
from flopprof.saved import read_provenance
from flopprof.settings import Progress

CHART = "roofline.png"
DECODE_CHART = "decode_by_context.png"
PAGE = "report.html"
_TRACE_SUFFIXES = (".gz", ".json", ".trace", ".pt")  # as profilers write them: net.pt.trace.json.gz


@dataclass(frozen=True, slots=True)
class Saved:
    """A run and what was written of it."""

    run: Run
    folder: Path
    files: tuple[Path, ...]


def folder_of_model(name: str) -> Path:
    """Return the folder that a run of a model is written to by default.

    Args:
        name: The file's stem, or the name of what the model's code calls it.
    """
    return Path(f"{name}.flopprof")


def folder_of_trace(file: str | Path) -> Path:
    """Return the folder that the run of a trace is written to by default."""
    name = Path(file).name
    for suffix in _TRACE_SUFFIXES:
        name = name.removesuffix(suffix)
    return Path(f"{name}.flopprof")


def save_run(
    make: Callable[[], Run],
    folder: Path,
    *,
    sources: Sequence[str | Path],
    force: bool,
    progress: Progress,
) -> Saved:
    """Make a run, and write it with chart and reports into `folder`, whole or not at all.

    Args:
        make: What makes the run; called once it is known that the folder may be written.
        folder: What becomes the run's folder; a run that is there is replaced.
        sources: The files that the run is made of: the folder must hold none of them.
        force: Replace the folder even if it is no run.
        progress: Is told the stages.

    Raises:
        UsageError: The folder may not be replaced, or cannot be written.
    """
    for name in sources:
        source = real_path(name)
        if real_path(folder) in (source, *source.parents):
            raise UsageError(f"{folder} holds {name}, and is replaced", remedy="another -o DIR")
    with writing(folder, force=force) as staging:
        run = make()
        other = _other_run(folder, run.provenance)
        if other:
            warnings.warn(f"{folder} {other}: replaced; -o DIR keeps both", stacklevel=1)
        progress("drawing")
        run.write(staging)
        chart = chart_of(run)
        (staging / PAGE).write_text(page(run, chart), encoding="utf-8")
        if isinstance(chart, Drawn):
            figure = chart.figure
            or_why_not(lambda: save_figure(figure, staging / CHART))
        generation = run.provenance.generate
        if generation is not None:
            or_why_not(lambda: save_figure(draw_decode(generation), staging / DECODE_CHART))
        (staging / "report.md").write_text(run.report("md"), encoding="utf-8")
        names = sorted(path.name for path in staging.iterdir())
    return Saved(run, folder, tuple(folder / name for name in names))


def _other_run(folder: Path, now: AnyProvenance) -> str:
    """Return what the run in `folder`, if any, was of, where that is another; else ''."""
    try:
        old = read_provenance(folder)
    except FlopprofError:
        return ""
    if isinstance(old, TraceProvenance) or isinstance(now, TraceProvenance):
        is_same = _trace_files(old) == _trace_files(now)
        return "" if is_same else "held the run of another trace or model"
    if old.source.file != now.source.file:
        return f"held the run of another model, {old.source.file}"
    changes = []
    for name in ("input", "dtype", "train", "autocast", "tf32"):
        before = getattr(old.called, name)
        after = getattr(now.called, name)
        if before != after:
            changes.append(f"{name} {before}, now {after}")
    return f"held another run of this model ({'; '.join(changes)})" if changes else ""


def _trace_files(provenance: AnyProvenance) -> tuple[str, ...]:
    return provenance.trace.files if isinstance(provenance, TraceProvenance) else ()
