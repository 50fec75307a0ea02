from __future__ import annotations

import math
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyter_gpu_predict.core.model import CellRun, DemandSample, Lease, LeaseState, Outcome
from jupyter_gpu_predict.errors import BadInputError, NotFoundError, StoreError
from jupyter_gpu_predict.store.records import KernelRecord
from jupyter_gpu_predict.store.trace_store import Store

RUN = CellRun(
    kernel_id="k1",
    notebook="a/train.ipynb",
    cell_id="c1",
    digest="d1",
    start_s=100.0,
    end_s=101.5,
    peak_bytes=7,
    end_bytes=5,
    peak_source="none",
    host_peak_bytes=9,
    busy_s=1.25,
    outcome=Outcome.OK,
)
LEASE = Lease("k1", "GPU-0", 1 << 30, LeaseState.BOUND, 3, 50.0)
KERNEL = KernelRecord(
    kernel_id="k1",
    kernel_name="python3",
    pid=4242,
    pid_created_s=1700000000.25,
    pgid=4242,
    connection_file="/run/kernel-k1.json",
    ports={"shell_port": 5001, "iopub_port": 5002},
    notebook="a/train.ipynb",
    session_id="s1",
    session_name="train.ipynb",
    session_type="notebook",
    root_dir="/home/ann",
    owner_pid=17,
    owner_created_s=1699999999.5,
    argv=("python", "-m", "ipykernel_launcher", "-f", "/run/kernel-k1.json"),
    cwd="/home/ann/a",
    provisioner_info={"gpu": {"uuid": "GPU-0", "list": [1, 2.5, None, "ü"]}},
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/gpu/store.sqlite"


@pytest.fixture
def store(url):
    with Store(url) as store:
        yield store


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
int64 = st.integers(0, 2**63 - 1)
times = st.floats(allow_nan=False, allow_infinity=False)
cell_runs = st.builds(
    CellRun,
    kernel_id=texts,
    notebook=st.none() | texts,
    cell_id=st.none() | texts,
    digest=texts,
    start_s=times,
    end_s=times,
    peak_bytes=int64,
    end_bytes=int64,
    peak_source=texts,
    host_peak_bytes=int64,
    busy_s=times,
    outcome=st.sampled_from(Outcome),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(run=cell_runs)
def test_a_cell_run_comes_back_as_it_went_in(store, run):
    store.prune(math.inf, 0)
    store.add_cell_run(run)
    assert store.cell_runs() == [run]
    assert store.cell_runs(kernel_id=run.kernel_id, digests=[run.digest]) == [run]


def test_cell_runs_are_found_by_kernel_notebook_and_digest(store):
    runs = [
        replace(RUN, kernel_id=kernel, notebook=notebook, digest=digest, start_s=start)
        for kernel, notebook, digest, start in (
            ("k1", "a.ipynb", "d1", 1.0),
            ("k1", "a.ipynb", "d2", 2.0),
            ("k2", "a.ipynb", "d1", 3.0),
            ("k3", None, "d3", 4.0),
        )
    ]
    for run in reversed(runs):
        store.add_cell_run(run)
    assert store.cell_runs() == runs
    assert store.cell_runs(limit=2) == runs[2:]
    assert store.cell_runs(limit=0) == []
    assert store.cell_runs(kernel_id="k1") == runs[:2]
    assert store.cell_runs(notebook="a.ipynb") == runs[:3]
    assert store.cell_runs(notebook="a.ipynb", digests=["d1", "d3"]) == [runs[0], runs[2]]
    assert store.cell_runs(digests=["d3", "d1", "d1"], limit=2) == runs[2:]
    assert store.cell_runs(digests=[]) == []
    with pytest.raises(BadInputError, match="-1"):
        store.cell_runs(limit=-1)


def test_more_digests_than_one_statement_takes(store):
    runs = [replace(RUN, digest=f"d{i:04}", start_s=float(i % 97)) for i in range(1200)]
    for run in runs[::40]:
        store.add_cell_run(run)
    expected = sorted(runs[::40], key=lambda run: run.start_s)
    found = store.cell_runs(digests=[run.digest for run in runs], limit=7)
    assert [run.start_s for run in found] == [run.start_s for run in expected[-7:]]


def test_demand_comes_back_in_order(store):
    samples = [DemandSample("k1", float(t), t, 2 * t, bool(t % 2)) for t in range(10)]
    store.add_demand(samples[5:])
    store.add_demand([*samples[:5], DemandSample("k2", 3.0, 1, 1, True)])
    store.add_demand([])
    assert store.demand("k1", since_s=0.0) == samples
    assert store.demand("k1", since_s=7.0) == samples[7:]


def test_demand_is_added_wholly_or_not_at_all(store):
    good = DemandSample("k1", 1.0, 1, 0, True)
    with pytest.raises(BadInputError, match="Nothing was stored"):
        store.add_demand([good, replace(good, t_s=math.nan)])
    with pytest.raises(BadInputError, match="Nothing was stored"):
        store.add_demand([good, replace(good, used_bytes=2**64)])
    assert store.demand("k1", since_s=0.0) == []


def test_a_kernel_has_one_lease_until_it_is_released(store):
    other = replace(LEASE, kernel_id="k2", epoch=2)
    moved = replace(LEASE, gpu_uuid="GPU-1", state=LeaseState.SUSPENDED, epoch=4, expires_s=9.0)
    for lease in (LEASE, other, moved):
        store.save_lease(lease)
    assert store.leases() == [other, moved]
    store.save_lease(replace(moved, state=LeaseState.RELEASED))
    assert store.leases() == [other]


def test_epochs_grow_across_reopening(url):
    with Store(url) as store:
        first = [store.next_epoch() for _ in range(3)]
    with Store(url) as store:
        assert [*first, store.next_epoch()] == [1, 2, 3, 4]


def test_events_are_filtered_and_the_latest_kept(store):
    store.add_event(1.0, "bind", {"kernel_id": "k1", "bytes": 5})
    store.add_event(2.0, "cordon", {"gpu_uuid": "GPU-0", "why": ["x", None]})
    store.add_event(3.0, "reclaim", {"kernel_id": "k2", "nested": {"kernel_id": "k1"}})
    assert store.events() == [
        {"t_s": 1.0, "kind": "bind", "kernel_id": "k1", "bytes": 5},
        {"t_s": 2.0, "kind": "cordon", "gpu_uuid": "GPU-0", "why": ["x", None]},
        {"t_s": 3.0, "kind": "reclaim", "kernel_id": "k2", "nested": {"kernel_id": "k1"}},
    ]
    assert [e["kind"] for e in store.events(kernel_id="k1")] == ["bind"]
    assert [e["kind"] for e in store.events(kinds=["reclaim", "bind"])] == ["bind", "reclaim"]
    assert [e["kind"] for e in store.events(since_s=2.0, limit=1)] == ["reclaim"]
    assert store.events(kinds=[]) == []


@pytest.mark.parametrize(
    "data", [{"x": math.nan}, {"x": object()}, {"kind": "bind"}, {"t_s": 1.0}, {"x": {1, 2}}]
)
def test_event_data_that_cannot_be_kept_is_refused(store, data):
    with pytest.raises(BadInputError):
        store.add_event(1.0, "bind", data)
    assert store.events() == []


def test_operations_change_state_and_are_found_by_id(store):
    store.save_operation(
        "op1", kernel_id="k1", kind="migrate", state="running", progress=0.5, made_s=1.0
    )
    store.save_operation(
        "op2",
        kernel_id=None,
        kind="drain",
        state="failed",
        progress=0.0,
        made_s=2.0,
        ended_s=3.0,
        error={"message": "no", "reason": "refused"},
    )
    store.save_operation(
        "op1",
        kernel_id="k1",
        kind="migrate",
        state="done",
        progress=1.0,
        made_s=1.0,
        ended_s=4.0,
        result={"gpu_uuid": "GPU-1"},
    )
    assert store.operation("op1") == {
        "id": "op1",
        "kernel_id": "k1",
        "kind": "migrate",
        "state": "done",
        "progress": 1.0,
        "result": {"gpu_uuid": "GPU-1"},
        "error": None,
        "made_s": 1.0,
        "ended_s": 4.0,
    }
    assert [op["id"] for op in store.operations()] == ["op1", "op2"]
    assert [op["id"] for op in store.operations(kernel_id="k1")] == ["op1"]
    assert store.operations()[1]["error"] == {"message": "no", "reason": "refused"}
    with pytest.raises(NotFoundError, match="op3"):
        store.operation("op3")


def test_kernels_are_kept_for_a_later_server(url):
    other = replace(
        KERNEL, kernel_id="k2", owner_pid=18, notebook=None, session_id=None, pgid=None, cwd=None
    )
    with Store(url) as store:
        store.save_kernel(replace(KERNEL, pid=1))
        store.save_kernel(other)
        store.save_kernel(KERNEL)
    with Store(url) as store:
        assert store.kernels() == [KERNEL, other]
        assert store.kernels(owner=(17, KERNEL.owner_created_s)) == [KERNEL]
        assert store.kernels(owner=(17, 0.0)) == []
        store.forget_kernel("k1")
        store.forget_kernel("unknown")
        assert store.kernels() == [other]


def test_retention_takes_the_old_and_the_many_and_leaves_what_is_in_use(store):
    for t in range(10):
        store.add_cell_run(replace(RUN, start_s=float(t), end_s=t + 0.5))
        store.add_event(float(t), "bind", {})
        store.save_operation(
            f"op{t}",
            kernel_id=None,
            kind="migrate",
            state="done" if t % 2 else "running",
            progress=0.0,
            made_s=float(t),
            ended_s=t + 0.5 if t % 2 else None,
        )
    store.add_demand([DemandSample("k1", float(t // 1000), t, 0, True) for t in range(5000)])
    store.save_lease(replace(LEASE, since_s=0.0))
    store.save_kernel(KERNEL)

    gone = store.prune(before_s=4.0, max_rows=3)

    assert gone == {"cell_runs": 7, "demand": 4997, "events": 7, "operations": 2}
    assert [run.start_s for run in store.cell_runs()] == [7.0, 8.0, 9.0]
    assert [s.used_bytes for s in store.demand("k1", since_s=0.0)] == [4997, 4998, 4999]
    assert [e["t_s"] for e in store.events()] == [7.0, 8.0, 9.0]
    assert [op["id"] for op in store.operations() if op["state"] == "done"] == ["op5", "op7", "op9"]
    assert len([op for op in store.operations() if op["state"] == "running"]) == 5
    assert store.leases() == [replace(LEASE, since_s=0.0)]
    assert store.kernels() == [KERNEL]
    assert store.prune(before_s=8.5, max_rows=100)["events"] == 2
    with pytest.raises(BadInputError):
        store.prune(math.nan, 5)


def test_only_the_owner_can_read_the_store(tmp_path, url):
    with Store(url) as store:
        store.next_epoch()
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "gpu").iterdir()}
    assert stat.S_IMODE((tmp_path / "gpu").stat().st_mode) == 0o700
    assert modes.keys() >= {"store.sqlite", "store.sqlite-wal"}
    assert set(modes.values()) == {0o600}
    (tmp_path / "gpu" / "store.sqlite").chmod(0o644)
    Store(url).close()
    assert stat.S_IMODE((tmp_path / "gpu" / "store.sqlite").stat().st_mode) == 0o600


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "nonsense", "nosuch://a/b"])
def test_a_url_that_processes_cannot_share_is_refused(url):
    with pytest.raises(BadInputError, match="URL"):
        Store(url)


def test_a_closed_store_says_so(url):
    store = Store(url)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.leases()


def test_the_package_and_the_records_load_no_database_library():
    code = (
        "import sys, jupyter_gpu_predict, jupyter_gpu_predict.store.records\n"
        "assert not {'sqlalchemy', 'alembic'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
