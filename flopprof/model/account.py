"""Add up what weights alone say of a model: parameters, bytes, FLOPs per position."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from flopprof import dtypes
from flopprof.model.contents import Contents
from flopprof.model.pickles import PackedTensor, PlacedTensor, TensorInfo
from flopprof.model.roles import (
    NO_PARAMETERS,
    PRODUCTS,
    Role,
    find_roles,
    is_expert,
    place_of,
)
from flopprof.stored import Experts, Group, Kind, Stored, Weight

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a whole part of a dotted path
_ACTIVE_EXPERTS = (  # what configurations call the number of experts that run for a token
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_top_k",
    "top_k",
)
_AVERAGE = re.compile(r"(?:module\.)?(?:model_ema|ema_model|ema|averaged_model|swa_model)\.")
_HEAD_ROWS = 1_000  # at least, of a table that may be a decoder's head as well: a vocabulary's
_MAX_DIGITS = 10  # of a layer's number
_LEAST_OF_WIDTH = 4  # matrices of a table's width: with fewer it is no transformer that reads it


def account_of(contents: Contents) -> Stored:
    """Return what a file's weights say; other models in it are under `others`."""
    stored = add_up(contents.tensors, contents.modules, contents.config, contents.adapter)
    stored.under = ".".join(contents.wrapper_keys) or None
    stored.configuration = contents.configuration
    stored.others = {where: add_up(tensors) for where, tensors in contents.others.items()}
    if contents.copies:
        places = ", ".join(contents.copies)
        stored.notes.append(f"the same tensors lie under {places}, too: counted once")
    if contents.aside:
        stored.notes.append(f"a trainer's state is left out: {', '.join(contents.aside)}")
    return stored


def weights_object(contents: Contents) -> dict[str, Any]:
    """Return the same as `count` and `inspect` print it with --json."""
    return asdict(account_of(contents))


def add_up(
    tensors: Mapping[str, TensorInfo],
    modules: Mapping[str, tuple[str, dict[str, Any]]] = {},
    config: Mapping[str, Any] = {},
    adapter: Mapping[str, Any] = {},
) -> Stored:
    """Return what these tensors say.

    Args:
        tensors: Shapes and dtypes.
        modules: Classes of pickled modules, by path.
        config: The config.json beside them.
        adapter: The adapter_config.json beside them.
    """
    average = _average(tensors)
    own = {key: tensors[key] for key in _in_order(tensors) if key not in average}
    weights = _weights(own, find_roles(own, modules, config))
    flops = sum(weight.matmul_flops_per_position or 0 for weight in weights)
    return Stored(
        parameters=sum(weight.parameters for weight in weights),
        bytes=sum(weight.bytes for weight in weights),
        matmul_flops_per_position=flops,
        by_kind=_by_kind(weights),
        groups=_groups(weights),
        unknown=[weight.name for weight in weights if weight.kind == "unknown"],
        experts=_experts(weights, flops, config),
        notes=_notes(weights, len(average), config, adapter),
        tensors=weights,
    )


def _in_order(keys: Iterable[str]) -> list[str]:
    """Return the keys in the file's order; siblings that are numbers go in theirs, 2 before 10."""
    places: dict[str, list[tuple[int, int]]] = {}
    first_seen: dict[tuple[str, str], int] = {}
    for key in keys:
        place = []
        prefix = ""
        for part in key.split("."):
            is_number = part.isascii() and part.isdigit() and len(part) < _MAX_DIGITS
            sibling = "#" if is_number else part
            seen = first_seen.setdefault((prefix, sibling), len(first_seen))
            place.append((seen, int(part) if is_number else 0))
            prefix = f"{prefix}.{part}"
        places[key] = place
    return sorted(places, key=places.__getitem__)


def _by_kind(weights: list[Weight]) -> dict[str, Kind]:
    """Return sums by kind of weight; kinds that are multiplied with come first."""
    kinds = sorted({w.kind for w in weights}, key=lambda kind: (kind not in PRODUCTS, kind))
    sums = {kind: Kind() for kind in kinds}
    for weight in weights:
        total = sums[weight.kind]
        total.tensors += 1
        total.parameters += weight.parameters
        total.bytes += weight.bytes
        total.matmul_flops_per_position += weight.matmul_flops_per_position or 0
    return sums


