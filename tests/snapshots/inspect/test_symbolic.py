"""The reader of streams: it sees what unpickling would make, and runs nothing of it."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import pickle
import pickletools
import random
from collections import Counter, OrderedDict, defaultdict, deque
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyter_gpu_predict.errors import SnapshotDamagedError, SnapshotError
from jupyter_gpu_predict.snapshots.inspect import symbolic
from jupyter_gpu_predict.snapshots.inspect.nodes import Call, FrozenItems, Global, Items, Pairs

ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=6)
    | st.binary(max_size=6)
)


def find(name):
    """Return what a name means, also one of Python 2 as old protocols write them."""
    return pickle.Unpickler(io.BytesIO()).find_class(name.module, name.name)


def build(value, made):
    """Make the object that a symbolic value describes; shared values become shared objects."""
    kind = type(value)
    if kind is tuple:
        return made.setdefault(id(value), tuple(build(v, made) for v in value))
    if id(value) in made and kind in (list, Pairs, Items, Call, bytearray):
        return made[id(value)]
    if kind is list:
        found = made[id(value)] = []
        found.extend(build(v, made) for v in value)
        return found
    if kind is Pairs:
        found = made[id(value)] = {}
        for place in range(0, len(value), 2):
            found[build(value[place], made)] = build(value[place + 1], made)
        return found
    if kind is Items:
        found = made[id(value)] = set()
        found.update(build(v, made) for v in value)
        return found
    if kind is FrozenItems:
        return frozenset(build(v, made) for v in value)
    if kind is Call:
        found = made[id(value)] = find(value.function)(*build(value.arguments, made))
        if value.items:
            found.extend(build(v, made) for v in value.items)
        for place in range(0, len(value.pairs or ()), 2):
            found[build(value.pairs[place], made)] = build(value.pairs[place + 1], made)
        return found
    return value


def shape(value, seen):
    """Describe a value with what of it is one object; sets in an order of their own."""
    kind = type(value)
    if kind in (list, dict, set, deque, OrderedDict, bytearray):
        if id(value) in seen:
            return ("again", seen[id(value)])
        seen[id(value)] = len(seen)
    if kind in (list, tuple, deque):
        return (kind.__name__, [shape(v, seen) for v in value])
    if kind in (dict, OrderedDict):
        return (kind.__name__, [(shape(k, seen), shape(v, seen)) for k, v in value.items()])
    if kind in (set, frozenset):
        return (kind.__name__, sorted(repr(shape(v, seen)) for v in value))
    return (kind.__name__, repr(value))


@st.composite
def graphs(draw):
    """Nested objects that refer to each other, in circles too."""
    containers = [draw(st.sampled_from((list, dict, deque, OrderedDict)))() for _ in range(6)]
    hashable = st.recursive(
        ATOMS,
        lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
        max_leaves=4,
    )
    special = st.sampled_from(
        [Fraction(1, 3), 1j, {1, "x"}, bytearray(b"ab"), dt.timedelta(3), range(2, 9)]
    )
    plain = hashable | st.lists(ATOMS, max_size=3) | special
    entry = plain | st.sampled_from(containers) | st.tuples(st.sampled_from(containers), plain)
    for container in containers:
        for _ in range(draw(st.integers(0, 4))):
            if isinstance(container, dict):
                container[draw(hashable)] = draw(entry)
            else:
                container.append(draw(entry))
    return containers


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs(), st.integers(0, 5))
def test_what_is_described_is_the_object(value, protocol):
    data = pickle.dumps(value, protocol)
    (found,), _ = symbolic.read_stream(data)
    made = build(found, {})
    assert shape(made, {}) == shape(pickle.loads(data), {})


def test_several_pickles_share_a_memo():
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 5)
    shared = ["shared"]
    starts = []
    for value in ([shared, 1], {"again": shared}, shared):
        starts.append(file.tell())
        pickler.dump(value)
    (first, second, third), found = symbolic.read_stream(file.getvalue())
    assert found == starts
    assert first[0] is third
    assert second[1] is third
    assert third == ["shared"]


class Point:
    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x


class Setting:
    def __reduce__(self):
        return Setting, (1, 2), {"a": 1}, None, None, set_state

    def __init__(self, *arguments):
        pass


def set_state(obj, state):
    raise AssertionError("ran")


def test_objects_and_their_states():
    values = [Point(7), Setting(), Counter("aab"), defaultdict(list, {1: [2]})]
    ((point, setting, counter, kept),), _ = symbolic.read_stream(pickle.dumps(values, 5))
    assert (point.how, point.function.name, point.arguments) == ("new", "Point", ())
    assert point.states == [(None, (None, ["x", 7]))]
    ((setter, state),) = setting.states
    assert (setter.name, state, setting.arguments) == ("set_state", ["a", 1], (1, 2))
    assert counter.arguments == (["a", 2, "b", 1],)
    assert (kept.function.name, kept.pairs) == ("defaultdict", [1, [2]])


def test_every_opcode_is_known():
    known = {*symbolic._METHODS}
    for info in pickletools.opcodes:
        code = ord(info.code)
        if code not in known:
            # The hot loop has it: it must get past it, or stop for want of what it needs.
            data = bytes([code]) + b"\x00" * 16
            with pytest.raises((SnapshotDamagedError, SnapshotError), match="no pickle"):
                symbolic.read_stream(data)
    assert known <= {ord(info.code) for info in pickletools.opcodes}


class Mark:
    def __reduce__(self):
        return set_state, (1, 2)


def test_nothing_is_run_or_imported():
    data = pickle.dumps([Mark()]) + b"cantigravity\nno_such_name\n."
    (first, second), _ = symbolic.read_stream(data)
    assert first[0].function.name == "set_state"
    assert (second.module, second.name) == ("antigravity", "no_such_name")
    assert isinstance(second, Global)


def test_hostile_streams_end_in_an_error():
    good = pickle.dumps([{"a": [1.5, "text", {2, 3}], "b": Point(3)}, (1, 2, 3)] * 3, 5)
    rng = random.Random(5)
    for _ in range(1500):
        bad = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        if rng.random() < 0.3:
            del bad[rng.randrange(len(bad)) :]
        with contextlib.suppress(SnapshotError):
            symbolic.read_stream(bad)
    for claim in (b"\x8e", b"\x96", b"\x8d", b"\x8b", b"B", b"X", b"\x95"):
        with pytest.raises(SnapshotDamagedError):
            symbolic.read_stream(claim + b"\xff" * 7 + b"\x7f" + b"x" * 10)


def test_deep_and_endless_streams():
    (deep,), _ = symbolic.read_stream(b"]" * 200_000 + b"a" * 199_999 + b".")
    assert len(deep) == 1
    del deep
    (tuples,), _ = symbolic.read_stream(b")" + b"\x85" * 200_000 + b".")
    assert len(tuples) == 1
    del tuples
    with pytest.raises(SnapshotError, match="too many parts"):
        symbolic.read_stream(b"N0" * 1000 + b"N.", max_steps=500)
