"""Forecasts made off the event loop, by a worker process."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.forecast import content, demand_model
from ..core.forecast.content import Situation
from ..core.forecast.protocol import check_horizons
from ..core.forecast.record import forecast_from_record
from ..core.model import HORIZONS_S, CellRun, DemandSample, Forecast
from ..errors import BadInputError, ConflictError, GpuPredictError
from .forecast_request import Request, prepare

PACKAGE_PARENT = Path(__file__).resolve().parents[2]
"""Folder the worker runs in: there ``-m`` finds this very package, and no file of the user's."""

WORKER = (sys.executable, "-m", "jupyter_gpu_predict.control.forecast_worker")

MODEL_KINDS = (demand_model.KIND, content.NAME)

MAX_ANSWER_BYTES = 1 << 20

MAX_DETAILS = 1000


@dataclass(frozen=True, slots=True)
class Details:
    """What a refresh has to say beyond its forecast.

    `notes` are plain sentences (a model that was not fitted, and why), `cpu_s` is the worker's
    processor time for this refresh, `scored` tells whether the models were backtested anew.
    """

    notes: tuple[str, ...]
    cpu_s: float
    scored: bool


@dataclass(slots=True)
class _Slot:
    """The requests of one kernel: one under way, at most one that waits."""

    request: Request | None = None
    answer: asyncio.Future[Forecast] | None = None
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Process:
    """One life of the worker."""

    process: asyncio.subprocess.Process
    folder: str
    progress_s: float
    pending: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    readers: list[asyncio.Task[None]] = field(default_factory=list)
    lost: str | None = None

    def last_words(self) -> str:
        return self.errors[-1] if self.errors else "it wrote no error"


