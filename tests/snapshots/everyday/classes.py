"""Classes of the session and their instances."""

# ruff: noqa: E501
from __future__ import annotations

SESSIONS = {
    "class with super, property and class methods": (
        "class A:\n    def f(self): return 1\nclass B(A):\n    def __init__(self): self.v = 2\n    def f(self): return super().f() + self.v\n    @property\n    def p(self): return self.v\n    @p.setter\n    def p(self, x): self.v = x\n    @classmethod\n    def c(cls): return cls\n    @staticmethod\n    def s(): return 's'\nb = B()",
        (
            "b.f() == 3",
            "type(b) is B",
            "isinstance(b, A)",
            "B.c() is B",
            "B.s() == 's'",
            "(setattr(b, 'p', 7), b.v)[1] == 7",
        ),
    ),
    "instances that refer to each other": (
        "class N:\n    def __init__(self, up=None): self.up, self.down = up, []\nroot = N()\nfor _ in range(3): root.down.append(N(root))\nlast = root.down[-1]",
        ("last is root.down[2]", "last.up is root", "type(last) is N"),
    ),
    "class attribute that a variable shares": (
        "class R:\n    seen = []\n    def __init__(self): R.seen.append(self)\nseen = R.seen; one = R()",
        ("seen is R.seen", "seen[0] is one", "(R(), len(seen))[1] == 2"),
    ),
    "nested and local classes": (
        "class O:\n    class I:\n        def me(self): return __class__\ni = O.I()\ndef f():\n    class L: x = 1\n    return L\nL1 = f(); l = L1()",
        ("type(i) is O.I", "i.me() is O.I", "type(l) is L1", "L1.__qualname__ == 'f.<locals>.L'"),
    ),
    "a class defined twice": (
        "class C: v = 1\nold = C()\nclass C: v = 2\nnew = C()",
        ("old.v == 1", "new.v == 2", "type(new) is C", "type(old) is not C"),
    ),
    "abstract classes and registration": (
        "import abc\nclass S(abc.ABC):\n    @abc.abstractmethod\n    def f(self): ...\n    @property\n    @abc.abstractmethod\n    def g(self): ...\nclass T(S):\n    def f(self): return 1\n    g = 2\n@S.register\nclass U: pass\nt, u = T(), U()",
        (
            "isinstance(t, S)",
            "isinstance(u, S)",
            "t.f() == 1",
            "S.__abstractmethods__ == {'f', 'g'}",
            "__import__('inspect').isabstract(S)",
        ),
    ),
    "metaclass": (
        "class M(type):\n    made = []\n    def __new__(m, n, b, d, **k):\n        M.made.append(n); return super().__new__(m, n, b, d)\n    def __call__(cls, *a): return super().__call__(*a)\nclass C(metaclass=M, tag=1): pass\nc = C()",
        ("type(C) is M", "M.made == ['C']", "type(c) is C", "type(C()) is C"),
    ),
    "__init_subclass__ and __set_name__": (
        "class B:\n    subs = {}\n    def __init_subclass__(cls, key, **k): B.subs[key] = cls\nclass D:\n    def __set_name__(self, o, n): self.n = n\n    def __get__(self, i, o): return self.n\nclass C(B, key='c'):\n    d = D()\nc = C()",
        ("B.subs == {'c': C}", "c.d == 'd'"),
    ),
    "slots": (
        "class S:\n    __slots__ = ('a', '__b')\n    def __init__(self): self.a = 1; self.__b = 2\n    def b(self): return self.__b\nclass T(S):\n    __slots__ = ('c',)\ns, t = S(), T()",
        ("s.a == 1 and s.b() == 2", "t.b() == 2", "not hasattr(t, 'c')"),
    ),
    "subclasses of builtins": (
        "class L(list):\n    tag = 0\nclass D(dict):\n    def __missing__(self, k): return k\nclass I(int): pass\nl = L([1]); l.tag = 5; d = D(a=1); i = I(7); i.note = 'n'",
        (
            "l == [1] and l.tag == 5 and type(l) is L",
            "d['zz'] == 'zz' and d['a'] == 1",
            "i == 7 and i.note == 'n'",
        ),
    ),
    "own pickling": (
        "class G:\n    def __init__(self): self.a = 1; self.cache = {}\n    def __getstate__(self): return {'a': self.a}\n    def __setstate__(self, s): self.a = s['a']; self.cache = {}\nclass R:\n    def __init__(self, n): self.n = n\n    def __reduce__(self): return R, (self.n,)\ng, r = G(), R(4)",
        ("g.a == 1 and g.cache == {}", "r.n == 4"),
    ),
    "__setstate__ that uses an imported module": (
        "import math\ndef helper(x): return math.floor(x)\nclass C:\n    def __init__(self): self.v = 2.5\n    def __getstate__(self): return self.v\n    def __setstate__(self, s): self.v = s; self.f = helper(s)\nc = C(); zz = [c]",
        ("c.f == 2", "zz[0] is c"),
    ),
    "a cell with a class run again": (
        "class C:\n    def who(self): return 'old'\nold = C(); keep = [old]; method = old.who\n# %%\nclass C:\n    def who(self): return 'new'\nnew = C()",
        (
            "old.who() == 'old' and new.who() == 'new'",
            "keep[0] is old",
            "method() == 'old'",
            "isinstance(new, C) and not isinstance(old, C)",
        ),
    ),
    "instances of a class that has gone": (
        "class Gone:\n    made = []\n    def __init__(self): self.made.append(self)\n    def hi(self): return type(self).__name__\na, b = Gone(), Gone(); pair = [a, b]; del Gone",
        (
            "a.hi() == 'Gone'",
            "type(a) is type(b)",
            "pair[1] is b",
            "a.made[1] is b",
            "type(type(a)()) is type(a)",
        ),
    ),
    "descriptors and computed attributes": (
        "import functools\nclass Positive:\n    def __set_name__(self, o, n): self.n = '_' + n\n    def __get__(self, i, o): return self if i is None else getattr(i, self.n)\n    def __set__(self, i, v):\n        if v <= 0: raise ValueError(v)\n        setattr(i, self.n, v)\nclass Box:\n    side = Positive()\n    calls = 0\n    def __init__(self, s): self.side = s\n    @functools.cached_property\n    def volume(self): Box.calls += 1; return self.side ** 3\nb = Box(2); b.volume",
        (
            "b.side == 2 and b.volume == 8 and Box.calls == 1",
            "Box(3).volume == 27 and Box.calls == 2",
            "isinstance(vars(Box)['side'], Positive)",
        ),
    ),
    "objects that answer every attribute": (
        "class Proxy:\n    def __init__(self, to): self.to = to\n    def __getattr__(self, name): return getattr(self.to, name)\nclass Bunch(dict):\n    __getattr__ = dict.__getitem__; __setattr__ = dict.__setitem__\nclass Slotted:\n    __slots__ = ('inner',)\n    def __getattr__(self, n): return getattr(self.inner, n)\ntext = ['a']; p = Proxy(text); pp = Proxy(p); bunch = Bunch(a=1); bunch.b = text; s = Slotted(); s.inner = text",
        (
            "(p.append('b'), text)[1] == ['a', 'b']",
            "pp.to is p and pp.index('b') == 1",
            "bunch.b is text",
            "s.inner is text and s.count('a') == 1",
        ),
    ),
    "singletons and registries": (
        "class One:\n    _it = None\n    def __new__(cls):\n        if cls._it is None: cls._it = super().__new__(cls)\n        return cls._it\none = One(); one.v = 3\nclass Plugin:\n    known = {}\n    def __init_subclass__(cls, **k): super().__init_subclass__(**k); Plugin.known[cls.__name__] = cls\nclass Red(Plugin): pass\nclass Blue(Red): pass\nmade = Plugin.known['Blue']()",
        (
            "One() is one and one.v == 3",
            "Plugin.known == {'Red': Red, 'Blue': Blue}",
            "type(made) is Blue",
            "(type('Green', (Plugin,), {}), list(Plugin.known))[1] == ['Red', 'Blue', 'Green']",
        ),
    ),
    "operators, contexts and iteration": (
        "class V:\n    def __init__(self, *a): self.a = a\n    def __add__(self, o): return V(*(x + y for x, y in zip(self.a, o.a)))\n    def __eq__(self, o): return self.a == o.a\n    def __hash__(self): return hash(self.a)\n    def __iter__(self): return iter(self.a)\n    def __enter__(self): return self\n    def __exit__(self, *e): return True\n    def __class_getitem__(cls, k): return (cls, k)\nv = V(1, 2); used = {v: 'v'}; group = {v, V(3, 4)}",
        (
            "v + v == V(2, 4)",
            "used[V(1, 2)] == 'v' and V(3, 4) in group",
            "list(v) == [1, 2]",
            "V[3] == (V, 3)",
            "v in used and next(iter(used)) is v",
        ),
    ),
    "structures of ctypes": (
        "import ctypes\nclass P(ctypes.Structure):\n    _fields_ = [('x', ctypes.c_int), ('y', ctypes.c_double)]\n    def total(self): return self.x + self.y\np = P(1, 2.5); row = (P * 3)(p, p, p); number = ctypes.c_int(4)",
        (
            "p.total() == 3.5 and type(p) is P",
            "row[2].y == 2.5 and len(row) == 3",
            "number.value == 4",
        ),
    ),
}
