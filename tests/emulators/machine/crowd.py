"""Kernels that share emulated GPUs, each with a twin on the CPU, and what can be done to them."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from emulators.accelerator import FailedInWorkerError

from jupyter_gpu_predict.devices.cuda_checkpoint import CudaCheckpoint, Limits
from jupyter_gpu_predict.errors import CheckpointFailedError, CheckpointRefusedError

from . import actor
from .machine import MIB, EmulatedMachine
from .zygote import ForkedWorker, Zygote

MOST_BYTES = 72 * MIB
"""So much a kernel allocates at most: alone on a GPU it can always come back."""

BLOCK_BYTES = 24 * MIB

PRELOADED = (
    "emulators.machine.actor",
    "jupyter_gpu_predict.kernel.offload",
    "jupyter_gpu_predict.snapshots.capture",
    "jupyter_gpu_predict.snapshots.restore",
    "jupyter_gpu_predict.snapshots.stores",
    "torch._dynamo",  # which an optimizer's first step loads
)

PATIENT = Limits(start_s=120, look_s=120, state_s=60, lock_grace_s=60, copy_s=60)


class Kernel:
    """One kernel: its process, where it is, and its twin."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.gpu = 0
        self.worker: ForkedWorker | None = None
        self.twin: actor.Namespace = {}
        self.known: dict[str, tuple[str, int]] = {}
        self.with_driver = False

    @property
    def blocks(self) -> list[str]:
        """Names of the tensors that it allocated."""
        return [name for name in self.twin if f"{name}.view" in self.twin]

    def choose(self, what: str, dice: random.Random) -> tuple[Any, ...]:
        """Return an operation of the kind `what`, or another where that cannot be."""
        blocks = self.blocks
        if what == "grow":
            nbytes = dice.choice((dice.randint(1000, MIB), dice.randint(MIB, BLOCK_BYTES)))
            held = sum(self.twin[name].nbytes for name in blocks)
            if held + nbytes <= MOST_BYTES:
                return "grow", f"block{dice.getrandbits(48):x}", dice.getrandbits(32), nbytes
            what = "free"
        if what == "change" and blocks:
            return "change", dice.choice(blocks), dice.randrange(256)
        if what == "free" and blocks:
            return "free", dice.choice(blocks)
        return "train", dice.getrandbits(32)

    def repeat(self, what: str, *args: Any) -> None:
        """Do with the twin what was done with the kernel."""
        getattr(actor, what)(self.twin, "cpu", *args)
        if what in {"change", "free"}:
            for name in (args[0], f"{args[0]}.view"):
                self.known.pop(name, None)
        elif what == "begin":
            self.known.clear()

    def expected(self) -> dict[str, tuple[str, int]]:
        """Return what the kernel's tensors must be."""
        found = actor.digests(self.twin, self.known)
        self.known = {name: digest for name, digest in found.items() if name in self.twin}
        return found


