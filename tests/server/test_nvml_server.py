"""A live server whose GPUs are the stub NVML library's: MIG slices, MPS and energy over REST.

The GPUs are a text file and the MPS daemon is a `sleep`; no kernel here computes on them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from emulators.nvml import stub_nvml
from live_server import SERVER_OPTIONS, Run, TestServer, running, until

from jupyter_gpu_predict.cli import main
from jupyter_gpu_predict.core.model import CellRun, Outcome
from jupyter_gpu_predict.demo.client import API
from jupyter_gpu_predict.store.trace_store import Store

GB = 1 << 30
SHOW = "import os; print({k: v for k, v in os.environ.items() if k.startswith('CUDA_')})"


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("nvml")
    if not sys.platform.startswith("linux") or stub_nvml.build(folder) is None:
        pytest.skip("the stub NVML library needs Linux and a C compiler")
    stub = stub_nvml.StubNvml(folder, folder)
    quiet = {"processes": "", "used": 0, "load": 0, "reserved": 0}
    for gpu in (0, 1):
        stub.set({f"gpu.{gpu}.{name}": value for name, value in quiet.items()})
    for place in (0, 1):
        said = {"uuid": f"MIG-{place}", "name": "Stub MIG 1g.5gb", "total": 5 * GB, **quiet}
        stub.set({f"gpu.0.mig.{place}.{name}": value for name, value in said.items()})
    stub.set({"gpu.0.mig": 1})
    return stub


@pytest.fixture(scope="module")
def server(
    stub: Any, tmp_path_factory: pytest.TempPathFactory, run: Run[Any]
) -> Iterator[TestServer]:
    folder = tmp_path_factory.mktemp("server")
    pipes = folder / "mps"
    pipes.mkdir()
    with subprocess.Popen(["sleep", "600"]) as daemon:
        (pipes / "nvidia-cuda-mps-control.pid").write_text(str(daemon.pid))
        env = {
            "LD_LIBRARY_PATH": stub.environ["LD_LIBRARY_PATH"],
            "NVML_STUB_STATE": str(stub.path),
            "CUDA_MPS_PIPE_DIRECTORY": str(pipes),
        }
        options = {**SERVER_OPTIONS, "GpuPredict.device_backend": "nvml"}
        try:
            with running(TestServer(folder, options=options, env=env), run) as process:
                yield process
        finally:
            daemon.kill()


def test_slices_and_mps_are_told(server: TestServer, run: Run[Any]) -> None:
    gpus = run(server.get(f"{API}/gpus"))["gpus"]
    assert [(g["uuid"], g["parent"], g["mps"]) for g in gpus] == [
        ("MIG-0", "GPU-0", True),
        ("MIG-1", "GPU-0", True),
        ("GPU-1", None, True),
    ]
    view = run(server.get(f"{API}/plan"))["view"]
    assert [(g["uuid"], g["whole"]) for g in view["gpus"]] == [
        ("MIG-0", True),
        ("MIG-1", True),
        ("GPU-1", False),
    ]


def test_energy_is_accounted_once_for_a_gpu_that_is_cut(
    server: TestServer, stub: Any, run: Run[Any]
) -> None:
    before = run(server.get(f"{API}/power"))
    assert [g["gpu_uuid"] for g in before["gpus"]] == ["GPU-0", "GPU-1"]
    stub.set({"gpu.0.energy_mj": 7_250_500 + 36_000_000, "gpu.1.power_mw": 200_000})

    async def counted() -> Any:
        power = await server.get(f"{API}/power")
        return power if power["used_j"] and power["power_w"] == 325.5 else None

    power = run(until(counted))
    used = {g["gpu_uuid"]: g["used_j"] for g in power["gpus"]}
    assert used == {"GPU-0": 36_000.0, "GPU-1": 0.0}
    assert (power["used_j"], power["simulated"], power["unmeasured"]) == (36_000.0, False, [])
    # Both have stood empty, and what either draws idle with kernels has never been seen.
    assert (power["saved_j"], power["unknown"]) == (0.0, ["GPU-0", "GPU-1"])
    assert "had each of them drawn" in power["assumption"]
    metrics = run(server.request("GET", "metrics"))[1]
    text = metrics if isinstance(metrics, str) else metrics.decode()
    assert 'jupyter_gpu_energy_joules_total{gpu="GPU-0"} 36000.0' in text
    assert 'jupyter_gpu_empty_seconds_total{gpu="GPU-1"}' in text
    assert "jupyter_gpu_energy_saved_joules{" not in text


def test_status_has_a_line_of_it(
    server: TestServer,
    run: Run[Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(server.get(f"{API}/power"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(server.folder / "runtime"))
    assert main(["status"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "W now, 10.0 Wh since the server started, 0.0 Wh saved" in shown
    assert "(unknown for 2)" in shown


def test_a_kernel_is_launched_within_the_limits_of_its_lease(
    server: TestServer, run: Run[Any]
) -> None:
    """The first kernel of a notebook has no lease yet and so no limit."""

    async def look() -> None:
        notebook = await server.opened("shared.ipynb")
        said = (await notebook.run(SHOW)).text
        held = (await server.kernel(notebook))["lease"]
        assert f"'CUDA_VISIBLE_DEVICES': '{held['gpu_uuid']}'" in said
        assert "CUDA_MPS_PINNED" not in said
        await server.end(notebook)

        with Store(f"sqlite:///{server.folder / 'data' / 'gpu-predict' / 'state.db'}") as store:
            store.add_cell_run(
                CellRun("k", "shared.ipynb", "c", "d", 1.0, 2.0, GB, GB, "nvml", 0, 1.0, Outcome.OK)
            )
        again = await server.open("shared.ipynb")
        said = (await again.run(SHOW)).text
        assert "'CUDA_VISIBLE_DEVICES': 'MIG-" in said
        # All of the slice, since slices are not shared.
        assert "'CUDA_MPS_PINNED_DEVICE_MEM_LIMIT': '0=5120M'" in said
        assert "'CUDA_MPS_ACTIVE_THREAD_PERCENTAGE': '100'" in said
        await server.end(again)

    run(look())
