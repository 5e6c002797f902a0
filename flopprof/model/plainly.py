"""Turn what a pickle holds besides tensors, read inertly, into plain values: a configuration."""

import math
from typing import Any

from flopprof.model.pickles import Stub, TensorInfo, attributes, entries

MAX_VALUES = 2_000  # more than anybody reads
_MAX_DEPTH = 8
_MAX_TEXT = 200
_MAX_ITEMS = 100  # of one list
_LEAVES = ("_val", "_content")  # where omegaconf's nodes keep their values
_NOTHING = object()


class Plain:
    """Turns stubs into plain values, up to MAX_VALUES of them."""

    def __init__(self) -> None:
        self.values_left = MAX_VALUES

    def of(self, node: Any, depth: int = 0) -> Any:
        """Return `node` as dicts, lists, texts, numbers; `_NOTHING` for tensors and the empty."""
        self.values_left -= 1
        if self.values_left < 0 or depth > _MAX_DEPTH or isinstance(node, TensorInfo):
            return _NOTHING
        if node is None or isinstance(node, bool):
            return node
        if isinstance(node, int):
            return node if abs(node) < 1 << 63 else "a number of many digits"
        if isinstance(node, float):
            return node if math.isfinite(node) else str(node)
        if isinstance(node, str):
            return node[:_MAX_TEXT]
        if isinstance(node, list | tuple):
            return self._list(list(node), depth)
        if isinstance(node, Stub) and not entries(node):
            return self._object(node, depth)
        return self._dict(entries(node), depth)

    def _list(self, contents: list[Any], depth: int) -> Any:
        values = [self.of(item, depth + 1) for item in contents[:_MAX_ITEMS]]
        values = [value for value in values if value is not _NOTHING]
        return values if values or not contents else _NOTHING

    def _dict(self, pairs: dict[Any, Any], depth: int) -> Any:
        values = {}
        for key, item in pairs.items():
            if self.values_left < 0:
                break
            value = self.of(item, depth + 1)
            if value is not _NOTHING:
                values[str(key)[:_MAX_TEXT]] = value
        return values if values or not pairs else _NOTHING

    def _object(self, node: Stub, depth: int) -> Any:
        """Return what an object's attributes or arguments are; a class or function is its name."""
        state = attributes(node)
        for name in _LEAVES:
            if name in state:
                return self.of(state[name], depth + 1)
        own = {key: value for key, value in state.items() if not str(key).startswith("_")}
        if own:
            return self._dict(own, depth)
        if len(node.args) == 1:
            return self.of(node.args[0], depth + 1)
        return node.origin[:_MAX_TEXT] if not node.args and not state else _NOTHING


def configuration(root: Any, *, without: Any) -> dict[str, Any]:
    """Return what the containers beside the weights hold that is no tensor, by key or place.

    Args:
        root: What the file holds.
        without: A pattern; containers whose keys it matches are a trainer's state.
    """
    if isinstance(root, list | tuple) and not isinstance(root, TensorInfo):
        pairs = {str(place): value for place, value in enumerate(root[:_MAX_ITEMS])}
    else:
        pairs = {key: value for key, value in entries(root).items() if isinstance(key, str)}
    plain = Plain()
    plain_values = {}
    for key, value in pairs.items():
        if not isinstance(value, dict | list | tuple | Stub) or isinstance(value, TensorInfo):
            continue
        if without.search(key) or "_modules" in attributes(value):
            continue
        turned = plain.of(value)
        if turned is not _NOTHING and turned not in ({}, []):
            plain_values[key[:_MAX_TEXT]] = turned
    return plain_values
