"""Only what is about to be used comes back at once; the rest is right meanwhile."""

from __future__ import annotations

import functools
import gc
import pickle
import threading
import types

import pytest

from jupyter_gpu_predict.errors import StorageFullError
from jupyter_gpu_predict.kernel.offload import Offloader, UseLog
from jupyter_gpu_predict.kernel.offload import staging as staging_module

torch = pytest.importorskip("torch")


class Notebook:
    """A namespace whose cells run, and the offloader of its kernel."""

    def __init__(self, spill) -> None:
        self.space = {"__name__": "__main__", "torch": torch}
        self.log = UseLog()
        self.offloader = Offloader(
            "simulated", str(spill), last_use=lambda: self.log.by_storage(self.space)
        )

    def run(self, source):
        self.log.note(source)
        exec(source, self.space)

    def prepare(self, source):
        return self.offloader.restore(self.log.next_values(source, self.space))

    def waits(self, name):
        return not self.space[name].untyped_storage().resizable()


@pytest.fixture
def notebook(tmp_path):
    gc.collect()
    made = Notebook(tmp_path / "spill")
    yield made
    made.offloader.restore()


def test_what_the_next_cell_names_comes_first_and_the_rest_in_slices(notebook):
    for i in range(4):
        notebook.run(f"t{i} = torch.full((1000,), {i}.0)")
    notebook.run("t2.sum()")
    notebook.offloader.suspend()
    report = notebook.prepare("t1[5] = 9")
    assert report.storages == 1
    assert report.left_bytes == notebook.offloader.suspended_bytes >= 12_000
    assert [notebook.waits(f"t{i}") for i in range(4)] == [True, False, True, True]
    notebook.run("t1[5] = 9; t3 += t0 + 1")
    report = notebook.offloader.restore_some(budget_bytes=1)
    assert report.storages == 1
    some = 0
    while notebook.offloader.restore_some(budget_bytes=4000).storages:
        some += 1
    assert some >= 2
    assert notebook.offloader.state == "resident"
    assert notebook.space["t3"].sum() == 4000
    assert notebook.space["t1"].sum() == 1008


def test_the_warmest_come_back_first_and_the_coldest_go_first(notebook):
    for name in ("cold", "warm", "hot"):
        notebook.run(f"{name} = torch.ones(1_000_000)")
    notebook.run("unnamed = [torch.ones(1_000_000)]")
    notebook.run("box = {'w': warm}; hot.sum()")
    notebook.log.note("warm")
    notebook.log.note("hot, unnamed")
    report = notebook.offloader.suspend(wanted_bytes=4_000_000)
    assert notebook.waits("cold")
    assert not notebook.waits("warm")
    assert report.chosen.startswith("the coldest")
    report = notebook.offloader.suspend(wanted_bytes=4_000_000)
    assert "last named 1 cells before" in report.chosen
    assert notebook.waits("warm")
    assert not notebook.waits("hot")
    notebook.offloader.suspend()
    notebook.offloader.restore_some(budget_bytes=8_000_000)
    assert [notebook.waits(n) for n in ("cold", "warm", "hot")] == [True, True, False]


def test_what_is_reached_through_functions_modules_and_graphs(notebook):
    notebook.run("""
model = torch.nn.Linear(100, 100)
optimizer = torch.optim.Adam(model.parameters())
model(torch.ones(100)).sum().backward()
optimizer.step()
other = torch.ones(1000)
def train():
    def inner():
        optimizer.zero_grad()
    inner()
class Runner:
    def go(self): return train()
runner = Runner()
def outer():
    held = other
    return lambda: held
closure = outer()
loss = (torch.ones(1000, requires_grad=True) * 2).exp()
""")
    space = notebook.space
    space["bound"] = functools.partial(types.MethodType(space["Runner"].go, space["runner"]))
    inside = [*space["model"].parameters(), *(p.grad for p in space["model"].parameters())]
    inside += [v for s in space["optimizer"].state.values() for v in s.values()]

    def waiting():
        return [not t.untyped_storage().resizable() for t in inside]

    for source in ("train()", "runner.go()", "bound()", "optimizer.step()"):
        notebook.offloader.suspend()
        assert all(waiting())
        notebook.prepare(source)
        assert not any(waiting())
        assert notebook.waits("other")
        notebook.offloader.restore()
    notebook.offloader.suspend()
    notebook.prepare("closure()")
    assert not notebook.waits("other")
    left = notebook.offloader.suspended_bytes
    notebook.prepare("loss.sum().backward()")
    # The leaf at the bottom of its graph comes along with it.
    assert left - notebook.offloader.suspended_bytes >= 2 * 4000


