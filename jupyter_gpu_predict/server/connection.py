"""The websocket connection of a notebook, able to hold its messages while a kernel is not ready.

Holding covers two moments: until the agent is in a new kernel, and while a kernel moves to another
process. What was sent and not yet answered when the process changes is sent again to the new one;
the old one was held before it could start on it, so nothing runs twice and nothing is lost.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any, Protocol

from jupyter_server.services.kernels.connection.base import deserialize_msg_from_ws_v1

from ..kernel.messages import TOPIC

_DELIMITER = b"<IDS|MSG>"
_HELD_CHANNELS = frozenset({"shell", "control"})


class ConnectionHub(Protocol):
    """What connections need of the extension."""

    def holding(self, kernel_id: str) -> bool:
        """Whether messages for this kernel are held now."""

    def is_own(self, frames: list[bytes]) -> bool:
        """Whether a message answers one of the extension's own requests."""

    def connected(self, connection: Any) -> None:
        """Take note of a connection."""

    def unanswered(self, kernel_id: str, session_key: str) -> OrderedDict[str, tuple[str, Any]]:
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
            self.gpu_held: list[Any] = []
            self.gpu_closed = False
            hub.connected(self)

        @property
        def gpu_unanswered(self) -> OrderedDict[str, tuple[str, Any]]:
            return hub.unanswered(self.kernel_id, self.session_key)

        def disconnect(self) -> Any:
            self.gpu_closed = True
            return super().disconnect()

        def handle_incoming_message(self, incoming_msg: Any) -> None:
            channel, msg_id, msg_type = self._address(incoming_msg)
            if channel in _HELD_CHANNELS and (self.gpu_held or hub.holding(self.kernel_id)):
                self.gpu_held.append(incoming_msg)
                return
            self._pass_on(channel, msg_id, msg_type, incoming_msg)

        def _pass_on(self, channel: str, msg_id: str, msg_type: str, incoming_msg: Any) -> None:
            if channel == "shell" and msg_type.endswith("_request"):
                self.gpu_unanswered[msg_id] = msg_type, incoming_msg
                if msg_type == "execute_request":
                    hub.queue_changed(self.kernel_id)
            super().handle_incoming_message(incoming_msg)

        def handle_outgoing_message(self, stream: Any, outgoing_msg: list[Any]) -> None:
            channel = stream if isinstance(stream, str) else getattr(stream, "channel", None)
            if channel == "iopub" and (
                bytes(outgoing_msg[0]).startswith(TOPIC) or hub.is_own(outgoing_msg)
            ):
                return
            if channel == "shell" and (unanswered := self.gpu_unanswered):
                answered = unanswered.pop(header_of(outgoing_msg, 1).get("msg_id", ""), None)
                if answered is not None and answered[0] == "execute_request":
                    hub.queue_changed(self.kernel_id)
            super().handle_outgoing_message(stream, outgoing_msg)

        def gpu_release(self, *, repeat_unanswered: bool) -> None:
            """Send what was held; with `repeat_unanswered`, first what was never answered."""
            if repeat_unanswered:
                for _, message in list(self.gpu_unanswered.values()):
                    super().handle_incoming_message(message)
            held, self.gpu_held = self.gpu_held, []
            for message in held:
                self._pass_on(*self._address(message), message)

        def _address(self, incoming_msg: Any) -> tuple[str, str, str]:
            """Return channel, message id and message type."""
            if self.subprotocol == "v1.kernel.websocket.jupyter.org":
                channel, parts = deserialize_msg_from_ws_v1(incoming_msg)
                header = json.loads(bytes(parts[0]))
            elif isinstance(incoming_msg, bytes):
                count = int.from_bytes(incoming_msg[:4], "big")
                offsets = [
                    int.from_bytes(incoming_msg[4 + 4 * i : 8 + 4 * i], "big") for i in range(count)
                ]
                end = offsets[1] if count > 1 else len(incoming_msg)
                message = json.loads(incoming_msg[offsets[0] : end])
                channel, header = message.get("channel"), message["header"]
            else:
                message = json.loads(incoming_msg)
                channel, header = message.get("channel"), message["header"]
            return channel or "shell", str(header["msg_id"]), str(header["msg_type"])

    HoldingConnection.__name__ = f"Holding{base.__name__}"
    return HoldingConnection


def send_for(session: Any, stream: Any, incoming_msg: Any) -> None:
    """Send a websocket message to a kernel for a tab whose websocket is closed."""
    if isinstance(incoming_msg, bytes):
        _, parts = deserialize_msg_from_ws_v1(incoming_msg)
        session.send_raw(stream, parts)
    else:
        message = json.loads(incoming_msg)
        message.pop("channel", None)
        session.send(stream, message)
