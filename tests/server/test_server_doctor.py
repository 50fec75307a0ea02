from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jupyter_gpu_predict.devices.doctor import Check
from jupyter_gpu_predict.server import doctor
from jupyter_gpu_predict.snapshots.signing import load_or_create_key

CONNECTIONS = "ServerApp.kernel_websocket_connection_class"
MANAGERS = "ServerApp.kernel_manager_class"
NAMES = [
    "packages",
    "prophet",
    "configuration",
    "server extension",
    "kernel provisioner",
    "kernelspecs",
    CONNECTIONS,
    MANAGERS,
    "store",
    "snapshot folder",
    "snapshot key",
]

Ask = Callable[[], dict[str, Check]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's Jupyter folders, all empty; the environment's own stay in force."""
    for name in ("CONFIG", "DATA", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / name.lower()))
    for name in ("JUPYTER_DEFAULT_PROVISIONER_NAME", "JUPYTER_GATEWAY_URL", "JUPYTER_CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)
    # The user's own folder first, as it is outside virtual environments.
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    (tmp_path / "config").mkdir()
    return tmp_path


@pytest.fixture
def ask(home: Path) -> Ask:
    """Ask every check, with an interpreter that knows prophet at once."""
    python = home / "python"
    python.write_text("#!/bin/sh\necho 1.5.0\n")
    python.chmod(0o755)
    return lambda: {check.name: check for check in doctor.check_server(python=str(python))}


def configure(home: Path, **sections: dict[str, object]) -> None:
    (home / "config" / "jupyter_server_config.json").write_text(json.dumps(sections))


def test_a_fresh_user_has_nothing_to_mend_and_nothing_is_made(ask: Ask, home: Path) -> None:
    checks = ask()
    assert list(checks) == NAMES
    assert [check for check in checks.values() if check.ok is not True] == []
    assert not (home / "data").exists()
    assert not (home / "runtime").exists()


def test_prophet_is_imported_in_a_process_of_its_own(home: Path) -> None:
    had = "prophet" in sys.modules
    check = doctor._check_prophet(sys.executable)
    assert check.ok is True
    assert importlib.metadata.version("prophet") in check.detail
    assert ("prophet" in sys.modules) == had


def test_prophet_that_cannot_be_imported(ask: Ask, home: Path) -> None:
    (home / "python").write_text("#!/bin/sh\necho 'ImportError: no cmdstan' >&2; exit 1\n")
    check = ask()["prophet"]
    assert check.ok is False
    assert "no cmdstan" in check.detail
    assert "pip install" in check.remedy


def test_old_and_missing_packages_are_named(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.MINIMUM, "dill", (99, 0))
    monkeypatch.setitem(doctor.MINIMUM, "no-such-package-here", (1, 0))
    check = ask()["packages"]
    assert check.ok is False
    assert "no-such-package-here is not installed" in check.detail
    assert "'dill>=99.0'" in check.remedy
    assert "ipykernel" not in check.remedy


@pytest.mark.parametrize("suffix", ["json", "py", "d"])
def test_an_extension_that_was_switched_off(ask: Ask, home: Path, suffix: str) -> None:
    off = {"jupyter_gpu_predict": False}
    if suffix == "json":
        configure(home, ServerApp={"jpserver_extensions": off})
    elif suffix == "py":
        path = home / "config" / "jupyter_server_config.py"
        path.write_text(f"get_config().ServerApp.jpserver_extensions = {off!r}\n")
    else:
        folder = home / "config" / "jupyter_server_config.d"
        folder.mkdir()
        section = {"ServerApp": {"jpserver_extensions": off}}
        (folder / "mine.json").write_text(json.dumps(section))
    check = ask()["server extension"]
    assert check.ok is False
    assert check.remedy == "jupyter server extension enable jupyter_gpu_predict"
    if suffix != "py":
        assert f"disabled in {home / 'config'}" in check.detail


def test_a_configuration_that_fails_is_shown_and_the_rest_is_checked(ask: Ask, home: Path) -> None:
    (home / "config" / "jupyter_server_config.py").write_text("1 / 0\n")
    checks = ask()
    assert checks["configuration"].ok is False
    assert "ZeroDivisionError" in checks["configuration"].detail
    assert str(home / "config") in checks["configuration"].remedy
    assert list(checks) == NAMES


def test_another_default_provisioner(ask: Ask, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "slurm-provisioner")
    check = ask()["kernel provisioner"]
    assert check.ok is False
    assert "JUPYTER_DEFAULT_PROVISIONER_NAME is 'slurm-provisioner'" in check.detail
    # The configuration wins over the environment, as in jupyter_client.
    configure(home, KernelProvisionerFactory={"default_provisioner_name": "gpu-provisioner"})
    assert ask()["kernel provisioner"].ok is True


def test_kernelspecs_with_a_provisioner_of_their_own_are_named(ask: Ask, home: Path) -> None:
    for name, language in (("slurm", "python"), ("ir", "R")):
        folder = home / "data" / "kernels" / name
        folder.mkdir(parents=True)
        spec = {
            "argv": ["x", "{connection_file}"],
            "display_name": name,
            "language": language,
            "metadata": {"kernel_provisioner": {"provisioner_name": "slurm-provisioner"}},
        }
        (folder / "kernel.json").write_text(json.dumps(spec))
    check = ask()["kernelspecs"]
    assert check.ok is True
    assert "without: slurm asks for 'slurm-provisioner'" in check.detail
    assert "ir" not in check.detail.split()


@pytest.mark.parametrize(
    ("trait", "chosen", "ok"),
    [
        (CONNECTIONS, "jupyter_server.gateway.connections.GatewayWebSocketConnection", False),
        (CONNECTIONS, "no_such_module_here.Connection", False),
        (
            CONNECTIONS,
            "jupyter_server.services.kernels.connection.channels.ZMQChannelsWebsocketConnection",
            True,
        ),
        (MANAGERS, "jupyter_client.multikernelmanager.AsyncMultiKernelManager", False),
        (MANAGERS, "jupyter_server.services.kernels.kernelmanager.MappingKernelManager", True),
    ],
)
def test_single_slots(ask: Ask, home: Path, trait: str, chosen: str, ok: bool) -> None:
    configure(home, ServerApp={trait.partition(".")[2]: chosen})
    checks = ask()
    assert checks[trait].ok is ok
    assert chosen.rpartition(".")[2] in checks[trait].detail
    assert bool(checks[trait].remedy) is not ok
    assert checks[MANAGERS if trait == CONNECTIONS else CONNECTIONS].ok is True


def test_kernels_behind_a_gateway(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_GATEWAY_URL", "http://gateway:8888")
    checks = ask()
    assert checks[CONNECTIONS].ok is False
    assert "gateway" in checks[MANAGERS].detail


def test_the_configured_data_folder_is_looked_at(ask: Ask, home: Path) -> None:
    data = home / "elsewhere"
    configure(home, GpuPredict={"data_dir": str(data)})
    (data / "snapshots").mkdir(parents=True, mode=0o700)
    load_or_create_key(data / "snapshot.key")
    checks = ask()
    for name in ("store", "snapshot folder", "snapshot key"):
        assert checks[name].ok is True
        assert str(data) in checks[name].detail
    assert "GiB free" in checks["snapshot folder"].detail


def test_open_folders_and_keys(ask: Ask, home: Path) -> None:
    data = home / "data" / "gpu-predict"
    (data / "snapshots").mkdir(parents=True)
    os.chmod(data / "snapshots", 0o755)
    load_or_create_key(data / "snapshot.key")
    os.chmod(data / "snapshot.key", 0o644)
    checks = ask()
    assert checks["snapshot folder"].ok is False
    assert f"chmod 700 {data / 'snapshots'}" in checks["snapshot folder"].remedy
    assert checks["snapshot key"].ok is False
    assert f"chmod 600 {data / 'snapshot.key'}" in checks["snapshot key"].remedy


def test_damaged_files(ask: Ask, home: Path) -> None:
    data = home / "data" / "gpu-predict"
    data.mkdir(parents=True)
    (data / "state.db").write_bytes(b"no database at all" * 100)
    (data / "snapshot.key").write_bytes(b"short")
    os.chmod(data / "snapshot.key", 0o600)
    (data / "snapshots").write_text("a file")
    checks = ask()
    for name in ("store", "snapshot folder", "snapshot key"):
        assert checks[name].ok is False, name
        assert checks[name].remedy
        assert str(data) in checks[name].detail
    assert (data / "state.db").read_bytes() == b"no database at all" * 100
    assert "5 bytes instead of 32" in checks["snapshot key"].detail


def test_a_store_that_is_no_folder_is_asked(ask: Ask, home: Path) -> None:
    configure(home, GpuPredict={"snapshot_store": "memory://doctor"})
    check = ask()["snapshot store"]
    assert (check.ok, "0 snapshots" in check.detail) == (True, True)
    configure(home, GpuPredict={"snapshot_store": "nowhere://bucket"})
    check = ask()["snapshot store"]
    assert check.ok is False
    assert "nowhere" in check.detail
    assert "snapshot_store" in check.remedy
