"""Builds the stub driver and NVML libraries, and writes and reads what they say.

The processes are real and idle; that they use CUDA is emulated, in a file. The helper under test
and the libraries' binary interface are real.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emulators.compiling import compile_library
from emulators.nvml import stub_nvml

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
UUIDS = tuple(f"GPU-{i:08x}-1111-2222-3333-44445555666{i}" for i in range(1, 5))
TOTAL = 1024 * MIB


def build(folder: Path, *, old: bool = False) -> Path | None:
    """Compile both libraries into `folder` and return that; ``None`` if there is no compiler."""
    options = ["-DCUDA_STUB_OLD"] if old else []
    made = compile_library(folder / "libcuda.so.1", [HERE / "cuda_stub.c"], *options)
    return stub_nvml.build(folder) if made else None


class StubCuda:
    """GPUs with processes on them, in two files that the libraries share."""

    def __init__(self, libraries: Path, folder: Path, gpus: int = 2) -> None:
        self.cuda, self.nvml = folder / "cuda_state.txt", folder / "nvml_state.txt"
        self._libraries = libraries
        self._processes: list[subprocess.Popen[bytes]] = []
        self._write(self.cuda, {"cuda": "13000"})
        values = {"driver": "580.95.05", "cuda": "13000", "count": str(gpus)}
        for i in range(gpus):
            values |= {f"gpu.{i}.uuid": UUIDS[i], f"gpu.{i}.name": "Stub H200"}
            values |= {f"gpu.{i}.total": str(TOTAL), f"gpu.{i}.used": "0", f"gpu.{i}.mig": "0"}
            values |= {f"gpu.{i}.processes": ""}
        self._write(self.nvml, values)

    @property
    def environ(self) -> dict[str, str]:
        """Environment for a process that is to load the stubs."""
        path = os.pathsep.join([str(self._libraries), os.environ.get("LD_LIBRARY_PATH", "")])
        return {
            **os.environ,
            "LD_LIBRARY_PATH": path.rstrip(os.pathsep),
            "CUDA_STUB_STATE": str(self.cuda),
            "NVML_STUB_STATE": str(self.nvml),
        }

    def start(self, size: int = 100 * MIB, gpu: int = 0, *, cuda: bool = True) -> int:
        """Start a process that does nothing, and say that it has `size` bytes on a GPU."""
        code = "import sys; sys.stdin.read()"
        process = subprocess.Popen([sys.executable, "-S", "-E", "-c", code], stdin=subprocess.PIPE)
        self._processes.append(process)
        if cuda:
            self.use_gpu(process.pid, size, gpu)
        return process.pid

    def use_gpu(self, pid: int, size: int, gpu: int = 0) -> None:
        """Say that a process has `size` bytes on a GPU."""
        self.set({f"pid.{pid}.state": "running", f"pid.{pid}.bytes": size, f"pid.{pid}.gpu": gpu})
        with self._locked(self.nvml) as values:
            key = f"gpu.{gpu}.processes"
            values[key] = ",".join(filter(None, [values[key], f"{pid}:{size}"]))
            values[f"gpu.{gpu}.used"] = str(int(values[f"gpu.{gpu}.used"]) + size)

    def set(self, values: dict[str, Any]) -> None:
        """Change values of the driver's file; ``None`` takes one out."""
        self._change(self.cuda, values)

    def script(self, pid: int, **values: Any) -> None:
        """Change what the driver does with a process: ``script(7, die__lock="after")``."""
        self.set({f"pid.{pid}.{name.replace('__', '.')}": v for name, v in values.items()})

    def set_nvml(self, values: dict[str, Any]) -> None:
        """Change values of NVML's file."""
        self._change(self.nvml, values)

    def get(self, pid: int, name: str = "state") -> str:
        """Return what the driver's file says of a process."""
        return self._read(self.cuda)[f"pid.{pid}.{name}"]

    def used(self, gpu: int = 0) -> int:
        """Return the bytes in use on a GPU."""
        return int(self._read(self.nvml)[f"gpu.{gpu}.used"])

    def on(self, gpu: int) -> list[int]:
        """Return the pids on a GPU."""
        listed = self._read(self.nvml)[f"gpu.{gpu}.processes"]
        return [int(entry.split(":")[0]) for entry in listed.split(",") if entry]

    def calls(self) -> list[tuple[str, int, int]]:
        """Return the calls that changed something or tried to, as call, pid and answer."""
        log = Path(f"{self.cuda}.log")
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return [(c, int(pid), int(code)) for c, pid, code in lines if c != "state"]

    def kill(self, pid: int) -> None:
        """Kill a process, which takes its memory with it."""
        process = next(p for p in self._processes if p.pid == pid)
        process.kill()
        process.wait()

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.kill()
            process.wait()

    def _change(self, path: Path, changes: dict[str, Any]) -> None:
        with self._locked(path) as values:
            for key, value in changes.items():
                values[key] = str(value)
                if value is None:
                    del values[key]

    @contextmanager
    def _locked(self, path: Path) -> Iterator[dict[str, str]]:
        with open(f"{self.cuda}.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            values = self._read(path)
            yield values
            self._write(path, values)

    @staticmethod
    def _read(path: Path) -> dict[str, str]:
        pairs = (line.partition(" ") for line in path.read_text().splitlines())
        return {key: value for key, _, value in pairs}

    @staticmethod
    def _write(path: Path, values: dict[str, str]) -> None:
        part = path.with_suffix(".part")
        part.write_text("".join(f"{key} {value}\n" for key, value in values.items()))
        part.replace(path)
