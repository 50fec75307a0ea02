"""Classes whose instances are nothing but their attributes, as far as pickling goes."""

from __future__ import annotations

import copyreg
import types
from collections.abc import Callable
from typing import Any


class _Plain:
    pass


MAKE = object().__reduce_ex__(2)[0]
"""``copyreg.__newobj__``, which the C pickler writes as an opcode."""

HOOKS = frozenset(
    {"__getstate__", "__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__"}
)
"""What an instance may have of its own to be asked for; then it is left to Python."""

# Before Python 3.11 an instance is asked for `__getstate__`, through `__getattr__`.
_ASKED = HOOKS | {"__getattribute__", "__getattr__"}


def is_plain(kind: type) -> bool:
    """Tell whether ``object.__reduce_ex__`` makes of an instance its class and its ``__dict__``.

    That is so for a class that has nothing to say in the matter, no slots, and no more memory in
    its instances than a class without bases has (``Objects/typeobject.c``, `reduce_newobj`).
    """
    try:
        return (
            all(getattr(kind, n, None) is getattr(object, n, None) for n in _ASKED)
            and kind not in copyreg.dispatch_table
            and kind.__basicsize__ == _Plain.__basicsize__
            and kind.__itemsize__ == 0
            and kind.__dictoffset__ == _Plain.__dictoffset__
            and not copyreg._slotnames(kind)  # type: ignore[attr-defined]
            and _dictionaries(kind) == [types.GetSetDescriptorType]
        )
    except Exception:
        return False  # a metaclass of the user's may do anything


def _dictionaries(kind: type) -> list[type]:
    return [type(vars(c)["__dict__"]) for c in kind.__mro__ if "__dict__" in vars(c)]


class Attributes:
    """Written as what makes a dictionary the attributes of an instance of `kind`.

    Unpickling copies an instance's dictionary into its own and keeps both until the stream ends,
    and what is copied into an empty instance takes the more room the less it holds.
    """

    __slots__ = ("kind",)

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def __call__(self, obj: Any, attributes: dict[str, Any]) -> None:
        """Be called by no one; a pickler asks for a function."""
        raise NotImplementedError


def attributes_of(kind: type) -> Attributes | None:
    """Return what sets the attributes of a plain class, unless it wants to do that itself."""
    return None if hasattr(kind, "__setstate__") else Attributes(kind)


def setter_for(kind: type) -> Callable[[Any, dict[str, Any]], None]:
    """Return what gives an instance its attributes: the dictionary itself where that can be."""
    if is_plain(kind) and not hasattr(kind, "__setstate__"):
        own: Any = next(vars(c)["__dict__"] for c in kind.__mro__ if "__dict__" in vars(c))
        setter: Callable[[Any, dict[str, Any]], None] = own.__set__
        return setter
    return _build


def _build(obj: Any, attributes: dict[str, Any]) -> None:
    """Do as unpickling does, for a class that has become another since the snapshot."""
    set_state = getattr(obj, "__setstate__", None)
    if set_state is not None:
        set_state(attributes)
    else:
        obj.__dict__.update(attributes)
