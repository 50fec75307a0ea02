"""Taking device memory back and restoring it, beside the least it could cost.

The plain copy moves the same bytes by the same path into memory never touched before: a write to a
file in the same folder and a copy out of its mapping on simulated GPUs, a copy to host memory and
back elsewhere (page-locked on CUDA). `out_speed` and `back_speed` are its time by ours: 0.8 is the
aim. Ours also gives the memory back to the system meanwhile, in a thread: on busy processors that
counts against it. Every case runs in a process of its own (not with --quick); the two take turns,
and the least time of each counts. ``emu`` is the emulated accelerator of the tests, host memory
that passes for a device: its figures tell of the engine's own cost, not of any GPU. Rows for
``cuda`` are there where a GPU is; nothing of them has been proven without one. The first launch of
a kernel, cold and pre-bound, is among these only: the emulated device has no context to make.

The random sequences are those of ``tests/emulators/machine/random_sequences.py``: reclaims,
restores and moves of eight kernels on four emulated GPUs that are too small for them.
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

from jupyter_gpu_predict.kernel.offload.host_memory import host_memory

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CASES = ("one storage", "10,000 storages", "transformer with Adam")
MARK = "reclaim-rows: "
SEQUENCES = ROOT / "tests" / "emulators" / "machine" / "random_sequences.py"
COPIES = 3
"""What is held, its host copy, and the fresh memory it comes back to, or a plain copy of it."""
TIMEOUT_S = 3600


class Bench:
    """Runs the measurements in processes that see their device."""

    def __init__(self, folder: str, nbytes: int, turns: int) -> None:
        self.folder, self.nbytes, self.turns = folder, nbytes, turns
        self.rows: list[dict[str, Any]] = []

    def measure(self, devices: list[str], *, apart: bool) -> None:
        """Measure all cases, each in a process of its own or all of them, but a GPU's, in one."""
        emulated = [call for d in devices if d != "cuda" for call in self.calls(d)]
        real = self.calls("cuda") if "cuda" in devices else []
        for calls in emulated, real:
            for some in [[c] for c in calls] if apart else [calls] * bool(calls):
                self.run(some)
        if real:
            for warmed in (False, True):
                self.run([{"work": "first_launch", "device": "cuda", "warmed": warmed}])

    def calls(self, device: str) -> list[dict[str, Any]]:
        """Return what is to be measured on a device."""
        common = {"device": device, "turns": self.turns}
        moved = {**common, "folder": self.folder, "nbytes": self.fitting(device)}
        return [
            *({"work": "cost", "case": case, **moved} for case in CASES),
            {"work": "lazy", **moved},
            {"work": "enumeration", **common},
        ]

    def fitting(self, device: str) -> int:
        """Return the bytes of a case, fewer than wanted where this machine's memory is short."""
        room = host_memory().room_bytes // (1 if device == "cuda" else COPIES)
        if room < self.nbytes:
            print(f"{device}: {room / 1e9:.2g} GB instead of {self.nbytes / 1e9:.2g} GB: this host")
        return min(room, self.nbytes)

    def run(self, calls: list[dict[str, Any]]) -> None:
        """Run measurements in one process and keep their rows."""
        done = subprocess.run(
            [sys.executable, "-m", "reclaim_cases.worker", json.dumps(calls)],
            env=self.environ({call["device"] for call in calls}),
            cwd=HERE,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        lines = [x for x in done.stdout.splitlines() if x.startswith(MARK)]
        if done.returncode or not lines:
            sys.exit(f"{calls} failed ({done.returncode}):\n{done.stderr[-3000:]}")
        self.note(json.loads(lines[-1].removeprefix(MARK)))

    def note(self, rows: list[dict[str, Any]]) -> None:
        """Keep rows, and print them at once: a whole run takes long."""
        self.rows += rows
        for r in rows:
            print(*(r[k] for k in ("device", "case", "method", "metric")), r["value"], r["unit"])

    def sequences(self, count: int) -> None:
        """Run random sequences and keep what must be nought; each fault is printed."""
        done = subprocess.run(
            [sys.executable, SEQUENCES, "--sequences", str(count)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if not done.stdout:
            sys.exit(f"the random sequences failed ({done.returncode})")
        result = json.loads(done.stdout)
        for fault in result["faults"]:
            print(fault)
        case = f"random sequences, {result['kernels']} kernels, {result['gpus']} GPUs"
        self.note([
            {
                "case": case, "device": "emu", "method": "reclaim, restore, move",
                "metric": metric, "value": result[metric], "unit": "",
            }
            for metric in ("sequences", "lost_bytes", "dead_kernels", "capacity_violations")
        ])  # fmt: skip

    def environ(self, devices: set[str]) -> dict[str, str]:
        """Return the environment in which a process has such devices."""
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)])}
        if "emu" not in devices:
            return environ
        from emulators.accelerator import Devices

        capacity = max(COPIES * self.nbytes, 1 << 30)
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
        value = f"{r['value']:.3f} {r['unit']}" if r["unit"] else str(r["value"])
        table.add_row(r["case"], r["device"], r["method"], r["metric"], value)
    Console(width=110).print(table)


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="PATH", help="write the rows to PATH")
    parser.add_argument(
        "--quick", action="store_true", help="few bytes, one turn, one process, one sequence"
    )
    parser.add_argument("--gb", type=float, help="bytes of each case in 1e9; 4 by default")
    parser.add_argument("--turns", type=int, help="turns of each case; 3 by default")
    parser.add_argument("--sequences", type=int, help="random sequences; 200 by default")
    parser.add_argument("--folder", help="where to spill; a temporary folder by default")
    parser.add_argument(
        "--devices", nargs="+", default=["simulated", "emu", "cuda"], help="what to measure on"
    )
    arguments = parser.parse_args()
    gb = arguments.gb or (0.1 if arguments.quick else 4.0)
    turns = arguments.turns or (1 if arguments.quick else 3)
    sequences = (
        (1 if arguments.quick else 200) if arguments.sequences is None else arguments.sequences
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        bench = Bench(folder, int(gb * 1e9), turns)
        found = devices(arguments.devices)
        bench.measure(found, apart=not arguments.quick)
        if sequences and "emu" in found:
            bench.sequences(sequences)
    show(bench.rows)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(bench.rows, indent=1))


if __name__ == "__main__":
    main()
