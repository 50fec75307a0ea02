"""Checks of the GPUs, the driver and torch for ``jupyter gpu doctor``, each with its remedy."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointFailedError, DeviceError
from .cuda_checkpoint import CudaCheckpoint
from .nvml import REMEDY, NvmlGpus

MIN_NVIDIA_ML_PY = (12, 560)
MIN_TORCH = (2, 12)
"""First torch that can take device memory back in place by swapping a storage's pointer."""

CHECKPOINT = "driver checkpoint"

_NVIDIA_VENDOR = "0x10de"
_DISPLAY_CLASSES = ("0x0300", "0x0302")
_TORCH_PROBE = """
import json, torch
found = {"cuda": torch.version.cuda, "available": False, "devices": 0, "fault": None}
if torch.version.cuda:
    try:
        found["devices"] = torch.cuda.device_count()
        found["available"] = torch.cuda.is_available()
        if found["available"]:
            torch.ones(1, device="cuda").sum().item()
    except Exception as error:
        found["fault"] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Check:
    """One check: whether `name` is in order (``None``: does not apply here), and what to do."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class _Driver:
    """What NVML says of every GPU or slice, hidden or not.

    `entries` are those that each entry of ``CUDA_VISIBLE_DEVICES`` stands for.
    """

    version: str
    cuda: tuple[int, int] | None
    uuids: tuple[str, ...]
    entries: list[list[str]]


def check_devices(*, python: str = sys.executable, torch_timeout_s: float = 60.0) -> list[Check]:
    """Check driver, NVML, nvidia-ml-py, torch against CUDA, and which GPUs are visible.

    Parameters
    ----------
    python
        Interpreter whose torch is looked at, in a process of its own: torch takes seconds to import
        and would initialise CUDA here.
    torch_timeout_s
        For how long that process may take.

    Returns
    -------
    list of Check
        Every check, whatever the ones before it said.
    """
    gpus = NvmlGpus(environ={})
    try:
        answer, driver = _check_nvml(gpus)
    finally:
        gpus.close()
    return [
        _check_driver(driver is not None),
        answer,
        _check_nvidia_ml_py(),
        *_check_torch(python, torch_timeout_s, driver),
        _check_visible(driver),
        Check(CHECKPOINT, None, "There is no NVIDIA driver to ask.")
        if driver is None
        else check_checkpoint(CudaCheckpoint(keep=lambda record: None)),
    ]


def check_checkpoint(checkpoints: CudaCheckpoint) -> Check:
    """Check whether the driver can take whole processes off a GPU; nothing is taken off."""
    try:
        found = asyncio.run(checkpoints.assess("doctor", os.getpid()))
    except CheckpointFailedError as error:
        return Check(CHECKPOINT, False, str(error), "Memory is taken back in place meanwhile.")
    # This process uses no CUDA, which is what is told where nothing stands against it.
    if found.refusal is None or found.refusal.why == "no_cuda":
        detail = f"Driver {found.driver_version} has it (asked through {found.way})."
        return Check(CHECKPOINT, True, detail)
    return Check(CHECKPOINT, False, found.refusal.message, "Memory is taken back in place.")


def _check_driver(answers: bool) -> Check:
    name = "NVIDIA driver"
    module = Path("/proc/driver/nvidia/version")
    if module.exists():
        try:
            line = module.read_text(encoding="utf-8", errors="replace").splitlines()[0]
        except (OSError, IndexError) as error:
            return Check(name, False, f"{module} cannot be read: {error}.", REMEDY)
        return Check(name, True, line.strip())
    if answers:
        return Check(name, True, "It answers through NVML.")
    hardware = _nvidia_hardware()
    if hardware:
        return Check(
            name, False, f"There is NVIDIA hardware ({', '.join(hardware)}), no driver.", REMEDY
        )
    return Check(name, None, "No NVIDIA hardware and no driver: simulated GPUs are used.")


def _nvidia_hardware() -> list[str]:
    """Return the PCI addresses of NVIDIA's display and compute devices."""
    found = []
    for device in sorted(Path("/sys/bus/pci/devices").glob("*")):
        try:
            vendor = (device / "vendor").read_text(encoding="ascii").strip()
            kind = (device / "class").read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if vendor == _NVIDIA_VENDOR and kind.startswith(_DISPLAY_CLASSES):
            found.append(device.name)
    return found


def _check_nvml(gpus: NvmlGpus) -> tuple[Check, _Driver | None]:
    name = "NVML answers"
    try:
        gpus.start()
    except DeviceError:
        reason = gpus.down_reason
        absent = not (_nvidia_hardware() or Path("/proc/driver/nvidia/version").exists())
        detail = f"NVML does not answer: {reason}."
        return Check(name, None if absent else False, detail, "" if absent else REMEDY), None
    statuses = gpus.read()
    driver = _Driver(
        gpus.driver_version,
        gpus.cuda_version,
        tuple(s.uuid for s in statuses),
        gpus.visible(os.environ.get("CUDA_VISIBLE_DEVICES")),
    )
    faults = [f"{s.name} {s.index}: {problem}" for s in statuses for problem in s.problems]
    cuda = "unknown" if driver.cuda is None else f"{driver.cuda[0]}.{driver.cuda[1]}"
    detail = f"Driver {driver.version}, CUDA up to {cuda}, {len(statuses)} GPU(s)."
    if not statuses:
        return Check(name, False, detail, "Give the machine or the container a GPU."), driver
    if any(s.lost for s in statuses):
        remedy = "Reset the GPU (nvidia-smi -r) or restart the machine."
        return Check(name, False, " ".join([detail, *faults]), remedy), driver
    return Check(name, True, " ".join([detail, *faults])), driver


