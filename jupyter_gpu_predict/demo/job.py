"""The main job: notebooks that want more memory than there is, and a GPU that fails half way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from ..errors import GpuPredictError
from ..server import API
from ..server.events import SCHEMA_ID
from ..store.trace_store import Store
from . import client as c
from .facts import Facts, count
from .reference import DIGESTS, Notebook, Outcome, parse_digests, run_plain
from .timeline import Timeline

OPTIONS = {
    "GpuPredict.device_backend": "simulated",
    "GpuPredict.simulated_gpus": 2,
    "GpuPredict.simulated_memory": "512MiB",
    "GpuPredict.forecast_interval_s": 5.0,
    "GpuPredict.grace_period_s": 1.0,
    "ServerApp.jpserver_extensions": "{'jupyter_gpu_predict': True, 'jupyterlab': False}",
}
READING_S = (0.1, 0.8)
"""A person's pause between two cells; shortened, so that the job fits two minutes."""

THINKING_S = (4.0, 8.0)
"""A longer pause, at every fourth cell: somebody looks at a result."""

SECOND_USER = "train_transformer.ipynb"
"""Opened twice, by two people, so that together they want more than both GPUs have."""


EMPTIED_S = 300.0
"""How long a failing GPU may take to be emptied: the cells that run there go on to their end."""

RETURNING = "analyse_frames.ipynb"
"""Opened a second time by its user at the end."""


@dataclass
class Desk:
    """One person at one notebook."""

    notebook: Notebook
    path: str
    tab: c.Notebook
    outcome: Outcome = field(default_factory=Outcome)


