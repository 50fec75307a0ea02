"""What a symbolic value is: its type, length and short text, and the names of what lies in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .dense import Dense, dtype_word, find_dense, find_memory, rebuild_method
from .nodes import Call, FrozenItems, Global, Items, Pairs

SHOWN_TEXT = 60

_CONTAINERS: dict[type, str] = {
    list: "list",
    tuple: "tuple",
    Pairs: "dict",
    Items: "set",
    FrozenItems: "frozenset",
}
_ATOMS = (type(None), bool, int, float, str, bytes, bytearray)

_LOWERCASE_CLASSES = {
    "builtins": "complex range slice bytearray set list frozenset object property staticmethod "
    "dict classmethod memoryview tuple super enumerate map filter zip reversed",
    "collections": "deque defaultdict",
    "datetime": "date datetime time timedelta timezone",
    "functools": "partial cached_property",
    "itertools": "count cycle repeat chain",
    "time": "struct_time",
    "weakref": "ref",
}
_METHODS = {
    "get_namespace": "namespace",
    "module": "module",
    "main_module": "module",
    "shell": "IPython shell",
    "standard_stream": "stream",
    "code": "code",
    "dead_reference": "weakref.ref",
    "lru_cache": "function",
    "function": "function",
    "undill": "object saved by dill",
    "definition": "class",
    "make_class": "class",
    "enum_class": "class",
    "storage": "torch.UntypedStorage",
    "small_storage": "torch.UntypedStorage",
    "storage_over_array": "torch.UntypedStorage",
    "typed_storage": "torch.TypedStorage",
    "object_array": "numpy.ndarray",
    "object_view": "numpy.ndarray",
    "masked_array": "numpy.ma.MaskedArray",
    "whole_view": "memoryview",
    "view_part": "memoryview",
    "view_steps": "memoryview",
    "std_array": "array.array",
    "map": "mmap.mmap",
    "small_map": "mmap.mmap",
    "file_map": "mmap.mmap",
    "arrow_buffer": "pyarrow.Buffer",
    "small_arrow_buffer": "pyarrow.Buffer",
}
"""Types of what the methods of `Rebuild` make."""

_HOLDS_CLASS = frozenset({"array_subclass", "optimizer", "type_variable"})
"""Methods whose first argument is the class of what they make."""

_PLUMBING = frozenset(_METHODS) - {"masked_array", "lru_cache", "object_view"}
"""Methods whose arguments say nothing to a reader."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a value without making it."""

    type_name: str
    length: int | None = None
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    device: str | None = None
    text: str | None = None


class Describer:
    """Describes values of one snapshot.

    Parameters
    ----------
    buffers
        The manifest's buffers by number.
    classes
        Names of the session's classes by number.
    """

    def __init__(
        self, buffers: Mapping[int, Mapping[str, Any]], classes: Mapping[int, str]
    ) -> None:
        self.buffers = buffers
        self.classes = classes

    def facts(self, value: Any) -> Facts:
        """Return what is known of a value."""
        kind = type(value)
        if kind in _ATOMS:
            length = len(value) if kind in (str, bytes, bytearray) else None
            return Facts(kind.__name__, length, text=short_text(value))
        if kind in _CONTAINERS:
            return Facts(_CONTAINERS[kind], len(value) // 2 if kind is Pairs else len(value))
        if kind is Global:
            return Facts("class or function", text=_dotted(value))
        if kind is not Call:
            return Facts(kind.__name__)
        dense = self.dense(value)
        if dense is not None:
            shape, device = dense.shape, None
            if dense.library == "torch":
                device = dense.memory.device
            length = shape[0] if shape else None
            return Facts(self._dense_type(value), length, shape, dtype_word(dense), device)
        if rebuild_method(value) == "object_array":
            shape = value.arguments[0]
            return Facts("numpy.ndarray", shape[0] if shape else None, shape, "object")
        length = _content_length(value)
        return Facts(self.type_name(value), length, text=self._text(value))

    def dense(self, value: Any) -> Dense | None:
        """Return the array or tensor that a value is."""
        return find_dense(value, self.buffers)

    def memory_index(self, value: Any) -> int | None:
        """Return the number of the buffer whose bytes a value has or looks into."""
        if type(value) is not Call:
            return None
        dense = self.dense(value)
        memory = find_memory(value, self.buffers) if dense is None else dense.memory
        return None if memory is None else memory.index

    def type_name(self, value: Call) -> str:
        """Return the type of what a call makes, as far as names tell it."""
        method = rebuild_method(value)
        if method is not None:
            if method in _HOLDS_CLASS:
                return self._class_name(value.arguments[0])
            return _METHODS.get(method, method.replace("_", " "))
        if value.how != "reduce":
            return self._class_name(value.function) if value.how == "new" else value.how
        name = _dotted(value.function) if type(value.function) is Global else ""
        arguments = value.arguments if type(value.arguments) is tuple else ()
        if name == "copyreg._reconstructor" and arguments:
            return self._class_name(arguments[0])
        if name.endswith("multiarray._reconstruct"):
            return "numpy.ndarray"
        if name.endswith("multiarray.scalar"):
            return "numpy scalar"
        if name == "builtins.getattr":
            return "method or attribute"
        if name == "array._array_reconstructor":
            return "array.array"
        if not name or _looks_like_class(name):
            return self._class_name(value.function)
        return f"made by {name}"

    def children(self, value: Any) -> Iterator[tuple[str, Any]]:
        """Yield what lies in a value, each with how one would write it behind the value's name."""
        kind = type(value)
        if kind is Pairs:
            yield from _keyed(value)
        elif kind in (list, tuple):
            yield from ((f"[{number}]", item) for number, item in enumerate(value))
        elif kind in (Items, FrozenItems):
            yield from (("{…}", item) for item in value)
        elif kind is Call:
            yield from self._call_children(value)

    def _call_children(self, value: Call) -> Iterator[tuple[str, Any]]:
        method = rebuild_method(value)
        if method == "object_array":
            # The items are the last part of the state that numpy gives to an array of objects.
            with contextlib.suppress(LookupError, TypeError):
                items = value.states[0][1][0][-1]  # type: ignore[index]
                yield from ((f"[{number}]", item) for number, item in enumerate(items))
            return
        if self.dense(value) is None and method not in _PLUMBING and value.how == "reduce":
            arguments = value.arguments if type(value.arguments) is tuple else ()
            skipped = 1 if method in _HOLDS_CLASS else 0
            for number, argument in enumerate(arguments[skipped:]):
                if type(argument) is not Global:
                    yield f"({number})", argument
        if value.items is not None:
            yield from ((f"[{number}]", item) for number, item in enumerate(value.items))
        if value.pairs is not None:
            yield from _keyed(value.pairs)
        for setter, state in value.states or ():
            if method not in ("function", "make_class", "enum_class") or setter is None:
                yield from _attributes(state)

    def _class_name(self, value: Any) -> str:
        if type(value) is Global:
            name = _dotted(value)
            return name.removeprefix("builtins.").removeprefix("__main__.")
        if type(value) is Call and rebuild_method(value) == "definition":
            return self.classes.get(value.arguments[0], "a class of the session")
        return "object"

    def _dense_type(self, value: Call) -> str:
        method = rebuild_method(value)
        if method == "tensor":
            return self._class_name(value.arguments[0])
        if method == "spent_tensor":
            return "torch.Tensor"
        return self._class_name(value.arguments[0]) if method in _HOLDS_CLASS else "numpy.ndarray"

    def _text(self, value: Call) -> str | None:
        method = rebuild_method(value)
        if method == "definition":
            return self.classes.get(value.arguments[0])
        if method == "make_class":
            return short_text(value.arguments[2])
        if method == "function":
            return short_text(value.arguments[2])
        if method in ("module", "standard_stream", "file_map"):
            return short_text(value.arguments[0])
        return None


def class_names(roots: Mapping[int, Any]) -> dict[int, str]:
    """Return the names of the session's classes, given what their streams hold."""
    names = {}
    for number, root in roots.items():
        method = rebuild_method(root) if type(root) is Call else None
        name = None
        if method == "make_class":
            name = root.arguments[2]
        elif method == "enum_class":
            name = root.arguments[1][1]
        names[number] = name if type(name) is str else "a class of the session"
    return names


def short_text(value: Any) -> str:
    """Return a value's text, cut where it gets long."""
    if type(value) is int and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, (str, bytes, bytearray)) and len(value) > SHOWN_TEXT:
        return repr(value[:SHOWN_TEXT]) + "…"
    return repr(value)


