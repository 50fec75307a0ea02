"""Functions, closures and what wraps them."""

# ruff: noqa: E501
from __future__ import annotations

SESSIONS = {
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
        ("list(gen(3)) == [0, 1, 2]", "__import__('inspect').iscoroutinefunction(co)"),
    ),
    "bound and unbound methods": (
        "class C:\n    def f(self): return self\nc = C(); bound = c.f; plain = C.f; app = [].append; up = str.upper",
        ("bound() is c", "plain is C.f", "app(1) is None", "up('a') == 'A'"),
    ),
    "a default that is shared": (
        "seen = []\ndef note(x, into=seen): into.append(x); return into\n# %%\nnote(1)\n",
        ("note(2) is seen and seen == [1, 2]", "note.__defaults__[0] is seen"),
    ),
    "awaiting at top level": (
        "import asyncio\nasync def double(x):\n    await asyncio.sleep(0)\n    return 2 * x\n# %%\nresult = await double(4)\nasync def gen():\n    for i in range(3): yield i\nclass Ctx:\n    async def __aenter__(self): return self\n    async def __aexit__(self, *a): pass\nlock = asyncio.Lock(); queue = asyncio.Queue(); queue.put_nowait(5)",
        (
            "result == 8",
            "double.__globals__ is globals()",
            "queue.get_nowait() == 5",
            "not lock.locked()",
        ),
    ),
    "decorators with state": (
        "import functools\nclass Counted:\n    def __init__(self, f): functools.update_wrapper(self, f); self.f = f; self.n = 0\n    def __call__(self, *a): self.n += 1; return self.f(*a)\n@Counted\ndef area(r): return PI * r\nPI = 3; area(1)\nregistry = {}\ndef register(f): registry[f.__name__] = f; return f\n@register\ndef job(): return area\n@functools.cache\ndef slow(n): return n + PI\nslow(1)",
        (
            "area(2) == 6 and area.n == 2",
            "registry['job'] is job and job() is area",
            "(globals().update(PI=4), slow(2))[1] == 6",
            "area.__wrapped__ is area.f",
        ),
    ),
    "partials, getters and bound methods": (
        "import functools, operator\nclass T:\n    def __init__(self): self.n = 0\n    def up(self, by=1): self.n += by; return self.n\n    twice = functools.partialmethod(up, 2)\nt = T(); up = t.up; by3 = functools.partial(t.up, by=3); get = operator.attrgetter('n'); first = operator.itemgetter(0, 'a'); names = sorted; hooks = {'x': t.up, 'y': [].append}",
        (
            "up() == 1 and by3() == 4 and t.twice() == 6",
            "get(t) == 6",
            "hooks['x'].__self__ is t",
            "by3.func.__self__ is t",
            "names is sorted",
        ),
    ),
    "functions made from functions": (
        "fs = [lambda x, i=i: x + i for i in range(3)]\ndef compose(*fs):\n    def run(x):\n        for f in fs: x = f(x)\n        return x\n    run.parts = fs\n    return run\nall3 = compose(*fs); same = all3.parts[1]\nscope = {}\nexec('k = 5\\ndef in_dict(): return k', scope); in_dict = scope.pop('in_dict'); del scope",
        (
            "all3(0) == 3",
            "same is fs[1]",
            "all3.__closure__[0].cell_contents[2] is fs[2]",
            "in_dict() == 5",
            "in_dict.__globals__['k'] == 5",
        ),
    ),
}
