"""Which runs to run again for a variable, and whether that is better than to store it."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .graph import History, Need, Step

WORTH_IT = 10.0
"""What can be stored is recomputed only if that is at least so many times cheaper."""


@dataclass(frozen=True, slots=True)
class Rerun:
    """One run of a plan.

    `fed` are the names that get their restored value, `replayed` those that get what an earlier
    run of the plan made, by the binding it belongs to, and `makes` the bindings it makes.
    """

    index: int
    fed: tuple[str, ...]
    replayed: Mapping[str, int]
    makes: Mapping[str, int]
    absent: frozenset[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """The runs that make `name` again, in order, and about how long they take."""

    name: str
    binding: int
    reruns: tuple[Rerun, ...]
    seconds: float


def plan(history: History, name: str, available: Mapping[str, str]) -> Plan | str:
    """Return the least runs that make `name` as it was at the end, or why there are none.

    Parameters
    ----------
    history
        The session that the variable is from.
    name
        The variable.
    available
        The variables that were restored, each with its fingerprint or ``""``. One is used for a
        run only if it is the very object that the run read, in the same version.
    """
    goal = history.current.get(name)
    if goal is None:
        return "no recorded cell run made it"
    reruns: dict[int, Rerun] = {}
    waiting: list[int] = []
    wanted: set[int] = set()

    def require(need: Need) -> None:
        for index in history.bindings[need.binding].chain[: need.length]:
            if index not in wanted:
                wanted.add(index)
                heapq.heappush(waiting, -index)

    require(Need(goal, len(history.bindings[goal].chain)))
    while waiting:
        index = -heapq.heappop(waiting)
        step = history.steps[index]
        if step.fault:
            return _refusal(step, history, index)
        fed: list[str] = []
        replayed: dict[str, int] = {}
        for read, need in step.needs.items():
            if _is_there(history, step, read, need, available):
                fed.append(read)
            else:
                require(need)
                replayed[read] = need.binding
        absent = frozenset(history.current.keys() & step.absent)
        reruns[index] = Rerun(index, tuple(fed), replayed, dict(step.makes), absent)
    ordered = tuple(reruns[i] for i in sorted(reruns))
    return Plan(name, goal, ordered, sum(history.steps[r.index].run.seconds for r in ordered))


def _is_there(
    history: History, step: Step, name: str, need: Need, available: Mapping[str, str]
) -> bool:
    mark = available.get(name)
    if mark is None:
        return False
    binding = history.bindings[need.binding]
    equal = bool(mark) and mark == step.run.before.get(name)
    if binding.kind == "atom" and equal:
        return True
    if history.current.get(name) != need.binding:
        return False
    return equal or need.length == len(binding.chain)


def _refusal(step: Step, history: History, index: int) -> str:
    if not step.run.source:
        names = sorted(step.makes) or sorted(b.name for b in history.bindings if index in b.chain)
        shown = ", ".join(names[:3])
        return f"it depends on {shown}, and no recorded cell run made that as it was then"
    return f"it needs the cell {title(step.run.source)} again, but {step.fault}"


def title(source: str) -> str:
    """Return the first line of a cell that says something, in quotes."""
    lines = [line.strip() for line in source.splitlines()]
    line = next((text for text in lines if text and not text.startswith("#")), "")
    return repr(line if len(line) <= 50 else line[:49] + "…")


def deterministic(digests: Sequence[str]) -> bool:
    """Whether the digests seen of a value are proof that its cells make the same each time."""
    whole = bool(digests) and all(d and "opaque:" not in d for d in digests)
    return whole and len(digests) >= 2 and len(set(digests)) == 1


def better_recomputed(
    nbytes: int, bytes_per_s: float, recompute_s: float, digests: Sequence[str]
) -> bool:
    """Whether to recompute a variable that could be stored.

    Parameters
    ----------
    nbytes, bytes_per_s
        What storing and loading it would move, and how fast, as measured.
    recompute_s
        How long its cells took.
    digests
        The digests seen of its value each time that its cells ran on the same inputs.
    """
    if nbytes <= 0 or bytes_per_s <= 0 or recompute_s < 0 or not deterministic(digests):
        return False
    return recompute_s * WORTH_IT <= nbytes / bytes_per_s