class ForecastWorker:
    """The port :class:`.ports.Forecasting`, served by one low-priority process.

    The process starts with the first refresh, and again with the next one after it died or hung.
    Refreshes of many kernels may be under way at once; of one kernel there is one under way and
    at most one that waits, with the newest records (earlier waiters get its answer too). All
    methods belong to one event loop.

    Parameters
    ----------
    timeout_s
        The worker hangs if it has something to do and answers nothing for so long.
    start_timeout_s
        Time it may take to start (importing Prophet takes 1-2 s on an idle machine).
    horizons_s
        Horizons of the forecasts in seconds.
    command
        What to start instead of this package's worker, e.g. under a resource limiter.
    model_file
        Tells which file holds the learned model of a kind that may serve, ``None`` if there is
        none; asked at each refresh, so that another one is taken over without a restart.
    """

    def __init__(
        self,
        *,
        timeout_s: float = 30.0,
        start_timeout_s: float = 60.0,
        horizons_s: Sequence[int] = HORIZONS_S,
        command: Sequence[str] = WORKER,
        model_file: Callable[[str], Path | None] = lambda _: None,
    ) -> None:
        self._timeout_s = timeout_s
        self._start_timeout_s = start_timeout_s
        self._horizons_s = check_horizons(horizons_s)
        self._model_file = model_file
        self._command = (*command, str(max(timeout_s, start_timeout_s) * 2))
        self._slots: dict[str, _Slot] = {}
        self._details: dict[str, Details] = {}
        self._worker: _Process | None = None
        self._starting = asyncio.Lock()
        # Many kernels' records in small pieces at once would hold up the loop like one large piece.
        self._encoding = asyncio.Lock()
        self._number = 0
        self._failed_starts = 0
        self._retry_s = 0.0
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Process id of the worker, ``None`` while there is none."""
        worker = self._worker
        return worker.process.pid if worker and worker.lost is None else None

    def details(self, kernel_id: str) -> Details | None:
        """Return what the latest refresh of a kernel had to say, ``None`` if there was none."""
        return self._details.get(kernel_id)

    def forget(self, kernel_id: str) -> None:
        """Drop what is kept about a kernel that is gone."""
        self._details.pop(kernel_id, None)

    async def refresh(  # noqa: PLR0917 - the port's signature
        self,
        kernel_id: str,
        samples: Sequence[DemandSample],
        runs: Sequence[CellRun],
        prior_runs: Sequence[CellRun],
        basis: str,
        now_s: float,
        situation: Situation | None = None,
    ) -> Forecast:
        """Fit, backtest and forecast one kernel's demand in the worker process.

        Records older than the 1,000 steps a forecast looks at are not sent. With a `situation`, the
        notebook's content is forecast too.

        Raises
        ------
        BadInputError
            If a record, `basis` or `now_s` is malformed.
        ConflictError
            If this worker was closed.
        GpuPredictError
            If the worker died, hung or could not be started; the next call starts a new one.
        """
        self._check_open()
        models = await asyncio.to_thread(self._model_files)
        async with self._encoding:
            request = await prepare(
                kernel_id,
                samples,
                runs,
                prior_runs,
                basis,
                now_s,
                self._horizons_s,
                models,
                situation,
            )
        self._check_open()
        slot = self._slots.setdefault(kernel_id, _Slot())
        slot.request = request
        if slot.answer is None:
            slot.answer = asyncio.get_running_loop().create_future()
        if slot.task is None:
            slot.task = asyncio.create_task(self._serve(kernel_id, slot))
        return await asyncio.shield(slot.answer)

    def _model_files(self) -> dict[str, str | None]:
        files = {kind: self._model_file(kind) for kind in MODEL_KINDS}
        return {kind: None if file is None else str(file) for kind, file in files.items()}

    def _check_open(self) -> None:
        if self._closed:
            raise ConflictError("the forecast worker is closed; make a new one")

    async def close(self) -> None:
        """Stop the worker; refreshes under way fail, later ones are refused."""
        self._closed = True
        tasks = [slot.task for slot in self._slots.values() if slot.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with self._starting:
            if self._worker is not None:
                await self._end(self._worker, "it was closed")

    async def _serve(self, kernel_id: str, slot: _Slot) -> None:
        """Carry out one kernel's requests, one after the other, until none waits."""
        answer: asyncio.Future[Forecast] | None = None
        fault = "the forecast worker is closed"
        try:
            while slot.request is not None and slot.answer is not None:
                request, answer = slot.request, slot.answer
                slot.request = slot.answer = None
                try:
                    forecast = await self._ask(kernel_id, request)
                except GpuPredictError as error:
                    _fail(answer, error)
                else:
                    if not answer.done():
                        answer.set_result(forecast)
        except Exception as error:
            fault = f"unexpected {error!r}; please report it"
            raise
        finally:
            for left in (answer, slot.answer):
                if left is not None:
                    _fail(left, GpuPredictError(f"forecast of kernel {kernel_id}: {fault}"))
            self._slots.pop(kernel_id, None)

    async def _ask(self, kernel_id: str, request: Request) -> Forecast:
        worker = await self._running()
        self._number += 1
        number = self._number
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[dict[str, Any]] = loop.create_future()
        async with self._encoding:
            line = await request.line(number)
        if worker.lost is not None:
            raise _worker_failed(kernel_id, worker.lost)
        if not worker.pending:
            worker.progress_s = loop.time()
        worker.pending[number] = answered
        try:
            if worker.process.stdin is not None:
                worker.process.stdin.write(line)
            answer = await self._wait(worker, answered, kernel_id)
        finally:
            worker.pending.pop(number, None)
        error = answer.get("error")
        if error is not None:
            text = f"forecast of kernel {kernel_id}: {error['message']}"
            raise BadInputError(text) if error["reason"] == "bad_input" else GpuPredictError(text)
        while len(self._details) >= MAX_DETAILS and kernel_id not in self._details:
            del self._details[next(iter(self._details))]
        self._details[kernel_id] = Details(
            notes=tuple(answer["notes"]), cpu_s=answer["cpu_s"], scored=answer["scored"]
        )
        return replace(forecast_from_record(answer["forecast"]), notes=tuple(answer["notes"]))

    async def _wait(
        self, worker: _Process, answered: asyncio.Future[dict[str, Any]], kernel_id: str
    ) -> dict[str, Any]:
        """Wait for an answer as long as the worker answers anything at all."""
        loop = asyncio.get_running_loop()
        while not answered.done():
            left_s = worker.progress_s + self._timeout_s - loop.time()
            if left_s <= 0:
                await self._end(worker, f"it answered nothing for {self._timeout_s:g} s")
                break
            await asyncio.wait({answered}, timeout=left_s)
        if not answered.done() or answered.cancelled():
            raise _worker_failed(kernel_id, worker.lost or "it is gone")
        return answered.result()

    async def _running(self) -> _Process:
        """Return the worker, started if need be."""
        async with self._starting:
            if self._worker is not None and self._worker.lost is None:
                return self._worker
            loop = asyncio.get_running_loop()
            if loop.time() < self._retry_s:
                raise GpuPredictError(
                    f"the forecast worker could not be started {self._failed_starts} times; next "
                    f"try in {self._retry_s - loop.time():.0f} s (see `jupyter gpu doctor`)"
                )
            try:
                self._worker = await self._start()
            except GpuPredictError:
                # Importing Prophet costs seconds: a broken installation must not do it all day.
                self._failed_starts += 1
                self._retry_s = loop.time() + min(60.0, 2.0**self._failed_starts)
                raise
            self._failed_starts = 0
            return self._worker

    async def _start(self) -> _Process:
        # Stan leaves files behind when it is killed; this folder goes with the worker.
        folder = tempfile.mkdtemp(prefix="gpu-forecast-")
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=PACKAGE_PARENT,
                env={**os.environ, "TMPDIR": folder},
                limit=MAX_ANSWER_BYTES,
                # An interrupt typed into the server's terminal is not for the worker.
                start_new_session=True,
            )
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise GpuPredictError(f"the forecast worker cannot be started: {error}") from error
        loop = asyncio.get_running_loop()
        worker = _Process(process, folder, loop.time())
        ready: asyncio.Future[dict[str, Any]] = loop.create_future()
        worker.pending[0] = ready
        worker.readers = [
            asyncio.create_task(self._read_answers(worker)),
            asyncio.create_task(self._read_errors(worker)),
        ]
        try:
            await asyncio.wait({ready}, timeout=self._start_timeout_s)
            if not ready.done():
                await self._end(worker, f"it was not ready after {self._start_timeout_s:g} s")
            if ready.cancelled():
                raise GpuPredictError(f"the forecast worker cannot be started: {worker.lost}")
        except asyncio.CancelledError:
            await self._end(worker, "it was closed")
            raise
        worker.pending.pop(0)
        return worker

    async def _read_answers(self, worker: _Process) -> None:
        reason = "it died"
        try:
            stdout = worker.process.stdout
            while stdout is not None and (line := await stdout.readline()):
                message = json.loads(line)
                worker.progress_s = asyncio.get_running_loop().time()
                answered = worker.pending.get(0 if "ready" in message else message["id"])
                if answered is not None and not answered.done():
                    answered.set_result(message)
        except (ValueError, KeyError, TypeError) as error:
            reason = f"it wrote something that is no answer ({error})"
        await self._end(worker, reason)

    async def _read_errors(self, worker: _Process) -> None:
        stderr = worker.process.stderr
        # Read in pieces: a library may write a line of any length.
        while stderr is not None and (piece := await stderr.read(4096)):
            lines = piece.decode(errors="replace").splitlines()
            worker.errors.extend(line.strip()[:500] for line in lines if line.strip())

    async def _end(self, worker: _Process, reason: str) -> None:
        """Kill a worker with its fits, remove its files and fail what it owes."""
        if worker.lost is not None:
            return
        worker.lost = reason
        if self._worker is worker:
            self._worker = None
        with suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        code = await worker.process.wait()
        current = asyncio.current_task()
        readers = [task for task in worker.readers if task is not current]
        _, late = await asyncio.wait(readers, timeout=1.0) if readers else (set(), set())
        for task in late:
            task.cancel()
        if reason == "it died":
            worker.lost = f"it died with status {code}; its last words: {worker.last_words()}"
        for answered in worker.pending.values():
            answered.cancel()
        shutil.rmtree(worker.folder, ignore_errors=True)


def _worker_failed(kernel_id: str, reason: str) -> GpuPredictError:
    return GpuPredictError(
        f"forecast of kernel {kernel_id}: the forecast worker failed: {reason}; the next refresh "
        "starts a new one"
    )


def _fail(answer: asyncio.Future[Forecast], error: GpuPredictError) -> None:
    if not answer.done():
        answer.set_exception(error)
        # A caller that was cancelled never looks; that is no news for the loop's log.
        answer.exception()
