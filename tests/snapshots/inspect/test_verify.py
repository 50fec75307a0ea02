"""Verification: what comes back in a fresh process is what was saved, or it is said what is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from jupyter_gpu_predict.errors import (
    NotFoundError,
    SnapshotCancelledError,
    SnapshotError,
    SnapshotSignatureError,
    SnapshotVersionError,
)
from jupyter_gpu_predict.snapshots import chunks, open_store
from jupyter_gpu_predict.snapshots.inspect import verifying
from jupyter_gpu_predict.snapshots.inspect.verify import (
    read_report,
    verify,
    verify_in_background,
)
from jupyter_gpu_predict.snapshots.signing import sign

KEY = bytes(range(32))

SESSION = """
import collections, dataclasses, datetime, enum, functools, random, weakref
import numpy as np
class Colour(enum.Enum):
    RED = 1
    BLUE = 2
@dataclasses.dataclass(eq=False)
class Point:
    x: int
    tags: set
class Own(set):
    pass
array = np.arange(300_000.0)
view, turned = array[::2], array.reshape(1000, 300).T
words = {"alpha", "beta", "gamma", *map(str, range(40))}
nested = {"w": words, "p": [Point(i, {("t", i), frozenset({"q", str(i)})}) for i in range(9)]}
points = set(nested["p"]) | {Point(0, set()), Point(0, set())}
own, colours = Own(words), {Colour.RED: "r", Colour.BLUE: {Colour.RED}}
weak = weakref.WeakSet(nested["p"])
huge = {2**70_000, -(2**70_000)}
nan, zero = float("nan"), [-0.0, 0.0]
def outer():
    kept = [1]
    def inner(): return kept, words
    return inner
inner, again = outer(), functools.partial(outer)
circle = []; circle.append(circle)
deque, when = collections.deque([1, circle], 5), datetime.datetime(2020, 1, 1)
memory = bytearray(b"y" * 200_000); part = memoryview(memory)[5:10]
objects = np.array([1, "x", None, words], dtype=object)
generator, numbers = np.random.default_rng(4), random.Random(3)
later = (i for i in range(3))
"""

FICKLE = """
import os, signal
class Grows:
    def __init__(self): self.x = 1
    def __setstate__(self, state): self.x = state["x"] + 1
class Copies:
    def __init__(self, items): self.items = items
    def __setstate__(self, state): self.items = list(state["items"])
class Refuses:
    def __init__(self): self.x = 1
    def __setstate__(self, state): raise RuntimeError("not here")
class Ends:
    def __init__(self, how): self.how = how
    def __setstate__(self, state): exec(state["how"])
class Same:
    def __init__(self): self.x = 1
