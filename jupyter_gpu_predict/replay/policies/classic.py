"""Policies to compare with that give whole GPUs and never halt a running burst."""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import islice

from ..engine import OVER, THINKS, Book, Gpu, Simulation


class Exclusive:
    """What the policies of whole GPUs share: a holder goes on at once, others come in turn."""

    name = "exclusive"
    free = False

    def begin(self, sim: Simulation) -> None:
        """Take note of a simulation that begins."""

    def asked(self, sim: Simulation, book: Book) -> None:
        """Start a book that holds a GPU."""
        if book.gpu is not None:
            sim.start(book)

    def ended(self, sim: Simulation, book: Book) -> None:
        """Let the GPU of a book go that has no more bursts."""
        if book.phase == OVER:
            sim.drop(book)

    def decide(self, sim: Simulation) -> None:
        """Give GPUs to those that wait, the first in turn first."""
        if not sim.waiting:
            return
        for book in self.turns(sim):
            gpu = self.room(sim, book)
            if gpu is None:
                return
            sim.give(book, gpu)

    def turns(self, sim: Simulation) -> list[Book]:
        """Return who waits, in turn; no more than can be served at once."""
        return list(islice(sim.waiting.values(), len(sim.gpus)))

    def room(self, sim: Simulation, book: Book) -> Gpu | None:
        """Return a GPU that nobody holds, having made it so if need be."""
        return free_gpu(sim)


def free_gpu(sim: Simulation) -> Gpu | None:
    """Return a GPU that nobody holds, the one that is cleared first."""
    free = [g for g in sim.gpus if not g.residents]
    return min(free, key=lambda g: (g.clear_s, g.index), default=None)


def idle_holders(sim: Simulation) -> list[Book]:
    """Return the books that hold a GPU and neither work nor wait, nor are on their way."""
    return [
        book
        for gpu in sim.gpus
        if not gpu.running and not gpu.coming
        for book in gpu.residents.values()
        if book.phase == THINKS
    ]


def take_least_recent(sim: Simulation) -> Gpu | None:
    """Suspend the idle holder whose last burst ended first; return its GPU."""
    victim = min(idle_holders(sim), key=lambda b: (b.ended_s, b.index), default=None)
    if victim is None:
        return None
    gpu = victim.gpu
    sim.take(victim)
    return gpu


class Fifo(Exclusive):
    """Clairvoyant: a GPU costs nothing to change hands, so none is ever held idle."""

    name = "FIFO, clairvoyant"
    free = True

    def asked(self, sim: Simulation, book: Book) -> None:
        """Wait in turn, after those that asked before."""

    def ended(self, sim: Simulation, book: Book) -> None:
        """Let the GPU go."""
        sim.drop(book)


class Sjf(Fifo):
    """Clairvoyant, and the shortest burst goes first."""

    name = "SJF, clairvoyant"

    def turns(self, sim: Simulation) -> list[Book]:
        """Return who waits, the shortest burst first."""
        waiting = sorted(sim.waiting.values(), key=lambda b: (b.work_s, b.asked_s, b.index))
        return waiting[: len(sim.gpus)]


class Reservation(Exclusive):
    """A notebook keeps its GPU from its first burst to its last."""

    name = "reservation"


class OnDemand(Exclusive):
    """A GPU for each burst, given back after it (as NotebookOS does for each cell)."""

    name = "on demand"

    def ended(self, sim: Simulation, book: Book) -> None:
        """Give the GPU back."""
        if book.phase == OVER:
            sim.drop(book)
        elif book.source.think_s[book.number] > 0.0:
            sim.take(book)


class Lru(Exclusive):
    """Hold until another needs it, then take back what was used least recently."""

    name = "LRU under pressure"

    def room(self, sim: Simulation, book: Book) -> Gpu | None:
        """Return a GPU that nobody holds, or that is taken back."""
        return free_gpu(sim) or take_least_recent(sim)


