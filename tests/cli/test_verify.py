"""`flopprof verify`: counters alone."""

import json
import subprocess
import sys

import pytest

from flopprof.cli import main
from tests.executed.sheets import FMA, counts, long_file

FIGURES = ("executed_matmul_flops", "executed_vector_flops", "executed_int_ops")
BYTES = ("dram_bytes", "l2_bytes", "l1_bytes")


def test_launches_as_json_have_null_for_what_is_unknown(tmp_path, capsys):
    path = long_file(tmp_path, counts(add=1, mul=2, fma=3) | {"dram__bytes.sum": ("Kbyte", "1.5")})

    assert main(["verify", "--json", "--counters", str(path)]) == 0

    (launch,) = json.loads(capsys.readouterr().out)["launches"]
    assert launch["kernel"] == "k"
    assert [launch[name] for name in FIGURES] == [None, 9, None]  # 1 + 2 + 2·3
    assert [launch[name] for name in BYTES] == [1500, None, None]
    assert launch["duration_us"] is None
    assert launch["executed_source"] == "ncu"
    assert launch["metrics"]["dram"] == ["dram__bytes"]
    assert "matrix units" in launch["reason"]
    assert launch["range_id"] is None


def test_launches_as_a_table_and_no_torch_for_it(tmp_path):
    path = long_file(tmp_path, counts(add=1, mul=2) | {FMA: ("inst", "n/a")})
    code = (
        "import sys\nfrom flopprof.cli import main\ncode = main(sys.argv[1:])\n"
        "sys.exit(9 if 'torch' in sys.modules else code)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, "verify", "--counters", str(path)],
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert "at least 3" in done.stdout
    assert "2x1x1" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code"), [(["verify"], 2), (["verify", "--counters", "none.csv"], 2)]
)
def test_what_is_missing_is_said(arguments, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    assert main(arguments) == code
    assert "flopprof: " in capsys.readouterr().err
