"""Damaged, packed and foreign files: what is whole is read, and what is missing is told."""

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest

from flopprof.api import analyse_traces
from flopprof.cli import main
from flopprof.errors import LoadError, UsageError
from flopprof.trace.read import read_trace
from flopprof.trace.salvage import Damage
from flopprof.trace.stream import stream_events
from tests.events import ADDMM, kernel, launch, op, with_shapes, write_trace

H100 = {"id": 0, "name": "NVIDIA H100 80GB HBM3"}


def events(count: int = 10) -> list[dict[str, Any]]:
    """Return `count` products, one each second, without anything else."""
    return [with_shapes(op("aten::addmm", n * 1e6, 10), ADDMM) for n in range(count)]


def noise(seed: int) -> str:
    return random.Random(seed).randbytes(200).hex()


def text_of(listed: list[Any], **header: Any) -> str:
    return json.dumps({**header, "traceEvents": listed})


def read(tmp_path: Path, content: str | bytes, name: str = "t.json") -> Any:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_trace(path)


def warned(trace: Any, *parts: str) -> bool:
    return any(all(part in text for part in parts) for text in trace.info["warnings"])


# Damage inside one event, the sixth (number 6) of ten, 4 s behind the first (the fifth is at 4 s).


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "nan", "-inf"])
def test_a_length_that_is_no_number_costs_its_event_alone(tmp_path, value):
    text = text_of(events(), deviceProperties=[H100])
    at = text.index('{"ph": "X"', text.index('"ts": 4000000.0'))
    broken = text[:at] + text[at:].replace('"dur": 10', f'"dur": {value}', 1)

    trace = read(tmp_path, broken)

    assert len(trace.ops) == 9
    assert trace.ops["matmul_flops"].sum() == 9 * 240
    assert trace.devices == [H100]
    assert warned(trace, "1 event is missing", "event 6 ", f"byte {at}", "4.000000 s")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "[1, NaN]", "None"])
def test_an_argument_that_is_no_number_is_left_out_and_its_event_read(tmp_path, value):
    listed = events()
    listed[5]["args"]["occupancy"] = "HERE"
    trace = read(tmp_path, text_of(listed).replace('"HERE"', value))

    assert len(trace.ops) == 10
    assert trace.ops["matmul_flops"].sum() == 10 * 240
    assert warned(trace, "no JSON", "in 1 events", "event 6 ", "4.000000 s")


@pytest.mark.parametrize(
    "path", [r"C:\Users\me\x.py", r"C:\uno\x", r"D:\data\new", r"\\server\share", "C:\\dir\\"]
)
def test_paths_with_lone_backslashes_are_read(tmp_path, path):
    listed = events()
    listed[5]["args"]["file"] = "HERE"
    trace = read(tmp_path, text_of(listed).replace("HERE", path))

    assert len(trace.ops) == 10
    assert trace.ops["matmul_flops"].sum() == 10 * 240


@pytest.mark.parametrize("raw", [b"\n", b"\t", b"\x00", b"\xff\xfe", b"\\ud800", b"\\udc00x"])
def test_texts_with_raw_bytes_and_lone_surrogates_are_read(tmp_path, raw):
    listed = events()
    listed[5]["args"]["text"] = "HERE"
    trace = read(tmp_path, text_of(listed).encode().replace(b"HERE", b"a" + raw + b"b"))

    assert len(trace.ops) == 10


@pytest.mark.parametrize(
    "damage",
    [
        lambda event: event.replace('"name"', '"name', 1),
        lambda event: event.replace('"args": {', '"args": ', 1),
        lambda event: event.replace(": ", " ", 1),
        lambda event: event[:40],
        lambda event: event[:40] + "\x00" * 20,
        lambda event: event.replace("}", "]", 1),
        lambda event: event.replace('"X"', "X", 1),
    ],
)
def test_a_broken_event_costs_itself_alone(tmp_path, damage):
    listed = [json.dumps(event) for event in events()]
    listed[5] = damage(listed[5])
    text = '{"traceEvents": [' + ",\n".join(listed) + '], "deviceProperties": [{"name": "X"}]}'

    trace = read(tmp_path, text)

    assert len(trace.ops) == 9
    assert trace.info["span_us"] == 9e6 + 10
    assert warned(trace, "missing", "event 6 ", "4.000000 s")
    assert trace.devices == [{"name": "X"}]


