"""Finds out what this machine's driver really does with whole processes, by one to try it on."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..core.model import GIB, GpuStatus
from ..core.sizes import format_bytes
from ..errors import DeviceError, GpuPredictError
from .cuda_checkpoint import CudaCheckpoint, Outcome
from .cuda_checkpoint_proof import Proof

PROBE = Path(__file__).with_name("cuda_checkpoint_probe.py")
SIZE = GIB
"""Device memory of the process that is tried, as far as half of what is free suffices."""

READY_S = 180.0
"""For importing torch and starting CUDA, and for any answer."""

LOCK_S = 30.0

_PYTHON = "name an interpreter that has it (--python)"


@dataclass(frozen=True, slots=True)
class Tried:
    """What was tried, whether it worked (``None``: not tried) and what was seen."""

    what: str
    ok: bool | None
    said: str
    gpu: str = ""
    """Name of the kind of GPU that it was tried on."""


@dataclass
class _Findings:
    tried: list[Tried] = field(default_factory=list)
    out_s_per_gib: list[float] = field(default_factory=list)
    back_s_per_gib: list[float] = field(default_factory=list)

    def all_ok(self, what: str) -> bool:
        results = [t.ok for t in self.tried if t.what == what and t.ok is not None]
        return bool(results) and all(results)

    def moved(self) -> tuple[str, ...]:
        """Return the kinds of GPU on which a process came back on another one."""
        return tuple(t.gpu for t in self.tried if t.what == MOVE and t.ok)

    def took(self, out: Outcome, back: Outcome) -> None:
        gib = max(out.bytes, 1) / GIB
        self.out_s_per_gib.append(out.seconds.get("checkpoint", 0.0) / gib)
        self.back_s_per_gib.append(back.seconds.get("restore", 0.0) / gib)


BETWEEN, MID_CELL, MOVE = "between cells", "in the middle of a cell", "to another GPU"


async def prove(
    checkpoints: CudaCheckpoint,
    gpus: Sequence[GpuStatus],
    driver_version: str,
    *,
    python: str = sys.executable,
    device: str = "cuda",
    environ: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.time,
) -> tuple[Proof, tuple[Tried, ...]]:
    """Suspend and resume a process on one GPU of each kind, and return what worked.

    Nobody else's process is touched. What fails is in the proof as not proven.

    Parameters
    ----------
    python
        Interpreter with torch.
    device
        Type of torch device that the GPUs are.

    Raises
    ------
    DeviceError
        If there is no GPU to try it on, or no process could be started on one.
    """
    by_name: dict[str, list[GpuStatus]] = {}
    for gpu in gpus:
        if not gpu.lost:
            by_name.setdefault(gpu.name, []).append(gpu)
    if not by_name:
        raise DeviceError("There is no GPU to try a driver checkpoint on; `nvidia-smi` lists them.")
    findings, way = _Findings(), ""
    for alike in by_name.values():
        alike.sort(key=_free_bytes, reverse=True)
        trial = _Trial(checkpoints, findings, alike, python=python, device=device, environ=environ)
        way = await trial.run() or way
    proof = Proof(
        driver_version=driver_version,
        way=way,
        gpus=tuple(by_name),
        between_cells=findings.all_ok(BETWEEN),
        mid_cell=findings.all_ok(MID_CELL),
        move=findings.moved(),
        out_s_per_gib=max(findings.out_s_per_gib, default=0.0),
        back_s_per_gib=max(findings.back_s_per_gib, default=0.0),
        made_s=clock(),
    )
    return proof, tuple(findings.tried)


def _free_bytes(gpu: GpuStatus) -> int:
    return gpu.total_bytes - (gpu.used_bytes or 0)


class _Trial:
    """One process on the emptiest GPU of one kind, taken off it again and again."""

    def __init__(
        self,
        checkpoints: CudaCheckpoint,
        findings: _Findings,
        alike: Sequence[GpuStatus],
        *,
        python: str,
        device: str,
        environ: Mapping[str, str] | None,
    ) -> None:
        self._checkpoints, self._findings = checkpoints, findings
        self._gpu = alike[0]
        self._other = alike[1] if len(alike) > 1 else None
        self._python, self._device = python, device
        self._environ = dict(os.environ if environ is None else environ)
        self._id = f"proof-{self._gpu.uuid}"

    async def run(self) -> str:
        """Try everything and return the way by which the driver was called."""
        size = min(SIZE, _free_bytes(self._gpu) // 2)
        async with self._probe(size) as probe:
            found = await self._checkpoints.assess(self._id, probe.pid)
            if found.refusal is not None:
                self._note(BETWEEN, False, found.refusal.message)
                return found.way
            if await self._try(BETWEEN, lambda: self._between_cells(probe, size)):
                await self._try(MID_CELL, lambda: self._mid_cell(probe))
                if self._other is None:
                    self._note(MOVE, None, f"There is one {self._gpu.name} only.")
                else:
                    await self._try(MOVE, lambda: self._move(probe))
        self._checkpoints.forget(self._id)
        return found.way

    async def _between_cells(self, probe: _Probe, size: int) -> str:
        out = await self._checkpoints.suspend(self._id, probe.pid, lock_timeout_s=LOCK_S)
        back = await self._checkpoints.resume(self._id)
        if out.bytes < size or out.left_bytes:
            raise DeviceError(
                f"Of {format_bytes(size)} and more, {format_bytes(out.bytes)} were taken off the "
                f"GPU and {format_bytes(out.left_bytes)} stayed."
            )
        await probe.expect("check", "right")
        self._findings.took(out, back)
        return f"{format_bytes(out.bytes)} out and back, every byte the same."

    async def _mid_cell(self, probe: _Probe) -> str:
        await probe.expect("work", "working")
        out = await self._checkpoints.suspend(self._id, probe.pid, lock_timeout_s=LOCK_S)
        if out.left_bytes:
            raise DeviceError(f"{format_bytes(out.left_bytes)} stayed on the GPU.")
        await self._checkpoints.resume(self._id)
        await probe.expect("stop", "right")
        return "No launch was lost or done twice, and every byte is the same."

    async def _move(self, probe: _Probe) -> str:
        assert self._other is not None  # noqa: S101
        for source, target in ((self._gpu, self._other), (self._other, self._gpu)):
            await self._checkpoints.suspend(
                self._id, probe.pid, lock_timeout_s=LOCK_S, to_other_gpu=True
            )
            await self._checkpoints.resume(self._id, gpu_map={source.uuid: target.uuid})
            await probe.expect("check", "right")
        return f"To GPU {self._other.uuid} and back, every byte the same."

    async def _try(self, what: str, trial: Callable[[], Awaitable[str]]) -> bool:
        try:
            said = await trial()
        except GpuPredictError as error:
            self._note(what, False, str(error))
            return False
        self._note(what, True, said)
        return True

    def _note(self, what: str, ok: bool | None, said: str) -> None:
        name = self._gpu.name
        self._findings.tried.append(Tried(what, ok, f"{name}: {said}", name))

    @asynccontextmanager
    async def _probe(self, size: int) -> AsyncIterator[_Probe]:
        try:
            process = await asyncio.create_subprocess_exec(
                self._python,
                # Not by its path: the folder it is in would be searched for what torch imports.
                "-c",
                PROBE.read_text(encoding="utf-8"),
                self._device,
                str(size),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**self._environ, "CUDA_VISIBLE_DEVICES": self._gpu.uuid},
            )
        except OSError as error:
            raise DeviceError(f"{self._python} cannot be run: {error} ({_PYTHON}).") from error
        probe = _Probe(process)
        try:
            await probe.hear("ready")
            yield probe
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


class _Probe:
    """The process that is tried."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    async def expect(self, word: str, wanted: str) -> None:
        """Say a word and hear the answer that means that all is well.

        Raises
        ------
        DeviceError
            If it is another one, or none.
        """
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.write(f"{word}\n".encode())
        await self._process.stdin.drain()
        await self.hear(wanted)

    async def hear(self, wanted: str) -> None:
        """Hear an answer; see `expect`."""
        assert self._process.stdout is not None  # noqa: S101
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), READY_S)
        except asyncio.TimeoutError:
            raise DeviceError(
                f"The process that was tried did not answer within {READY_S:g} s."
            ) from None
        said = line.decode().strip()
        if said == wanted:
            return
        if said:
            raise DeviceError("The process that was tried found other bytes than it had before.")
        assert self._process.stderr is not None  # noqa: S101
        told = (await self._process.stderr.read()).decode(errors="replace").strip().splitlines()
        raise DeviceError(
            f"The process that was to be tried ended: {told[-1] if told else 'it said nothing'}. "
            f"It needs torch with these GPUs: {_PYTHON}."
        )
