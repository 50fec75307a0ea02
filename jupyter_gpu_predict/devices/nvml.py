"""Real GPUs through NVML; nothing that a driver does or leaves undone reaches the caller."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ..core.model import GpuHealth, GpuStatus
from ..errors import ConflictError, DeviceError, NotFoundError
from .mps import daemon_runs, limits
from .nvml_listing import Listing, let_go, list_gpus
from .nvml_mig import read_slice, shown
from .nvml_reading import DriverGoneError, KnownGpu, lost_status, read_gpu
from .patience import NoAnswerYetError, Patience, PatientCall

UNREADABLE = "unreadable-"
"""Beginning of the made-up uuid of a GPU that does not tell its own."""

REMEDY = (
    "Install the NVIDIA driver (in a container: start it with the NVIDIA container toolkit), or "
    "use simulated GPUs with GpuPredict.device_backend = 'simulated'."
)


class NvmlGpus:
    """The GPUs that the NVIDIA driver lists and ``CUDA_VISIBLE_DEVICES`` allows.

    NVML is loaded by `start`, or by the first `read`. A value that cannot be read is ``None``; a
    GPU or a driver that is gone makes its GPUs lost, with the reason among their problems, until
    the driver lists them again. In place of a GPU in MIG mode stand its slices.

    Parameters
    ----------
    patience
        How long to wait for what.
    clock
        Gives the present time in seconds since the epoch.
    environ
        Environment whose ``CUDA_VISIBLE_DEVICES`` counts; by default this process's.
    torch_device
        Type of torch device that these GPUs are in a kernel.

    Notes
    -----
    Every method may be called from any thread.
    """

    name = "nvml"
    simulated = False

    def __init__(
        self,
        patience: Patience | None = None,
        *,
        clock: Callable[[], float] = time.time,
        environ: Mapping[str, str] | None = None,
        torch_device: str = "cuda",
    ) -> None:
        self.torch_device = torch_device
        self._patience = patience or Patience()
        self._clock = clock
        self._environ = os.environ if environ is None else environ
        self._lock = threading.Lock()
        self._nvml: Any = None
        self._up = False
        self._down_reason = "it was not asked yet"
        self._retry_at_s = 0.0
        self._look_again_s: float | None = None
        self._driver = ""
        self._cuda: tuple[int, int] | None = None
        self._known: dict[str, KnownGpu] = {}
        self._last: dict[str, GpuStatus] = {}
        self._shown: dict[str, GpuStatus] = {}
        self._listed: Listing | None = None
        self._calls: dict[str, PatientCall[GpuStatus]] = {}
        self._listing: PatientCall[Listing] = PatientCall("nvml-start")
        self._looking: PatientCall[Listing] = PatientCall("nvml-look")
        self._loading_s: float | None = None
        self._held = False
        self._void_events: list[Any] = []

    @property
    def driver_version(self) -> str:
        """Version of the driver that answered last, ``""`` before one did."""
        return self._driver

    @property
    def cuda_version(self) -> tuple[int, int] | None:
        """Newest CUDA that driver runs, e.g. ``(12, 8)``; ``None`` if it does not say."""
        return self._cuda

    @property
    def down_reason(self) -> str:
        """Why no driver answers, ``""`` while one does."""
        return "" if self._up else self._down_reason

    def start(self) -> None:
        """Load NVML and list the GPUs.

        Raises
        ------
        DeviceError
            If no driver answers.
        """
        with self._lock:
            self._start(self._patience.start_s)

    def read(self) -> tuple[GpuStatus, ...]:
        """Return the present state of every GPU, a lost one included; never raises."""
        with self._lock:
            if self._up:
                self._look_for_changes()
            if not self._up and time.monotonic() >= self._retry_at_s:
                self._try_start()
            if self._up and (gone := self._ask_all()) is not None:
                # Somebody else in this process may have shut NVML down: that is mended at once.
                self._go_down(gone)
                self._try_start()
                if self._up and (gone := self._ask_all()) is not None:
                    self._go_down(gone)
                    self._retry_at_s = time.monotonic() + self._patience.retry_s
            if not self._up:
                self._last = {uuid: self._without_driver(g) for uuid, g in self._known.items()}
            elif not any(status.lost for status in self._last.values()) and all(
                gpu.cut is None for gpu in self._known.values()
            ):
                self._look_again_s = None
            elif self._look_again_s is None:
                self._look_again_s = time.monotonic() + self._patience.retry_s
            mps = daemon_runs(self._environ)
            found = sorted(shown(self._known, self._last), key=lambda status: status.index)
            self._shown = {
                status.uuid: replace(status, mps=(status.mps or mps) and not status.lost)
                for status in found
            }
            return tuple(self._shown.values())

    def visible(self, setting: str | None) -> list[list[str]]:
        """Return those last listed that each entry of such a ``CUDA_VISIBLE_DEVICES`` allows."""
        return [] if self._listed is None else self._listed.visible(setting)

    def account(self, memory: Mapping[str, Mapping[int, int]]) -> None:
        """Do nothing: the memory of real GPUs is measured."""

    def script_health(self, uuid: str, **changes: Any) -> GpuHealth:
        """Refuse: the health of real GPUs is measured.

        Raises
        ------
        NotFoundError
            If there is no such GPU.
        ConflictError
            Always otherwise.
        """
        self._find(uuid)
        raise ConflictError(
            f"The health of GPU {uuid!r} cannot be set ({', '.join(sorted(changes))}): it is a "
            "real GPU. Use GpuPredict.device_backend = 'simulated' to script health."
        )

    def environment(self, uuid: str, lease_bytes: int = 0) -> dict[str, str]:
        """Return ``CUDA_VISIBLE_DEVICES`` for one GPU or slice and, under MPS, the lease's limits.

        Raises
        ------
        NotFoundError
            If there is no such GPU.
        """
        self._find(uuid)
        status = self._shown.get(uuid)
        held = (
            limits(lease_bytes, status.total_bytes, self._environ) if status and status.mps else {}
        )
        return {"CUDA_VISIBLE_DEVICES": uuid, **held}

    def close(self) -> None:
        """Let NVML go; a later `read` loads it again."""
        with self._lock:
            self._go_down("it was closed")
            # To shut NVML down under a call that hangs would hang as well.
            if not (self._hangs() or self._listing.hangs):
                self._let_go()

    def _find(self, uuid: str) -> KnownGpu:
        gpu = self._known.get(uuid)
        if gpu is None or (self._shown and uuid not in self._shown):
            names = ", ".join(self._shown or self._known) or "none"
            raise NotFoundError(f"There is no GPU {uuid!r}: the GPUs are {names}.")
        return gpu

    # ----------------------------------------------------------------- the driver

    def _try_start(self) -> None:
        try:
            self._start(self._patience.answer_s)
        except DeviceError:
            # `_start` has kept the reason; `read` shows it with every GPU. An answer that is still
            # under way is collected as soon as it is there.
            if self._loading_s is None:
                self._retry_at_s = time.monotonic() + self._patience.retry_s

    def _start(self, timeout_s: float) -> None:
        if self._up:
            return
        self._loading_s = None
        if self._hangs():
            self._down_reason = "a call to it still hangs"
        else:
            self._listing.start(self._load)
            try:
                self._adopt(self._listing.wait(timeout_s))
            except NoAnswerYetError as error:
                self._loading_s = error.waited_s
                self._down_reason = f"loading NVML has given {error}"
            except DeviceError as error:
                self._down_reason = str(error)
            except Exception as error:
                # pynvml and ctypes can raise anything on a damaged installation.
                self._down_reason = f"loading NVML failed with {type(error).__name__}: {error}"
            else:
                # What was found by the handles of before is void.
                self._looking = PatientCall("nvml-look")
                self._up = True
                return
        raise DeviceError(f"No NVIDIA driver answered ({self._down_reason}). {REMEDY}")

    def _load(self) -> Listing:
        """Let go of what an earlier listing held, and list anew; runs in a thread of its own."""
        self._let_go()
        listing = list_gpus()
        self._nvml, self._held = listing.nvml, True
        return listing

    def _let_go(self) -> None:
        void, self._void_events = self._void_events, []
        if self._held:
            self._held = False
            let_go(self._nvml, void)

    @staticmethod
    def _look() -> Listing:
        """List the GPUs while NVML stays loaded, so that those that answer are not disturbed."""
        listing = list_gpus()
        let_go(listing.nvml, ())
        return listing

    def _look_for_changes(self) -> None:
        """Now and then, see whether the driver lists a lost GPU again, or another cut of one."""
        if self._looking.asked:
            try:
                listing = self._looking.wait(0.0)
            except NoAnswerYetError:
                return
            except Exception as error:
                failure = f"Looking for the GPU failed with {type(error).__name__}: {error}."
                for uuid, status in self._last.items():
                    if status.lost and failure not in status.problems:
                        self._last[uuid] = replace(status, problems=(*status.problems, failure))
            else:
                self._adopt(listing)
            self._look_again_s = None
        elif self._look_again_s is not None and time.monotonic() >= self._look_again_s:
            if self._hangs():
                return
            if all(status.lost for status in self._last.values()):
                # A reset GPU is found only by an NVML that was loaded after the reset.
                self._look_again_s = None
                self._go_down("every GPU is lost")
            else:
                self._looking.start(self._look)

    def _adopt(self, listing: Listing) -> None:
        """Take over a list; what was known of a GPU before stays known."""
        setting = self._environ.get("CUDA_VISIBLE_DEVICES")
        allowed = listing.allowed(setting)
        self._listed = listing
        self._driver, self._cuda = listing.driver, listing.cuda
        self._known = {u: g for u, g in self._known.items() if not u.startswith(UNREADABLE)}
        self._last = {u: s for u, s in self._last.items() if u in self._known}
        unsure = {index for index, _ in listing.unreadable}
        missing = [
            gpu
            for uuid, gpu in self._known.items()
            if uuid not in allowed and not (gpu.index in unsure and self._answers(gpu))
        ]
        for gpu in (*listing.gpus, *listing.parts):
            if gpu.uuid not in allowed:
                continue
            old = self._known.get(gpu.uuid)
            if old is not None:
                gpu.switched = bool(gpu.cut) and (old.switched or not old.cut)
            if old is not None and old.handle is not None:
                old.index, old.slot, old.shares = gpu.index, gpu.slot, gpu.shares
                old.cut, old.switched = gpu.cut, gpu.switched
                continue
            if old is not None:
                gpu.xids, gpu.uncontained = old.xids, old.uncontained
                gpu.total_bytes = gpu.total_bytes or old.total_bytes
            self._known[gpu.uuid] = gpu
            self._calls.setdefault(gpu.uuid, PatientCall(f"nvml-{gpu.uuid}"))
        for gpu in missing:
            self._void(gpu)
            self._last[gpu.uuid] = lost_status(gpu, "The driver does not list the GPU any more.")
        for index, reason in listing.unreadable:
            silent = [gpu for gpu in missing if gpu.index == index]
            if setting is None and all(gpu.index != index for gpu in self._known.values()):
                # Without its uuid it can be shown, and never be leased.
                silent = [KnownGpu(f"{UNREADABLE}{index}", index, "NVIDIA GPU")]
                self._known[silent[0].uuid] = silent[0]
            for gpu in silent:
                self._last[gpu.uuid] = lost_status(gpu, f"The GPU does not answer: {reason}.")

    def _answers(self, gpu: KnownGpu) -> bool:
        last = self._last.get(gpu.uuid)
        return gpu.handle is not None and last is not None and not last.lost

    def _hangs(self) -> bool:
        return self._looking.hangs or any(call.hangs for call in self._calls.values())

    def _go_down(self, reason: str) -> None:
        self._up, self._down_reason = False, reason
        for gpu in tuple(self._known.values()):
            self._void(gpu)

    def _void(self, gpu: KnownGpu) -> None:
        """Drop a GPU's handles; a call that hangs keeps the object that it works with."""
        if gpu.events is not None:
            self._void_events.append(gpu.events)
        self._known[gpu.uuid] = replace(gpu, handle=None, events=None, watched=False)

    def _without_driver(self, gpu: KnownGpu) -> GpuStatus:
        last = self._last.get(gpu.uuid)
        if self._loading_s is not None and last is not None and not last.lost:
            return self._silent(gpu, self._loading_s)
        return lost_status(gpu, f"The NVIDIA driver does not answer ({self._down_reason}).")

    # ----------------------------------------------------------------- the GPUs

    def _ask_all(self) -> str | None:
        """Bring the last status of every GPU up to date; return why the driver is gone, if it is.

        Every GPU is asked in a thread of its own, so that one that hangs keeps no other waiting.
        """
        nvml, clock = self._nvml, self._clock
        asked = [gpu for gpu in self._known.values() if gpu.handle is not None]
        for gpu in asked:
            self._calls[gpu.uuid].start(
                partial(read_gpu, nvml, gpu, clock)
                if gpu.parent is None
                else partial(read_slice, nvml, gpu)
            )
        deadline_s = time.monotonic() + self._patience.answer_s
        gone: str | None = None
        for gpu in asked:
            try:
                status = self._calls[gpu.uuid].wait(deadline_s - time.monotonic())
            except NoAnswerYetError as error:
                status = self._silent(gpu, error.waited_s)
            except DriverGoneError as error:
                gone = str(error)
                continue
            except Exception as error:
                # What a damaged library raises must not end the server; it is shown instead.
                failure = f"Reading the GPU failed with {type(error).__name__}: {error}."
                status = replace(self._former(gpu), problems=(failure,))
            self._last[gpu.uuid] = status
        return gone

    def _former(self, gpu: KnownGpu) -> GpuStatus:
        """Return the values last read, or none, of a GPU that is not known to be lost."""
        last = self._last.get(gpu.uuid)
        if last is None or last.lost:
            return GpuStatus(
                gpu.uuid,
                gpu.index,
                gpu.name,
                gpu.total_bytes,
                simulated=False,
                parent=gpu.parent,
            )
        return last

    def _silent(self, gpu: KnownGpu, waited_s: float) -> GpuStatus:
        if waited_s >= self._patience.lost_s:
            return lost_status(gpu, f"The GPU has not answered for {waited_s:.0f} s.")
        former = self._former(gpu)
        return replace(
            former,
            health=replace(former.health, query_s=waited_s),
            problems=(f"The GPU has not answered for {waited_s:.1f} s; its values are older.",),
        )
