"""What archives hold that are no model to load, inertly: ONNX, torch.package, AOTInductor."""

import io
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

from flopprof.errors import FlopprofError, UsageError
from flopprof.model.contents import tensors_of
from flopprof.model.detect import damaged, zip_members
from flopprof.model.graphinputs import element_type
from flopprof.model.graphs import parse
from flopprof.model.pickles import MAX_BYTES, TensorInfo, dangers, unpickled

_CODE = (".py", ".cpp", ".h", ".cu", ".so", ".cubin", ".o", ".ptx")
_MAX_LISTED = 100_000  # tensors, and files, that are told of
_MAX_READ = 1000  # pickles or C++ sources that are read


def inside(path: Path, kind: str) -> dict[str, Any] | None:
    """Return what an archive of this kind holds, nothing of which is executed; None for others.

    Returns:
        `inputs`, `outputs` and `tensors`, each with name, shape and dtype, None for what the file
        does not say; `code_files`; `notes` on what was not read.

    Raises:
        LoadError: It is damaged.
    """
    read = {"onnx": _of_onnx, "torch_package": _of_package, "aotinductor": _of_aotinductor}
    if kind not in read:
        return None
    empty: dict[str, Any] = {
        "inputs": [], "outputs": [], "tensors": [], "code_files": [], "notes": [],
    }  # fmt: skip
    try:
        return empty | read[kind](path)
    except (FlopprofError, MemoryError):
        raise
    except Exception as error:  # what protobuf, zipfile or a hostile pickle raise: all the same
        raise damaged(path, str(error) or type(error).__name__) from error


def _tensor(name: str, shape: Any, dtype: str | None) -> dict[str, Any]:
    return {"name": name, "shape": None if shape is None else list(shape), "dtype": dtype or None}


def _of_onnx(path: Path) -> dict[str, Any]:
    """Return an ONNX graph's inputs, outputs and weights; a note alone where onnx is lacking."""
    try:
        model = parse(path)
    except UsageError as error:  # onnx is not here, or the file is too large for it
        return {"notes": [f"{error.problem}: {error.remedy}"]}
    from onnx import TensorProto

    def dtype_of(number: int) -> str | None:
        return element_type(TensorProto.DataType.Name(number)) if number else None

    def described(value: Any) -> dict[str, Any]:
        kind = value.type.tensor_type
        dims = [
            dim.dim_value if dim.dim_value > 0 else dim.dim_param or None for dim in kind.shape.dim
        ]
        shape = dims if kind.HasField("shape") else None
        return _tensor(value.name, shape, dtype_of(kind.elem_type))

    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    return {
        "inputs": [described(value) for value in graph.input if value.name not in weights],
        "outputs": [described(value) for value in graph.output],
        "tensors": [_tensor(t.name, t.dims, dtype_of(t.data_type)) for t in graph.initializer],
    }


def _of_package(path: Path) -> dict[str, Any]:
    """Return the tensors of an archive by torch.package, by pickle and key, and its code."""
    members = zip_members(path) or {}
    stored = re.compile(r"\.data/(.*)\.storage")
    sizes_bytes = {
        f"data/{match[1]}": info.file_size
        for name, info in members.items()
        if (match := stored.fullmatch(name))
    }
    tensors = []
    notes = []
    pickles = [name for name in members if name.endswith(".pkl")]
    with ZipFile(path) as archive:
        _check(archive, members)
        for name in pickles[:_MAX_READ]:
            root, named_globals = unpickled(io.BytesIO(_read(archive, members[name])), sizes_bytes)
            if dangerous := dangers(named_globals):
                notes.append(f"{name} names {', '.join(dangerous)}: DANGEROUS")
            tensors_of_pickle = tensors_of(root)
            if not tensors_of_pickle:
                notes.append(f"{name} holds no tensors that are told of")
            tensors += [_of_info(f"{name}: {key}", info) for key, info in tensors_of_pickle.items()]
    if len(pickles) > _MAX_READ:
        notes.append(f"{len(pickles) - _MAX_READ} more pickles were not read")
    return {"tensors": tensors, "code_files": _code_files(members), "notes": notes}


