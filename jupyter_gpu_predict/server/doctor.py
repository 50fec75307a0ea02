"""Checks of the server's side for ``jupyter gpu doctor``, each with its remedy.

They look at what the next server of this user would find: the configuration on disk, what is
installed, and where things are kept. Nothing is started or changed here.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.provisioning import KernelProvisionerFactory
from jupyter_core.application import JupyterApp
from jupyter_core.paths import jupyter_config_path, jupyter_data_dir, jupyter_runtime_dir
from jupyter_server.extension.config import ExtensionConfigManager
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from jupyter_server.services.kernels.kernelmanager import MappingKernelManager
from traitlets.config import Config
from traitlets.utils.importstring import import_item

from ..devices.doctor import Check, check_devices
from ..errors import GpuPredictError
from ..kernel.provisioner import PROVISIONER_NAME, GpuProvisioner, is_python
from ..snapshots.signing import KEY_BYTES
from ..snapshots.stores import open_store
from ..store.doctor import check_store
from .doctor_proof import check_proof, prove_checkpoints
from .paths import Paths

EXTENSION = "jupyter_gpu_predict"
CONFIG_FILES = ("jupyter_config", "jupyter_server_config", "jupyter_gpu_predict_config")
MINIMUM = {
    "ipykernel": (7, 0),
    "jupyter_server": (2, 15),
    "jupyter_client": (8, 6),
    "jupyter_events": (0, 12),
    "sqlalchemy": (2, 0),
    "dill": (0, 4),
}
"""Oldest versions that work, as in this package's requirements."""

_LOCAL_PROVISIONER = "local-provisioner"


def check_all(*, python: str = sys.executable) -> list[Check]:
    """Return every check that needs no running server; one that fails hides none of the others."""
    return [
        *check_devices(python=python),
        check_proof(data_paths()),
        *check_server(python=python),
    ]


def check_server(*, python: str = sys.executable) -> list[Check]:
    """Check versions, extension, provisioner, Jupyter's single slots, store and snapshots."""
    config, readable = _load_config()
    paths = data_paths(config)
    return [
        *_check_packages(python),
        readable,
        _check_extension(config),
        _check_provisioner(config),
        _check_kernelspecs(config),
        _check_slot(
            config,
            "kernel_websocket_connection_class",
            ZMQChannelsWebsocketConnection,
            "messages cannot be held while a kernel moves",
        ),
        _check_slot(
            config,
            "kernel_manager_class",
            MappingKernelManager,
            "its kernels cannot be watched and moved",
        ),
        Check("store", *check_store(database_url(config))),
        _check_snapshots(_setting(config, "snapshot_store") or str(paths.snapshots)),
        _check_key(paths),
    ]


def prove(*, python: str = sys.executable) -> list[Check]:
    """Try driver checkpoints on this machine, keep what was found, and return it."""
    config, _ = _load_config()
    device = _setting(config, "torch_device") or "cuda"
    return prove_checkpoints(data_paths(config), device, python=python)


def data_paths(config: Config | None = None) -> Paths:
    """Return where a server of this user keeps its things, without making anything.

    `config` is the server's configuration, by default as it is on disk.
    """
    if config is None:
        config, _ = _load_config()
    data = _setting(config, "data_dir") or Path(jupyter_data_dir()) / "gpu-predict"
    return Paths(Path(data).expanduser(), Path(jupyter_runtime_dir()) / "gpu-predict-spill")


def database_url(config: Config | None = None) -> str:
    """Return where a server of this user keeps its traces.

    `config` is the server's configuration, by default as it is on disk.
    """
    if config is None:
        config, _ = _load_config()
    return _setting(config, "database_url") or data_paths(config).database_url


def _load_config() -> tuple[Config, Check]:
    """Return the configuration on disk, and whether all of it could be read."""
    name = "configuration"
    app = JupyterApp(raise_config_file_errors=True)
    try:
        for app.config_file_name in CONFIG_FILES:
            app.load_config_file(suppress_errors=False)
    except Exception as error:
        # A configuration file is a program of the user's and can fail in any way.
        return app.config, Check(
            name,
            False,
            f"{app.config_file_name} cannot be read: {type(error).__name__}: {error}.",
            f"Correct it; Jupyter looks in {', '.join(jupyter_config_path())}.",
        )
    return app.config, Check(name, True, f"Read from {_short(jupyter_config_path())}.")


def _setting(config: Config, trait: str) -> str:
    return str(config.get("GpuPredict", {}).get(trait, ""))


