"""The server's end of the kernel link: one per running kernel process."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import psutil
from jupyter_client.session import DELIM, Session

from .. import errors
from ..core.model import Lease
from ..errors import GpuPredictError, KernelLinkError, LinkTimeoutError
from ..kernel import messages as m
from ..kernel.boot import boot_code
from ..kernel.link import NOTIFIED

log = logging.getLogger(__name__)

_BY_REASON = {
    cls("").reason: cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, GpuPredictError)
}

ALIVE_CHECK_S = 0.5

LOST_S = 2.0
"""A reply waits so long for the notices before it: iopub loses messages by design."""

Notice = Callable[[str, dict[str, Any]], None]


def named_error(code: object, reason: object) -> GpuPredictError:
    """Return the error that a kernel named by its code."""
    return _BY_REASON.get(str(code), KernelLinkError)(str(reason))


class LinkSession:
    """Sockets and session of one link; `km` is anything with connect methods and a session.

    Our iopub socket subscribes to our own topic only, so that a cell that prints 100 MB costs this
    link nothing. A reply overtakes no notice that the kernel sent before it: otherwise what a
    kernel held before a reclaim could be heard, and booked, after what it holds since.
    """

    def __init__(self, km: Any, on_notice: Notice, kernel_id: str) -> None:
        self._on_notice = on_notice
        self._kernel_id = kernel_id
        self.session = Session(key=km.session.key, signature_scheme=km.session.signature_scheme)
        self._pending: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._notified: int | None = None
        self._early: list[tuple[int, Callable[[], None]]] = []
        identity = self.session.bsession
        self.control = km.connect_control(identity=identity)
        self.control.on_recv(self._on_control)
        self.shell = km.connect_shell(identity=identity)
        self.shell.on_recv(self._on_control)
        self.iopub = km.connect_iopub()
        self.iopub.socket.unsubscribe(b"")
        self.iopub.socket.subscribe(m.TOPIC)
        self.iopub.on_recv(self._on_iopub)

    def _decode(self, frames: list[bytes]) -> dict[str, Any]:
        _, parts = self.session.feed_identities(frames)
        message: dict[str, Any] = self.session.deserialize(parts)
        return message

    def _on_control(self, frames: list[bytes]) -> None:
        message = self._decode(frames)
        future = self._pending.pop(message["parent_header"].get("msg_id", ""), None)
        if future is None:
            return
        content = message["content"]
        before = content.pop(NOTIFIED, 0)

        def settle() -> None:
            if not future.done():
                future.set_result(content)

        # Before anything was heard the subscription may not be live.
        if self._notified is None or before <= self._notified:
            settle()
            return
        self._early.append((before, settle))
        asyncio.get_running_loop().call_later(LOST_S, settle)

    def _on_iopub(self, frames: list[bytes]) -> None:
        # Two of these come with every cell, so only what is used of them is unpacked.
        start = frames.index(DELIM)
        signature, content = frames[start + 1], frames[start + 5]
        if not hmac.compare_digest(signature, self.session.sign(frames[start + 2 : start + 6])):
            raise KernelLinkError("a notice with a wrong signature came in on iopub")
        notice = json.loads(content)
        number = notice.pop(NOTIFIED, 0)
        self._on_notice(frames[0].removeprefix(m.TOPIC).decode(), notice)
        self._notified = number
        early, self._early = self._early, []
        for before, settle in early:
            if before <= number:
                settle()
            else:
                self._early.append((before, settle))

    async def ask(
        self, stream: Any, msg_type: str, content: dict[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        """Send a request and return the content of its reply.

        Raises
        ------
        LinkTimeoutError
            If no reply came in time.
        """
        if stream.closed():
            raise KernelLinkError(f"{msg_type}: kernel {self._kernel_id} has ended")
        sent = self.session.send(stream, msg_type, content)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._pending[sent["header"]["msg_id"]] = future
        try:
            return await asyncio.wait_for(future, timeout_s)
        except asyncio.TimeoutError:
            raise LinkTimeoutError(
                f"{msg_type}: the kernel did not answer within {timeout_s:g} s"
            ) from None
        finally:
            self._pending.pop(sent["header"]["msg_id"], None)

    def close(self) -> None:
        """Close the sockets; whoever still waits hears of it."""
        for future in self._pending.values():
            if not future.done():
                future.set_exception(KernelLinkError(f"kernel {self._kernel_id} has ended"))
        for stream in (self.control, self.shell, self.iopub):
            if not stream.closed():
                stream.on_recv(None)
                stream.close(linger=0)


class KernelAgentLink:
    """A kernel process with our agent in it, as `control.ports.KernelPort`."""

    def __init__(self, kernel_id: str, km: Any, provisioner: Any, on_notice: Notice) -> None:
        self.kernel_id = kernel_id
        self.provisioner = provisioner
        self.has_agent = False
        self.executable = sys.executable
        self._heard = asyncio.Event()
        self._on_notice = on_notice
        self.wire = LinkSession(km, self._notice, kernel_id)

    def _notice(self, msg_type: str, content: dict[str, Any]) -> None:
        self._heard.set()
        self._on_notice(msg_type, content)

    def on_notice(self, on_notice: Notice) -> None:
        """Send the kernel's notices to `on_notice` from now on."""
        self._on_notice = on_notice

    async def boot(self, config: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Put the agent into the kernel and return its description.

        Raises
        ------
        KernelLinkError
            If the kernel would not take it; the kernel itself goes on without.
        """
        reply = await self.wire.ask(
            self.wire.shell,
            "execute_request",
            {
                "code": boot_code(config),
                "silent": True,
                "store_history": False,
                "user_expressions": {},
                "allow_stdin": False,
                "stop_on_error": False,
            },
            timeout_s,
        )
        if reply.get("status") != "ok":
            raise KernelLinkError(
                f"kernel {self.kernel_id}: the agent did not start: {reply.get('ename')}: "
                f"{reply.get('evalue')}"
            )
        return await self.listen(timeout_s)

    async def listen(self, timeout_s: float) -> dict[str, Any]:
        """Wait until both directions of the link work and return the kernel's description."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while True:
            description = await self.describe(timeout_s=max(1.0, end - loop.time()))
            try:
                # A new subscription is live once something came through it.
                await asyncio.wait_for(self._heard.wait(), 0.05)
            except asyncio.TimeoutError:
                if loop.time() > end:
                    raise LinkTimeoutError(
                        f"kernel {self.kernel_id}: nothing was heard on iopub for {timeout_s:g} s"
                    ) from None
                continue
            self.has_agent = True
            self.executable = str(description.get("executable") or sys.executable)
            return description

    async def request(self, message: m.Message, timeout_s: float) -> dict[str, Any]:
        """Send a request on control and return the answer.

        Raises
        ------
        GpuPredictError
            The error the kernel named.
        """
        asked = asyncio.ensure_future(
            self.wire.ask(self.wire.control, message.msg_type, message.content(), timeout_s)
        )
        try:
            # A dead kernel answers nothing, and must not hold up whoever waits for it.
            while not (await asyncio.wait([asked], timeout=ALIVE_CHECK_S))[0]:
                if not await self.alive():
                    raise KernelLinkError(
                        f"{message.msg_type}: the process of kernel {self.kernel_id} is gone"
                    )
            reply = await asked
        finally:
            asked.cancel()
        if reply.get("status") != "ok":
            raise named_error(reply.get("code"), reply.get("reason"))
        return reply

    async def describe(self, timeout_s: float = 5.0, *, modules: bool = False) -> dict[str, Any]:
        """Return what the kernel is and holds, and with `modules` what it has imported."""
        return await self.request(m.DescribeRequest(os.getpid(), modules), timeout_s)

    async def bind(
        self,
        lease: Lease,
        *,
        cap_bytes: int | None,
        claim_id: str | None,
        restore: bool,
        peaks: Mapping[str, int],
        checkpointed: bool = False,
        warm: bool = False,
    ) -> dict[str, Any]:
        """Tell the kernel its lease."""
        message = m.BindRequest(
            epoch=lease.epoch,
            gpu_uuid=lease.gpu_uuid,
            bytes=lease.bytes,
            cap_bytes=cap_bytes,
            claim_id=claim_id,
            restore=restore,
            peaks=dict(peaks),
            checkpointed=checkpointed,
            warm=warm,
        )
        slow = restore or warm
        return await self.request(message, message.deadline_s + 5 if slow else 10.0)

    async def cap(self, cap_bytes: int, timeout_s: float) -> dict[str, Any]:
        """Change what the kernel's allocator may take at most."""
        return await self.request(m.CapRequest(cap_bytes), timeout_s)

    async def reclaim(self, epoch: int, *, wait: bool) -> dict[str, Any]:
        """Suspend the kernel in place."""
        message = m.ReclaimRequest(epoch=epoch, wait=wait)
        return await self.request(message, message.deadline_s + 60.0)

    async def tell_queue(
        self, claim_id: str, position: int, expected_wait_s: float | None, reason: str
    ) -> dict[str, Any]:
        """Tell a waiting claim its place."""
        return await self.request(m.QueueRequest(claim_id, position, expected_wait_s, reason), 10.0)

    async def refuse(self, claim_id: str, reason: str) -> dict[str, Any]:
        """End a claim without a grant."""
        return await self.request(m.RefuseRequest(claim_id, reason), 10.0)

    async def alive(self) -> bool:
        """Whether the kernel's process lives."""
        return bool(self.provisioner.has_process) and await self.provisioner.poll() is None

    @property
    def pid(self) -> int | None:
        """Pid of the kernel's process."""
        pid: int | None = self.provisioner.pid
        return pid

    def pids(self) -> tuple[int, ...]:
        """Return the pids of the kernel's process tree."""
        if self.pid is None:
            return ()
        try:
            process = psutil.Process(self.pid)
            return (process.pid, *(child.pid for child in process.children(recursive=True)))
        except psutil.NoSuchProcess:
            return ()

    def close(self) -> None:
        """Close the link."""
        self.wire.close()
