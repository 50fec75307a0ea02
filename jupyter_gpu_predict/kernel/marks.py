"""Marks of small values, by which a cell run tells what it really read and changed.

Only exact builtin types are looked at, and no method of the user's is ever called: a mark costs
microseconds while the user waits. A value that is larger, or of another type, has none.
"""

from __future__ import annotations

import marshal
import sys
from hashlib import blake2b
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

MAX_NODES = 256
MAX_BYTES = 1 << 14

_ATOMS = frozenset({int, float, complex, bool, type(None), type(...), str, bytes, range})
_CONTAINERS = frozenset({list, tuple, dict, set, frozenset, bytearray})
_FIXED = {
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "numpy": ("dtype",),
    "pandas": ("Timestamp", "Timedelta"),
    "pathlib": ("Path", "PosixPath", "PurePath", "PurePosixPath"),
    "re": ("Pattern",),
    "torch": ("Size", "device", "dtype"),
    "uuid": ("UUID",),
}
_DATA = {
    "numpy": ("ndarray",),
    "pandas": ("DataFrame", "Series", "Index", "RangeIndex"),
    "torch": ("Tensor",),
}


def kind_of(value: Any) -> str:
    """Return what a value can do, in a word.

    ``"atom"`` cannot change; ``"module:NAME"``; ``"code:MODULE.NAME"`` is a class, or a function
    without state; ``"data"`` changes only through what is done to it by name; ``"other"`` may
    change whenever it is used, as an iterator does.
    """
    kind = type(value)
    if kind in _ATOMS:
        return "atom"
    if kind in _CONTAINERS:
        return (
            "atom"
            if kind in (tuple, frozenset) and all(type(v) in _ATOMS for v in value)
            else "data"
        )
    if kind is ModuleType:
        return f"module:{value.__dict__.get('__name__', '')}"
    if kind is FunctionType:
        if value.__closure__ is None:
            return f"code:{value.__module__}.{value.__qualname__}"
        return "other"
    if kind is BuiltinFunctionType:
        owner = value.__self__
        if owner is None or type(owner) is ModuleType:
            return f"code:{value.__module__}.{value.__qualname__}"
        return "other"
    if isinstance(kind, type) and issubclass(kind, type):
        own = type.__getattribute__(value, "__module__") if kind is type else ""
        return f"code:{own}.{value.__qualname__}"
    package = str(kind.__module__).partition(".")[0]
    if package == "numpy" and kind.__name__ in ("ufunc", "_ArrayFunctionDispatcher"):
        return f"code:numpy.{value.__name__}"
    if any(_is(value, package, name) for name in _FIXED.get(package, ())) or _is_scalar(value):
        return "atom"
    if any(_is(value, package, name) for name in _DATA.get(package, ())):
        return "data"
    return "other"


def fingerprint(value: Any, budget: int = MAX_NODES) -> str:
    """Return the mark of a small value, equal for equal values in any process, or ``""``."""
    kind = type(value)
    if kind in _ATOMS:
        return _mark(value) if _atom_size(value) <= MAX_BYTES else ""
    if kind in _CONTAINERS:
        plain, left, _ = _plain(value, budget, MAX_BYTES)
        return _mark(plain) if left >= 0 else ""
    if kind is ModuleType:
        return f"module:{value.__dict__.get('__name__', '')}"
    if _is_scalar(value):
        return _hash(value.dtype.str.encode() + value.tobytes())
    if _is(value, "numpy", "ndarray") and value.nbytes <= MAX_BYTES and not value.dtype.hasobject:
        head = f"{value.dtype.str}{value.dtype.descr}{value.shape}"
        return _hash(head.encode() + value.tobytes())
    return ""


def _is(value: Any, package: str, name: str) -> bool:
    """Whether `value` is exactly of that type; a library that is not loaded has no values."""
    module = sys.modules.get(package)
    return module is not None and type(value) is module.__dict__.get(name)


def _is_scalar(value: Any) -> bool:
    """Whether `value` is one of numpy's numbers."""
    numpy = sys.modules.get("numpy")
    number = None if numpy is None else numpy.__dict__.get("number")
    return number is not None and isinstance(value, number) and type(value).__module__ == "numpy"


def _plain(value: Any, nodes: int, size: int) -> tuple[Any, int, int]:
    """Return `value` in a form that marshal writes alike everywhere; nodes below 0: too much."""
    kind = type(value)
    nodes -= 1
    if kind in _ATOMS:
        size -= _atom_size(value)
        return (value if kind is not range else repr(value)), (nodes if size >= 0 else -1), size
    if kind is bytearray:
        size -= len(value)
        return (
            (("bytearray", bytes(value)) if size >= 0 else None),
            (nodes if size >= 0 else -1),
            size,
        )
    if kind not in _CONTAINERS or len(value) > nodes:
        return None, -1, size
    items = [part for pair in value.items() for part in pair] if kind is dict else list(value)
    found = []
    for item in items:
        plain, nodes, size = _plain(item, nodes, size)
        if nodes < 0:
            return None, -1, size
        found.append(plain)
    if kind in (set, frozenset):
        found.sort(key=lambda item: marshal.dumps(item, 2))
    return (kind.__name__, found), nodes, size


def _atom_size(value: Any) -> int:
    if type(value) in (str, bytes):
        return len(value)
    return value.bit_length() >> 3 if type(value) is int else 8


def _mark(value: Any) -> str:
    if type(value) is range:
        value = repr(value)
    if value is ...:
        return "..."
    return _hash(marshal.dumps((type(value).__name__, value), 2))


def _hash(data: bytes) -> str:
    return blake2b(data, digest_size=8).hexdigest()