def _keyed(pairs: list[Any]) -> Iterator[tuple[str, Any]]:
    for place in range(0, len(pairs), 2):
        key = pairs[place]
        shown = short_text(key) if type(key) in _ATOMS else "…"
        yield f"[{shown}]", pairs[place + 1]


def _attributes(state: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes in an object's state; those of a torch module by their short names."""
    parts = state if type(state) is tuple else (state,)
    for part in parts:
        if type(part) is not Pairs:
            if part is not None and type(part) not in (bool, int, str, Global):
                yield ".(state)", part
            continue
        found = {k: v for k, v in _named(part) if type(k) is str}
        nested = [found.get(name) for name in _MODULE_PARTS]
        module = all(_named_mapping(value) is not None for value in nested)
        if module:
            for value in nested:
                for name, entry in _named(_named_mapping(value) or []):
                    if entry is not None:
                        yield f".{name}", entry
        for name, value in _named(part):
            if not (module and str(name).startswith("_")):
                yield f".{name}", value


_MODULE_PARTS = ("_parameters", "_buffers", "_modules")


def module_parts(value: Any) -> list[list[Any]] | None:
    """Return parameters, buffers and modules of a torch module (flat), ``None`` for others."""
    if type(value) is not Call:
        return None
    for _, state in value.states or ():
        if type(state) is Pairs:
            found = {k: v for k, v in _named(state) if type(k) is str}
            parts = [_named_mapping(found.get(name)) for name in _MODULE_PARTS]
            if all(part is not None for part in parts):
                return [part or [] for part in parts]
    return None


def module_attribute(value: Call, name: str) -> Any:
    """Return an attribute from an object's state; ``None`` if it is not there."""
    for _, state in value.states or ():
        if type(state) is Pairs:
            for key, found in _named(state):
                if key == name:
                    return found
    return None


def _named_mapping(value: Any) -> list[Any] | None:
    """Return the pairs of a dictionary or of an ordered one."""
    if type(value) is Pairs:
        return value
    ordered = type(value) is Call and type(value.function) is Global
    if ordered and _dotted(value.function) == "collections.OrderedDict":
        return value.pairs or []
    return None


def _named(pairs: list[Any]) -> Iterator[tuple[Any, Any]]:
    for place in range(0, len(pairs), 2):
        yield pairs[place], pairs[place + 1]


def _content_length(value: Call) -> int | None:
    if value.items is not None:
        return len(value.items)
    return None if value.pairs is None else len(value.pairs) // 2


def _dotted(value: Global) -> str:
    return f"{value.module}.{value.name}"


def _looks_like_class(name: str) -> bool:
    module, _, last = name.rpartition(".")
    return last.lstrip("_")[:1].isupper() or last in _LOWERCASE_CLASSES.get(module, "").split()
