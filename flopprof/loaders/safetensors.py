"""Load a safetensors file."""

import torch

from flopprof.loaders import Made, Request, loader
from flopprof.loaders.fit import fit_weights
from flopprof.loaders.inert import SAFETENSORS_DTYPES, safetensors_header


@loader("safetensors")
def load_safetensors(request: Request) -> Made:
    """Return the model that `--arch` names with the file's weights, mapped into memory."""
    return fit_weights(request, "safetensors weights of", lambda: _read(request))


def _read(request: Request) -> dict[str, torch.Tensor]:
    path = request.contents.path
    header, start = safetensors_header(path)
    data = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
    tensors = {}
    for key, entry in header.items():
        first, last = entry["data_offsets"]
        dtype = getattr(torch, SAFETENSORS_DTYPES[entry["dtype"]])
        raw = data[start + first : start + last]
        if raw.storage_offset() % dtype.itemsize:  # the header's length is the writer's choice
            raw = raw.clone()
        tensors[key] = raw.view(dtype).reshape(entry["shape"])
    return tensors
