"""Saves and restores under way in this kernel: their progress, their end, and how to stop them."""

from __future__ import annotations

import atexit
import contextlib
import functools
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..core.autosave import automatic_name, save_before
from ..core.trace.digest import source_digest
from ..errors import ConflictError, GpuPredictError, NotFoundError, SnapshotCancelledError
from .messages import NOT_BEGUN, ProgressMessage, SnapshotRequest

if TYPE_CHECKING:
    from ..snapshots.background import BackgroundCapture
    from .agent import Agent
    from .omit import Omitter

TELL_S = 0.25
"""Progress is told at most this often."""

KEPT_WORKS = 20
"""So many that are over can still be asked about: a notice of an end may be lost."""


class Work:
    """One save or restore."""

    def __init__(self, agent: Agent, work_id: str, kind: str, cause: str) -> None:
        self.agent = agent
        self.work_id = work_id or uuid.uuid4().hex
        self.kind = kind
        self.cause = cause
        self.began_s = time.time()
        self.state = "running"
        self.done_bytes = self.total_bytes = 0
        self.result: Any = None
        self.error: str | None = None
        self.code: str | None = None
        self._stop = threading.Event()
        self._told_at = 0.0

    @property
    def message(self) -> ProgressMessage:
        """What there is to say about it now."""
        return ProgressMessage(
            self.work_id, self.kind, self.state, self.done_bytes, self.total_bytes,
            self.cause, self.result, self.error, self.code,
        )  # fmt: skip

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        """Take note of the progress and tell the server now and then."""
        self.done_bytes, self.total_bytes = done_bytes, total_bytes
        now = time.monotonic()
        if now - self._told_at >= TELL_S:
            self._told_at = now
            self.agent.link.notify(self.message)

    def stop(self) -> None:
        """Ask it to stop."""
        self._stop.set()

    def stopped_within(self, seconds: float) -> bool:
        """Wait, and return early with true when it is asked to stop."""
        return self._stop.wait(seconds)

    def cancelled(self) -> bool:
        """Whether it was asked to stop."""
        return self._stop.is_set()

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        """Tell the server how it ended."""
        self.result = result
        if error is None:
            self.state = "done"
        else:
            cancelled = isinstance(error, SnapshotCancelledError | KeyboardInterrupt)
            self.state = "cancelled" if cancelled else "failed"
            ours = isinstance(error, GpuPredictError)
            self.error = str(error) if ours else f"{type(error).__name__}: {error}"
            self.code = error.reason if isinstance(error, GpuPredictError) else "internal"
        self.agent.link.notify(self.message)


