"""A kernel's replies and its notices come by two sockets, and are heard in the order they had."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio
from jupyter_client.session import Session
from zmq.eventloop.zmqstream import ZMQStream

from jupyter_gpu_predict.kernel import messages as m
from jupyter_gpu_predict.kernel.link import NOTIFIED
from jupyter_gpu_predict.server import link
from jupyter_gpu_predict.server.link import LinkSession

KEY = b"a key of both ends"


class Kernel:
    """The far ends of the sockets, and a manager that connects to them."""

    def __init__(self, folder: Path) -> None:
        self.context = zmq.asyncio.Context()
        self.session = Session(key=KEY)
        self._folder = folder
        self.control = self._bound(zmq.ROUTER, "control")
        self.shell = self._bound(zmq.ROUTER, "shell")
        self.iopub = self._bound(zmq.XPUB, "iopub")

    def _bound(self, kind: int, name: str) -> zmq.asyncio.Socket:
        socket = self.context.socket(kind)
        socket.bind(f"ipc://{self._folder}/{name}")
        return socket

    def _connected(self, kind: int, name: str) -> ZMQStream:
        socket = zmq.Context.shadow(self.context.underlying).socket(kind)
        socket.connect(f"ipc://{self._folder}/{name}")
        return ZMQStream(socket)

    def connect_control(self, identity: bytes) -> ZMQStream:
        return self._connected(zmq.DEALER, "control")

    def connect_shell(self, identity: bytes) -> ZMQStream:
        return self._connected(zmq.DEALER, "shell")

    def connect_iopub(self) -> ZMQStream:
        return self._connected(zmq.SUB, "iopub")

    async def subscribed(self) -> None:
        """Wait until a subscriber has come."""
        while (await self.iopub.recv())[:1] != b"\x01":
            pass

    async def asked(self) -> tuple[list[bytes], dict[str, Any]]:
        """Return the next request and whom to answer."""
        identities, parts = self.session.feed_identities(await self.control.recv_multipart())
        return identities, self.session.deserialize(parts)

    async def _send(self, socket: Any, kind: str, content: Any, parent: Any, ident: Any) -> None:
        frames = self.session.serialize(self.session.msg(kind, content, parent), ident)
        await socket.send_multipart(frames)

    async def reply(self, request: tuple[list[bytes], dict[str, Any]], **content: Any) -> None:
        await self._send(self.control, "gpu_reply", content, request[1], request[0])

    async def notice(self, number: int) -> None:
        ident = m.TOPIC + b"gpu_demand"
        await self._send(self.iopub, "gpu_demand", {NOTIFIED: number}, None, ident)

    def close(self) -> None:
        for socket in (self.control, self.shell, self.iopub):
            socket.close(linger=0)
        self.context.term()


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    far = Kernel(tmp_path)
    yield far
    far.close()


def test_a_reply_overtakes_no_notice(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        heard: list[str] = []
        session = LinkSession(kernel, lambda kind, content: heard.append(kind), "k")
        asking: list[asyncio.Task[None]] = []

        async def ask(name: str) -> Any:
            async def until_answered() -> None:
                answer = await session.ask(session.control, "gpu_request", {}, 60.0)
                assert answer == {"status": "ok"}
                heard.append(name)

            asking.append(asyncio.ensure_future(until_answered()))
            return await kernel.asked()

        try:
            await kernel.subscribed()
            # Nothing was heard yet, so the subscription might not be live.
            await kernel.reply(await ask("first"), status="ok", **{NOTIFIED: 7})
            await asking[0]
            await kernel.notice(8)
            early, prompt = await ask("early"), await ask("prompt")
            while "gpu_demand" not in heard:
                await asyncio.sleep(0.01)
            await kernel.reply(early, status="ok", **{NOTIFIED: 9})
            await kernel.reply(prompt, status="ok", **{NOTIFIED: 8})
            await asking[2]
            assert not asking[1].done()
            await kernel.notice(9)
            await asking[1]
            assert heard == ["first", "gpu_demand", "prompt", "gpu_demand", "early"]

            # iopub loses messages by design: then the reply comes all the same.
            monkeypatch.setattr(link, "LOST_S", 0.01)
            await kernel.reply(await ask("lost"), status="ok", **{NOTIFIED: 10})
            await asking[3]
        finally:
            session.close()

    asyncio.run(story())