def test_damage_in_many_chunks_is_counted(tmp_path):
    filler = "x" * 2000
    listed = [json.dumps(op("aten::relu", n, 1, filler=filler)) for n in range(3000)]  # 6 MB
    for n in range(100, 3000, 100):
        listed[n] = listed[n].replace('"dur": 1', '"dur": NaN')

    trace = read(tmp_path, '{"traceEvents": [' + ", ".join(listed) + "]}")

    assert len(trace.ops) == 3000 - 29
    assert warned(trace, "29 events are missing", "event 101 ")


def test_a_trace_cut_off_is_read_up_to_there(tmp_path):
    text = text_of(events(), deviceProperties=[H100])
    at = text.index('{"ph": "X"', text.index('"ts": 4000000.0'))

    trace = read(tmp_path, text.replace('"traceEvents"', '"traceEvents"')[: at + 30])

    assert len(trace.ops) == 5
    assert warned(trace, "is cut off inside event 6 ", f"byte {at}", "4.000000 s", "missing")


def test_a_trace_cut_off_between_events_says_so(tmp_path):
    text = text_of(events())
    at = text.index('{"ph": "X"', text.index('"ts": 4000000.0'))

    trace = read(tmp_path, text[:at].rstrip(", "))

    assert len(trace.ops) == 5
    assert warned(trace, "is cut off before event 6 ", "missing")


def test_a_bare_list_needs_no_end(tmp_path):
    trace = read(tmp_path, json.dumps(events())[:-1] + ",")

    assert len(trace.ops) == 10
    assert trace.info["warnings"] == []


def test_a_byte_order_mark_is_no_damage(tmp_path):
    trace = read(tmp_path, b"\xef\xbb\xbf" + text_of(events(), deviceProperties=[H100]).encode())

    assert (len(trace.ops), trace.devices, trace.info["warnings"]) == (10, [H100], [])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_trace_that_a_redirection_wrote_in_utf_16_is_read(tmp_path, encoding):
    text = text_of(events(), deviceProperties=[H100])
    mark = "" if encoding == "utf-16" else "\ufeff"
    trace = read(tmp_path, (mark + text).encode(encoding))

    assert (len(trace.ops), trace.devices, trace.info["warnings"]) == (10, [H100], [])


def test_a_damaged_header_costs_the_header_alone(tmp_path):
    text = '{"a": oops, "traceEvents": ' + json.dumps(events()) + ', "b": oops}'
    trace = read(tmp_path, text)

    assert len(trace.ops) == 10
    assert warned(trace, "before its traceEvents")
    assert warned(trace, "behind its traceEvents")


