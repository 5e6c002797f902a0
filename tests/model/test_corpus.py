"""Good, odd and hostile files: each is named for what it is, and none runs anything."""

import bz2
import contextlib
import gzip
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.package.package_exporter import PackageExporter

from flopprof.cli import main
from flopprof.errors import LoadError, RefusedError, UnknownArchitectureError, UsageError
from flopprof.model import load_model
from flopprof.model.contents import read_contents
from flopprof.model.detect import detect
from tests.model.mutations import mutate, mutate_inside

MARKER = "was_executed"


def put(data):
    return lambda path: path.write_bytes(data)


class Runs:
    """Pickles to a call of `function(*args)`."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def touch(path):
    return f"touch {path.parent / MARKER}"


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def saved(value, **options):
    return lambda path: torch.save(value, path, **options)


def hostile(make, **options):
    """Return a writer of a file whose pickle holds `make(path)`."""
    return lambda path: torch.save(make(path), path, **options)


def with_pickle(data, storages=()):
    """Return a writer of a torch.save archive with `data` as its pickle."""

    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("m/data.pkl", data)
            archive.writestr("m/version", "3\n")
            for key, content in storages:
                archive.writestr(f"m/data/{key}", content)

    return write


def tensor_pickle(shape, stride, elements, offset=0, key="0"):
    """Return the pickle of {"w": one float32 tensor} with such a storage."""
    out = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, key, "cpu", elements) if obj is storage else None

    storage = object.__new__(Runs)
    args: tuple[Any, ...] = (storage, offset, shape, stride, False, OrderedDict())
    Pickler(out, 2).dump({"w": Runs(torch._utils._rebuild_tensor_v2, *args)})
    return out.getvalue()


def zip_with(*names, compression=zipfile.ZIP_STORED):
    def write(path):
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name in names:
                archive.writestr(name, b"x" * 20)

    return write


def duplicated(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps({}, 2))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("m/data.pkl", pickle.dumps({"a": 1}, 2))


def truncated(path):
    torch.save(net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])


def legacy_truncated(path):
    torch.save(net().state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-100])


def scripted(path):
    with pytest.warns((FutureWarning, DeprecationWarning)):
        torch.jit.script(net()).save(path)


def exported(path):
    torch.export.save(torch.export.export(net().eval(), (torch.zeros(1, 3, 8, 8),)), path)


def packaged(path):
    with PackageExporter(path) as exporter:
        exporter.save_pickle("model", "model.pkl", [1])


def numpy_archive(path):
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))


def npy(shape):
    """Return a file by numpy.save of an array of this shape."""
    stream = io.BytesIO()
    np.save(stream, np.zeros(shape))
    return stream.getvalue()


def npz_of(data):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", data)

    return write


def objects_array(path):
    """Write an array of objects, which numpy would unpickle."""
    with path.open("wb") as file:
        np.save(file, np.array([Runs(os.system, touch(path))], dtype=object))


def objects_archive(path):
    objects_array(path)
    npz_of(path.read_bytes())(path)


def tar(path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"))


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return put(struct.pack("<Q", len(text) if length is None else length) + text + data)


def folder(*names):
    def write(path):
        path.mkdir()
        for name in names:
            (path / name).write_text("{}")

    return write


def entry(shape, first, last, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


DEEP = b"\x80\x02" + b")" + b"\x85" * 100_000
LAUNDERED = b"\x80\x02" + b")" + b"\x85(eNb2" * 1000  # APPENDS of nothing and BUILD of None between
STATE = {"w": torch.zeros(2, 3)}
ARCH, DAMAGED = UnknownArchitectureError, "is damaged: "

CORPUS = {
    # what can be profiled once --arch or --trust is given
    "state_dict": (saved(net().state_dict()), ARCH, "7 tensors (a state_dict) of an unknown arch"),
    "legacy": (saved(net().state_dict(), _use_new_zipfile_serialization=False), ARCH, "7 tensors"),
    "checkpoint": (saved({"epoch": 3, "model_state_dict": STATE}), ARCH, "holds 1 tensor ("),
    "nested_checkpoint": (saved({"model": {"state_dict": STATE}}), ARCH, "holds 1 tensor ("),
    "odd_wrapper": (saved({"generator": STATE, "step": 1}), ARCH, "holds 1 tensor ("),
    "module": (saved(net()), RefusedError, "pickled nn.Module (torch.nn.modules.container.Seq"),
    "module_in_checkpoint": (saved({"model": net()}), RefusedError, "a pickled nn.Module"),
    "legacy_module": (
        saved(net(), _use_new_zipfile_serialization=False), RefusedError, "a pickled nn.Module"
    ),
    "torchscript": (scripted, RefusedError, "a TorchScript archive, and loading it runs its code"),
    "safetensors": (safetensors({"w": entry([2, 3], 0, 24)}, bytes(24)), ARCH, "holds 1 tensor ("),
    # other kinds
    "export": (exported, RefusedError, "a program by torch.export"),
    "aotinductor": (zip_with("m/data/aotinductor/model/a.so"), LoadError, "by AOTInductor"),
    "package": (packaged, LoadError, "an archive by torch.package"),
    "npz": (numpy_archive, ARCH, "holds 1 tensor (NumPy arrays)"),
    "zip": (zip_with("readme.txt"), LoadError, "a zip archive without a model"),
    "empty_zip": (zip_with(), LoadError, "a zip archive without a model"),
    "numbers": (saved([1, 2, 3]), LoadError, "without weights"),
    "onnx": (put(b"\x08\x07\x12\x07pytorch"), LoadError, "an ONNX model"),
    "gguf": (put(b"GGUF\x03\x00\x00\x00" + bytes(16)), LoadError, "a GGUF file"),
    "gguf_cut": (put(b"GGUF\x03\x00\x00\x00"), LoadError, DAMAGED),
    "hdf5": (put(b"\x89HDF\r\n\x1a\n\x00"), LoadError, DAMAGED),
    "npz_objects": (objects_archive, LoadError, "without weights"),
    "npy_objects": (objects_array, LoadError, "without weights"),
    "npy_cut": (put(npy((3, 4))[:-1]), LoadError, DAMAGED),
    "npy_header": (
        put(npy((3, 4)).replace(b"'shape'", b"'shape': __import__('os')")), LoadError, DAMAGED
    ),
    "npz_cut": (npz_of(npy((3, 4))[:-1]), LoadError, DAMAGED),
    "array_pickle_cut": (
        put(pickle.dumps({"w": np.zeros(4)}, 2).replace(b"K\x04", b"K\x05")), LoadError, DAMAGED
    ),
    "tflite": (put(b"\x1c\x00\x00\x00TFL3"), LoadError, "a TensorFlow Lite model"),
    "lfs": (put(b"version https://git-lfs.github.com/spec/v1\n"), LoadError, "a Git LFS pointer"),
    "html": (put(b"\n<!DOCTYPE html><html>Sign in</html>"), LoadError, "an HTML page"),
    "json": (put(b'{"a": 1}'), LoadError, "a JSON file"),
    "index": (put(b'{"metadata": {}, "weight_map": {}}'), LoadError, "index names no files"),
    "text": (put("Größe: 1\n".encode()), LoadError, "a text file"),
    "words": (put(b"cat\ndog\nemu\n"), LoadError, "a text file"),
    "gzip": (put(gzip.compress(b"x")), LoadError, "a compressed file"),
    "bzip2": (put(bz2.compress(b"x")), LoadError, "a compressed file"),
    "tar": (tar, LoadError, "a tar archive"),
    "empty": (put(b""), LoadError, "an empty file"),
    "noise": (put(bytes(range(1, 200)) * 3), LoadError, "a format that flopprof does not know"),
    "one_byte": (put(b"\x08"), LoadError, "a format that flopprof does not know"),
    "pickle": (put(pickle.dumps([1])), LoadError, "a plain pickle"),
    "fifo": (os.mkfifo, LoadError, "a pipe, socket or device"),
    "dangling": (lambda p: p.symlink_to(p.parent / "gone"), UsageError, "a link to"),
    "missing": (lambda p: None, UsageError, "No such file"),
    "folder": (folder("a.txt"), UsageError, "is a folder that holds a.txt"),
    "empty_folder": (folder(), UsageError, "is a folder that holds nothing"),
    "huggingface": (folder("config.json"), ARCH, "names no model_type"),
    "sharded": (folder("model.safetensors.index.json"), LoadError, "index names no files"),
    "dcp": (folder(".metadata"), LoadError, "a distributed checkpoint (DCP) folder"),
    "run": (folder("meta.json", "sites.csv"), LoadError, "a saved run of flopprof"),
    # damaged
    "truncated": (truncated, LoadError, "truncated"),
    "zip_head_only": (put(b"PK\x03\x04" + bytes(50)), LoadError, "truncated"),
    "duplicate_members": (duplicated, LoadError, "two members of one name"),
    "compressed_members": (
        zip_with("m/data.pkl", compression=zipfile.ZIP_DEFLATED), LoadError, "are compressed"
    ),
    "garbled_pickle": (with_pickle(b"\x80\x02}q\x00garbage"), LoadError, DAMAGED),
    "pickle_cut": (with_pickle(pickle.dumps({"a": "b" * 99}, 2)[:-30]), LoadError, DAMAGED),
    "no_stop": (with_pickle(b"\x80\x02}"), LoadError, "ends too soon"),
    "no_pickle": (with_pickle(b""), LoadError, "ends too soon"),
    "legacy_truncated": (legacy_truncated, LoadError, "end too soon: truncated"),
    "outside": (
        with_pickle(tensor_pickle((4, 4), (4, 1), 8), [("0", bytes(32))]), LoadError, "outside its"
    ),
    "offset_outside": (
        with_pickle(tensor_pickle((8,), (1,), 8, 1), [("0", bytes(32))]), LoadError, "outside its"
    ),
    "no_storage": (with_pickle(tensor_pickle((8,), (1,), 8)), LoadError, "storage 0 is missing"),
    "short_storage": (
        with_pickle(tensor_pickle((8,), (1,), 8), [("0", bytes(31))]), LoadError, "shorter than"
    ),
    "huge_shape": (
        with_pickle(tensor_pickle((1 << 40, 1 << 40), (1, 1), 8), [("0", bytes(32))]),
        LoadError, "outside its storage",
    ),
    "endless_shape": (
        with_pickle(tensor_pickle((1 << 900,), (1,), 8), [("0", bytes(32))]), LoadError, "no list"
    ),
    "negative_shape": (
        with_pickle(tensor_pickle((-8,), (1,), 8), [("0", bytes(32))]), LoadError, "no list of"
    ),
    "safetensors_cut": (safetensors({"w": entry([9], 0, 36)}, bytes(20)), LoadError, "outside"),
    "safetensors_misfit": (safetensors({"w": entry([9], 0, 24)}, bytes(24)), LoadError, "not fit"),
    "safetensors_header": (safetensors({}, length=1 << 26), LoadError, "header of 67108864"),
    "safetensors_twice": (
        safetensors(b'{"w": {"dtype": "F32"}, "w": {"dtype": "F32"}}'), LoadError, "a key twice"
    ),
    "safetensors_deep": (safetensors(b'{"a":' + b"[" * 200_000), LoadError, DAMAGED),
    # hostile
    "system": (hostile(lambda p: Runs(os.system, touch(p))), RefusedError, "DANGEROUS: posix.sys"),
    "exec": (
        hostile(lambda p: Runs(exec, f"open({str(p.parent / MARKER)!r}, 'w')")),
        RefusedError, "DANGEROUS: builtins.exec",
    ),
    "among_weights": (
        hostile(lambda p: {"w": torch.zeros(3), "x": Runs(os.system, touch(p))}), ARCH, "1 tensor "
    ),
    "legacy_system": (
        hostile(lambda p: Runs(os.system, touch(p)), _use_new_zipfile_serialization=False),
        RefusedError, "DANGEROUS: posix.system",
    ),
    "raw_system": (
        lambda p: p.write_bytes(pickle.dumps(Runs(os.system, touch(p)))),
        RefusedError, "a plain pickle, not written by torch.save; it holds posix.system",
    ),
    "text_pickle": (
        lambda p: p.write_bytes(f"cposix\nsystem\n(S'{touch(p)}'\ntR.".encode()),
        RefusedError, "DANGEROUS: posix.system",
    ),
    "inst_opcode": (
        lambda p: with_pickle(f"(S'{touch(p)}'\niposix\nsystem\n.".encode())(p),
        RefusedError, "DANGEROUS: posix.system",
    ),
    "opens_a_file": (
        hostile(lambda p: {"w": torch.zeros(3), "x": Runs(os.open, touch(p), os.O_CREAT)}),
        ARCH, "1 tensor ",
    ),
    "persistent_id": (with_pickle(b"\x80\x02X\x01\x00\x00\x00aQ."), LoadError, DAMAGED),
    "extension_code": (with_pickle(b"\x80\x02\x82\x01."), LoadError, "extension code"),
    "memo_bomb": (with_pickle(b"\x80\x02Nr\xff\xff\xff\x7f."), LoadError, "without weights"),
    "text_memo_bomb": (with_pickle(b"Np999999999\n."), LoadError, "without weights"),
    "deep_tuples": (with_pickle(DEEP + b"."), LoadError, "without weights"),
    "laundered_tuples": (with_pickle(LAUNDERED + b"."), LoadError, "without weights"),
    "memoized_tuples": (
        with_pickle(b"\x80\x02)" + b"\x85q\x000h\x00" * 1000 + b"."), LoadError, "without weights"
    ),
    "hashed_tuples": (with_pickle(b"\x80\x02}" + DEEP[2:] + b"Ns."), LoadError, "without weights"),
    "deep_lists": (with_pickle(b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b"."),
                   LoadError, "without weights"),
    "set_bomb": (with_pickle(b"\x80\x04" + b"\x8f" * 2_000_000 + b"."), LoadError, "opcodes"),
    "long_string": (with_pickle(b"\x80\x02X\xff\xff\xff\xff"), LoadError, "ends too soon"),
    "frame_bomb": (
        with_pickle(b"\x80\x04\x95" + b"\xff" * 7 + b"\x7fN."), LoadError, "without weights"
    ),
    "bytearray_bomb": (with_pickle(b"\x80\x05\x96" + b"\xff" * 7 + b"\x00."), LoadError, DAMAGED),
    "shared_tuples": (  # 2⁶⁰ empty tuples to hash, or to print
        with_pickle(b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s."), LoadError, "without"
    ),
    "shared_arguments": (  # 300,000 calls with one tuple of 100,000
        with_pickle(
            b"\x80\x02(" + b"N" * 100_000 + b"tq\x000ca\nb\nq\x010]("
            + b"h\x01h\x00R" * 300_000 + b"e."
        ),
        LoadError, "without weights",
    ),
    "class_bomb": (
        with_pickle(b"\x80\x02" + b"".join(b"ca\nb%d\n0" % i for i in range(6000)) + b"N."),
        LoadError, "more than 5000 classes",
    ),
    "storage_call": (
        with_pickle(b"\x80\x02ctorch\nFloatStorage\nJ\xff\xff\xff\x7f\x85R."),
        LoadError, "which can ask for any amount",
    ),
    "escape_codes": (
        with_pickle(b"\x80\x02ca\x1b[2J\nb\n)R."), LoadError, "it holds a\N{REPLACEMENT CHARACTER}["
    ),
    "several_disks": (
        put(
            b"PK\x03\x04" + b"PK\x06\x07" + struct.pack("<LQL", 1, 0, 2)
            + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 1, 1, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        ),
        LoadError, "its directory: zipfiles that span multiple disks",
    ),
    "directory_bomb": (
        put(b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 9, 9, 1 << 30, 0, 0)), LoadError,
        "is damaged: its directory: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CORPUS)
def test_a_file_is_named_for_what_it_is_and_nothing_runs(name, tmp_path, capsys):
    write, error, message = CORPUS[name]
    path = tmp_path / "model.bin"  # one name for all: only the content counts
    write(path)
    start = time.process_time()

    with pytest.raises(error) as caught:
        load_model(path)

    assert type(caught.value) is error
    assert main(["count", str(path)]) == error.exit_code
    assert message in capsys.readouterr().err
    assert message in caught.value.problem
    assert str(path) in caught.value.problem
    assert caught.value.problem.isprintable()
    assert caught.value.remedy
    assert not (tmp_path / MARKER).exists()
    assert time.process_time() - start < 10  # the slowest takes a second


@pytest.mark.parametrize("name", ["among_weights", "opens_a_file"])
@pytest.mark.parametrize("meta", [True, False])
def test_weights_beside_hostile_code_are_read_without_it_and_the_danger_is_told(
    name, meta, tmp_path
):
    path = tmp_path / "model.pth"
    CORPUS[name][0](path)
    (tmp_path / "net.py").write_text(NET)

    loaded = load_model(path, arch=f"{tmp_path}/net.py:build", meta=meta)

    assert loaded.parameters == 3
    (warning,) = loaded.warnings
    assert "DANGEROUS: torch.load would call posix." in warning
    assert not (tmp_path / MARKER).exists()


def test_a_damaged_pickle_that_would_run_code_first_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    with_pickle(b"cposix\nsystem\n(S'true'\ntRgarbage")(path)

    with pytest.raises(RefusedError, match=r"does not hold together, and wants posix\.system"):
        load_model(path)


@pytest.mark.parametrize(
    "calls",
    [b"(cposix\nsystem\nS'true'\no", b"cposix\nsystem\n(S'true'\nt}\x92"],
    ids=["OBJ", "NEWOBJ_EX"],
)
def test_every_opcode_that_calls_is_seen(calls, tmp_path):
    path = tmp_path / "model.pth"
    with_pickle(b"\x80\x04" + calls + b".")(path)

    with pytest.raises(RefusedError, match=r"DANGEROUS: posix\.system"):
        load_model(path)


NET = """
from torch import nn, zeros
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(zeros(3))
def build():
    return Net()
