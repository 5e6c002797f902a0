"""Trusted files run in a child process with limits; what a file is can be seen without trust."""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from torch import nn

from flopprof.cli import main
from flopprof.errors import RefusedError, UsageError
from flopprof.model import load_model, supervise, trusted
from flopprof.model.trusted import Trust, parse_bytes
from tests.model import light

MARKER = "was_executed"


class Runs:
    """Pickles to `exec(code)`."""

    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return exec, (self.code,)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "flopprof", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def contained(evil, monkeypatch, capfd):
    """Return a function that runs a command on a trusted file of this code, in a light child."""

    def run(name, code, *arguments):
        monkeypatch.setattr(trusted, "_child_command", light.child_command)
        monkeypatch.setenv("CODE", code)
        path = evil(code)
        exit_code = main([name, str(path), "--trust", *arguments])
        said = capfd.readouterr()
        return subprocess.CompletedProcess([name], exit_code, said.out, said.err)

    return run


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "net.pth"
    torch.save(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), path)
    return path


@pytest.fixture
def evil(tmp_path):
    def write(code):
        path = tmp_path / "evil.pth"
        model = nn.Sequential(nn.Linear(2, 2, bias=False))
        vars(model)["extra"] = Runs(code)
        torch.save(model, path)
        return path

    return write


def test_a_trusted_module_is_counted_in_a_child_and_announced(module):
    done = command("count", module, "--trust", "--input", "2x8", "--json")

    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["matmul_flops"] == 2 * 2 * 8 * 4
    sha256 = hashlib.sha256(module.read_bytes()).hexdigest()
    assert f"trusting {module}, sha256 {sha256}" in done.stderr
    assert "torch.nn.modules.container.Sequential" in done.stderr


@pytest.mark.parametrize(
    ("code", "limit", "said"),
    [
        ("a = []\nwhile 1: a.append(b'x' * 10**7)", ["--memory-limit", "300M"], "300 MB of mem"),
        ("while 1: pass", ["--time-limit", "1"], "more than 1 s"),
        ("import os; os.abort()", [], "ended its process with SIGABRT"),
    ],
    ids=["memory", "time", "crash"],
)
def test_a_trusted_file_is_stopped_at_its_limits(contained, tmp_path, code, limit, said):
    done = contained("run", code, *limit, "--input", "1x2")

    assert done.returncode == 6
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pth"]


def test_a_trusted_file_is_stopped_while_torch_loads_it(evil, tmp_path):
    code = "a = []\nwhile 1: a.append(b'x' * 10**7)"

    done = command("run", evil(code), "--trust", "--memory-limit", "1500M", "--input", "1x2")

    assert done.returncode == 6
    assert "1.50 GB of mem" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pth"]


def test_a_file_of_another_sum_is_refused_before_anything_runs(evil, tmp_path, capsys):
    path = evil(f"open({str(tmp_path / MARKER)!r}, 'w')")

    assert main(["count", str(path), "--trust-sha256", "0" * 64]) == 4

    assert "has the sha256 " in capsys.readouterr().err
    assert not (tmp_path / MARKER).exists()


def test_an_exported_program_runs_where_it_is_trusted(tmp_path, capsys):
    exported = torch.export.export(nn.Linear(8, 4).eval(), (torch.zeros(2, 8),))
    torch.export.save(exported, tmp_path / "net.pt2")
    path = (tmp_path / "net.pt2").rename(tmp_path / "net.bin")  # its name says nothing

    assert main(["count", str(path)]) == 4
    assert "a program by torch.export" in capsys.readouterr().err
    found = json.loads(command("count", path, "--trust", "--json").stdout)
    assert found["input"] == "2x8"
    assert found["matmul_flops"] == 2 * 2 * 8 * 4


def test_without_trust_nothing_runs(module, capsys):
    assert main(["count", str(module), "--input", "2x8"]) == 4

    assert "if you trust its author: --trust" in capsys.readouterr().err


def test_amounts_of_memory():
    assert [parse_bytes(t) for t in ("16G", "500m", "1000", "1.5K")] == [16e9, 5e8, 1000, 1500]
    for wrong in ("", "G", "many", "5X"):
        with pytest.raises(UsageError):
            parse_bytes(wrong)