def test_a_header_with_nan_is_read(tmp_path):
    text = '{"x": NaN, "deviceProperties": [{"name": "A"}], "traceEvents": ' + json.dumps(events())
    trace = read(tmp_path, text + ', "y": Infinity}')

    assert trace.devices == [{"name": "A"}]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_files_that_are_cut_off_are_read_up_to_there(tmp_path, pack):
    # Random-like texts, so that the packed file is long and half of it holds many events.
    listed = [op("aten::relu", n * 1e6, 1, text=noise(n)) for n in range(6000)]
    packed = pack(text_of(listed).encode())

    trace = read(tmp_path, packed[: len(packed) * 2 // 3], "t.json.gz")

    assert 100 < len(trace.ops) < 6000
    assert warned(trace, "is cut off", "event ")


def test_a_gzip_file_damaged_inside_is_read_up_to_there(tmp_path):
    listed = [op("aten::relu", n * 1e6, 1, text=noise(n)) for n in range(6000)]
    packed = bytearray(gzip.compress(text_of(listed).encode()))
    half = len(packed) // 2
    packed[half : half + 2000] = bytes(2000)

    trace = read(tmp_path, bytes(packed), "t.json.gz")

    assert 100 < len(trace.ops) < 6000
    assert trace.info["warnings"]


@pytest.mark.parametrize(
    "content",
    [
        b'{"traceEvents": [NaN]}',
        b'{"traceEvents": [{"ph": "X", "name": "aten::relu", "dur": NaN, "ts": 1}]}',
        b'{"traceEvents": ' + b'[{"a":' * 50_000,
        gzip.compress(b'{"traceEvents": [{"ph"')[:-9],
        b"PK\x03\x04" + bytes(100),
        gzip.compress(
            gzip.compress(gzip.compress(gzip.compress(gzip.compress(gzip.compress(b"x")))))
        ),
        bz2.compress(b""),
        b"\xfd7zXZ\x00" + bytes(50),
        b"(\xb5/\xfd" + bytes(50),
        b"7z\xbc\xaf\x27\x1c" + bytes(50),
        bytes(600),
    ],
)
def test_where_nothing_is_whole_the_file_is_refused(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content)

    with pytest.raises(LoadError) as caught:
        read_trace(path)

    assert "bad.json" in caught.value.problem
    assert caught.value.remedy


# Linear time: each of these took minutes, or did not end, when it was quadratic.


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("},{", 1_000_000),
        ('},{\\"ph\\":', 200_000),
        ("}, {", 200_000),
        ("}" + " " * 20, 200_000),
        ('\\"', 200_000),
        ("\\\\", 200_000),
        ('},{\\\\\\"a\\":', 200_000),
    ],
)
@pytest.mark.parametrize("value", ["1", "NaN"])
def test_a_text_of_braces_takes_linear_time(tmp_path, text, times, value):
    event = json.dumps(op("aten::relu", 1, 1, n="VALUE", a="TEXT"))
    event = event.replace('"VALUE"', value).replace("TEXT", text * times)

    assert len(read(tmp_path, '{"traceEvents": [' + event + "]}").ops) == 1


@pytest.mark.parametrize(
    "inner",
    ['{"a": 1},', "{},", "[],", "[", "{", '{"ph": "X"},', '{"a":[', "}, ", '"', "\\", "]"],
)
def test_odd_structure_takes_linear_time(tmp_path, inner):
    good = json.dumps(op("aten::relu", 0, 1))
    content = '{"traceEvents": [' + good + ', {"a": NaN, "b": [' + inner * 300_000 + "]}, " + good

    assert len(read(tmp_path, content).ops) >= 1