def test_a_cell_that_frees_resizes_grows_or_replaces_what_waits(notebook):
    notebook.run("""
a, b, c, d, e = (torch.full((1000,), float(i)) for i in range(5))
view = c[100:200]
""")
    notebook.offloader.suspend()
    notebook.prepare("e")
    held = notebook.offloader.suspended_bytes
    notebook.run("""
del a
b.resize_(5000)
b[1000:] = 7
c.data = torch.ones(2000)
d.untyped_storage().resize_(0)
d.resize_(10).fill_(3)
""")
    gc.collect()
    space = notebook.space
    assert space["b"].sum() == 1000 + 4000 * 7
    assert space["view"].sum() == 200
    # The view still waits; the others are the device's again or gone.
    assert held - notebook.offloader.suspended_bytes == 3 * 4000
    notebook.offloader.suspend()
    notebook.offloader.restore()
    assert notebook.offloader.state == "resident"
    assert space["b"].sum() == 1000 + 4000 * 7
    assert space["c"].sum() == 2000
    assert space["view"].sum() == 200
    assert space["d"].tolist() == [3] * 10


def test_growing_as_another_and_nothing_stays_wrapped(notebook):
    before = torch.Tensor.resize_, torch.UntypedStorage.resize_, torch.Tensor.numpy
    notebook.run("small = torch.ones(10); large = torch.ones(50)")
    notebook.offloader.suspend()
    assert torch.Tensor.resize_ is not before[0]
    notebook.run("small.resize_as_(large)[10:] = 0; torch.empty(0, device='meta').resize_(3)")
    assert notebook.space["small"].sum() == 10
    notebook.offloader.restore()
    assert (torch.Tensor.resize_, torch.UntypedStorage.resize_, torch.Tensor.numpy) == before


def test_one_offloader_that_ends_does_not_end_the_watch_of_another(tmp_path):
    first, second = (Offloader("simulated", str(tmp_path / n)) for n in ("a", "b"))
    tensor = torch.ones(1000)
    first.suspend()
    other = torch.ones(1000)
    second.suspend()
    second.restore()
    assert other.untyped_storage().resizable()
    tensor.resize_(2000)[1000:] = 2
    first.restore()
    assert tensor.sum() == 3000


def test_a_thread_that_frees_resizes_and_pickles_what_waits(notebook):
    notebook.run("f, r, p = (torch.full((100_000,), float(i)) for i in range(3))")
    notebook.offloader.suspend()
    space, caught = notebook.space, []

    def meddle():
        try:
            del space["f"]
            space["r"].resize_(200_000)[100_000:] = 1
            space["copy"] = pickle.loads(pickle.dumps(space["p"]))
        except BaseException as e:
            caught.append(e)

    thread = threading.Thread(target=meddle)
    thread.start()
    thread.join()
    assert not caught
    notebook.offloader.restore()
    assert space["r"].sum() == 200_000
    assert torch.equal(space["copy"], space["p"])
    assert space["p"].sum() == 200_000


def test_a_disk_that_is_too_small_is_known_before_anything_moves(notebook, monkeypatch):
    notebook.run("t = torch.ones(1000)")
    usage = types.SimpleNamespace(free=1000)
    monkeypatch.setattr(staging_module.shutil, "disk_usage", lambda _: usage)
    address = notebook.space["t"].data_ptr()
    with pytest.raises(StorageFullError, match=r"1000 bytes are free.*stays on the device"):
        notebook.offloader.suspend()
    assert notebook.space["t"].data_ptr() == address
    monkeypatch.undo()
    notebook.offloader.suspend()
    assert notebook.waits("t")
