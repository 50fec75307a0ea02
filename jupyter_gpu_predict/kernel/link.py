"""The kernel's end of the kernel link: requests on control, notices on iopub."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import GpuPredictError, KernelLinkError, LinkTimeoutError
from .messages import TOPIC, CallMessage, Message, decode

NOTIFIED = "notified"
"""Field of notices, their number, and of replies, the number of the last notice before them."""

Answer = dict[str, Any]
Handler = Callable[[Any], "Answer | Awaitable[Answer]"]


class Prompt:
    """Work that is only good if the shell can begin it soon; else `refusal` is the answer."""

    def __init__(self, work: Any, within_s: float, refusal: GpuPredictError) -> None:
        self.work = work
        self.within_s = within_s
        self.refusal = refusal
        self._decided = threading.Lock()

    def begin(self) -> bool:
        """Claim the work for the shell; false if it was given up."""
        return self._decided.acquire(blocking=False)

    def abandon(self) -> bool:
        """Give it up; false if it has begun."""
        return self._decided.acquire(blocking=False)


class KernelLink:
    """Sends notices and answers requests for one ipykernel.

    A control handler returns at once, because control messages are handled one at a time and an
    interrupt must not wait behind ours; what needs longer is a coroutine, run on the shell's loop,
    whose reply goes out when it is done.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self._calls: dict[str, tuple[threading.Event, list[Answer]]] = {}
        self._tasks: set[Any] = set()
        self._notified = 0
        self._order = threading.Lock()

    def notify(self, message: Message) -> None:
        """Publish a notice; safe from any thread."""
        session = self.kernel.session
        with self._order:
            self._notified += 1
            # A parent of our own type: with the running cell's as parent, every notice would count
            # as the user's activity and reset the culling clock.
            session.send(
                self.kernel.iopub_socket,
                message.msg_type,
                {**message.content(), NOTIFIED: self._notified},
                parent=session.msg_header(message.msg_type),
                ident=TOPIC + message.msg_type.encode(),
            )

    def on(self, request: type[Message], handler: Handler) -> None:
        """Answer `request` messages by `handler`; a coroutine runs on the shell's event loop."""

        async def dispatch(stream: Any, ident: Any, parent: dict[str, Any]) -> None:
            def reply(content: Answer) -> None:
                self.kernel.session.send(
                    stream,
                    request.msg_type.replace("_request", "_reply"),
                    {**content, NOTIFIED: self._notified},
                    parent,
                    ident,
                )

            try:
                outcome = handler(decode(request, parent["content"]))
            except GpuPredictError as error:
                reply(_failure(error))
                return
            if isinstance(outcome, dict):
                reply(outcome)
            else:
                self._later(outcome, reply)

        self.kernel.control_handlers[request.msg_type] = dispatch

    def _later(self, work: Any, reply: Callable[[Answer], Any]) -> None:
        """Run `work` on the shell's loop and reply when it is done."""
        control_loop = asyncio.get_running_loop()
        answer = control_loop.create_future()
        answer.add_done_callback(lambda future: reply(future.result()))

        def settle(content: Answer) -> None:
            if not answer.done():
                answer.set_result(content)

        async def run() -> None:
            prompt = work if isinstance(work, Prompt) else None
            if prompt is not None and not prompt.begin():
                prompt.work.close()
                return
            content = await _settle(prompt.work if prompt is not None else work)
            control_loop.call_soon_threadsafe(settle, content)

        def not_begun() -> None:
            if work.abandon():
                settle(_failure(work.refusal))

        if isinstance(work, Prompt):
            control_loop.call_later(work.within_s, not_begun)
        task = asyncio.run_coroutine_threadsafe(run(), self.kernel.io_loop.asyncio_loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def call(self, method: str, params: dict[str, Any], timeout_s: float = 10.0) -> Any:
        """Ask the server something from the main thread and wait for its answer.

        Raises
        ------
        LinkTimeoutError
            If no server answers in time.
        KernelLinkError
            With the server's own message, if it refused.
        """
        call_id = uuid.uuid4().hex
        event: threading.Event = threading.Event()
        box: list[Answer] = []
        self._calls[call_id] = event, box
        try:
            self.notify(CallMessage(call_id, method, params))
            if not event.wait(timeout_s):
                raise LinkTimeoutError(
                    f"the Jupyter server did not answer `{method}` within {timeout_s:g} s; "
                    "is its extension jupyter_gpu_predict enabled?"
                )
        finally:
            del self._calls[call_id]
        if not box[0]["ok"]:
            raise KernelLinkError(str(box[0]["error"]))
        return box[0]["result"]

    def answered(self, call_id: str, answer: Answer) -> None:
        """Hand the server's answer to the magic that waits for it."""
        if call_id in self._calls:
            event, box = self._calls[call_id]
            box.append(answer)
            event.set()


async def _settle(work: Awaitable[Answer]) -> Answer:
    try:
        return await work
    except GpuPredictError as error:
        return _failure(error)
    except Exception as error:
        return {"status": "error", "reason": f"{type(error).__name__}: {error}", "code": "internal"}


def _failure(error: GpuPredictError) -> Answer:
    return {
        "status": "error",
        "reason": str(error),
        "code": error.reason,
        "http_status": error.status,
    }
