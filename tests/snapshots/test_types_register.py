"""Types that their library, or the user, knows best how to save."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from jupyter_gpu_predict.errors import BadInputError
from jupyter_gpu_predict.snapshots import Tombstone
from jupyter_gpu_predict.snapshots.register import GROUP, register


class Held:
    """Has a lock that is held, which nothing can save."""

    def __init__(self, state):
        self.state = state
        self.lock = threading.Lock()
        self.lock.acquire()


def reduce_held(held):
    return {"state": held.state}


def restore_held(state):
    return Held(state["state"])


@pytest.fixture(autouse=True)
def none_left():
    module = sys.modules["jupyter_gpu_predict.snapshots.register"]
    before, waiting = dict(module._registered), module._waiting
    yield module
    module._registered.clear()
    module._registered.update(before)
    module._waiting = waiting


def test_identity_and_sharing_go_through_the_state(save, load):
    register(Held, reduce_held, restore_held)
    array = np.arange(5000.0)
    held = Held([array])
    _, report = save(held=held, pair=[held, held], array=array)
    space, _ = load(report.snapshot_id)
    assert type(space["held"]) is Held
    assert space["pair"] == [space["held"]] * 2
    space["array"][3] = -1
    assert space["held"].state[0][3] == -1


def test_without_it_there_is_a_tombstone(save, load):
    _, report = save(held=Held([]))
    space, _ = load(report.snapshot_id)
    assert type(space["held"]) is Tombstone


def test_a_type_may_be_named_before_it_is_imported(save, load, tmp_path, monkeypatch):
    register("heavy.inner.Thing", lambda thing: thing.v, lambda v: __import__("heavy").Thing(v))
    register("heavy.Other", lambda other: 5, lambda five: ("other", five))
    assert "heavy" not in sys.modules
    package = tmp_path / "heavy"
    package.mkdir()
    own = "class Thing:\n    def __init__(self, v): self.v = v; self.f = (i for i in ())\n"
    (package / "inner.py").write_text(own + "class Other(Thing): pass\n")
    (package / "__init__.py").write_text("from .inner import Thing, Other\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    _, report = save("import heavy; t = heavy.Thing([1]); o = heavy.Other(2)")
    space, _ = load(report.snapshot_id, check=False)
    assert space["t"].v == [1]
    # Known by the name under which the package exports it.
    assert space["o"] == ("other", 5)


def test_a_subclass_is_not_taken_for_its_base(save, load):
    register(Held, reduce_held, restore_held)
    _, report = save("class Sub(Held): pass\nsub = Sub(1)", Held=Held)
    assert {v.name: v.status for v in report.variables}["sub"] == "tombstone"


def test_a_state_that_leads_back_is_named(save):
    register(Held, reduce_held, restore_held)
    held = Held([])
    held.state.append(held)
    _, report = save(held=held, fine=1)
    by_name = {v.name: v for v in report.variables}
    assert "leads back" in by_name["held"].reason
    assert by_name["fine"].status == "saved"


def test_functions_that_raise_spoil_only_their_object(save, load):
    register(Held, lambda held: 1 / held.state, lambda state: 1 / 0)
    _, report = save(zero=Held(0), one=Held(1), fine=[1])
    assert "ZeroDivisionError" in next(v for v in report.variables if v.name == "zero").reason
    space, restored = load(report.snapshot_id, check=False)
    assert space["fine"] == [1]
    assert type(space["one"]) is Tombstone
    assert "ZeroDivisionError" in next(v for v in restored.variables if v.name == "one").reason


def test_a_missing_restorer_is_named_with_its_package(save, load, none_left, monkeypatch):
    register(Held, reduce_held, restore_held)
    _, report = save(held=Held([1]))
    none_left._registered.clear()
    space, _ = load(report.snapshot_id, check=False)
    assert space["held"].state == [1]  # found by its own name
    monkeypatch.delattr(sys.modules[__name__], "restore_held")
    space, restored = load(report.snapshot_id, check=False)
    assert type(space["held"]) is Tombstone
    assert __name__ in restored.variables[0].reason
    assert "install" in restored.variables[0].reason


@pytest.fixture
def plugin(tmp_path, monkeypatch, none_left):
    """A library, and another package that registers its type by an entry point."""
    (tmp_path / "gadgets.py").write_text("class Gadget:\n    def __init__(self): self.g = print\n")
    (tmp_path / "gadgets_snapshots.py").write_text(
        "calls = []\ndef setup():\n    calls.append(1)\n"
        "    from jupyter_gpu_predict.snapshots.register import register\n"
        "    register('gadgets.Gadget', lambda g: 7, back)\n"
        "def back(state):\n    import gadgets\n    g = gadgets.Gadget(); g.state = state\n"
        "    return g\n"
    )
    info = tmp_path / "gadgets_snapshots-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gadgets-snapshots\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\ngadgets = gadgets_snapshots:setup\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    none_left._waiting = None
    yield tmp_path
    for name in ("gadgets", "gadgets_snapshots"):
        sys.modules.pop(name, None)


def test_an_entry_point_is_called_once_and_only_for_a_loaded_module(save, load, plugin):
    save(x=np.arange(3))
    assert "gadgets_snapshots" not in sys.modules
    _, report = save("import gadgets; g = gadgets.Gadget(); h = [g]")
    save("import gadgets; g = gadgets.Gadget()")
    assert sys.modules["gadgets_snapshots"].calls == [1]
    space, _ = load(report.snapshot_id, check=False)
    assert space["g"].state == 7
    assert space["h"][0] is space["g"]


def test_a_broken_entry_point_is_named_and_harms_nothing(save, plugin):
    (plugin / "gadgets_snapshots.py").write_text("def setup(): raise OSError('odd')\n")
    with pytest.warns(RuntimeWarning, match=r"gadgets_snapshots:setup.*odd"):
        _, report = save("import gadgets; g = gadgets.Gadget()")
    assert report.variables


@pytest.mark.parametrize("kind", [list, int, 5, "a b", "1x.Y", type])
def test_what_cannot_be_registered_is_refused(kind):
    with pytest.raises(BadInputError):
        register(kind, reduce_held, restore_held)


def test_a_function_that_cannot_be_called_is_refused():
    with pytest.raises(BadInputError, match="restore of"):
        register(Held, reduce_held, "restore")
