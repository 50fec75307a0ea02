"""Suspend and restore: move device memory to the host and back under living tensors.

A storage keeps its identity, its views and everything that refers to it; only its pointer changes.
While it is suspended whatever reads or writes it reads and writes the host copy.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import DeviceError, RefusedError
from .accelerator import AcceleratorAdapter
from .exports import export_reason, install_export_tracking
from .holdings import Holdings, check_device, scan
from .loaded import loaded_torch
from .moving import Adapter, move_back, move_out
from .reach import Reach
from .reports import RestoreReport, SuspendReport, summed
from .segments import Segment, choose_by_segment
from .simulated import SimulatedAdapter
from .watching import watch
from .work import threads_at_work

UNSEEN = "in use by something that only the allocator knows of"
SLICE_BYTES = 256 << 20
"""`Offloader.restore_some` moves at most so much at a time, and then looks at what was allowed."""


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
        Folder for what goes to disk (all of a simulated GPU's memory, of others what the host's
        memory does not hold); made with mode 0700 if absent.
    at_work : callable, optional
        Returns a sentence for each thread whose work forbids moving memory now.
    last_use : callable, optional
        Returns when storages were last used, by their ``_cdata``: larger is later, absent is
        never (`UseLog.by_storage`). The coldest are suspended first and restored last.

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
        last_use: Callable[[], Mapping[int, int]] = dict,
    ) -> None:
        if device != "simulated":
            check_device(loaded_torch(), device)
        self.device = device
        self._adapter: Adapter = (
            SimulatedAdapter(str(spill_dir))
            if device == "simulated"
            else AcceleratorAdapter(device, str(spill_dir))
        )
        self._at_work = at_work
        self._last_use = last_use
        self._held: list[_Suspended] = []
        self._lock = threading.RLock()
        _offloaders.add(self)

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

        Where the allocator tells its segments, enough of these fall free as a whole; the coldest
        go first. Called while suspended it takes what was created since.

        Raises
        ------
        RefusedError
            If memory cannot be moved safely now; the message names why. Nothing was changed.
        StorageFullError
            If the host copy does not fit. Nothing was changed.
        DeviceError
            If the device fails meanwhile; the message says what is where.
        """
        started = time.perf_counter()
        with self._lock:
            torch = loaded_torch()
            if torch is None:
                return SuspendReport(0, 0, (), time.perf_counter() - started)
            install_export_tracking()
            self._refuse_if_unsafe(torch, "suspended")
            self._prune()
            holdings = scan(self.device)
            if holdings.graphs:
                raise RefusedError(
                    f"{holdings.graphs} CUDA graphs are alive and hold fixed addresses; delete "
                    "them to let this kernel's memory be moved"
                )
            segments = self._adapter.segments(torch)
            unseen = holdings.unseen_bytes([b for s in segments for b in s.blocks])
            stay = ((s.reason, s.nbytes) for s in holdings.skipped if s.on_device)
            kept = summed([*stay, (UNSEEN, unseen)])
            storages, chosen = self._choose(holdings, segments, wanted_bytes)
            del holdings
            freed, count = sum(s.nbytes() for s in storages), len(storages)
            spilled = 0
            if storages:
                watch(torch, self, on=True)
                try:
                    spilled = move_out(self._adapter, torch, storages, self._last_use, self._note)
                finally:
                    storages.clear()
                    self._prune()
                    watch(torch, self, on=bool(self._held))
            elif segments:
                self._adapter.settle(torch)  # what was deleted is still in torch's cache
        seconds = time.perf_counter() - started
        return SuspendReport(freed, count, kept, seconds, spilled, chosen)

    def restore(self, first: Iterable[Any] | None = None) -> RestoreReport:
        """Bring suspended storages back to the device: all, or what `first` leads to.

        What is not brought back stays suspended, is right wherever it is used, and comes with
        `restore_some`. A storage whose host copy another library got hold of meanwhile stays
        there, stays right and is named; a later call tries it again.

        Parameters
        ----------
        first : iterable of objects, optional
            Values that are about to be used, e.g. `UseLog.next_values`.

        Raises
        ------
        DeviceError
            If the device has no room or fails. Nothing was changed.
        RefusedError
            If memory cannot be moved safely now. Nothing was changed; it can be used as it is.
        """

        def bring(torch: Any, storages: list[Any]) -> tuple[int, int]:
            if first is not None:
                with torch._C.DisableTorchFunction():
                    wanted = Reach(torch).storages(first)
                storages[:] = [s for s in storages if s._cdata in wanted]
            return self._bring(torch, storages)

        return self._return(bring)

    def restore_some(
        self, budget_bytes: int = SLICE_BYTES, budget_s: float = float("inf")
    ) -> RestoreReport:
        """Bring some of what is suspended back, the warmest first, until a budget is used up.

        At least one storage comes back unless none can. For the time between cells after a
        `restore` of only what was to be used at once.

        Raises
        ------
        DeviceError
            If the device has no room for even the first or fails. Nothing was changed.
        RefusedError
            If memory cannot be moved safely now. Nothing was changed; it can be used as it is.
        """
        ends = time.perf_counter() + budget_s

        def bring(torch: Any, storages: list[Any]) -> tuple[int, int]:
            ranks = self._last_use() if storages else {}
            storages.sort(key=lambda s: -ranks.get(s._cdata, 0))
            nbytes = count = 0
            most = SLICE_BYTES
            while storages and (not count or time.perf_counter() < ends):
                if count and nbytes >= budget_bytes:
                    break
                part = _slice(storages, min(most, budget_bytes - nbytes))
                wanted, several = sum(s.nbytes() for s in part), len(part)
                try:
                    self._bring(torch, part)
                except DeviceError:
                    if several > 1:
                        most = wanted // 2  # half of it may still find room
                        continue
                    if count:
                        break  # what came back is there, and the next call says what is wrong
                    raise
                del storages[:several]
                nbytes += wanted
                count += several
            return nbytes, count

        return self._return(bring)

    def bring_back(self, storage: Any) -> None:
        """Bring one storage back at once, if it is suspended here.

        Raises
        ------
        DeviceError
            If the device has no room or fails. Nothing was changed.
        """
        with self._lock:
            torch = loaded_torch()
            if any(h.living() is storage for h in self._held):
                self._bring(torch, [storage])

    def release(self) -> None:
        """Give the host memory back that is kept so that the next suspend is faster."""
        self._adapter.release()

    def _note(self, storages: Sequence[Any], addresses: Sequence[int]) -> None:
        self._held.extend(
            _Suspended(weakref.ref(s), a, s.nbytes())
            for s, a in zip(storages, addresses, strict=True)
        )

    def _prune(self) -> None:
        self._held = [h for h in self._held if h.living() is not None]

    def _movable(self) -> tuple[list[Any], tuple[tuple[str, int], ...]]:
        """Return the suspended storages that can come back, and why others cannot."""
        self._prune()
        moved, why = [], []
        for held in self._held:
            storage = held.living()
            if storage is not None:
                reason = export_reason(storage)
                if reason is None:
                    moved.append(storage)
                else:
                    why.append((reason, held.nbytes))
        return moved, summed(why)

    def _return(self, bring: Callable[[Any, list[Any]], tuple[int, int]]) -> RestoreReport:
        """Let `bring` have what can come back; it tells the bytes and storages that did."""
        started = time.perf_counter()
        with self._lock:
            torch = loaded_torch()
            if torch is None or not self._held:
                return RestoreReport(0, 0, (), time.perf_counter() - started)
            self._refuse_if_unsafe(torch, "restored")
            storages, why = self._movable()
            nbytes, count = bring(torch, storages)
        seconds = time.perf_counter() - started
        return RestoreReport(nbytes, count, why, seconds, self.suspended_bytes)

    def _bring(self, torch: Any, storages: list[Any]) -> tuple[int, int]:
        nbytes, count = sum(s.nbytes() for s in storages), len(storages)
        if storages:
            move_back(self._adapter, torch, storages)
            storages.clear()
        self._prune()
        watch(torch, self, on=bool(self._held))
        return nbytes, count

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

    def _choose(
        self, holdings: Holdings, segments: Sequence[Segment], wanted_bytes: int | None
    ) -> tuple[list[Any], str]:
        everything = list(holdings.storages)
        if wanted_bytes is None:
            return everything, ""
        last_use = self._last_use() if wanted_bytes > 0 else {}
        if segments:
            some = choose_by_segment(segments, everything, wanted_bytes, last_use)
            if some is None:
                return everything, "everything: all that can be moved frees less than was wanted"
        else:
            some, freed = [], 0
            for s in sorted(everything, key=lambda s: (last_use.get(s._cdata, 0), -s.nbytes())):
                if freed >= wanted_bytes:
                    break
                some.append(s)
                freed += s.nbytes()
        return some, _words(some, len(everything), last_use)


def _words(some: Sequence[Any], total: int, last_use: Mapping[int, int]) -> str:
    if not some or not last_use:
        return f"{len(some)} of {total} storages; none is known to be colder"
    warmest = max(last_use.get(s._cdata, 0) for s in some)
    if not warmest:
        return f"the coldest {len(some)} of {total} storages: no cell that was seen named them"
    ago = max(last_use.values()) - warmest
    return f"the coldest {len(some)} of {total} storages: last named {ago} cells before the latest"


def _slice(storages: list[Any], budget_bytes: int) -> list[Any]:
    """Return the first storages of so many bytes together, and at least one."""
    nbytes = count = 0
    for storage in storages:
        if count and nbytes + storage.nbytes() > budget_bytes:
            break
        nbytes += storage.nbytes()
        count += 1
    return storages[:count]


_offloaders: weakref.WeakSet[Offloader] = weakref.WeakSet()


def _in_forked_child() -> None:
    # The thread that held a lock at the fork is not here to let go of it.
    for offloader in _offloaders:
        offloader._lock = threading.RLock()


os.register_at_fork(after_in_child=_in_forked_child)
