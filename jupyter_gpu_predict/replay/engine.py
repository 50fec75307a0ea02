"""Notebooks and GPUs on a virtual clock: the mechanics that every policy shares.

Closed loop: a notebook thinks, asks for a burst, works, and thinks again, however late the burst
ended. A switch takes its time on the GPU it happens on; those of different GPUs go on side by side.
Bursts that share a GPU go at full speed while their duties sum to at most 1, and in proportion
below that (see `machine`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from ..errors import ConflictError
from .machine import FREE, Machine
from .workload import Notebook, Workload

if TYPE_CHECKING:
    from .policies import Policy

THINKS, WAITS, COMES, RUNS, HALTED, OVER = range(6)
"""Phases of a notebook: between bursts; its cell waits; a GPU is given, and its state is on its way
there; its cell runs; its cell was halted in its middle; all its bursts are done."""

_ASK, _START, _END, _WAKE = range(4)


class Gpu:
    """A GPU: whose state is on it, whose bursts run."""

    __slots__ = (
        "clear_s", "coming", "free_bytes", "idle", "idle_held", "index", "residents", "running",
        "speed",
    )  # fmt: skip

    def __init__(self, index: int, free_bytes: int) -> None:
        self.index = index
        self.free_bytes = free_bytes
        self.residents: dict[int, Book] = {}
        self.running: dict[int, Book] = {}
        self.coming = 0
        """Kernels whose state is on its way here."""
        self.clear_s = 0.0
        """When all that is on its way out is out."""
        self.speed = 1.0
        self.idle = True
        self.idle_held = False


class Book:
    """Where a notebook is in its bursts."""

    __slots__ = (
        "asked_s", "attained_s", "away_s", "bytes", "duty", "ended_s", "gpu", "has_state",
        "index", "left_s", "number", "phase", "seen_s", "since_s", "source", "switched_s",
        "unused", "version",
    )  # fmt: skip

    def __init__(self, index: int, source: Notebook, size: int) -> None:
        self.index = index
        self.source = source
        self.bytes = size
        self.duty = source.duty
        self.number = 0
        self.phase = OVER
        self.gpu: Gpu | None = None
        self.has_state = False
        self.asked_s = 0.0
        self.left_s = 0.0
        """Seconds of work left in the present burst, as of `seen_s` while it runs."""
        self.seen_s = 0.0
        self.attained_s = 0.0
        """Seconds of a GPU that the present burst had when it last stopped or changed speed."""
        self.ended_s = -math.inf
        self.since_s = 0.0
        """Since when its state is on its GPU, or on its way there."""
        self.switched_s = -math.inf
        self.away_s = 0.0
        """When its state is wholly on its GPU, or off the one it was on."""
        self.unused = False
        """Its state was brought back ahead of need, and no cell has run since."""
        self.version = 0

    @property
    def on(self) -> Gpu:
        """The GPU that its state is on, or on its way to."""
        if self.gpu is None:
            raise ConflictError(f"{self.source.name} is on no GPU; mend the policy")
        return self.gpu

    @property
    def work_s(self) -> float:
        """Work of the present burst."""
        return self.source.work_s[self.number]

    def had_s(self, now_s: float) -> float:
        """Return the seconds of a GPU that the present burst has had."""
        on = self.phase == RUNS
        return self.attained_s + (now_s - self.seen_s if on else 0.0)


@dataclass(slots=True)
class Outcome:
    """What a replay found; bursts in the order in which they ended.

    `wrongly` counts states that were brought back ahead and taken again unused. `idle_held_s` are
    GPU-seconds in which a GPU was held and nothing ran or switched on it, `beside_s` those in which
    it was so, or free, while a burst waited for one.
    """

    book: list[int] = field(default_factory=list)
    number: list[int] = field(default_factory=list)
    delay_s: list[float] = field(default_factory=list)
    work_s: list[float] = field(default_factory=list)
    idle_held_s: float = 0.0
    beside_s: float = 0.0
    switch_s: float = 0.0
    evictions: int = 0
    halts: int = 0
    moves: int = 0
    brought_back: int = 0
    wrongly: int = 0
    events: int = 0
    decisions: int = 0
    end_s: float = 0.0


FOR_EVER_S = 7 * 86_400.0
"""Seconds in which nothing happens, after which who waits is taken to wait for ever."""


class Simulation:
    """One replay. Policies act by `start`, `give`, `take`, `halt`, `drop`, `move` and `wake`."""

    def __init__(self, workload: Workload, machine: Machine, policy: Policy) -> None:
        self.machine = machine
        self.policy = policy
        self.costs = FREE if policy.free else machine.costs
        self.now_s = 0.0
        self.gpus = [Gpu(i, machine.gpu_bytes) for i in range(machine.gpus)]
        size = machine.gpu_bytes
        self.books = [
            Book(i, n, min(size, n.memory_bytes) if machine.shared else size)
            for i, n in enumerate(workload.notebooks)
        ]
        self.waiting: dict[int, Book] = {}
        """Books whose cell waits for a GPU, in the order in which they asked."""
        self.outcome = Outcome()
        self.alarm_s = math.inf
        """When the policy wants to decide next, should nothing happen before: it may put it off."""
        self._heap: list[tuple[float, int, int, int]] = []
        self._wakes: set[float] = set()
        self._idle = machine.gpus
        """GPUs on which nothing runs and to which nothing is on its way."""
        self._idle_held = 0

    # ------------------------------------------------------------------ the clock

    def run(self) -> Outcome:
        """Let time pass until every burst is done.

        Raises
        ------
        ConflictError
            If the policy gives what is not there, or lets bursts wait for ever.
        """
        heap, policy, outcome = self._heap, self.policy, self.outcome
        for book in self.books:
            if book.source.work_s:
                book.phase = THINKS
                heap.append((book.source.think_s[0], _ASK, book.index, 0))
        heapify(heap)
        policy.begin(self)
        events, last_s = 0, 0.0
        while heap or self.alarm_s < math.inf:
            now = min(heap[0][0], self.alarm_s) if heap else self.alarm_s
            self._pass(now)
            if self.alarm_s <= now:
                self.alarm_s = math.inf
            while heap and heap[0][0] == now:
                _, kind, index, version = heappop(heap)
                if kind == _WAKE:
                    self._wakes.discard(now)
                    continue
                book = self.books[index]
                if book.version != version:
                    continue
                events += 1
                last_s = now
                if kind == _ASK:
                    self._ask(book)
                elif kind == _START:
                    self._begin_work(book)
                else:
                    self._end(book)
            if not heap and now - last_s > FOR_EVER_S:
                break  # nobody thinks, works or travels, and the policy only looks again
            policy.decide(self)
        outcome.events = events
        outcome.end_s = self.now_s
        if self.waiting:
            names = ", ".join(sorted(b.source.name for b in self.waiting.values()))
            raise ConflictError(f"policy {policy.name}: {names} wait for ever; mend the policy")
        return outcome

    def _pass(self, now: float) -> None:
        passed = now - self.now_s
        if passed > 0.0:
            self.outcome.idle_held_s += passed * self._idle_held
            if self._idle and self.waiting:
                self.outcome.beside_s += passed * min(self._idle, len(self.waiting))
            self.now_s = now

    def _ask(self, book: Book) -> None:
        book.phase = WAITS
        book.asked_s = self.now_s
        book.left_s = book.work_s
        book.attained_s = 0.0
        self.waiting[book.index] = book
        self.policy.asked(self, book)

    def _end(self, book: Book) -> None:
        gpu, now, outcome = book.on, self.now_s, self.outcome
        work_s = book.work_s
        outcome.book.append(book.index)
        outcome.number.append(book.number)
        outcome.work_s.append(work_s)
        outcome.delay_s.append(max(0.0, round(now - book.asked_s - work_s, 6)))
        book.attained_s += now - book.seen_s
        book.ended_s = now
        book.version += 1
        self._stopped(gpu, book)
        book.number += 1
        if book.number < len(book.source.work_s):
            book.phase = THINKS
            asks_s = now + book.source.think_s[book.number]
            heappush(self._heap, (asks_s, _ASK, book.index, book.version))
        else:
            book.phase = OVER
        self.policy.ended(self, book)

    def _begin_work(self, book: Book) -> None:
        """Note that a book's state has come; its cell, where one waits, goes on."""
        gpu = book.on
        gpu.coming -= 1
        if book.phase == COMES:
            book.phase = RUNS
            self._started(gpu, book)
        else:
            self._recount(gpu)

    def wake(self, at_s: float) -> None:
        """Have the policy decide at a time, whatever happens before."""
        if at_s not in self._wakes and at_s < math.inf:
            self._wakes.add(at_s)
            heappush(self._heap, (at_s, _WAKE, -1, 0))

    # ------------------------------------------------------------------ what policies do

    def start(self, book: Book) -> None:
        """Let the waiting cell of a book go on whose state is on a GPU, or on its way there."""
        gpu = book.on
        del self.waiting[book.index]
        book.unused = False
        if book.away_s > self.now_s:  # on its way to it, see `give`
            book.phase = COMES
            return
        book.phase = RUNS
        self._started(gpu, book)

    def give(self, book: Book, gpu: Gpu, *, ahead: bool = False) -> None:
        """Bring a book's state to a GPU; its cell goes on there, unless it is `ahead` of need.

        Raises
        ------
        ConflictError
            If the GPU has not as much memory.
        """
        if book.gpu is not None or gpu.free_bytes < book.bytes:
            raise ConflictError(
                f"policy {self.policy.name}: GPU {gpu.index} has {gpu.free_bytes} bytes free, and "
                f"{book.source.name} wants {book.bytes}; mend the policy"
            )
        now, costs = self.now_s, self.costs
        cost_s = costs.restore_s if book.has_state else costs.bind_s
        begin_s = max(now, gpu.clear_s, book.away_s)
        ready_s = begin_s + cost_s
        self.outcome.switch_s += cost_s
        was_halted = book.phase == HALTED
        gpu.residents[book.index] = book
        gpu.free_bytes -= book.bytes
        gpu.coming += 1
        book.gpu, book.has_state, book.since_s, book.away_s = gpu, True, now, ready_s
        if was_halted:
            book.switched_s = now
        book.unused = ahead
        if ahead:
            self.outcome.brought_back += 1
        else:
            del self.waiting[book.index]
            book.phase = COMES
            book.version += 1
        heappush(self._heap, (ready_s, _START, book.index, book.version))
        self._recount(gpu)

    def take(self, book: Book, *, cost: bool = True) -> None:
        """Suspend a book whose cell does not run; without `cost` nothing is kept of it."""
        gpu, now = book.on, self.now_s
        cost_s = self.costs.suspend_s if cost else 0.0
        book.away_s = max(now, book.away_s) + cost_s
        gpu.clear_s = max(gpu.clear_s, book.away_s)
        self.outcome.wrongly += book.unused
        book.unused = False
        del gpu.residents[book.index]
        gpu.free_bytes += book.bytes
        book.gpu = None
        if cost:
            self.outcome.switch_s += cost_s
            self.outcome.evictions += 1
        self._recount(gpu)

    def drop(self, book: Book) -> None:
        """End the lease of a book that has no more bursts: its state is not wanted again."""
        if book.gpu is not None:
            self.take(book, cost=False)

    def halt(self, book: Book) -> None:
        """Suspend a book in the middle of its burst; it waits from now on."""
        gpu, now = book.on, self.now_s
        if book.phase != RUNS:
            raise ConflictError(f"{book.source.name} does not run and cannot be halted")
        book.left_s -= (now - book.seen_s) * gpu.speed
        book.attained_s += now - book.seen_s
        book.version += 1
        book.phase = HALTED
        book.switched_s = now
        self.waiting[book.index] = book
        self._stopped(gpu, book)
        self.take(book)
        self.outcome.evictions -= 1
        self.outcome.halts += 1

    # ------------------------------------------------------------------ bookkeeping

    def _started(self, gpu: Gpu, book: Book) -> None:
        book.seen_s = self.now_s
        gpu.running[book.index] = book
        if len(gpu.running) == 1:
            gpu.speed = 1.0
            heappush(self._heap, (self.now_s + book.left_s, _END, book.index, book.version))
            self._recount(gpu)
        else:
            self._change_speed(gpu, book)

    def _stopped(self, gpu: Gpu, book: Book) -> None:
        del gpu.running[book.index]
        if gpu.running:
            self._change_speed(gpu, None)
        self._recount(gpu)

    def _change_speed(self, gpu: Gpu, new: Book | None) -> None:
        """Give all bursts of a GPU the speed of those that run there now."""
        speed = self.machine.speed([b.duty for b in gpu.running.values()])
        now = self.now_s
        if speed == gpu.speed:
            if new is not None:
                heappush(self._heap, (now + new.left_s / speed, _END, new.index, new.version))
            return
        for book in gpu.running.values():
            passed = now - book.seen_s
            book.left_s = max(0.0, book.left_s - passed * gpu.speed)
            book.attained_s += passed
            book.seen_s = now
            book.version += 1
            heappush(self._heap, (now + book.left_s / speed, _END, book.index, book.version))
        gpu.speed = speed

    def _recount(self, gpu: Gpu) -> None:
        """Count a GPU anew among those that are idle, and those that are held idle."""
        idle = not gpu.running and not gpu.coming
        held = idle and bool(gpu.residents)
        self._idle += idle - gpu.idle
        self._idle_held += held - gpu.idle_held
        gpu.idle, gpu.idle_held = idle, held
