"""Objects of the standard library."""

# ruff: noqa: E501
from __future__ import annotations

SESSIONS = {
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
    "what cannot be saved": (
        "import threading, socket, sqlite3, subprocess, tempfile\ngood = [1, 2]; gen = (i for i in good); con = sqlite3.connect(':memory:'); held = threading.Lock(); held.acquire(); f = tempfile.TemporaryFile(); mixed = {'good': good, 'bad': [gen]}; proc = subprocess.Popen(['true']); proc.wait()\nclass Svc:\n    def __init__(self): self.gen = gen\nsvc = Svc()\nclass Bad:\n    c = con\nbad = Bad()",
        ("good == [1, 2]", "*tombstones* gen con held f mixed proc svc bad Bad"),
    ),
    "iterators half way through": (
        "import itertools\nc = itertools.count(5); next(c); z = zip('ab', [1, 2]); next(z); e = enumerate(['p', 'q']); next(e); left = iter([1, 2, 3]); next(left); ch = itertools.chain([1], (2,)); next(ch); r = reversed([1, 2]); m = map(str, [1, 2]); k = iter({'a': 1})",
        (
            "next(c) == 6",
            "list(z) == [('b', 2)]",
            "list(e) == [(1, 'q')]",
            "list(left) == [2, 3]",
            "list(ch) == [2]",
            "list(r) == [2, 1] and list(m) == ['1', '2'] and list(k) == ['a']",
        ),
    ),
    "exceptions and their causes": (
        "class Mine(ValueError):\n    def __init__(self, code, *, hint): super().__init__(f'code {code}'); self.code, self.hint = code, hint\ntry:\n    try: {}['missing']\n    except KeyError as error: raise Mine(7, hint=['h']) from error\nexcept Mine as error: failure = error\ncause = failure.__cause__; plain = OSError(2, 'no', 'file')",
        (
            "str(failure) == 'code 7' and failure.code == 7 and failure.hint == ['h']",
            "type(failure) is Mine and failure.__cause__ is cause",
            "cause.args == ('missing',)",
            "plain.errno == 2 and plain.filename == 'file'",
        ),
    ),
    "matches, proxies and context variables": (
        "import re, weakref, contextvars, threading\nm = re.compile(r'(?P<k>\\w+)=(\\d+)').search('see lr=10 here'); it = re.fullmatch('a+', 'aaa')\nclass N:\n    v = 1\n    def f(self): return self.v\nn = N(); px = weakref.proxy(n); wm = weakref.WeakMethod(n.f)\nvar = contextvars.ContextVar('var', default=1); var.set(5); local = threading.local(); local.x = 3\nclass Sub(N):\n    def f(self): return 2\nsub = Sub(); up = super(Sub, sub)",
        (
            "m['k'] == 'lr' and m.group(2) == '10' and m.span() == (4, 9)",
            "it.group() == 'aaa'",
            "(setattr(n, 'v', 9), px.v, wm()())[1:] == (9, 9)",
            "var.get() == 5 and var.name == 'var'",
            "local.x == 3",
            "up.f() == 1",
        ),
    ),
    "locks, events and queues at rest": (
        "import threading, queue, collections\nev = threading.Event(); sem = threading.Semaphore(3); sem.acquire(); cond = threading.Condition(); pq = queue.PriorityQueue(); pq.put((2, 'b')); pq.put((1, 'a'))\nclass Worker:\n    def __init__(self): self.lock = threading.RLock(); self.todo = queue.Queue(5); self.log = []\nw = Worker(); w.todo.put(w.log)",
        (
            "not ev.is_set() and sem._value == 2",
            "pq.get() == (1, 'a')",
            "w.todo.get() is w.log and w.todo.maxsize == 5",
            "w.lock.acquire(blocking=False) is True",
        ),
    ),
    "a progress bar, an HTTP session, symbols": (
        "import io, tqdm, requests, sympy\nbar = tqdm.tqdm(total=10, file=io.StringIO()); bar.update(4); web = requests.Session(); web.headers['X'] = 'y'; x, y = sympy.symbols('x y'); expr = sympy.expand((x + y) ** 2); f = sympy.lambdify(x, x ** 2 + 1)",
        (
            "(bar.update(1), bar.n)[1] == 5",
            "web.headers['X'] == 'y'",
            "expr.coeff(x * y) == 2 and expr.free_symbols == {x, y}",
            "f(3) == 10",
        ),
    ),
    "modules made by hand": (
        "import types, sys\nmine = types.ModuleType('mine'); exec('rate = 2\\ndef pay(h): return h * rate', vars(mine)); sys.modules['mine'] = mine; pay = mine.pay; loose = types.ModuleType('loose'); loose.data = [1]; data = loose.data",
        (
            "pay is mine.pay and pay(3) == 6",
            "(setattr(mine, 'rate', 5), pay(3))[1] == 15",
            "__import__('mine') is mine",
            "loose.data is data",
        ),
    ),
    "loggers as they were set": (
        "import logging\nlog = logging.getLogger('study.run'); log.setLevel(logging.DEBUG); fmt = logging.Formatter('%(message)s'); ad = logging.LoggerAdapter(log, {'run': 3}); quiet = logging.getLogger('study'); quiet.propagate = False",
        (
            "log is logging.getLogger('study.run') and log.level == logging.DEBUG",
            "ad.logger is log",
            "fmt._fmt == '%(message)s'",
            "quiet.propagate is False",
        ),
    ),
    "what lives in its process": (
        "import socket, threading, tempfile, itertools, queue, asyncio, concurrent.futures, multiprocessing\nkept = {'n': 1}; s = socket.socket(); t = threading.Thread(target=len); f = open(__import__('os').devnull); ex = concurrent.futures.ThreadPoolExecutor(1); task = asyncio.ensure_future(asyncio.sleep(0)); d = tempfile.TemporaryDirectory(); sq = queue.SimpleQueue(); holder = {'ok': kept, 'bad': [s]}\nclass Service:\n    def __init__(self): self.pool = ex; self.kept = kept\nservice = Service()\nasync def co(): pass\nc = co()",
        (
            "kept == {'n': 1}",
            "Service().kept is kept",
            "*tombstones* s t f ex task d sq holder service c",
            "'socket' in repr(s) and 'bad' in repr(holder)",
        ),
    ),
    "standard generators of random numbers": (
        "import random, secrets, uuid\nrandom.seed(5); r = random.Random(6); shared = {'r': r}; random.random(); r.gauss(0, 1); ids = [uuid.UUID(int=random.getrandbits(128)) for _ in range(2)]",
        ("shared['r'] is r",),
        "later = [random.random(), r.gauss(0, 1), random.sample(range(99), 5), r.choice('abc')]",
    ),
}