class IdleTimeout(Exclusive):
    """Take a GPU back that was idle for so long; with `pressure`, also when another needs it."""

    def __init__(self, timeout_s: float, *, pressure: bool = False) -> None:
        self.timeout_s = timeout_s
        self.pressure = pressure
        self.name = f"idle timeout {timeout_s:g} s{' or pressure' if pressure else ''}"

    def ended(self, sim: Simulation, book: Book) -> None:
        """Come back to a holder when its time is over."""
        super().ended(sim, book)
        if book.gpu is not None:
            sim.wake(book.ended_s + self.timeout_s)

    def decide(self, sim: Simulation) -> None:
        """Take back what was idle for long, then serve."""
        for book in idle_holders(sim):
            if sim.now_s >= book.ended_s + self.timeout_s:
                sim.take(book)
        super().decide(sim)

    def room(self, sim: Simulation, book: Book) -> Gpu | None:
        """Return a GPU that nobody holds, or under pressure one that is taken back."""
        return free_gpu(sim) or (take_least_recent(sim) if self.pressure else None)


class Histogram(Exclusive):
    """The hybrid histogram of Shahrad et al. (ATC'20), per notebook; LRU under pressure.

    A histogram of idle times in bins of a minute up to 4 h: the state is taken back after a burst,
    brought back at the 5th percentile less a tenth, and kept until the 99th and a tenth. With fewer
    than ten idle times, or a coefficient of variation of the bins below 2, it is kept for the whole
    range; where more than half of them are beyond it, the next idle time is forecast as the mean of
    those so far, it is brought back at 85 % and kept for 30 % of that.
    """

    name = "hybrid histogram"
    _BIN_S, _BINS, _FEW = 60.0, 240, 10

    def begin(self, sim: Simulation) -> None:
        """Take note of a simulation that begins."""
        self._gaps: list[list[float]] = [[] for _ in sim.books]
        self._back: dict[int, float] = {}
        self._until: dict[int, float] = {}

    def asked(self, sim: Simulation, book: Book) -> None:
        """Note how long the book was idle."""
        gaps = self._gaps[book.index]
        if math.isfinite(book.ended_s):
            gaps.insert(bisect_left(gaps, sim.now_s - book.ended_s), sim.now_s - book.ended_s)
        self._back.pop(book.index, None)
        self._until.pop(book.index, None)
        super().asked(sim, book)

    def ended(self, sim: Simulation, book: Book) -> None:
        """Choose the window in which the state is to be on a GPU."""
        super().ended(sim, book)
        if book.phase != THINKS:
            return
        back_s, until_s = self._window(self._gaps[book.index])
        if back_s >= self._BIN_S:
            self._back[book.index] = sim.now_s + back_s
            sim.wake(sim.now_s + back_s)
        self._until[book.index] = sim.now_s + until_s
        sim.wake(sim.now_s + until_s)

    def _window(self, gaps: list[float]) -> tuple[float, float]:
        span_s = self._BIN_S * self._BINS
        inside = gaps[: bisect_left(gaps, span_s)]
        if len(gaps) >= self._FEW and len(inside) < len(gaps) / 2:
            next_s = sum(gaps) / len(gaps)
            return 0.85 * next_s, 1.15 * next_s
        if len(inside) < self._FEW or self._variation(inside) < 2.0:
            return 0.0, span_s
        low = inside[int(0.05 * (len(inside) - 1))]
        high = inside[math.ceil(0.99 * (len(inside) - 1))]
        bin_s = self._BIN_S
        return 0.9 * bin_s * (low // bin_s), 1.1 * bin_s * (high // bin_s + 1)

    def _variation(self, inside: list[float]) -> float:
        counts = [0] * self._BINS
        for gap in inside:
            counts[int(gap // self._BIN_S)] += 1
        mean = len(inside) / self._BINS
        return math.sqrt(sum((c - mean) ** 2 for c in counts) / self._BINS) / mean

    def decide(self, sim: Simulation) -> None:
        """Take back and bring back what the windows say, then serve."""
        now = sim.now_s
        for book in idle_holders(sim):
            early = now < self._back.get(book.index, 0.0)
            if early or now >= self._until.get(book.index, math.inf):
                sim.take(book)
        super().decide(sim)
        for index in [i for i, back_s in self._back.items() if back_s <= now]:
            del self._back[index]
            book, gpu = sim.books[index], free_gpu(sim)
            if book.gpu is None and book.phase == THINKS and gpu is not None:
                sim.give(book, gpu, ahead=True)

    def room(self, sim: Simulation, book: Book) -> Gpu | None:
        """Return a GPU that nobody holds, or that is taken back."""
        return free_gpu(sim) or take_least_recent(sim)
