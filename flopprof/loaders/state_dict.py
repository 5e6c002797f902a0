"""Load a state_dict or a checkpoint around one, by torch.save."""

import re
from typing import Any

import torch

from flopprof.errors import LoadError
from flopprof.loaders import Made, Request, loader, refuse_code
from flopprof.loaders.detect import safe_text
from flopprof.loaders.fit import fit_weights

# What weights_only=True allows, but for bytearray and whole tensors, which can ask for any memory.
_PLAIN = re.compile(
    r"collections\.(OrderedDict|defaultdict|Counter)|builtins\.(set|complex)|_codecs\.encode"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2|torch\.(cuda\.)?\w+Storage"
    r"|torch\.storage\.\w+|torch\.(Size|device|[a-z]+\d+\w*|bool|per_\w+)"
    r"|torch\.nn\.parameter\.Parameter|torch\.serialization\._get_layout"
)


@loader("state_dict")
def load_state_dict(request: Request) -> Made:
    """Return the model that `--arch` names with the file's weights, mapped into memory."""
    keys = request.contents.wrapper_keys
    source = f"state_dict under {'.'.join(keys)!r} of" if keys else "state_dict of"
    return fit_weights(request, safe_text(source), lambda: _read(request))


def _read(request: Request) -> dict[str, Any]:
    contents = request.contents
    odd = [name for name in contents.globals if not _PLAIN.fullmatch(name)]
    if odd:
        refuse_code(request, f"a checkpoint with more than tensors ({', '.join(odd[:3])})")
    found = load_pickle(request, weights_only=not odd)
    for key in contents.wrapper_keys:
        found = found[key]
    return dict(found)


def load_pickle(request: Request, *, weights_only: bool) -> Any:
    """Return what torch.load makes of the file, its tensors mapped where its format allows.

    Raises:
        LoadError: torch cannot load it, or a class that it wants is not there.
    """
    path = request.contents.path
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        return torch.load(path, map_location="cpu", weights_only=weights_only, mmap=is_zip)
    except Exception as error:  # unpickling may run any code, which may raise anything
        raise LoadError(
            f"{safe_text(path)}: torch.load raised {type(error).__name__}: "
            f"{safe_text(str(error).partition(chr(10))[0])}",
            remedy="install or make importable (PYTHONPATH) the classes that it names"
            if isinstance(error, AttributeError | ImportError)
            else "save its state_dict again: torch.save(model.state_dict(), 'model.pth')",
        ) from error