def test_inspecting_a_hostile_file_names_its_dangers_and_runs_nothing(evil, tmp_path, capsys):
    path = evil(f"open({str(tmp_path / MARKER)!r}, 'w')")

    assert main(["inspect", str(path), "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "pickled_module"
    assert found["dangerous"] == ["builtins.exec"]
    assert found["parameters"] == {"float32": 4}
    assert not (tmp_path / MARKER).exists()


def test_inspecting_a_module_says_that_loading_it_runs_code(module, capsys):
    assert main(["inspect", str(module)]) == 0

    said = capsys.readouterr().out
    assert "torch.nn.modules.container.Sequential" in said
    assert "flopprof asks for --trust" in said


def test_inspecting_says_what_flopprof_rebuilds_and_counts_no_tensors_it_did_not_read(
    tmp_path, capsys
):
    torchvision = pytest.importorskip("torchvision")
    torch.save(torchvision.models.squeezenet1_1(), tmp_path / "net.pt")
    net = nn.Linear(4, 2).eval()
    with warnings.catch_warnings(action="ignore"):  # torch.jit is deprecated
        torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, (3, 3)))).save(tmp_path / "script.pt")
    torch.export.save(torch.export.export(net, (torch.ones(1, 4),)), tmp_path / "net.pt2")

    assert main(["inspect", str(tmp_path / "net.pt")]) == 0
    assert "rebuilds it from the library's own code" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "script.pt")]) == 0
    assert "DANGEROUS" not in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "net.pt2"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensors"] is None


def test_inspecting_what_is_no_model_says_what_it_is(tmp_path, capsys):
    page, cut, pipe = (tmp_path / name for name in ("page", "cut", "pipe"))
    page.write_text("<!DOCTYPE html><html></html>")
    cut.write_bytes(b"PK\x03\x04 cut")
    os.mkfifo(pipe)

    assert main(["inspect", str(page)]) == 0
    assert "an HTML page" in capsys.readouterr().out
    assert main(["inspect", str(cut)]) == 0
    assert "truncated" in capsys.readouterr().out
    assert main(["inspect", str(pipe)]) == 0
    assert "a pipe, socket or device" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "none")]) == 2


def test_inspecting_needs_no_torch(module):
    code = (
        "import sys; from flopprof.cli import main; "
        f"main(['inspect', {str(module)!r}]); assert 'torch' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_inspecting_a_plain_pickle_names_its_dangers(tmp_path, capsys):
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, ("true",)

    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))

    assert main(["inspect", str(tmp_path / "evil.pkl")]) == 0

    said = capsys.readouterr().out
    assert "DANGEROUS posix.system" in said
    assert "a plain pickle" in said


