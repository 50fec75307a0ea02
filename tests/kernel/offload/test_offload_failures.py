"""A suspend or restore that fails leaves everything as it was."""

from __future__ import annotations

import errno
import os
import resource
import threading

import pytest

from jupyter_gpu_predict.errors import BadInputError, DeviceError, RefusedError, StorageFullError
from jupyter_gpu_predict.kernel.offload import Offloader
from jupyter_gpu_predict.kernel.offload import offloader as offloader_module

torch = pytest.importorskip("torch")


@pytest.fixture
def tensors():
    return [torch.full((n,), float(n)) for n in (1_000, 50_000, 700_000)]


def places(tensors):
    return [(t.data_ptr(), t.untyped_storage().resizable()) for t in tensors]


def values_hold(tensors) -> bool:
    return all(bool((t == t.numel()).all()) for t in tensors)


def test_a_full_disk_changes_nothing(tmp_path, tensors):
    offloader = Offloader("simulated", str(tmp_path / "spill"))
    before = places(tensors)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(StorageFullError, match=r"spill .* bytes|no room in .*spill"):
            offloader.suspend()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert places(tensors) == before
    assert values_hold(tensors)
    assert offloader.state == "resident"
    assert "numpy" not in torch.Tensor.__dict__
    assert offloader.suspend().freed_bytes >= 3_000_000
    offloader.restore()
    assert values_hold(tensors)


def test_a_device_error_while_writing_is_refused_by_name(tmp_path, tensors, monkeypatch):
    offloader = Offloader("simulated", str(tmp_path / "spill"))
    before = places(tensors)

    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", broken)
        with pytest.raises(RefusedError, match="Input/output error"):
            offloader.suspend()
    assert places(tensors) == before


def test_short_writes_are_continued(tmp_path, tensors, monkeypatch):
    offloader = Offloader("simulated", str(tmp_path / "spill"))
    whole = os.pwritev

    def short(fd, buffers, offset):
        first = memoryview(buffers[0]).cast("B")
        return whole(fd, [first[: max(1, len(first) // 2)]], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", short)
        offloader.suspend()
    assert values_hold(tensors)
    offloader.restore()
    assert values_hold(tensors)


def test_a_swap_that_fails_half_way_is_undone(tmp_path, tensors, monkeypatch):
    offloader = Offloader("simulated", str(tmp_path / "spill"))
    before = places(tensors)
    adapter = offloader._adapter
    good, made = adapter.alias, []

    def bad(torch_, region, offset, storage):
        made.append(1)
        if len(made) == 3:
            return torch.UntypedStorage(storage.nbytes() + 64)
        return good(torch_, region, offset, storage)

    with monkeypatch.context() as patch:
        patch.setattr(adapter, "alias", bad)
        with pytest.raises(RefusedError, match="same nbytes"):
            offloader.suspend()
    assert places(tensors) == before
    assert values_hold(tensors)
    assert offloader.state == "resident"


def test_no_memory_to_come_back_to_leaves_it_suspended_and_whole(tmp_path):
    tensor = torch.full((32_000_000,), 3.0)
    small = torch.full((1000,), 4.0)
    offloader = Offloader("simulated", str(tmp_path / "spill"))
    offloader.suspend()
    with open("/proc/self/statm") as f:
        mapped = int(f.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (64 << 20), limits[1]))
    try:
        with pytest.raises(DeviceError, match="128000000"):
            offloader.restore()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert offloader.suspended_bytes >= 128_004_000
    assert tensor[::1000].sum() == 96_000
    offloader.restore()
    assert offloader.state == "resident"
    assert bool((tensor == 3).all())
    assert small.sum() == 4000


def test_a_spill_folder_open_to_others_is_refused(tmp_path, tensors):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    before = places(tensors)
    with pytest.raises(RefusedError, match="open to other users"):
        Offloader("simulated", str(folder)).suspend()
    assert places(tensors) == before


def test_a_torch_that_cannot_swap_is_refused_by_version(tmp_path, tensors, monkeypatch):
    class Old:
        __version__ = "2.11.0"

        class _C:
            class StorageBase:
                pass

            class TensorBase:
                pass

    monkeypatch.setattr(offloader_module, "loaded_torch", lambda: Old)
    offloader = Offloader("cuda", str(tmp_path))
    with pytest.raises(RefusedError, match=r"torch 2\.11\.0 .* 2\.12 .*_swap_data_ptr_"):
        offloader.suspend()


def test_a_thread_at_work_is_refused_by_name_both_ways(tmp_path, tensors):
    offloader = Offloader("simulated", str(tmp_path / "spill"))
    stop, running = threading.Event(), threading.Event()

    def busy_loop():
        running.set()
        while not stop.wait(0.001):
            tensors[0].sum()

    before = places(tensors)
    for step in (offloader.suspend, offloader.restore):
        stop.clear()
        running.clear()
        thread = threading.Thread(target=busy_loop, name="user-loop")
        thread.start()
        running.wait()
        try:
            with pytest.raises(RefusedError, match=r"'user-loop' is at work in busy_loop"):
                step()
        finally:
            stop.set()
            thread.join()
        if step == offloader.suspend:
            assert places(tensors) == before
            offloader.suspend()
    assert values_hold(tensors)
    offloader.restore()
    assert values_hold(tensors)


def test_an_unknown_device_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="tpu"):
        Offloader("tpu", str(tmp_path))
