"""Files made wrong at random: bytes flipped, cut, repeated, moved; lengths and opcodes put in."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

# Opcodes that call, import, build, mark, memoise; lengths; the ends of zip and JSON structures.
_PIECES = (
    b"R", b"o", b"i", b"b", b"c__builtin__\neval\n", b"\x93", b"\x82\x01", b"(", b"t", b".", b"u",
    b"q\x00", b"h\xff", b"r\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 7 + b"\x7f",
    b"\x95" + b"\xff" * 8, b"\x00" * 8, b"\xff" * 8, b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06",
    b'"', b"{", b"}", b"[" * 99, b'"shape":[-1]', b"1e999", b"cposix\nsystem\n(S'true'\ntR",
)  # fmt: skip


def mutate(data: bytes, random: np.random.Generator) -> bytes:
    """Return `data` with one to five changes."""
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 6))):
        size = len(changed)
        at, to = sorted(int(place) for place in random.integers(0, size + 1, 2))
        match int(random.integers(0, 7)):
            case 0 if size:
                changed[min(at, size - 1)] = int(random.integers(0, 256))
            case 1 if size:
                changed[min(at, size - 1)] ^= 1 << int(random.integers(0, 8))
            case 2:
                del changed[at : min(to, at + 64)]
            case 3:
                changed[at:at] = _PIECES[int(random.integers(0, len(_PIECES)))]
            case 4:
                changed[at:at] = changed[at : min(to, at + 4096)]
            case 5:  # a length or an offset
                width = int(random.choice([1, 2, 4, 8]))
                changed[at : at + width] = int(random.choice([0, 1, 255])).to_bytes(1) * width
            case 6 if random.integers(0, 4) == 0:
                del changed[to:]
    return bytes(changed)


def mutate_inside(data: bytes, random: np.random.Generator) -> bytes:
    """Return an archive of which the pickle (or another member) has changes, and a right checksum.

    What is no archive is changed as it is.
    """
    changed = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(changed, "w") as new:
            members = {info.filename: old.read(info) for info in old.infolist()}
            pickles = [name for name in members if name.endswith(".pkl")] or list(members)
            which = pickles[int(random.integers(0, len(pickles)))] if pickles else ""
            for name, content in members.items():
                new.writestr(name, mutate(content, random) if name == which else content)
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError, OSError):
        return mutate(data, random)
    return changed.getvalue()


def originals(corpus: Mapping[str, tuple[object, ...]], folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file of the corpus that is one, and not too long to mutate."""
    found = {}
    for name, (write, *_) in corpus.items():
        path = folder / name
        assert callable(write)
        write(path)
        if path.is_file() and path.stat().st_size < 1 << 20:
            found[name] = path.read_bytes()
    return found
