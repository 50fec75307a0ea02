"""Objects whose identity is state, and those that are one and the same everywhere anyway."""

from __future__ import annotations

import builtins
import enum
import sys
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .definitions import importable
from .plain import Attributes

if TYPE_CHECKING:
    from .pickling import Context, SnapshotPickler

LARGE_CONSTANT_BYTES = 1 << 20
"""Shared strings and bytes from this size on are written once, which puts their owners together."""

ATOMS: frozenset[type] = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Immutable types without references."""

CONTAINERS: frozenset[type] = frozenset({list, dict, set, bytearray})
"""Types with identity that the C pickler writes without asking."""

_CONSTANTS = (
    str,
    bytes,
    int,
    float,
    complex,
    bool,
    tuple,
    frozenset,
    type,
    types.NoneType,
    types.ModuleType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.CodeType,
    types.GenericAlias,
    enum.Enum,
    Attributes,
)
_LIBRARY_CONSTANTS = (("numpy", ("dtype", "ufunc")), ("torch", ("dtype", "device", "layout")))


def has_identity(context: Context, obj: Any) -> bool:
    """Tell whether two variables that hold `obj` must hold the same object after a restore."""
    kind = type(obj)
    if kind in CONTAINERS:
        return obj is not context.namespace and obj is not vars(builtins)
    if isinstance(obj, (str, bytes)):
        return sys.getsizeof(obj) >= LARGE_CONSTANT_BYTES
    if kind is types.FunctionType:
        return not importable(obj, context.main_names)
    if kind.__module__ == "typing":
        # A type variable of the session is known by identity; others are found by name.
        return getattr(obj, "__module__", None) in context.main_names
    return not is_constant_kind(kind)


def is_constant_kind(kind: type) -> bool:
    """Tell whether instances of `kind` are equal to their copies for all purposes."""
    if issubclass(kind, _CONSTANTS):
        return True
    for module, names in _LIBRARY_CONSTANTS:
        library = sys.modules.get(module)
        if library is not None and issubclass(kind, tuple(getattr(library, n) for n in names)):
            return True
    return False


def is_shallow(value: Any) -> bool:
    """Tell whether `value` is a container of the standard library that holds atoms only."""
    kind = type(value)
    if kind is dict:
        return _atoms(value) and _atoms(value.values())
    return kind in (list, set, tuple, frozenset) and _atoms(value)


def _atoms(items: Any) -> bool:
    kinds = set(map(type, items))
    if not kinds <= ATOMS:
        return False
    if kinds.isdisjoint(_LONG):
        return True
    if not kinds <= _LONG:
        items = [i for i in items if type(i) is str or type(i) is bytes]
    return max(map(len, items)) < LARGE_CONSTANT_BYTES


_LONG = frozenset({str, bytes})


def memo_objects(pickler: SnapshotPickler) -> Iterator[Any]:
    """Yield the objects that a pickler has written, and some that nobody else knows."""
    own = vars(pickler)
    return (obj for obj in _referents(pickler) if obj is not own)


def _from_copy(pickler: Any) -> list[Any]:
    return [obj for _, obj in pickler.memo.copy().values()]


def _find_way() -> Callable[[Any], list[Any]]:
    """Return the cheapest way to a pickler's memo: its traversal, where this Python has it."""
    import gc
    import io
    import pickle

    probe: list[Any] = []
    pickler = pickle.Pickler(io.BytesIO())
    pickler.dump(probe)
    if any(obj is probe for obj in gc.get_referents(pickler)):
        return gc.get_referents
    return _from_copy


_referents = _find_way()