@pytest.mark.parametrize("category", ["user_annotation", "python_function", "cpu_op"])
def test_deep_nesting_takes_memory_and_time_by_events_not_by_depth(tmp_path, category):
    depth = 20_000
    around = {"python_function": "nn.Module: ", "cpu_op": "Custom"}.get(category, "")
    nested = [
        op(f"{around}Layer_{n}", n, 3 * depth - 2 * n) | {"cat": category} for n in range(depth)
    ]
    inner = [op("aten::relu", n + 0.5, 0.1) for n in range(depth)]

    tracemalloc.start()
    trace = read(tmp_path, text_of([*nested, *inner]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert len(trace.ops) == depth
    assert peak < 300e6  # 5.4 GB for 5,000, when a path was joined whole at each level
    if category != "cpu_op":
        assert trace.ops["module_path"].str.startswith("Layer_0.Layer_1").iloc[5]
        assert trace.ops["module_path"].str.len().max() <= 1000


# Containers.


def zipped(**members: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), content)
    return packed.getvalue()


def tarred(**members: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


TRACE = text_of(events(), deviceProperties=[H100]).encode()


@pytest.mark.parametrize(
    "content",
    [
        zipped(t_json=TRACE),
        zipped(folder__t_json=TRACE, folder__readme_txt=b"hello"),
        zipped(t_json_gz=gzip.compress(TRACE)),
        zipped(t_json=TRACE, folder___hidden_json=b"x"),
        zipped(trace=TRACE),
        gzip.compress(gzip.compress(TRACE)),
        gzip.compress(TRACE[:200]) + gzip.compress(TRACE[200:]),
        gzip.compress(TRACE) + bytes(512),
        bz2.compress(TRACE),
        lzma.compress(TRACE),
        tarred(t_json=TRACE),
        gzip.compress(tarred(t_json=TRACE, notes_txt=b"hello")),
        bz2.compress(tarred(t_json_gz=gzip.compress(TRACE))),
    ],
)
def test_a_trace_is_found_in_whatever_holds_it(tmp_path, content):
    trace = read(tmp_path, content)

    assert len(trace.ops) == 10
    assert trace.devices == [H100]
    assert trace.info["warnings"] == []


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_of_several_traces_in_an_archive_one_must_be_named(tmp_path, capsys, monkeypatch, pack):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ("two.zip" if pack is zipped else "two.tar")
    path.write_bytes(pack(a_json=TRACE, b_json=text_of(events(3)).encode()))

    with pytest.raises(UsageError, match=r"holds 2 files: a\.json, b\.json") as caught:
        read_trace(path)

    assert f"flopprof trace {path}/a.json" in caught.value.remedy
    assert len(read_trace(path / "b.json").ops) == 3
    assert main(["trace", str(path)]) == 2
    assert main(["trace", str(path / "c.json")]) == 2
    assert "holds no c.json" in capsys.readouterr().err


def test_the_command_reads_a_zip(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    busy = [*events(2), launch(1, 5), kernel(1, 100, 30)]
    content = text_of(busy, deviceProperties=[H100]).encode()
    (tmp_path / "issue.zip").write_bytes(zipped(t_json=content))

    assert main(["trace", "issue.zip", "--annotate", "out.json"]) == 0

    after = json.loads((tmp_path / "out.json").read_text())
    assert any("FLOPs" in e.get("args", {}) for e in after["traceEvents"])


def test_an_annotated_trace_of_a_damaged_one_has_what_is_whole(tmp_path):
    text = text_of(events()).replace('"dur": 10', '"dur": NaN', 1)
    header: dict[str, Any] = {}
    path = tmp_path / "t.json"
    path.write_text(text)

    damage = Damage()
    chunks = list(stream_events(path, header, damage))

    assert sum(map(len, chunks)) == 9
    assert damage.missing == 1


# Foreign files are named for what they are.

FOREIGN = {
    "JAX": [
        {"ph": "M", "pid": 3, "name": "process_name", "args": {"name": "/device:GPU:0"}},
        {"ph": "X", "pid": 3, "tid": 1, "ts": 1.0, "dur": 2.0, "name": "fusion.1"},
    ],
    "ONNX Runtime": [
        {"cat": "Session", "pid": 1, "tid": 1, "dur": 5, "ts": 1, "ph": "X", "name": "model_run"},
        {
            "cat": "Node",
            "pid": 1,
            "tid": 1,
            "dur": 5,
            "ts": 1,
            "ph": "X",
            "name": "conv_kernel_time",
        },
        {"cat": "Kernel", "pid": 1, "tid": 1, "dur": 5, "ts": 1, "ph": "X", "name": "gemm"},
    ],
    "memory timeline": [[1, 2, 3], [[0, 1, 2], [0, 2, 3], [0, 0, 1]]],
    "web browser": [{"cat": "devtools.timeline", "ph": "X", "ts": 1, "dur": 1, "name": "Task"}],
    "before 2021": [{"pid": "CPU functions", "ph": "X", "ts": 1, "dur": 1, "name": "aten::add"}],
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_foreign_trace_is_named_for_what_it_is(tmp_path, kind, wrapped):
    content = FOREIGN[kind]
    if wrapped and kind != "memory timeline":
        content = {"displayTimeUnit": "ns", "traceEvents": content}
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content))

    with pytest.raises(LoadError) as caught:
        read_trace(path)

    assert kind in caught.value.problem
    assert "torch.profiler" in caught.value.remedy or "export_chrome_trace" in caught.value.remedy


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"SQLite format 3\0" + bytes(100), "Nsight Systems"),
        (b'{"schema": "1.1.1-chakra.0.0.4", "pid": 1, "nodes": []}', "Chakra"),
        (b'\x18\0\0\0\0\0\0\0\xa3\x7fK"\t\0\0\xc0~\xe5\x1f\xdaA\x1a\rbrain.Event:2', "TensorBoard"),
        (b'{"$schema": "https://www.speedscope.app/file-format-schema.json"}', "py-spy"),
        (b'{"segments": [{"device": 0, "address": 1, "total_size": 2097152}]}', "memory snapshot"),
        (b"[[1700000000000, 0, [33554432], 1], [1700000000001, 1, [4], 2]]", "memory timeline"),
    ],
)
def test_a_foreign_file_is_named_for_what_it_is(tmp_path, capsys, content, kind):
    path = tmp_path / "t.json"
    path.write_bytes(content)

    assert main(["trace", str(path)]) == 3
    assert kind in capsys.readouterr().err


