"""Suspend and restore: move device memory to the host and back under living tensors.

A storage keeps its identity, its views and everything that refers to it; only its pointer changes.
While it is suspended whatever reads or writes it reads and writes the host copy.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...errors import RefusedError
from .accelerator import AcceleratorAdapter
from .exports import export_reason, install_export_tracking, watch_numpy
from .holdings import Holdings, check_device, scan
from .loaded import loaded_torch
from .region import Region
from .segments import Segment, choose_by_segment
from .simulated import SimulatedAdapter
from .work import threads_at_work

UNSEEN = "in use by something that only the allocator knows of"


@dataclass(frozen=True, slots=True)
class SuspendReport:
    """What `Offloader.suspend` did.

    `kept` names the device memory that was left, as (reason, bytes); `seconds` is the whole call.
    """

    freed_bytes: int
    storages: int
    kept: tuple[tuple[str, int], ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What `Offloader.restore` did; `kept` names what had to stay in host memory and why."""

    bytes: int
    storages: int
    kept: tuple[tuple[str, int], ...]
    seconds: float


class Adapter(Protocol):
    """What differs between devices."""

    device: str

    def quiesce(self, torch: Any) -> None:
        """Wait until nothing in flight uses an address that is about to change."""

    def segments(self, torch: Any) -> list[Segment]:
        """Return what the allocator has of the device, as far as it keeps account."""

    def save(self, torch: Any, storages: Sequence[Any]) -> tuple[Region, list[int]]:
        """Copy the bytes of `storages` to the host; return the region and each one's offset."""

    def alias(self, torch: Any, region: Region, offset: int, storage: Any) -> Any:
        """Return a storage of `storage`'s size and device that points into `region`."""

    def attach(self, storage: Any, region: Region) -> None:
        """Keep `region` alive for as long as `storage` points into it."""

    def detach(self, storage: Any) -> None:
        """Let the storage's region go."""

    def allocate(self, torch: Any, storage: Any) -> Any:
        """Return a fresh storage of the size and device of `storage`."""

    def fetch(self, torch: Any, storage: Any, fresh: Any) -> None:
        """Copy the bytes of a suspended storage into `fresh`."""

    def settle(self, torch: Any) -> None:
        """Give freed memory back, so that others can have it."""


@dataclass(frozen=True, slots=True)
class _Suspended:
    """One storage in its host copy; the reference is weak, so that the user's `del` still frees."""

    storage: weakref.ref[Any]
    address: int
    nbytes: int

    def living(self) -> Any:
        """Return the storage if it lives and still points to its host copy."""
        storage = self.storage()
        if storage is None or storage.data_ptr() != self.address:
            # A resize or a move to shared memory made by the user took it out of our hands.
            return None
        return storage if storage.nbytes() == self.nbytes else None


