"""What a cell reads, binds and changes, from its source."""

from __future__ import annotations

import pytest

from jupyter_gpu_predict.snapshots.recompute.defuse import analyse

MATCH = """
match y:
    case [a, *b]:
        pass
    case {'k': c, **d}:
        pass
    case P(q=e) as f:
        pass
"""


@pytest.mark.parametrize(
    ("source", "reads", "writes"),
    [
        ("x = y", "y", "x"),
        ("x = 1\nz = x", "", "x z"),
        ("x += y", "x y", "x"),
        ("del x", "x", "x"),
        ("import a.b, c as d\nfrom e import f as g, h", "", "a d g h"),
        ("[x for x in y if x > z]", "y z", ""),
        ("[x for x in x]", "x", ""),
        ("print(n := len(y))", "y print len", "n"),
        ("[last := x for x in y]", "y", "last"),
        ("def f(a, b=c):\n    return a + d", "c", "f"),
        ("@wrap\ndef f():\n    return d", "wrap d", "f"),
        ("f = lambda a: a + d", "d", "f"),
        ("class C(B):\n    k = v\n    def m(self):\n        return w", "B v w", "C"),
        ("class C:\n    k = v\n    j = k", "v k", "C"),
        ("for i, (j, *k) in y:\n    pass", "y", "i j k"),
        ("with open(p) as f:\n    t = f", "open p", "f t"),
        ("if y:\n    x = 1\nz = x", "y x", "x z"),
        ("if y:\n    x = 1\nelse:\n    x = 2\nz = x", "y", "x z"),
        ("try:\n    x = y\nexcept E as e:\n    pass\nz = x", "y E x", "x e z"),
        (MATCH, "y P", "a b c d e f"),
        ("global x\nx = 1", "", "x"),
        ("x: int = y", "int y", "x"),
        ("x: int", "int", "x"),
        ("a.b = y", "a y", ""),
        ("_ = y", "y", ""),
    ],
)  # fmt: skip
def test_reads_and_writes(source: str, reads: str, writes: str) -> None:
    found = analyse(source)
    assert found.now.fault == ""
    assert found.now.reads == set(reads.split())
    assert found.now.writes == set(writes.split())


@pytest.mark.parametrize(
    "source",
    [
        "%time x = 1",
        "!ls",
        "x = !ls",
        "%%bash\nls",
        "x?",
        "x = = 1",
        "exec('x = 1')",
        "eval(y)",
        "globals()['x'] = 1",
        "get_ipython().run_line_magic('who', '')",
        "from math import *",
        "x = await y",
        "async with y:\n    pass",
        "x = _",
        "x = Out[3]",
        "x = _i2",
        "x = " + "(" * 300 + ")" * 300,
        "x = 1\0",
        "-" * 100_000 + "1",
    ],
)
def test_what_cannot_be_known_is_a_fault(source: str) -> None:
    assert analyse(source).now.fault != ""


def test_a_function_is_apart_from_the_cell_that_defines_it() -> None:
    found = analyse(
        "k = 1\ndef f(a):\n    global n\n    n = a + k + m\n    a.append(j)\n    local = q[0]\n"
        "class C:\n    def __init__(self, d):\n        self.d = d\n"
    )
    assert found.now.reads == set()
    [body] = found.later["f"]
    assert body.loads == {"k", "m", "j", "q"}
    assert body.given == {"k"}
    assert body.writes == {"n"}
    assert body.params == ("a",)
    assert [(c.root, c.path, c.args) for c in body.calls] == [("a", "append", {"j"})]
    # Putting something into its new object is nothing that a constructor changes.
    assert found.later["C.__init__"][0].stores == set()


@pytest.mark.parametrize(
    ("source", "stores"),
    [
        ("a.b.c = 1", "a"),
        ("a[0][1] = 1", "a"),
        ("a += 1", "a"),
        ("a.b += 1", "a"),
        ("del a[0], b.c", "a b"),
        ("x, a.b = 1, 2", "a"),
        ("for a[0] in y:\n    pass", "a"),
        ("(a or b).c = 1", "a b"),
        ("[a.b for a.b in y]", "a"),
    ],
)
def test_what_is_stored_into(source: str, stores: str) -> None:
    assert analyse(source).now.stores == set(stores.split())


@pytest.mark.parametrize(
    ("source", "writes", "calls"),
    [
        ("%time x = f(y)", "x", "f"),
        ("%%time\nx = f(y)", "x", "f"),
        ("%%timeit -n 3 x = 1\nf(y)", "x", "f"),
        ("%timeit -n 10 -r 3 f(y)", "", "f"),
        ("x = %time f(y)", "x", "f"),
        ("files = !ls\nx = 1", "files x", ""),
        ("%matplotlib inline\nif y:\n    !ls\n    x = 1", "x", ""),
        ("%%bash\nrm x", "", ""),
        ("f?", "", ""),
    ],
)
def test_a_known_magic_changes_only_what_its_python_does(
    source: str, writes: str, calls: str
) -> None:
    found = analyse(source).now
    assert found.fault != ""
    assert not found.anything
    assert found.writes == set(writes.split())
    assert {call.root for call in found.calls} == set(calls.split())


@pytest.mark.parametrize(
    "source", ["%run other.py", "%%cython\nx = 1", "cd folder", "eval(y)", "_"]
)
def test_after_an_unknown_one_nothing_is_certain(source: str) -> None:
    assert analyse(source).now.anything


@pytest.mark.parametrize("magic", ["%gpu need 2GiB", "%%gpu need 2GiB --priority high"])
def test_a_stated_need_is_no_obstacle(magic: str) -> None:
    found = analyse(f"{magic}\nx = y").now
    assert (found.fault, found.writes) == ("", {"x"})


def test_what_a_function_must_not_do_matters_only_where_it_is_called() -> None:
    found = analyse("def f():\n    exec('x = 1')")
    assert found.now.fault == ""
    assert found.later["f"][0].anything