def _check_nvidia_ml_py() -> Check:
    name = "nvidia-ml-py"
    wanted = ".".join(map(str, MIN_NVIDIA_ML_PY))
    install = f"pip install 'nvidia-ml-py>={wanted}'"
    try:
        version = importlib.metadata.version("nvidia-ml-py")
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "It is not installed.", install)
    if _numbers(version) < MIN_NVIDIA_ML_PY:
        return Check(name, False, f"Version {version} is older than {wanted}.", install)
    rival = importlib.metadata.packages_distributions().get("pynvml", [])
    if "pynvml" in rival:
        return Check(
            name,
            False,
            f"Version {version}, but the package 'pynvml' brings a module of the same name.",
            f"pip uninstall pynvml && {install} --force-reinstall",
        )
    return Check(name, True, f"Version {version}.")


def _check_torch(python: str, timeout_s: float, driver: _Driver | None) -> list[Check]:
    names = ("torch", "torch and CUDA match")
    found = _probe_torch(python, timeout_s)
    if isinstance(found, Check):
        return [found, Check(names[1], None, "torch could not be looked at.")]
    version, cuda = found["version"], found["cuda"]
    if _numbers(version) < MIN_TORCH:
        wanted = ".".join(map(str, MIN_TORCH))
        first = Check(
            names[0],
            False,
            f"Version {version} cannot give device memory back in place.",
            f"pip install 'torch>={wanted}'",
        )
    else:
        first = Check(names[0], True, f"Version {version}, CUDA {cuda or 'none'}.")
    return [first, _match(names[1], found, driver)]


def _match(name: str, found: Mapping[str, Any], driver: _Driver | None) -> Check:
    version, cuda = found["version"], found["cuda"]
    if driver is None:
        return Check(name, None, f"No NVIDIA driver; torch {version} runs on simulated GPUs.")
    if not cuda:
        return Check(
            name,
            False,
            f"torch {version} is built without CUDA, so kernels cannot use the GPUs.",
            "Install a CUDA build of torch: https://pytorch.org/get-started/locally/",
        )
    built = _numbers(cuda)
    # A driver runs every CUDA of its own major version and older ones.
    if driver.cuda is not None and built[:1] > driver.cuda[:1]:
        return Check(
            name,
            False,
            f"torch {version} needs CUDA {cuda}, driver {driver.version} goes up to "
            f"{driver.cuda[0]}.{driver.cuda[1]}.",
            f"Update the NVIDIA driver, or install a torch built for CUDA {driver.cuda[0]}.",
        )
    if found["fault"] or not found["available"]:
        why = found["fault"] or f"it sees {found['devices']} device(s)"
        return Check(
            name,
            False,
            f"torch {version} (CUDA {cuda}) cannot use a GPU: {why}.",
            "Check CUDA_VISIBLE_DEVICES, and that nvidia-smi works as this user.",
        )
    return Check(name, True, f"torch {version} (CUDA {cuda}) uses {found['devices']} GPU(s).")


def _probe_torch(python: str, timeout_s: float) -> dict[str, Any] | Check:
    """Return what torch says in a process of its own, or the check that failed."""
    probe = (
        "import importlib.metadata as m\n"
        "try: print(m.version('torch'))\n"
        "except m.PackageNotFoundError: print('-')"
    )
    try:
        version = _run(python, probe, timeout_s).split()[-1]
        if version == "-":
            return Check("torch", None, "It is not installed; the server does not need it.")
        lines = _run(python, _TORCH_PROBE, timeout_s).strip().splitlines()
        return {"version": version, **json.loads(lines[-1])}
    except subprocess.TimeoutExpired:
        detail = f"Importing torch took longer than {timeout_s:g} s."
    except subprocess.CalledProcessError as error:
        told = (error.stderr or "").strip().splitlines()
        detail = f"Importing torch failed: {told[-1] if told else f'exit {error.returncode}'}."
    except (OSError, ValueError, IndexError) as error:
        detail = f"{python} could not be asked for torch: {error}."
    return Check("torch", False, detail, f"Try: {python} -c 'import torch'")


def _run(python: str, code: str, timeout_s: float) -> str:
    return subprocess.run(
        [python, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    ).stdout


def _check_visible(driver: _Driver | None) -> Check:
    name = "CUDA_VISIBLE_DEVICES"
    setting = os.environ.get(name)
    if driver is None:
        return Check(name, None, "There are no NVIDIA GPUs to be visible.")
    if setting is None:
        return Check(name, True, "Not set: every GPU is used.")
    allowed = [uuid for entry in driver.entries for uuid in entry]
    wanted = [part for part in setting.split(",") if part.strip()]
    detail = f"{setting!r} allows {len(allowed)} of {len(driver.uuids)} GPU(s)."
    if allowed and len(driver.entries) == len(wanted):
        return Check(name, True, detail)
    known = ", ".join(driver.uuids)
    return Check(name, False, detail, f"Unset it, or name GPUs that there are: {known}.")


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, e.g. ``(2, 13, 0)`` of ``2.13.0+cu130``."""
    match = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(map(int, match.group().split("."))) if match else ()
