"""What a session has measured and seen that lets a save leave a variable out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from ..digest import digest
from .graph import History
from .planner import Plan

MAX_PLANS = 1000
"""Plans of which the digests are kept; of one that is forgotten all must be seen anew."""

MAX_SEEN = 20

FORMER = "a former process"


class Speeds:
    """How fast bytes went to a store and came back from it.

    A short save takes much longer per byte than a long one. So a speed counts only for what has at
    most as many bytes as were moved when it was measured, and of several the highest counts.
    """

    def __init__(self) -> None:
        self._saved: dict[int, tuple[int, float]] = {}
        self._loaded: dict[int, tuple[int, float]] = {}

    def saved(self, nbytes: int, seconds: float) -> None:
        """Take note of a save."""
        _note(self._saved, nbytes, seconds)

    def loaded(self, nbytes: int, seconds: float) -> None:
        """Take note of a restore."""
        _note(self._loaded, nbytes, seconds)

    def bytes_per_s(self, nbytes: int) -> float:
        """Return how fast so many bytes are stored and loaded; 0 if no save was measured."""
        save, load = _fastest(self._saved, nbytes), _fastest(self._loaded, nbytes)
        if not save:
            return 0.0
        return 1 / (1 / save + 1 / load) if load else save


def _note(table: dict[int, tuple[int, float]], nbytes: int, seconds: float) -> None:
    if nbytes <= 0 or seconds <= 0:
        return
    size = nbytes.bit_length()
    known, speed = table.get(size, (0, 0.0))
    table[size] = max(known, nbytes), max(speed, nbytes / seconds)


def _fastest(table: dict[int, tuple[int, float]], nbytes: int) -> float:
    return max((speed for moved, speed in table.values() if moved >= nbytes), default=0.0)


class Sightings:
    """The digests that the cells of a plan were seen to give, in this process and in others.

    What is the same in one process need not be in the next: the order of a set of strings, a cache
    that the first call fills. So proof takes two processes; snapshots carry what was seen.

    Parameters
    ----------
    process
        A name for this process that no other has.
    """

    def __init__(self, process: str) -> None:
        self.process = process
        self._since = 0
        self._seen: OrderedDict[str, dict[str, list[Sighting]]] = OrderedDict()

    def see(self, plan_mark: str, runs: Iterable[int], found: str) -> list[str]:
        """Take note of a digest and return all that say whether another would be the same.

        Parameters
        ----------
        plan_mark
            As `mark_of` gives it.
        runs
            The numbers of the cell runs that made the value. To be proof, another digest must come
            from other runs throughout, in another process; against it, it need not.
        """
        seen = self._seen.get(plan_mark, {})
        numbers = frozenset(runs)
        # What was restored and not made anew since is what another process has made.
        own = min(numbers, default=0) > self._since
        others = ((d, p, n) for d, known in seen.items() for p, n in known)
        digests = [
            found,
            *(
                d
                for d, process, n in others
                if d != found or (own and process != self.process and n.isdisjoint(numbers))
            ),
        ]
        self._note(plan_mark, found, (self.process if own else FORMER, numbers))
        return digests

    def plain(self) -> list[list[object]]:
        """Return what was seen as plain data, for `adopt` in another process."""
        return [
            [mark, found, process, sorted(runs)]
            for mark, seen in self._seen.items()
            for found, known in seen.items()
            for process, runs in known
        ]

    def adopt(self, sightings: Iterable[Sequence[Any]], since: int) -> None:
        """Go on from what other processes saw, whose last cell run had the number `since`."""
        self._since = since
        for mark, found, process, runs in sightings:
            self._note(mark, found, (process, frozenset(runs)))

    def _note(self, mark: str, found: str, sighting: Sighting) -> None:
        seen = self._seen.setdefault(mark, {})
        self._seen.move_to_end(mark)
        # Two that differ are enough to know for good that the cells are not to be relied upon.
        if found in seen or len(seen) < 2:
            known = seen.setdefault(found, [])
            if sighting not in known:
                known.append(sighting)
                del known[:-MAX_SEEN]
        while len(self._seen) > MAX_PLANS:
            self._seen.popitem(last=False)


Sighting = tuple[str, frozenset[int]]
"""The process, and the numbers of the cell runs there."""


def mark_of(history: History, found: Plan) -> str:
    """Return a mark of a plan, the same for plans of the same cells on the same inputs.

    An input is the same if its fingerprint is, or if it is the same object in the same version, or
    if the plan itself makes it in the same way.
    """
    place = {rerun.index: number for number, rerun in enumerate(found.reruns)}
    parts: list[object] = [found.name]
    for rerun in found.reruns:
        step = history.steps[rerun.index]
        inputs: list[object] = []
        for name, need in sorted(step.needs.items()):
            chain = history.bindings[need.binding].chain[: need.length]
            if name in rerun.replayed:
                inputs.append([name, "made by", [place[index] for index in chain]])
            elif mark := step.run.before.get(name):
                inputs.append([name, "equal to", mark])
            else:
                inputs.append([name, "of", [history.steps[index].run.number for index in chain]])
        parts.append([step.run.source, inputs, digest(dict(step.run.random))])
    return digest(parts)


def runs_of(history: History, found: Plan) -> frozenset[int]:
    """Return the numbers of the cell runs of a plan."""
    return frozenset(history.steps[rerun.index].run.number for rerun in found.reruns)
