from __future__ import annotations

import copy
import math
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_gpu_predict.snapshots import digest, digests

atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(max_size=8)
    | st.binary(max_size=8)
)
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
        | st.frozensets(st.integers() | st.text(max_size=3), max_size=4)
    ),
    max_leaves=12,
)


@given(values)
def test_copies_have_the_same_digest(value):
    assert (
        digest(value) == digest(copy.deepcopy(value)) == digest(pickle.loads(pickle.dumps(value)))
    )


@settings(max_examples=200)
@given(values, values)
def test_different_values_have_different_digests(first, second):
    # repr tells apart what == does not: 1 and True, 0.0 and -0.0; sets have no order.
    same = repr(first) == repr(second) or (first == second and _plain(first) == _plain(second))
    assert (digest(first) == digest(second)) == same


def _plain(value):
    if isinstance(value, frozenset):
        return sorted(map(repr, value))
    if isinstance(value, (list, tuple)):
        return type(value), [_plain(v) for v in value]
    if isinstance(value, dict):
        return [(k, _plain(v)) for k, v in value.items()]
    return repr(value)


def test_order_counts_in_dicts_and_not_in_sets():
    assert digest({"a": 1, "b": 2}) != digest({"b": 2, "a": 1})
    words = [f"word {i}" for i in range(50)]
    backwards = {*reversed(words)}
    assert digest(set(words)) == digest(backwards)
    assert digest({1, 2}) != digest(frozenset({1, 2}))


def test_sharing_does_not_count():
    inner = [1, [2]]
    assert digest([inner, inner]) == digest([[1, [2]], [1, [2]]])


def test_cycles_are_told_apart():
    def ring(*contents):
        nodes = [{"value": c} for c in contents]
        for node, following in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
            node["next"], following["back"] = following, node
        return nodes[0]

    assert digest(ring(1, 2, 3)) == digest(ring(1, 2, 3))
    assert digest(ring(1, 2, 3)) != digest(ring(1, 3, 2))
    assert digest(ring(1, 2, 3)) != digest(ring(2, 3, 1))
    assert digest(ring(*range(40))) != digest(ring(*range(39), 99))


def test_deep_and_wide_sharing_ends():
    deep = None
    for _ in range(50_000):
        deep = [deep]
    wide = [1]
    for _ in range(60):
        wide = [wide, wide]
    assert digest(deep) != digest(wide)
    while deep:  # taken apart by hand, as freeing it would recurse
        deep = deep[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        ("1", b"1"),
        ([1], (1,)),
        (0.0, -0.0),
        ({}, []),
        (None, "None"),
        (np.zeros(3), np.zeros(3, "f4")),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros(1), 0.0),
        (np.array(["a"], object), np.array(["b"], object)),
    ],
)
def test_likenesses_are_told_apart(one, other):
    assert digest(one) != digest(other)


def test_arrays_count_by_value_and_not_by_layout():
    a = np.arange(12.0).reshape(3, 4)
    assert digest(a) == digest(np.asfortranarray(a)) == digest(a.T.copy().T)
    b = a.copy()
    b[1, 2] = math.nan
    assert digest(b) == digest(b.copy()) != digest(a)


def test_padding_does_not_count():
    dtype = np.dtype([("a", "u1"), ("b", "f8")], align=True)
    arrays = [np.frombuffer(bytearray([fill]) * 32, dtype) for fill in (0, 255)]
    for array in arrays:
        array["a"], array["b"] = 1, 2.0
    assert arrays[0].tobytes() != arrays[1].tobytes()
    assert digest(arrays[0]) == digest(arrays[1])


def test_tensors_count_by_value_gradient_and_kind():
    torch = pytest.importorskip("torch")
    t = torch.arange(6.0)
    assert digest(t) == digest(t.clone()) == digest(torch.arange(12.0)[:6])
    assert digest(t) != digest(t.clone().requires_grad_())
    assert digest(t) != digest(torch.nn.Parameter(t.clone(), requires_grad=False))
    assert digest(t) != digest(t.double())
    w, v = (torch.ones(2, requires_grad=True) for _ in range(2))
    w.sum().backward()
    assert digest(w) != digest(v)
    assert digest(torch.arange(6.0).view(2, 3).t()) == digest(
        torch.tensor([[0.0, 3], [1, 4], [2, 5]])
    )


def test_opaque_things_are_named():
    assert digest(threading.Lock()) == "opaque:lock"
    assert digest(i for i in ()) == "opaque:generator"
    held = digest({"a": 1, "lock": [threading.Lock()]})
    assert held.endswith("+opaque:lock")
    assert held == digest({"a": 1, "lock": [threading.Lock()]})
    assert held != digest({"a": 2, "lock": [threading.Lock()]})


def test_namespace_in_itself():
    space = {"a": 1}
    space["g"] = space
    before = digests(space)
    space["b"] = 2
    assert digests(space)["g"] == before["g"]
    assert set(digests(space, ["a"])) == {"a"}


def test_nothing_is_changed():
    class Sealed:
        def __init__(self):
            self.items = [1]

        def __setattr__(self, name, value):
            assert name not in vars(self)
            object.__setattr__(self, name, value)

    value = {"s": Sealed(), "m": np.ma.array([1, 2], mask=[0, 1]), "r": np.random.default_rng(1)}
    before = pickle.dumps(value["m"]), value["r"].bit_generator.state, value["m"]._fill_value
    assert digest(value) == digest(value)
    assert (
        pickle.dumps(value["m"]),
        value["r"].bit_generator.state,
        value["m"]._fill_value,
    ) == before


_SAME = """
import collections, dataclasses, enum, json, sys, functools, datetime
import numpy as np, pandas as pd
from jupyter_gpu_predict.snapshots import digests
if sys.argv[1] == "shifted":
    junk = [object() for _ in range(10_000)]
words = [f"w{i}" for i in range(30)]
s = set(words); fs = frozenset(words[:9]); d = {w: set(words[:3]) for w in words}
class C:
    kinds = frozenset("abcdef")
    def f(self, x={"a", "b"}): return x in {"p", "q", "r"}
    def g(self): return super().__init__
class E(enum.Enum):
    A = 1
@dataclasses.dataclass
class P:
    x: int = 3
c = C(); c.self = c; c.all = s
def outer(n): return lambda q: n + q
f = outer(frozenset("xyz"))
df = pd.DataFrame({"a": [1.5, None], "s": ["x", None], "c": pd.Categorical(["u", "v"])})
idx = pd.MultiIndex.from_tuples([(1, "a"), (2, "b")]); when = pd.Timestamp("2020", tz="UTC")
rs = np.random.RandomState(3); gen = np.random.default_rng(3)
od = collections.OrderedDict(a=1); dd = collections.defaultdict(set, a={"x", "y"}); e = [E.A, P()]
part = functools.partial(max, 3); day = datetime.date(2020, 1, 1); err = ValueError("x")
print(json.dumps(digests(globals(), [n for n in list(globals()) if n[0] != "_" and n != "junk"])))
"""


def test_same_in_processes_with_other_hash_seeds(python):
    one = python(_SAME, "plain", PYTHONHASHSEED="1")
    other = python(_SAME, "shifted", PYTHONHASHSEED="77")
    assert {n: v for n, v in one.items() if other[n] != v} == {}
    assert not [n for n, v in one.items() if "opaque" in v]
    assert len(one) > 25
