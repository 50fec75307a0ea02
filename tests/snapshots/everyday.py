"""Everyday sessions: code of the cells, and what must hold after a restore elsewhere."""

# ruff: noqa: E501
from __future__ import annotations

CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "two names for one list": ("a = [1]; b = a; c = {'k': a}", ("a is b", "c['k'] is a")),
    "recursive list and dict": (
        "a = []; a.append(a); d = {}; d['d'] = d",
        ("a[0] is a", "d['d'] is d"),
    ),
    "globals() kept": ("g = globals(); box = [g]", ("g is globals()", "box[0] is globals()")),
    "modules under aliases": (
        "import math as m, os.path as p; import collections.abc; mods = {'m': m}",
        ("m.sqrt(4) == 2", "mods['m'] is m", "p.join('a', 'b') == 'a/b'"),
    ),
    "function follows its namespace": (
        "k = 2\ndef f(x): return x * k\ng = lambda x: f(x) + k",
        (
            "f(3) == 6",
            "g(3) == 8",
            "f.__globals__ is globals()",
            "(globals().update(k=5), f(3))[1] == 15",
        ),
    ),
    "defaults, keywords, annotations, attributes": (
        "def f(a: int, b=[1], *, c: str = 'x') -> None:\n    'text'\n    return a, b, c\nf.tag = 3\nbox = f.__defaults__[0]",
        (
            "f(1) == (1, [1], 'x')",
            "f.__annotations__['a'] is int",
            "f.tag == 3",
            "f.__doc__ == 'text'",
            "f(1)[1] is box",
        ),
    ),
    "closures that share a cell": (
        "def make():\n    n = 0\n    def inc():\n        nonlocal n; n += 1; return n\n    return inc, lambda: n\ninc, get = make(); inc()",
        ("inc() == 2", "get() == 2"),
    ),
    "recursive closures": (
        "def make():\n    def even(n): return n == 0 or odd(n - 1)\n    def odd(n): return n != 0 and even(n - 1)\n    return even, odd\neven, odd = make()",
        ("even(10)", "odd(7)", "not even(3)"),
    ),
    "decorated and cached functions": (
        "import functools\ndef deco(f):\n    @functools.wraps(f)\n    def inner(*a): return f(*a) + 1\n    return inner\n@deco\ndef h(x): return x\n@functools.lru_cache(maxsize=3)\ndef fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\npart = functools.partial(h, 4)",
        (
            "h(1) == 2",
            "h.__wrapped__(1) == 1",
            "fib(20) == 6765",
            "fib.cache_parameters()['maxsize'] == 3",
            "part() == 5",
        ),
    ),
    "singledispatch": (
        "import functools\n@functools.singledispatch\ndef show(x): return 'any'\n@show.register\ndef _s(x: int): return 'int'",
        ("show(1) == 'int'", "show('') == 'any'"),
    ),
    "generator function and coroutine function": (
        "def gen(n):\n    yield from range(n)\nasync def co(): return 5",
        ("list(gen(3)) == [0, 1, 2]", "__import__('asyncio').run(co()) == 5"),
    ),
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
    "bound and unbound methods": (
        "class C:\n    def f(self): return self\nc = C(); bound = c.f; plain = C.f; app = [].append; up = str.upper",
        ("bound() is c", "plain is C.f", "app(1) is None", "up('a') == 'A'"),
    ),
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
    "collections": (
        "import collections as c\ndd = c.defaultdict(list, a=[1]); od = c.OrderedDict(b=1, a=2); q = c.deque([1, 2], maxlen=3); n = c.Counter('aab'); cm = c.ChainMap({'a': 1}, {'b': 2})",
        (
            "dd['zz'] == []",
            "list(od) == ['b', 'a']",
            "q.maxlen == 3",
            "n['a'] == 2",
            "cm['b'] == 2",
        ),
    ),
    "dates, numbers, paths, patterns": (
        "import datetime, decimal, fractions, pathlib, re, uuid, zoneinfo\nd = datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc); z = decimal.Decimal('1.10'); f = fractions.Fraction(1, 3); p = pathlib.Path('/tmp/x'); r = re.compile('a+', re.I); u = uuid.UUID(int=5)",
        (
            "d.year == 2024 and d.tzinfo is not None",
            "str(z) == '1.10'",
            "f * 3 == 1",
            "p.name == 'x'",
            "r.match('AA')",
            "u.int == 5",
        ),
    ),
    "sets, bytes, special numbers": (
        "s = {1, 'a', (2, 3)}; fs = frozenset([1]); b = bytearray(b'xy'); r = range(2, 9, 3); n = float('nan'); i = float('inf'); e = ...; c = 1 + 2j; sl = slice(1, None)",
        (
            "s == {1, 'a', (2, 3)}",
            "b == b'xy'",
            "list(r) == [2, 5, 8]",
            "n != n",
            "e is ...",
            "c.imag == 2",
            "sl.start == 1",
        ),
    ),
    "weak references": (
        "import weakref\nclass C: pass\nc = C(); r = weakref.ref(c); wd = weakref.WeakKeyDictionary({c: 1}); wv = weakref.WeakValueDictionary(k=c); dead = weakref.ref(C())",
        ("r() is c", "wd[c] == 1", "wv['k'] is c", "dead() is None"),
    ),
    "free locks and queues": (
        "import threading, queue\nlk = threading.Lock(); rl = threading.RLock(); ev = threading.Event(); ev.set(); q = queue.Queue(); q.put(3); co = threading.Condition()",
        ("lk.acquire(False)", "rl.acquire(False)", "ev.is_set()", "q.get_nowait() == 3"),
    ),
    "loggers and standard streams": (
        "import logging, sys\nlog = logging.getLogger('mine'); out = sys.stdout",
        ("log is logging.getLogger('mine')", "out is sys.stdout"),
    ),
    "random generators": (
        "import random, numpy as np\nr = random.Random(3); g = np.random.default_rng(4); s = np.random.RandomState(5)\nr.random(); g.random(); s.rand()\nimport copy; wanted = [copy.deepcopy(r).random(), copy.deepcopy(g).random(), copy.deepcopy(s).rand()]",
        ("[r.random(), g.random(), s.rand()] == wanted",),
    ),
    "numpy views": (
        "import numpy as np\na = np.arange(10_000.); v = a[10:]; t = a.reshape(100, 100).T; back = a[::-1]; win = np.lib.stride_tricks.sliding_window_view(a, 3); bc = np.broadcast_to(a[:4], (5, 4)); f = np.asfortranarray(np.arange(6000.).reshape(60, 100)); fr = f[3]",
        (
            "(a.__setitem__(12, -1), v[2], back[-13], win[12, 0])[1:] == (-1, -1, -1)",
            "t[12, 0] == -1",
            "a.flags.owndata",
            "not bc.flags.writeable",
            "(f.__setitem__((3, 4), -7), fr[4])[1] == -7",
            "f.flags.f_contiguous and f.flags.owndata",
        ),
    ),
    "small numpy arrays and views": (
        "import numpy as np\na = np.arange(5); v = a[1:3]; z = np.zeros((0, 3)); s = np.float32(2.5); ro = np.arange(3); ro.flags.writeable = False; st = np.array([(1, 2.)], dtype=[('a', 'i1'), ('b', 'f8')]); o = np.array([1, 'x', None], dtype=object); d = np.array(['2020'], dtype='M8[D]'); m = np.ma.array([1, 2], mask=[0, 1]); u = np.array(['ab', 'c'])",
        (
            "(a.__setitem__(1, 9), v[0])[1] == 9",
            "z.shape == (0, 3)",
            "s == 2.5 and type(s) is np.float32",
            "not ro.flags.writeable",
            "st['b'][0] == 2.0",
            "o[2] is None",
            "str(d[0]) == '2020-01-01'",
            "m.mask.tolist() == [False, True]",
            "u[0] == 'ab'",
        ),
    ),
    "large special numpy arrays": (
        "import numpy as np\nst = np.zeros(2000, dtype=[('a', 'i4'), ('b', 'f8')]); st['a'] = 3; col = st['b']; d = np.arange(3000).astype('M8[s]'); ro = np.arange(3000); ro.flags.writeable = False; rv = ro[5:]",
        (
            "st['a'].sum() == 6000",
            "(st['b'].__setitem__(5, 1.5), col[5])[1] == 1.5",
            "d[1] > d[0]",
            "not ro.flags.writeable",
            "rv.base is ro",
        ),
    ),
    "pandas": (
        "import pandas as pd, numpy as np\ndf = pd.DataFrame({'a': np.arange(3000), 'b': np.linspace(0, 1, 3000), 's': ['n%d' % i for i in range(3000)], 'c': pd.Categorical(list('xyz') * 1000)}, index=pd.date_range('2020', periods=3000)); part = df[df.a > 5]; same = df; ser = df['a']; grp = df.groupby('c', observed=True); mi = df.set_index(['c', 's']); nul = pd.array([1, None], dtype='Int64'); view = df[:]",
        (
            "same is df",
            "int(df.a.sum()) == 4498500",
            "len(part) == 2994",
            "df.c.dtype == 'category'",
            "int(grp.a.sum().iloc[0]) == 1498500",
            "mi.index.nlevels == 2",
            "nul[1] is pd.NA",
            "(view.__setitem__('a', 0), int(df.a.sum()))[1] == 4498500",
            "(view.iloc.__setitem__((0, 1), 9.0), float(df.b.iloc[0]))[1] == 0.0",
        ),
    ),
    "scikit-learn": (
        "import numpy as np\nfrom sklearn.pipeline import make_pipeline\nfrom sklearn.preprocessing import StandardScaler, FunctionTransformer\nfrom sklearn.linear_model import LogisticRegression\nfrom sklearn.ensemble import RandomForestClassifier\nX = np.random.default_rng(0).normal(size=(200, 4)); y = (X[:, 0] > 0).astype(int)\ndef half(x): return x / 2\npipe = make_pipeline(FunctionTransformer(half), StandardScaler(), LogisticRegression()).fit(X, y); rf = RandomForestClassifier(5, random_state=0).fit(X, y); want = rf.predict_proba(X), pipe.predict_proba(X)",
        ("(rf.predict_proba(X) == want[0]).all()", "(pipe.predict_proba(X) == want[1]).all()"),
    ),
    "matplotlib figure": (
        "import matplotlib; matplotlib.use('agg')\nimport matplotlib.pyplot as plt\nfig, ax = plt.subplots(); (line,) = ax.plot([1, 3, 2]); ax.set_title('t')",
        (
            "fig.axes[0] is ax",
            "ax.lines[0] is line",
            "ax.get_title() == 't'",
            "list(line.get_ydata()) == [1, 3, 2]",
            "fig.canvas.draw() is None",
        ),
    ),
    "tensors and views": (
        "import torch\nb = torch.arange(10_000.); r = b.view(100, 100); t = r.t(); h = b[5000:]; sc = torch.tensor(3); e = torch.empty(0); bf = torch.ones(3, dtype=torch.bfloat16); ex = torch.ones(1).expand(4); cx = torch.ones(2, dtype=torch.complex64).conj()",
        (
            "(b.__setitem__(5001, -1.), float(h[1]), float(t[1, 50]))[1:] == (-1., -1.)",
            "sc.item() == 3",
            "bf.dtype == torch.bfloat16",
            "ex.stride() == (0,)",
            "cx.is_conj() or cx.dtype == torch.complex64",
            "b.untyped_storage().resizable()",
        ),
    ),
    "numpy and torch over one memory": (
        "import torch, numpy as np\na = np.arange(2000.); t = torch.from_numpy(a); v = t[5:]; b = torch.zeros(2000); n = b.numpy(); s = n[3:]",
        (
            "(a.__setitem__(6, -1.), float(t[6]), float(v[1]))[1:] == (-1., -1.)",
            "(b.__setitem__(4, 9.), float(n[4]), float(s[1]))[1:] == (9., 9.)",
        ),
    ),
    "leaves, gradients and spent graphs": (
        "import torch\nw = torch.randn(2000, requires_grad=True); loss = (w * w).sum(); loss.backward(); p = torch.nn.Parameter(torch.ones(3)); p.tag = 'x'; shown = repr(loss); hist = [loss]; acc = w.grad",
        (
            "w.requires_grad and w.is_leaf",
            "w.grad is acc or torch.equal(w.grad, acc)",
            "repr(loss) == shown",
            "hist[0] is loss",
            "loss.requires_grad",
            "p.tag == 'x'",
            "type(p) is torch.nn.Parameter",
        ),
    ),
    "sparse, quantized and named things of torch": (
        "import torch\nsp = torch.eye(3).to_sparse(); dt = torch.float16; dev = torch.device('cpu'); g = torch.Generator().manual_seed(3); sz = torch.Size([1, 2]); act = torch.nn.functional.relu; st = g.get_state().clone()",
        (
            "sp.to_dense().sum() == 3",
            "dt is torch.float16",
            "torch.equal(g.get_state(), st)",
            "sz == (1, 2)",
            "act is torch.nn.functional.relu",
        ),
    ),
    "model with tied weights and hooks": (
        "import torch\nfrom torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__(); self.a = nn.Linear(64, 64); self.b = nn.Linear(64, 64); self.b.weight = self.a.weight; self.register_buffer('n', torch.zeros(1))\n    def forward(self, x): return self.b(self.a(x))\nnet = Net(); seen = []\nhandle = net.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape)))\nopt = torch.optim.AdamW(net.parameters()); sch = torch.optim.lr_scheduler.LambdaLR(opt, lambda e: 1 / (e + 1)); first = net.a.weight; scaler = torch.amp.GradScaler('cpu')",
        (
            "net.a.weight is net.b.weight",
            "first is net.a.weight",
            "opt.param_groups[0]['params'][0] is first",
            "sch.optimizer is opt",
            "(net(torch.ones(1, 64)), seen)[1] == [(1, 64)]",
            "(handle.remove(), net(torch.ones(1, 64)), len(seen))[2] == 1",
            "hasattr(opt.step, '_wrapped_by_lr_sched')",
            "scaler.is_enabled() in (True, False)",
        ),
    ),
    "data set and loader": (
        "import torch\nfrom torch.utils.data import DataLoader, Dataset, TensorDataset, random_split\nclass D(Dataset):\n    def __init__(self): self.x = torch.arange(10.)\n    def __len__(self): return 10\n    def __getitem__(self, i): return self.x[i]\nds = D(); dl = DataLoader(ds, batch_size=4, shuffle=False, collate_fn=lambda b: torch.stack(b)); a, b = random_split(TensorDataset(ds.x), [6, 4])",
        (
            "[len(x) for x in dl] == [4, 4, 2]",
            "dl.dataset is ds",
            "len(a) == 6",
            "a.dataset is b.dataset",
        ),
    ),
    "what cannot be saved": (
        "import threading, socket, sqlite3, subprocess, tempfile\ngood = [1, 2]; gen = (i for i in good); con = sqlite3.connect(':memory:'); held = threading.Lock(); held.acquire(); f = tempfile.TemporaryFile(); mixed = {'good': good, 'bad': [gen]}; proc = subprocess.Popen(['true']); proc.wait()\nclass Svc:\n    def __init__(self): self.gen = gen\nsvc = Svc()\nclass Bad:\n    c = con\nbad = Bad()",
        ("good == [1, 2]", "*tombstones* gen con held f mixed proc svc bad Bad"),
    ),
    "names like builtins": (
        "list = [1]; print = 2; id = 'x'; type = None",
        ("list == [1]", "print == 2", "id == 'x'", "type is None"),
    ),
    "deep chain": (
        "import sys\ndeep = None\n# From 3.12 on C code has a limit of its own, which nothing raises.\nfor i in range(30_000 if sys.version_info < (3, 12) else 1_500): deep = {'next': deep}",
        ("deep['next']['next'] is not None",),
    ),
    "a large text under two names": (
        "s = 'ab' * 1_000_000; t = [s]",
        ("t[0] is s",),
    ),
    "weird names and cyclic classes": (
        "ü = 1\nclass A:\n    def other(self): return B\nclass B:\n    a = A\nA.b = B\nx = A()",
        ("ü == 1", "A.b is B", "B.a is A", "x.other() is B"),
    ),
}

