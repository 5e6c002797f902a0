"""What Python 2 and old protocols wrote is read inertly; annotations of types are no danger."""

import io
import pickle
import struct
import types
import typing
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from flopprof import count_flops, profile
from flopprof.errors import LoadError
from flopprof.model import load_model
from flopprof.model.contents import read_contents
from flopprof.model.detect import detect
from flopprof.model.pickles import dangers

CODE = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
"""
MATMUL_FLOPS = 2 * (3 * 4 + 4 * 2)  # one row through both layers


PICKLER: Any = pickle._Pickler


class _Python2Pickler(PICKLER):  # type: ignore[misc]
    """Writes as Python 2 did: texts as bytes, numbers and constants as text."""

    dispatch: ClassVar[dict[type, object]] = dict(pickle._Pickler.dispatch)

    def save_text(self, text):
        data = text.encode("latin-1")
        self.write(pickle.SHORT_BINSTRING + struct.pack("B", len(data)) + data)
        self.memoize(text)

    def save_number(self, number):
        if abs(number) >> 31:  # a long
            self.save_long(number)
        else:
            self.write(pickle.INT + str(number).encode() + b"\n")

    def save_float(self, number):
        self.write(pickle.FLOAT + repr(number).encode() + b"\n")

    def save_flag(self, flag):
        self.write(pickle.INT + (b"01" if flag else b"00") + b"\n")

    dispatch[str] = save_text
    dispatch[int] = save_number
    dispatch[float] = save_float
    dispatch[bool] = save_flag


def _dump(value, file, protocol):
    _Python2Pickler(file, 2).dump(value)


PYTHON_2 = types.SimpleNamespace(
    __name__="cPickle", Pickler=_Python2Pickler, dump=_dump, dumps=pickle.dumps
)


@pytest.fixture(scope="module")
def net():
    layers = (nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    return nn.Sequential(*layers)


@pytest.fixture
def code(tmp_path):
    (tmp_path / "net.py").write_text(CODE)
    return f"{tmp_path}/net.py:build"


def checkpoint(net):
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    net.zero_grad()
    return {
        "epoch": 7,
        "best": 0.5,
        "state_dict": net.state_dict(),
        "optimizer": optimizer.state_dict(),
    }


@pytest.mark.parametrize("what", ["checkpoint", "module"])
@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_protocol_of_the_old_format_is_read(protocol, what, net, code, tmp_path):
    path = tmp_path / "m.pth"
    saved = checkpoint(net) if what == "checkpoint" else net
    torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)

    assert count_flops(path, arch=code).matmul_flops == MATMUL_FLOPS
    loaded = load_model(path, arch=code).model.get_submodule("2")
    assert torch.equal(loaded.state_dict()["weight"], net[2].weight)


def test_what_python_2_wrote_is_counted_and_run_with_its_values(net, code, tmp_path):
    path = tmp_path / "m.pth"
    saved = checkpoint(net)
    torch.save(saved, path, pickle_module=PYTHON_2, _use_new_zipfile_serialization=False)
    assert b"I01\n" in path.read_bytes()
    assert read_contents(path, detect(path)).metadata == {"epoch": 7, "best": 0.5}

    run = profile(path, arch=code, repeats=1, warmup=0, traces=1, ceilings=False)

    assert run.totals.matmul_flops == MATMUL_FLOPS
    assert torch.equal(
        load_model(path, arch=code).model.get_submodule("0").state_dict()["weight"], net[0].weight
    )


def test_protocol_0_lost_the_tensors_and_says_so(net, tmp_path):
    torch.save(
        net.state_dict(),
        tmp_path / "m.pth",
        pickle_protocol=0,
        _use_new_zipfile_serialization=False,
    )

    with pytest.raises(LoadError, match=r"protocol 0.*torch cannot load it either"):
        load_model(tmp_path / "m.pth")


def test_a_tar_of_the_first_versions_is_named(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "m.pth", "w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())

    with pytest.raises(LoadError, match=r"before PyTorch 0\.1\.10"):
        load_model(tmp_path / "m.pth")


def test_annotations_of_types_are_no_danger(net, tmp_path):
    path = tmp_path / "m.pth"
    annotations = [typing.Any, int | None, dict[str, typing.Any], list[int]]
    torch.save({"state_dict": net.state_dict(), "types": annotations}, path)

    contents = read_contents(path, detect(path))

    assert contents.dangerous == ()
    assert any(name.startswith("typing.") for name in contents.globals)


def test_what_reaches_further_than_an_annotation_stays_a_danger():
    named = ["typing.get_type_hints", "typing.ForwardRef", "typing.sys", "operator.attrgetter"]
    named += ["builtins.getattr", "builtins.eval", "types.CodeType", "sys.modules"]

    assert dangers(named) == tuple(named)
    assert dangers(["omegaconf.base.ContainerMetadata", "omegaconf.nodes.AnyNode"]) == ()
