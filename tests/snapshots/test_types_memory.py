"""Memory that is written once, whatever looks into it, and memory that only seems to be there."""

from __future__ import annotations

import mmap
import os
import tracemalloc

import numpy as np
import pytest

from jupyter_gpu_predict.snapshots import Tombstone, digest


def test_views_of_one_memory_are_written_once(save, load):
    code = """
import numpy as np, array
raw = bytearray(300_000); a = np.frombuffer(raw, 'f4'); m = memoryview(raw)[1000:]
big = array.array('d', bytes(400_000)); b = np.frombuffer(big); c = b[5:]
x = np.arange(50_000.); y = x.reshape(5, -1).T; z = x[::-2]; w = x.view('u1')
"""
    _, report = save(code)
    assert report.total_bytes < 300_000 + 400_000 + 400_000 + 100_000
    assert not [v for v in report.variables if v.reason]
    space, _ = load(report.snapshot_id)
    space["m"][0:4] = np.float32(3).tobytes()
    assert space["a"][250] == 3
    space["c"][0] = 7
    assert space["big"][5] == 7
    space["x"][49_999] = -1
    assert space["y"][-1, -1] == space["z"][0] == -1


def test_restored_memory_can_still_be_resized(save, load):
    code = "import array; raw = bytearray(9_000); nums = array.array('d', [0.0]) * 2_000"
    space, _ = load(save(code)[1].snapshot_id)
    space["raw"] += b"more"
    space["nums"].append(1.0)
    assert len(space["raw"]) == 9_004
    assert len(space["nums"]) == 2_001


@pytest.fixture
def mapped(tmp_path):
    path = tmp_path / "data.bin"
    np.arange(2000.0).tofile(path)
    return path


def test_a_mapped_file_is_opened_again(save, load, mapped):
    m = np.memmap(mapped, "f8", "r+")
    m[3] = -1
    _, report = save(m=m, part=m[3:])
    assert report.total_bytes < 8000
    space, _ = load(report.snapshot_id)
    assert type(space["m"]) is np.memmap
    space["part"][0] = 8
    assert space["m"][3] == m[3] == 8


@pytest.mark.parametrize(("change", "words"), [("grow", "changed"), ("remove", "cannot be opened")])
def test_a_mapped_file_that_is_another_now_is_a_tombstone(save, load, mapped, change, words):
    code = "import numpy as np; m = np.memmap(path, 'f8', 'r'); x = [1]"
    _, report = save(code, path=str(mapped))
    if change == "grow":
        os.truncate(mapped, 20_000)
    else:
        mapped.unlink()
    space, restored = load(report.snapshot_id)
    assert type(space["m"]) is Tombstone
    reason = next(v.reason for v in restored.variables if v.name == "m")
    assert words in reason
    assert str(mapped) in reason
    assert space["x"] == [1]


def test_a_private_map_keeps_its_own_changes(save, load, mapped):
    m = np.memmap(mapped, "f8", "c")
    m[0] = 55
    _, report = save(m=m)
    assert str(mapped) in report.variables[0].reason
    space, _ = load(report.snapshot_id)
    assert space["m"][0] == 55
    space["m"][1] = 66
    assert np.fromfile(mapped)[:2].tolist() == [0, 1]


def test_a_map_of_a_deleted_file_keeps_its_contents(save, load, mapped):
    with open(mapped, "r+b") as file:
        m = mmap.mmap(file.fileno(), 0)
    want = m[:64]
    mapped.unlink()
    m.seek(9)
    space, _ = load(save(m=m)[1].snapshot_id)
    assert space["m"][:64] == want
    assert space["m"].tell() == 9


def test_released_and_closed_memory_says_so(save):
    view = memoryview(bytearray(4))
    view.release()
    closed = mmap.mmap(-1, 4096)
    closed.close()
    _, report = save(view=view, closed=closed)
    assert all("refers to nothing" in v.reason for v in report.variables)


def test_a_view_of_odd_layout_is_a_tombstone_and_not_wrong(save, load):
    code = """
import numpy as np
grid = np.arange(3000.).reshape(30, 100); odd = memoryview(grid)[3:5]
cross = memoryview(grid[:, ::7])
whole = memoryview(grid); back = memoryview(b'abcdef')[::-1]; empty = memoryview(b'')
"""
    space, restored = load(save(code)[1].snapshot_id)
    status = {v.name: v.status for v in restored.variables}
    assert {n for n, s in status.items() if s != "restored"} <= {"odd", "cross"}
    assert bytes(space["back"]) == b"fedcba"
    space["grid"][1, 1] = -1
    assert space["whole"][1, 1] == -1


def test_digests_copy_nothing_long():
    torch = pytest.importorskip("torch")
    big = np.zeros((5, 1024, 1024), "f4")
    tensor = torch.from_numpy(big).permute(2, 1, 0)
    digest(big[:1, :8].T)
    tracemalloc.start()
    try:
        first, second = digest(big.T), digest(tensor)
        assert tracemalloc.get_traced_memory()[1] < 9 << 20
    finally:
        tracemalloc.stop()
    assert first == digest(np.zeros((1024, 1024, 5), "f4"))
    assert second == digest(torch.zeros(1024, 1024, 5))


def test_digest_of_strided_memory_is_that_of_its_values():
    rng = np.random.default_rng(0)
    for shape, axes in (((700, 3000), (1, 0)), ((5, 600, 900), (2, 0, 1)), ((3, 600_000), (1, 0))):
        array = rng.integers(0, 99, shape).transpose(axes)
        assert digest(array) == digest(np.ascontiguousarray(array))
        assert digest(array[::-1]) != digest(array)


def test_object_arrays_share_and_may_hold_themselves(save, load):
    code = """
import numpy as np
a = np.array([[1], None, 'x'], dtype=object); tail = a[1:]; loop = np.empty(3, object)
loop[0] = loop; loop[1] = loop[1:]; first = a[0]
"""
    space, restored = load(save(code)[1].snapshot_id)
    assert not [v for v in restored.variables if v.status != "restored"]
    space["a"][2] = "new"
    assert space["tail"][1] == "new"
    assert space["first"] is space["a"][0]
    assert space["loop"][0] is space["loop"]
    assert space["loop"][1].shape == (2,)


def test_arrow_buffers_are_written_once(save, load):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"a": np.arange(100_000)})
    parts = [table.slice(i, 1000) for i in range(0, 100_000, 10_000)]
    _, report = save(table=table, parts=parts, column=table["a"])
    assert report.total_bytes < 1_000_000
    space, _ = load(report.snapshot_id, check=False)
    assert space["parts"][3]["a"][0].as_py() == 30_000
    addresses = {p["a"].chunk(0).buffers()[1].address for p in space["parts"]}
    assert len(addresses) == 1
