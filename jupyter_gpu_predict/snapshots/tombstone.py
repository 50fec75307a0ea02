"""What stands in a namespace for a variable that could not be saved or loaded."""

from __future__ import annotations

from typing import Any, NoReturn

from ..errors import TombstoneError


class Tombstone:
    """Stands for a variable that is not in a snapshot; every use of it but printing raises.

    Parameters
    ----------
    name, type_name
        The variable and the type it had.
    reason
        Why it could not be saved or loaded.
    path
        Where inside the variable the fault lies, e.g. ``".workers[2]"``.
    """

    __slots__ = ("_name", "_path", "_reason", "_type_name")

    def __init__(self, name: str, type_name: str, reason: str, path: str = "") -> None:
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_type_name", type_name)
        object.__setattr__(self, "_reason", reason)
        object.__setattr__(self, "_path", path)

    def _describe(self) -> str:
        name, path = _part(self, "_name"), _part(self, "_path")
        where = f" (at {name}{path})" if path else ""
        return f"{name!r} was a {_part(self, '_type_name')}{where}: {_part(self, '_reason')}"

    def __repr__(self) -> str:
        return f"<not restored: {_describe(self)}>"

    def __reduce__(self) -> tuple[type, tuple[str, str, str, str]]:
        parts = (_part(self, "_name"), _part(self, "_type_name"), _part(self, "_reason"))
        return Tombstone, (*parts, _part(self, "_path"))

    def __getattribute__(self, name: str) -> Any:
        # Names with two underscores are asked for by displays, copying and inspection.
        if name.startswith(("__", "_repr_", "_ipython_")):
            return object.__getattribute__(self, name)
        return _refuse(self)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        _refuse(self)

    def __delattr__(self, name: str) -> NoReturn:
        _refuse(self)


def describe(tombstone: Tombstone) -> tuple[str, str, str, str]:
    """Return name, type, reason and path of a tombstone without using it."""
    return (
        _part(tombstone, "_name"),
        _part(tombstone, "_type_name"),
        _part(tombstone, "_reason"),
        _part(tombstone, "_path"),
    )


def _part(tombstone: Tombstone, slot: str) -> str:
    return str(object.__getattribute__(tombstone, slot))


def _describe(tombstone: Tombstone) -> str:
    function = object.__getattribute__(tombstone, "_describe")
    return str(function())


def _refuse(tombstone: Tombstone) -> NoReturn:
    raise TombstoneError(
        f"{_describe(tombstone)}. Run the cell that defines it again, or assign a new value"
    )


def _raiser(name: str) -> Any:
    def method(self: Tombstone, *arguments: Any, **keywords: Any) -> NoReturn:
        _refuse(self)

    method.__name__ = name
    return method


_USES = (
    "call len iter next contains getitem setitem delitem enter exit bool int float complex index "
    "add radd iadd sub rsub mul rmul truediv rtruediv floordiv mod pow matmul rmatmul neg pos abs "
    "invert and or xor lshift rshift eq ne lt le gt ge str format await aiter anext"
)
for _use in _USES.split():
    setattr(Tombstone, f"__{_use}__", _raiser(f"__{_use}__"))
Tombstone.__hash__ = object.__hash__  # type: ignore[method-assign]
