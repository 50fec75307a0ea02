"""`export`: files that other programs read back to the same values."""

from __future__ import annotations

import importlib.util
import json
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest

from jupyter_gpu_predict.errors import (
    BadInputError,
    SnapshotCancelledError,
    SnapshotDamagedError,
    SnapshotError,
    SnapshotSignatureError,
)
from jupyter_gpu_predict.snapshots import open_store
from jupyter_gpu_predict.snapshots.inspect import tensor_file
from jupyter_gpu_predict.snapshots.inspect.export import export

KEY = bytes(range(32))

ARRAYS = """
import numpy as np
array = np.arange(6000.0).reshape(60, 100)
view, turned, backward = array[::2, 1:9], array.T, array[::-1]
small, flags = np.eye(3, dtype="f4"), np.array([True, False])
big_endian, empty = np.arange(4, dtype=">i4"), np.zeros((0, 3))
nested = {"a": [np.arange(3), "text"], 1: np.ones(2), "1": np.zeros(2)}
strings = np.array(["a", "b"])
nothing = {"x": 1}
"""


@pytest.fixture
def write(folder, tmp_path):
    def run(report, form, name="out", **keywords):
        path = tmp_path / name
        return path, export(folder, report.snapshot_id, KEY, path, format=form, **keywords)

    return run