def test_a_file_whose_counters_were_cast_too_is_recognised(tmp_path, capsys):
    torchvision = pytest.importorskip("torchvision")
    state = torchvision.models.resnet18().state_dict()
    torch.save({key: value.half() for key, value in state.items()}, tmp_path / "half.pth")

    assert main(["count", str(tmp_path / "half.pth"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "torchvision:resnet18"


# Nothing of a trusted file is believed but a result, and nothing of it outlives the command.

ENDINGS = {
    "exit_0": "import os; os._exit(0)",
    "exit_3": "import os; os._exit(3)",
    "signal": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "closed_then_exit": "import os; [os.close(n) for n in (0, 1)]; os._exit(0)",
    "rubbish_then_exit": "import os; os.write(1, b'{}'); print('{\"a\": 1}'); os._exit(0)",
    "all_closed_then_exit": "import os; os.closerange(0, 99); os._exit(0)",
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_process_that_ends_without_a_result_is_no_success(name, contained):
    done = contained("count", ENDINGS[name], "--input", "1x2", "--json")

    assert done.returncode == 6
    assert json.loads(done.stdout)["error"]["exit_code"] == 6
    assert "before there was a result" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.write(1, b'rubbish')",
        "import sys; sys.__stdout__.write('rubbish')",
        "import os; os.close(1)",
        "import atexit, os; atexit.register(os._exit, 3)",
        "import sys; sys.exit = None",
    ],
)
def test_what_a_trusted_file_prints_is_not_the_answer(code, contained):
    done = contained("count", code, "--input", "1x2", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"matmul_flops": 8}


def test_what_torch_loads_neither_answers_nor_ends_the_command(evil):
    code = "import atexit, os; print('a'); os.write(1, b'a'); atexit.register(os._exit, 3)"

    done = command("count", evil(code), "--trust", "--input", "1x2", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["matmul_flops"] == 2 * 1 * 2 * 2


FORK = """
import os, time
for _ in range({children}):
    if os.fork() == 0:
        {escape}
        open({folder!r} + '/pid%d' % os.getpid(), 'w').close()
        {work}
        time.sleep(300)
        os._exit(0)
{then}
"""


def forking(tmp_path, *, children=1, escape="pass", work="pass", then="pass"):
    return FORK.format(folder=str(tmp_path), children=children, escape=escape, work=work, then=then)


def living(tmp_path):
    """Return which of the processes that left a file are still there."""
    pids = [path.name.removeprefix("pid") for path in tmp_path.glob("pid*")]
    assert pids
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]  # noqa: PTH110


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc")  # noqa: PTH112


@needs_proc
@pytest.mark.parametrize(
    "escape",
    ["pass", "os.setsid()", "os.setsid(); os.fork() and os._exit(0)"],
    ids=["child", "session", "daemon"],
)
def test_a_process_that_the_file_started_does_not_outlive_the_command(escape, contained, tmp_path):
    wait = f"while not any(n.startswith('pid') for n in os.listdir({str(tmp_path)!r})): pass"
    code = forking(tmp_path, escape=escape, then=wait)

    done = contained("count", code, "--input", "1x2", "--json")

    assert done.returncode == 0, done.stderr
    assert living(tmp_path) == []


@needs_proc
def test_the_memory_of_all_that_the_file_starts_counts(contained, tmp_path):
    # Three times 200 MB, and the process itself: no one of them is above 500 MB.
    code = forking(tmp_path, children=3, work="x = b'x' * 200_000_000", then="time.sleep(300)")

    done = contained(
        "count", code, "--memory-limit", "500M", "--time-limit", "100", "--input", "1x2"
    )

    assert done.returncode == 6
    assert "more than 500 MB of memory" in done.stderr
    assert living(tmp_path) == []


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_whatever_ends_the_command_ends_the_child(number, evil, tmp_path):
    code = forking(tmp_path, escape="os.setsid()", then="time.sleep(300)")
    waiting = subprocess.Popen(
        [sys.executable, light.__file__, "run", str(evil(code)), "--trust", "--input", "1x2"],
        env=os.environ | {"CODE": code, "PYTHONPATH": light.ROOT},
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL) if number != 9 else None,
    )  # a test run in the background ignores some, and so would its children
    wait_for(lambda: list(tmp_path.glob("pid*")))

    waiting.send_signal(number)

    waiting.wait(30)
    wait_for(lambda: not living(tmp_path))
    wait_for(lambda: {path.name[:3] for path in tmp_path.iterdir()} == {"evi", "pid"})


def wait_for(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_old_run_that_was_being_replaced_comes_back(tmp_path):
    (tmp_path / ".net.flopprof-abc-old").mkdir()
    (tmp_path / ".net.flopprof-abc").mkdir()

    supervise._clear(tmp_path / "net.flopprof", set())

    assert [path.name for path in tmp_path.iterdir()] == ["net.flopprof"]


def test_code_that_loads_without_a_child_is_refused_the_files_code(evil, tmp_path):
    path = evil(f"open({str(tmp_path / MARKER)!r}, 'w')")

    for marked in ("1", str(os.getpid())):  # as a process has them that inherited the mark
        os.environ["FLOPPROF_CONTAINED"] = marked
        try:
            with pytest.raises(RefusedError, match="only in a child process, which this is not"):
                load_model(path, trust=Trust(contained=True))
        finally:
            del os.environ["FLOPPROF_CONTAINED"]

    assert not (tmp_path / MARKER).exists()


def test_the_sum_is_compared_where_the_code_would_run(evil, tmp_path):
    path = evil(f"open({str(tmp_path / MARKER)!r}, 'w')")
    right = hashlib.sha256(path.read_bytes()).hexdigest()

    with pytest.raises(RefusedError, match="has the sha256 "):
        load_model(path, trust=Trust(sha256="0" * 64))
    assert not (tmp_path / MARKER).exists()
    load_model(path, trust=Trust(sha256=right.upper()))

    assert (tmp_path / MARKER).exists()
