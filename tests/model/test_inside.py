"""What archives hold that are no model to load; nothing of them runs."""

import json
import os
import warnings
import zipfile

import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, save
from torch import nn
from torch.package.package_exporter import PackageExporter

from flopprof.cli import main


def told(path, capsys):
    assert main(["inspect", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["inside"]


def onnx_file(path):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    w = numpy_helper.from_array(torch.ones(4, 2).numpy(), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [w])
    save(helper.make_model(graph), path)


def packaged(path, value):
    with warnings.catch_warnings(action="ignore"), PackageExporter(path) as exporter:
        exporter.extern("**")
        exporter.save_pickle("model", "model.pkl", value)
        exporter.save_source_string("mine.code", "raise SystemExit(9)")


WRAPPER = """
    inputs_info_[0].name = "arg2_1";
    constants_info_[0].name = "constant_0_weight";
    constants_info_[0].dtype = cached_torch_dtype_float32;
    constants_info_[0].shape = {4, 3};
    constants_info_[0].original_fqn = "0.weight";
    outputs_info_[0].name = "output0";
    int32_t arg2_1_expected_dtype = aoti_torch_dtype_float32();
    if (4 != arg2_1_size[1]) {
"""


def compiled(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data/aotinductor/model/a.wrapper.cpp", WRAPPER)
        archive.writestr("m/data/aotinductor/model/a.wrapper.so", b"\x7fELF")


def test_an_onnx_file_tells_its_inputs_outputs_and_weights(tmp_path, capsys):
    onnx_file(tmp_path / "m.onnx")

    assert told(tmp_path / "m.onnx", capsys) == {
        "inputs": [{"name": "x", "shape": ["batch", 4], "dtype": "float32"}],
        "outputs": [{"name": "y", "shape": None, "dtype": "float32"}],
        "tensors": [{"name": "w", "shape": [4, 2], "dtype": "float32"}],
        "code_files": [],
        "notes": [],
    }
    assert main(["inspect", str(tmp_path / "m.onnx")]) == 0
    assert "Input     x: batchx4 float32\n" in capsys.readouterr().out


def test_a_package_tells_its_tensors_and_code(tmp_path, capsys):
    packaged(tmp_path / "p.pt", nn.Sequential(nn.Linear(4, 2, bias=False)))

    inside = told(tmp_path / "p.pt", capsys)

    weight = {"name": "model/model.pkl: 0.weight", "shape": [2, 4], "dtype": "float32"}
    assert inside["tensors"] == [weight]
    assert inside["code_files"] == ["mine/code.py"]
    assert inside["notes"] == []


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made_by_evil",)


def test_a_hostile_package_names_its_dangers_and_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged(tmp_path / "p.pt", Evil())

    dangers = told(tmp_path / "p.pt", capsys)["notes"]

    assert "model/model.pkl names posix.mkdir: DANGEROUS" in dangers
    assert not (tmp_path / "made_by_evil").exists()


def test_a_compiled_package_tells_what_its_source_says(tmp_path, capsys):
    compiled(tmp_path / "m.pt2")

    inside = told(tmp_path / "m.pt2", capsys)

    assert inside["inputs"] == [{"name": "arg2_1", "shape": [None, 4], "dtype": "float32"}]
    assert inside["outputs"] == [{"name": "output0", "shape": None, "dtype": None}]
    assert inside["tensors"] == [{"name": "0.weight", "shape": [4, 3], "dtype": "float32"}]
    assert [name[-4:] for name in inside["code_files"]] == [".cpp", "r.so"]


@pytest.mark.parametrize(
    "make", [onnx_file, lambda path: packaged(path, nn.Linear(2, 2)), compiled]
)
def test_damaged_ones_are_said_to_be(make, tmp_path, capsys):
    path = tmp_path / "file"
    make(path)
    whole = bytearray(path.read_bytes())
    if whole.startswith(b"PK"):
        whole[30:31] = b"?"  # the first member has another name than in the directory
    else:
        del whole[-30:]
    path.write_bytes(whole)

    assert main(["inspect", str(path)]) == 3
    assert "is damaged" in capsys.readouterr().err
