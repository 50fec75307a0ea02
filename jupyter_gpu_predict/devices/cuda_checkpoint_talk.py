"""Talks to the helper process, and ends it when a call to the driver takes too long."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from .cuda_checkpoint_steps import Step

MODULE = "jupyter_gpu_predict.devices.cuda_checkpoint_helper"
_LINE_BYTES = 16 << 20
_TOLD_BYTES = 500

Hear = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the helper is waited for, in seconds, before it is killed.

    Attributes
    ----------
    start_s
        For Python, the driver's library and ``cuInit``.
    look_s
        For NVML and the states of all processes.
    state_s
        For one state, and for everything else that is quick.
    lock_grace_s
        For a lock, beyond the time limit that the driver itself is given.
    copy_s, slowest_bytes_per_s
        For a checkpoint or restore: the first and the process's bytes at the second.
    kill_s
        For the end of a killed helper; one that hangs in the kernel's driver does not die.
    """

    start_s: float = 60.0
    look_s: float = 30.0
    state_s: float = 15.0
    lock_grace_s: float = 15.0
    copy_s: float = 60.0
    slowest_bytes_per_s: float = 0.2e9
    kill_s: float = 10.0

    def of_step(self, step: str, lock_timeout_s: float, size: int) -> float:
        """Return the limit of one call; `size` is the process's device memory in bytes."""
        if step == Step.LOCK.value:
            return lock_timeout_s + self.lock_grace_s
        if step in (Step.CHECKPOINT.value, Step.RESTORE.value):
            return self.copy_s + size / self.slowest_bytes_per_s
        return self.state_s


class HelperDiedError(Exception):
    """The helper ended, or was ended, before it was done.

    `why` is ``"died"``, ``"overrun"`` or ``"undead"`` (killed, but it does not end); `step` is the
    driver's call that it was in.
    """

    def __init__(self, why: str, message: str, step: str | None = None) -> None:
        super().__init__(message)
        self.why, self.step = why, step


class Helper:
    """A helper process; use `open` to start one, and always `close` it."""

    def __init__(self, process: asyncio.subprocess.Process, log: IO[bytes], limits: Limits) -> None:
        self._process = process
        self._log = log
        self._limits = limits
        self._undead = False

    @classmethod
    async def open(
        cls, *, way: str, limits: Limits, python: str, environ: Mapping[str, str] | None
    ) -> Helper:
        """Start a helper and wait until the driver's library is loaded in it.

        Raises
        ------
        HelperDiedError
            If it is not ready in time.
        """
        environment = dict(os.environ if environ is None else environ)
        # The driver wants maps of all GPUs, and `cuInit` fails where none is visible.
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        # Not a `with`: the file lives as long as the process that writes to it.
        log = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            process = await asyncio.create_subprocess_exec(
                python,
                "-m",
                MODULE,
                way,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=environment,
                # `-m` puts this folder on the path: the package is found wherever it lies.
                cwd=Path(__file__).resolve().parents[2],
                limit=_LINE_BYTES,
                # Ctrl-C in the server's terminal is not meant for a kernel that is half suspended.
                start_new_session=True,
            )
        except OSError as error:
            log.close()
            raise HelperDiedError("died", f"The helper could not be started: {error}.") from error
        helper = cls(process, log, limits)
        try:
            await helper._read(limits.start_s, "start")
        except BaseException:
            await helper.kill()
            await helper.close()
            raise
        return helper

    async def ask(
        self,
        order: Mapping[str, Any],
        *,
        first_s: float,
        hear: Hear | None = None,
        limit_s: Callable[[Mapping[str, Any]], float] | None = None,
    ) -> dict[str, Any]:
        """Send an order and return its last event.

        Parameters
        ----------
        first_s
            Limit until the first line.
        hear
            Is given every line.
        limit_s
            Returns the limit until the line after this one.

        Raises
        ------
        HelperDiedError
            If the helper ends, or is killed because it is over a limit.
        """
        assert self._process.stdin is not None  # noqa: S101
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            await self._process.stdin.drain()
        left_s, doing = first_s, str(order["do"])
        while True:
            event = await self._read(left_s, doing)
            if hear is not None:
                hear(event)
            if event["event"] == "end":
                return event
            if event["event"] == "begin":
                doing = str(event["step"])
            left_s = first_s if limit_s is None else limit_s(event)

    async def close(self) -> None:
        """End the helper; it ends by itself unless a call of the driver keeps it."""
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.close()
        try:
            if not self._undead:
                await asyncio.wait_for(self._process.wait(), self._limits.state_s)
        except (TimeoutError, asyncio.TimeoutError):
            await self.kill()
        finally:
            self._log.close()

    async def kill(self) -> bool:
        """Kill the helper and return whether it is dead."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        try:
            await asyncio.wait_for(self._process.wait(), self._limits.kill_s)
        except (TimeoutError, asyncio.TimeoutError):
            self._undead = True
            return False
        return True

    async def _read(self, limit_s: float, doing: str) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), limit_s)
        except (TimeoutError, asyncio.TimeoutError):
            dead = await self.kill()
            text = f"The driver took longer than {limit_s:g} s ({doing}); the helper was killed"
            if dead:
                raise HelperDiedError("overrun", f"{text}.", doing) from None
            raise HelperDiedError("undead", f"{text}, and does not end.", doing) from None
        if not line.endswith(b"\n"):
            await self.kill()
            raise HelperDiedError("died", f"The helper ended ({doing}). {self._told()}", doing)
        event: dict[str, Any] = json.loads(line)
        return event

    def _told(self) -> str:
        """Return how the helper ended and the end of what it printed."""
        code = self._process.returncode
        ended = f"signal {-code}" if code is not None and code < 0 else f"exit {code}"
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _TOLD_BYTES))
        said = self._log.read().decode(errors="replace").strip().splitlines()
        return f"{ended}{': ' + said[-1] if said else ''}."


@dataclass(frozen=True, slots=True)
class Means:
    """What helpers are started with; see `cuda_checkpoint.CudaCheckpoint`."""

    way: str = "auto"
    limits: Limits = field(default_factory=Limits)
    python: str = sys.executable
    environ: Mapping[str, str] | None = None

    @asynccontextmanager
    async def helper(self) -> AsyncIterator[Helper]:
        """Start a helper for the length of a ``with``."""
        helper = await Helper.open(
            way=self.way, limits=self.limits, python=self.python, environ=self.environ
        )
        try:
            yield helper
        finally:
            await helper.close()
