"""Taking device memory back and restoring it, beside the least it could cost.

The plain copy moves the same bytes by the same path into memory never touched before: a write to a
file in the same folder and a copy out of its mapping on simulated GPUs, a copy to host memory and
back elsewhere (page-locked on CUDA). `out_speed` and `back_speed` are its time by ours: 0.8 is the
aim. Every case runs in a process of its own (not with --quick); the two take turns, and the least
time of each counts. ``emu`` is the emulated accelerator of the tests, host memory that passes for a
device: its figures tell of the engine's own cost, not of any GPU. Rows for ``cuda`` are there where
a GPU is; nothing of them has been proven without one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CASES = ("one storage", "10,000 storages", "transformer with Adam")
MARK = "reclaim-rows: "
CAPACITY_SHARE = 3
TIMEOUT_S = 1200


class Bench:
    """Runs the measurements in processes that see their device."""

    def __init__(self, folder: str, nbytes: int, turns: int) -> None:
        self.folder, self.nbytes, self.turns = folder, nbytes, turns
        self.rows: list[dict[str, Any]] = []

    def device(self, device: str, *, apart: bool) -> None:
        """Measure all cases on a device, each in a process of its own or all in one."""
        common = {"device": device, "folder": self.folder, "turns": self.turns}
        calls: list[dict[str, Any]] = [
            {"work": "cost", "case": case, "nbytes": self.nbytes, **common} for case in CASES
        ]
        calls.append({"work": "lazy", "nbytes": self.nbytes, **common})
        calls.append({"work": "enumeration", "device": device, "turns": self.turns})
        for some in [[c] for c in calls] if apart else [calls]:
            self.run(device, some)
        if device == "cuda":
            for warmed in (False, True):
                self.run(device, [{"work": "first_launch", "device": device, "warmed": warmed}])

    def run(self, device: str, calls: list[dict[str, Any]]) -> None:
        """Run measurements in one process and keep their rows."""
        done = subprocess.run(
            [sys.executable, "-m", "reclaim_cases.worker", json.dumps(calls)],
            env=self.environ(device),
            cwd=HERE,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        lines = [x for x in done.stdout.splitlines() if x.startswith(MARK)]
        if done.returncode or not lines:
            sys.exit(f"{calls} failed ({done.returncode}):\n{done.stderr[-3000:]}")
        rows = json.loads(lines[-1].removeprefix(MARK))
        self.rows += rows
        for r in rows:
            print(*(r[k] for k in ("device", "case", "method", "metric")), r["value"], r["unit"])

    def environ(self, device: str) -> dict[str, str]:
        """Return the environment in which a process has such a device."""
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)])}
        if device != "emu":
            return environ
        from emulators.accelerator import Devices

        capacity = max(CAPACITY_SHARE * self.nbytes, 1 << 30)
        return Devices(Path(self.folder) / "ledger", (capacity,)).environ(environ)


def devices(wanted: list[str]) -> list[str]:
    """Return which of the devices are here; says aloud why one is not."""
    found = []
    for device in wanted:
        if device == "emu":
            sys.path.insert(0, str(ROOT / "tests"))
            from emulators.accelerator import NoCompilerError, build

            try:
                build()
            except NoCompilerError as error:
                print(f"emu is left out: {error}")
                continue
        elif device == "cuda":
            import torch

            if not torch.cuda.is_available():
                print("cuda is left out: there is no GPU here")
                continue
        found.append(device)
    return found


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows."""
    table = Table(title="Reclaim in place (emu: emulated in host memory, no GPU)")
    for name in ("case", "device", "method", "metric"):
        table.add_column(name)
    table.add_column("least", justify="right")
    for r in rows:
        value = f"{r['value']:.3f} {r['unit']}"
        table.add_row(r["case"], r["device"], r["method"], r["metric"], value)
    Console(width=110).print(table)


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="PATH", help="write the rows to PATH")
    parser.add_argument(
        "--quick", action="store_true", help="few bytes, one turn, one process per device"
    )
    parser.add_argument("--gb", type=float, help="bytes of each case in 1e9; 4 by default")
    parser.add_argument("--turns", type=int, help="turns of each case; 3 by default")
    parser.add_argument("--folder", help="where to spill; a temporary folder by default")
    parser.add_argument(
        "--devices", nargs="+", default=["simulated", "emu", "cuda"], help="what to measure on"
    )
    arguments = parser.parse_args()
    gb = arguments.gb or (0.1 if arguments.quick else 4.0)
    turns = arguments.turns or (1 if arguments.quick else 3)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        bench = Bench(folder, int(gb * 1e9), turns)
        for device in devices(arguments.devices):
            bench.device(device, apart=not arguments.quick)
    show(bench.rows)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(bench.rows, indent=1))


if __name__ == "__main__":
    main()
