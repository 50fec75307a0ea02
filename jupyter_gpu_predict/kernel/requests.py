"""What the agent does when the server asks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..errors import LinkTimeoutError, RefusedError
from . import messages as m
from .gate import Grant
from .link import Prompt

if TYPE_CHECKING:
    from .agent import Agent


PROMPT_S = 2.0
"""A reclaim that is not to wait is refused when a cell got in before it."""


def register(agent: Agent) -> None:
    """Answer every request of the kernel link."""
    link = agent.link
    handlers = Requests(agent)
    link.on(m.DescribeRequest, handlers.describe)
    link.on(m.BindRequest, handlers.bind)
    link.on(m.CapRequest, handlers.cap)
    link.on(m.ReclaimRequest, handlers.reclaim)
    link.on(m.QueueRequest, handlers.queue)
    link.on(m.RefuseRequest, handlers.refuse)
    link.on(m.SnapshotRequest, handlers.snapshot)
    link.on(m.RestoreRequest, handlers.restore)
    link.on(m.WorkRequest, handlers.work)
    link.on(m.SettingsRequest, handlers.settings)
    link.on(m.WarmRequest, handlers.warm)
    link.on(m.ReleaseHoldRequest, handlers.unhold)
    link.on(m.AnswerRequest, handlers.answer)


class Requests:
    """One method per request; plain ones answer from the control thread at once."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    def describe(self, request: m.DescribeRequest) -> dict[str, Any]:
        """Answer what this kernel is and holds, and say it on iopub too."""
        agent = self.agent
        if request.server_pid:
            agent.orphan_watch.adopted_by(request.server_pid)
        agent.recorder.tell_runs()
        agent.notify_state("described", running_digest=agent.recorder.running_digest)
        torch = sys.modules.get("torch")
        return {
            "status": "ok",
            "agent_version": __version__,
            "kernel_id": agent.config.kernel_id,
            "pid": os.getpid(),
            "python": ".".join(map(str, sys.version_info[:3])),
            "torch": getattr(torch, "__version__", None),
            "device": agent.config.device,
            "epoch": agent.lease.epoch,
            "gpu_uuid": agent.lease.gpu_uuid,
            "lease_bytes": agent.lease.bytes,
            "used_bytes": agent.recorder.used_bytes,
            "suspended_bytes": agent.suspended_bytes,
            "busy": agent.active > 0,
            "waiting": agent.gate.waiting,
            "modules": list(sys.modules) if request.modules else [],
            "executable": sys.executable,
            "changed": agent.saves.changed,
        }

    def bind(self, request: m.BindRequest) -> Any:
        """Take a lease, answer the claim behind it, bring suspended state back if asked."""
        agent = self.agent
        agent.check_epoch(request.epoch)
        agent.peaks.update(request.peaks)
        reserved = agent.cap.set(request.cap_bytes)
        grant = Grant(request.gpu_uuid, request.bytes, request.epoch)
        if request.claim_id is not None:
            if agent.gate.grant(request.claim_id, grant):
                return {"status": "ok", "granted": True, "restored_bytes": 0}
            return {
                "status": "error",
                "code": "conflict",
                "reason": f"claim {request.claim_id} waits no more in this kernel",
            }
        if request.warm:
            return self._warm_up(grant, time.monotonic() + request.deadline_s)
        if request.checkpointed:
            busy = self._busy()
            if agent.active:
                raise busy
            return Prompt(self._before_checkpoint(grant), PROMPT_S, busy)
        if not request.restore:
            with agent.lock:
                agent._take(grant)
                agent.lease.checkpointed = False
            return {
                "status": "ok",
                "granted": False,
                "restored_bytes": 0,
                "reserved_bytes": reserved,
            }
        return self._restore_in_place(grant, time.monotonic() + request.deadline_s)

    async def _before_checkpoint(self, grant: Grant) -> dict[str, Any]:
        """Have every cell claim from now on, unless what is at work here would be frozen."""
        agent = self.agent
        with agent.lock:
            agent.check_epoch(grant.epoch)
            self._check_idle()
            agent._take(grant)
            agent.lease.checkpointed = True
        return {"status": "ok", "granted": False, "restored_bytes": 0}

    def _busy(self) -> RefusedError:
        return RefusedError(f"kernel {self.agent.config.kernel_id} is running a cell")

    def _check_idle(self) -> None:
        agent = self.agent
        if agent.active:
            raise self._busy()
        if reason := agent.keep_reason():
            agent.notify_demand(reason)
            raise RefusedError(f"kernel {agent.config.kernel_id} keeps its memory: {reason}")

    def cap(self, request: m.CapRequest) -> dict[str, Any]:
        """Take a new cap of the allocator's."""
        return {"status": "ok", "reserved_bytes": self.agent.cap.set(request.cap_bytes)}

    async def _restore_in_place(self, grant: Grant, until: float) -> dict[str, Any]:
        agent = self.agent
        async with between_cells(agent, until):
            started = time.perf_counter()
            with agent.lock:
                agent.check_epoch(grant.epoch)
                agent._take(grant)
                before = agent.suspended_bytes
                agent.restore_now("prebind")
                restored = before - agent.suspended_bytes
        return {
            "status": "ok",
            "granted": False,
            "restored_bytes": restored,
            "seconds": time.perf_counter() - started,
        }

    async def _warm_up(self, grant: Grant, until: float) -> dict[str, Any]:
        from .warm import warm_up

        agent = self.agent
        async with between_cells(agent, until):
            with agent.lock:
                agent._take(grant)
                try:
                    seconds = warm_up(agent.config.device)
                except RuntimeError as error:
                    raise RefusedError(
                        f"kernel {agent.config.kernel_id} could not start its GPU ahead of use: "
                        f"{error}"
                    ) from error
                agent.recorder.measure()
        agent.notify_demand()
        return {"status": "ok", "granted": False, "restored_bytes": 0, "seconds": seconds}

    def reclaim(self, request: m.ReclaimRequest) -> Any:
        """Take the device memory back in place, or refuse with the reason named."""
        agent = self.agent
        agent.check_epoch(request.epoch)
        busy = self._busy()
        if agent.active and not request.wait:
            # Said here, because the loop where the rest runs belongs to the cell until it ends.
            raise busy
        until = time.monotonic() + request.deadline_s
        if request.wait:
            return self._reclaim(request, until)
        return Prompt(self._reclaim(request, until), PROMPT_S, busy)

    async def _reclaim(self, request: m.ReclaimRequest, until: float) -> dict[str, Any]:
        agent = self.agent
        async with contextlib.AsyncExitStack() as stack:
            if request.wait:
                await stack.enter_async_context(between_cells(agent, until))
            with agent.lock:
                agent.check_epoch(request.epoch)
                self._check_idle()
                report = agent.offloader.suspend()
                agent.returning.taken_back()
                agent.lease.epoch = request.epoch
                agent.lease.bytes = 0
                agent.recorder.measure()
        agent.notify_state("suspended", seconds=report.seconds, bytes=report.freed_bytes)
        return {
            "status": "ok",
            "freed_bytes": report.freed_bytes,
            "suspended_bytes": agent.suspended_bytes,
            "resident_bytes": agent.recorder.used_bytes,
            "kept": [list(k) for k in report.kept],
            "seconds": report.seconds,
        }

    def queue(self, request: m.QueueRequest) -> dict[str, Any]:
        """Show the waiting cell its place."""
        waits = self.agent.gate.queued(
            request.claim_id, request.position, request.expected_wait_s, request.reason
        )
        return {"status": "ok", "waits": waits}

    def refuse(self, request: m.RefuseRequest) -> dict[str, Any]:
        """End a claim without a grant."""
        return {"status": "ok", "waits": self.agent.gate.refuse(request.claim_id, request.reason)}

    def snapshot(self, request: m.SnapshotRequest) -> Any:
        """Save the session between cells; with `hold`, handle no shell message afterwards."""
        return self._snapshot(request, time.monotonic() + request.deadline_s)

    async def _snapshot(self, request: m.SnapshotRequest, until: float) -> dict[str, Any]:
        agent = self.agent
        async with contextlib.AsyncExitStack() as stack:
            if agent.gate.waiting and not agent.active:
                pass  # a cell that waits has not begun, and its process may be moved under it
            elif request.wait:
                await stack.enter_async_context(between_cells(agent, until))
            elif agent.active:
                raise RefusedError(f"kernel {agent.config.kernel_id} is running a cell")
            with agent.lock:
                if request.background:
                    begun = agent.saves.begin(request)
                    report: dict[str, Any] = {"work_id": begun.work_id, "began_s": begun.began_s}
                else:
                    report = self._save_now(request)
            if request.hold:
                agent.hold()
        return {"status": "ok", **report}

    def _save_now(self, request: m.SnapshotRequest) -> dict[str, Any]:
        from .state import save_state

        with self.agent.saves.foreground(request.work_id, "snapshot", request.cause) as work:
            return save_state(self.agent, request, progress=work.progress, cancelled=work.cancelled)

    def restore(self, request: m.RestoreRequest) -> Any:
        """Load a snapshot between cells."""
        return self._restore(request, time.monotonic() + request.deadline_s)

    async def _restore(self, request: m.RestoreRequest, until: float) -> dict[str, Any]:
        from .state import load_state

        agent = self.agent
        async with between_cells(agent, until):
            with agent.lock, agent.saves.foreground(request.work_id, "restore") as work:
                report = load_state(
                    agent, request, progress=work.progress, cancelled=work.cancelled
                )
                agent.recorder.measure()
        agent.notify_demand()
        return {"status": "ok", **report}

    def work(self, request: m.WorkRequest) -> dict[str, Any]:
        """Answer how far a save or restore has come, and stop it if asked."""
        return self.agent.saves.asked(request.work_id, cancel=request.cancel)

    def settings(self, request: m.SettingsRequest) -> dict[str, Any]:
        """Take settings of the server's."""
        self.agent.saves.long_cell_s = request.long_cell_s
        return {"status": "ok"}

    async def warm(self, request: m.WarmRequest) -> dict[str, Any]:
        """Import modules ahead of time; one that fails is named and fails again where it counts."""
        import importlib

        failed = {}
        for name in request.modules:
            try:
                importlib.import_module(name)
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"
        return {"status": "ok", "failed": failed}

    def unhold(self, request: m.ReleaseHoldRequest) -> dict[str, Any]:
        """Let a kernel that was held for a move go on."""
        agent = self.agent
        agent.kernel.io_loop.add_callback(agent.unhold)
        return {"status": "ok"}

    def answer(self, request: m.AnswerRequest) -> dict[str, Any]:
        """Hand the server's answer to the magic that waits for it."""
        self.agent.link.answered(
            request.call_id,
            {"ok": request.ok, "result": request.result, "error": request.error},
        )
        return {"status": "ok"}


@contextlib.asynccontextmanager
async def between_cells(agent: Agent, until: float) -> AsyncIterator[None]:
    """Hold the shell's lock, so that no cell runs inside the block.

    `until` is a deadline by the monotonic clock, taken when the request came in: this coroutine
    begins only when the running cell lets the loop go, and by then nobody may wait for it.

    Raises
    ------
    LinkTimeoutError
        If the running cell does not end before the deadline.
    """
    lock = agent.kernel._main_asyncio_lock
    late = LinkTimeoutError(
        f"kernel {agent.config.kernel_id} was busy until the deadline; nothing was changed"
    )
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise late
    try:
        await asyncio.wait_for(lock.acquire(), left_s)
    except asyncio.TimeoutError:
        raise late from None
    try:
        yield
    finally:
        lock.release()