# --------------------------------------------------------------------------- packages


def _check_packages(python: str) -> Iterator[Check]:
    versions, faults = [], []
    for package, oldest in MINIMUM.items():
        wanted = f"{package}>={'.'.join(map(str, oldest))}"
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            faults.append((f"{package} is not installed", wanted))
            continue
        versions.append(f"{package} {version}")
        if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < oldest:
            faults.append((f"{package} {version} is too old", wanted))
    if faults:
        wanted = " ".join(f"'{wish}'" for _, wish in faults)
        detail = "; ".join(fault for fault, _ in faults) + "."
        yield Check("packages", False, detail, f"pip install --upgrade {wanted}")
    else:
        yield Check("packages", True, ", ".join(versions) + ".")
    yield _check_prophet(python)


def _check_prophet(python: str, timeout_s: float = 60.0) -> Check:
    name = "prophet"
    remedy = "pip install --force-reinstall 'prophet>=1.3'"
    try:
        done = subprocess.run(
            [python, "-c", "import prophet; print(prophet.__version__)"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(name, False, f"{python} could not be asked for it: {error}.", remedy)
    if done.returncode:
        told = done.stderr.strip().splitlines()
        return Check(name, False, f"It cannot be imported: {(told or ['no message'])[-1]}.", remedy)
    return Check(name, True, f"Version {done.stdout.split()[-1]}.")


# --------------------------------------------------------------------------- configuration


def _check_extension(config: Config) -> Check:
    name = "server extension"
    places = []
    for folder in jupyter_config_path():
        found = ExtensionConfigManager(read_config_path=[folder]).get_jpserver_extensions()
        if EXTENSION in found:
            places.append(f"{'enabled' if found[EXTENSION] else 'disabled'} in {folder}")
    extensions = ExtensionConfigManager(read_config_path=jupyter_config_path())
    chosen = config.get("ServerApp", {}).get("jpserver_extensions", {}).get(EXTENSION)
    enabled = extensions.enabled(EXTENSION) if chosen is None else chosen
    detail = "; ".join(places) or f"named in none of {', '.join(jupyter_config_path())}"
    if enabled:
        return Check(name, True, f"It is {detail}.")
    return Check(
        name,
        False,
        f"No server will load it: it is {detail}.",
        f"jupyter server extension enable {EXTENSION}",
    )


def _check_provisioner(config: Config) -> Check:
    name = "kernel provisioner"
    points = importlib.metadata.entry_points(group=KernelProvisionerFactory.GROUP_NAME)
    ours = [point for point in points if point.name == PROVISIONER_NAME]
    if not ours or ours[0].value != f"{GpuProvisioner.__module__}:{GpuProvisioner.__name__}":
        what = f"is {ours[0].value}" if ours else "is not there"
        return Check(
            name,
            False,
            f"The entry point {PROVISIONER_NAME!r} {what}, so kernels start without a GPU.",
            "pip install --force-reinstall jupyter-gpu-predict",
        )
    variable = KernelProvisionerFactory.default_provisioner_name_env
    chosen, where = os.environ.get(variable), variable
    section = config.get("KernelProvisionerFactory", {})
    if "default_provisioner_name" in section:
        chosen = section["default_provisioner_name"]
        where = "KernelProvisionerFactory.default_provisioner_name"
    if chosen in {None, _LOCAL_PROVISIONER, PROVISIONER_NAME}:
        return Check(name, True, f"{PROVISIONER_NAME!r} will start the kernels.")
    return Check(
        name,
        False,
        f"{where} is {chosen!r}, so kernels start without a GPU bound and without the agent.",
        f"Unset it, or set it to {PROVISIONER_NAME!r}.",
    )


def _check_kernelspecs(config: Config) -> Check:
    name = "kernelspecs"
    usual, others = [], []
    for kernel, folder in KernelSpecManager(config=config).find_kernel_specs().items():
        try:
            # The manager itself hides one whose provisioner is not installed.
            spec = KernelSpec.from_resource_dir(folder)
        except (OSError, ValueError, KeyError) as error:
            others.append(f"{kernel} cannot be read ({error})")
            continue
        if not is_python(spec):
            continue
        own = spec.metadata.get("kernel_provisioner", {}).get("provisioner_name")
        if own in {None, PROVISIONER_NAME}:
            usual.append(kernel)
        else:
            others.append(f"{kernel} asks for {own!r}")
    listed = ", ".join(sorted(usual)) or "none"
    if not others:
        return Check(name, True, f"Python kernels that get a GPU and the agent: {listed}.")
    return Check(
        name,
        bool(usual),
        f"Python kernels that get a GPU and the agent: {listed}; without: {'; '.join(others)}.",
        "Take `kernel_provisioner` out of their kernel.json (`jupyter kernelspec list`).",
    )


def _check_slot(config: Config, trait: str, base: type, loss: str) -> Check:
    """Check one of Jupyter's single slots: ours extends what stands there, where it can."""
    name = f"ServerApp.{trait}"
    if config.get("GatewayClient", {}).get("url") or os.environ.get("JUPYTER_GATEWAY_URL"):
        return Check(
            name,
            False,
            "Kernels run behind a gateway, where this server does not start them.",
            "Install jupyter-gpu-predict in the gateway's server, or unset the gateway's URL.",
        )
    chosen: Any = config.get("ServerApp", {}).get(trait)
    if chosen is None:
        return Check(name, True, "Jupyter's own.")
    try:
        cls = import_item(chosen) if isinstance(chosen, str) else chosen
    except ImportError as error:
        return Check(name, False, f"{chosen} cannot be imported: {error}.", f"Correct {name}.")
    shown = f"{cls.__module__}.{cls.__qualname__}"
    if issubclass(cls, base):
        return Check(name, True, f"{shown}, which is extended.")
    return Check(
        name,
        False,
        f"{shown} is no {base.__name__}, so {loss}.",
        f"Unset {name}, or set it to a subclass of {base.__module__}.{base.__name__}.",
    )


# --------------------------------------------------------------------------- folders


def _check_snapshots(where: str) -> Check:
    name = "snapshot folder"
    if "://" in where:
        return _check_store(where)
    folder = Path(where).expanduser()
    try:
        info = folder.stat()
    except FileNotFoundError:
        return _check_place(name, folder)
    except OSError as error:
        return Check(name, False, f"{folder}: {error}.", f"Make {folder.parent} yours.")
    if not stat.S_ISDIR(info.st_mode) or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        remedy = f"Make it a folder that this user may write to: {folder}"
        return Check(name, False, f"{folder} cannot be written to.", remedy)
    if stat.S_IMODE(info.st_mode) & 0o077:
        return Check(
            name,
            False,
            f"{folder} is open to other users, and what users compute is in it.",
            f"chmod 700 {folder}",
        )
    free = os.statvfs(folder)
    gib = free.f_bavail * free.f_frsize / (1 << 30)
    return Check(name, True, f"{folder}, {gib:.1f} GiB free.")


def _check_store(url: str) -> Check:
    name = "snapshot store"
    try:
        store = open_store(url)
        count = len(store.list())
    except GpuPredictError as error:
        return Check(name, False, f"{error}.", "Correct GpuPredict.snapshot_store, or unset it.")
    return Check(name, True, f"{store.shown}, {count} snapshots.")


def _check_place(name: str, folder: Path) -> Check:
    present = next(parent for parent in folder.absolute().parents if parent.exists())
    if present.is_dir() and os.access(present, os.W_OK | os.X_OK):
        return Check(name, True, f"{folder} does not exist yet and will be made.")
    remedy = f"Make {present} writable, or set GpuPredict.data_dir."
    return Check(name, False, f"{folder} cannot be made in {present}.", remedy)


def _check_key(paths: Paths) -> Check:
    name = "snapshot key"
    key = paths.key
    try:
        info = key.stat()
    except FileNotFoundError:
        return Check(name, True, f"{key} does not exist yet and will be made.")
    except OSError as error:
        return Check(name, False, f"{key}: {error}.", f"Make {key.parent} yours.")
    if stat.S_IMODE(info.st_mode) & 0o077:
        return Check(
            name,
            False,
            f"{key} can be read by other users, who could then forge snapshots.",
            f"Delete it (older snapshots are then refused), or: chmod 600 {key}",
        )
    if info.st_size != KEY_BYTES:
        detail = f"{key} has {info.st_size} bytes instead of {KEY_BYTES}."
        return Check(name, False, detail, "Delete it; older snapshots are then refused.")
    if not os.access(key, os.R_OK):
        return Check(name, False, f"{key} cannot be read.", f"chown it to this user: {key}")
    return Check(name, True, f"{key}, for this user only.")


def _short(paths: list[str]) -> str:
    return f"{paths[0]} and {len(paths) - 1} more folders" if len(paths) > 1 else paths[0]