def _average(tensors: Mapping[str, TensorInfo]) -> set[str]:
    """Return the keys of a moving average of the other weights, which trainers keep beside them."""
    keys = {key for key in tensors if _AVERAGE.match(key)}
    shapes = Counter(info.shape for key, info in tensors.items() if key not in keys)
    # A single number, such as the count of updates, is the average's own.
    shapes_of_average = Counter(
        tensors[key].shape for key in keys if math.prod(tensors[key].shape) > 1
    )
    return keys if shapes_of_average <= shapes else set()


def _weights(tensors: Mapping[str, TensorInfo], roles: Mapping[str, Role]) -> list[Weight]:
    """Return what each tensor is and costs; what two names share in memory is stored once."""
    first_at: dict[tuple[Any, ...], str] = {}
    weights = []
    for key, info in tensors.items():
        role = roles[key]
        place = _place(info)
        other = first_at.setdefault(place, key) if place else key
        is_own = other == key
        is_second_name = not is_own and roles[other].kind == role.kind  # of one module
        flops = 2 * role.elements if role.kind in PRODUCTS and not is_second_name else 0
        is_learned = role.kind not in NO_PARAMETERS and is_own
        weights.append(
            Weight(
                name=key,
                shape=tuple(info.shape),
                dtype=info.dtype,
                kind=role.kind,
                why=role.why,
                parameters=role.elements if is_learned else 0,
                bytes=_size_bytes(info) if is_own else 0,
                matmul_flops_per_position=None if role.kind == "unknown" else flops,
                shared_with=None if is_own else other,
            )
        )
    return weights


def _size_bytes(info: TensorInfo) -> int:
    if isinstance(info, PackedTensor):
        return info.size_bytes
    return math.prod(info.shape) * (dtypes.itemsize(info.dtype) or 1)


def _place(info: TensorInfo) -> tuple[Any, ...]:
    """Return where a pickled tensor lies, as tied ones do in one place; () where none says."""
    if not isinstance(info, PlacedTensor) or not info.storage or 0 in info.shape:
        return ()
    return info.storage, info.start, info.shape, info.stride


class _Module(NamedTuple):
    numbers: tuple[str, ...]  # in its path
    weights: list[Weight]


def _groups(weights: Iterable[Weight]) -> list[Group]:
    """Return the modules, one group for those that differ in the numbers of their paths alone."""
    modules: dict[str, list[Weight]] = {}
    for weight in weights:
        modules.setdefault(place_of(weight.name)[0], []).append(weight)
    alike: dict[tuple[Any, ...], list[_Module]] = {}
    for path, inside in modules.items():
        looks = tuple((place_of(w.name)[1], w.shape, w.dtype, w.kind) for w in inside)
        module = _Module(tuple(_NUMBER.findall(path)), inside)
        alike.setdefault((_NUMBER.sub("#", path), looks), []).append(module)
    return [_group(pattern, members) for (pattern, _), members in alike.items()]


def _group(pattern: str, members: list[_Module]) -> Group:
    first = members[0].weights
    main = max(first, key=lambda w: (w.kind in PRODUCTS, w.kind == "unknown", math.prod(w.shape)))
    all_weights = [weight for member in members for weight in member.weights]
    flops = [w.matmul_flops_per_position for w in all_weights]
    return Group(
        path=_path(pattern, [member.numbers for member in members]),
        modules=len(members),
        kind=main.kind,
        per=PRODUCTS.get(main.kind),
        shapes=["x".join(map(str, w.shape)) or "()" for w in first if w.kind == main.kind],
        tensors=len(all_weights),
        parameters=sum(w.parameters for w in all_weights),
        bytes=sum(w.bytes for w in all_weights),
        matmul_flops_per_position=None if main.kind == "unknown" else sum(f or 0 for f in flops),
        is_expert=main.kind in PRODUCTS and is_expert(main.name),
    )


