"""Policies to compare with that halt running bursts; whole GPUs, held until another needs one."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from ..engine import RUNS, Book, Gpu, Simulation
from .classic import Lru, free_gpu, take_least_recent

_AFTER_S = 1e-6
"""Rounding must not wake a policy just before what it waits for."""


class Preempting(Lru):
    """Halts the running burst with the largest rank for one whose rank is `factor` times less.

    No burst is halted within `minimum_s` of its last start.
    """

    name = "preempting"
    factor = 2.0
    minimum_s = 60.0

    def rank_s(self, sim: Simulation, book: Book) -> float:
        """Return the seconds by which bursts are compared; less goes first."""
        raise NotImplementedError

    def ready_s(self, sim: Simulation, running: Book, waiting: Book) -> float:
        """Return when a running burst may be halted for a waiting one, ``inf`` for never."""
        raise NotImplementedError

    def turns(self, sim: Simulation) -> list[Book]:
        """Return who waits, the least rank first."""
        rank = partial(self.rank_s, sim)
        return sorted(sim.waiting.values(), key=lambda b: (rank(b), b.asked_s, b.index))

    def decide(self, sim: Simulation) -> None:
        """Serve, then come back when somebody can be halted."""
        super().decide(sim)
        if not sim.waiting:
            return
        running = [b for g in sim.gpus for b in g.running.values()]
        at = [self._halts_s(sim, r, w) for w in sim.waiting.values() for r in running]
        sim.wake(min((t for t in at if t > sim.now_s), default=math.inf))

    def room(self, sim: Simulation, book: Book) -> Gpu | None:
        """Return a GPU that nobody holds, that is taken back, or whose burst is halted."""
        gpu = free_gpu(sim) or take_least_recent(sim)
        if gpu is not None:
            return gpu
        can = [
            b
            for g in sim.gpus
            for b in g.running.values()
            if b.phase == RUNS and self._halts_s(sim, b, book) <= sim.now_s
        ]
        if not can:
            return None
        victim = max(can, key=lambda b: (self.rank_s(sim, b), b.index))
        gpu = victim.gpu
        sim.halt(victim)
        return gpu

    def _halts_s(self, sim: Simulation, running: Book, waiting: Book) -> float:
        return max(running.seen_s + self.minimum_s, self.ready_s(sim, running, waiting))


class LeastAttained(Preempting):
    """Least attained service: who has had least goes first; who has waited long goes before."""

    name = "LAS"
    age_s = 120.0

    def rank_s(self, sim: Simulation, book: Book) -> float:
        """Return what a burst has had, and nothing for one that has waited long."""
        if book.phase != RUNS and sim.now_s - self._since_s(book) >= self.age_s:
            return -1.0
        return book.had_s(sim.now_s)

    def ready_s(self, sim: Simulation, running: Book, waiting: Book) -> float:
        """Return when the running one will have had enough, or the other waited long enough."""
        enough = max(self.minimum_s, self.factor * waiting.attained_s)
        has_had_s = running.seen_s + enough - running.attained_s
        return min(has_had_s, self._since_s(waiting) + self.age_s)

    def _since_s(self, book: Book) -> float:
        return max(book.asked_s, book.switched_s)


class ShortestRemaining(Preempting):
    """Shortest predicted remaining time; predictions are off by a factor, log-normal by `error`."""

    def __init__(self, error: float = math.e) -> None:
        self.error = error
        self.name = f"SRPT, predicted to a factor {error:.3g}"

    def begin(self, sim: Simulation) -> None:
        """Draw the errors; one of a burst stays with it."""
        rng = np.random.default_rng(len(sim.books))
        spread = math.log(self.error)
        self._factor = [
            np.exp(spread * rng.standard_normal(len(b.source.work_s))).tolist() for b in sim.books
        ]

    def rank_s(self, sim: Simulation, book: Book) -> float:
        """Return the predicted remaining seconds; past the prediction, as long as it has lasted."""
        had_s = book.had_s(sim.now_s)
        whole_s = book.work_s * self._factor[book.index][book.number]
        return whole_s - had_s if whole_s > had_s else had_s

    def ready_s(self, sim: Simulation, running: Book, waiting: Book) -> float:
        """Return when the waiting one will be expected to be over much sooner, maybe now.

        Past its prediction a running burst is expected to last for ever longer.
        """
        enough_s = self.factor * self.rank_s(sim, waiting)
        if enough_s <= self.rank_s(sim, running):
            return sim.now_s
        had_s = running.had_s(sim.now_s)
        whole_s: float = running.work_s * self._factor[running.index][running.number]
        return sim.now_s + max(whole_s, enough_s) - had_s + _AFTER_S
