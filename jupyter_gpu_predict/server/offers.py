"""What a user whose kernel has died can have back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from ..core.retention import latest
from ..errors import GpuPredictError
from ..snapshots.stores import SnapshotStore

log = logging.getLogger(__name__)

FIND_TIMEOUT_S = 5.0
"""How long the start of a kernel waits for the list of snapshots."""


class Offers:
    """Finds the last snapshot of each kernel that died, and keeps it until it is restored.

    After a restart that the user asked for nothing is offered: the state was given up on purpose.
    """

    def __init__(self, store: SnapshotStore, event: Callable[..., None]) -> None:
        self.store = store
        self._event = event
        self._died: dict[str, tuple[str, float]] = {}
        self._offers: dict[str, dict[str, Any]] = {}

    def died(self, kernel_id: str, how: str) -> None:
        """Take note that a kernel died."""
        self._died[kernel_id] = how, time.time()

    async def find(self, kernel_id: str, notebook: str | None) -> dict[str, Any] | None:
        """Return what to offer to the user of a kernel that is being started."""
        died = self._died.pop(kernel_id, None)
        self._offers.pop(kernel_id, None)
        if died is None:
            return None
        how, died_s = died
        try:
            listed = await asyncio.wait_for(asyncio.to_thread(self.store.list), FIND_TIMEOUT_S)
        except (GpuPredictError, asyncio.TimeoutError) as error:
            log.warning("No snapshot is offered to kernel %s: %s", kernel_id, error)
            listed = []
        found = latest((s for s in listed if s.verified is not False), kernel_id, notebook)
        self._event(
            "kernel_died",
            kernel_id=kernel_id,
            notebook=notebook,
            reason=how,
            snapshot_id=None if found is None else found.snapshot_id,
            name=None if found is None else found.name,
        )
        if found is None:
            return None
        offer = {
            "id": found.snapshot_id,
            "name": found.name,
            "created_s": found.created_s,
            "bytes": found.nbytes,
            "variables": found.variables,
            "reason": found.labels.get("reason"),
            "died": how,
            "died_s": died_s,
        }
        self._offers[kernel_id] = offer
        return offer

    def of(self, kernel_id: str) -> dict[str, Any] | None:
        """Return what is offered to a kernel's user now."""
        return self._offers.get(kernel_id)

    def ids(self) -> set[str]:
        """Return the ids of all snapshots on offer."""
        return {offer["id"] for offer in self._offers.values()}

    def settled(self, kernel_id: str) -> None:
        """Offer nothing more: the user has something back, or shut the kernel down."""
        self._offers.pop(kernel_id, None)

    def deleted(self, snapshot_id: str) -> None:
        """Do not offer what is gone."""
        for kernel_id in [k for k, o in self._offers.items() if o["id"] == snapshot_id]:
            del self._offers[kernel_id]
