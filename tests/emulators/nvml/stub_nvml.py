"""Builds the stub NVML library and talks to a process in which the real pynvml has loaded it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from emulators.compiling import compile_library

HERE = Path(__file__).resolve().parent
SOURCES = (HERE / "nvml_stub.c", HERE / "nvml_health.c", HERE / "nvml_mig.c")
HEALTHY: dict[str, Any] = {
    "name": "Stub GPU",
    "total": 1 << 30,
    "used": 100 << 20,
    "reserved": 24 << 20,
    "load": 37,
    "temperature": 55,
    "temperature_limit": 90,
    "power_mw": 125_500,
    "energy_mj": 7_250_500,
    "processes": "100:4096,101:8192",
    "ecc_corrected": 3,
    "ecc_uncorrected": 0,
    "remapped": "1,0,0,0",
    "retired_single": 0,
    "retired_double": 0,
    "retired_pending": 0,
    "reasons": 0,
    "recovery_action": 0,
    "pcie_replays": 2,
    "xids": "",
}


def build(folder: Path, *, old: bool = False) -> Path | None:
    """Compile the library into `folder` and return that; ``None`` if there is no compiler."""
    options = ["-DNVML_STUB_OLD"] if old else []
    return folder if compile_library(folder / "libnvidia-ml.so.1", SOURCES, *options) else None


class StubNvml:
    """A state file and, once asked for, a process that reads GPUs through it."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.path = folder / "nvml_state.txt"
        self._library = library
        self._process: subprocess.Popen[str] | None = None
        self._values: dict[str, Any] = {"driver": "580.1", "cuda": 13000, "count": 2}
        for i in range(2):
            self._values[f"gpu.{i}.uuid"] = f"GPU-{i}"
            self._values |= {f"gpu.{i}.{name}": value for name, value in HEALTHY.items()}
        self._write()

    @property
    def environ(self) -> dict[str, str]:
        """Environment for a process that is to load the stub."""
        path = os.pathsep.join([str(self._library), os.environ.get("LD_LIBRARY_PATH", "")])
        return {
            **{k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"},
            "LD_LIBRARY_PATH": path.rstrip(os.pathsep),
            "NVML_STUB_STATE": str(self.path),
        }

    def set(self, values: dict[str, Any]) -> None:
        """Change values of the state file; ``None`` takes one out."""
        merged = self._values | values
        self._values = {key: value for key, value in merged.items() if value is not None}
        self._write()

    def ask(self, **command: Any) -> Any:
        """Send a command to `probe.py` and return its answer."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "probe.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self.environ,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"probe.py ended at {command}"
        return json.loads(line)

    def read(self) -> list[dict[str, Any]]:
        """Return the status of every GPU as plain data."""
        return self.ask(do="read")

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._process.stdout.close()

    def _write(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_text("".join(f"{key} {value}\n" for key, value in self._values.items()))
        part.replace(self.path)
