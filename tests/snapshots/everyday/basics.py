"""Containers, names, modules and plain values."""

# ruff: noqa: E501
from __future__ import annotations

SESSIONS = {
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
    "cycles through every container": (
        "import collections\na = [1]; t = (a, 2); a.append(t); s = {frozenset([1])}; d = collections.defaultdict(list); d['x'].append(d); dq = collections.deque(); dq.append({'me': dq}); od = collections.OrderedDict(); od['o'] = [od]",
        ("t[0] is a and a[1] is t", "d['x'][0] is d", "dq[0]['me'] is dq", "od['o'][0] is od"),
    ),
    "one object in many places": (
        "cfg = {'lr': 0.1}; runs = [{'cfg': cfg, 'n': i} for i in range(3)]; best = runs[1]; index = {id_: r for id_, r in zip('abc', runs)}; pair = (cfg, [cfg])",
        (
            "all(r['cfg'] is cfg for r in runs)",
            "best is runs[1] and index['b'] is best",
            "(cfg.update(lr=1), pair[1][0]['lr'])[1] == 1",
        ),
    ),
    "many small objects": (
        "points = [{'x': i, 'y': [i, str(i)]} for i in range(20_000)]; last = points[-1]; by = {p['x']: p for p in points}",
        ("by[19_999] is last", "points[7]['y'] == [7, '7']", "len(by) == 20_000"),
    ),
}
