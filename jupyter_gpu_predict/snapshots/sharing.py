"""Which variables share objects: each such group is one stream, all other streams are apart."""

from __future__ import annotations

import enum
import io
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .deep import call_deep
from .definitions import importable
from .paths import find_path
from .pickling import CannotSave, Context, SnapshotPickler

Key = tuple[str, ...]
"""What is saved: ``("var", name)``, ``("extra", part)``, ``("extra", part, entry)``, or a class."""

LARGE_CONSTANT_BYTES = 1 << 20
"""Shared strings and bytes from this size on are written once, which puts their owners together."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something could not be saved."""

    reason: str
    path: str = ""


@dataclass(slots=True)
class Group:
    """One stream and what is in it, in the order of loading."""

    keys: list[Key]
    stream: memoryview
    buffers: list[int]


@dataclass(slots=True)
class Plan:
    """All streams in the order of loading, and what has none."""

    groups: list[Group] = field(default_factory=list)
    failures: dict[Key, Failure] = field(default_factory=dict)
    notes: dict[Key, list[str]] = field(default_factory=dict)
    nbytes: dict[Key, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Pass:
    pickler: SnapshotPickler
    file: io.BytesIO
    classes: set[int]


def make_plan(context: Context, values: Mapping[Key, Any]) -> Plan:
    """Pickle every value by itself, find out what they share, and pickle the groups together."""
    plan = Plan()
    everything: dict[Key, Any] = dict(values)
    passes: dict[Key, _Pass] = {}
    for key, value in values.items():
        _first_pass(context, plan, passes, key, value)
    done = 0
    while done < len(context.classes):
        key = ("class", str(done))
        everything[key] = context.classes[done]
        _first_pass(context, plan, passes, key, context.classes[done])
        done += 1
    touched = context.find_aliases()
    if touched:
        for key in [k for k, p in passes.items() if p.pickler.used_storages & touched]:
            del passes[key]
            _first_pass(context, plan, passes, key, everything[key])
    _spread_bad_classes(context, plan, passes)
    for members in _in_order(_unite(context, passes), passes, everything):
        _write_group(context, plan, passes, members, everything)
    plan.failures = {k: v for k, v in plan.failures.items() if k[0] != "class"}
    return plan


def _first_pass(
    context: Context, plan: Plan, passes: dict[Key, _Pass], key: Key, value: Any
) -> None:
    try:
        pickler, file = _dump(context, [value], _inline([key]))
    except CannotSave as error:
        plan.failures[key] = Failure(str(error), find_path(value, error.culprit))
        if key[0] == "class":
            reason = f"class {value.__qualname__} cannot be saved: {error}"
            context.bad_classes[int(key[1])] = reason
        return
    passes[key] = _Pass(pickler, file, set(pickler.used_classes))
    plan.notes[key] = pickler.notes
    sources = context.buffers.sources
    plan.nbytes[key] = file.tell() + sum(sources[i].nbytes for i in pickler.used_buffers)


def _inline(keys: list[Key]) -> frozenset[int]:
    return frozenset(int(key[1]) for key in keys if key[0] == "class")


def _dump(
    context: Context, values: list[Any], inline: frozenset[int]
) -> tuple[SnapshotPickler, io.BytesIO]:
    """Pickle `values` one after the other into one stream; fast first, then with care, then deep.

    Raises
    ------
    CannotSave
        With the culprit and the reason, if none of the ways leads to an end.
    """

    def attempt(careful: bool) -> tuple[SnapshotPickler, io.BytesIO]:
        file = io.BytesIO()
        pickler = SnapshotPickler(file, context, careful=careful, inline=inline)
        for value in values:
            pickler.dump(value)
        return pickler, file

    for careful in (False, True):
        once = partial(attempt, careful)
        try:
            try:
                return once()
            except RecursionError:
                return call_deep(once)
        except CannotSave:
            raise
        except RecursionError as error:
            reason = "its objects are nested too deeply to be followed"
            raise CannotSave(values[-1], reason) from error
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
    raise CannotSave(values[-1], reason)


def _spread_bad_classes(context: Context, plan: Plan, passes: dict[Key, _Pass]) -> None:
    while True:
        bad = {k: p.classes & context.bad_classes.keys() for k, p in passes.items()}
        found = {k: min(v) for k, v in bad.items() if v}
        if not found:
            return
        for key, index in found.items():
            reason = context.bad_classes[index]
            plan.failures[key] = Failure(reason)
            del passes[key]
            if key[0] == "class":
                context.bad_classes[int(key[1])] = reason


def _unite(context: Context, passes: dict[Key, _Pass]) -> list[list[Key]]:
    """Return the keys in groups: those that share an object."""
    parent: dict[Key, Key] = {key: key for key in passes}

    def find(key: Key) -> Key:
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    owner: dict[int, Key] = {}
    counted: dict[int, bool] = {}
    for key, one in passes.items():
        memo = one.pickler.memo.copy()
        for identity in owner.keys() & memo.keys():
            if identity not in counted:
                counted[identity] = _counts(context, memo[identity][1])
            if counted[identity]:
                parent[find(key)] = find(owner[identity])
        for identity in memo:
            owner.setdefault(identity, key)
    groups: dict[Key, list[Key]] = {}
    for key in passes:
        groups.setdefault(find(key), []).append(key)
    return list(groups.values())


_CONSTANTS = (
    str,
    bytes,
    int,
    float,
    complex,
    bool,
    tuple,
    frozenset,
    type,
    types.NoneType,
    types.ModuleType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.CodeType,
    types.GenericAlias,
    enum.Enum,
)


def _counts(context: Context, obj: Any) -> bool:
    if obj is context.namespace:
        return False
    if isinstance(obj, (str, bytes)):
        return sys.getsizeof(obj) >= LARGE_CONSTANT_BYTES
    if isinstance(obj, types.FunctionType):
        return not importable(obj, context.main_names)
    if isinstance(obj, _CONSTANTS):
        return False
    if type(obj).__module__ == "typing":
        # A type variable of the session is known by identity; others are found by name.
        return getattr(obj, "__module__", None) in context.main_names
    for module, names in (("numpy", ("dtype", "ufunc")), ("torch", ("dtype", "device", "layout"))):
        library = sys.modules.get(module)
        if library is not None and isinstance(obj, tuple(getattr(library, n) for n in names)):
            return False
    return True


def _in_order(
    groups: list[list[Key]], passes: Mapping[Key, _Pass], everything: Mapping[Key, Any]
) -> Iterator[list[Key]]:
    """Yield groups so that each finds what it needs: its classes, then modules and functions.

    Groups whose classes refer to each other in a circle become one.
    """
    place = {key: number for number, keys in enumerate(groups) for key in keys}
    needs = [
        {place["class", str(index)] for key in keys for index in passes[key].classes} - {number}
        for number, keys in enumerate(groups)
    ]
    reach = [_reachable(number, needs) for number in range(len(groups))]
    joined: dict[int, list[Key]] = {}
    first = {}
    for number, keys in enumerate(groups):
        circle = min([number, *(other for other in reach[number] if number in reach[other])])
        first[number] = circle
        joined.setdefault(circle, []).extend(keys)

    def rank(number: int) -> int:
        values = [everything[key] for key in joined[number]]
        if all(isinstance(value, types.ModuleType) for value in values):
            return 0
        return 1 if all(isinstance(v, (type, types.FunctionType)) for v in values) else 2

    # What a group needs reaches strictly less than the group itself does.
    depth = {number: len({first[other] for other in reach[number]} - {number}) for number in joined}
    by_need = sorted(joined, key=lambda number: (rank(number), depth[number]))
    done: set[int] = set()
    for number in by_need:
        needed = sorted({first[other] for other in reach[number]}, key=lambda n: depth[n])
        for one in (*needed, number):
            if one not in done:
                done.add(one)
                yield joined[one]


def _reachable(start: int, needs: list[set[int]]) -> set[int]:
    found: set[int] = set()
    waiting = list(needs[start])
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting.extend(needs[one])
    return found


def _write_group(
    context: Context,
    plan: Plan,
    passes: dict[Key, _Pass],
    keys: list[Key],
    everything: Mapping[Key, Any],
) -> None:
    if len(keys) == 1:
        one = passes[keys[0]]
        plan.groups.append(
            Group(keys, memoryview(one.file.getvalue()), sorted(one.pickler.used_buffers))
        )
        return
    # Classes first: what shares objects with them may need them whole.
    keys = sorted(keys, key=lambda key: key[0] != "class")
    while keys:
        try:
            values = [everything[key] for key in keys]
            pickler, file = _dump(context, values, _inline(keys))
        except CannotSave as error:
            culprit = _blame(context, keys, everything)
            path = find_path(everything[culprit], error.culprit)
            plan.failures[culprit] = Failure(str(error), path)
            keys = [key for key in keys if key != culprit]
            continue
        plan.groups.append(Group(keys, memoryview(file.getvalue()), sorted(pickler.used_buffers)))
        return


def _blame(context: Context, keys: list[Key], everything: Mapping[Key, Any]) -> Key:
    """Return the first key that cannot be pickled together with those before it."""

    def fails(count: int) -> bool:
        try:
            _dump(context, [everything[key] for key in keys[:count]], _inline(keys))
        except CannotSave:
            return True
        return False

    return next((keys[n - 1] for n in range(1, len(keys)) if fails(n)), keys[-1])
