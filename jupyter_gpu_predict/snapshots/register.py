"""Types that their own library, or a user, knows best how to save."""

from __future__ import annotations

import importlib
import os
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import BadInputError, SnapshotError
from .definitions import importable

if TYPE_CHECKING:
    from .pickling import SnapshotPickler

GROUP = "jupyter_gpu_predict.snapshot_types"
"""Entry points of this group are called once each, without arguments, to register types.

The name of an entry point is that of the module whose types it is for; it is called when that
module has been imported, or when a snapshot holds one of its types.
"""

_NEVER_ASKED = (type(None), bool, int, float, complex, str, bytes, bytearray, tuple, list, dict,
                set, frozenset, type, types.FunctionType)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Registration:
    """How one type is saved and brought back."""

    name: str
    reduce: Callable[[Any], Any]
    restore: Callable[[Any], Any]


def register(kind: type | str, reduce: Callable[[Any], Any], restore: Callable[[Any], Any]) -> None:
    """Save instances of a type by a state of one's own choice.

    Parameters
    ----------
    kind
        The class, or its ``"module.QualName"``, so that a heavy library need not be imported.
        Instances of its subclasses are not meant. A second call for a type replaces the first.
    reduce
        Called with the object; returns anything that can be saved, such as a dictionary of arrays.
        What the state shares with other variables stays shared. It must not lead back to the
        object itself, as nothing can be restored from a state that needs the result.
    restore
        Called with the state; returns the object. A function of an installed package is found
        there again, one that was defined in the session is saved along.

    Raises
    ------
    BadInputError
        If `kind` is no class or name of one, or is a built-in type that is never asked about, or
        if a function cannot be called.
    """
    if isinstance(kind, type):
        if kind in _NEVER_ASKED:
            raise BadInputError(
                f"{kind.__name__} objects are always saved as they are; register another class"
            )
        name = _name(kind)
    elif isinstance(kind, str) and all(
        p.isidentifier() or p == "<locals>" for p in kind.split(".")
    ):
        name = kind
    else:
        raise BadInputError(f"{kind!r} is no class; give one or its name as 'module.QualName'")
    for label, function in (("reduce", reduce), ("restore", restore)):
        if not callable(function):
            raise BadInputError(f"{label} of {name} cannot be called; give a function")
    _registered[name] = _Registration(name, reduce, restore)


def find_registered(kind: type) -> Callable[[SnapshotPickler, Any], Any] | None:
    """Return what reduces instances of a registered type, ``None`` for all others."""
    _call_entry_points(lambda module: module in sys.modules)
    if not _registered:
        return None
    found = _registered.get(_name(kind))
    if found is None:
        found = next((r for n, r in _registered.items() if _loaded_class(n) is kind), None)
    if found is None:
        return None
    registration = found

    def reduce(pickler: SnapshotPickler, obj: Any) -> Any:
        # An object whose form is complete is known to the pickler and does not come here again.
        begun: set[int] = vars(pickler).setdefault("registered_begun", set())
        if id(obj) in begun:
            pickler.refuse(
                obj,
                f"the state that reduce of {registration.name} returned leads back to the object; "
                "leave that reference out of the state",
            )
        begun.add(id(obj))
        restore = registration.restore
        if not importable(restore, pickler.context.main_names):
            own = (registration.name, registration.reduce, restore)
            return RebuildRegistered.restored_by, (own, registration.reduce(obj))
        where = (restore.__module__, restore.__qualname__)
        return RebuildRegistered.registered, (registration.name, where, registration.reduce(obj))

    return reduce


class RebuildRegistered:
    """What a stream calls to make objects of registered types again; part of `Rebuild`."""

    def restored_by(self, own: tuple[str, Any, Any], state: Any) -> Any:
        """Return what a function of the session makes of a state; its type stays registered."""
        registration = _registered.setdefault(own[0], _Registration(*own))
        return registration.restore(state)

    def registered(self, name: str, where: tuple[str, str], state: Any) -> Any:
        """Return what the function that is registered for a type makes of a state."""
        _call_entry_points(lambda module: name.startswith(f"{module}."))
        if name in _registered:
            return _registered[name].restore(state)
        found: Any = None
        try:
            found = importlib.import_module(where[0])
            for part in where[1].split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            package = where[0].partition(".")[0]
            raise SnapshotError(
                f"objects of type {name} are restored by {'.'.join(where)}, which is not here "
                f"({error}); install {package} in this kernel's environment"
            ) from error
        return found(state)


_registered: dict[str, _Registration] = {}
_waiting: list[Any] | None = None


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _loaded_class(name: str) -> Any:
    """Return the class that a name means, which may be one that a package exports, if loaded."""
    module, path = name, ""
    while module and module not in sys.modules:
        module, _, last = module.rpartition(".")
        path = f"{last}.{path}" if path else last
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def _call_entry_points(wanted: Callable[[str], bool]) -> None:
    global _waiting
    if _waiting is None:
        _waiting = list(_entry_points())
    due = [entry for entry in _waiting if wanted(entry.name)]
    if not due:
        return
    _waiting = [entry for entry in _waiting if entry not in due]
    for entry in due:
        try:
            entry.load()()
        except Exception as error:
            warnings.warn(
                f"{entry.value}, which registers types of {entry.name} for snapshots, failed: "
                f"{type(error).__name__}: {error}; update or remove its package",
                RuntimeWarning,
                stacklevel=2,
            )


def _entry_points() -> Any:
    """Yield the entry points of the group; other packages' are not even parsed."""
    mark = f"[{GROUP}]".encode()
    for folder in dict.fromkeys(p for p in sys.path if isinstance(p, str)):
        try:
            with os.scandir(folder or ".") as entries:
                names = [e.name for e in entries if e.name.endswith((".dist-info", ".egg-info"))]
        except OSError:
            continue
        for name in names:
            path = os.path.join(folder, name)
            try:
                with open(os.path.join(path, "entry_points.txt"), "rb") as file:
                    if mark not in file.read():
                        continue
            except OSError:
                continue
            from importlib.metadata import Distribution

            yield from (e for e in Distribution.at(path).entry_points if e.group == GROUP)