def _of_info(name: str, info: TensorInfo) -> dict[str, Any]:
    return _tensor(name, info.shape, info.dtype)


def _of_aotinductor(path: Path) -> dict[str, Any]:
    """Return what the C++ around a compiled program says of its constants, inputs and outputs."""
    members = zip_members(path) or {}
    wrappers = [name for name in members if name.endswith(".cpp")]
    facts: dict[str, Any] = {"inputs": [], "outputs": [], "tensors": []}
    with ZipFile(path) as archive:
        _check(archive, members)
        for name in wrappers[:_MAX_READ]:
            text = _read(archive, members[name]).decode("utf-8", "replace")
            for kind, values in _of_wrapper(text).items():
                facts[kind] += values
    notes = []
    if not facts["inputs"] and not facts["tensors"]:
        notes.append("it holds no C++ source that tells its inputs and tensors")
    return {**facts, "code_files": _code_files(members), "notes": notes}


def _of_wrapper(text: str) -> dict[str, list[dict[str, Any]]]:
    """Return inputs, outputs and constants of one program's source."""
    names: dict[str, list[str]] = {}
    for kind in ("inputs", "outputs"):
        pattern = rf'{kind}_info_\[\d+\]\.name = "([^"\n]*)"'
        names[kind] = [match[1] for match in islice(re.finditer(pattern, text), _MAX_LISTED)]
    sizes: dict[str, dict[int, int]] = {}
    for size, name, place in re.findall(r"if \((\d{1,18}) != (\w+)_size\[(\d{1,3})\]\)", text):
        sizes.setdefault(name, {})[int(place)] = int(size)
    dtypes = dict(re.findall(r"(\w+)_expected_dtype = aoti_torch_dtype_(\w+)\(", text))
    return {
        "inputs": [
            _tensor(name, _shape(sizes.get(name)), dtypes.get(name)) for name in names["inputs"]
        ],
        "outputs": [_tensor(name, None, None) for name in names["outputs"]],
        "tensors": list(_constants(text)),
    }


def _shape(sizes: dict[int, int] | None) -> list[int | None] | None:
    """Return the sizes by dimension; None for one that any call may choose."""
    return [sizes.get(place) for place in range(max(sizes) + 1)] if sizes else None


def _constants(text: str) -> Iterator[dict[str, Any]]:
    facts: dict[str, dict[str, str]] = {}
    pattern = r"constants_info_\[(\d+)\]\.(name|dtype|shape|original_fqn) = ([^;\n]*);"
    for place, fact, value in re.findall(pattern, text):
        facts.setdefault(place, {})[fact] = value
    for constant in islice(facts.values(), _MAX_LISTED):
        name = constant.get("original_fqn") or constant.get("name", "")
        dtype = re.search(r"dtype_(\w+)", constant.get("dtype", ""))
        sizes = [int(size) for size in re.findall(r"\d{1,18}", constant.get("shape", ""))]
        shape = sizes if "shape" in constant else None
        yield _tensor(name.strip('"'), shape, dtype[1] if dtype else None)


def _code_files(members: dict[str, ZipInfo]) -> list[str]:
    return [name for name in islice(members, _MAX_LISTED) if name.endswith(_CODE)]


def _check(archive: ZipFile, members: dict[str, ZipInfo]) -> None:
    """Raise ValueError where the members do not lie in the file."""
    members_bytes = sum(info.compress_size for info in members.values())
    if archive.fp is None or members_bytes > archive.fp.seek(0, io.SEEK_END):
        raise ValueError("its members are larger than the file")
    for info in members.values():
        with archive.open(info):  # compares the name with that where the member lies
            pass


def _read(archive: ZipFile, info: ZipInfo) -> bytes:
    if info.file_size > MAX_BYTES:
        raise ValueError(f"{info.filename} takes {info.file_size} bytes, more than any model's")
    return archive.read(info)
