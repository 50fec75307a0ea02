"""Which variables share objects: each such group is one stream, all other streams are apart.

Small variables are pickled one by one and the picklers' memos are compared. What is large is
pickled once only where that can be: several large variables that hold the same instances go into
one stream as soon as the second meets one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..errors import SnapshotCancelledError
from .deep import call_deep
from .grouping import Grouping, Key, Pass, inline, met_by
from .identity import ATOMS, has_identity, is_shallow
from .paths import find_path
from .pickling import CannotSave, Context, SharedObject, SnapshotPickler, sentence
from .streams import FIRST_PASS_BYTES, Endless, Stream, TooLargeError

ATOMS_TOGETHER = 64
"""So many plain values go into one stream; a stream each would cost more than it is worth."""

LARGE_ITEMS = 50_000
"""A container of so many objects is large; to find that out by pickling it would be a waste."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something could not be saved."""

    reason: str
    path: str = ""


@dataclass(slots=True)
class Group:
    """One stream and what is in it, in the order of loading.

    `starts` are the places in the stream where each key's pickle begins.
    """

    keys: list[Key]
    starts: list[int]
    stream: Stream
    buffers: list[int]
    out_of_band: list[int]
    classes: list[int]


@dataclass(slots=True)
class Plan:
    """All streams in the order of loading, and what has none."""

    groups: list[Group] = field(default_factory=list)
    failures: dict[Key, Failure] = field(default_factory=dict)
    notes: dict[Key, list[str]] = field(default_factory=dict)
    nbytes: dict[Key, int] = field(default_factory=dict)
    class_kinds: dict[Key, type] = field(default_factory=dict)


def make_plan(
    context: Context,
    values: Mapping[Key, Any],
    *,
    make_stream: Callable[..., Stream] = Stream,
) -> Plan:
    """Pickle every value, and those that share objects together.

    Parameters
    ----------
    make_stream
        Makes the streams; takes the keywords `limit` of `Stream`.
    """
    return _Planner(context, values, make_stream).plan()


