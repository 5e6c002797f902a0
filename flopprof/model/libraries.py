"""Find models by the names that their libraries have for them."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from flopprof.collector import import_quickly
from flopprof.errors import UsageError
from flopprof.model.spelling import CodeName
from flopprof.model.usercode import pip_name
from flopprof.units import safe_text


class Entry(NamedTuple):
    """A library's model, with what `architectures.Architecture` says of it."""

    make: Callable[..., Any]
    input: str | None = None
    adapts: bool = False
    classes: int = 0


def no_such(place: str, name: str, names: list[str]) -> UsageError:
    """Return the error for a name that is not there, with the nearest ones."""
    near = get_close_matches(name.lower(), names, n=6, cutoff=0.0)
    remedy = "define a function there that returns the model"
    if near:
        remedy = f"name one that it has: {', '.join(f'{place}:{match}' for match in near)}"
    return UsageError(f"{place} has no model {name!r}", remedy=remedy)


def _import(library: str, name: str, module: str, package: str = "") -> Any:
    try:
        return import_quickly(module)
    except ImportError as error:
        absent = (error.name or module).partition(".")[0]
        is_itself = absent == module.partition(".")[0]
        fact = f"{library}:{name} needs {package or library}: {safe_text(error)}"
        distribution = (package or library) if is_itself else pip_name(absent)
        raise UsageError(fact, remedy=f"pip install {distribution}") from error


def _torchvision(code: CodeName) -> Entry:
    name = code.name
    models = _import("torchvision", name, "torchvision.models")
    if name not in models.list_models():
        raise no_such("torchvision", name, models.list_models())
    builder = models.get_model_builder(name)
    fixed: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        fixed["weights_backbone"] = None  # the default downloads them
    if name.endswith(("googlenet", "inception_v3")):
        fixed["init_weights"] = False  # the default takes minutes
    weights = next(iter(models.get_model_weights(name)), None)
    transforms = getattr(getattr(weights, "transforms", None), "keywords", {})
    spec = _torchvision_input(builder.__module__, transforms)
    make = partial(_make_torchvision, builder, *code.args, **{**fixed, **code.kwargs})
    classes = len(weights.meta.get("categories", ())) if weights else 0
    return Entry(make, spec, adapts=True, classes=classes)


def _torchvision_input(module: str, transforms: Mapping[str, Any]) -> str | None:
    """Return the input of a family of models: crops of its transforms; 16 frames of a video."""
    size = transforms.get("crop_size") or transforms.get("resize_size")
    side = size[-1] if isinstance(size, tuple | list) else size
    if "detection" in module:
        return "1x3x800x800"
    if "optical_flow" in module:
        return "1x3x512x512 1x3x512x512"
    frames = "16x" if "video" in module else ""
    return f"1x3x{frames}{side}x{side}" if side else None


def _make_torchvision(
    builder: Callable[..., Any], *args: Any, channels: int = 3, **options: Any
) -> Any:
    """Return the model; its first convolution takes `channels`, which no builder can be told."""
    model = builder(*args, **options)
    if channels != 3:
        conv = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        shape = (conv.out_channels, channels, *conv.kernel_size)
        conv.in_channels = channels
        conv.weight = nn.Parameter(conv.weight.new_empty(shape))
    return model


def _timm(code: CodeName) -> Entry:
    timm = _import("timm", code.name, "timm")
    names = timm.list_models()
    without_tag = code.name.partition(".")[0]  # "resnet50.a1_in1k" names weights as well
    if code.name not in names and without_tag not in names:
        raise no_such("timm", code.name, names)
    config = timm.get_pretrained_cfg(code.name)
    size = getattr(config, "input_size", None)
    spec = "x".join(map(str, (1, *size))) if size else None
    make = partial(_make_timm, timm.create_model, code.name, *code.args, **code.kwargs)
    return Entry(make, spec, adapts=True)


def _make_timm(create: Callable[..., Any], name: str, *args: Any, **options: Any) -> Any:
    spelled = {"channels": "in_chans", "image_size": "img_size"}
    renamed = {spelled.get(key, key): value for key, value in options.items()}
    return create(name, *args, **{"pretrained": False, **renamed})


