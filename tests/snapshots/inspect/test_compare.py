"""Comparing two streams of one state: numbering and order of sets do not count, all else does."""

from __future__ import annotations

import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_symbolic import graphs

from jupyter_gpu_predict.snapshots.inspect.compare import Comparison, Side
from jupyter_gpu_predict.snapshots.inspect.graph import parts
from jupyter_gpu_predict.snapshots.inspect.nodes import Call, FrozenItems, Global, Items, Pairs
from jupyter_gpu_predict.snapshots.inspect.symbolic import read_stream


def read(value):
    return read_stream(pickle.dumps(value, 5))[0][0]


def compare(one, other, **keywords):
    nothing = Side({}, {})
    return Comparison(nothing, nothing, lambda a, b: a == b, **keywords).compare(one, other, "x")


def below(root):
    found, waiting = {}, [root]
    while waiting:
        value = waiting.pop()
        if id(value) not in found and isinstance(value, (list, tuple, Call)):
            found[id(value)] = value
            waiting.extend(parts(value))
    return list(found.values())


def shuffle_sets(root, rng):
    for value in below(root):
        if type(value) in (Items, FrozenItems):
            rng.shuffle(value)


@settings(max_examples=40, deadline=None)
@given(graphs(), st.randoms(use_true_random=False))
def test_same_state_in_another_order(value, rng):
    one, other = read(value), read(value)
    shuffle_sets(other, rng)
    assert compare(one, other) is None


@settings(max_examples=40, deadline=None)
@given(graphs(), st.randoms(use_true_random=False))
def test_any_change_is_found(value, rng):
    one, other = read(value), read(value)
    places = [
        (holder, place)
        for holder in below(other)
        if type(holder) in (list, Pairs)
        for place in range(len(holder))
    ]
    if not places:
        return
    holder, place = rng.choice(places)
    before = holder[place]
    holder[place] = ("changed", repr(before))
    assert compare(one, other).startswith("x")
    holder[place] = before
    if type(before) in (list, Pairs):
        # One more object with the same contents: only the sharing differs, if it was shared.
        uses = sum(part is before for value in below(other) for part in parts(value))
        holder[place] = type(before)(before)
        assert (compare(one, other) is not None) == (uses > 1)


def test_aliases_count_for_what_can_change_only():
    shared = [1]
    found = compare(read({"a": shared, "b": [shared]}), read({"a": [1], "b": [[1]]}))
    assert "this list is shared with another part of the state in one of the two only" in found
    assert found.startswith("x['")
    assert compare(read([shared, [1]]), read([shared, shared])) is not None
    text = ("a" * 3, 2**70)
    assert compare(read([text, text]), read([text, ("aaa", 2**70)])) is None
    number = 1j
    assert compare(read([number, number]), read([number, complex(0, 1)])) is None


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ([0.0], [-0.0], "0.0 became -0.0"),
        ([1], [True], "int became bool"),
        ([1], [1.0], "int became float"),
        ({"k": (1, [2])}, {"k": (1, [3])}, "x['k'][1][0]: 2 became 3"),
        ([{1, 2}], [{1, 3}], "only the"),
        ([{(1, 2)}], [{(1, 3)}], "the items of the set differ"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "key 'a' became another one"),
        (b"ab", bytearray(b"ab"), "bytes became bytearray"),
        (len, print, "builtins.len became builtins.print"),
        (range(3), range(4), "3 became 4"),
    ],
)
def test_differences_are_named(one, other, said):
    assert said in compare(read(one), read(other))


def test_equal_numbers_that_are_not_numbers():
    assert compare(read([float("nan")]), read([float("nan")])) is None


class Node:
    def __init__(self, key):
        self.key = key
        self.next = None


def test_items_of_sets_that_only_their_neighbours_tell_apart():
    def rings(rng):
        nodes = [Node("n") for _ in range(12)]
        for number, node in enumerate(nodes):
            # Two rings, of 5 and of 7, look alike from each of their members.
            start, size = (0, 5) if number < 5 else (5, 7)
            node.next = nodes[start + (number - start + 1) % size]
        found = read({"set": set(nodes), "first": nodes[0]})
        shuffle_sets(found, rng)
        return found

    assert compare(rings(random.Random(1)), rings(random.Random(2))) is None


def test_sets_of_the_sessions_classes():
    one = Call("reduce", Call("reduce", None, (3,)), ([1, 2, 3],))
    other = Call("reduce", Call("reduce", None, (3,)), ([2, 3, 1],))
    assert compare(one, other) is not None
    assert compare(one, other, is_set=lambda value: value is other.function) is None


def test_memory_of_a_device_is_compared_in_the_hosts():
    """Verification takes no GPU: what was on one is loaded into the host's memory."""

    def storage(number, device):
        module = "jupyter_gpu_predict.snapshots.tensors"
        function = Global(module, "RebuildTensors.storage")
        return Call("reduce", function, (number, device))

    def run(one, other, same):
        sides = [
            Side({n: {"index": n, "kind": "torch", "nbytes": 9, "blob": n}}, {}) for n in (3, 5)
        ]
        return Comparison(*sides, lambda a, b: same and (a, b) == (3, 5)).compare(one, other, "x")

    assert run(storage(3, "cuda:0"), storage(5, "cpu"), True) is None
    assert "bytes of its memory" in run(storage(3, "cuda:0"), storage(5, "cpu"), False)
    assert "device cpu became cuda:1" in run(storage(3, "cpu"), storage(5, "cuda:1"), True)
    twice = [storage(3, "cpu"), storage(3, "cpu")]
    shared = [storage(5, "cpu")] * 2
    assert "is shared" in run(twice, shared, True)
