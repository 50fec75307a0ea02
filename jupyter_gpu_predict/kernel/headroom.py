"""More GPU memory is asked for while a cell runs, before its allocator meets the cap.

The cell does not wait for it: what is granted raises the cap under it, what is refused is asked for
again later, and for less.

An operation that fails all the same is not made to wait and be tried again: a mode that could catch
it makes small operations 1.9 to 3.5 times as slow, and must be on before, in the cell's own thread;
and an operation may have changed its arguments before it failed.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .gate import Grant
from .memory import device_in_use
from .messages import DemandMessage

if TYPE_CHECKING:
    from .agent import Agent

LOOK_S = 0.05

FAR_S = 0.2
"""Between looks while less than half of the cap is needed: a look takes 0.3 ms of the cell's."""

NEAR = 0.85
"""Share of its cap from which on a growing cell asks for more."""

WINDOW_S = 0.5
"""The rate of growth is that of the looks of this long."""

GRANT_S = 2.0
"""How long a grant takes, until one was seen."""

ANSWER_S = 60.0
"""What was not answered within this is lost: a neighbour's memory takes its time to come out."""

PAUSE_S = 0.25
PAUSE_LIMIT_S = 8.0
"""How long nothing is asked for after a refusal: doubles with each, up to the limit."""

STEP = 1 / 8
"""Share of the GPU that a cell of which nothing is known asks for on top, if it does not grow
faster: what it is granted is nobody else's until it ends, used or not."""

SMALLEST = 1 / 32
"""Share of the GPU; an ask that was refused is halved down to this."""