def read_back(path):
    """Read a safetensors file by its specification, to numpy."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    kinds = {"F64": "<f8", "F32": "<f4", "I32": "<i4", "I64": "<i8", "BOOL": "?"}
    found = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        part = data[8 + length + start : 8 + length + end]
        found[name] = np.frombuffer(part, kinds[entry["dtype"]]).reshape(entry["shape"])
    return found, metadata


def test_arrays_to_safetensors(save, write):
    namespace, report = save(ARRAYS)
    path, written = write(report, "safetensors")
    found, _ = read_back(path)
    for name in ("array", "view", "turned", "backward", "small", "flags", "big_endian", "empty"):
        assert np.array_equal(found[name], namespace[name]), name
        assert found[name].shape == namespace[name].shape
    assert np.array_equal(found["nested.a.0"], [0, 1, 2])
    assert np.array_equal(found["nested.1"], [1, 1])
    assert np.array_equal(found["nested.1~2"], [0, 0])
    assert written.files == (str(path),)
    assert written.bytes_written == path.stat().st_size
    notes = "\n".join(written.notes)
    assert "view shares memory with array and was copied" in notes
    assert "strings was left out" in notes
    assert "nothing" in notes


def test_the_librarys_own_reader_takes_it(save, write):
    torch = pytest.importorskip("torch")
    reader = pytest.importorskip("safetensors.torch")
    namespace, report = save(
        "import torch\n"
        "model = torch.nn.Sequential(torch.nn.Linear(40, 50), torch.nn.BatchNorm1d(50))\n"
        "tied = torch.nn.Module(); tied.a = torch.nn.Linear(9, 9); tied.b = tied.a\n"
        "half = torch.arange(5, dtype=torch.bfloat16); byte = half.to(torch.float8_e4m3fn)\n"
        "base = torch.arange(9000.); part = base[5:9]\n"
        "complex = torch.ones(2, dtype=torch.complex128)"
    )
    path, written = write(report, "safetensors")
    found = reader.load_file(path)
    for name, value in namespace["model"].state_dict().items():
        assert torch.equal(found[f"model.{name}"], value), name
    for name in ("half", "base", "part"):
        assert torch.equal(found[name], namespace[name]), name
        assert found[name].dtype == namespace[name].dtype
    assert found["byte"].dtype == torch.float8_e4m3fn
    assert "complex was left out" in "\n".join(written.notes)
    # A module that is held twice is written once.
    _, metadata = read_back_header(path)
    assert ("tied.a.weight" in found) != ("tied.b.weight" in found)
    assert "format" in metadata


def read_back_header(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return header, header.pop("__metadata__")


def test_the_same_tensor_twice_is_written_once(save, write):
    pytest.importorskip("torch")
    _, report = save("import torch; a = torch.arange(5000.); b = a; c = {'x': a.numpy()}")
    path, written = write(report, "safetensors")
    header, metadata = read_back_header(path)
    assert len(header) == 1
    assert {*header, *(metadata.keys() - {"format"})} == {"a", "b", "c.x"}
    assert path.stat().st_size < 21_000
    assert any("is the same as" in note for note in written.notes)


def test_no_unpickling_for_safetensors(save, write, tmp_path, monkeypatch):
    (tmp_path / "bygone.py").write_text("class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    _, report = save(
        "import bygone, numpy as np; t = bygone.Thing(); t.weights = np.arange(2000.0)"
    )
    del sys.modules["bygone"]
    (tmp_path / "bygone.py").write_text("raise SystemExit('imported')")
    path, _ = write(report, "safetensors", only=["t"])
    found, _ = read_back(path)
    assert np.array_equal(found["t.weights"], np.arange(2000.0))


def test_frames_to_arrow(save, write, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    code = (
        "import pandas as pd, pyarrow as pa\n"
        "frame = pd.DataFrame({'x': range(1000), 's': ['a', None] * 500})\n"
        "series = pd.Series([1.5, 2.5], name='q'); table = pa.table({'z': [1, 2, 3]}); x = 1\n"
    )
    names = {"frame.arrow", "series.arrow", "table.arrow"}
    if importlib.util.find_spec("polars") is not None:
        code += "import polars as pl; polar = pl.DataFrame({'p': [1, None]})\n"
        names.add("polar.arrow")
    namespace, report = save(code)
    path, written = write(report, "arrow")
    assert {p.name for p in path.iterdir()} == names
    frame = arrow.ipc.open_file(path / "frame.arrow").read_all().to_pandas()
    assert frame.equals(namespace["frame"])
    assert arrow.ipc.open_file(path / "series.arrow").read_all()["q"].to_pylist() == [1.5, 2.5]
    assert arrow.ipc.open_file(path / "table.arrow").read_all() == namespace["table"]
    if "polar.arrow" in names:
        assert arrow.ipc.open_file(path / "polar.arrow").read_all()["p"].to_pylist() == [1, None]
    assert any("x" in note and "no data frames" in note for note in written.notes)
    with pytest.raises(BadInputError, match="no data frame"):
        write(report, "arrow", name="none", only=["x"])
    assert not (tmp_path / "none").exists()


def test_a_session_to_dill(save, write):
    pytest.importorskip("dill")
    _, report = save(
        "import enum\n"
        "shared = [1]; both = {'a': shared, 'b': shared}; later = (i for i in range(3))\n"
        "factor = 3\n"
        "def triple(x): return factor * x\n"
        "class Colour(enum.Enum):\n    RED = 1\n"
        "colour = Colour.RED\n"
        "class Point:\n    def __init__(self, x): self.x = x\n"
        "point = Point(5)\n"
    )
    path, written = write(report, "dill")
    code = (
        "import dill, sys; s = dill.load(open(sys.argv[1], 'rb'));"
        "print(s['both'] == {'a': [1], 'b': [1]}, s['both']['a'] is s['shared'], s['triple'](4),"
        "s['point'].x, sorted(s))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.startswith("True True 12 5 ['Point', 'both', 'enum', 'factor', 'point'")
    left = {note.split()[0] for note in written.notes if "was left out" in note}
    assert {"later"} <= left <= {"later", "Colour", "colour"}


@pytest.mark.parametrize("form", ["safetensors", "arrow", "dill"])
def test_refused_before_anything_is_opened(folder, save, tmp_path, form, monkeypatch):
    def unpickled(*arguments, **keywords):
        raise AssertionError("unpickled")

    _, report = save(ARRAYS)
    monkeypatch.setattr(pickle, "Unpickler", unpickled)
    with pytest.raises(SnapshotSignatureError):
        export(folder, report.snapshot_id, b"x" * 32, tmp_path / "out", format=form)
    with pytest.raises(BadInputError, match="unknown"):
        export(folder, report.snapshot_id, KEY, tmp_path / "out", format="pickle")
    with pytest.raises(BadInputError, match="no variable 'no'"):
        export(folder, report.snapshot_id, KEY, tmp_path / "out", format=form, only=["no"])
    assert not (tmp_path / "out").exists()


def test_a_failed_export_leaves_the_former_file(folder, save, tmp_path, monkeypatch):
    _, report = save(ARRAYS)
    out = tmp_path / "files" / "out"
    out.parent.mkdir()
    out.write_text("former")

    def attempt(**keywords):
        export(
            open_store(folder.url), report.snapshot_id, KEY, out, format="safetensors", **keywords
        )

    with pytest.raises(SnapshotCancelledError, match="export"):
        attempt(cancelled=lambda: True)
    (pack,) = (folder.path / "packs").iterdir()
    good = pack.read_bytes()
    pack.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    with pytest.raises(SnapshotDamagedError):
        attempt()
    pack.write_bytes(good)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_file, "contiguous", full)
    with pytest.raises(SnapshotError, match="No space left"):
        attempt()
    assert out.read_text() == "former"
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_progress_counts_the_bytes(folder, save, tmp_path):
    _, report = save(ARRAYS)
    told = []
    export(
        folder,
        report.snapshot_id,
        KEY,
        tmp_path / "out",
        format="safetensors",
        only=["array", "small"],
        progress=lambda *where: told.append(where),
    )
    assert told[-1] == (48_036, 48_036)
