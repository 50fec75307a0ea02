"""Run everyday sessions: one kernel saves and is killed, another one restores and goes on."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_client import AsyncKernelClient

HERE = Path(__file__).resolve().parent
PRELOADED = ("numpy", "pandas", "torch", "sklearn.ensemble", "matplotlib.pyplot", "ipywidgets")


@dataclass(frozen=True)
class Session:
    """What a user runs, what must hold afterwards, and with what the work goes on."""

    name: str
    cells: tuple[str, ...]
    checks: tuple[str, ...]
    later: str = ""


def sessions() -> Iterator[Session]:
    """Yield the sessions of all topics in the folder ``everyday``."""
    for path in sorted((HERE / "everyday").glob("*.py")):
        found = runpy.run_path(str(path))
        for name, (code, checks, *later) in found["SESSIONS"].items():
            yield Session(name, tuple(code.split("# %%\n")), tuple(checks), *later)


_HELPERS = """
import json, sys
from IPython import get_ipython
from jupyter_gpu_predict import snapshots as S
from jupyter_gpu_predict.kernel.state import user_names
ip = get_ipython(); space = ip.user_ns; key = b"k" * 32
store = S.open_store(ARGS["store"]) if hasattr(S, "open_store") else S.SnapshotFolder(ARGS["store"])
out = {}
def state(): return S.digests(space, user_names(ip))
def answer():
    with open(ARGS["answer"], "w") as file: json.dump(out, file)
"""
_SAVE = """
names = set(user_names(ip))
outside, out["ties"] = S.capture_outside(ip)
report = S.capture(space, store, key, name="s", now_s=1.7e9, kernel_id="k", extra=outside,
                   hidden=[n for n in space if n not in names])
out["saved"] = {v.name: [v.status, v.reason] for v in report.variables}
out["not_saved"] = report.not_saved
if ARGS["later"]: out["before"] = state()
answer()
"""
_LOAD = """
report = S.restore(store, store.find("s"), key, space, check=True)
out["faults"] = S.apply_outside(ip, report.extra)
out["loaded"] = {v.name: [v.status, v.reason] for v in report.variables}
out["not_restored"] = report.not_restored
out["stones"] = [n for n in user_names(ip) if type(space[n]) is S.Tombstone]
out["before"] = state() if ARGS["later"] else {}
answer()
"""
_CHECK = """
failed = out["failed"] = []
for check in ARGS["checks"]:
    try:
        value = eval(check, space)
        if not bool(value): failed.append(f"{check}: {value!r}")
    except Exception as error: failed.append(f"{check}: {error!r}")
answer()
"""
_LATER = """
out["after"] = state()
answer()
"""


class _Client(AsyncKernelClient):
    """A client whose patience on a busy machine is its timeout's."""

    async def _async_is_alive(self) -> bool:
        return True


class _Kernel:
    """One kernel process and its client."""

    def __init__(self, zygote: Zygote, folder: Path, name: str) -> None:
        self.client = _Client(connection_file=str(folder / f"{name}.json"), transport="ipc")
        self.client.ip = str(folder / name)
        self.client.write_connection_file()
        self._answer = folder / f"{name}.answer"
        self.pid = zygote.start(self.client.connection_file)

    async def __aenter__(self) -> _Kernel:
        self.client.start_channels()
        await self.client.wait_for_ready(timeout=60)
        return self

    async def __aexit__(self, *exception: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.client.stop_channels()

    async def run(self, code: str, **options: Any) -> None:
        ignore = {"output_hook": lambda message: None, "timeout": 100}
        reply = await self.client.execute_interactive(code, **ignore, **options)
        content = reply["content"]
        assert content["status"] == "ok", "\n".join(content["traceback"])

    async def ask(self, code: str, **arguments: Any) -> dict[str, Any]:
        scope = {"ARGS": {**arguments, "answer": str(self._answer)}}
        hidden = {"silent": True, "store_history": False}
        await self.run(f"exec({_HELPERS + code!r}, {scope!r})", **hidden)
        found: dict[str, Any] = json.loads(self._answer.read_text())
        return found


class Zygote:
    """A process that forks kernels; see ``everyday_zygote.py``."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._lock = threading.Lock()
        environment = {
            **os.environ,
            "PYTHONPATH": str(HERE.parents[1]),
            "PYTHONHASHSEED": str(seed),
            "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "agg",
            "IPYTHONDIR": str(folder / f"ipython{seed}"),
        }
        with (folder / f"zygote{seed}.err").open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "everyday_zygote.py"), *PRELOADED],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                env=environment,
                text=True,
            )

    def start(self, connection_file: str) -> int:
        """Start a kernel and return its process id."""
        with self._lock:
            self._process.stdin.write(connection_file + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the process; its kernels have been killed."""
        self._process.communicate(timeout=60)


async def go_through(session: Session, before: Zygote, after: Zygote, folder: Path) -> list[str]:
    """Save in one kernel, kill it, restore in another; return what is wrong there."""
    store = str(folder / "store")
    expected: set[str] = set()
    checks = []
    for check in session.checks:
        if check.startswith("*tombstones*"):
            expected.update(check.split()[1:])
        else:
            checks.append(check)
    async with _Kernel(before, folder, "a") as kernel:
        for cell in session.cells:
            await kernel.run(cell)
        saved = await kernel.ask(_SAVE, store=store, later=session.later)
        if session.later:
            await kernel.run(session.later)
            saved.update(await kernel.ask(_LATER, store=store))
    async with _Kernel(after, folder, "b") as kernel:
        loaded = await kernel.ask(_LOAD, store=store, later=session.later)
        loaded.update(await kernel.ask(_CHECK, store=store, checks=checks))
        if session.later:
            await kernel.run(session.later)
            loaded.update(await kernel.ask(_LATER, store=store))
    wrong: list[str] = list(loaded["failed"])
    for name, (status, reason) in loaded["loaded"].items():
        wanted = "tombstone" if name in expected else "restored"
        if status != wanted:
            wrong.append(f"{name} {status}: {reason}")
    if set(loaded["stones"]) != expected:
        wrong.append(f"tombstones: {loaded['stones']}")
    wrong += loaded["faults"] + [*saved["not_saved"], *loaded["not_restored"]] * (not expected)
    for moment in ("before", "after") if session.later else ():
        here, there = saved[moment], loaded[moment]
        wrong += [f"{moment}: {n} differs" for n in here if there.get(n) != here[n]]
        wrong += [f"{n} is opaque" for n in here if "opaque" in here[n]]
    if session.later and saved["before"] == saved["after"]:
        wrong.append("the work changed nothing")
    return wrong
