"""What of an object counts as its state: the heads and children that `digest` hashes."""

from __future__ import annotations

import array
import copyreg
import enum
import functools
import marshal
import mmap
import threading
import types
import weakref
from dataclasses import dataclass, field
from typing import Any

from .definitions import class_attributes, ctypes_form, importable
from .digest_libraries import LibraryNode, library_node
from .digest_memory import plain_digest
from .report import type_name

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
_MAIN = frozenset({"__main__"})
_CACHES = frozenset({"__static_attributes__", "__annotations_cache__", "__firstlineno__"})
_ATOM_BASES: tuple[Any, ...] = (int, str, float, bytes, complex)
_PROPERTY_PARTS = ("fget", "fset", "fdel")


@dataclass(frozen=True, slots=True)
class Node:
    """An object as `digest` sees it: its own data and what it refers to."""

    head: bytes
    children: list[Any] = field(default_factory=list)
    unordered: bool = False
    made: bool = False
    """Whether its children were made for the occasion, by ``__reduce__`` or ``__getstate__``."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """An object without a canonical form."""

    type_name: str


def expand(obj: Any) -> Node | Opaque:
    """Return the node of `obj`, which is no atom."""
    kind = type(obj)
    builtin = _BUILTIN.get(kind)
    if builtin is not None:
        node: Node | Opaque = builtin(obj)
        return node
    if isinstance(obj, type):
        return _class(obj)
    if isinstance(obj, enum.Enum):
        return Node(b"enum " + str(obj._name_).encode(), [kind, obj._value_])
    if isinstance(obj, (set, frozenset)):
        return Node(b"set", _set_children(obj), True)
    found = library_node(obj)
    if found is not None:
        return Node(*found) if isinstance(found, LibraryNode) else Opaque(found)
    return _instance(obj)


def _list(obj: list[Any]) -> Node:
    if ATOMS.issuperset(map(type, obj)):
        return Node(b"list" + plain_digest(marshal.dumps(obj, 2)))
    return Node(b"list of", list(obj))


def _tuple(obj: tuple[Any, ...]) -> Node:
    if ATOMS.issuperset(map(type, obj)):
        return Node(b"tuple" + plain_digest(marshal.dumps(obj, 2)))
    return Node(b"tuple of", list(obj))


def _dict(obj: dict[Any, Any]) -> Node:
    if ATOMS.issuperset(map(type, obj)) and ATOMS.issuperset(map(type, obj.values())):
        return Node(b"dict" + plain_digest(marshal.dumps([*obj, *obj.values()], 2)))
    return Node(b"dict of", [part for item in obj.items() for part in item])


def _set_children(obj: Any) -> list[Any]:
    items = list(frozenset.__iter__(obj) if isinstance(obj, frozenset) else set.__iter__(obj))
    state = dict(vars(obj)) if hasattr(obj, "__dict__") else {}
    return [type(obj), *items, *([_Sorted(state)] if state else [])]


class _Sorted:
    """Attributes, whose order is no state."""

    __slots__ = ("items",)

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.items = sorted(attributes.items())


def _sorted(obj: _Sorted) -> Node:
    return Node(b"attributes", [part for item in obj.items for part in item])


def _function(obj: types.FunctionType) -> Node:
    if importable(obj, _MAIN):
        return Node(f"function {obj.__module__}.{obj.__qualname__}".encode())
    children = [
        obj.__code__,
        obj.__defaults__,
        obj.__kwdefaults__,
        list(obj.__closure__ or ()),
        _Sorted(vars(obj)),
    ]
    return Node(f"def {obj.__qualname__}".encode(), children)


def _code(obj: types.CodeType) -> Node:
    counts = (obj.co_argcount, obj.co_posonlyargcount, obj.co_kwonlyargcount, obj.co_flags)
    names = (obj.co_names, obj.co_varnames, obj.co_freevars, obj.co_cellvars)
    # Where it was defined (file name, line table) is no state: a kernel's file names carry its pid.
    return Node(b"code", [obj.co_name, obj.co_code, counts, *names, list(obj.co_consts)])


def _cell(obj: types.CellType) -> Node:
    try:
        return Node(b"cell", [obj.cell_contents])
    except ValueError:
        return Node(b"empty cell")


def _builtin_function(obj: Any) -> Node:
    owner = getattr(obj, "__self__", None)
    head = f"builtin {obj.__module__}.{obj.__qualname__}".encode()
    return Node(head, [] if owner is None or isinstance(owner, types.ModuleType) else [owner])


def _class(obj: type) -> Node:
    if (made := ctypes_form(obj)) is not None:
        return Node(b"ctypes", list(made[1]))
    name = f"class {obj.__module__}.{obj.__qualname__}".encode()
    heap = obj.__flags__ & (1 << 9)
    if not heap or importable(obj, _MAIN):
        return Node(name)
    attributes = {k: v for k, v in class_attributes(obj).items() if k not in _CACHES}
    children: list[Any] = [type(obj), list(obj.__bases__), obj.__doc__, _Sorted(attributes)]
    if issubclass(obj, enum.Enum):
        for key, member in obj.__members__.items():
            children += [key, member._value_, _Sorted(vars(member) | {"__objclass__": None})]
    return Node(b"defined " + name, children)


def _property(obj: Any) -> Node:
    return Node(b"property", [getattr(obj, part) for part in _PROPERTY_PARTS])


def _wrapper(obj: Any) -> Node:
    return Node(type(obj).__name__.encode(), [obj.__func__])


def _lru_cache(obj: Any) -> Node:
    return Node(b"lru_cache", [obj.__wrapped__, _Sorted(obj.cache_parameters())])


def _descriptor(obj: Any) -> Node:
    return Node(f"descriptor {obj.__name__}".encode(), [obj.__objclass__])


def _instance(obj: Any) -> Node | Opaque:
    kind = type(obj)
    own_state = getattr(kind, "__getstate__", None)
    if own_state is not None and own_state is not getattr(object, "__getstate__", None):
        state = obj.__getstate__()
        children = [kind, _Sorted(state) if _named(state) else state, *_content(obj)]
        return Node(b"state", children, made=True)
    reduce = copyreg.dispatch_table.get(kind)
    plain = all(getattr(kind, n) is getattr(object, n) for n in ("__reduce_ex__", "__reduce__"))
    if reduce is None and plain and (_from_python(kind) or isinstance(obj, (dict, list, tuple))):
        attributes = [part for item in sorted(_attributes(obj).items()) for part in item]
        return Node(b"instance", [kind, len(attributes), *attributes, *_content(obj)])
    value = reduce(obj) if reduce is not None else obj.__reduce_ex__(4)
    if isinstance(value, str):
        return Node(f"name {kind.__module__}.{value}".encode())
    function, arguments, *rest = value
    if function is iter and arguments:
        return Node(b"iterator", _remaining(arguments, rest), made=True)
    state, items, pairs = [*rest, None, None, None][:3]
    parts = [_Sorted(state) if _named(state) else state]
    parts += [None if part is None else list(part) for part in (items, pairs)]
    return Node(b"reduced", [function, arguments, *parts], made=True)


def _remaining(arguments: tuple[Any, ...], rest: list[Any]) -> list[Any]:
    """Return what an iterator over a container would still give; its state is the place in it."""
    source, place = arguments[0], rest[0] if rest else None
    if len(arguments) == 1 and type(place) is int and isinstance(source, (list, tuple, str, bytes)):
        source = source[place:]
    return [list(source) if isinstance(source, (list, tuple)) else source, *arguments[1:]]


def _memoryview(obj: memoryview) -> Node:
    return Node(f"view {obj.format} {obj.shape}".encode() + plain_digest(obj.tobytes()))


def _named(state: Any) -> bool:
    return type(state) is dict and all(type(key) is str for key in state)


def _from_python(kind: type) -> bool:
    return bool(kind.__flags__ & (1 << 9)) and "__module__" in vars(kind)


def _attributes(obj: Any) -> dict[str, Any]:
    found = dict(getattr(obj, "__dict__", {}))
    for base in type(obj).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name in ("__dict__", "__weakref__"):
                continue
            private = name.startswith("__") and not name.endswith("__")
            full = f"_{base.__name__.lstrip('_')}{name}" if private else name
            try:
                found[full] = getattr(obj, full)
            except AttributeError:
                continue
    return found


def _content(obj: Any) -> list[Any]:
    """Return what a subclass of a builtin container or value holds besides its attributes."""
    if isinstance(obj, dict):
        return [part for item in dict.items(obj) for part in item]
    if isinstance(obj, list):
        return list(list.__iter__(obj))
    if isinstance(obj, tuple):
        return list(tuple.__iter__(obj))
    for atom in _ATOM_BASES:
        if isinstance(obj, atom):
            return [atom.__getnewargs__(obj)]
    return []


def _weak_mapping(obj: Any) -> Node:
    return Node(b"weak mapping", list(obj.items()), True)


_BUILTIN: dict[type, Any] = {
    list: _list,
    tuple: _tuple,
    dict: _dict,
    _Sorted: _sorted,
    bytearray: lambda obj: Node(b"bytearray" + plain_digest(obj)),
    array.array: lambda obj: Node(f"array {obj.typecode}".encode() + plain_digest(obj)),
    mmap.mmap: lambda obj: Node(b"map" + plain_digest(obj)),
    memoryview: _memoryview,
    type(...): lambda obj: Node(b"ellipsis"),
    type(NotImplemented): lambda obj: Node(b"not implemented"),
    object: lambda obj: Node(b"object"),
    range: lambda obj: Node(b"range", [obj.start, obj.stop, obj.step]),
    slice: lambda obj: Node(b"slice", [obj.start, obj.stop, obj.step]),
    types.FunctionType: _function,
    types.BuiltinFunctionType: _builtin_function,
    types.MethodType: lambda obj: Node(b"method", [obj.__self__, obj.__func__]),
    types.CodeType: _code,
    types.CellType: _cell,
    types.ModuleType: lambda obj: Node(f"module {obj.__name__}".encode()),
    types.MappingProxyType: lambda obj: Node(b"proxy", [dict(obj)]),
    types.MemberDescriptorType: _descriptor,
    types.GetSetDescriptorType: _descriptor,
    types.MethodDescriptorType: _descriptor,
    types.WrapperDescriptorType: _descriptor,
    property: _property,
    staticmethod: _wrapper,
    classmethod: _wrapper,
    type(functools.lru_cache(maxsize=1)(len)): _lru_cache,
    weakref.WeakKeyDictionary: _weak_mapping,
    weakref.WeakValueDictionary: _weak_mapping,
    weakref.WeakSet: lambda obj: Node(b"weak set", list(obj), True),
    weakref.ref: lambda obj: Node(b"weakref " + type_name(obj()).encode()),
    type(threading.Lock()): lambda obj: Opaque("lock"),
    type(threading.RLock()): lambda obj: Opaque("lock"),
}
