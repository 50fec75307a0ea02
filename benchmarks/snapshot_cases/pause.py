"""How long a kernel stands still while a snapshot is taken in the background."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from .engine import KEY
from .measure import settle
from .session import Change


class Heartbeat:
    """A thread that wakes every millisecond and keeps the longest it had to wait."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self.longest_s = 0.0

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        last = time.perf_counter()
        while not self._stop.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            self.longest_s = max(self.longest_s, now - last)
            last = now


class Work:
    """What the kernel does meanwhile: writes to its own memory, page after page, and looks up."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._at = 0
        self.last_s = time.perf_counter()
        self.longest_s = 0.0

    def tick(self) -> None:
        """Do a little, and keep the time since it was last done if that was the longest."""
        for _ in range(20):
            # The same value: pages are copied after the fork, the session stays as it was.
            self._memory[self._at] = self._memory[self._at]
            self._at = (self._at + 4096) % len(self._memory)
        now = time.perf_counter()
        self.longest_s = max(self.longest_s, now - self.last_s)
        self.last_s = now

    def during(self, going: Callable[[], bool]) -> float:
        """Tick for as long as `going`; return the longest gap between two ticks."""
        self.longest_s, self.last_s = 0.0, time.perf_counter()
        while going():
            self.tick()
        return self.longest_s


def pauses(
    change: Change,
    main: dict[str, Any],
    path: str,
    *,
    rounds: int,
    run: Callable[[str, dict[str, Any]], None],
) -> dict[str, Any]:
    """Take `rounds` automatic snapshots, each after a change; return lists of seconds.

    ``pause_told_s`` is what the engine says; ``pause_seen_s`` lies between the kernel's last work
    before and its first work after the call; ``pause_thread_s`` is the longest wait of another
    thread, ``stall_after_s`` the longest gap in the kernel's work while the child writes, and
    ``stall_alone_s`` the longest in as long a time without a snapshot. ``durable_s`` is until the
    snapshot exists.
    """
    from jupyter_gpu_predict.snapshots import begin_capture
    from jupyter_gpu_predict.snapshots.stores import open_store

    store = open_store(path)
    work = Work(memoryview(main["a0"]).cast("B"))

    def begin() -> Any:
        return begin_capture(main, store, KEY, name="auto", now_s=time.time(), kernel_id="bench")

    begin().result()
    found: dict[str, list[float]] = {
        name: []
        for name in (
            "pause_told_s",
            "pause_seen_s",
            "pause_thread_s",
            "stall_after_s",
            "stall_alone_s",
            "durable_s",
            "pause_bytes",
        )
    }
    for _ in range(rounds):
        run(change.cell, main)
        settle()
        work.tick()
        with Heartbeat() as heart:
            work.tick()
            before = work.last_s
            capture = begin()
            work.tick()
            seen = work.last_s - before
        found["pause_told_s"].append(capture.pause_s)
        found["pause_seen_s"].append(seen)
        found["pause_thread_s"].append(heart.longest_s)
        found["stall_after_s"].append(work.during(lambda c=capture: not c.poll().finished))
        report = capture.result()
        found["durable_s"].append(time.perf_counter() - before)
        found["pause_bytes"].append(report.bytes_written)
        enough = time.perf_counter() + found["durable_s"][-1]
        found["stall_alone_s"].append(work.during(lambda e=enough: time.perf_counter() < e))
    return {"samples": found}
