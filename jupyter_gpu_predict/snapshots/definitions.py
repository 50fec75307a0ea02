"""Functions and classes of the session, saved by value.

A class is written as a skeleton first (name, bases, slots) and filled afterwards, so that its
methods, its ``__class__`` cells and its attributes may refer to it. A function's globals are the
namespace it is restored into.
"""

from __future__ import annotations

import abc
import builtins
import enum
import marshal
import operator
import sys
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import SnapshotError

if TYPE_CHECKING:
    from .pickling import SnapshotPickler

_HEAP_TYPE = 1 << 9
"""Py_TPFLAGS_HEAPTYPE of Include/object.h: a class made at run time, not in C's static data."""

_ENUM_OWN = frozenset(
    {
        "_member_names_",
        "_member_map_",
        "_value2member_map_",
        "_hashable_values_",
        "_unhashable_values_",
        "_unhashable_values_map_",
        "_member_type_",
        "_singles_mask_",
        "_flag_mask_",
        "_all_bits_",
        "_inverted_",
        "_boundary_",
        "__new__",
    }
)
_CTYPES_LAYOUT = ("_fields_", "_anonymous_", "_pack_", "_layout_", "_align_")
_CLASS_OWN = frozenset(
    {
        "__dict__",
        "__weakref__",
        "__doc__",
        "__module__",
        "__qualname__",
        "__slots__",
        "__slotnames__",
        "_abc_impl",
        *_CTYPES_LAYOUT,
    }
)
_MEMBER_OWN = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_"})


def importable(obj: Any, main_names: frozenset[str]) -> bool:
    """Tell whether a fresh process finds this very object by its module and qualified name."""
    module = getattr(obj, "__module__", None)
    path = getattr(obj, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(path, str) or module in main_names:
        return False
    found: Any = sys.modules.get(module)
    if getattr(found, "__spec__", None) is None and getattr(found, "__file__", None) is None:
        return False  # made by hand, or not there at all
    for part in path.split("."):
        found = getattr(found, part, None)
    return found is obj


# --------------------------------------------------------------------------- functions


def reduce_function(pickler: SnapshotPickler, function: types.FunctionType) -> Any:
    """Reduce a function that cannot be imported to its code, cells and attributes."""
    context = pickler.context
    if importable(function, context.main_names):
        return NotImplemented
    owner, name = _method_owner(pickler, function)
    if owner is not None:
        return getattr, (owner, name)
    scope = _scope(pickler, function)
    arguments = (marshal.dumps(function.__code__), scope, function.__name__, function.__closure__)
    state: dict[str, Any] = {
        "__qualname__": function.__qualname__,
        "__module__": function.__module__,
        "__doc__": function.__doc__,
        "__defaults__": function.__defaults__,
        "__kwdefaults__": function.__kwdefaults__,
    }
    # From Python 3.14 annotations are computed when asked for; the function that does it is kept.
    if getattr(function, "__annotate__", None) is not None:
        state["__annotate__"] = getattr(function, "__annotate__")  # noqa: B009
    elif function.__annotations__:
        state["__annotations__"] = function.__annotations__
    if parameters := getattr(function, "__type_params__", ()):
        state["__type_params__"] = parameters
    pair = (state, vars(function))
    fill = RebuildDefinitions.fill_function
    return RebuildDefinitions.function, arguments, pair, None, None, fill


def reduce_cell(pickler: SnapshotPickler, cell: Any) -> Any:
    """Reduce a closure cell; its contents follow, as they may lead back to the cell."""
    try:
        contents = cell.cell_contents
    except ValueError:
        return types.CellType, ()
    fill = RebuildDefinitions.fill_cell
    return types.CellType, (), (contents,), None, None, fill


def _method_owner(
    pickler: SnapshotPickler, function: types.FunctionType
) -> tuple[type | None, str]:
    """Return the session's class that holds `function`, if it can be fetched from there."""
    path, _, name = function.__qualname__.rpartition(".")
    if not path:
        return None, ""
    for owner in pickler.context.classes_named(path, function.__module__):
        if vars(owner).get(name) is not function:
            continue
        if pickler.context.class_index(owner) not in pickler.inline:
            return owner, name
    return None, ""


def _scope(pickler: SnapshotPickler, function: types.FunctionType) -> Any:
    """Return what names the function's globals: ``None`` the namespace, a module, or a dict."""
    globals_ = function.__globals__
    context = pickler.context
    main = sys.modules.get("__main__")
    if globals_ is context.namespace or (main is not None and globals_ is vars(main)):
        return None
    name = globals_.get("__name__")
    module = sys.modules.get(name) if isinstance(name, str) else None
    if module is not None and vars(module) is globals_:
        made = module.__spec__ is None and getattr(module, "__file__", None) is None
        return module if made else name
    wanted = {*_names(function.__code__), "__name__"} - {"__builtins__"}
    return {key: value for key, value in globals_.items() if key in wanted}


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


# --------------------------------------------------------------------------- classes


def reduce_class(pickler: SnapshotPickler, cls: type) -> Any:
    """Reduce a class that cannot be imported to a skeleton and its attributes."""
    context = pickler.context
    if importable(cls, context.main_names):
        return NotImplemented
    if (name := _TYPES_NAMES.get(cls)) is not None:
        return getattr, (types, name)
    if (known := ctypes_form(cls)) is not None:
        return known
    if not cls.__flags__ & _HEAP_TYPE:
        return NotImplemented
    index = context.class_index(cls)
    if index not in pickler.inline:
        pickler.used_classes.add(index)
        if reason := context.bad_classes.get(index):
            pickler.refuse(cls, reason)
        return RebuildDefinitions.definition, (index,)
    head = (type(cls), cls.__name__, cls.__bases__)
    body = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    fill = RebuildDefinitions.fill_class
    if issubclass(cls, enum.Enum):
        members = [(key, m._value_, _plain_value(m)) for key, m in cls.__members__.items()]
        keywords = {}
        if issubclass(cls, enum.Flag) and hasattr(cls, "_boundary_"):
            keywords["boundary"] = cls._boundary_
        arguments = (index, head, body, members, keywords)
        return RebuildDefinitions.enum_class, arguments, _enum_state(cls), None, None, fill
    # These two are read while a class is being made.
    for name in ("__slots__", "__orig_bases__", *_CTYPES_LAYOUT):
        if name in vars(cls):
            body[name] = vars(cls)[name]
    made = (index, *head, body)
    return RebuildDefinitions.make_class, made, _class_state(cls), None, None, fill


def class_attributes(cls: type) -> dict[str, Any]:
    """Return what a class body and later code put on a class, without what Python adds."""
    own: frozenset[str] = _CLASS_OWN
    if issubclass(cls, enum.Enum):
        own = own | _ENUM_OWN | frozenset(cls.__members__)
    return {
        key: value
        for key, value in vars(cls).items()
        if key not in own
        and not (
            (
                isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType))
                and getattr(value, "__objclass__", None) is cls
            )
            or type(value).__name__ == "CField"
        )
    }


