"""Memory that another library holds stays where it is, is named, and is freed when let go."""

from __future__ import annotations

import gc
import inspect
import pathlib
import subprocess
import sys

import pytest

import jupyter_gpu_predict
from jupyter_gpu_predict.kernel.offload import Offloader, exports, install_export_tracking, scan

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")


@pytest.fixture
def offloader(tmp_path):
    install_export_tracking()
    made = Offloader("simulated", str(tmp_path / "spill"))
    yield made
    made.restore()


EXPORTS = {
    "np.from_dlpack": np.from_dlpack,
    "torch.from_dlpack": torch.from_dlpack,
    "to_dlpack": lambda t: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(t)),
    "capsule": lambda t: t.__dlpack__(),
    "torch.to_dlpack": lambda t: torch.to_dlpack(t.detach()),
}


@pytest.mark.parametrize("export", EXPORTS.values(), ids=EXPORTS.keys())
def test_exported_storages_stay_until_the_other_side_lets_go(offloader, export):
    gc.collect()
    tensor = torch.zeros(70, 50)
    other = export(tensor[10:20])
    address = tensor.data_ptr()
    report = offloader.suspend()
    assert ("exported by DLPack", 14_000) in report.kept
    assert tensor.data_ptr() == address
    tensor.fill_(5)
    if isinstance(other, np.ndarray):
        assert (other == 5).all()
    offloader.restore()
    del other
    gc.collect()
    offloader.suspend()
    assert tensor.data_ptr() != address
    assert (tensor == 5).all()


def test_memory_numpy_got_while_suspended_stays_in_the_host_copy_and_right(offloader):
    tensor = torch.zeros(1000)
    offloader.suspend()
    address = tensor.data_ptr()
    array = np.asarray(tensor)
    array[3] = 4
    report = offloader.restore()
    assert ("shared with numpy while suspended", 4000) in report.kept
    assert tensor.data_ptr() == address
    tensor[5] = 6
    assert (array[3], array[5], tensor[3]) == (4, 6, 4)
    named = [s for s in scan("simulated").skipped if "while suspended" in s.reason]
    assert [(s.nbytes, s.on_device) for s in named] == [(4000, False)]
    del array
    gc.collect()
    assert offloader.restore().bytes == 4000
    assert tensor.data_ptr() != address
    assert (tensor[3], tensor[5]) == (4, 6)
    assert tensor.untyped_storage().resizable()
    assert "numpy" not in torch.Tensor.__dict__


def test_numpy_views_outlive_tensor_and_restore(offloader):
    tensor = torch.arange(1000.0)
    offloader.suspend()
    array = tensor.numpy()
    del tensor
    offloader.restore()
    gc.collect()
    junk = [torch.ones(1000) for _ in range(50)]
    assert (array == np.arange(1000)).all()
    del junk


def test_dlpack_taken_while_suspended_stays_in_the_host_copy(offloader):
    tensor = torch.zeros(1000)
    offloader.suspend()
    other = torch.from_dlpack(tensor)
    assert ("exported by DLPack", 4000) in offloader.restore().kept
    tensor.fill_(3)
    assert (other == 3).all()


def test_tensors_that_cannot_be_exported_say_what_torch_says():
    install_export_tracking()
    with pytest.raises(BufferError, match="require gradient"):
        torch.ones(3, requires_grad=True).__dlpack__()
    with pytest.raises(RuntimeError, match="requires grad"):
        torch.ones(3, requires_grad=True).numpy()


def test_the_mark_lives_as_long_as_the_memory():
    storage = torch.ones(10).untyped_storage()
    tensor = torch.empty(0).set_(storage)
    storage.note = "kept"
    view = tensor[2:]
    del storage, tensor
    gc.collect()
    assert view.untyped_storage().note == "kept"


def test_use_of_the_exchange_table_keeps_everything(offloader, monkeypatch):
    if "__dlpack_c_exchange_api__" not in torch.Tensor.__dict__:
        pytest.skip("this torch has no such table")
    monkeypatch.setattr(exports, "_untracked", [])
    monkeypatch.setattr(exports, "_READERS", ())
    tensor = torch.ones(1000)
    assert type(torch.Tensor.__dlpack_c_exchange_api__).__name__ == "PyCapsule"
    report = offloader.suspend()
    assert report.storages == 0
    assert any("table of DLPack" in reason for reason, _ in report.kept)
    assert tensor.sum() == 1000


def test_looking_at_a_tensor_is_no_export():
    install_export_tracking()
    assert len(inspect.getmembers(torch.Tensor)) > 100
    assert exports._untracked == []


FOLDER_PROBE = """
import importlib.util, sys
before = list(sys.meta_path)
spec = importlib.util.spec_from_file_location(
    "jupyter_gpu_predict", FOLDER + "/__init__.py", submodule_search_locations=[FOLDER])
package = importlib.util.module_from_spec(spec)
sys.modules["jupyter_gpu_predict"] = package
spec.loader.exec_module(package)
from jupyter_gpu_predict.kernel import offload
from jupyter_gpu_predict.kernel.memory import PeakMeter
assert offload.__file__.startswith(FOLDER)
assert offload.scan("simulated").used_bytes == 0
meter = PeakMeter("simulated"); meter.begin(); peak = meter.end()
assert (peak.peak_bytes, peak.source) == (0, "none") and peak.host_peak_bytes > 1 << 20
offload.install_export_tracking(); offload.install_export_tracking()
assert len(sys.meta_path) == len(before) + 1
assert not {"torch", "numpy"} & set(sys.modules)
import json.tool
assert importlib.util.find_spec("no_such_module_here") is None
assert importlib.util.find_spec("torch") is not None
import torch
assert sys.meta_path == before, sys.meta_path
assert "exec_module" not in vars(torch.__spec__.loader)
assert type(torch.__spec__.loader).__name__ == "SourceFileLoader"
assert torch.__loader__ is torch.__spec__.loader
t = torch.ones(1000); other = torch.from_dlpack(t)
assert [s.reason for s in offload.scan("simulated").skipped if s.on_device] == [
    "exported by DLPack"]
print("fine")
"""


def test_tracking_waits_for_torch_without_importing_or_changing_it():
    folder = str(pathlib.Path(jupyter_gpu_predict.__file__).parent)
    code = FOLDER_PROBE.replace("FOLDER", repr(folder))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")