def _path(pattern: str, numbers: list[tuple[str, ...]]) -> str:
    """Return the path with the numbers of all members: "layers.{0-31}.attn"."""
    parts = pattern.split("#")
    path = parts[0]
    for place, part in enumerate(parts[1:]):
        values = sorted({int(member[place]) for member in numbers})
        shown = str(values[0]) if len(values) == 1 else f"{{{_ranges(values)}}}"
        path += shown + part
    return path


def _ranges(values: list[int]) -> str:
    """Return numbers as ranges: 0, 1, 2, 5 are "0-2,5"."""
    ranges: list[list[int]] = []
    for value in values:
        if ranges and value == ranges[-1][1] + 1:
            ranges[-1][1] = value
        else:
            ranges.append([value, value])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _experts(weights: list[Weight], flops: int, config: Mapping[str, Any]) -> Experts | None:
    """Return how many experts a layer stores and runs, and what both cost; None without experts.

    Args:
        weights: Of the model.
        flops: Per position, of all of them.
        config: Which may say how many run.
    """
    of_experts = [w for w in weights if w.kind in PRODUCTS and is_expert(w.name)]
    if not of_experts:
        return None
    numbers_of_layer: dict[str, set[str]] = {}
    for weight in of_experts:
        layer, _, after = weight.name.partition("experts.")
        number = after.partition(".")[0]
        # Experts are modules with numbers, or lie one after the other in one tensor.
        numbers = {number} if number.isdecimal() else set(map(str, range(weight.shape[0])))
        numbers_of_layer.setdefault(layer, set()).update(numbers)
    stored = max(map(len, numbers_of_layer.values()))
    active = _active_experts(config, stored)
    expert_flops = sum(w.matmul_flops_per_position or 0 for w in of_experts)
    active_flops = None
    if active is not None:
        active_flops = flops - expert_flops + expert_flops * active // stored
    return Experts(
        stored=stored,
        active=active,
        matmul_flops_per_position=expert_flops,
        model_flops_per_position_active=active_flops,
    )


def _active_experts(config: Mapping[str, Any], stored: int) -> int | None:
    """Return how many of the stored experts run for a token; None where no sound number is said."""
    inner = config.get("text_config")
    for section in (config, inner if isinstance(inner, dict) else {}):
        for name in _ACTIVE_EXPERTS:
            if name in section:
                active = section[name]
                return active if type(active) is int and 0 < active <= stored else None
    return None


def _notes(
    weights: list[Weight], average: int, config: Mapping[str, Any], adapter: Mapping[str, Any]
) -> list[str]:
    """Return what is to be known of the sum, in words."""
    notes = []
    if average:
        notes.append(f"{average} tensors are an average of the others (EMA): counted once")
    shared = [w for w in weights if w.shared_with]
    if shared:
        first = shared[0]
        notes.append(
            f"{len(shared)} tensors are stored once under two names ({first.name} is "
            f"{first.shared_with}): they count once, but a table that is also multiplied"
        )
    if table := _maybe_head(weights, config):
        notes.append(
            f"{table.name} may be the head, too (tied): the product with it is "
            f"{2 * math.prod(table.shape):,} FLOPs more per position"
        )
    names = [weight.name for weight in weights]
    if adapter or any(".lora_" in name or "lora_down" in name for name in names):
        notes.append("these are an adapter's matrices: the model that it adapts is not in the file")
    return notes


def _maybe_head(weights: list[Weight], config: Mapping[str, Any]) -> Weight | None:
    """Return the table of words where no other matrix of its size is there to be the head."""
    tables = [
        w
        for w in weights
        if w.kind == "embedding" and len(w.shape) == 2 and w.shape[0] >= _HEAD_ROWS
    ]
    if not tables or config.get("tie_word_embeddings") is False:
        return None
    table = max(tables, key=lambda w: w.shape[0])
    matrices = [w for w in weights if w.kind == "linear" and len(w.shape) == 2]
    of_its_width = [w for w in matrices if table.shape[1] in w.shape]
    is_transformer = len(of_its_width) >= _LEAST_OF_WIDTH and 2 * len(of_its_width) > len(matrices)
    has_head = any(table.shape[0] in w.shape for w in matrices)
    return table if is_transformer and not has_head else None