def _is_plain_array(cls: Any) -> bool:
    return bool(cls is cls._type_ * cls._length_)


def ctypes_form(cls: type) -> tuple[Any, ...] | None:
    """Return the form of a type that ctypes makes: an array type or one of its metaclasses."""
    ctypes = sys.modules.get("ctypes")
    if ctypes is None:
        return None
    for name in ("Structure", "Union", "Array", "_SimpleCData", "_Pointer", "_CFuncPtr"):
        if cls is type(getattr(ctypes, name)):
            return type, (getattr(ctypes, name),)
    if issubclass(cls, ctypes.Array) and _is_plain_array(cls):
        return operator.mul, (getattr(cls, "_type_"), getattr(cls, "_length_"))  # noqa: B009
    return None


def _class_state(cls: type) -> dict[str, Any]:
    state: dict[str, Any] = {"attributes": class_attributes(cls)}
    if isinstance(cls, abc.ABCMeta):
        dump = getattr(abc, "_get_dump", None)
        registered = [ref() for ref in dump(cls)[0]] if dump is not None else []
        state["registered"] = [c for c in registered if c is not None]
    return state


def _enum_state(cls: type[enum.Enum]) -> dict[str, Any]:
    state = _class_state(cls)
    state["members"] = {
        member._name_: {k: v for k, v in vars(member).items() if k not in _MEMBER_OWN}
        for member in cls
    }
    return state


def _plain_value(member: enum.Enum) -> Any:
    """Return a mixed-in value (the text of a ``str`` member) as its plain type, else ``None``."""
    kind: Any = getattr(type(member), "_member_type_")  # noqa: B009
    if kind is object:
        return None
    if kind in (int, str, bytes, float, complex):
        return getattr(kind, "__new__")(kind, member)  # noqa: B009
    return member._value_


_TYPES_NAMES: dict[type, str] = {
    value: name for name, value in vars(types).items() if isinstance(value, type)
}


def _set_on_class(cls: Any, name: str, value: Any) -> None:
    try:
        type.__setattr__(cls, name, value)
    except TypeError:
        setattr(cls, name, value)  # metaclasses in C insist on their own way


