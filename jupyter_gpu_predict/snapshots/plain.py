"""Classes whose instances are nothing but their attributes, as far as pickling goes."""

from __future__ import annotations

import copyreg
import types


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