_TRANSFORMER = """
import math, random, numpy as np, torch
from torch import nn
torch.manual_seed(0); np.random.seed(1); random.seed(2)
class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.att = nn.MultiheadAttention(d, 4, dropout=0.1, batch_first=True)
        self.ff = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Dropout(0.2), nn.Linear(2 * d, d))
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
    def forward(self, x):
        x = self.n1(x + self.att(x, x, x, need_weights=False)[0])
        return self.n2(x + self.ff(x))
class Model(nn.Module):
    def __init__(self, vocabulary=40, d=32):
        super().__init__()
        self.emb = nn.Embedding(vocabulary, d)
        self.blocks = nn.ModuleList(Block(d) for _ in range(2))
        self.out = nn.Linear(d, vocabulary, bias=False)
        self.out.weight = self.emb.weight
    def forward(self, i):
        x = self.emb(i)
        for block in self.blocks: x = block(x)
        return self.out(x)
model = Model(); norms = []
model.register_forward_hook(lambda m, i, o: norms.append(float(o.detach().norm())))
opt = torch.optim.Adam([{"params": model.blocks.parameters(), "lr": 1e-3}, {"params": [model.emb.weight]}], lr=3e-3)
sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 50)
gen = torch.Generator().manual_seed(7)
data = torch.randint(0, 40, (64, 17), generator=gen); window = data[8:]
losses = []; best = {"loss": math.inf}
def augment(b): return (b + np.random.randint(0, 2)) % 40 if random.random() < 0.5 else b
def step():
    global loss
    b = augment(data[torch.randint(0, 64, (8,), generator=gen)])
    loss = nn.functional.cross_entropy(model(b[:, :-1]).flatten(0, 1), b[:, 1:].flatten())
    opt.zero_grad(); loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step(); sched.step(); losses.append(loss.item())
    if losses[-1] < best["loss"]: best.update(loss=losses[-1], state={k: v.clone() for k, v in model.state_dict().items()})
for _ in range(3): step()
"""
_CONVOLUTION = """
import torch, torch.nn.functional as F
from torch import nn
torch.manual_seed(3)
net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 3))
opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
sched = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=0)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(48, 1, 12, 12), torch.randint(0, 3, (48,))), batch_size=16, shuffle=True)
x, y = next(iter(loader)); F.cross_entropy(net(x), y).backward()   # gradients are left standing
def epoch():
    total = 0.0
    for x, y in loader:
        loss = F.cross_entropy(net(x), y); loss.backward(); opt.step(); opt.zero_grad(set_to_none=False)
        total += loss.item()
    sched.step(total); return total
history = []
"""
_ANALYSIS = """
import random, numpy as np, pandas as pd
from sklearn.linear_model import SGDClassifier
np.random.seed(5); random.seed(6); rng = np.random.default_rng(7)
df = pd.DataFrame({"x": rng.normal(size=500), "k": pd.Categorical(rng.choice(list("abc"), 500))})
clf = SGDClassifier(random_state=np.random.RandomState(8))
X = rng.normal(size=(200, 3)); y = (X[:, 0] > 0).astype(int); clf.partial_fit(X, y, classes=[0, 1])
walk = [0.0]
"""

CONTINUED: dict[str, tuple[str, str]] = {
    "transformer with Adam in mid-training": (_TRANSFORMER, "for _ in range(3): step()"),
    "convolutional net with gradients standing": (
        _CONVOLUTION,
        "history += [epoch(), epoch()]; noise = torch.rand(5)",
    ),
    "analysis with every random generator": (
        _ANALYSIS,
        "walk += [np.random.rand(), random.random(), rng.random()]; df['n'] = rng.random(500); clf.partial_fit(X, y); m = df.groupby('k', observed=True).n.mean(); s = df.sample(5)",
    ),
}
