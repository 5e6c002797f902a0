"""What starts the command line: its help, what is imported for it, and the command it records."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import flopprof
from flopprof.cli import COMMANDS, main
from flopprof.metafile import encode
from tests.events import ADDMM, op, with_shapes, write_trace


def imported(*arguments: str) -> set[str]:
    """Return the modules in memory after a command, in a process of its own."""
    code = (
        "import sys\nfrom flopprof.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    return set(subprocess.run(command, capture_output=True, text=True).stderr.split())


def test_help_lists_every_subcommand_with_its_first_line(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])

    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert {name for name, _ in COMMANDS.items()} >= {"run", "count", "trace", "report", "diff"}
    for name, define in COMMANDS.items():
        first = (define.__doc__ or "").partition("\n")[0].rstrip(".")
        assert f"{name} {first}" in text


def test_help_imports_nothing_that_a_subcommand_needs():
    heavy = {"flopprof.model", "flopprof.capture", "flopprof.run", "numpy", "pandas", "torch"}

    assert not heavy & imported("--help")


def test_a_subcommand_imports_no_other():
    modules = imported("check", "--help")

    assert "flopprof.cli.check" in modules
    assert not {"flopprof.cli.run", "flopprof.cli.inspect", "flopprof.cli.options"} & modules


def test_what_a_command_loaded_is_not_searched_for_garbage_at_its_exit():
    code = (
        "import atexit, gc, sys\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"
        "from flopprof.__main__ import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=True
    )

    version, frozen = done.stdout.splitlines()
    assert version.startswith("flopprof ")
    assert frozen == "True"  # and what others registered for the exit is called as ever


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["model"], "invalid choice: 'model'"),  # a file in cli/, and no subcommand
        (["--jso", "check", "x"], "--jso"),
        ([], "no COMMAND was given"),
        ([""], "invalid choice: ''"),
    ],
)
def test_what_is_no_subcommand_is_refused(arguments, says, capsys):
    assert main(arguments) == 2

    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["coutn", "x"], "did you mean count? See flopprof --help"),
        (["run", "x", "--treads", "1"], "did you mean --threads? See flopprof run --help"),
        (["run", "x", "--zzzz"], "flopprof run --help"),
        (["run", "x", "threads"], "flopprof run --help"),  # a second model, and no option
    ],
)
def test_a_misspelled_word_is_told_with_the_one_that_is_meant(arguments, remedy, capsys):
    assert main(arguments) == 2

    assert capsys.readouterr().err.splitlines()[1] == f"  {remedy}"


def test_options_stand_before_the_subcommand_too(capsys):
    assert main(["--json", "report", "nowhere"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2
    assert main(["--version", "report", "nowhere"]) == 0


@pytest.mark.filterwarnings("default::UserWarning")
def test_the_command_is_recorded_only_where_the_command_line_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["x.py", "--lr", "1e-3", "--token", "SECRET"])
    path = write_trace(tmp_path / "a b.json", with_shapes(op("aten::addmm", 0, 10), ADDMM))

    profiled = flopprof.profile(nn.Linear(5, 6), (4, 5), repeats=1, ceilings=False)
    analysed = flopprof.analyse_traces(path)
    assert main(["trace", "a b.json", "-o", "t.flopprof"]) == 0

    for run in (profiled, analysed):
        assert "SECRET" not in encode(run.provenance).decode()
        assert "SECRET" not in run.report("html")
    recorded = json.loads(Path("t.flopprof/meta.json").read_text())["environment"]["command"]
    assert recorded == "flopprof trace 'a b.json' -o t.flopprof"


@pytest.mark.filterwarnings("default::UserWarning")
def test_ceilings_of_a_cpu_are_not_said_to_be_another_s(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write_trace(tmp_path / "t.json", with_shapes(op("aten::addmm", 0, 10), ADDMM))
    ceilings = {"version": 1, "device": {"name": "AMD EPYC", "kind": "cpu"}, "compute": []}
    for kind, told in (("cpu", False), ("cuda", True)):
        ceilings["device"] = {"name": "AMD EPYC", "kind": kind}
        Path("c.json").write_text(json.dumps(ceilings))

        assert main(["trace", str(path), "--ceilings", "c.json", "-o", "t.flopprof"]) == 0
        assert ("are those of AMD EPYC" in capsys.readouterr().out) == told
