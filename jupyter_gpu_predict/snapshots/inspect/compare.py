"""Whether two snapshots of one state describe the same objects, shared in the same way.

Both graphs are walked together. Each object with an identity must meet the same partner every
time, which compares values, aliases and views over memory in one go, whatever the numbering of
memo, buffers and classes. Items of sets, whose order differs from process to process, are matched
by what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import SnapshotError
from .dense import Dense, find_dense, rebuild_method
from .describe import short_text
from .graph import ATOMS, buffer_number, class_number, has_identity
from .likeness import (
    CODE,
    archive,
    atom_key,
    fingerprint,
    kind_of,
    meaningful,
    same_atom,
    same_code,
    steps,
)
from .nodes import Call, FrozenItems, Global, Items, Pairs
from .partners import Partners
from .symbolic import read_stream

_SET_ROUNDS = 4
_COUNTS_ON = frozenset({"CallbackRegistry"})
"""matplotlib numbers the callbacks of a figure anew whenever it is loaded."""

Path = tuple[Any, str]
"""What leads to a value: the path before it, and a label."""


@dataclass(slots=True)
class Side:
    """One of two snapshots: its buffers, and its classes by number."""

    buffers: Mapping[int, Mapping[str, Any]]
    classes: Mapping[int, Any]


class Difference(Exception):  # noqa: N818
    """The first place where two values differ."""


class Comparison:
    """Compares values of two snapshots, remembering between calls who is whose partner.

    Parameters
    ----------
    saved, again
        The two sides.
    same_memory
        Tells whether two buffers, by their numbers, hold the same bytes.
    is_set
        Tells whether a class, by its symbolic value on the second side, is a kind of set, whose
        reduced form lists its items in no particular order.
    """

    def __init__(
        self,
        saved: Side,
        again: Side,
        same_memory: Callable[[int, int], bool],
        is_set: Callable[[Any], bool] = lambda value: False,
    ) -> None:
        self._saved = saved
        self._again = again
        self._same_memory = same_memory
        self._is_set = is_set
        self._maps = Partners()
        self._kept: list[Any] = []
        self._waiting: list[tuple[Any, Any, Path]] = []
        self._sets: list[tuple[list[Any], list[Any], Path]] = []

    def compare(self, saved: Any, again: Any, name: str) -> str | None:
        """Return where and how two values differ, ``None`` if they do not."""
        length = len(self._maps.journal)
        self._waiting = [(saved, again, (None, name))]
        self._sets = []
        try:
            self._run()
        except Difference as difference:
            self._maps.undo(length)
            return str(difference)
        return None

    def same_numbers(self, buffers: Iterable[int], classes: Iterable[int]) -> str | None:
        """Return what differs in buffers and classes that have the same numbers on both sides."""
        path = (None, "")
        try:
            for number in buffers:
                self._buffers(number, number, path)
            for number in classes:
                self._classes(number, number, path)
            self._run()
        except Difference as difference:
            return str(difference).removeprefix(": ")
        return None

    def _run(self) -> None:
        while self._waiting or self._sets:
            while self._waiting:
                self._pair(*self._waiting.pop())
            if self._sets:
                # Last, when most items have met their partners on other ways.
                self._match(*self._sets.pop())

    def _pair(self, one: Any, other: Any, path: Path) -> None:
        kind = type(one)
        if kind is not type(other):
            raise _differ(path, f"{kind_of(one)} became {kind_of(other)}")
        if kind in ATOMS:
            if not same_atom(one, other):
                self._archives(one, other, path)
        elif kind is bytearray:
            if self._known(one, other, path) is None and one != other:
                raise _differ(path, "its bytes differ")
        elif kind is Global:
            if (one.module, one.name) != (other.module, other.name):
                before, after = f"{one.module}.{one.name}", f"{other.module}.{other.name}"
                raise _differ(path, f"{before} became {after}")
            self._states(one, other, path)
        elif kind is Call:
            self._calls(one, other, path)
        elif kind in (Items, FrozenItems):
            if self._known(one, other, path) is None:
                self._set(one, other, path)
        elif kind is Pairs:
            if self._known(one, other, path) is None:
                self._pairs(one, other, path)
        elif self._known(one, other, path) is None:
            self._sequence(one, other, path)

    def _known(self, one: Any, other: Any, path: Path) -> bool | None:
        """Return ``None`` if the two have still to be compared."""
        if type(one) in (tuple, FrozenItems):
            # Whether equal ones are one object depends on constants and interning.
            key = (id(one), id(other))
            return self._maps.meet(key, key)
        found = self._maps.meet(("object", id(one)), ("object", id(other)))
        if found is False:
            if has_identity(one):
                where = "is shared with another part of the state in one of the two only"
                raise _differ(path, f"this {kind_of(one)} {where}")
            key = (id(one), id(other))
            return self._maps.meet(key, key)
        return found

    def _sequence(self, one: Any, other: Any, path: Path) -> None:
        if len(one) != len(other):
            raise _differ(path, f"{kind_of(one)} of {len(one)} became one of {len(other)}")
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            if type(a) in ATOMS and type(a) is type(b) and same_atom(a, b):
                continue
            self._waiting.append((a, b, (path, f"[{place}]")))

    def _pairs(self, one: list[Any], other: list[Any], path: Path) -> None:
        if len(one) != len(other):
            raise _differ(path, f"{len(one) // 2} keys became {len(other) // 2}")
        for place in range(0, len(one), 2):
            key, again = one[place], other[place]
            if type(key) not in ATOMS:
                self._waiting.append((key, again, (path, " (a key)")))
            elif type(key) is not type(again) or not same_atom(key, again):
                raise _differ(path, f"key {short_text(key)} became another one")
            a, b = one[place + 1], other[place + 1]
            if type(a) in ATOMS and type(a) is type(b) and same_atom(a, b):
                continue
            label = f"[{short_text(key)}]" if type(key) in ATOMS else "[…]"
            self._waiting.append((a, b, (path, label)))

    def _calls(self, one: Call, other: Call, path: Path) -> None:
        if self._known(one, other, path) is not None:
            return
        before = find_dense(one, self._saved.buffers)
        after = find_dense(other, self._again.buffers)
        if before and after and before.library == after.library == "numpy":
            self._arrays(before, after, path)
            self._states(one, other, path)
            return
        if one.how != other.how:
            raise _differ(path, f"{one.how} became {other.how}")
        first, second = class_number(one), class_number(other)
        if first is not None and second is not None:
            self._classes(first, second, path)
            return
        skip = 0
        first, second = buffer_number(one), buffer_number(other)
        if first is not None and second is not None:
            self._buffers(first, second, path)
            skip = 1
        self._waiting.append((one.function, other.function, path))
        if type(one.function) is Global and one.function.name in _COUNTS_ON:
            return
        self._arguments(one, other, path, skip)
        self._waiting.append((one.keywords, other.keywords, path))
        for a, b, compare in (
            (one.items, other.items, self._sequence),
            (one.pairs, other.pairs, self._pairs),
        ):
            if a or b:
                compare(a or [], b or [], path)
        self._states(one, other, path)

    def _arguments(self, one: Call, other: Call, path: Path, skip: int) -> None:
        a, b = one.arguments, other.arguments
        if type(a) is not tuple or type(b) is not tuple or len(a) != len(b):
            self._waiting.append((a, b, path))
            return
        method = rebuild_method(one)
        if method in ("make_class", "enum_class") or (method in CODE and same_code(a[0], b[0])):
            skip = 1  # classes are numbered in the order in which they are met
        elif method == "undill" and a[0] != b[0]:
            self._nested(a[0], b[0], path)
            return
        elif method in ("storage", "small_storage") and a[1] != b[1]:
            # The memory of a device is looked at in the host's.
            if b[1] != "cpu":
                raise _differ(path, f"device {a[1]} became {b[1]}")
            a, b = a[:1], b[:1]
        elif len(a) == 1 and type(a[0]) is type(b[0]) is list and self._is_set(other.function):
            self._set(a[0], b[0], path)
            return
        for place in range(skip, len(a)):
            self._waiting.append((a[place], b[place], (path, f"({place})")))

    def _states(self, one: Any, other: Any, path: Path) -> None:
        a, b = one.states or [], other.states or []
        if type(one) is Call and type(one.function) is Global:
            a, b = meaningful(one.function, a), meaningful(one.function, b)
            self._kept += [a, b]  # their ids must stay their own
        if len(a) != len(b):
            raise _differ(path, "it has a state in one of the two only")
        for (first, state), (second, again) in zip(a, b, strict=True):
            self._waiting.append((first, second, path))
            if type(state) is type(again) is tuple and len(state) == len(again):
                for part, other_part in zip(state, again, strict=True):
                    self._attributes(part, other_part, path)
            else:
                self._attributes(state, again, path)

    def _attributes(self, one: Any, other: Any, path: Path) -> None:
        """Compare the attributes of an object, whose order is no state."""
        named = type(one) is type(other) is Pairs and len(one) == len(other)
        if not named or not all(type(key) is str for key in (*one[::2], *other[::2])):
            self._waiting.append((one, other, (path, ".(state)")))
        elif self._known(one, other, path) is None:
            values = dict(zip(other[::2], other[1::2], strict=True))
            for key, value in zip(one[::2], one[1::2], strict=True):
                if key not in values:
                    raise _differ(path, f"attribute {key!r} is missing")
                if key == "attributes":  # those of a class
                    self._attributes(value, values[key], path)
                    continue
                self._waiting.append((value, values[key], (path, f".{key}")))

    def _arrays(self, one: Dense, other: Dense, path: Path) -> None:
        """Compare two arrays by what they look at, whichever array is said to own the memory."""
        codes = [dense.code.partition("[")[0] for dense in (one, other)]
        if codes[0] != codes[1]:
            raise _differ(path, f"dtype {one.code} became {other.code}")
        if one.shape != other.shape or steps(one) != steps(other):
            before, after = (f"{d.shape} with strides {d.strides}" for d in (one, other))
            raise _differ(path, f"shape {before} became {after}")
        if one.writeable != other.writeable and None not in (one.writeable, other.writeable):
            raise _differ(path, "it can be written to in one of the two only")
        if one.memory.offset != other.memory.offset:
            raise _differ(path, "it looks at another part of its memory")
        if one.described is not None and other.described is not None:
            self._waiting.append((one.described, other.described, (path, ".dtype")))
        self._waiting.append((one.cls, other.cls, (path, " (its class)")))
        first, second = one.memory.index, other.memory.index
        if first is not None and second is not None:
            self._buffers(first, second, path, by_owner=False)
            return
        known = self._maps.meet(one.memory.identity, other.memory.identity)
        if known is False:
            raise _differ(path, "its memory is shared in one of the two only")
        if known is None and (first != second or one.memory.data != other.memory.data):
            raise _differ(path, "the bytes of its memory differ")

    def _classes(self, first: int, second: int, path: Path) -> None:
        known = self._maps.meet(("class", first), ("class", second))
        if known is False:
            raise _differ(path, "its class differs")
        if known is None and first in self._saved.classes and second in self._again.classes:
            pair = self._saved.classes[first], self._again.classes[second]
            self._waiting.append((*pair, (path, " (its class)")))

    def _buffers(self, first: int, second: int, path: Path, *, by_owner: bool = True) -> None:
        known = self._maps.meet(("buffer", first), ("buffer", second))
        if known is False:
            raise _differ(path, "its memory is shared in one of the two only")
        if known is None:
            specs = [
                {k: v for k, v in side.buffers[number].items() if k not in _PLACE}
                for side, number in ((self._saved, first), (self._again, second))
            ]
            if by_owner and specs[0] != specs[1]:
                raise _differ(path, f"memory {specs[0]} became {specs[1]}")
            if not self._same_memory(first, second):
                raise _differ(path, "the bytes of its memory differ")

    def _nested(self, one: Any, other: Any, path: Path) -> None:
        try:
            (a, *_), _ = read_stream(one)
            (b, *_), _ = read_stream(other)
        except (SnapshotError, TypeError, ValueError):
            raise _differ(path, "what was pickled of it by others differs") from None
        self._waiting.append((a, b, path))

    def _archives(self, one: Any, other: Any, path: Path) -> None:
        """Compare what torch has packed; all else that has other bytes differs."""
        before, after = archive(one), archive(other)
        if before is None or after is None:
            raise _differ(path, f"{short_text(one)} became {short_text(other)}")
        if before.keys() != after.keys():
            raise _differ(path, "the files packed in it differ")
        for name, data in before.items():
            if name.endswith(".pkl"):
                self._nested(data, after[name], (path, f" ({name})"))
            elif data != after[name]:
                raise _differ(path, f"{name}, packed in it, differs")

    # ---------------------------------------------------------------- sets

    def _set(self, one: list[Any], other: list[Any], path: Path) -> None:
        if len(one) != len(other):
            raise _differ(path, f"a set of {len(one)} became one of {len(other)}")
        a = {atom_key(item) for item in one if type(item) in ATOMS}
        b = {atom_key(item) for item in other if type(item) in ATOMS}
        if a != b:
            item = next(iter(a ^ b))
            where = "saved" if item in a else "loaded"
            raise _differ(path, f"only the {where} set has {item[1]!s:.60}")
        rest = [item for item in one if type(item) not in ATOMS]
        if rest:
            self._sets.append((rest, [i for i in other if type(i) not in ATOMS], path))

    def _match(self, one: list[Any], other: list[Any], path: Path) -> None:
        heads: dict[bytes, tuple[list[Any], list[Any]]] = {}
        for items, side, place in ((one, self._saved, 0), (other, self._again, 1)):
            known: dict[tuple[int, int], bytes] = {}
            for item in items:
                head = fingerprint(item, side.buffers, _SET_ROUNDS, known)
                heads.setdefault(head, ([], []))[place].append(item)
        label = (path, "{…}")
        for first, second in heads.values():
            if len(first) != len(second):
                raise _differ(path, f"the items of the set differ ({kind_of((first + second)[0])})")
            if len(first) == 1:
                self._waiting.append((first[0], second[0], label))
                continue
            left = dict(enumerate(second))
            for item in first:
                partner = next((n for n, c in left.items() if self._agree(item, c, label)), None)
                if partner is None:
                    raise _differ(label, f"this {kind_of(item)} is not among the loaded ones")
                del left[partner]

    def _agree(self, one: Any, other: Any, path: Path) -> bool:
        """Make two items partners if they can be, and tell whether they are."""
        outer = self._waiting, self._sets
        length = len(self._maps.journal)
        self._waiting, self._sets = [(one, other, path)], []
        try:
            self._run()
        except Difference:
            self._maps.undo(length)
            return False
        finally:
            self._waiting, self._sets = outer
        return True


_PLACE = frozenset({"index", "blob", "offset"})


def _differ(path: Path, text: str) -> Difference:
    labels = []
    step: Any = path
    while step is not None:
        step, label = step
        labels.append(label)
    return Difference(f"{''.join(reversed(labels))}: {text}")
