"""Writers and the removal of garbage kept apart by marker objects, where there are no locks.

Each side puts its marker first and looks for the other's then, so that at least one of two sees
the other: a writer waits until the collector has gone, a collector gives up. Ages are differences
between times that the store gave, so that clocks of machines do not matter.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator

from ...errors import SnapshotError
from .backend import Backend, Entry

FOLDER = "markers"

WRITER_STALE_S = 1800.0
"""Age at which the marker of a writer is taken for that of a dead one."""

COLLECTOR_STALE_S = 300.0
"""The same for a collector, which renews its marker all the time.

Writers wait this long for one that died. It must be longer than a third of itself and the longest
request, all its repetitions counted, together: a collector begins none when its marker is older.
"""

_WAIT_S = 0.1


class Marker:
    """A marker that is kept fresh by calling `renew` often enough."""

    def __init__(self, backend: Backend, kind: str, stale_s: float) -> None:
        self._backend = backend
        self._stale_s = stale_s
        self.name = f"{FOLDER}/{kind}-{secrets.token_hex(8)}"
        self.put()

    def put(self) -> None:
        """Write the marker, anew if it is there."""
        # Taken before, so that the marker is never older than we think.
        self._put_at = _clocks()
        self._backend.put(self.name, str(os.getpid()).encode())

    def remove(self) -> None:
        """Take the marker away; one that cannot be removed goes stale."""
        with contextlib.suppress(SnapshotError):
            self._backend.delete(self.name)

    def others(self) -> tuple[list[Entry], list[Entry]]:
        """Return the other markers that are fresh, and those that are stale."""
        entries = self._backend.entries(FOLDER)
        now_s = max((e.modified_s for e in entries if e.name == self.name), default=0.0)
        fresh: list[Entry] = []
        stale: list[Entry] = []
        for entry in entries:
            if entry.name != self.name:
                limit_s = COLLECTOR_STALE_S if _is_collector(entry) else WRITER_STALE_S
                (stale if now_s - entry.modified_s > limit_s else fresh).append(entry)
        return fresh, stale

    def age_s(self) -> float:
        """Return how long ago it was put; one of the clocks goes on while a machine sleeps."""
        return max(now - then for now, then in zip(_clocks(), self._put_at, strict=True))


class WriterMarker(Marker):
    """The right to write."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend, "writer", WRITER_STALE_S)

    def wait(self) -> None:
        """Return when no collector is at work."""
        while True:
            fresh, stale = self.others()
            for entry in stale:
                if _is_collector(entry):
                    self._backend.delete(entry.name)
            if not any(_is_collector(entry) for entry in fresh):
                return
            time.sleep(_WAIT_S)
            self.put()

    def renew(self) -> bool:
        """Put the marker again from time to time; False if it had gone stale before."""
        age_s = self.age_s()
        if age_s < self._stale_s / 20:
            return True
        self.put()
        if age_s < self._stale_s / 2:
            return True
        self.wait()
        return False


class CollectorMarker(Marker):
    """The right to remove garbage."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend, "collector", COLLECTOR_STALE_S)

    def renew(self) -> bool:
        """Put the marker again from time to time; once False nothing more may be removed."""
        age_s = self.age_s()
        if age_s >= self._stale_s / 3:
            return False
        if age_s >= self._stale_s / 12:
            self.put()
        return True


@contextlib.contextmanager
def writing(backend: Backend) -> Iterator[WriterMarker]:
    """Hold off collectors, waiting for one at work."""
    marker = WriterMarker(backend)
    try:
        marker.wait()
        yield marker
    finally:
        marker.remove()


@contextlib.contextmanager
def collecting(backend: Backend) -> Iterator[CollectorMarker | None]:
    """Hold off writers; gives None if there is one, or another collector."""
    marker = CollectorMarker(backend)
    try:
        fresh, stale = marker.others()
        if fresh:
            yield None
        else:
            for entry in stale:
                backend.delete(entry.name)
            yield marker
    finally:
        marker.remove()


def _is_collector(entry: Entry) -> bool:
    return entry.name.startswith(f"{FOLDER}/collector-")


def _clocks() -> tuple[float, float]:
    return time.monotonic(), time.time()
