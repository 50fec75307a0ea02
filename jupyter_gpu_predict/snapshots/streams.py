"""Where a pickler writes: a stream kept in memory, or handed on once it has grown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from ..errors import SnapshotCancelledError
from .chunks import Buffer

FIRST_PASS_BYTES = 256 << 10
"""A variable whose stream grows past this is large, and not pickled twice if it can be helped."""

FIRST_ANSWER_BYTES = 32
"""A reference to an object that was written before is shorter than this."""

HANDED_ON_BYTES = 32 << 20
"""So much of a stream is kept in memory before it goes to the store."""

COPIED_BYTES = 64 << 20

PAYLOAD_BYTES = 1 << 20
"""One piece of data from this size on is cut apart from the stream around it."""


class TooLargeError(BaseException):
    """The stream has outgrown its limit; raised through the pickler, so not an `Exception`."""


class Endless(Exception):  # noqa: N818
    """An object's reduced form does not end."""


class Blob(Protocol):
    """A blob being written to the store."""

    def feed(self, data: Buffer) -> None:
        """Take the next bytes."""

    def close(self) -> list[tuple[str, int]]:
        """Return names and lengths of its chunks."""


class Stream:
    """The file a pickler writes to.

    Parameters
    ----------
    limit
        Raise `TooLargeError` beyond so many bytes.
    bound
        Raise `Endless` beyond so many bytes: no object of a process is larger than this.
    open_blob
        Called when the stream outgrows `kept_bytes`; without it all of it is kept in memory.
    cancelled
        Asked now and then.
    """

    def __init__(
        self,
        *,
        limit: int | None = None,
        bound: int | None = None,
        open_blob: Callable[[], Blob] | None = None,
        kept_bytes: int = HANDED_ON_BYTES,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.parts: list[Buffer] = []
        self.nbytes = 0
        self.blob: Blob | None = None
        self._payload: int | None = None
        self._diverted: list[Buffer] | None = None
        self._limit = limit
        self._bound = bound
        self._open_blob = open_blob
        self._kept_bytes = kept_bytes
        self._cancelled = cancelled

    def write(self, data: Buffer) -> int:
        """Take what the pickler has: frames of 64 KiB, and long bytes by themselves."""
        written = len(data)
        if self._diverted is not None:
            self._diverted.append(data)
            if written > FIRST_ANSWER_BYTES:
                raise TooLargeError
            return written
        if type(data) is bytearray:
            # The user's own object. A copy cannot change under the hash; a view of one too long
            # to be copied at least keeps its length.
            data = bytes(data) if written <= COPIED_BYTES else memoryview(data)
        if written == self._payload:
            self._payload = None
        else:
            data, self._payload = _without_frame(data)
        self.nbytes += len(data)
        if self._limit is not None and self.nbytes > self._limit:
            raise TooLargeError
        if self._bound is not None and self.nbytes > self._bound:
            raise Endless(
                f"its reduced form has passed {self.nbytes >> 20} MiB and does not end; "
                "see what its __reduce__ returns"
            )
        if self._cancelled is not None and self._cancelled():
            raise SnapshotCancelledError("the save was cancelled; earlier snapshots are whole")
        if self.blob is not None:
            self.blob.feed(data)
            return written
        self.parts.append(data)
        if self._open_blob is not None and self.nbytes > self._kept_bytes:
            self.blob = self._open_blob()
            for part in self.parts:
                self.blob.feed(part)
            self.parts.clear()
        return written

    @contextmanager
    def diverted(self) -> Iterator[list[Buffer]]:
        """Yield a list that gets what is written inside the block, instead of the stream.

        Raises `TooLargeError` at the first write that is more than a reference.
        """
        written: list[Buffer] = []
        self._diverted = written
        try:
            yield written
        finally:
            self._diverted = None

    def getvalue(self) -> bytes:
        """Return the whole stream; only for one that was kept in memory."""
        return b"".join(self.parts)


_FRAME = b"\x95"
_FRAMED_AT_HEAD = b"\x80\x05\x95"
_LONG_HEADERS = {5: b"BX", 9: b"\x8e\x8d\x96"}


def _without_frame(data: Buffer) -> tuple[Buffer, int | None]:
    """Return what a pickler wrote less its frame header, and the length of the payload to follow.

    Frames begin every 64 KiB from the start of the stream, so that behind an insertion no two
    pieces would be alike. A reader does without them.
    """
    if (
        type(data) is bytes
        and data.startswith(_FRAMED_AT_HEAD)
        and int.from_bytes(data[3:11], "little") == len(data) - 11
    ):
        return data[:2] + data[11:], None
    view = memoryview(data)
    if view[:1] == _FRAME:
        head, body = b"", view[9:]
        framed = int.from_bytes(view[1:9], "little")
    elif view[:3] == _FRAMED_AT_HEAD:
        head, body = bytes(view[:2]), view[11:]
        framed = int.from_bytes(view[3:11], "little")
    else:
        head, body, framed = b"", view, 0
    payload = None
    for length, opcodes in _LONG_HEADERS.items():
        header = body[max(framed, len(body) - length) :]
        if len(header) == length and header[0] in opcodes:
            payload = int.from_bytes(header[1:], "little")
    return (head + bytes(body) if head else body), payload
