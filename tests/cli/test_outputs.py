"""Output that cannot be written: exit code 2, the fact, the way out, and nothing left behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flopprof.cli import main
from flopprof.errors import UsageError
from flopprof.run import Run
from tests.builders import make_run
from tests.events import ADDMM, op, with_shapes, write_trace

LONG = "n" * 300
COMMANDS = {
    "report": (["report", "small.flopprof", "-o"], ".md"),
    "plot": (["plot", "small.flopprof", "-o"], ".png"),
    "points": (["plot", "small.flopprof", "-o"], ".csv"),
    "check": (["check", "small.flopprof", "--min-coverage", "0", "--junit"], ".xml"),
    "misses": (["misses", "small.flopprof", "--stub"], ".py"),
    "ceilings": (["ceilings", "--gpu", "H100 SXM", "-o"], ".json"),
    "trace": (["trace", "t.json", "-o"], ""),
    "annotate": (["trace", "t.json", "--annotate"], ".json"),
}
PLACES = {
    "a link loop": "loop",
    "through a link loop": "loop/x",
    "a long name": LONG,
    "a long folder": f"{LONG}/x",
    "a NUL": "a\0b",
    "a letter no name can have": "a\ud800",
    "below a file": "file/x",
    "in a folder that takes none": "/proc/x",
    "denied": "/sys/x",
    "a folder": "folder",
}


@pytest.fixture(autouse=True)
def _a_run_and_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Run.load(Path(__file__).parents[1] / "runs" / "small.flopprof").save("small.flopprof")
    write_trace(tmp_path / "t.json", with_shapes(op("aten::addmm", 0, 10), ADDMM))
    Path("file").touch()
    for suffix in {suffix for _, suffix in COMMANDS.values()}:
        Path(f"loop{suffix}").symlink_to(f"loop{suffix}")
        folder = Path(f"folder{suffix}")
        folder.mkdir()
        (folder / "mine").touch()
    before = {path.name for path in Path().iterdir()}
    yield
    after = {path.name for path in Path().iterdir()}
    assert after - {"t.flopprof"} == before  # --annotate is refused before or after the run


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.filterwarnings("default::UserWarning")
def test_what_cannot_be_written_is_refused(command, place, capsys):
    arguments, suffix = COMMANDS[command]
    target = PLACES[place] + suffix

    assert main([*arguments, target]) == 2

    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("flopprof: ") and "warning" not in line]
    assert "Traceback" not in "".join(lines)


@pytest.mark.parametrize("arguments", [["report"], ["plot"], ["misses"], ["check"], ["trace"]])
@pytest.mark.parametrize("place", ["loop", "loop/x", LONG, "a\0b", "a\ud800", "file/x", "folder"])
def test_what_cannot_be_read_is_refused(arguments, place, capsys):
    assert main([*arguments, place]) in (2, 3)

    assert "Traceback" not in capsys.readouterr().err


def test_a_full_disk_and_a_read_only_file_are_refused(capsys):
    Path("old.md").write_text("old")
    Path("old.md").chmod(0o444)

    assert main(["report", "small.flopprof", "-o", "/dev/full"]) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert main(["report", "small.flopprof", "-o", "old.md"]) == 2
    assert "it is read-only" in capsys.readouterr().err
    assert Path("old.md").read_text() == "old"
    Path("old.md").unlink()


@pytest.mark.parametrize("place", ["loop", LONG, "a\0b"])
def test_a_run_is_saved_nowhere_else(place):
    with pytest.raises(UsageError):
        make_run().save(place)