"""


@pytest.fixture
def fickle(tmp_path, monkeypatch):
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "fickle.py").write_text(FICKLE)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("fickle", None)


def statuses(report):
    return {v.name: (v.status, v.reason) for v in report.variables}


def test_a_session_comes_back_as_it_was(folder, save):
    outside = {"settings": {"a": {"x", "y", "zz"}}, "outputs": {1: "one", 2: [2]}}
    _, saved = save(SESSION, extra=outside)
    told = []
    report = verify(folder, saved.snapshot_id, KEY, progress=lambda *where: told.append(where))
    wrong = {k: v for k, v in statuses(report).items() if v[0] != "same"}
    assert list(wrong) == ["later"]
    assert wrong["later"][0] == "not saved"
    assert report.verified, report.problems
    assert report.bytes_read >= 2_400_000
    assert told[0][0] == 0
    assert told[-1][1] >= told[-1][0]
    assert read_report(folder, saved.snapshot_id, KEY) == report
    assert read_report(folder, saved.snapshot_id, b"x" * 32) is None
    assert [info.verified for info in open_store(folder.url).list()] == [True]


def test_a_report_cannot_be_moved_or_forged(folder, save):
    first = save("x = 1")[1].snapshot_id
    second = save("x = 2")[1].snapshot_id
    verify(folder, first, KEY)
    note = folder.read_note(first, "verified")
    folder.write_note(second, "verified", note)
    assert read_report(folder, second, KEY) is None
    note["manifest"]["bytes_read"] += 1
    folder.write_note(first, "verified", note)
    assert read_report(folder, first, KEY) is None
    folder.write_note(first, "verified", folder.read(first))
    assert read_report(folder, first, KEY) is None


def test_what_differs_is_named(folder, save, fickle):
    code = (
        "import fickle; shared = [1]; grows = fickle.Grows(); copies = fickle.Copies(shared)\n"
        "refuses = fickle.Refuses(); good = fickle.Same(); left = [good, shared]"
    )
    _, saved = save(code)
    report = verify(folder, saved.snapshot_id, KEY)
    found = statuses(report)
    assert not report.verified
    assert found["grows"] == ("differs", "grows.x: 1 became 2")
    assert found["copies"][0] == "differs"
    assert "shared with another part" in found["copies"][1]
    assert found["refuses"][0] == "not loaded"
    assert "RuntimeError: not here" in found["refuses"][1]
    assert found["good"] == found["left"] == ("same", None)
    assert [info.verified for info in folder.list()] == [False]


def test_a_class_that_has_gone(folder, save, fickle):
    _, saved = save("import fickle; thing = fickle.Same(); x = 1")
    (fickle / "fickle.py").write_text("")
    found = statuses(verify(folder, saved.snapshot_id, KEY))
    assert found["thing"][0] == "not loaded"
    assert "Same" in found["thing"][1]
    assert found["x"] == ("same", None)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", f"signal {int(signal.SIGSEGV)}"),
        ("os._exit(3)", "status 3"),
    ],
)
def test_a_state_that_ends_the_process(folder, save, fickle, how, said):
    _, saved = save(f"import fickle; thing = fickle.Ends({how!r})")
    report = verify(folder, saved.snapshot_id, KEY)
    assert not report.verified
    assert said in report.problems[0]


def test_prints_and_exits_of_what_is_loaded_say_nothing(folder, save, fickle):
    how = "print('{\"report\": 1}'); import atexit; atexit.register(print, 'bye')"
    _, saved = save(f"import fickle; thing = fickle.Ends({how!r})")
    assert statuses(verify(folder, saved.snapshot_id, KEY))["thing"][0] == "differs"


def test_damage_is_reported_and_forgery_refused(folder, save):
    _, saved = save("x = list(range(1000))")
    (pack,) = (folder.path / "packs").iterdir()
    good = pack.read_bytes()
    pack.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    report = verify(open_store(folder.url), saved.snapshot_id, KEY)
    assert not report.verified
    assert "damaged" in report.problems[0]
    pack.write_bytes(good)
    with pytest.raises(SnapshotSignatureError, match="another key"):
        verify(folder, saved.snapshot_id, b"x" * 32)
    with pytest.raises(NotFoundError):
        verify(folder, "20240101T000000-000000000000", KEY)
    assert verify(open_store(folder.url), saved.snapshot_id, KEY).verified


def test_it_is_refused_where_it_cannot_be_done(folder, save, monkeypatch):
    _, saved = save("x = 1")
    with pytest.raises(SnapshotError, match="cannot be started"):
        verify(folder, saved.snapshot_id, KEY, python="/no/such/python")
    with pytest.raises(SnapshotError, match="before it loaded anything"):
        verify(folder, saved.snapshot_id, KEY, python="/bin/false")
    with pytest.raises(SnapshotCancelledError):
        verify(folder, saved.snapshot_id, KEY, cancelled=lambda: True)
    monkeypatch.setattr(verifying, "available_bytes", lambda: 10)
    with pytest.raises(SnapshotError, match="MiB of memory"):
        verify(folder, saved.snapshot_id, KEY)
    assert folder.read_note(saved.snapshot_id, "verified") is None


def test_another_python_is_said(folder, save):
    _, saved = save("x = 1")
    manifest = folder.read(saved.snapshot_id)["manifest"] | {"python": "3.99"}
    file = folder.path / "manifests" / f"{saved.snapshot_id}.json"
    file.write_text(json.dumps(sign(manifest, KEY)))
    with pytest.raises(SnapshotVersionError, match=r"taken with Python 3\.99"):
        verify(folder, saved.snapshot_id, KEY)


def test_in_the_background(folder, save):
    _, saved = save("x = {'a', 'b'}")
    process = verify_in_background(folder, saved.snapshot_id, KEY)
    assert os.getpgid(process.pid) == process.pid
    assert process.wait(60) == 0
    assert read_report(folder, saved.snapshot_id, KEY).verified
    folder.delete(saved.snapshot_id)
    process = verify_in_background(folder, saved.snapshot_id, KEY)
    assert process.wait(60) == 0
    assert folder.list() == []


def test_an_interpreter_that_does_not_have_the_package(folder, save, monkeypatch):
    """As in a kernel's own environment; hashes are those of the standard library there."""
    python = getattr(sys, "_base_executable", sys.executable)
    asked = [python, "-c", "import jupyter_gpu_predict"]
    if subprocess.run(asked, capture_output=True, check=False, cwd="/").returncode == 0:
        pytest.skip("the interpreter that this environment was made from has the package too")
    monkeypatch.setattr(chunks, "optional", lambda module, name: None)
    _, saved = save("x = {'a': [1, {2, 'b'}]}; y = x['a']\ndef f(): return x")
    monkeypatch.chdir("/")
    report = verify(folder, saved.snapshot_id, KEY, python=python)
    assert report.verified, report
    assert set(statuses(report)) == {"x", "y", "f"}


def test_what_only_looks_different(folder, save):
    """Caches, the order of attributes, and which of two arrays is said to own the memory."""
    pytest.importorskip("pandas")
    code = (
        "import abc, numpy as np, pandas as pd\n"
        "class Base(abc.ABC):\n"
        "    @abc.abstractmethod\n"
        "    def f(self): ...\n"
        "    def g(self): return 1\n"
        "class Derived(Base):\n"
        "    z = 1\n"
        "    def f(self): return 2\n"
        "masked = np.ma.masked_array(np.arange(5), [0, 1, 0, 0, 1])\n"
        "record = np.rec.array([(1, 2.0), (3, 4.0)], names='a,b'); field = record.a\n"
        "large = np.zeros(5000, [('a', 'i4'), ('b', 'f8')]); column = large['b']\n"
        "times = np.arange('2020', '2021', dtype='M8[D]'); late = times[100:]\n"
        "period = pd.Series(pd.period_range('2020', '2021', freq='M')); period.dtype\n"
        "keys = iter({'a': 1}); rest = iter([1, 2, 3]); next(rest)\n"
    )
    _, saved = save(code)
    report = verify(folder, saved.snapshot_id, KEY)
    assert report.verified, [v for v in report.variables if v.status != "same"]
