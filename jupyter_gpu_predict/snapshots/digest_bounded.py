"""Digests of what could not be saved, taken only as far as they cost next to nothing.

A save takes them while the kernel stands still, so they are bounded by what is walked and hashed,
for each value and for all of a save together.
"""

from __future__ import annotations

import array
import copyreg
import mmap
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from .buffers import loaded
from .digest import _Frame, _Hasher
from .digest_nodes import _Sorted

NODES_EACH, NODES_IN_ALL = 200, 500
"""Objects walked for one value and for all; five hundred take some 10 ms."""

BYTES_EACH, BYTES_IN_ALL = 1 << 20, 2 << 20

_KNOWN = frozenset(sys.stdlib_module_names) | {"__main__", "numpy"}
"""Packages of whose objects it is known, before they are read, how much there is to read."""

_REDUCTIONS = ("__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__")

_CONTAINERS: tuple[Any, ...] = (list, tuple, dict, set, frozenset, deque)
_BYTES: tuple[Any, ...] = (str, bytes, bytearray, mmap.mmap)


class _TooMuch(BaseException):
    """The bound is reached; raised through code that takes any `Exception` for an answer."""


def digest_in(namespace: Mapping[str, Any], value: Any) -> str:
    """Return the digest of `value`, in which the namespace itself counts as what it is."""
    return _Hasher(namespace).digest(value)


def bounded_digests(namespace: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Return digests as `digest_in` gives them, of those variables that are cheap to read."""
    nodes, nbytes = NODES_IN_ALL, BYTES_IN_ALL
    found = {}
    for name in names:
        if nodes <= 0 or nbytes <= 0:
            break
        hasher = _Bounded(namespace, min(nodes, NODES_EACH), min(nbytes, BYTES_EACH))
        try:
            value = namespace[name]
            hasher.charge(value)
            found[name] = hasher.digest(value)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: S110 - too much, or whatever the user's object raises
            pass
        nodes -= hasher.walked
        nbytes -= hasher.hashed
    return found


class _Bounded(_Hasher):
    """Hashes objects until there are too many of them."""

    def __init__(self, namespace: Mapping[str, Any], nodes: int, nbytes: int) -> None:
        super().__init__(namespace)
        self.walked = self.hashed = 0
        self._nodes, self._bytes = nodes, nbytes

    def charge(self, obj: Any) -> None:
        """Count what it takes to read `obj` itself.

        Raises
        ------
        _TooMuch
            If that is more than is left, or is not known before.
        """
        kind = type(obj)
        if isinstance(obj, (type, _Sorted)):
            # A class is hashed by its name or by what its cell wrote; the other is the digest's own
            # and no more than the attributes of what was counted before.
            self._spend(1, 0)
            return
        package = str(type.__getattribute__(kind, "__module__")).partition(".")[0]
        if package not in _KNOWN or _reduces_itself(kind):
            raise _TooMuch
        base = next((b for b in _CONTAINERS if isinstance(obj, b)), None)
        if base is not None:
            self._spend(base.__len__(obj), 0)
            items = list(base.__iter__(obj)) + (list(dict.values(obj)) if base is dict else [])
            # Atoms are hashed with their container.
            self._spend(0, sum(len(i) for i in items if type(i) in (str, bytes)))
        self._spend(1, _memory(obj))

    def _spend(self, nodes: int, nbytes: int) -> None:
        if self.walked + nodes > self._nodes or self.hashed + nbytes > self._bytes:
            raise _TooMuch  # what was not read does not count
        self.walked += nodes
        self.hashed += nbytes

    def _enter(
        self,
        obj: Any,
        open_: dict[int, _Frame],
        component: list[_Frame],
        frames: list[_Frame],
        made: int,
    ) -> bool:
        self.charge(obj)
        return super()._enter(obj, open_, component, frames, made)


def _reduces_itself(kind: type) -> bool:
    """Whether the session's own code says what an instance is made of, perhaps without end."""
    if kind.__module__ == "__main__" and kind in copyreg.dispatch_table:
        return True
    own = [c for c in kind.__mro__ if c.__module__ == "__main__"]
    return any(name in vars(c) for c in own for name in _REDUCTIONS)


def _memory(obj: Any) -> int:
    """Return how many bytes `obj` itself holds."""
    numpy = loaded("numpy")
    if numpy is not None and isinstance(obj, numpy.ndarray):
        size, itemsize = numpy.ndarray.size, numpy.ndarray.itemsize
        return int(size.__get__(obj)) * int(itemsize.__get__(obj))
    if isinstance(obj, memoryview):
        return obj.nbytes
    base = next((b for b in _BYTES if isinstance(obj, b)), None)
    if base is not None:
        return int(base.__len__(obj))
    return len(obj) * obj.itemsize if isinstance(obj, array.array) else 0