class Crowd:
    """Several kernels on the GPUs of one machine.

    Attributes
    ----------
    lost_bytes, dead
        Bytes of tensors that were not what they must be; kernels that ended by themselves.
    faults
        What went wrong, in words.
    done
        How often what was done, also what was refused for want of room.
    """

    def __init__(self, folder: Path, *, kernels: int, gpus: int, capacity: int) -> None:
        import torch

        torch.set_num_threads(1)
        self.machine = EmulatedMachine(
            folder / "machine", gpus=gpus, capacity=capacity, context_bytes=MIB, poison=True
        )
        self.lost_bytes = self.dead = self.compared_bytes = 0
        self.faults: list[str] = []
        self.done: Counter[str] = Counter()
        self._store = folder / "snapshots"
        self._store.mkdir(mode=0o700)
        self._zygote = Zygote(self.machine.devices, PRELOADED)
        self._loop = asyncio.new_event_loop()
        self._driver = CudaCheckpoint(
            lambda record: None, way="libcuda", limits=PATIENT, environ=self.machine.environ
        )
        self.kernels = [Kernel(f"kernel {i}") for i in range(kernels)]

    def close(self) -> None:
        """End all processes."""
        for kernel in self.kernels:
            if kernel.worker is not None:
                kernel.worker.kill()
        self._zygote.close()
        self._loop.close()
        self.machine.close()

    def begin(self, dice: random.Random) -> None:
        """Let every kernel start anew in a fresh process, crowded on the first half of the GPUs."""
        for kernel in self.kernels:
            if kernel.worker is not None:
                kernel.worker.kill()
        gpus = len(self.machine.uuids)
        for kernel in self.kernels:
            kernel.gpu = dice.randrange(max(1, gpus // 2))
            self._start(kernel)
        for kernel in self.kernels:
            self.work(kernel, "begin", dice.getrandbits(32))
            for _ in range(dice.randint(0, 3)):
                self.work(kernel, *kernel.choose("grow", dice))

    # --------------------------------------------------------------------- work of their own

    def work(self, kernel: Kernel, what: str, *args: Any) -> None:
        """Let a kernel do something; where there is no room, others must make some."""
        if not self._call(kernel, "do", what, *args):
            self.make_room(kernel)
            if not self._call(kernel, "do", what, *args):
                self.done[f"{what}: no room"] += 1
                return
        self.done[what] += 1
        kernel.repeat(what, *args)

    def together(self, kernels: list[Kernel], dice: random.Random) -> None:
        """Let kernels allocate, come back or give memory at the same moment."""
        begun: list[tuple[Kernel, tuple[Any, ...]]] = []
        for kernel in kernels:
            what = dice.choice(("grow", "grow", "restore", "suspend"))
            call = ("do", *kernel.choose(what, dice)) if what == "grow" else (what,)
            kernel.worker.begin(getattr(actor, call[0]), *(call[1:] or [None][what != "suspend" :]))
            begun.append((kernel, call))
        for kernel, call in begun:
            if self._end(kernel) and call[0] == "do":
                kernel.repeat(*call[1:])
        self.done["two at once"] += 1
        for kernel in kernels:
            self.compare(kernel)

    def make_room(self, kernel: Kernel) -> None:
        """Take the memory of the others on a kernel's GPU in place."""
        for other in self.kernels:
            if other is not kernel and other.gpu == kernel.gpu and not other.with_driver:
                self.reclaim(other, None)

    # --------------------------------------------------------------------- rungs 1 and 3

    def reclaim(self, kernel: Kernel, wanted_bytes: int | None) -> None:
        """Take memory back in place, all of it or some."""
        before = self._held(kernel)
        answer = self._call(kernel, "suspend", wanted_bytes)
        if answer is None:
            return
        freed, kept = answer
        held = self._held(kernel)
        if kept or held > before:
            self.faults.append(f"{kernel.name}: {before} -> {held} bytes, kept {kept}")
        if wanted_bytes is None and held != MIB:
            self.faults.append(f"{kernel.name}: {held} bytes left after all was taken")
        if wanted_bytes is not None and freed and before - held < min(wanted_bytes, before - MIB):
            self.faults.append(f"{kernel.name}: {before - held} of {wanted_bytes} wanted bytes")
        self.done["reclaim" if wanted_bytes is None else "partial reclaim"] += 1

    def restore(self, kernel: Kernel) -> None:
        """Bring memory back, after others had to give theirs where that is needed."""
        if not self._call(kernel, "restore"):
            self.done["restore: no room"] += 1
            self.compare(kernel)
            self.make_room(kernel)
            if not self._call(kernel, "restore"):
                if not any(k.with_driver and k.gpu == kernel.gpu for k in self.kernels):
                    self.faults.append(f"{kernel.name} does not come back")
                return
        self.done["restore"] += 1
        if left := self._call(kernel, "suspended_bytes"):
            self.faults.append(f"{kernel.name}: {left} bytes stayed behind")

    def move(self, kernel: Kernel, dice: random.Random) -> None:
        """Move a kernel by a snapshot into a fresh process on another GPU."""
        folder = self._store / "one"
        folder.mkdir(mode=0o700)
        snapshot_id = self._call(kernel, "save", str(folder), "move")
        old, before = kernel.worker, kernel.gpu
        # Often where others are: there has to be too little room somewhere.
        places = [*range(len(self.machine.uuids)), *(k.gpu for k in self.kernels)]
        kernel.gpu = dice.choice([gpu for gpu in places if gpu != before])
        self._start(kernel)
        try:
            why = str(kernel.worker.call(actor.load, str(folder), snapshot_id))
        except FailedInWorkerError as error:
            why = str(error)
        shutil.rmtree(folder)
        if why:
            # As in a server: the old one goes on, and the next time somebody makes room first.
            if "out of memory" not in why:
                self.faults.append(f"{kernel.name} cannot be moved: {why}")
            self.done["move: no room"] += 1
            kernel.worker.kill()
            kernel.worker, kernel.gpu = old, before
        else:
            old.kill()
            self.done["move"] += 1

    # --------------------------------------------------------------------- rung 2

    def suspend_by_driver(self, kernel: Kernel, dice: random.Random) -> None:
        """Suspend a kernel by the driver's checkpoint; now and then its helper is killed."""
        faults = ("", "", "lock:after", "checkpoint:before", "checkpoint:after")
        self._with_driver(kernel, "suspend", dice.choice(faults))

    def resume_by_driver(self, kernel: Kernel, dice: random.Random) -> None:
        """Let the driver bring a kernel back; now and then its helper is killed."""
        self.make_room(kernel)
        faults = ("", "", "restore:before", "restore:after", "unlock:before")
        self._with_driver(kernel, "resume", dice.choice(faults))

    def _with_driver(self, kernel: Kernel, what: str, fault: str) -> None:
        pid = kernel.worker.pid
        if fault:
            call, _, when = fault.partition(":")
            self.machine.script(pid, **{f"die__{call}": when})
            self.done[f"helper killed in {call}"] += 1
        try:
            if what == "suspend":
                self._loop.run_until_complete(self._driver.suspend(kernel.name, pid))
            else:
                self._loop.run_until_complete(self._driver.resume(kernel.name))
            self.done[f"driver {what}"] += 1
        except CheckpointRefusedError:
            self.done[f"driver {what}: refused"] += 1
        except CheckpointFailedError:
            self._loop.run_until_complete(self._driver.recover(kernel.name))
            self.done[f"driver {what}: recovered"] += 1
        state = self.machine.state(pid)
        if state not in {"running", "checkpointed"}:
            self.faults.append(f"{kernel.name} is left {state} by the driver ({what}, {fault})")
        if what == "resume" and state != "running":
            # A helper that died has undone what it began.
            self._loop.run_until_complete(self._driver.resume(kernel.name))
            state = self.machine.state(pid)
        kernel.with_driver = state != "running"
        if not kernel.with_driver:
            self._driver.forget(kernel.name)
            self.compare(kernel)

    # --------------------------------------------------------------------- what holds

    def compare(self, kernel: Kernel) -> None:
        """Count the bytes of a kernel that are not what they must be."""
        if kernel.with_driver:
            return
        own = self._call(kernel, "own_digests") or {}
        expected = kernel.expected()
        for name, (digest, nbytes) in expected.items():
            self.compared_bytes += nbytes
            if own.get(name) != (digest, nbytes):
                self.lost_bytes += nbytes
                self.faults.append(f"{kernel.name}: {name} is not what it must be")
        if more := own.keys() - expected.keys():
            self.faults.append(f"{kernel.name} also has {', '.join(sorted(more))}")

    def _held(self, kernel: Kernel) -> int:
        return self.machine.devices.holders(kernel.gpu).get(kernel.worker.pid, 0)

    def _start(self, kernel: Kernel) -> None:
        kernel.worker = self._zygote.start([self.machine.uuids[kernel.gpu]])

    def _call(self, kernel: Kernel, function: str, *args: Any) -> Any:
        kernel.worker.begin(getattr(actor, function), *args)
        return self._end(kernel)

    def _end(self, kernel: Kernel) -> Any:
        try:
            return kernel.worker.end()
        except FailedInWorkerError as error:
            self.faults.append(f"{kernel.name}: {error}")
            if error.kind != "exit":
                return None
            self.dead += 1
            raise
