"""The agent inside a kernel: gate, guards, offload and the kernel link, put together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import GpuPredictError, KernelLinkError, StaleEpochError
from .caps import Cap
from .gate import ClaimRefused, Gate, Grant, install_refusal, refusing
from .growth import Growth
from .guard import install_guards
from .link import KernelLink
from .memory import device_in_use
from .messages import DemandMessage, StateMessage
from .needs import Need
from .orphan import OrphanWatch
from .recorder import Recorder
from .returning import Returning
from .saves import Saves
from .views import show_offer
from .wants import Wants

_INTERRUPTED = "It was interrupted before it began; the cell did not run."


@dataclass(frozen=True)
class AgentConfig:
    """What the server tells the agent at boot.

    `device` is the type of torch device that the GPUs are, such as ``"cuda"``, or ``"simulated"``
    where torch's CPU memory stands in for a GPU's.
    `snapshot_folder` is a path or the URL of a store. A cell expected to run `long_cell_s` or more
    by the `durations` of earlier runs (by digest) is preceded by a snapshot. `offer` is the
    snapshot that a user whose kernel has died may want back. `recompute` lets each restore run
    cells again for what was not saved and saves leave that out; `observe_cells` records the cells.
    """

    kernel_id: str
    device: str
    gpu_uuid: str | None
    simulated: bool
    lease_bytes: int
    epoch: int
    spill_dir: str
    snapshot_folder: str
    key_path: str
    dill_dir: str
    claim_deadline_s: float = 300.0
    notebook: str | None = None
    server_pid: int = 0
    orphan_timeout_s: float = 3600.0
    peaks: dict[str, int] = field(default_factory=dict)
    long_cell_s: float = 0.0
    durations: dict[str, float] = field(default_factory=dict)
    offer: dict[str, Any] | None = None
    recompute: bool = False
    observe_cells: bool = True


@dataclass
class LeaseNote:
    """What the kernel knows of its lease; `checkpointed`: the driver has the memory."""

    gpu_uuid: str | None
    bytes: int
    epoch: int
    checkpointed: bool = False


class Agent:
    """One kernel's side of the bargain: claim before use, give back when asked, lose nothing."""

    def __init__(self, shell: Any, config: AgentConfig) -> None:
        self.shell = shell
        self.kernel = shell.kernel
        self.config = config
        self.lease = LeaseNote(config.gpu_uuid, config.lease_bytes, config.epoch)
        self.peaks = dict(config.peaks)
        self.stated = Need()
        self.cap = Cap(config.device)
        self.wants = Wants(self)
        self.growth = Growth(self)
        self.environ_at_start = dict(os.environ)
        self.lock = threading.RLock()
        self._handlers = 0
        self._cells: set[int] = set()
        self.held = False
        self._unheld: asyncio.Event | None = None
        self._offloader: Any = None
        self.returning = Returning(self)
        self.link = KernelLink(self.kernel)
        self.gate = Gate(self.link, config.claim_deadline_s)
        self.recorder = Recorder(self)
        self.orphan_watch = OrphanWatch(self)
        self.saves = Saves(self)
        self.offer = config.offer
        self._offer_shown = False
        self.session_id = uuid.uuid4().hex

    # ------------------------------------------------------------------ install

    def install(self) -> None:
        """Take the kernel's hooks."""
        from . import requests
        from .magics import register
        from .offload import install_export_tracking

        install_refusal(self.shell)
        install_guards(self.kernel, self)
        self._inner_execute = self.kernel.do_execute
        self.kernel.do_execute = self._do_execute
        requests.register(self)
        register(self.shell, self)
        install_export_tracking()
        self.cap.install()
        self.growth.install()
        self.orphan_watch.start()

    # ------------------------------------------------------------------ state

    @property
    def offloader(self) -> Any:
        """The in-place offload engine; made on first use, because it needs torch loaded."""
        if self._offloader is None:
            from .offload import Offloader

            self._offloader = Offloader(
                self.config.device, self.config.spill_dir, last_use=self.returning.last_use
            )
        return self._offloader

    @property
    def suspended(self) -> bool:
        """Whether device memory of this kernel was taken back."""
        return self.suspended_bytes > 0

    @property
    def suspended_bytes(self) -> int:
        """Bytes that were taken back and wait in host memory."""
        if self._offloader is None or self.returning.active:
            return 0
        return int(self._offloader.suspended_bytes)

    def check_epoch(self, epoch: int) -> None:
        """Refuse a command older than the newest this kernel has seen."""
        if epoch < self.lease.epoch:
            raise StaleEpochError(
                f"kernel {self.config.kernel_id}: command of epoch {epoch} is older than the "
                f"lease's epoch {self.lease.epoch}; it was ignored"
            )

    @property
    def active(self) -> int:
        """How many cells and handlers may be touching user objects."""
        return self._handlers + len(self._cells)

    def touching(self, delta: int) -> None:
        """Count handlers that may be touching user objects."""
        with self.lock:
            self._handlers += delta

    def notify_state(self, event: str, **extra: Any) -> None:
        """Tell the server that something about this kernel changed."""
        self.link.notify(
            StateMessage(
                event=event,
                busy=self.active > 0,
                used_bytes=self.recorder.used_bytes,
                suspended_bytes=self.suspended_bytes,
                epoch=self.lease.epoch,
                pid=os.getpid(),
                **extra,
            )
        )

    def notify_demand(self, keep_reason: str | None = None) -> None:
        """Tell the server what this kernel holds."""
        self.link.notify(DemandMessage(self.recorder.used_bytes, self.suspended_bytes, keep_reason))

    # ------------------------------------------------------------------ holding for a move

    def hold(self) -> None:
        """Let no further shell message be handled, until `unhold`."""
        self.gate.clear_notes()
        self.held = True
        self._unheld = asyncio.Event()

    def unhold(self) -> None:
        """Go on as if nothing had been."""
        self.held = False
        if self._unheld is not None:
            self._unheld.set()

    async def pass_hold(self) -> None:
        """Wait while the kernel is held for a move."""
        while self.held and self._unheld is not None:
            await self._unheld.wait()

    # ------------------------------------------------------------------ cells

    async def _do_execute(self, code: str, silent: bool, *args: Any, **kwargs: Any) -> Any:
        why: str | None = None
        # By thread: however often an interrupt comes between, one cell is counted once.
        thread = threading.get_ident()
        try:
            await self._admit(code, args, kwargs, thread)
        except ClaimRefused as refused:
            why = str(refused)
        except KeyboardInterrupt:
            why = _INTERRUPTED
        self._cells.add(thread)
        why = self._before_cell(code, silent, why, kwargs.get("cell_id"))
        reply: dict[str, Any] = {}
        started = time.monotonic()
        try:
            with refusing(why):
                reply = await self.growth.run(self._inner_execute, code, silent, *args, **kwargs)
        finally:
            self._cells.discard(thread)
            self.returning.soon()
            # An interrupt that comes now comes too late, and must not cost the cell its reply.
            late = contextlib.suppress(KeyboardInterrupt)
            with late, self._never_in_the_way("the end of a cell"):
                self.recorder.end(reply, refused=why is not None)
                if not silent:
                    self.saves.after_cell(code, time.monotonic() - started)
        return reply

    def _before_cell(self, code: str, silent: bool, why: str | None, cell_id: Any) -> str | None:
        """Show an offer, save if that is due, note the start; return why not to run the cell."""
        try:
            if not silent and why is None:
                with self._never_in_the_way("the snapshot before a cell"):
                    if self.offer is not None and not self._offer_shown:
                        self._offer_shown = True
                        show_offer(self.kernel, self.offer, code)
                    self.saves.before_cell(code)
            with self._never_in_the_way("the start of a cell"):
                if not silent:
                    self.returning.uses.note(code)
                self.recorder.begin(None if silent else code, cell_id)
        except KeyboardInterrupt:
            # Raised on, it would cost the cell its reply, and what is queued behind it would run.
            return _INTERRUPTED
        return why

    @contextlib.contextmanager
    def _never_in_the_way(self, what: str) -> Iterator[None]:
        """Log a fault of our bookkeeping instead of letting it cost the user a reply."""
        try:
            yield
        except Exception:
            self.kernel.log.exception("gpu-predict: %s was not recorded", what)

    async def _admit(
        self, code: str, args: tuple[Any, ...], kwargs: dict[str, Any], thread: int
    ) -> None:
        """Let the cell in `thread` in once its memory is there; counted as touching on return."""
        stated = self.wants.stated_by(code)
        while True:
            with self.lock:
                wanted = self.wants.bytes(code, args, kwargs, stated.bytes)
                if wanted is None:
                    self._cells.add(thread)
                    return
            grant = await self.gate.claim(
                wanted,
                priority=stated.priority,
                affinity=self._affinity(stated),
                critical=stated.critical,
            )
            await self.pass_hold()
            with self.lock:
                try:
                    self._take(grant)
                except StaleEpochError:
                    continue  # taken back again before this cell could begin
                self.restore_now("cell", code)
                self._cells.add(thread)
                return

    def _affinity(self, stated: Need | None = None) -> str | None:
        if device_in_use(self.config.device) is not None:
            # CUDA_VISIBLE_DEVICES has no effect any more in this process.
            return self.lease.gpu_uuid
        return None if stated is None else stated.affinity

    def _take(self, grant: Grant) -> None:
        self.check_epoch(grant.epoch)
        self.lease = LeaseNote(grant.gpu_uuid, grant.bytes, grant.epoch)
        device = self.config.device
        if device != "simulated" and device_in_use(device) is None:
            os.environ["CUDA_VISIBLE_DEVICES"] = grant.gpu_uuid

    # ------------------------------------------------------------------ memory

    def restore_now(self, cause: str, code: str | None = None) -> bool:
        """Bring suspended state back in this thread; true when nothing is suspended any more.

        For a cell's `code` only what it names comes back at once, and the rest between cells.

        Where it cannot come back now, e.g. under the hands of a thread, tensors go on working on
        their host copy.
        """
        with self.lock:
            if not self.suspended:
                return True
            try:
                report = (
                    self.offloader.restore() if code is None else self.returning.restore_for(code)
                )
            except GpuPredictError as error:
                self.kernel.log.warning("gpu-predict: %s runs on the host copy: %s", cause, error)
                return False
            self.recorder.measure()
            self.notify_state("restored", seconds=report.seconds, bytes=report.bytes)
            self.link.kernel.log.debug("gpu-predict: restored %d bytes for %s", report.bytes, cause)
            return not self.suspended

    async def before_touch(self, msg_type: str) -> None:
        """Bring suspended state back for a comm or the debugger, if it can be had in time.

        When it cannot, the message goes ahead on the host copy, which is just as right.
        """
        try:
            grant = await self.gate.claim(
                self.suspended_bytes + self.recorder.used_bytes,
                affinity=self._affinity(),
                deadline_s=min(30.0, self.config.claim_deadline_s),
                show=False,
            )
        except ClaimRefused as refused:
            self.kernel.log.warning("gpu-predict: %s runs on the host copy: %s", msg_type, refused)
            return
        with self.lock:
            self._take(grant)
            self.restore_now(msg_type)

    def keep_reason(self) -> str | None:
        """Why this kernel's memory must not be taken back now, in one sentence."""
        from .offload import tasks_at_work, threads_at_work

        reasons = (*threads_at_work(), *tasks_at_work(self.kernel.io_loop.asyncio_loop))
        return "; ".join(reasons) if reasons else None


def start(shell: Any, config: dict[str, Any]) -> Agent:
    """Install the agent into `shell`'s kernel; a second call leaves the first one be.

    Raises
    ------
    KernelLinkError
        If the kernel is no ipykernel of version 7 or later.
    """
    kernel = getattr(shell, "kernel", None)
    if kernel is None or not hasattr(kernel, "_main_asyncio_lock"):
        raise KernelLinkError("the agent needs ipykernel >= 7; update it in this environment")
    present: Agent | None = getattr(kernel, "_gpu_predict_agent", None)
    if present is not None:
        return present
    agent = Agent(shell, AgentConfig(**config))
    agent.install()
    kernel._gpu_predict_agent = agent
    return agent
