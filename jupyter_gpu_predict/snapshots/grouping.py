"""Which streams share objects, and the order in which they are loaded."""

from __future__ import annotations

import itertools
import pickle
import types
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .identity import (
    CONTAINERS,
    LARGE_CONSTANT_BYTES,
    has_identity,
    is_shallow,
    memo_objects,
)
from .pickling import Context, SnapshotPickler
from .streams import Stream, TooLargeError

Key = tuple[str, ...]
"""What is saved: ``("var", name)``, ``("extra", part)``, ``("extra", part, entry)``, or a class."""

_QUERIES = 64
_NEVER_SHARED = frozenset({int, float, tuple, type(None), type})
_MAYBE_LONG = frozenset({str, bytes})
_UNASKED = CONTAINERS | _MAYBE_LONG
"""Types that the C pickler writes without a call of its `reducer_override`."""


@dataclass(slots=True, eq=False)
class Pass:
    """What one pickler has written: one value, or several that belong together."""

    keys: list[Key]
    pickler: SnapshotPickler
    stream: Stream
    starts: list[int]
    large: bool = False

    def met(self) -> Iterator[int]:
        """Return the ``id`` of every instance that it has written."""
        return map(id, self.pickler.met)

    @property
    def classes(self) -> set[int]:
        """The numbers of the classes that must be loaded before."""
        return self.pickler.used_classes - inline(self.keys)


def met_by(passes: Iterable[Pass]) -> Iterator[Container[int]]:
    """Yield where to look for instances that the passes have written; first what is used once.

    What shares an instance with them mostly begins with one, so that a set of all of them, which
    takes more memory than a pickler's memo, is not made for the first question.
    """
    # That an iterator can be asked with `in` is more than its type says.
    yield itertools.chain.from_iterable(one.met() for one in passes)  # type: ignore[misc]
    yield frozenset(itertools.chain.from_iterable(one.met() for one in passes))


def inline(keys: Iterable[Key]) -> frozenset[int]:
    """Return the numbers of the classes among the keys."""
    return frozenset(int(key[1]) for key in keys if key[0] == "class")


class Grouping:
    """Puts passes that share objects together.

    Parameters
    ----------
    values
        What each key stands for.
    """

    def __init__(self, context: Context, values: Mapping[Key, Any], passes: list[Pass]) -> None:
        self.context = context
        self.values = values
        self.passes = passes

    def unite(self) -> list[list[Pass]]:
        """Return the passes in groups: those that share an object."""
        passes = self.passes
        parent = list(range(len(passes)))

        def find(number: int) -> int:
            while parent[number] != number:
                parent[number] = number = parent[parent[number]]
            return number

        large = [n for n, one in enumerate(passes) if one.large]
        # The largest memo of all is only searched, never copied.
        largest = max(large, key=lambda n: passes[n].stream.nbytes, default=None)
        owner: dict[int, tuple[int, Any]] = {}
        for number, one in enumerate(passes):
            if number == largest or (len(one.keys) > 1 and not one.large):
                continue
            for obj in self._objects(one):
                kind = type(obj)
                if kind in _NEVER_SHARED or (
                    kind in _MAYBE_LONG and len(obj) < LARGE_CONSTANT_BYTES
                ):
                    continue
                other = owner.setdefault(id(obj), (number, obj))[0]
                if other != number and has_identity(self.context, obj):
                    parent[find(number)] = find(other)
        if largest is not None:
            for other in self._known_to(passes[largest], owner):
                parent[find(largest)] = find(other)
        groups: dict[int, list[Pass]] = {}
        for number, one in enumerate(passes):
            groups.setdefault(find(number), []).append(one)
        return list(groups.values())

    def _objects(self, one: Pass) -> Iterable[Any]:
        if not one.large and is_shallow(value := self.values[one.keys[0]]):
            return (value,)
        return memo_objects(one.pickler)

    def _known_to(self, one: Pass, owner: Mapping[int, tuple[int, Any]]) -> set[int]:
        """Return the numbers of the passes that have an object in common with `one`."""
        met = {identity for identity in one.met() if identity in owner}
        found = {owner[i][0] for i in met if has_identity(self.context, owner[i][1])}
        boxes = {
            identity: entry
            for identity, entry in owner.items()
            if type(entry[1]) in _UNASKED
            and entry[0] not in found
            and has_identity(self.context, entry[1])
        }
        if not boxes:
            return found
        if len(boxes) <= _QUERIES and (answers := _ask(one, boxes)) is not None:
            return found | answers
        return found | {boxes[id(obj)][0] for obj in memo_objects(one.pickler) if id(obj) in boxes}

    def in_order(self, groups: list[list[Pass]]) -> Iterator[list[Pass]]:
        """Yield groups so that each finds what it needs: its classes, then modules and functions.

        Groups whose classes refer to each other in a circle become one.
        """
        place = {k: n for n, group in enumerate(groups) for one in group for k in one.keys}
        needs = [
            {place["class", str(index)] for one in group for index in one.classes} - {number}
            for number, group in enumerate(groups)
        ]
        reach = [_reachable(number, needs) for number in range(len(groups))]
        joined: dict[int, list[Pass]] = {}
        first = {}
        for number, group in enumerate(groups):
            circle = min([number, *(other for other in reach[number] if number in reach[other])])
            first[number] = circle
            joined.setdefault(circle, []).extend(group)

        def rank(number: int) -> int:
            values = [self.values[key] for one in joined[number] for key in one.keys]
            if all(isinstance(value, types.ModuleType) for value in values):
                return 0
            return 1 if all(isinstance(v, (type, types.FunctionType)) for v in values) else 2

        # What a group needs reaches strictly less than the group itself does.
        depth = {n: len({first[other] for other in reach[n]} - {n}) for n in joined}
        done: set[int] = set()
        for number in sorted(joined, key=lambda number: (rank(number), depth[number])):
            needed = sorted({first[other] for other in reach[number]}, key=lambda n: depth[n])
            for one in (*needed, number):
                if one not in done:
                    done.add(one)
                    yield joined[one]


def _ask(one: Pass, boxes: Mapping[int, tuple[int, Any]]) -> set[int] | None:
    """Return whose objects a pickler has written, by having it write them once more.

    In fast mode nothing is entered into the memo, and what is in it already comes out as a
    reference. ``None`` if that cannot be told in this way.
    """
    found = set()
    with one.pickler.asking(), one.stream.diverted() as written:
        for number, obj in boxes.values():
            written.clear()
            try:
                one.pickler.dump(obj)
            except TooLargeError:
                continue
            except Exception:
                return None
            if written and _is_reference(bytes(written[0])):
                found.add(number)
    return found


def _is_reference(written: bytes) -> bool:
    # Behind the protocol, and behind a frame header where the rest has four bytes or more.
    start = 11 if written[2:3] == pickle.FRAME else 2
    return written[start : start + 1] in (pickle.BINGET, pickle.LONG_BINGET)


def _reachable(start: int, needs: list[set[int]]) -> set[int]:
    found: set[int] = set()
    waiting = list(needs[start])
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting.extend(needs[one])
    return found