def _ultralytics(code: CodeName) -> Entry:
    tasks = _import("ultralytics", code.name, "ultralytics.nn.tasks")
    stem = code.name.removesuffix(".yaml").removesuffix(".pt")
    try:
        config = tasks.yaml_model_load(f"{stem}.yaml")
    except FileNotFoundError as error:
        package = importlib.import_module("ultralytics.cfg")
        folder = Path(str(package.__file__)).parent / "models"
        names = [path.stem for path in sorted(folder.rglob("*.yaml"))]
        raise no_such("ultralytics", code.name, names) from error
    classes = {
        "detect": tasks.DetectionModel,
        "segment": tasks.SegmentationModel,
        "classify": tasks.ClassificationModel,
        "pose": tasks.PoseModel,
        "obb": tasks.OBBModel,
    }
    task = tasks.guess_model_task(config)
    is_rtdetr = "rtdetr" in stem
    cls = tasks.RTDETRDetectionModel if is_rtdetr else classes.get(task, tasks.DetectionModel)
    side = {"classify": 224, "obb": 1024}.get(task, 640)  # as each was trained
    make = partial(_make_ultralytics, cls, f"{stem}.yaml", *code.args, **code.kwargs)
    return Entry(make, f"1x3x{side}x{side}", adapts=True, classes=int(config.get("nc") or 0))


def _make_ultralytics(cls: Callable[..., Any], name: str, *args: Any, **options: Any) -> Any:
    spelled = {"channels": "ch", "num_classes": "nc"}
    renamed = {
        spelled.get(key, key): value for key, value in options.items() if key != "image_size"
    }
    return cls(name, *args, **{"verbose": False, **renamed})


def _open_clip(code: CodeName) -> Entry:
    open_clip = _import("open_clip", code.name, "open_clip", "open_clip_torch")
    if code.name not in open_clip.list_models():
        raise no_such("open_clip", code.name, open_clip.list_models())
    config = open_clip.get_model_config(code.name)
    size = config.get("vision_cfg", {}).get("image_size", 224)
    sides = "x".join(map(str, size)) if isinstance(size, tuple | list) else f"{size}x{size}"
    text = config.get("text_cfg", {})
    length = text.get("context_length", 77)  # CLIP's own, as the next
    words = text.get("vocab_size", 49408)
    tokens = f"1x{length}:int64:0-{words - 1}"
    make = partial(_make_open_clip, open_clip.create_model, code)
    return Entry(make, f"1x3x{sides} {tokens}")


def _make_open_clip(create: Callable[..., Any], code: CodeName) -> Any:
    fixed = {
        "pretrained": None,
        "load_weights": False,
        "pretrained_text": False,
        "pretrained_hf": False,  # of versions before 3
    }
    parameters = inspect.signature(create).parameters
    options = {key: value for key, value in fixed.items() if key in parameters}
    return create(code.name, *code.args, **{**options, **code.kwargs})


def _smp(code: CodeName) -> Entry:
    smp = _import("smp", code.name, "segmentation_models_pytorch", "segmentation-models-pytorch")
    classes = {
        name: value
        for name, value in vars(smp).items()
        if isinstance(value, type) and issubclass(value, nn.Module)
    }
    if code.name not in classes:
        raise no_such("smp", code.name, sorted(classes))
    options = {"encoder_weights": None, **code.kwargs}  # the default downloads them
    return Entry(partial(classes[code.name], *code.args, **options))


def _diffusers(code: CodeName) -> Entry:
    diffusers = _import("diffusers", code.name, "diffusers")
    cls = getattr(diffusers, code.name, None)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        names = [name for name in dir(diffusers) if name.endswith(("Model", "2D", "KL"))]
        raise no_such("diffusers", code.name, names)
    return Entry(partial(cls, *code.args, **code.kwargs))


LIBRARIES: dict[str, Callable[[CodeName], Entry]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "ultralytics": _ultralytics,
    "open_clip": _open_clip,
    "smp": _smp,
    "diffusers": _diffusers,
}