class RebuildDefinitions:
    """What a stream calls to make functions and classes again; part of `Rebuild`."""

    namespace: dict[str, Any]
    definitions: dict[int, type]
    faults: dict[int, str]
    made: set[type]
    present: dict[int, type]

    def definition(self, index: int) -> type:
        """Return the class that an earlier stream made."""
        if index not in self.definitions:
            raise SnapshotError(f"its class is missing ({self.faults.get(index, 'not saved')})")
        return self.definitions[index]

    def function(self, code: bytes, scope: Any, name: str, closure: Any) -> types.FunctionType:
        """Return a function whose globals are the namespace, a module's or its own."""
        if scope is None:
            globals_ = self.namespace
        elif isinstance(scope, str):
            __import__(scope)
            globals_ = vars(sys.modules[scope])
        elif isinstance(scope, types.ModuleType):
            globals_ = vars(scope)
        else:
            globals_ = {"__builtins__": builtins, **scope}
        return types.FunctionType(marshal.loads(code), globals_, name, None, closure)  # noqa: S302

    def fill_function(
        self, function: types.FunctionType, state: tuple[dict[str, Any], dict[str, Any]]
    ) -> None:
        """Give a function its defaults, names, annotations and attributes."""
        own, attributes = state
        for name, value in own.items():
            setattr(function, name, value)
        vars(function).update(attributes)

    def fill_cell(self, cell: Any, contents: tuple[Any]) -> None:
        """Put the contents into a closure cell."""
        cell.cell_contents = contents[0]

    def make_class(
        self, number: int, meta: type, name: str, bases: tuple[type, ...], body: dict[str, Any]
    ) -> type:
        """Return a class without attributes; hooks of the session's own classes do not run.

        A class that the session still has in the same form takes its place.

        What ``__init_subclass__`` and a metaclass of the session did when the class was first
        defined is part of the saved state, and would be done twice.
        """
        if number in self.present:
            return self.present[number]
        maker = next(m for m in meta.__mro__ if m not in self.made)
        if maker.__name__ == "_TypedDictMeta":
            maker = type
        lineage = dict.fromkeys(c for base in bases for c in base.__mro__)
        hooked = [c for c in lineage if "__init_subclass__" in vars(c) and c is not object]
        try:
            cls = self._quietly(
                [c for c in hooked if c in self.made], maker, meta, name, bases, body
            )
        except TypeError:
            # A library's hook may insist on keywords that the class was defined with.
            cls = self._quietly(hooked, maker, meta, name, bases, body)
        self.made.add(cls)
        return cls

    @staticmethod
    def _quietly(silent: list[type], maker: Any, *parts: Any) -> type:
        """Make a class while `silent` classes have no ``__init_subclass__``."""
        meta, name, bases, body = parts
        silent = [c for c in silent if c.__flags__ & _HEAP_TYPE]
        hooks = [(c, vars(c)["__init_subclass__"]) for c in silent]
        for owner in silent:
            type.__delattr__(owner, "__init_subclass__")
        try:
            cls: type = maker.__new__(meta, name, bases, dict(body))
            maker.__init__(cls, name, bases, dict(body))
        finally:
            for owner, hook in hooks:
                type.__setattr__(owner, "__init_subclass__", hook)
        return cls

    def enum_class(
        self,
        number: int,
        head: tuple[Any, str, tuple[type, ...]],
        body: dict[str, Any],
        members: list[tuple[str, Any, Any]],
        keywords: dict[str, Any],
    ) -> type:
        """Return an enumeration with its members; user-written constructors do not run."""
        if number in self.present:
            return self.present[number]
        meta, name, bases = head
        rest = iter(members)

        def make_member(cls: Any, *arguments: Any) -> Any:
            _, value, plain = next(rest)
            kind = cls._member_type_
            make: Any = object.__new__ if kind is object else kind.__new__
            member = make(cls) if kind is object else make(cls, plain)
            member._value_ = value
            return member

        space = meta.__prepare__(name, bases, **keywords)
        for key, value in body.items():
            space[key] = value
        space["__new__"] = make_member
        for key, value, _ in members:
            space[key] = value
        cls: type = meta.__new__(meta, name, bases, space, **keywords)
        # Enum keeps the constructor under this name for later members; the saved one follows.
        if "__new_member__" in vars(cls):
            type.__delattr__(cls, "__new_member__")
        self.made.add(cls)
        return cls

    def fill_class(self, cls: Any, state: dict[str, Any]) -> None:
        """Give a class its attributes, registered subclasses and members' attributes."""
        if cls not in self.made:
            return
        for name, value in state["attributes"].items():
            _set_on_class(cls, name, value)
        for other in state.get("registered", ()):
            cls.register(other)
        for name, attributes in state.get("members", {}).items():
            vars(cls.__members__[name]).update(attributes)
