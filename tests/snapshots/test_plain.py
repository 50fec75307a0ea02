"""What is taken for plain is reduced by Python itself to class and attributes."""

from __future__ import annotations

import abc
import array
import collections
import copyreg
import dataclasses
import enum
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
