"""The websocket connection of a notebook, able to hold its messages while a kernel is not ready.

Holding covers two moments: until the agent is in a new kernel, and while a kernel moves to another
process. What was sent and not yet answered when the process changes is sent again to the new one;
the old one was held before it could start on it, so nothing runs twice and nothing is lost.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from jupyter_server.services.kernels.connection.base import deserialize_msg_from_ws_v1

from ..core.trace.digest import source_digest
from ..core.trace.source import MAX_SOURCE
from ..kernel.messages import TOPIC

_DELIMITER = b"<IDS|MSG>"
_HELD_CHANNELS = frozenset({"shell", "control"})


MAX_CONTENT = 8 * MAX_SOURCE
"""Bytes of a request's content that are looked at for its cell."""

Cell = tuple[str | None, str]
"""A cell's id, where the front end tells it, and the digest of its source, empty if too long."""


class Sent(NamedTuple):
    """A message that a tab sent, as it came; `cell` is the cell that an execute request runs."""

    kind: str
    message: Any
    cell: Cell | None
    sent_s: float


class ConnectionHub(Protocol):
    """What connections need of the extension."""

    def holding(self, kernel_id: str) -> bool:
        """Whether messages for this kernel are held now."""

    def is_own(self, frames: list[bytes]) -> bool:
        """Whether a message answers one of the extension's own requests."""

    def connected(self, connection: Any) -> None:
        """Take note of a connection."""

    def unanswered(self, kernel_id: str, session_key: str) -> OrderedDict[str, Sent]:
        """Return what a tab sent and has no answer to; it outlives the tab's websocket."""

    def queue_changed(self, kernel_id: str) -> None:
        """Take note that the number of unanswered execute requests changed."""


def header_of(frames: list[bytes], part: int = 0) -> dict[str, Any]:
    """Return the header (part 0) or parent header (part 1) of a message's wire frames."""
    start = frames.index(_DELIMITER) + 2
    parsed: dict[str, Any] = json.loads(bytes(frames[start + part]))
    return parsed


def holding_class(base: type, hub: ConnectionHub) -> type:
    """Return `base`, whatever was configured, with holding added."""

    class HoldingConnection(base):  # type: ignore[misc]
        """A kernel's websocket connection that can hold and repeat messages."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.gpu_held: list[tuple[str, str, Sent]] = []
            self.gpu_closed = False
            hub.connected(self)

        @property
        def gpu_unanswered(self) -> OrderedDict[str, Sent]:
            return hub.unanswered(self.kernel_id, self.session_key)

        def disconnect(self) -> Any:
            self.gpu_closed = True
            return super().disconnect()

        def handle_incoming_message(self, incoming_msg: Any) -> None:
            channel, msg_id, sent = self._read(incoming_msg)
            if channel in _HELD_CHANNELS and (self.gpu_held or hub.holding(self.kernel_id)):
                self.gpu_held.append((channel, msg_id, sent))
                return
            self._pass_on(channel, msg_id, sent)

        def _pass_on(self, channel: str, msg_id: str, sent: Sent) -> None:
            if channel == "shell" and sent.kind.endswith("_request"):
                self.gpu_unanswered[msg_id] = sent
                if sent.kind == "execute_request":
                    hub.queue_changed(self.kernel_id)
            super().handle_incoming_message(sent.message)

        def handle_outgoing_message(self, stream: Any, outgoing_msg: list[Any]) -> None:
            channel = stream if isinstance(stream, str) else getattr(stream, "channel", None)
            if channel == "iopub" and (
                bytes(outgoing_msg[0]).startswith(TOPIC) or hub.is_own(outgoing_msg)
            ):
                return
            if channel == "shell" and (unanswered := self.gpu_unanswered):
                answered = unanswered.pop(header_of(outgoing_msg, 1).get("msg_id", ""), None)
                if answered is not None and answered.kind == "execute_request":
                    hub.queue_changed(self.kernel_id)
            super().handle_outgoing_message(stream, outgoing_msg)

        def gpu_release(self, *, repeat_unanswered: bool) -> None:
            """Send what was held; with `repeat_unanswered`, first what was never answered."""
            if repeat_unanswered:
                for sent in list(self.gpu_unanswered.values()):
                    super().handle_incoming_message(sent.message)
            held, self.gpu_held = self.gpu_held, []
            for channel, msg_id, kept in held:
                self._pass_on(channel, msg_id, kept)

        def _read(self, incoming_msg: Any) -> tuple[str, str, Sent]:
            """Return a message with its channel and id."""
            if self.subprotocol == "v1.kernel.websocket.jupyter.org":
                channel, parts = deserialize_msg_from_ws_v1(incoming_msg)
                header, metadata, content = json.loads(bytes(parts[0])), parts[2], parts[3]
            else:
                message = _legacy(incoming_msg)
                channel, header = message.get("channel"), message["header"]
                metadata, content = message.get("metadata"), message.get("content")
            kind = str(header["msg_type"])
            cell = _cell_of(metadata, content) if kind == "execute_request" else None
            sent = Sent(kind, incoming_msg, cell, time.monotonic())
            return channel or "shell", str(header["msg_id"]), sent

    HoldingConnection.__name__ = f"Holding{base.__name__}"
    return HoldingConnection


def queue_of(tabs: Iterable[Mapping[str, Sent]]) -> list[Sent]:
    """Return the execute requests that a kernel has not answered, in the order they were sent."""
    waiting = (sent for tab in tabs for sent in tab.values() if sent.kind == "execute_request")
    return sorted(waiting, key=lambda sent: sent.sent_s)


def _legacy(incoming_msg: str | bytes) -> dict[str, Any]:
    """Return a message of the protocol without a name, with or without buffers."""
    if isinstance(incoming_msg, bytes):
        count = int.from_bytes(incoming_msg[:4], "big")
        offsets = [int.from_bytes(incoming_msg[4 + 4 * i : 8 + 4 * i], "big") for i in range(count)]
        end = offsets[1] if count > 1 else len(incoming_msg)
        incoming_msg = incoming_msg[offsets[0] : end]
    message: dict[str, Any] = json.loads(incoming_msg)
    return message


def _cell_of(metadata: Any, content: Any) -> Cell | None:
    """Return the cell of an execute request, given as JSON or parsed; a silent one runs none.

    What is malformed is for the kernel to refuse.
    """
    if isinstance(content, (bytes, memoryview)) and len(content) > MAX_CONTENT:
        return None, ""
    try:
        request, about = _parsed(content), _parsed(metadata)
        code, cell_id = request["code"], about.get("cellId")
        if request.get("silent"):
            return None
        digest = source_digest(code) if len(code) <= MAX_SOURCE else ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return (cell_id if isinstance(cell_id, str) else None), digest


def _parsed(part: Any) -> Any:
    return json.loads(bytes(part)) if isinstance(part, (bytes, memoryview)) else part


def send_for(session: Any, stream: Any, incoming_msg: Any) -> None:
    """Send a websocket message to a kernel for a tab whose websocket is closed."""
    if isinstance(incoming_msg, bytes):
        _, parts = deserialize_msg_from_ws_v1(incoming_msg)
        session.send_raw(stream, parts)
    else:
        message = json.loads(incoming_msg)
        message.pop("channel", None)
        session.send(stream, message)
