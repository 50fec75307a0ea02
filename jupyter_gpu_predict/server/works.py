"""Saves and restores that kernels carry out, as the server follows them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..control.operations import Progress
from ..control.records import KernelRecord
from ..errors import ConflictError, LinkTimeoutError, SnapshotCancelledError
from ..kernel import messages as m
from .link import KernelAgentLink, named_error

if TYPE_CHECKING:
    from .fleet import Fleet

SILENCE_S = 2.0
"""After so long without a notice the kernel is asked: iopub may lose messages."""

ASK_TIMEOUT_S = 10.0


@dataclass
class _Followed:
    progress: Progress
    ended: asyncio.Future[Any]
    given_up: asyncio.Event = field(default_factory=asyncio.Event)
    heard_at: float = field(default_factory=time.monotonic)


class Works:
    """What is under way in all kernels, by the ids that were given to it."""

    def __init__(self) -> None:
        self._followed: dict[str, _Followed] = {}

    def open(self, work_id: str, progress: Progress) -> None:
        """Begin to listen, before the kernel begins to work."""
        self._followed[work_id] = _Followed(progress, asyncio.get_running_loop().create_future())

    def close(self, work_id: str) -> None:
        """Listen no more."""
        followed = self._followed.pop(work_id, None)
        if followed is not None:
            followed.ended.cancel()

    def heard(self, notice: m.ProgressMessage) -> bool:
        """Take a notice in; false if nobody follows that work."""
        followed = self._followed.get(notice.work_id)
        if followed is None:
            return False
        followed.heard_at = time.monotonic()
        followed.progress.bytes(notice.done_bytes, notice.total_bytes)
        if followed.ended.done():
            return True
        if notice.state == "done":
            followed.ended.set_result(notice.result)
        elif notice.state != "running":
            followed.ended.set_exception(named_error(notice.code, notice.error))
        return True

    async def begin(
        self, link: KernelAgentLink, message: m.SnapshotRequest | m.RestoreRequest, timeout_s: float
    ) -> dict[str, Any]:
        """Have a kernel begin the work, once its running cell has ended, and return its answer.

        Raises
        ------
        SnapshotCancelledError
            If it was given up before it began.
        """
        asked = asyncio.ensure_future(link.request(message, timeout_s))
        given_up = asyncio.ensure_future(self._followed[message.work_id].given_up.wait())
        try:
            await asyncio.wait([asked, given_up], return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise SnapshotCancelledError("it was cancelled before it began")
            return asked.result()
        finally:
            asked.cancel()
            given_up.cancel()

    async def end_of(self, link: KernelAgentLink, work_id: str) -> dict[str, Any]:
        """Wait for the end of some work and return its result.

        Raises
        ------
        GpuPredictError
            What the kernel named, or that its process is gone.
        """
        followed = self._followed[work_id]
        try:
            while not (await asyncio.wait([followed.ended], timeout=SILENCE_S))[0]:
                if time.monotonic() - followed.heard_at < SILENCE_S:
                    continue
                try:
                    answer = await link.request(m.WorkRequest(work_id), ASK_TIMEOUT_S)
                except LinkTimeoutError:
                    continue  # a cell can keep the interpreter to itself for long
                self.heard(m.decode(m.ProgressMessage, answer))
            result: dict[str, Any] = followed.ended.result()
            return result
        finally:
            self.close(work_id)

    async def stop(self, link: KernelAgentLink, work_id: str) -> None:
        """Ask a kernel to give some work up."""
        answer = await link.request(m.WorkRequest(work_id, cancel=True), ASK_TIMEOUT_S)
        followed = self._followed.get(work_id)
        if answer["state"] == m.NOT_BEGUN and followed is not None:
            followed.given_up.set()


def free_kernel(fleet: Fleet, kernel_id: str, kind: str) -> tuple[KernelRecord, KernelAgentLink]:
    """Return a kernel on which work of a kind can begin, with its link.

    Raises
    ------
    ConflictError
        If it has no agent, or other work on it is under way.
    """
    record = fleet.loop.kernel(kernel_id)
    link = fleet.links.get(kernel_id)
    if link is None or not link.has_agent:
        raise ConflictError(f"kernel {kernel_id} has no agent; see `jupyter gpu doctor`")
    if record.working is not None:
        raise ConflictError(
            f"kernel {kernel_id}: a {record.working} is under way; try the {kind} again after"
        )
    return record, link
