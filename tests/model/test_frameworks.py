"""Weights in other libraries' formats: GGUF, NumPy, Keras, Flax; each number by hand."""

import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from flopprof.cli import main
from flopprof.errors import LoadError, UnknownArchitectureError
from flopprof.model import load_model
from flopprof.model.account import account_of
from flopprof.model.contents import read_contents
from flopprof.model.detect import detect

Q8_0, F32 = 8, 0  # ggml's numbers of types


def gguf_text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(pairs, tensors, *, version=3, data=None):
    """Return a GGUF file: pairs of key, type and packed value; tensors of name, sizes and type."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    for key, kind, value in pairs:
        out += gguf_text(key) + struct.pack("<I", kind) + value
    start = 0
    for name, file_order, kind in tensors:
        out += gguf_text(name) + struct.pack("<I", len(file_order))
        out += struct.pack(f"<{len(file_order)}Q", *file_order) + struct.pack("<IQ", kind, start)
        elements = int(np.prod(file_order))
        start += elements * 4 if kind == F32 else elements // 32 * 34  # Q8_0: 32 in 34 bytes
    out += bytes(-len(out) % 32)
    return out + (bytes(start) if data is None else data)


PAIRS = [
    ("general.architecture", 8, gguf_text("llama")),
    ("llama.context_length", 4, struct.pack("<I", 2048)),
    ("llama.expert_used_count", 4, struct.pack("<I", 2)),
    ("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 100) + gguf_text("a") * 100),
    ("llama.rope.freqs", 9, struct.pack("<IQ2f", 6, 2, 0.5, 1.0)),
]
TENSORS = [
    ("token_embd.weight", (64, 1200), F32),
    ("blk.0.attn_q.weight", (64, 96), Q8_0),
    ("blk.0.attn_norm.weight", (64,), F32),
    ("blk.0.ffn_up_exps.weight", (64, 32, 4), Q8_0),  # four experts
    ("output.weight", (64, 1200), Q8_0),
]


def contents_of(path):
    return read_contents(path, detect(path))


def test_a_gguf_file_counts_its_products_and_packs_by_blocks(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(PAIRS, TENSORS))

    contents = contents_of(path)
    stored = account_of(contents)

    # llama.cpp names the fastest size first; 2 FLOPs per element of each product.
    shapes = {weight.name: weight.shape for weight in stored.tensors}
    assert shapes["blk.0.attn_q.weight"] == (96, 64)
    assert shapes["blk.0.ffn_up_exps.weight"] == (4, 32, 64)
    q, experts, head = 2 * 96 * 64, 2 * 4 * 32 * 64, 2 * 1200 * 64
    assert stored.matmul_flops_per_position == q + experts + head == 182_272
    # Two of four experts run: half of theirs.
    assert stored.experts is not None
    assert stored.experts.model_flops_per_position_active == q + experts // 2 + head
    # Q8_0: 34 bytes for 32 elements; floats 4 bytes each.
    packed = (96 * 64 + 4 * 32 * 64 + 1200 * 64) // 32 * 34
    assert stored.bytes == packed + 4 * (1200 * 64 + 64)
    assert {w.name: w.kind for w in stored.tensors}["token_embd.weight"] == "embedding"
    assert contents.metadata["llama.context_length"] == 2048
    assert contents.metadata["llama.rope.freqs"] == "0.5, 1.0"
    assert not any(key.startswith("tokenizer") for key in contents.metadata)


def test_count_of_a_gguf_file_prints_what_its_weights_say(tmp_path, capsys):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(PAIRS, TENSORS))

    code = main(["count", str(path), "--json"])

    answer = json.loads(capsys.readouterr().out)
    assert code == 5
    assert "of the architecture llama" in answer["error"]["problem"]
    assert answer["weights"]["matmul_flops_per_position"] == 182_272


HOSTILE_GGUF = {
    "cut": gguf(PAIRS, TENSORS)[:300],
    "data_cut": gguf(PAIRS, TENSORS, data=b"1234"),
    "version": b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
    "tensors": b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0),
    "pairs": b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60),
    "text": gguf([("a", 8, struct.pack("<Q", 1 << 62))], []),
    "array": gguf([("a", 9, struct.pack("<IQ", 10, 1 << 60))], []),
    "texts": gguf([("a", 9, struct.pack("<IQ", 8, 1 << 60))], []),
    "nested": gguf([("a", 9, struct.pack("<IQ", 9, 1) * 90)], []),
    "kind": gguf([("a", 77, b"")], []),
    "twice": gguf(PAIRS[:1] * 2, []),
    "tensor_twice": gguf([], TENSORS[:1] * 2),
    "type": gguf([], [("a", (32,), 5)]),
    "dims": gguf([], [("a", (1,) * 9, F32)]),
    "huge": gguf([], [("a", (1 << 47, 1 << 47), F32)], data=b""),
    "blocks": gguf([], [("a", (33,), Q8_0)]),
    "alignment": gguf([("general.alignment", 4, struct.pack("<I", 0))], TENSORS),
}


@pytest.mark.parametrize("data", HOSTILE_GGUF.values(), ids=HOSTILE_GGUF)
def test_a_gguf_file_that_does_not_hold_together_is_damaged(tmp_path, data):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)

    with pytest.raises(LoadError, match="is damaged"):
        load_model(path)


def small_net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def arrays_of(module):
    return {key: value.numpy() for key, value in module.state_dict().items()}


def test_arrays_of_numpy_are_weights_like_any_others(tmp_path):
    path, code = tmp_path / "net.npz", tmp_path / "net.py"
    net = small_net()
    np.savez(path, texts=np.array(["a"]), **arrays_of(net))
    code.write_text(
        "from torch import nn\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))\n"
    )

    stored = account_of(contents_of(path))
    loaded = load_model(path, arch=f"{code}:build")

    assert stored.matmul_flops_per_position == 2 * 4 * 3 * 3 * 3  # 4 filters of 3x3 on 3 channels
    assert torch.equal(loaded.model.state_dict()["0.weight"], net[0].weight)
    assert any("texts or objects" in warning for warning in loaded.warnings)


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_plain_pickle_of_arrays_is_fitted_without_its_values(tmp_path, protocol):
    path, code = tmp_path / "net.pkl", tmp_path / "net.py"
    state = {"model": arrays_of(small_net()), "__author__": "third party"}
    path.write_bytes(pickle.dumps(state, protocol))
    code.write_text(
        "from torch import nn\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))\n"
    )

    stored = account_of(contents_of(path))
    loaded = load_model(path, arch=f"{code}:build", meta=True)

    assert stored.matmul_flops_per_position == 216
    assert loaded.source == "pickled NumPy arrays by"
    with pytest.raises(LoadError, match="whose values are not read"):
        load_model(path, arch=f"{code}:build")


def test_objects_in_numpys_files_are_left_out(tmp_path):
    path = tmp_path / "net.npz"
    np.savez(path, objects=np.array([{}, 1], dtype=object), w=np.zeros((2, 3)))

    contents = contents_of(path)

    assert list(contents.tensors) == ["w"]
    assert "which numpy would unpickle, not read: objects" in contents.notes[0]


def msgpack_array(shape, name=b"float32", data=None):
    """Return an array as Flax packs it: extension 1 of (shape, type, data)."""
    data = bytes(4 * int(np.prod(shape))) if data is None else data
    inner = b"\x93" + bytes([0x90 + len(shape), *shape]) + bytes([0xA0 + len(name)]) + name
    inner += b"\xc5" + struct.pack(">H", len(data)) + data
    return b"\xc8" + struct.pack(">H", len(inner)) + b"\x01" + inner


def msgpack_text(value):
    return bytes([0xA0 + len(value)]) + value.encode()


FLAX = (
    b"\x82" + msgpack_text("params") + b"\x82" + msgpack_text("dense") + b"\x82"
    + msgpack_text("kernel") + msgpack_array((4, 5)) + msgpack_text("bias") + msgpack_array((5,))
    + msgpack_text("embed") + b"\x81" + msgpack_text("embedding") + msgpack_array((9, 4))
    + msgpack_text("step") + b"\xcd\x01\x00"
)  # fmt: skip


def test_a_msgpack_by_flax_counts_its_kernels(tmp_path):
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(FLAX)

    contents = contents_of(path)
    stored = account_of(contents)

    assert {key: info.shape for key, info in contents.tensors.items()} == {
        "params.dense.kernel": (4, 5),
        "params.dense.bias": (5,),
        "params.embed.embedding": (9, 4),
    }
    assert stored.matmul_flops_per_position == 2 * 4 * 5
    assert contents.metadata == {"step": 256}


HOSTILE_MSGPACK = {
    "cut": FLAX[:60],
    "after": FLAX + b"\x00",
    "deep": b"\x81" + msgpack_text("params") + (b"\x81" + msgpack_text("a")) * 200 + b"\x00",
    "many": b"\x81" + msgpack_text("params") + b"\xdd\xff\xff\xff\xff" + b"\x00" * 99,
    "array": b"\x81" + msgpack_text("params") + msgpack_array((4, 5), data=bytes(4)),
    "type": b"\x81" + msgpack_text("params") + msgpack_array((4,), name=b"object"),
    "byte": b"\x81" + msgpack_text("params") + b"\xc1",
    "key": b"\x81" + msgpack_text("params") + b"\x81\xc0\x00",
}


@pytest.mark.parametrize("data", HOSTILE_MSGPACK.values(), ids=HOSTILE_MSGPACK)
def test_a_msgpack_that_does_not_hold_together_is_damaged(tmp_path, data):
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(data)

    with pytest.raises(LoadError, match="is damaged"):
        load_model(path)


def test_keras_weights_are_named_by_their_layers(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential"})
        weights = file.create_group("model_weights")
        weights["conv/conv/kernel:0"] = np.zeros((3, 3, 3, 8), np.float32)
        weights["conv/conv/bias:0"] = np.zeros(8, np.float32)
        weights["lstm/lstm/lstm_cell/kernel:0"] = np.zeros((8, 16), np.float32)
        weights["lstm/lstm/lstm_cell/recurrent_kernel:0"] = np.zeros((4, 16), np.float32)
        file["optimizer_weights/m:0"] = np.zeros((3, 3, 3, 8), np.float32)
        file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")

    contents = contents_of(path)
    stored = account_of(contents)

    kinds = {weight.name: weight.kind for weight in stored.tensors}
    assert kinds == {
        "conv.kernel": "convolution",
        "conv.bias": "bias",
        "lstm.lstm_cell.kernel": "recurrent",
        "lstm.lstm_cell.recurrent_kernel": "recurrent",
    }
    assert stored.matmul_flops_per_position == 2 * 3 * 3 * 3 * 8 + 2 * (8 + 4) * 16
    assert contents.configuration == {"class_name": "Sequential"}


def test_an_archive_by_keras_3_numbers_what_its_layers_hold(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "model.keras"
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["layers/dense/vars/0"] = np.zeros((4, 5), np.float32)
        file["layers/dense/vars/1"] = np.zeros(5, np.float32)
        file["layers/batch_normalization/vars/2"] = np.zeros(5, np.float32)
        file["layers/embedding/vars/0"] = np.zeros((30, 4), np.float32)
        file["layers/gru/cell/vars/0"] = np.zeros((4, 9), np.float32)
        file["layers/gru/cell/vars/1"] = np.zeros((3, 9), np.float32)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", '{"class_name": "Functional"}')
        archive.write(tmp_path / "w.h5", "model.weights.h5")

    stored = account_of(contents_of(path))

    kinds = {weight.name: weight.kind for weight in stored.tensors}
    assert kinds["layers.dense.kernel"] == "linear"
    assert kinds["layers.dense.bias"] == "bias"
    assert kinds["layers.batch_normalization.moving_mean"] == "statistics"
    assert kinds["layers.embedding.embeddings"] in ("embedding", "table")
    assert stored.matmul_flops_per_position == 2 * 4 * 5 + 2 * (4 + 3) * 9


OTHERS = {
    "tensorflow": (b"\x08\x01\x12\xe6\x95\x42\n\xc8\x24\x12\x9e\x24\nB", "SavedModel of Tens"),
    "coreml": (b"\x08\x06\x12\xda\x01\n\x18\n\x07input_2", "a Core ML model"),
    "fasttext": (b"\xba\x16O/\x0c\x00\x00\x00\x10", "a fastText model"),
    "ggml": (b"lmgg\x0a\x00\x00\x00silero-16k", "a ggml file"),
    "executorch": (b"\x30\x00\x00\x00ET12\x00\x00", "a program of ExecuTorch"),
    "openvino": (b'<?xml version="1.0"?>\n<net name="a">', "a graph of OpenVINO"),
    "ncnn": (b"7767517\n75 83\nInput", "a graph of ncnn"),
    "lz4": (b"\x04\x22\x4d\x18\x64\x40\xa7", "a compressed file"),
    "hdf5": (b"\x89HDF\r\n\x1a\n\x00", "is damaged"),
}


@pytest.mark.parametrize(("data", "said"), OTHERS.values(), ids=OTHERS)
def test_what_holds_no_weights_of_pytorchs_is_named(tmp_path, data, said):
    path = tmp_path / "model"
    path.write_bytes(data)

    with pytest.raises((LoadError, UnknownArchitectureError)) as caught:
        load_model(path)

    assert said in caught.value.problem
    assert caught.value.remedy
