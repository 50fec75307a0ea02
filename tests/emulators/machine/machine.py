"""The machine: its libraries, its environment, and what is known of its GPUs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from emulators.accelerator import Devices, NoCompilerError, build
from emulators.checkpoint import stub_cuda
from emulators.nvml.stub_nvml import HEALTHY

MIB = 1 << 20
NAME = "Emulated GPU (host memory)"
DEVICE_GONE = 15  # NVML_ERROR_GPU_IS_LOST


class EmulatedMachine(stub_cuda.StubCuda):
    """GPUs of equal make that every process with `variables` in its environment finds.

    `script` lets the driver's checkpoint calls fail for a process, `set_nvml` changes what NVML
    says, `calls` tells which checkpoint calls were made.

    Parameters
    ----------
    folder
        Folder for libraries, ledger and state files.
    gpus
        How many GPUs.
    capacity
        Bytes of each.
    context_bytes
        What a process takes of a GPU before its first tensor.
    poison
        Overwrite freed blocks, so that a read of freed memory shows.

    Raises
    ------
    NoCompilerError
        If there is no compiler to build the stand-ins with.
    """

    OPTIONS: Mapping[str, object] = {
        "GpuPredict.device_backend": "nvml",
        "GpuPredict.torch_device": "emu",
    }
    """Options of a server on this machine."""

    def __init__(
        self,
        folder: Path,
        *,
        gpus: int = 2,
        capacity: int = 256 * MIB,
        context_bytes: int = 0,
        poison: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        libraries = folder / "libraries"
        libraries.mkdir(exist_ok=True)
        build()
        if stub_cuda.build(libraries) is None:
            raise NoCompilerError(
                "no C compiler (cc) to build the stand-ins for the driver's libraries with; "
                "install one"
            )
        super().__init__(libraries, folder, gpus=0)
        self.devices = Devices(folder / "ledger", (capacity,) * gpus, context_bytes, poison)
        self.set_nvml(self.devices.nvml_values({**HEALTHY, "name": NAME}))

    @property
    def uuids(self) -> tuple[str, ...]:
        """UUID of each GPU."""
        return self.devices.uuids

    @property
    def environ(self) -> dict[str, str]:
        """Environment for a process on this machine that sees all of its GPUs."""
        return self.devices.environ(super().environ)

    @property
    def variables(self) -> dict[str, str]:
        """What `environ` has beyond this process's own environment."""
        return {k: v for k, v in self.environ.items() if os.environ.get(k) != v}

    def used(self, gpu: int = 0) -> int:
        """Return the bytes in use on a GPU."""
        return self.devices.used(gpu)

    def on(self, gpu: int) -> list[int]:
        """Return the pids on a GPU."""
        return list(self.devices.holders(gpu))

    def state(self, pid: int) -> str | None:
        """Return what the driver does with a process; ``None`` if it has not used a GPU."""
        return self.devices.state(pid)

    def set_lost(self, gpu: int, lost: bool = True) -> None:
        """Let a GPU fall off the bus, for its processes and for NVML, or bring it back."""
        self.devices.set_lost(gpu, lost)
        self.set_nvml({f"gpu.{gpu}.error.*": DEVICE_GONE if lost else 0})
