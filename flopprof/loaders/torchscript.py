"""Load a TorchScript archive: runs the file's code, so only with trust."""

import re
import warnings

import torch

from flopprof.errors import LoadError
from flopprof.loaders import Made, Request, loader, refuse_code
from flopprof.loaders.detect import safe_text


@loader("torchscript")
def load_torchscript(request: Request) -> Made:
    """Return the archive's module."""
    path = request.contents.path
    refuse_code(request, "a TorchScript archive")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated; its archives are here
            model = torch.jit.load(path, map_location="meta" if request.meta else "cpu")
    except (RuntimeError, ValueError) as error:
        raise LoadError(
            f"{safe_text(path)}: torch.jit.load raised: {safe_text(str(error).strip())}",
            remedy="save it again with the torch that is installed here, or its state_dict",
        ) from error
    name = re.sub(r"__torch__\.|___torch_mangle_\d+\.", "", request.contents.top_class)
    return Made(model, safe_text(name), "TorchScript archive of")
