"""Loads a stream in which something cannot be made here, and keeps what has nothing to do with it.

The C unpickler ends at the first error. This one, in Python and slower, puts a mark in the place of
what cannot be made and goes on. A variable is good if no mark was put while it was loaded, and if
it refers to no object of a variable for which that is not so.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from .grouping import Key
from .pickling import sentence
from .rebuild import Rebuild

_Unpickler: Any = pickle._Unpickler


class _Missing:
    """Stands for what could not be made; takes whatever the stream does with it."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **keywords: Any) -> _Missing:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Take an item of a list that could not be made."""

    def extend(self, items: Any) -> None:
        """Take items of a list that could not be made."""

    def add(self, item: Any) -> None:
        """Take an item of a set that could not be made."""

    def update(self, items: Any) -> None:
        """Take items of a set that could not be made."""


def load_forgivingly(
    file: io.BufferedIOBase, keys: Sequence[Key], rebuild: Rebuild, exported: Iterable[Any]
) -> tuple[dict[Key, Any], dict[Key, str]]:
    """Return the values that can be loaded, and the reasons why the others cannot."""
    values: dict[Key, Any] = {}
    faults: dict[Key, str] = {}
    reader = _Forgiving(file, rebuild, exported)
    try:
        reader.load()
    except Exception as error:
        return {}, dict.fromkeys(keys, _sentence(error))
    for key in keys:
        reader.begin()
        try:
            value = reader.load()
        except Exception as error:
            rest = [k for k in keys if k not in values and k not in faults]
            faults.update(dict.fromkeys(rest, _sentence(error)))
            break
        if reader.fault is not None:
            faults[key] = reader.fault
            reader.spoil()
        else:
            values[key] = rebuild.define(int(key[1]), value) if key[0] == "class" else value
    for key, reason in faults.items():
        if key[0] == "class":
            rebuild.faults[int(key[1])] = reason
    return values, faults


class _Forgiving(_Unpickler):  # type: ignore[misc]
    dispatch: ClassVar[dict[int, Any]] = dict(_Unpickler.dispatch)

    def __init__(self, file: io.BufferedIOBase, rebuild: Rebuild, exported: Iterable[Any]) -> None:
        super().__init__(file, buffers=exported)
        self.fault: str | None = None
        self._rebuild = rebuild
        self._start = 0
        self._spoilt: list[tuple[int, int, str]] = []

    def begin(self) -> None:
        """Note where the next value's objects begin."""
        self.fault = None
        self._start = len(self.memo)

    def spoil(self) -> None:
        """No later value may use what was made since `begin`."""
        self._spoilt.append((self._start, len(self.memo), self.fault or ""))

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._rebuild.find(module, name, super().find_class)
        except Exception as error:
            return self._missing(error)

    def _missing(self, error: Exception) -> _Missing:
        self.fault = self.fault or _sentence(error)
        return _Missing()

    def _reached(self, index: int) -> None:
        for start, end, fault in self._spoilt:
            if start <= index < end:
                self.fault = self.fault or fault


def _guarded(load: Callable[[Any], None], takes: int) -> Callable[[_Forgiving], None]:
    """Return the opcode's action with a mark in place of what it fails to make.

    `takes` is how many values it takes off the stack; one takes their place.
    """

    def action(self: _Forgiving) -> None:
        before = list(self.stack[-takes:])
        depth = len(self.stack) - takes
        try:
            load(self)
        except Exception as error:
            del self.stack[depth:]
            missing = self._missing(error)
            # What fails to take its state was made already, and others may refer to it.
            self.append(before[0] if load is _Unpickler.load_build else missing)

    return action


def _watched(length: int) -> Callable[[_Forgiving], None]:
    def action(self: _Forgiving) -> None:
        data = self.read(length)
        index = int.from_bytes(data, "little")
        self._reached(index)
        self.append(self.memo[index])

    return action


_ACTIONS = {
    pickle.REDUCE: (_Unpickler.load_reduce, 2),
    pickle.NEWOBJ: (_Unpickler.load_newobj, 2),
    pickle.NEWOBJ_EX: (_Unpickler.load_newobj_ex, 3),
    pickle.BUILD: (_Unpickler.load_build, 2),
    pickle.READONLY_BUFFER: (_Unpickler.load_readonly_buffer, 1),
}
for _opcode, (_load, _takes) in _ACTIONS.items():
    _Forgiving.dispatch[_opcode[0]] = _guarded(_load, _takes)
_Forgiving.dispatch[pickle.BINGET[0]] = _watched(1)
_Forgiving.dispatch[pickle.LONG_BINGET[0]] = _watched(4)


def _sentence(error: Exception) -> str:
    return f"it could not be loaded here: {sentence(error)}"
