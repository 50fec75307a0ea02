"""How quick this host was seen to be, kept over restarts."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable

from ..core.migration.cost import Bandwidths, Transfer, learn
from .ports import TraceStore


class Speeds:
    """The bandwidths of one host.

    Parameters
    ----------
    later
        Writes to the store off the event loop.
    host
        Under which name they are kept; by default the machine's.
    """

    def __init__(
        self,
        store: TraceStore,
        later: Callable[[Callable[[], None]], None],
        host: str | None = None,
    ) -> None:
        self.now = Bandwidths()
        self._store, self._later = store, later
        self._host = host or platform.node()

    async def load(self) -> None:
        """Begin with what was learned before."""
        kept = await asyncio.to_thread(self._store.bandwidths, self._host)
        self.now = Bandwidths.from_json(kept)

    def learned(self, kind: Transfer, moved_bytes: int, seconds: float) -> None:
        """Learn from a measured transfer; one that moved nothing or took no time says nothing."""
        if seconds <= 0 or (moved_bytes <= 0 and kind is not Transfer.HELPER):
            return
        self.now = learn(self.now, kind, moved_bytes, seconds)
        kept = self.now.to_json()
        self._later(lambda: self._store.save_bandwidths(self._host, kept))
