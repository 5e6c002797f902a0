"""Know quantised weights by the tensors that lie beside them, and how many numbers are packed."""

import math
from collections.abc import Mapping
from typing import Any

from flopprof.model.pickles import TensorInfo

_INT_BITS = 32  # of the integers that GPTQ and AWQ pack into
Packed = tuple[str, str, int]  # kind, reason and number of elements, as of a `Role`
_UNKNOWN_BITS = "packed, and nothing says in how many bits"


def packed_role(
    leaf: str, info: TensorInfo, beside: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> Packed | None:
    """Return kind, reason and number of elements of a packed weight; None for all other tensors.

    Args:
        leaf: The tensor's name in its module.
        info: Its shape and dtype as stored.
        beside: All tensors of the module, by name.
        config: The config.json beside the file, whose quantization_config may name the bits.
    """
    size = math.prod(info.shape)
    if leaf == "qweight" and "scales" in beside and len(info.shape) == 2:
        return _by_gptq(info, beside, config)
    if leaf == "weight_packed":
        bits = _bits(config)
        if not bits:
            return "unknown", _UNKNOWN_BITS, size
        return "linear", f"packed in {bits} bits", size * _INT_BITS // bits
    if (leaf == "weight" and "weight.absmax" in beside) or _is_4bit(leaf, info, beside):
        return "linear", "packed in 4 bits by bitsandbytes", 2 * size
    if leaf.endswith("_blocks") and f"{leaf.removesuffix('_blocks')}_scales" in beside:
        return "linear", "packed in 4 bits (MXFP4)", 2 * size
    if leaf == "weight" and info.dtype == "int8" and len(info.shape) == 2:
        has_scales = "SCB" in beside or any("scale" in name for name in beside)
        return "linear", "int8 with scales" if has_scales else "int8", size
    return None


def _is_4bit(leaf: str, info: TensorInfo, beside: Mapping[str, TensorInfo]) -> bool:
    """Return whether bitsandbytes packed a weight in one column of bytes, two numbers each."""
    is_column = len(info.shape) == 2 and info.shape[1] == 1
    return leaf == "weight" and info.dtype == "uint8" and is_column and "absmax" in beside


def _by_gptq(
    info: TensorInfo, beside: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> Packed:
    """Return the weight of GPTQ, its rows packed, or of AWQ; each output has its scales."""
    rows, columns = info.shape
    outputs = beside["scales"].shape[-1]
    if columns != outputs:
        return "linear", f"packed in {_INT_BITS * columns // outputs} bits (AWQ)", rows * outputs
    bits = _bits(config)
    zeros = beside.get("qzeros")
    if "g_idx" in beside:
        inputs = math.prod(beside["g_idx"].shape)
        bits = bits or _INT_BITS * rows // max(inputs, 1)
    elif zeros is not None and len(zeros.shape) == 2:
        bits = bits or _INT_BITS * zeros.shape[1] // outputs
    if not bits:
        return "unknown", _UNKNOWN_BITS, rows * columns
    return "linear", f"packed in {bits} bits (GPTQ)", rows * columns * _INT_BITS // bits


def _bits(config: Mapping[str, Any]) -> int:
    """Return the bits of a weight that quantization_config names; 0 where it names none."""
    settings = config.get("quantization_config")
    if not isinstance(settings, dict):
        return 0
    groups = settings.get("config_groups")
    groups = groups if isinstance(groups, dict) else {}
    of_groups = [group.get("weights") for group in groups.values() if isinstance(group, dict)]
    for place in (settings, *of_groups):
        if not isinstance(place, dict):
            continue
        for name in ("bits", "num_bits", "w_bit"):
            value = place.get(name)
            if type(value) is int and 0 < value <= _INT_BITS:
                return value
    return 0
