"""Whether two symbolic values are alike, looked at by themselves."""

from __future__ import annotations

import io
import marshal
import zipfile
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from .dense import Dense, rebuild_method
from .graph import ATOMS, buffer_number, class_number, parts
from .nodes import Call, FrozenItems, Global, Items, Pairs

_CACHE = "_cache"
_SAY_NOTHING = (".debug_pkl", "/.data/serialization_id")
CODE = frozenset({"function", "code"})
"""Methods of `Rebuild` whose first argument is marshalled code."""


def same_atom(one: Any, other: Any) -> bool:
    """Tell whether two plain values of one type are the same, bit for bit."""
    if type(one) is float:
        return one == other if one == other != 0 else repr(one) == repr(other)
    return bool(one == other)


def atom_key(value: Any) -> tuple[str, Any]:
    """Return what is equal for the same plain values only."""
    kind = type(value)
    if kind is int:
        # Decimal digits of long numbers cost too much, and Python refuses them.
        return "int", hex(value)
    return kind.__name__, repr(value) if kind is float else value


def same_code(one: Any, other: Any) -> bool:
    """Tell whether two pieces of marshalled code are equal.

    The bytes differ with what was referred to how often, which says nothing.
    """
    if one == other:
        return True
    try:
        return bool(marshal.loads(one) == marshal.loads(other))  # noqa: S302
    except (TypeError, ValueError, EOFError):
        return False


def archive(data: Any) -> dict[str, bytes] | None:
    """Return the files in a zip archive that say something, ``None`` if it is none.

    Where the source was found, and a number drawn for each archive, say nothing.
    """
    if type(data) is not bytes or not data.startswith(b"PK\x03\x04"):
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as found:
            names = [n for n in found.namelist() if not n.endswith(_SAY_NOTHING)]
            return {name: found.read(name) for name in names}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError):
        return None


def fingerprint(
    value: Any,
    buffers: Mapping[int, Mapping[str, Any]],
    rounds: int,
    known: dict[tuple[int, int], bytes],
) -> bytes:
    """Return a hash of what lies up to `rounds` references below `value`, equal on both sides."""
    kind = type(value)
    hasher = blake2b(kind.__name__.encode(), digest_size=16)
    if kind in ATOMS:
        hasher.update(repr(atom_key(value)).encode("utf-8", "surrogatepass"))
        return hasher.digest()
    if kind is Global:
        hasher.update(f"{value.module} {value.name}".encode())
        return hasher.digest()
    number = buffer_number(value)
    if number is not None:
        hasher.update(str(buffers[number]["nbytes"]).encode())
        return hasher.digest()
    if rounds == 0 or class_number(value) is not None or rebuild_method(value) in CODE:
        return hasher.digest()
    place = (id(value), rounds)
    if place not in known:
        inner = [fingerprint(part, buffers, rounds - 1, known) for part in parts(value)]
        if kind in (Items, FrozenItems):
            inner.sort()
        hasher.update(b"".join(inner))
        known[place] = hasher.digest()
    return known[place]


def kind_of(value: Any) -> str:
    """Return what one calls such a value."""
    names = {Pairs: "dict", Items: "set", FrozenItems: "frozenset", Global: "name"}
    if type(value) is Call:
        function = value.function
        return function.name.rpartition(".")[2] if type(function) is Global else "object"
    return names.get(type(value), type(value).__name__)


def steps(dense: Dense) -> list[int]:
    """Return the strides of an array that matter: not those of a dimension of one item."""
    if 0 in dense.shape:
        return []
    return [stride for n, stride in zip(dense.shape, dense.strides, strict=True) if n > 1]


def meaningful(function: Global, states: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return the states of an object without what says nothing.

    That is what pandas keeps to be quicker, and that an iterator stands at the beginning, which one
    over a dictionary does not say and the one over a list that it comes back as does.
    """
    if (function.module, function.name) == ("builtins", "iter"):
        return [entry for entry in states if entry != (None, 0)]
    if not function.module.startswith("pandas."):
        return states
    found = []
    for setter, state in states:
        parts = state if type(state) is tuple else (state,)
        if any(type(part) is Pairs and _CACHE in part[::2] for part in parts):
            kept = [_without_cache(part) if type(part) is Pairs else part for part in parts]
            left = tuple(part for part in kept if type(part) is not Pairs or part)
            found.append((setter, left if type(state) is tuple else kept[0]))
        else:
            found.append((setter, state))
    return found


def _without_cache(pairs: Pairs) -> Pairs:
    kept = Pairs()
    for place in range(0, len(pairs), 2):
        if pairs[place] != _CACHE:
            kept.extend(pairs[place : place + 2])
    return kept