class Offloader:
    """Takes the device memory of this process back and returns it, losing nothing.

    Parameters
    ----------
    device : str
        Whose memory is moved: ``"simulated"``, or a type of device of torch's such as ``"cuda"``.
    spill_dir : str
        Folder for spill files (simulated GPUs); made with mode 0700 if absent.
    at_work : callable, optional
        Returns a sentence for each thread whose work forbids moving memory now.

    Raises
    ------
    BadInputError
        If torch has no such device.
    """

    def __init__(
        self,
        device: str,
        spill_dir: str,
        at_work: Callable[[], Sequence[str]] = threads_at_work,
    ) -> None:
        if device != "simulated":
            check_device(loaded_torch(), device)
        self.device = device
        self._adapter: Adapter = (
            SimulatedAdapter(str(spill_dir))
            if device == "simulated"
            else AcceleratorAdapter(device)
        )
        self._at_work = at_work
        self._held: list[_Suspended] = []
        self._lock = threading.RLock()

    @property
    def suspended_bytes(self) -> int:
        """Bytes of living storages that wait in host memory."""
        return sum(h.nbytes for h in list(self._held) if h.living() is not None)

    @property
    def state(self) -> str:
        """``"suspended"`` while some storage waits in host memory, else ``"resident"``."""
        return "suspended" if self.suspended_bytes else "resident"

    def suspend(self, wanted_bytes: int | None = None) -> SuspendReport:
        """Move device memory to the host, all of it or so much that enough falls free.

        Where the allocator tells its segments, enough of these fall free as a whole.

        Called while suspended it takes what was created since.

        Raises
        ------
        RefusedError
            If memory cannot be moved safely now; the message names why. Nothing was changed.
        StorageFullError
            If the host copy does not fit. Nothing was changed.
        """
        started = time.perf_counter()
        with self._lock:
            torch = loaded_torch()
            if torch is None:
                return SuspendReport(0, 0, (), time.perf_counter() - started)
            install_export_tracking()
            self._refuse_if_unsafe(torch, "suspended")
            holdings = scan(self.device)
            if holdings.graphs:
                raise RefusedError(
                    f"{holdings.graphs} CUDA graphs are alive and hold fixed addresses; delete "
                    "them to let this kernel's memory be moved"
                )
            segments = self._adapter.segments(torch)
            unseen = holdings.unseen_bytes([b for s in segments for b in s.blocks])
            stay = ((s.reason, s.nbytes) for s in holdings.skipped if s.on_device)
            kept = _kept([*stay, (UNSEEN, unseen)])
            storages = _choose(holdings, segments, wanted_bytes)
            del holdings
            freed, count = sum(s.nbytes() for s in storages), len(storages)
            if storages:
                self._move_out(torch, storages)
                storages.clear()
                self._adapter.settle(torch)
        return SuspendReport(freed, count, kept, time.perf_counter() - started)

    def restore(self) -> RestoreReport:
        """Bring every suspended storage back to the device.

        A storage whose host copy another library got hold of meanwhile stays there, stays right
        and is named; a later call tries it again.

        Raises
        ------
        DeviceError
            If the device has no room. Nothing was changed.
        RefusedError
            If memory cannot be moved safely now. Nothing was changed; it can be used as it is.
        """
        started = time.perf_counter()
        with self._lock:
            torch = loaded_torch()
            if torch is None or not self._held:
                return RestoreReport(0, 0, (), time.perf_counter() - started)
            self._refuse_if_unsafe(torch, "restored")
            moved, stay, why = [], [], []
            for held in self._held:
                storage = held.living()
                if storage is None:
                    continue
                reason = export_reason(storage)
                if reason is None:
                    moved.append(storage)
                else:
                    stay.append(held)
                    why.append((reason, held.nbytes))
            del storage
            nbytes, count = sum(s.nbytes() for s in moved), len(moved)
            self._move_back(torch, moved)
            self._held = stay
            watch_numpy(torch, on=bool(stay))
        return RestoreReport(nbytes, count, _kept(why), time.perf_counter() - started)

    def _refuse_if_unsafe(self, torch: Any, what: str) -> None:
        if not hasattr(torch._C.StorageBase, "_swap_data_ptr_"):
            raise RefusedError(
                f"torch {torch.__version__} cannot move memory under living tensors; torch 2.12 "
                "or newer can (it has `_swap_data_ptr_`)"
            )
        at_work = self._at_work()
        if at_work:
            raise RefusedError(
                f"device memory cannot be {what} now: {'; '.join(at_work)}; it stays as it is"
            )

    def _move_out(self, torch: Any, storages: list[Any]) -> None:
        adapter = self._adapter
        with torch._C.DisableTorchFunction():
            adapter.quiesce(torch)
            region, offsets = adapter.save(torch, storages)
            aliases = [
                adapter.alias(torch, region, offset, storage)
                for storage, offset in zip(storages, offsets, strict=True)
            ]
        held = [
            _Suspended(weakref.ref(s), a.data_ptr(), s.nbytes())
            for s, a in zip(storages, aliases, strict=True)
        ]
        before = self._held
        self._held = [*before, *held]
        watch_numpy(torch, on=True)
        try:
            for storage in storages:
                adapter.attach(storage, region)
            _swap(torch, storages, aliases)
        except BaseException:
            self._held = before
            watch_numpy(torch, on=bool(before))
            for storage in storages:
                adapter.detach(storage)
            raise

    def _move_back(self, torch: Any, storages: list[Any]) -> None:
        adapter = self._adapter
        with torch._C.DisableTorchFunction():
            fresh: list[Any] = []
            try:
                for storage in storages:
                    fresh.append(adapter.allocate(torch, storage))  # noqa: PERF401 - seen if cut
            except BaseException:
                # What was there is somebody else's again, and not kept in the allocator's cache.
                fresh.clear()
                adapter.settle(torch)
                raise
            adapter.quiesce(torch)
            for storage, block in zip(storages, fresh, strict=True):
                adapter.fetch(torch, storage, block)
            adapter.quiesce(torch)
        _swap(torch, storages, fresh)
        fresh.clear()
        for storage in storages:
            adapter.detach(storage)


def _swap(torch: Any, storages: Sequence[Any], others: Sequence[Any]) -> None:
    """Exchange the pointers pairwise, all or none.

    The loop runs in C: no signal handler and no other thread gets in between two swaps.
    """
    swap = torch._C.StorageBase._swap_data_ptr_
    pointers = [s.data_ptr() for s in storages]
    try:
        deque(map(swap, storages, others), maxlen=0)
    except BaseException as e:
        for storage, other, pointer in zip(storages, others, pointers, strict=True):
            if storage.data_ptr() != pointer:
                swap(storage, other)
        if isinstance(e, RuntimeError):
            raise RefusedError(f"torch would not swap a storage's memory: {e}") from e
        raise


def _choose(holdings: Holdings, segments: Sequence[Segment], wanted_bytes: int | None) -> list[Any]:
    if wanted_bytes is None:
        return list(holdings.storages)
    if segments:
        some = choose_by_segment(segments, holdings.storages, wanted_bytes)
        return list(holdings.storages) if some is None else some
    chosen, freed = [], 0
    for storage in sorted(holdings.storages, key=lambda s: -int(s.nbytes())):
        if freed >= wanted_bytes:
            break
        chosen.append(storage)
        freed += storage.nbytes()
    return chosen


def _kept(pairs: Any) -> tuple[tuple[str, int], ...]:
    total: dict[str, int] = {}
    for reason, nbytes in pairs:
        if nbytes:
            total[reason] = total.get(reason, 0) + nbytes
    return tuple(total.items())