"""


@pytest.mark.slow
def test_a_memory_bomb_takes_little_memory(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("memo_bomb", "set_bomb", "class_bomb", "deep_lists", "directory_bomb"):
        CORPUS[name][0](tmp_path / name)
        with pytest.raises(LoadError):
            load_model(tmp_path / name)

    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    assert (after - before) / 1024 < 400  # MiB; the memo bomb alone takes 32 GiB elsewhere


def test_modules_that_share_each_other_without_end_are_refused(tmp_path):
    inner: nn.Module = nn.Identity()
    for _ in range(40):  # 2⁴⁰ paths through 40 modules
        inner = nn.ModuleList([inner, inner])
    torch.save(inner, tmp_path / "m.pth")

    with pytest.raises(LoadError, match="over 500000 modules"):
        load_model(tmp_path / "m.pth")


@pytest.mark.parametrize("change", [mutate, mutate_inside])
@pytest.mark.parametrize("seed", range(150))
def test_a_mutated_file_never_crashes_the_reader(seed, change, tmp_path):
    """More of it, on every file of the corpus: scripts/fuzz_loaders.py."""
    random = np.random.default_rng(seed)
    original = tmp_path / "original"
    saved(net() if seed % 3 == 0 else net().state_dict())(original)
    path = tmp_path / "mutated"
    path.write_bytes(change(original.read_bytes(), random))

    with contextlib.suppress(LoadError, RefusedError, UsageError):
        read_contents(path, detect(path))

    assert sorted(p.name for p in tmp_path.iterdir()) == ["mutated", "original"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read memory from")
def test_every_file_of_the_corpus_has_its_exit_code_within_little_memory(tmp_path):
    # In a process of its own, which has no torch: what is left is what the reader takes.
    names = [name for name in CORPUS if name != "missing"]
    for name in names:
        (tmp_path / name).mkdir()
        CORPUS[name][0](tmp_path / name / "model.bin")
    code = (
        "import json, pathlib, sys, time; from flopprof.cli import main\n"
        "found = {}\n"
        "for name in sys.argv[2:]:\n"
        "    start = time.monotonic()\n"
        "    code = main(['inspect', f'{sys.argv[1]}/{name}/model.bin'])\n"
        "    found[name] = code, time.monotonic() - start\n"
        # What getrusage says is at least what the parent had, which has torch.
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "peak = int(status.partition('VmHWM:')[2].split()[0]) / 1024\n"
        "print('\\n' + json.dumps([found, peak, 'torch' in sys.modules]))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *names],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip

    found, peak_mib, has_torch = json.loads(done.stdout.splitlines()[-1])
    assert not has_torch
    assert peak_mib < 500  # of which a fifth is the library that reads ONNX
    assert max(seconds for _, seconds in found.values()) < 15
    assert {code for code, _ in found.values()} == {0, 2, 3}
    for name in ("garbled_pickle", "safetensors_cut", "class_bomb", "outside", "sharded"):
        assert found[name][0] == 3, name
    for name in ("dangling", "folder", "empty_folder"):
        assert found[name][0] == 2, name
    for name in ("state_dict", "module", "among_weights", "system", "html", "fifo", "empty"):
        assert found[name][0] == 0, name
    assert not list(tmp_path.rglob(MARKER))


def test_the_contents_of_a_checkpoint_are_told(tmp_path):
    path = tmp_path / "c.pth"
    half = {"w": torch.zeros(2, 3, dtype=torch.float16), "n": torch.tensor(4)}
    torch.save({"epoch": 3, "arch": "small", "state_dict": half, "optimizer": {}}, path)

    contents = read_contents(path, detect(path))

    assert contents.kind == "state_dict"
    assert contents.tensors == {"w": ((2, 3), "float16"), "n": ((), "int64")}
    assert contents.wrapper_keys == ("state_dict",)
    assert contents.metadata == {"epoch": 3, "arch": "small"}
    assert contents.dangerous == ()
    assert "torch.HalfStorage" in contents.globals


@pytest.mark.parametrize("legacy", [False, True])
def test_a_modules_keys_are_its_state_dicts(legacy, tmp_path):
    class WithHidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("hidden", torch.zeros(2), persistent=False)
            self.blocks = nn.ModuleList([net(), nn.GRU(4, 4)])

    model = WithHidden()
    path = tmp_path / "m.pth"
    model.__class__.__qualname__ = "WithHidden"
    globals()["WithHidden"] = WithHidden
    options = {"_use_new_zipfile_serialization": False} if legacy else {}
    with warnings_ignored():
        torch.save(model, path, **options)

    contents = read_contents(path, detect(path))

    expected = {k: (tuple(v.shape), str(v.dtype)[6:]) for k, v in model.state_dict().items()}
    assert contents.tensors == expected
    assert contents.top_class.endswith("WithHidden")


def warnings_ignored():
    import warnings

    return warnings.catch_warnings(action="ignore")


def test_special_tensors_keep_their_shapes(tmp_path):
    path = tmp_path / "s.pth"
    base = torch.zeros(6, 4)
    state = {
        "parameter": nn.Parameter(base[1:3].t()),
        "empty": torch.zeros(0, 5),
        "float8": torch.zeros(2, dtype=torch.float8_e4m3fn),
    }
    torch.save(state, path)

    contents = read_contents(path, detect(path))

    assert {key: info.shape for key, info in contents.tensors.items()} == {
        "parameter": (4, 2), "empty": (0, 5), "float8": (2,)
    }  # fmt: skip
    assert contents.tensors["float8"].dtype == "float8_e4m3fn"
