"""Where inside a variable an object sits, for the report."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator
from typing import Any

_MAX_OBJECTS = 100_000


def find_path(value: Any, culprit: Any) -> str:
    """Return how to get from `value` to `culprit`, e.g. ``".loader['x'][2]"``; "" if not found."""
    queue: deque[tuple[Any, str]] = deque([(value, "")])
    seen: set[int] = set()
    while queue and len(seen) < _MAX_OBJECTS:
        obj, path = queue.popleft()
        if obj is culprit:
            return path
        if id(obj) in seen or isinstance(obj, (str, bytes, int, float, complex)):
            continue
        seen.add(id(obj))
        queue.extend((child, path + step) for child, step in _children(obj))
    return ""


def _children(obj: Any) -> Iterator[tuple[Any, str]]:
    kind = type(obj)
    if issubclass(kind, dict):
        for key, child in dict.items(obj):
            yield child, f"[{key!r:.60}]"
    elif issubclass(kind, (list, tuple)):
        for index, child in enumerate(obj):
            yield child, f"[{index}]"
    elif kind in (set, frozenset):
        for child in obj:
            yield child, "{…}"
    if isinstance(obj, types.FunctionType):
        for cell, name in zip(obj.__closure__ or (), obj.__code__.co_freevars, strict=True):
            for contents in _contents(cell):
                yield contents, f".<{name}>"
    attributes = vars(obj) if type(getattr(obj, "__dict__", None)) is dict else {}
    for name, child in dict(attributes).items():
        yield child, f".{name}"
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            descriptor = vars(base).get(name)
            if isinstance(descriptor, types.MemberDescriptorType) and hasattr(obj, name):
                yield getattr(obj, name), f".{name}"


def _contents(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:
        return []
