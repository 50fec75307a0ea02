"""Everyday objects that pickling refuses, loses parts of, or makes something else of."""

from __future__ import annotations

import contextvars
import copyreg
import importlib.util
import re
import sys
import threading
import types
import weakref
from typing import TYPE_CHECKING, Any

from .plain import setter_for

if TYPE_CHECKING:
    from .pickling import SnapshotPickler

PROTOCOL = 5

_MODULE_OWN = frozenset({"__builtins__", "__loader__", "__spec__", "__cached__"})


def reduce_proxy(pickler: SnapshotPickler, proxy: Any) -> Any:
    """Reduce a weak proxy, which pickling would take for the object behind it."""
    try:
        target = proxy.__reduce_ex__.__self__
    except ReferenceError:
        return RebuildObjects.dead_proxy, ()
    return weakref.proxy, (target,)


def reduce_weak_method(pickler: SnapshotPickler, reference: Any) -> Any:
    """Reduce a weak reference to a bound method."""
    method = reference()
    if method is None:
        pickler.refuse(reference, "the object of this weak method is gone; delete it")
    return weakref.WeakMethod, (method,)


def reduce_super(pickler: SnapshotPickler, proxy: Any) -> Any:
    """Reduce what ``super(...)`` returned."""
    cls, instance = proxy.__thisclass__, proxy.__self__
    return super, (cls,) if instance is None else (cls, instance)


def reduce_match(pickler: SnapshotPickler, match: re.Match[Any]) -> Any:
    """Reduce a match to the search that finds it again."""
    for name, start in (
        ("match", match.pos),
        ("search", match.pos),
        ("fullmatch", match.pos),
        ("match", match.start()),
    ):
        arguments = (match.string, start, match.endpos)
        again = getattr(match.re, name)(*arguments)
        if again is not None and (again.regs, again.lastindex) == (match.regs, match.lastindex):
            return RebuildObjects.match, (match.re, name, *arguments)
    return pickler.refuse(match, "the search that found this match cannot be repeated")


def reduce_context_variable(pickler: SnapshotPickler, variable: Any) -> Any:
    """Reduce a context variable to its name, default and present value."""
    own_name = variable.name
    for name, module in list(sys.modules.items()):
        if not isinstance(module, types.ModuleType) or name in pickler.context.main_names:
            continue
        own = vars(module)
        if own is not pickler.context.namespace and own.get(own_name) is variable:
            return RebuildObjects.module_attribute, (name, own_name)
    missing = object()
    value: Any = variable.get(missing)
    fill = RebuildObjects.fill_context_variable
    arguments: tuple[Any, ...] = (own_name,)
    try:
        default = contextvars.Context().run(variable.get)
    except LookupError:
        pass
    else:
        arguments += (default,)
        value = missing if value is default else variable.get(missing)
    if value is missing:
        return RebuildObjects.context_variable, arguments
    return RebuildObjects.context_variable, arguments, (value,), None, None, fill


def reduce_thread_local(pickler: SnapshotPickler, local: Any) -> Any:
    """Reduce thread-local data to that of this thread, in which cells run."""
    pickler.note("thread-local data of other threads is not carried")
    return threading.local, (), dict(vars(local))


def reduce_made_module(pickler: SnapshotPickler, module: types.ModuleType) -> Any:
    """Reduce a module that no file can bring back, made by ``types.ModuleType``."""
    name = module.__name__
    attributes = {k: v for k, v in vars(module).items() if k not in _MODULE_OWN}
    registered = sys.modules.get(name) is module
    fill = RebuildObjects.fill_module
    return RebuildObjects.made_module, (name, registered), attributes, None, None, fill


def reduce_exception(pickler: SnapshotPickler, error: BaseException) -> Any:
    """Reduce an exception with its causes, but not its traceback's frames of running code."""
    kind = type(error)
    value = error.__reduce_ex__(PROTOCOL)
    if error.__traceback__ is not None:
        pickler.note("its traceback, which holds frames of running code, is not carried")
    if not isinstance(value, tuple) or len(value) > 3:
        return value
    function, arguments, state = (*value, None)[:3]
    if function is kind and kind.__reduce__ is BaseException.__reduce__:
        function, arguments = RebuildObjects.exception, (kind, *error.args)
    links = (error.__cause__, error.__context__, error.__suppress_context__)
    if not any(links):
        return function, arguments, *([] if state is None else [state])
    return function, arguments, (state, links), None, None, RebuildObjects.fill_exception


