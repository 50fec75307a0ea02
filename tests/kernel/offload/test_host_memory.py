"""How much the host can give: the machine's figures and every limit above this process."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from jupyter_gpu_predict.errors import StorageFullError
from jupyter_gpu_predict.kernel.offload import pool as pool_module
from jupyter_gpu_predict.kernel.offload.host_memory import HostMemory, host_memory
from jupyter_gpu_predict.kernel.offload.pool import GRAIN_BYTES, Pool

GIB = 1 << 30


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(
        tmp_path / "proc/meminfo",
        f"MemTotal: {16 * GIB >> 10} kB\nMemAvailable: {9 * GIB >> 10} kB\n",
    )
    return tmp_path


def test_without_limits_the_machine_counts(root: Path) -> None:
    assert host_memory(str(root)) == HostMemory(16 * GIB, 9 * GIB)
    assert HostMemory(10 * GIB, 3 * GIB).room_bytes == 2 * GIB
    assert HostMemory(10 * GIB, GIB // 2).room_bytes == 0


def test_the_narrowest_group_above_counts_and_its_cache_can_be_had(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/a/b\n")
    groups = root / "sys/fs/cgroup"
    for name, limit, used in (("a", "8", 3), ("a/b", "max", 1)):
        text = limit if limit == "max" else str(int(limit) * GIB)
        write(groups / name / "memory.max", text)
        write(groups / name / "memory.current", str(used * GIB))
        write(groups / name / "memory.stat", f"anon 1\ninactive_file {GIB}\n")
    assert host_memory(str(root)) == HostMemory(8 * GIB, 6 * GIB)


def test_the_first_version_of_groups_with_the_hosts_path(root: Path) -> None:
    write(root / "proc/self/cgroup", "9:cpu:/x\n4:memory,hugetlb:/docker/not-seen-here\n")
    group = root / "sys/fs/cgroup/memory"
    write(group / "memory.limit_in_bytes", str(4 * GIB))
    write(group / "memory.usage_in_bytes", str(5 * GIB))
    assert host_memory(str(root)) == HostMemory(4 * GIB, 0)
    write(group / "memory.limit_in_bytes", str((1 << 63) - 4096))
    assert host_memory(str(root)) == HostMemory(16 * GIB, 9 * GIB)


def test_this_machine_has_some() -> None:
    here = host_memory()
    assert 0 < here.available_bytes <= here.total_bytes < 1 << 50


def free_host(monkeypatch: pytest.MonkeyPatch, total: int, available: int) -> None:
    monkeypatch.setattr(pool_module, "host_memory", lambda: HostMemory(total, available))


def test_a_region_is_lent_again_and_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    free_host(monkeypatch, 16 * GIB, 12 * GIB)
    prepared = []
    pool = Pool(lambda region: prepared.append(region.base))
    loans = pool.lend([GRAIN_BYTES, 3 * GRAIN_BYTES - 5])
    bases = sorted(loan.region.base for loan in loans)
    loans.clear()
    assert pool.kept_bytes == 4 * GRAIN_BYTES
    again = pool.lend([3 * GRAIN_BYTES, GRAIN_BYTES])
    assert sorted(loan.region.base for loan in again) == bases == sorted(prepared)
    again.clear()
    (large,) = pool.lend([9 * GRAIN_BYTES])
    assert pool.kept_bytes == 0
    del large
    pool.drop()
    assert pool.kept_bytes == 0


def test_nothing_is_kept_on_a_host_that_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool()
    for total, available in ((16 * GIB, 7 * GIB), (8 * GRAIN_BYTES, 8 * GRAIN_BYTES)):
        free_host(monkeypatch, total, available)
        pool.lend([2 * GRAIN_BYTES])
        assert pool.kept_bytes == 0


def test_a_refusal_leaves_nothing_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    free_host(monkeypatch, 16 * GIB, 12 * GIB)

    def refuse(region: mmap.mmap) -> None:
        if len(region) > GRAIN_BYTES:
            raise StorageFullError("not to be locked")

    pool = Pool(refuse)
    with pytest.raises(StorageFullError):
        pool.lend([GRAIN_BYTES, 2 * GRAIN_BYTES])
    with pytest.raises(StorageFullError, match="the host has no"):
        Pool().lend([1 << 60])
