"""What is taken for plain is reduced by Python itself to class and attributes."""

from __future__ import annotations

import abc
import array
import collections
import copyreg
import dataclasses
import enum
import sys
import threading
import typing
from types import SimpleNamespace

import pytest

from jupyter_gpu_predict.snapshots.plain import is_plain


class Simple:
    def __init__(self):
        self.a, self.b = 1, [2]


class Derived(Simple):
    @property
    def c(self):
        return 3


class Abstract(abc.ABC, typing.Generic[typing.TypeVar("T")]):
    def __init__(self):
        self.inside = {}


@dataclasses.dataclass
class Data:
    a: int = 1
    b: str = "x"


class Slotted(Simple):
    __slots__ = ("more",)


class OnlySlots:
    __slots__ = ("a",)


class State(Simple):
    def __getstate__(self):
        return {"other": 1}


class Reduced(Simple):
    def __reduce__(self):
        return Simple, ()


class ReducedEx(Simple):
    def __reduce_ex__(self, protocol):
        return Simple, ()


class Arguments(Simple):
    def __getnewargs__(self):
        return ()


class Listed(list):
    pass


class Mapped(dict):
    pass


class Numbered(int):
    pass


class Failed(Exception):
    pass


class Colour(enum.Enum):
    RED = 1


class Locked(threading.local):
    pass


class Packed(array.array):
    pass


class Registered(Simple):
    pass


class Hidden(Simple):
    @property
    def __dict__(self):
        return {"made": "up"}


class Watched(Simple):
    def __getattribute__(self, name):
        return object.__getattribute__(self, name)


copyreg.pickle(Registered, lambda obj: (Simple, ()))

PLAIN = [Simple(), Derived(), Abstract(), Data(), Data("y", "z")]
OTHER = [
    Slotted(), OnlySlots(), State(), Reduced(), ReducedEx(), Arguments(), Listed([1]), Mapped(a=1),
    Numbered(3), Failed(1), Colour.RED, Locked(), Packed("b", b"1"), Registered(), Hidden(),
    Watched(), SimpleNamespace(a=1), collections.OrderedDict(a=1), collections.Counter("aa"),
    1, "a", [1], {}, None, Simple, object(), abc, list[int],
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
def test_plain_instances_are_their_class_and_attributes(value):
    assert is_plain(type(value))
    reduced = tuple(value.__reduce_ex__(5))
    assert reduced[:3] == (copyreg.__newobj__, (type(value),), value.__dict__)
    assert reduced[3:] == (None, None)


@pytest.mark.parametrize("value", OTHER, ids=lambda value: type(value).__name__)
def test_whatever_has_more_to_it_is_not(value):
    assert not is_plain(type(value))


def test_instances_with_hooks_or_nothing_of_their_own_are_as_python_has_them(save, load):
    code = """
class S:
    def __setstate__(self, state): self.x = state["x"]
class Own: pass
empty = [S(), S(), S()]
hooked = [Own(), Own(), Own()]
hooked[1].__getstate__ = lambda: {"made": "up"}
hooked[2].__reduce_ex__ = lambda protocol: (Own, (), {"other": 1})
hooked[0].plain = 1
"""
    _, report = save(code)
    namespace, _ = load(report.snapshot_id)
    assert [vars(s) for s in namespace["hooked"]] == [{"plain": 1}, {"made": "up"}, {"other": 1}]
    assert [vars(s) for s in namespace["empty"]] == [{}] * 3


def test_large_variables_of_objects_without_attributes_share_nothing(save, load):
    code = """
import datetime
day = datetime.timedelta(1)
a = [datetime.date(2000, 1, 1) + day * i for i in range(50001)]
b = [datetime.date(2000, 1, 1) + day * i for i in range(80001)]
"""
    _, report = save(code)
    namespace, _ = load(report.snapshot_id)
    assert len(namespace["a"]) == 50001
    assert namespace["b"][-1] == namespace["b"][0] + 80000 * namespace["day"]


RECORDS = """
class Record:
    def __init__(self, number, parent):
        self.number, self.parent, self.tags = number, parent, [number]
class Restored(Record):
    def __setstate__(self, state): self.__dict__.update(state, told=True)
records = []
for i in range(50):
    records.append((Restored if i % 10 == 9 else Record)(i, records[i // 2 - 1] if i > 2 else None))
records[1].parent = records[1]
records[2].__dict__[3] = "not a name"
attributes = vars(records[4])
nothing = Record.__new__(Record)
"""


def test_attributes_come_back_as_the_dictionary_they_were(save, load):
    _, report = save(RECORDS)
    # `__setstate__` adds something, which a digest would tell.
    namespace, found = load(report.snapshot_id, check=False)
    records = namespace["records"]
    assert {v.status for v in found.variables} == {"restored"}
    assert [r.number for r in records] == list(range(50))
    assert all(r.parent is records[i // 2 - 1] for i, r in enumerate(records) if i > 2)
    assert records[1].parent is records[1]
    assert vars(records[2])[3] == "not a name"
    assert vars(records[4]) is namespace["attributes"]
    assert [r.number for r in records if hasattr(r, "told")] == [9, 19, 29, 39, 49]
    assert vars(namespace["nothing"]) == {}
    namespace["attributes"]["later"] = 1
    assert records[4].later == 1


def test_a_class_that_has_become_another_gets_its_attributes_its_own_way(
    save, load, tmp_path, monkeypatch
):
    module = tmp_path / "changing_records.py"
    module.write_text("class A:\n    pass\nclass B:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    _, report = save("""
import changing_records
from changing_records import A, B
a, b = [A() for _ in range(3)], [B() for _ in range(3)]
for one in a + b: one.x = 5
""")
    changed = sys.modules["changing_records"]
    monkeypatch.setattr(changed.A, "__setstate__", lambda self, s: vars(self).update(y=s["x"]),
                        raising=False)  # fmt: skip
    slotted = type("B", (), {"__slots__": ("z", "__dict__"), "__module__": "changing_records"})
    monkeypatch.setattr(changed, "B", slotted)
    namespace, _ = load(report.snapshot_id, check=False)
    assert [vars(one) for one in namespace["a"]] == [{"y": 5}] * 3
    assert [vars(one) for one in namespace["b"]] == [{"x": 5}] * 3
    assert type(namespace["b"][0]) is slotted