class _Planner:
    def __init__(
        self, context: Context, values: Mapping[Key, Any], make_stream: Callable[..., Stream]
    ) -> None:
        self.context = context
        self.values: dict[Key, Any] = dict(values)
        self.make_stream = make_stream
        self.result = Plan()
        self.passes: list[Pass] = []

    def plan(self) -> Plan:
        large, long = self._small_ones(list(self.values))
        # The largest memo by far grows while little else is there.
        self._large_ones(large)
        for key in long:
            self._shallow(key)
        self._classes()
        self._aliases()
        self._spread_bad_classes()
        grouping = Grouping(self.context, self.values, self.passes)
        for group in grouping.in_order(grouping.unite()):
            self._finish(group)
        plan = self.result
        written = {key for group in plan.groups for key in group.keys}
        for key in self.values.keys() - written - plan.failures.keys():
            plan.failures[key] = Failure("it was lost while sharing was found out: a fault of ours")
        plan.failures = {k: v for k, v in plan.failures.items() if k[0] != "class"}
        return plan

    # ------------------------------------------------------------------ first passes

    def _small_ones(self, keys: Iterable[Key]) -> tuple[list[Key], list[Key]]:
        """Pickle each value by itself; return the keys of large ones, and of long shallow ones."""
        large: list[Key] = []
        long: list[Key] = []
        atoms: list[Key] = []
        for key in keys:
            value = self.values[key]
            if type(value) in ATOMS and not has_identity(self.context, value):
                atoms.append(key)
                if len(atoms) == ATOMS_TOGETHER:
                    self._pass(atoms)
                    atoms = []
            elif is_shallow(value):
                if len(value) >= LARGE_ITEMS:
                    long.append(key)
                else:
                    self._shallow(key)
            elif type(value) in (list, dict, tuple, set) and len(value) >= LARGE_ITEMS:
                large.append(key)
            else:
                try:
                    self._pass([key], limit=FIRST_PASS_BYTES)
                except TooLargeError:
                    large.append(key)
        if atoms:
            self._pass(atoms)
        return large, long

    def _shallow(self, key: Key) -> None:
        if (one := self._pass([key])) is not None:
            # Nothing in it can be another's too, and a memo takes more than its stream.
            one.pickler.memo = {}

    def _large_ones(self, keys: list[Key]) -> None:
        """Pickle large values, into the stream of another where they meet an object of it."""
        known: list[Pass] = []
        for key in keys:
            if known:
                self.context.elsewhere = partial(met_by, tuple(known))
            try:
                one = self._pass([key], large=True)
            except SharedObject as shared:
                one = self._join(next(o for o in known if shared.args[0] in o.met()), key)
                # A join that failed has put others in the place of the pass.
                known = [other for other in known if other in self.passes]
            finally:
                self.context.elsewhere = None
            if one is not None and one not in known:
                known.append(one)

    def _join(self, other: Pass, key: Key) -> Pass | None:
        """Write a value behind those whose objects it shares."""
        start = other.stream.nbytes
        self.context.elsewhere = None
        # It is known now that they share; the pickler would take its own objects for another's.
        other.pickler.keep_to_itself()
        try:
            other.pickler.dump(self.values[key])
        except SnapshotCancelledError:
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            # The stream is spoilt: all its values are pickled again, apart and then together.
            self.passes.remove(other)
            for again in (*other.keys, key):
                self._pass([again], large=True)
            return None
        other.keys.append(key)
        other.starts.append(start)
        self._note(other, key, other.stream.nbytes - start)
        return other

    def _classes(self) -> None:
        done = 0
        while done < len(self.context.classes):
            key = ("class", str(done))
            self.values[key] = self.result.class_kinds[key] = self.context.classes[done]
            self._pass([key])
            done += 1

    def _pass(
        self, keys: list[Key], *, limit: int | None = None, large: bool = False
    ) -> Pass | None:
        context, plan = self.context, self.result
        try:
            one = self._dump(keys, limit)
        except CannotSave as error:
            if len(keys) > 1:
                raise
            value = self.values[keys[0]]
            plan.failures[keys[0]] = Failure(str(error), find_path(value, error.culprit))
            if keys[0][0] == "class":
                reason = f"class {value.__qualname__} cannot be saved: {error}"
                context.bad_classes[int(keys[0][1])] = reason
            return None
        one.large = large
        self.passes.append(one)
        ends = [*one.starts[1:], one.stream.nbytes]
        for key, start, end in zip(keys, one.starts, ends, strict=True):
            self._note(one, key, end - start)
        return one

    def _note(self, one: Pass, key: Key, nbytes: int) -> None:
        sources = self.context.buffers.sources
        memory = sum(sources[i].nbytes for i in one.pickler.used_buffers)
        self.result.nbytes[key] = nbytes + memory
        self.result.notes[key] = one.pickler.notes

    def _dump(self, keys: list[Key], limit: int | None = None) -> Pass:
        """Pickle values one after the other; fast first, then with care, then deep.

        Raises
        ------
        CannotSave
            With the culprit and the reason, if none of the ways leads to an end.
        """

        def attempt(careful: bool) -> Pass:
            stream = self.make_stream(limit=limit)
            pickler = SnapshotPickler(stream, self.context, careful=careful, inline=inline(keys))
            starts = []
            for key in keys:
                starts.append(stream.nbytes)
                pickler.dump(self.values[key])
            return Pass(list(keys), pickler, stream, starts)

        last = self.values[keys[-1]]
        for careful in (False, True):
            once = partial(attempt, careful)
            try:
                try:
                    return once()
                except RecursionError:
                    return call_deep(once)
            except _OURS:
                raise
            except Endless as error:
                raise CannotSave(last, str(error)) from error
            except RecursionError as error:
                reason = "its objects are nested too deeply to be followed"
                raise CannotSave(last, reason) from error
            except BaseException as error:
                reason = sentence(error)
        raise CannotSave(last, reason)

    def _aliases(self) -> None:
        """Pickle again what holds torch storages over memory that a numpy array owns."""
        touched = self.context.find_aliases()
        for one in [p for p in self.passes if p.pickler.used_storages & touched]:
            self.passes.remove(one)
            if one.large and len(one.keys) > 1:
                self.passes.append(self._dump(one.keys))
                self.passes[-1].large = True
            else:
                self._pass(one.keys, large=one.large)

    def _spread_bad_classes(self) -> None:
        context, plan = self.context, self.result
        while True:
            found = [(p, p.pickler.used_classes & context.bad_classes.keys()) for p in self.passes]
            bad = [(one, min(numbers)) for one, numbers in found if numbers]
            if not bad:
                return
            for one, number in bad:
                self.passes.remove(one)
                if len(one.keys) > 1:
                    for key in one.keys:
                        self._pass([key], large=True)
                    continue
                reason = context.bad_classes[number]
                key = one.keys[0]
                plan.failures[key] = Failure(reason)
                if key[0] == "class":
                    context.bad_classes[int(key[1])] = reason

    def _finish(self, group: list[Pass]) -> None:
        """Keep the stream of a group, pickling its values together if they are not yet."""
        if len(group) == 1:
            self._keep(group[0])
            return
        # Classes first: what shares objects with them may need them whole.
        keys = [key for one in group for key in one.keys]
        keys.sort(key=lambda key: key[0] != "class")
        while keys:
            try:
                self._keep(self._dump(keys))
                return
            except CannotSave as error:
                culprit = self._blame(keys)
                path = find_path(self.values[culprit], error.culprit)
                self.result.failures[culprit] = Failure(str(error), path)
                keys = [key for key in keys if key != culprit]

    def _keep(self, one: Pass) -> None:
        pickler = one.pickler
        self.result.groups.append(
            Group(
                one.keys,
                one.starts,
                one.stream,
                sorted(pickler.used_buffers),
                pickler.out_of_band,
                sorted(one.classes),
            )
        )

    def _blame(self, keys: list[Key]) -> Key:
        """Return the first key that cannot be pickled together with those before it."""
        for count in range(1, len(keys)):
            try:
                self._dump(keys[:count])
            except CannotSave:
                return keys[count - 1]
        return keys[-1]


_OURS = (CannotSave, KeyboardInterrupt, SharedObject, SnapshotCancelledError, TooLargeError)
"""Everything else that pickling raises is a fault of the object, whatever it derives from."""
