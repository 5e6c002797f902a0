"""What `--json` prints is what the schema, made of its types, documents."""

import json
import math
from pathlib import Path

import jsonschema
import msgspec
import pytest
import torch
from torch import nn

from flopprof.cli import main
from flopprof.report import answer
from flopprof.report.answer import JSON_BLOCKS, json_block, schema
from flopprof.report.json import to_object
from flopprof.run import SCHEMA_VERSION, Run
from tests.events import ADDMM, kernel, launch, op, with_shapes, write_trace

SMALL = Path(__file__).parents[1] / "runs" / "small.flopprof"
SCHEMA = schema()
DOCUMENTED = SCHEMA["$defs"]["Answer"]["properties"]
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def printed(capsys, *arguments, code=0):
    """Return the one object that a command prints, after checking it against the schema."""
    assert main([*map(str, arguments), "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    VALIDATOR.validate(found)
    return found


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    Path("nets.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(5, 6)\n")
    torch.save(nn.Linear(5, 6).state_dict(), "net.pth")
    return ["net.pth", "--arch", "nets.py:build", "--input", "4x5"]


def test_the_schema_is_one_and_has_the_version_of_the_objects():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    assert DOCUMENTED["schema_version"]["const"] == SCHEMA_VERSION
    assert SCHEMA["$id"] == f"urn:flopprof:json:{SCHEMA_VERSION}"


def test_every_field_is_documented(capsys):
    found = printed(capsys, "report", SMALL)

    assert found.keys() <= DOCUMENTED.keys()
    for name, field in DOCUMENTED.items():
        assert field["description"], name


def test_a_count_fits_the_schema(model, capsys):
    found = printed(capsys, "count", *model)

    # [4,5] @ [5,6]: 4·6·5 multiply-adds × 2.
    assert found["matmul_flops"] == 240
    assert found.keys() <= DOCUMENTED.keys()


@pytest.mark.slow
def test_a_run_fits_the_schema(model, capsys):
    found = printed(capsys, "run", *model, "--repeats", "1", "--warmup", "1", "--traces", "2")

    assert found["matmul_flops"] == 240
    assert 1 <= found["traced_calls"] <= 3  # three at least where time is hidden
    assert found.keys() <= DOCUMENTED.keys()


def test_a_trace_fits_the_schema(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write_trace(
        tmp_path / "t.json",
        op("ProfilerStep#1", 0, 40) | {"cat": "user_annotation"},
        with_shapes(op("aten::addmm", 0, 10), ADDMM),
        launch(1, 2),
        kernel(1, 100, 10.0, name="gemm"),
    )

    found = printed(capsys, "trace", path)

    assert found["kernels"] == 1
    assert found.keys() <= DOCUMENTED.keys()


@pytest.mark.parametrize(
    ("arguments", "code"), [(["report", "nowhere"], 2), (["--nonsense"], 2), (["report", "."], 3)]
)
def test_an_error_fits_the_schema(tmp_path, monkeypatch, capsys, arguments, code):
    monkeypatch.chdir(tmp_path)

    assert printed(capsys, *arguments, code=code)["error"]["exit_code"] == code


@pytest.mark.parametrize(
    "change",
    [
        {"flops": None},
        {"coverage_frac": 1.5},
        {"schema_version": 2},
        {"verdicts": {"fine": {"sites": 1, "time_frac": 1.0, "matmul_flops": 0}}},
        {"matmul_flops": 0.5},
    ],
)
def test_an_object_that_breaks_the_promise_does_not_fit(capsys, change):
    found = printed(capsys, "report", SMALL)

    assert not VALIDATOR.is_valid(found | change)


def test_the_schema_is_printed_for_others(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", "--schema"])

    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


def test_every_type_in_the_schema_is_strict_json_without_defaults():
    text = json.dumps(SCHEMA, allow_nan=False)

    assert '"default"' not in text
    # FLOPs are whole numbers or not known, times are numbers or not known.
    rank = SCHEMA["$defs"]["Rank"]["properties"]
    assert rank["flops"]["type"] == ["integer", "null"]
    assert rank["kernel_time_us"]["type"] == ["number", "null"]
    observer = SCHEMA["$defs"]["Observer"]
    assert observer["properties"]["drift_frac"]["description"].startswith("How much slower")
    # What is known or not is printed all the same: only what is UNSET is left out.
    assert set(observer["required"]) == {"changed_ops", "drift_frac"}
    assert "flops_at_most" not in SCHEMA["$defs"]["OpSums"]["required"]


class Peak(msgspec.Struct):
    """The most memory.

    Attributes:
        peak_bytes: Bytes at the peak,
            all of them.
        moved_flops: FLOPs.
    """

    peak_bytes: float
    moved_flops: float


@pytest.fixture
def peak_block(monkeypatch):
    monkeypatch.setattr(JSON_BLOCKS, "_items", dict(JSON_BLOCKS._items))

    @json_block("peak")
    def peak(run: Run) -> list[Peak] | None:
        """What it held at most; null where
        nothing was measured.
        """
        return [Peak(math.nan, 2.0e15)] if len(run.sites) else None


@pytest.mark.usefixtures("peak_block")
def test_a_block_is_in_the_object_and_in_the_schema():
    run = Run.load(SMALL)
    everything = schema()

    printed_object = to_object(run)

    jsonschema.Draft202012Validator(everything).validate(printed_object)
    assert printed_object["peak"] == [{"peak_bytes": None, "moved_flops": 2_000_000_000_000_000}]
    assert isinstance(printed_object["peak"][0]["moved_flops"], int)
    answer = everything["$defs"]["Answer"]
    assert answer["properties"]["peak"]["description"] == (
        "What it held at most; null where nothing was measured."
    )
    assert "peak" in answer["required"]
    fields = everything["$defs"]["Peak"]["properties"]
    assert fields["peak_bytes"]["description"] == "Bytes at the peak, all of them."
    empty = to_object(run.replaced(sites=run.sites.iloc[:0]))
    assert empty["peak"] is None


@pytest.mark.parametrize("name", ["flops", "compiled"])
def test_a_block_takes_no_name_of_a_field(name):
    with pytest.raises(ValueError, match=f"has a field '{name}'"):
        json_block(name)


def test_the_schema_that_is_kept_beside_the_types_is_theirs():
    # python -m flopprof report --schema > flopprof/report/schema.json
    kept = Path(answer.__file__).with_name("schema.json")

    assert json.loads(kept.read_text()) == SCHEMA