def test_a_pickled_memory_snapshot_is_named(tmp_path, capsys):
    import pickle

    path = tmp_path / "snapshot.pickle"
    path.write_bytes(pickle.dumps({"segments": [], "device_traces": []}))

    assert main(["trace", str(path)]) == 3
    assert "a memory snapshot by PyTorch" in capsys.readouterr().err


def test_a_folder_names_the_traces_in_it(tmp_path, capsys):
    write_trace(tmp_path / "w.123.pt.trace.json", *events(1))

    assert main(["trace", str(tmp_path)]) == 2
    assert "w.123.pt.trace.json" in capsys.readouterr().err


def test_a_name_that_is_no_text_is_read_and_shown_escaped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = Path("in\udcff.json")
    busy = [*events(2), launch(1, 5), kernel(1, 100, 30)]
    path.write_text(text_of(busy, deviceProperties=[H100]))

    assert main(["trace", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "in\\xff.json" in printed
    assert main(["trace", str(path), "--json"]) == 0
    assert "\\udcff" not in json.loads(capsys.readouterr().out)["traces"][0]
    assert main(["trace", "no\udcff.json"]) == 2
    assert "No such file" in capsys.readouterr().err


def test_a_damaged_trace_is_a_run_with_its_warning(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(text_of(events()).replace('"dur": 10', '"dur": NaN', 1))

    run = analyse_traces(path)

    assert run.sites["matmul_flops"].sum() == 9 * 240
    assert any("1 event is missing" in text for text in run.provenance.warning_texts)


def test_a_zip_that_was_cut_is_read_up_to_there(tmp_path):
    listed = [op("aten::relu", n * 1e6, 1, text=noise(n)) for n in range(6000)]
    packed = zipped(folder__t_json=text_of(listed).encode())

    trace = read(tmp_path, packed[: len(packed) // 2], "t.zip")

    assert 1000 < len(trace.ops) < 6000
    assert any("zip archive is cut off" in text for text in trace.info["warnings"])


def test_a_zip_without_its_directory_is_read_as_far_as_its_first_file(tmp_path):
    listed = [op("aten::relu", n * 1e6, 1, text=noise(n)) for n in range(100)]
    packed = zipped(t_json=text_of(listed).encode(), more_json=b"{}")

    trace = read(tmp_path, packed[: packed.index(b"PK\x03\x04", 4) + 20], "t.zip")

    assert len(trace.ops) == 100


def test_memory_as_a_float_is_a_size_and_impossible_shapes_are_no_lack_of_shapes(tmp_path):
    device = H100 | {"totalGlobalMem": 85e9}
    odd = with_shapes(op("aten::mm", 0, 10), {"Input Dims": [1, 2]})

    trace = read(tmp_path, text_of([odd], deviceProperties=[device]).encode(), "t.json")

    assert trace.devices[0]["totalGlobalMem"] == 85_000_000_000
    assert trace.info["has_shapes"]
    assert len(trace.info["warnings"]) == 1  # of the shapes that are none
