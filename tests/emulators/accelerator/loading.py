"""Registers the accelerator with torch in this process."""

from __future__ import annotations

import atexit
import importlib.util
import os
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from .build import NAME, build
from .devices import Settings, read_settings

TYPE = "emu"


def load(settings: Settings | None = None) -> ModuleType:
    """Register the device type ``emu`` and return the module that is ``torch.emu`` from then on.

    A second call returns the same module; with `settings`, and before the first use of a device,
    it sets the devices anew.
    """
    import torch

    present = getattr(torch, TYPE, None)
    if present is not None:
        if settings is not None:
            _configure(present.native, settings)
        return present  # type: ignore[no-any-return]
    native = _native(build())
    _configure(native, settings or read_settings(os.environ))
    torch.utils.rename_privateuse1_backend(TYPE)
    from . import backend

    backend.native = native
    torch._register_device_module(TYPE, backend)
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    return backend


def autoload() -> None:
    """Let ``import torch`` register the device (torch's entry point ``torch.backends``)."""
    load()


def _native(library: Path) -> Any:
    spec = importlib.util.spec_from_file_location(NAME, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _configure(native: Any, settings: Settings) -> None:
    ledger = settings.ledger
    if ledger is None:
        # Nobody else can name this file, so the devices are this process's alone.
        file, ledger = tempfile.mkstemp(prefix="emulated-accelerator-", suffix=".ledger")
        os.close(file)
        atexit.register(_remove, ledger, os.getpid())
    native.configure(
        ledger,
        list(settings.ledger_devices),
        list(settings.capacities),
        settings.context_bytes,
        settings.poison,
    )


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:
        Path(path).unlink(missing_ok=True)
