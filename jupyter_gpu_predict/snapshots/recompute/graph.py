"""The bindings of a session's variables, through all its recorded cell runs.

A binding is one object that a name stood for. Its `chain` has the runs that made it and, after
that, every run that may have changed it in place, under any name: a place in the chain is a version
of the object, and running the chain up to there, in order, makes that version again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from .defuse import analyse
from .mutation import Code, Mutation, find_mutation
from .runs import OUTSIDE, CellRun
from .uses import Analysis, Uses


@dataclass(slots=True)
class Binding:
    """An object that `name` stood for; `code` are the functions that using it may run."""

    name: str
    kind: str
    chain: list[int]
    code: frozenset[Code]


@dataclass(frozen=True, slots=True)
class Need:
    """That a run read a binding in the version that the first `length` runs of its chain made."""

    binding: int
    length: int


@dataclass(slots=True)
class Step:
    """A run in the graph; `fault` says why it cannot run again.

    `absent` are names that had to be unbound, such as a builtin that was shadowed only later.
    """

    run: CellRun
    fault: str = ""
    needs: dict[str, Need] = field(default_factory=dict)
    makes: dict[str, int] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()


class History:
    """The graph of a session.

    Parameters
    ----------
    runs
        The cell runs in the order in which they ran.
    """

    def __init__(self, runs: Iterable[CellRun]) -> None:
        self.steps: list[Step] = []
        self.bindings: list[Binding] = []
        self.current: dict[str, int] = {}
        self._sources: list[Analysis] = []
        self._shared: dict[int, int] = {}
        self._members: dict[int, list[int]] = {}
        for run in runs:
            self._add(run)

    def kind(self, name: str) -> str:
        """Return the kind of what `name` stands for now, ``""`` if it is unbound."""
        number = self.current.get(name)
        return "" if number is None else self.bindings[number].kind

    def code(self, name: str) -> frozenset[Code]:
        """Return the functions that using `name` may run."""
        number = self.current.get(name)
        return frozenset() if number is None else self.bindings[number].code

    def body(self, code: Code) -> Sequence[Uses]:
        """Return what a function does."""
        return self._sources[code[0]].later.get(code[1], ())

    def _add(self, run: CellRun) -> None:
        index = len(self.steps)
        step = Step(run)
        analysis = analyse(run.source)
        self.steps.append(step)
        self._sources.append(analysis)
        if run.outcome == OUTSIDE:
            step.fault = "it was changed outside of the recorded cells"
            self._rebind(index, run, frozenset())
            # Nothing is known of what it shares with the others.
            self._share({}, [frozenset(self.current)])
            return
        used = self._used(index, analysis)
        units = [uses for _, uses in used]
        for code, uses in used:
            given = uses.given if code is not None and code[0] == index else frozenset()
            for name in uses.reads - given:
                if (number := self.current.get(name)) is not None:
                    step.needs[name] = Need(number, len(self.bindings[number].chain))
        loads = {name for uses in units for name in uses.loads}
        step.absent = frozenset(loads - self.current.keys() - set(run.bound))
        writes = {name for uses in units for name in uses.writes}
        before = dict(self.current)
        unsure = self._unsure(run, writes)
        for name in unsure:
            step.needs[name] = Need(before[name], len(self.bindings[before[name]].chain))
        run = replace(run, bound={**run.bound, **unsure})
        mutation = find_mutation(units, analysis, self, run)
        step.fault = _fault(run, units, writes, mutation)
        carried = frozenset(code for code, _ in used if code is not None)
        self._rebind(index, run, carried)
        names: Collection[str] = mutation.names
        if any(uses.anything for uses in units):
            names = {*before, *self.current}
            self._share(before, [frozenset(names)])
        else:
            # What a name stood for before is in what the run made only if the run has read it.
            read = {name: number for name, number in before.items() if name in step.needs}
            self._share(read, [*mutation.groups, *(frozenset({name}) for name in unsure)])
        self._mutate(index, {before[name] for name in names if name in before})

    def _unsure(self, run: CellRun, writes: Iterable[str]) -> dict[str, str]:
        """Return kinds of what the run may have bound anew without its having been seen.

        Names are compared by the identity of what they stand for, which a new object gets again
        from one that was let go of: ``x = None; x = [1]``. Whether it did or not, the name stands
        for what the run leaves there when it had what was there before.
        """
        found = {}
        for name in writes:
            if name in run.bound or name in run.removed or name not in self.current:
                continue
            kind, mark = self.kind(name), run.before.get(name)
            if kind.startswith("module:") or (mark and mark == run.after.get(name)):
                continue
            found[name] = kind if kind.startswith("code:") else "other"
        return found

    def _used(self, index: int, analysis: Analysis) -> list[tuple[Code | None, Uses]]:
        """Return the cell itself and every function that running it may run."""
        found: list[tuple[Code | None, Uses]] = [(None, analysis.now)]
        known: set[Code] = set()
        names: set[str] = set()
        waiting = list(analysis.now.loads)
        while waiting:
            name = waiting.pop()
            if name in names:
                continue
            names.add(name)
            for code in self.code(name) | own_code(index, analysis, name):
                if code not in known:
                    known.add(code)
                    for uses in self.body(code):
                        found.append((code, uses))
                        waiting.extend(uses.loads)
        return found

    def _rebind(self, index: int, run: CellRun, carried: frozenset[Code]) -> None:
        analysis = self._sources[index]
        inside = {(index, name) for name in analysis.later}
        for name in run.removed:
            self.current.pop(name, None)
        for name, kind in run.bound.items():
            if kind == "atom" or kind.startswith("module:"):
                code: frozenset[Code] = frozenset()
            else:
                code = own_code(index, analysis, name) or carried | inside
            self.steps[index].makes[name] = self.current[name] = len(self.bindings)
            self.bindings.append(Binding(name, kind, [index], code))

    def _share(self, before: dict[str, int], groups: Iterable[frozenset[str]]) -> None:
        """Note which bindings may be, or hold, the same objects from here on."""
        for group in groups:
            numbers = [
                number
                for name in group
                for number in {before.get(name), self.current.get(name)}
                if number is not None and self.bindings[number].kind in ("data", "other")
            ]
            for number in numbers[1:]:
                self._join(numbers[0], number)

    def _join(self, a: int, b: int) -> None:
        a, b = self._shared.get(a, a), self._shared.get(b, b)
        if a == b:
            return
        moved = self._members.pop(b, [b])
        self._members.setdefault(a, [a]).extend(moved)
        for number in moved:
            self._shared[number] = a
        self._shared[a] = a

    def _mutate(self, index: int, numbers: set[int]) -> None:
        changed = {
            member
            for number in numbers
            for member in self._members.get(self._shared.get(number, number), [number])
        }
        run = self.steps[index].run
        for number in changed:
            binding = self.bindings[number]
            mark = run.before.get(binding.name)
            unchanged = bool(mark) and mark == run.after.get(binding.name)
            same = self.current.get(binding.name) == number
            if binding.chain[-1] != index and not (unchanged and same):
                binding.chain.append(index)


def own_code(index: int, analysis: Analysis, name: str) -> frozenset[Code]:
    """Return the functions behind a name that the cell itself defines with def or class."""
    return frozenset(
        (index, key) for key in analysis.later if key == name or key.startswith(f"{name}.")
    )


def _fault(run: CellRun, units: Iterable[Uses], writes: set[str], mutation: Mutation) -> str:
    if run.outcome != "ok":
        return f"it did not end well ({run.outcome})"
    for uses in units:
        if uses.fault:
            return uses.fault
    if run.effects:
        return f"it {run.effects[0]}"
    if unseen := sorted((run.bound.keys() | set(run.removed)) - writes):
        return f"it changed {', '.join(unseen[:3])}, which its source does not show"
    return mutation.fault
