"""Enumerations, data classes, named tuples and typing."""

# ruff: noqa: E501
from __future__ import annotations

SESSIONS = {
    "enumerations": (
        "import enum\nclass Color(enum.Enum):\n    RED = 1; GREEN = 2; ROUGE = 1\n    def low(self): return self.name.lower()\nclass S(str, enum.Enum):\n    A = 'a'\nclass P(enum.Flag):\n    R = 1; W = 2\nclass Planet(enum.Enum):\n    EARTH = (2.0, 3.0)\n    def __init__(self, m, r): self.m, self.r = m, r\nkeep = [Color.RED, S.A, P.R | P.W, Planet.EARTH]; d = {Color.GREEN: 1}",
        (
            "keep[0] is Color.RED",
            "Color.ROUGE is Color.RED",
            "keep[0].low() == 'red'",
            "S('a') is keep[1]",
            "keep[2] == P.R | P.W",
            "keep[3] is Planet.EARTH",
            "keep[3].m == 2.0",
            "d[Color.GREEN] == 1",
            "list(Color) == [Color.RED, Color.GREEN]",
            "Color(2) is Color.GREEN",
        ),
    ),
    "enumeration with a constructor": (
        "import enum\nclass E(bytes, enum.Enum):\n    def __new__(cls, v, label):\n        o = bytes.__new__(cls, [v]); o._value_ = v; o.label = label; return o\n    A = (65, 'first'); B = (66, 'second')\ne = E.B",
        ("e is E.B", "e.label == 'second'", "e.value == 66", "bytes(e) == b'B'", "E(65) is E.A"),
    ),
    "dataclasses": (
        "import dataclasses as dc\n@dc.dataclass\nclass P:\n    x: int\n    y: list = dc.field(default_factory=list)\n@dc.dataclass(frozen=True, slots=True, order=True)\nclass Q:\n    x: int = 3\np, q, s = P(1), Q(), {Q(1), Q(2)}",
        (
            "p == P(1, [])",
            "dc.asdict(p) == {'x': 1, 'y': []}",
            "dc.replace(q, x=4).x == 4",
            "Q(1) in s",
            "Q(1) < Q(2)",
            "not hasattr(q, '__dict__')",
            "P(1).y is not P(1).y",
        ),
    ),
    "named tuples": (
        "import collections, typing\nA = collections.namedtuple('A', 'x y', defaults=[5])\nclass B(typing.NamedTuple):\n    x: int\n    y: str = 'z'\n    def f(self): return self.x\na, b = A(1), B(2)",
        (
            "a == (1, 5)",
            "type(a) is A",
            "b.f() == 2",
            "b._replace(x=3) == B(3)",
            "A._fields == ('x', 'y')",
        ),
    ),
    "typing": (
        "import typing as t\nT = t.TypeVar('T')\nclass Box(t.Generic[T]):\n    def __init__(self, v: T): self.v = v\nclass TD(t.TypedDict):\n    x: int\nclass Pr(t.Protocol):\n    def q(self): ...\nUid = t.NewType('Uid', int)\nAlias = t.Optional[list[int]]; b = Box(3)",
        (
            "b.v == 3",
            "Box[int].__origin__ is Box",
            "Box.__parameters__ == (T,)",
            "TD(x=1) == {'x': 1}",
            "Uid(3) == 3",
            "Alias == t.Optional[list[int]]",
        ),
    ),
    "flags, integers and texts as enumerations": (
        "import enum\nclass I(enum.IntEnum):\n    A = 1; B = enum.auto()\nclass F(enum.IntFlag):\n    R = 1; W = 2\nclass T(str, enum.Enum):\n    X = 'x'\n    def twice(self): return self.value * 2\nclass Auto(enum.Enum):\n    def _generate_next_value_(name, start, count, last): return name.lower()\n    ONE = enum.auto()\nmode = F.R | F.W; table = {I.B: 'b', T.X: 'x'}; one = Auto.ONE",
        (
            "mode == 3 and F.R in mode",
            "table[I(2)] == 'b' and table[T('x')] == 'x'",
            "T.X.twice() == 'xx'",
            "one is Auto('one')",
            "I.B > I.A and isinstance(I.B, int)",
        ),
    ),
    "generic classes and protocols": (
        "import typing as t, dataclasses as dc\nT = t.TypeVar('T', bound=int)\nclass Stack(t.Generic[T]):\n    def __init__(self): self.items: list[T] = []\n@t.runtime_checkable\nclass Closes(t.Protocol):\n    def close(self) -> None: ...\nclass Door:\n    def close(self): return 'shut'\n@dc.dataclass\nclass Node(t.Generic[T]):\n    value: T\n    next: 'Node[T] | None' = None\n    def __post_init__(self): self.seen = True\nst = Stack[int](); st.items.append(1); d = Door(); n = Node(1, Node(2)); tail = n.next; Maybe = t.Union[int, str]",
        (
            "isinstance(d, Closes) and d.close() == 'shut'",
            "Stack[int].__args__ == (int,) and st.__orig_class__ == Stack[int]",
            "n.next is tail and n.seen",
            "t.get_type_hints(Stack) == {}",
            "dc.fields(Node)[0].name == 'value'",
            "Maybe == t.Union[int, str]",
        ),
    ),
}