class Saves:
    """What this kernel saves and loads, at most one of it behind the back of cells."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.long_cell_s = agent.config.long_cell_s
        self.durations = dict(agent.config.durations)
        self.changed = False
        """Whether a cell has run that no snapshot holds."""
        self.pause_s = 0.0
        """For how long the last save behind the back of cells held them up."""
        self._works: OrderedDict[str, Work] = OrderedDict()
        self._given_up: deque[str] = deque(maxlen=KEPT_WORKS)
        self._under_way: tuple[Work, BackgroundCapture] | None = None
        atexit.register(self.close)

    @functools.cached_property
    def omitter(self) -> Omitter:
        """What is known of leaving variables out; a kernel that saves nothing does not load it."""
        from .omit import Omitter

        return Omitter()

    @property
    def busy(self) -> bool:
        """Whether a save is being written behind the back of cells."""
        return self._under_way is not None

    # ------------------------------------------------------------------ asked for

    @contextlib.contextmanager
    def foreground(self, work_id: str, kind: str, cause: str = "asked") -> Iterator[Work]:
        """Follow a save or restore that is carried out in the block."""
        work = self._open(work_id, kind, cause)
        try:
            yield work
        except BaseException as error:
            work.end(error=error)
            raise
        work.end(work.result)

    def begin(self, request: SnapshotRequest) -> Work:
        """Catch the state now, on the main thread between cells, and have it written meanwhile.

        Raises
        ------
        ConflictError
            If one is being written already.
        """
        from ..snapshots import ties
        from .state import begin_save

        if self.busy:
            raise ConflictError(
                f"kernel {self.agent.config.kernel_id}: a snapshot is being written already; "
                "try again when it is there"
            )
        work = self._open(request.work_id, "snapshot", request.cause)
        try:
            background, not_carried = begin_save(self.agent, request)
        except BaseException as error:
            work.end(error=error)
            raise
        self.pause_s = time.time() - work.began_s
        self.changed = False
        self._under_way = work, background
        pid = background.pid or 0
        ties.OWN_CHILDREN.add(pid)
        threading.Thread(
            target=self._follow,
            args=(work, background, pid, not_carried),
            name="gpu-predict-save",
            daemon=True,
        ).start()
        return work

    def _follow(
        self, work: Work, background: BackgroundCapture, pid: int, not_carried: list[str]
    ) -> None:
        """Wait for the end of a save, in a thread: the shell's loop belongs to the running cell."""
        from ..snapshots import ties
        from .state import saved_model

        try:
            while not (seen := background.poll()).finished:
                work.progress(seen.done_bytes, seen.total_bytes)
                if work.stopped_within(TELL_S):
                    background.cancel()
                    break
            report = background.result()
        except Exception as error:
            background.cancel()
            ended: tuple[Any, BaseException | None] = None, error
        else:
            model = {**saved_model(report, not_carried), "pause_s": self.pause_s}
            work.done_bytes = work.total_bytes = report.total_bytes
            ended = model, None
        ties.OWN_CHILDREN.discard(pid)
        if ended[1] is not None:
            self.changed = True
        self._under_way = None
        work.end(*ended)

    def _open(self, work_id: str, kind: str, cause: str) -> Work:
        if work_id in self._given_up:
            raise SnapshotCancelledError(f"{kind} {work_id} was cancelled before it began")
        work = Work(self.agent, work_id, kind, cause)
        self._works[work.work_id] = work
        while len(self._works) > KEPT_WORKS:
            self._works.popitem(last=False)
        return work

    def asked(self, work_id: str, *, cancel: bool) -> dict[str, Any]:
        """Answer how far a save or restore has come, and stop it if asked.

        Raises
        ------
        NotFoundError
            If this kernel knows nothing of it.
        """
        work = self._works.get(work_id)
        if work is None and cancel:
            # It waits for the running cell on the shell's loop, which cannot be reached now.
            self._given_up.append(work_id)
            return {"status": "ok", **ProgressMessage(work_id, "", NOT_BEGUN, 0, 0).content()}
        if work is None:
            raise NotFoundError(
                f"kernel {self.agent.config.kernel_id} knows of no save or restore {work_id}"
            )
        if cancel:
            work.stop()
        return {"status": "ok", **work.message.content()}

    def close(self) -> None:
        """Give up what is being written; what was saved before is whole."""
        if self._under_way is not None:
            work, background = self._under_way
            work.stop()
            with contextlib.suppress(Exception):
                background.cancel()

    # ------------------------------------------------------------------ of itself

    def before_cell(self, code: str) -> None:
        """Save the state before a cell that is expected to run for long."""
        expected_s = self.durations.get(source_digest(code), 0.0)
        if self.busy or not self.changed or self.agent.active > 1:
            return
        if threading.current_thread() is not threading.main_thread():
            return  # a subshell: cells of the main shell may be running
        if not save_before(expected_s, self.long_cell_s, self.pause_s):
            return
        config = self.agent.config
        request = SnapshotRequest(
            name=automatic_name(config.notebook, config.kernel_id),
            folder=config.snapshot_folder,
            key_path=config.key_path,
            notebook=config.notebook,
            background=True,
            cause="long cell",
        )
        with self.agent.lock:
            self.begin(request)

    def after_cell(self, code: str, seconds: float) -> None:
        """Take note of a cell that has run."""
        self.changed = True
        if seconds >= 1.0:
            digest = source_digest(code)
            self.durations[digest] = max(self.durations.get(digest, 0.0) / 2, seconds)