def reduce_file_handler(pickler: SnapshotPickler, handler: Any) -> Any:
    """Reduce a logging handler of a file to one that opens the file again, to append to it."""
    state = {**vars(handler), "stream": None, "mode": "a"}
    return copyreg.__newobj__, (type(handler),), state  # type: ignore[attr-defined]


def guards_attributes(kind: type) -> bool:
    """Tell whether ``__getattr__`` of a class would be asked for ``__setstate__`` on loading.

    Before its attributes are back such a method often calls itself without end.
    """
    own: Any = kind
    return (
        not issubclass(kind, type)
        and isinstance(getattr(kind, "__getattr__", None), types.FunctionType)
        and not hasattr(kind, "__setstate__")
        and own.__reduce_ex__ is object.__reduce_ex__
        and own.__reduce__ is object.__reduce__
    )


def reduce_guarded(pickler: SnapshotPickler, obj: Any) -> Any:
    """Reduce an object as pickling does, but fill it without asking it for anything."""
    value = obj.__reduce_ex__(PROTOCOL)
    if not isinstance(value, tuple) or len(value) < 3 or value[2] is None:
        return value
    return (*(*value, None, None)[:5], RebuildObjects.fill_instance)


class RebuildObjects:
    """What a stream calls to make such objects again; part of `Rebuild`."""

    def dead_proxy(self) -> Any:
        """Return a weak proxy whose object is gone."""
        return weakref.proxy(type("Gone", (), {})())

    def match(self, pattern: Any, name: str, text: Any, start: int, end: int) -> Any:
        """Return the match that the same search finds."""
        return getattr(pattern, name)(text, start, end)

    def module_attribute(self, module: str, name: str) -> Any:
        """Return an attribute of an imported module."""
        return getattr(importlib.import_module(module), name)

    def context_variable(self, name: str, *default: Any) -> Any:
        """Return a new context variable."""
        if default:
            return contextvars.ContextVar(name, default=default[0])
        return contextvars.ContextVar(name)

    def fill_context_variable(self, variable: Any, value: tuple[Any]) -> None:
        """Set a context variable where cells run."""
        variable.set(value[0])

    def made_module(self, name: str, registered: bool) -> types.ModuleType:
        """Return a new module, known to ``import`` if it was."""
        module = types.ModuleType(name)
        if registered:
            sys.modules[name] = module
        return module

    def fill_module(self, module: types.ModuleType, attributes: dict[str, Any]) -> None:
        """Give a module its attributes."""
        vars(module).update(attributes)

    def exception(self, kind: Any, *arguments: Any) -> Any:
        """Return an exception; a constructor of the user's does not run."""
        error = kind.__new__(kind, *arguments)
        for base in kind.__mro__:
            own = vars(base).get("__init__")
            if own is not None and not isinstance(own, types.FunctionType):
                own(error, *arguments)
                break
        return error

    def fill_exception(self, error: Any, state: tuple[Any, tuple[Any, ...]]) -> None:
        """Give an exception its attributes and causes."""
        own, (cause, context, suppressed) = state
        if own is not None:
            error.__setstate__(own)
        error.__cause__, error.__context__ = cause, context
        error.__suppress_context__ = suppressed

    def attributes(self, kind: type) -> Any:
        """Return what gives an instance of a class its attributes."""
        return setter_for(kind)

    def fill_instance(self, obj: Any, state: Any) -> None:
        """Give an object its attributes without calling any method of its class."""
        slots: dict[str, Any] = {}
        if isinstance(state, tuple) and len(state) == 2:
            state, slots = state[0], state[1] or {}
        if state:
            object.__getattribute__(obj, "__dict__").update(state)
        for name, value in slots.items():
            object.__setattr__(obj, name, value)


def found_by_import(module: types.ModuleType) -> bool:
    """Tell whether a fresh process can import a module that is in ``sys.modules``."""
    spec = getattr(module, "__spec__", None)
    if spec is not None:
        return True
    if getattr(module, "__file__", None) is not None:
        return True
    try:
        return importlib.util.find_spec(module.__name__) is not None
    except (ImportError, ValueError, AttributeError):
        return False