class Rise:
    """How a cell's need of memory grows."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque()

    def seen(self, now_s: float, held_bytes: int) -> None:
        """Note what is held now."""
        self._looks.append((now_s, held_bytes))
        # The last one from before the window stays: the rise since then is the window's.
        while len(self._looks) > 1 and self._looks[1][0] <= now_s - WINDOW_S:
            self._looks.popleft()

    def per_s(self) -> float:
        """Return the bytes per second; one leap is no rate, however high."""
        looks = list(self._looks)
        rises = sum(after[1] > before[1] for before, after in itertools.pairwise(looks))
        if rises < 2:
            return 0.0
        (first_s, first), (last_s, last) = looks[0], looks[-1]
        return (last - first) / max(last_s - first_s, LOOK_S)


class Asks:
    """When one cell asks for more, and for how much; time is told."""

    def __init__(self, expected_bytes: int) -> None:
        self.expected_bytes = expected_bytes
        self.rise = Rise()
        self._refusals = 0
        self._not_before_s = 0.0
        self._asked_at_bytes = 0

    def wanted(
        self, now_s: float, held_bytes: int, cap_bytes: int, total_bytes: int, grant_s: float
    ) -> int | None:
        """Return the bytes to ask for in all, ``None`` while there is no need to.

        Parameters
        ----------
        held_bytes
            What the cell has needed so far.
        cap_bytes, total_bytes
            What its allocator may take, and what the GPU has.
        grant_s
            How long a grant takes.
        """
        self.rise.seen(now_s, held_bytes)
        expected = self.expected_bytes
        if held_bytes <= self._asked_at_bytes or now_s < self._not_before_s:
            return None
        if held_bytes <= expected <= cap_bytes or cap_bytes >= total_bytes:
            return None
        growth_bytes = int(self.rise.per_s() * grant_s)
        if held_bytes < NEAR * cap_bytes and held_bytes + growth_bytes < cap_bytes:
            return None
        more = max(2 * growth_bytes, int(STEP * total_bytes))
        if expected > cap_bytes:
            more = expected - cap_bytes
        more >>= self._refusals
        self._asked_at_bytes = held_bytes
        return min(total_bytes, cap_bytes + max(more, int(SMALLEST * total_bytes)))

    def granted(self, now_s: float) -> None:
        """Note that it got what it asked for; a cap that rises by less leaves it asking on."""
        self._refusals, self._not_before_s = 0, now_s + PAUSE_S

    def refused(self, now_s: float) -> None:
        """Note that it did not."""
        self._not_before_s = now_s + min(PAUSE_LIMIT_S, PAUSE_S * 2**self._refusals)
        self._refusals = min(self._refusals + 1, 16)


class Headroom:
    """Watches the allocator from a thread of its own while a cell runs, and asks for the cell."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._asks: Asks | None = None
        self._lock = threading.Lock()
        self._runs = threading.Event()
        self._asked: tuple[str, float] | None = None
        self._grant_s = GRANT_S

    def start(self) -> None:
        """Begin to watch; before any cell runs, or the thread would pass for one of its own."""
        threading.Thread(target=self._watch, name="gpu-predict-headroom", daemon=True).start()

    @contextmanager
    def watching(self, expected_bytes: int) -> Iterator[None]:
        """Watch while a cell runs in the block; of several at once, the one that began last."""
        asks = self._asks = Asks(expected_bytes)
        self._runs.set()
        try:
            yield
        finally:
            if self._asks is asks:
                self._end()

    def _end(self) -> None:
        # With the lock: a look under way would pass for a thread at work.
        with self._lock:
            self._runs.clear()
            self._asks = None
            asked, self._asked = self._asked, None
        if asked is not None:
            self.agent.gate.withdraw(asked[0], "its cell has ended")

    def _watch(self) -> None:
        pause_s = LOOK_S
        while True:
            self._runs.wait()
            # Before the look: most cells are over by then, and cost nothing.
            time.sleep(pause_s)
            with self.agent._never_in_the_way("how near a cell is to its cap"), self._lock:
                pause_s = FAR_S if self._look(time.monotonic()) else LOOK_S

    def _look(self, now_s: float) -> bool:
        """Ask for more if that is due; return whether the cap is far away."""
        agent, asks = self.agent, self._asks
        module, cap = device_in_use(agent.config.device), agent.cap
        if asks is None or module is None or cap.bytes is None or cap.total_bytes is None:
            return False
        if self._asked is not None:
            if now_s - self._asked[1] < ANSWER_S:
                return False
            agent.gate.withdraw(self._asked[0], "it was not answered")
            self._ended(None)
        held, reserved = _held_bytes(module.memory_stats())
        wanted = asks.wanted(now_s, held, cap.bytes, cap.total_bytes, self._grant_s)
        if wanted is None:
            return held < cap.bytes / 2
        # The server knows what the kernel had before the cell; what it has now is not to come on
        # top of what it asks for.
        used = max(reserved, agent.recorder.used_bytes)
        agent.link.notify(DemandMessage(used, agent.suspended_bytes))
        claim_id = agent.gate.ask(
            wanted,
            self._answered,
            priority=agent.stated.priority,
            affinity=agent._affinity(),
            deadline_s=ANSWER_S,
        )
        self._asked = claim_id, now_s
        return False

    def _answered(self, claim_id: str, grant: Grant | None) -> bool:
        """Take the server's answer, in the thread in which it came; false if it waits no more."""
        with self._lock:
            if self._asked is None or self._asked[0] != claim_id:
                return False
            self._ended(grant)
        if grant is not None:
            with self.agent.lock:
                self.agent._take(grant)
        return True

    def _ended(self, grant: Grant | None) -> None:
        now_s, asked = time.monotonic(), self._asked
        self._asked = None
        if self._asks is None or asked is None:
            return
        if grant is None:
            self._asks.refused(now_s)
        else:
            self._grant_s = now_s - asked[1]
            self._asks.granted(now_s)


def _held_bytes(stats: dict[str, Any]) -> tuple[int, int]:
    """Return what of the cap is really needed, and what the allocator has reserved.

    The most that was allocated at once and the free parts of blocks in use cannot be given back;
    other free blocks go when the cap is met.
    """
    reserved = int(stats.get("reserved_bytes.all.current", 0))
    peak = int(stats.get("allocated_bytes.all.peak", 0))
    split = int(stats.get("inactive_split_bytes.all.current", 0))
    return min(reserved, peak + split), reserved
