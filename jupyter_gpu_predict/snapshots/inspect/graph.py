"""The graph of symbolic values: what refers to what, and which variables share an object."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from ..rebuild import Rebuild
from .dense import rebuild_method
from .nodes import Call, FrozenItems, Global, Items, Pairs

ATOMS = frozenset({type(None), bool, int, float, str, bytes})
MUTABLE = frozenset({list, Pairs, Items, bytearray})

_WITHOUT_IDENTITY = frozenset(
    {
        "attribute",
        "code",
        "definition",
        "get_namespace",
        "main_module",
        "module",
        "shell",
        "standard_stream",
    }
)
"""Methods of `Rebuild` that return what is there once in a process however often asked for."""

_CLASS_MAKERS = frozenset({"make_class", "enum_class"})
MOST_VISITS = 5_000_000


def parts(value: Any) -> Iterable[Any]:
    """Return what a value refers to."""
    if type(value) is Call:
        return _call_parts(value)
    if type(value) in (list, tuple, Pairs, Items, FrozenItems):
        found: Iterable[Any] = value
        return found
    return ()


def _call_parts(value: Call) -> Iterator[Any]:
    yield value.function
    yield value.arguments
    if value.keywords is not None:
        yield value.keywords
    if value.items is not None:
        yield from value.items
    if value.pairs is not None:
        yield from value.pairs
    for setter, state in value.states or ():
        yield setter
        yield state


def has_identity(value: Any) -> bool:
    """Tell whether it matters to the user that two references lead to one object.

    For what cannot change, such as a date or a dtype, it does not.
    """
    if type(value) in MUTABLE:
        return True
    if type(value) is not Call:
        return False
    method = rebuild_method(value)
    if method is not None:
        return method not in _WITHOUT_IDENTITY
    if type(value.function) is Global and value.function.module == "numpy":
        return not value.function.name.endswith("dtype")
    if value.items is not None or value.pairs is not None or value.states:
        return True
    return not _is_plain(value, 4)


def _is_plain(value: Any, depth: int) -> bool:
    kind = type(value)
    if kind in ATOMS or kind is Global:
        return True
    if depth == 0:
        return False
    if kind in (tuple, FrozenItems):
        return len(value) <= 64 and all(_is_plain(item, depth - 1) for item in value)
    if kind is Call and value.how == "reduce":
        return not has_identity(value) if value.states else _is_plain(value.arguments, depth - 1)
    return False


@lru_cache(maxsize=256)
def takes_buffer(method: str) -> bool:
    """Tell whether a method of `Rebuild` gets the number of a buffer as its first argument."""
    function = getattr(Rebuild, method, None)
    if function is None or method == "definition":
        return False
    names = list(inspect.signature(function).parameters)
    return names[1:2] == ["index"]


def buffer_number(value: Any) -> int | None:
    """Return the number of the buffer that a call asks for."""
    if type(value) is not Call or type(value.arguments) is not tuple:
        return None
    if value.how != "buffer":
        method = rebuild_method(value)
        if method is None or not takes_buffer(method):
            return None
    number = value.arguments[0] if value.arguments else None
    return number if type(number) is int else None


def class_number(value: Any) -> int | None:
    """Return the number of the session's class that a call asks for."""
    if type(value) is Call and rebuild_method(value) == "definition":
        number = value.arguments[0] if value.arguments else None
        return number if type(number) is int else None
    return None


def find_shared(
    roots: Mapping[str, Any], most_visits: int = MOST_VISITS
) -> tuple[dict[int, int], dict[int, int]]:
    """Return which objects and which buffers several variables share.

    Both results give a set of variables as bits, in the order of `roots`: by the ``id`` of the
    symbolic value, and by the number of the buffer. Beyond `most_visits` what is shared is looked
    for only where it is met first.
    """
    masks: dict[int, int] = {}
    several: dict[int, int] = {}
    memory: dict[int, int] = {}
    visits = 0
    for place, root in enumerate(roots.values()):
        bit = 1 << place
        waiting = [root]
        while waiting:
            value = waiting.pop()
            if type(value) in ATOMS or type(value) is Global:
                continue
            mask = masks.get(id(value), 0)
            if mask & bit:
                continue
            masks[id(value)] = mask | bit
            visits += 1
            if mask and has_identity(value) and rebuild_method(value) not in _CLASS_MAKERS:
                several[id(value)] = mask | bit
            number = buffer_number(value)
            if number is not None:
                memory[number] = memory.get(number, 0) | bit
            if mask == 0 or visits < most_visits:
                waiting.extend(parts(value))
    return several, {number: mask for number, mask in memory.items() if mask & (mask - 1)}


def weigh(root: Any, buffers: Mapping[int, Mapping[str, Any]]) -> dict[int, int]:
    """Return about how many bytes each object below `root` takes, by its ``id``.

    What is referred to several times counts where it is met first.
    """
    weights: dict[int, int] = {}
    seen_buffers: set[int] = set()
    path: list[tuple[Any, Iterator[Any]]] = []

    def enter(value: Any) -> None:
        number = buffer_number(value)
        own = 0
        if number is not None and number not in seen_buffers and number in buffers:
            seen_buffers.add(number)
            own = buffers[number]["nbytes"]
        weights[id(value)] = own
        path.append((value, iter(parts(value))))

    if type(root) in ATOMS or type(root) in (Global, bytearray):
        return {id(root): atom_bytes(root)}
    enter(root)
    while path:
        value, rest = path[-1]
        for child in rest:
            if type(child) in ATOMS or type(child) in (Global, bytearray):
                weights[id(value)] += atom_bytes(child)
            elif id(child) not in weights:
                enter(child)
                break
        else:
            path.pop()
            if path:
                weights[id(path[-1][0])] += weights[id(value)]
    return weights


def atom_bytes(value: Any) -> int:
    """Return about how many bytes a number, a text or bytes take."""
    if isinstance(value, (str, bytes, bytearray)):
        return len(value)
    if type(value) is int:
        return value.bit_length() // 8 + 1
    return 8 if type(value) is float else 1
