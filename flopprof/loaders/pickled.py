"""Load a pickled nn.Module: runs the file's code, so only with trust."""

from torch import nn

from flopprof.errors import LoadError
from flopprof.loaders import Made, Request, loader, refuse_code
from flopprof.loaders.detect import safe_text
from flopprof.loaders.state_dict import load_pickle


@loader("pickled_module")
def load_pickled(request: Request) -> Made:
    """Return the module that the file unpickles to."""
    contents = request.contents
    name = safe_text(contents.top_class)
    refuse_code(request, f"a pickled nn.Module ({name})")
    model = load_pickle(request, weights_only=False)
    for key in contents.wrapper_keys:
        model = model[key]
    if not isinstance(model, nn.Module):
        raise LoadError(
            f"{safe_text(contents.path)} unpickles to a {type(model).__name__}, not an nn.Module",
            remedy="save the module's state_dict, and name its code with --arch",
        )
    return Made(model, name, "pickled nn.Module of")