class Job:
    """Drives the notebooks over the server's public APIs and compares what they leave."""

    def __init__(self, folder: Path, notebooks: Sequence[Path], timeline: Timeline) -> None:
        self.folder = folder
        self.timeline = timeline
        self.root = folder / "notebooks"
        self.root.mkdir(parents=True)
        self.notebooks = [
            Notebook.read(Path(shutil.copy(path, self.root / path.name))) for path in notebooks
        ]
        self.server = c.ServerProcess(folder / "server", root=self.root, options=OPTIONS)
        self.desks: list[Desk] = []
        self.cells_done = 0
        self.lost = 0
        self.faults: list[str] = []
        self.failed_gpu: str | None = None

    async def run(self) -> Facts:
        """Run the job and return its facts."""
        began = time.time()
        self.server.start()
        references = asyncio.ensure_future(self._references())
        try:
            await self.server.ready()
            watch = asyncio.ensure_future(self._watch())
            bars = asyncio.ensure_future(self._bars())
            await self._open()
            fail = asyncio.ensure_future(self._fail_a_gpu())
            await asyncio.gather(*(self._work(desk, i) for i, desk in enumerate(self.desks)))
            await fail
            await self._come_back()
            self.timeline.say("every notebook is through; comparing state with plain kernels")
            plain = await references
            for task in (watch, bars):
                task.cancel()
        finally:
            references.cancel()
            for desk in self.desks:
                await desk.tab.close()
            await self.server.stop()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([references])
        checked, equal = self._compare(plain)
        return count(
            self._events(),
            simulated=True,
            gpus=int(str(OPTIONS["GpuPredict.simulated_gpus"])),
            kernels=len(self.desks),
            cells=self.cells_done,
            state_checked=checked,
            state_equal=equal,
            kernels_lost=self.lost,
            cells_failed=sum(len(d.outcome.failed) for d in self.desks),
            wall_s=time.time() - began,
            faults=self.faults,
        )

    # ------------------------------------------------------------------ people

    async def _open(self) -> None:
        chosen = [(n, n.path.name) for n in self.notebooks]
        for notebook in self.notebooks:
            if notebook.path.name == SECOND_USER:
                copy = f"second_user_{SECOND_USER}"
                shutil.copy(notebook.path, self.root / copy)
                chosen.append((notebook, copy))
        tabs = await asyncio.gather(*(self.server.open(path) for _, path in chosen))
        for (notebook, path), tab in zip(chosen, tabs, strict=True):
            self.desks.append(Desk(notebook, path, tab))
            self.timeline.names[tab.kernel_id] = path

    async def _work(self, desk: Desk, seed: int, *, thinks: bool = True) -> None:
        pauses = random.Random(seed)  # noqa: S311 - a person's pauses are no secret
        for number, code in enumerate(desk.notebook.cells, 1):
            execution = await desk.tab.run(code, timeout_s=180.0)
            desk.outcome.outputs.append(execution.outputs)
            if execution.status != "ok":
                desk.outcome.failed.append(code)
                self.faults.append(f"{desk.path}: a cell failed: {execution.text[-300:]}")
            self.cells_done += 1
            long = thinks and (number + seed) % 4 == 0
            await asyncio.sleep(pauses.uniform(*(THINKING_S if long else READING_S)))
        await self._look(desk)
        await self._shut_down(desk)

    async def _fail_a_gpu(self) -> None:
        """Script an uncontained ECC error on a GPU with kernels, half way through."""
        total = sum(len(d.notebook.cells) for d in self.desks)
        while self.cells_done < total // 2:
            await asyncio.sleep(0.2)
        gpus = (await self.server.get(f"{API}/gpus"))["gpus"]
        busiest = max(gpus, key=lambda g: len(g["leases"]))
        self.failed_gpu = busiest["uuid"]
        self.timeline.say(f"an uncontained ECC error is scripted on {self.failed_gpu}")
        await self.server.post(f"{API}/gpus/{self.failed_gpu}/health", {"ecc_uncontained": 1})
        end = time.time() + EMPTIED_S
        while time.time() < end:
            gpu = next(
                g
                for g in (await self.server.get(f"{API}/gpus"))["gpus"]
                if g["uuid"] == self.failed_gpu
            )
            if gpu["cordoned"] and not gpu["leases"]:
                return
            await asyncio.sleep(0.3)
        self.faults.append(f"{self.failed_gpu} failed and was not emptied within {EMPTIED_S:g} s")

    async def _look(self, desk: Desk) -> None:
        execution = await desk.tab.run(
            "", timeout_s=180.0, store_history=False, user_expressions={"digests": DIGESTS}
        )
        desk.outcome.digests = parse_digests(execution.reply or {})

    async def _come_back(self) -> None:
        """Open a notebook again: what its cells took is known, so it is set aside at launch."""
        earlier = next(d for d in self.desks if d.path == RETURNING)
        self.timeline.say(f"the user of {RETURNING} comes back and runs it again")
        desk = Desk(earlier.notebook, earlier.path, await self.server.open(earlier.path))
        self.desks.append(desk)
        self.timeline.names[desk.tab.kernel_id] = desk.path
        await self._work(desk, len(self.desks), thinks=False)

    async def _shut_down(self, desk: Desk) -> None:
        """Close the notebook and its kernel, as people do who are done; but first see it lives."""
        running = {k["id"] for k in await self.server.get("api/kernels")}
        if desk.tab.kernel_id not in running or self._restarted(desk):
            self.lost += 1
            self.faults.append(f"{desk.path}: its kernel was lost")
            return
        await self.server.request("DELETE", f"api/kernels/{desk.tab.kernel_id}")

    @staticmethod
    def _restarted(desk: Desk) -> bool:
        return any(
            m["msg_type"] == "status" and m["content"]["execution_state"] in {"restarting", "dead"}
            for m in desk.tab.others
        )

    # ------------------------------------------------------------------ comparing

    async def _references(self) -> dict[str, Outcome]:
        # One after the other: the plain runs only fill what the main job leaves of the machine.
        return {n.path.name: await run_plain(n) for n in self.notebooks}

    def _compare(self, plain: dict[str, Outcome]) -> tuple[int, int]:
        """Return how many outputs and variables were compared and how many are equal."""
        checked = equal = 0
        for desk in self.desks:
            reference = plain[desk.notebook.path.name]
            for number, outputs in enumerate(reference.outputs):
                checked += 1
                mine = desk.outcome.outputs[number] if number < len(desk.outcome.outputs) else None
                if mine == outputs:
                    equal += 1
                else:
                    self.faults.append(f"{desk.path}: outputs of code cell {number + 1} differ")
            for name in sorted(reference.digests.keys() | desk.outcome.digests.keys()):
                checked += 1
                if reference.digests.get(name) == desk.outcome.digests.get(name):
                    equal += 1
                else:
                    self.faults.append(f"{desk.path}: variable {name} differs")
        return checked, equal

    def _events(self) -> list[dict[str, Any]]:
        url = f"sqlite:///{self.server.folder / 'data' / 'gpu-predict' / 'state.db'}"
        with Store(url) as store:
            return store.events(limit=100_000)

    # ------------------------------------------------------------------ watching

    async def _watch(self) -> None:
        """Show events as they come, over Jupyter's own event stream."""
        url = self.server.url.replace("http", "ws", 1) + "api/events/subscribe"
        socket = await websocket_connect(
            HTTPRequest(url, headers={"Authorization": f"token {self.server.token}"})
        )
        while (raw := await socket.read_message()) is not None:
            event = json.loads(raw)
            if event.get("schema_id") == SCHEMA_ID:
                self.timeline.event(event)

    async def _bars(self) -> None:
        total = sum(len(n.cells) for n in self.notebooks)
        while True:
            with contextlib.suppress(OSError, GpuPredictError):
                self.timeline.gpus = (await self.server.get(f"{API}/gpus"))["gpus"]
            total = sum(len(d.notebook.cells) for d in self.desks) or total
            self.timeline.progress = f"  {self.cells_done} of {total} cells run"
            await asyncio.sleep(0.5)
