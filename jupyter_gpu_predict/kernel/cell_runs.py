"""The cell runs of this session, kept so that a variable can be made again by running cells."""

from __future__ import annotations

import itertools
import operator
import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from . import observer
from .generators import generator_states, unused_since_import
from .marks import MAX_NODES, fingerprint, kind_of

Record = dict[str, Any]
"""A cell run as plain data: the fields of `snapshots.recompute.runs.CellRun`."""

MAX_RUNS = 1000
MAX_SOURCE_BYTES = 1 << 20
MAX_RANDOM_STATES = 100
"""Runs for which the states of the random generators are kept, a few KiB each."""

_OUTSIDE = "outside"
_NOT_USERS = re.compile(r"_{1,3}|_i{1,3}|_\d+|_i\d+|_ih|_oh|_dh|In|Out|__\w*__")
"""Names of IPython's, and those that Python itself puts into a namespace."""

_MAX_NAMES = 64
_WORD = re.compile(r"[^\W\d]\w*")
_MISSING = object()
_identity = object.__hash__
"""As good as ``id`` for telling objects apart, and no audit event."""


@dataclass
class _Open:
    """A cell run under way."""

    source: str
    started: float
    names: list[str]
    identities: list[int]
    before: dict[str, str]
    looked_at: list[str]
    watch: observer.Watch
    threads: set[threading.Thread]
    alone: bool = True
    adopted: bool = False


class CellRuns:
    """Observes the cells of one kernel.

    Parameters
    ----------
    shell
        The kernel's shell.
    observing
        Whether cells are observed at all; without it nothing can be recomputed.
    """

    def __init__(self, shell: Any, *, observing: bool = True) -> None:
        self.shell = shell
        self.observing = observing
        self.runs: deque[Record] = deque()
        self._bytes = 0
        self._number = 0
        self._names: list[str] = []
        self._identities: list[int] = []
        self._all_names: list[Any] = []
        self._user_names: list[str] = []
        self._states: dict[str, Any] = {}
        self._state_of: int | None = None
        self._running = threading.local()
        self._open: list[_Open] = []
        self._lock = threading.Lock()

    # ---------------------------------------------------------------- observing

    def begin(self, source: str, cell_id: str | None) -> None:
        """Note that a cell starts."""
        if not self.observing:
            return
        observer.install(self.shell)
        namespace = self.shell.user_ns
        with self._lock:
            names, identities = self._listed()
            if not self._open:
                self._note_outside(names, identities)
            self._note_random()
            looked_at, before = self._look(source, namespace)
            run = _Open(source, 0.0, names, identities, before, looked_at,
                        observer.Watch(namespace), set(threading.enumerate()))  # fmt: skip
            for other in self._open:
                other.alone = run.alone = False
            self._open.append(run)
            self._running.run = (run, cell_id)
            observer.start(run.watch)
        run.started = time.perf_counter()

    def end(self, outcome: str) -> None:
        """Note that it ended."""
        found: tuple[_Open, str | None] | None = getattr(self._running, "run", None)
        if found is None:
            return
        run, cell_id = found
        self._running.run = None
        seconds = time.perf_counter() - run.started
        namespace = self.shell.user_ns
        with self._lock:
            self._open.remove(run)
            observer.start(self._open[-1].watch if self._open else None)
            names, identities = self._listed()
            self._names, self._identities = names, identities
            if run.adopted:
                return
            changed, removed = _differences(run.names, run.identities, names, identities)
            changed = self._own(changed)
            result = getattr(getattr(self.shell, "last_execution_result", None), "result", None)
            effects = list(run.watch.effects)
            if result is not None:
                effects.append("displayed a result")
            if any(thread not in run.threads for thread in threading.enumerate()):
                effects.append("started a thread that still runs")
            if not run.alone:
                effects.append("ran at the same time as another cell")
            self._number += 1
            self._add(
                _record(
                    self._number,
                    source=run.source,
                    outcome=outcome,
                    seconds=seconds,
                    cell_id=cell_id,
                    bound={name: kind_of(namespace[name]) for name in changed},
                    removed=removed,
                    before=run.before,
                    after=_marks(namespace, dict.fromkeys([*run.looked_at, *changed])),
                    effects=effects,
                    inputs=[list(i) for i in run.watch.inputs.values()],
                )
            )
            self._state_of = self._number

    def why_not_again(self) -> str | None:
        """Return why the cell that runs in this thread must not be run anew from its start.

        ``None`` if nothing shows so far that it ran: it had no effect, and all that it may have
        used is provably as it was.
        """
        found: tuple[_Open, str | None] | None = getattr(self._running, "run", None)
        if found is None:
            return "it was not observed"
        run, namespace = found[0], self.shell.user_ns
        with self._lock:
            if run.watch.effects:
                return f"it {next(iter(run.watch.effects))}"
            if not run.alone or any(t not in run.threads for t in threading.enumerate()):
                return "something else runs beside it"
            names, identities = self._listed()
            changed, removed = _differences(run.names, run.identities, names, identities)
            before = {*run.names}
            for name in (*removed, *self._own(n for n in changed if n in before)):
                return f"it bound {name!r} anew"
            if len(run.looked_at) >= _MAX_NAMES:
                return "it uses too many names"
            now = _marks(namespace, run.looked_at)
            for name in run.looked_at:
                same = name in run.before and now.get(name) == run.before[name]
                if not same and not _cannot_change(namespace[name], namespace):
                    return f"{name!r} may have changed"
            states = generator_states()
            for name, state in states.items():
                unused = name not in self._states and unused_since_import(name, state)
                if not unused and self._states.get(name) != state:
                    return "it drew random numbers"
        return None

    def unbind_new(self) -> None:
        """Take away the names that the cell which runs in this thread has made so far."""
        found: tuple[_Open, str | None] | None = getattr(self._running, "run", None)
        if found is not None:
            before, namespace = {*found[0].names}, self.shell.user_ns
            for name in self._own([n for n in namespace if n not in before]):
                del namespace[name]

    def _look(self, source: str, namespace: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
        """Return the names that a cell may read, and marks of their values.

        The words of its source are enough for that: to parse it costs ten times more.
        """
        waiting = deque(dict.fromkeys(_WORD.findall(source)))
        found: dict[str, None] = {}
        while waiting and len(found) < _MAX_NAMES:
            name = waiting.popleft()
            value = namespace.get(name, _MISSING)
            if name in found or value is _MISSING:
                continue
            found[name] = None
            if type(value) is FunctionType and value.__globals__ is namespace:
                waiting.extend(value.__code__.co_names)
        return list(found), _marks(namespace, found)

    def _listed(self) -> tuple[list[str], list[int]]:
        """Return the names that are the user's, and what tells their objects apart.

        IPython adds two names with every cell, so most of a long session's are its own; they are
        passed over without a look at each, since new names come behind the old ones.
        """
        namespace = self.shell.user_ns
        names, known = list(namespace), len(self._all_names)
        if names[:known] != self._all_names:
            known, self._user_names = 0, []
        new = (n for n in names[known:] if isinstance(n, str) and not _NOT_USERS.fullmatch(n))
        self._user_names = [*self._user_names, *new]
        self._all_names = names
        # A thread may unbind a name between the two looks.
        values = (namespace.get(name, _MISSING) for name in self._user_names)
        return self._user_names, list(map(_identity, values))

    def _own(self, names: Iterable[str]) -> list[str]:
        namespace, hidden = self.shell.user_ns, self.shell.user_ns_hidden
        return [
            name
            for name in names
            if not _NOT_USERS.fullmatch(name)
            and hidden.get(name, _MISSING) is not namespace.get(name, _MISSING)
        ]

    def _note_outside(self, names: list[str], identities: list[int]) -> None:
        """Note what changed between two cells, by a silent execute, a callback or a thread."""
        changed, removed = _differences(self._names, self._identities, names, identities)
        changed = self._own(changed)
        if not changed and not removed:
            return
        namespace = self.shell.user_ns
        self._number += 1
        bound = {name: kind_of(namespace[name]) for name in changed}
        self._add(_record(self._number, outcome=_OUTSIDE, bound=bound, removed=removed))

    def _note_random(self) -> None:
        """Give the last run the states before it of the generators that were used since."""
        before, self._states = self._states, generator_states()
        if not self.runs or self.runs[-1]["number"] != self._state_of:
            return
        last = self.runs[-1]
        used = {name: before[name] for name in before if before[name] != self._states.get(name)}
        if any(
            name not in before and not unused_since_import(name, state)
            for name, state in self._states.items()
        ):
            effect = "used random numbers of a library that it had just loaded"
            self.runs[-1] = {**last, "effects": [*last["effects"], effect]}
        elif used:
            self.runs[-1] = {**last, "random": used}
            self._bound_random()

    def _bound_random(self) -> None:
        kept = [i for i, run in enumerate(self.runs) if run["random"]]
        for index in kept[:-MAX_RANDOM_STATES]:
            run = self.runs[index]
            effects = [*run["effects"], "used random numbers, whose state is no longer known"]
            self.runs[index] = {**run, "random": {}, "effects": effects}

    def _add(self, run: Record) -> None:
        self.runs.append(run)
        self._bytes += len(run["source"])
        while len(self.runs) > 1 and (len(self.runs) > MAX_RUNS or self._bytes > MAX_SOURCE_BYTES):
            self._forget()

    def _forget(self) -> None:
        """Drop the oldest run; what it made stays known as something of unknown origin."""
        first = self.runs.popleft()
        self._bytes -= len(first["source"])
        bound, number = dict(first["bound"]), first["number"]
        if first["outcome"] == _OUTSIDE and self.runs:
            second = self.runs.popleft()
            self._bytes -= len(second["source"])
            number = second["number"]
            bound.update(second["bound"])
            for name in second["removed"]:
                bound.pop(name, None)
        self.runs.appendleft(_record(number, outcome=_OUTSIDE, bound=bound))

    # ---------------------------------------------------------------- snapshots

    def records(self) -> list[dict[str, Any]]:
        """Return the runs as plain data."""
        with self._lock:
            if not self._open:
                self._note_random()
            return [dict(run) for run in self.runs]

    def adopt(self, records: Iterable[Mapping[str, Any]], restored: Iterable[str]) -> None:
        """Go on from the cell runs of a snapshot.

        Parameters
        ----------
        records
            As `records` returned them.
        restored
            The names that now have the value they had in it; others count as of unknown origin.
        """
        from ..snapshots.recompute.runs import read_runs

        try:
            runs = [run.to_dict() for run in read_runs(records)]
        except ValueError:
            runs = []  # of a version that is not understood; then all is of unknown origin
        with self._lock:
            self.runs = deque(runs)
            self._bytes = sum(len(run["source"]) for run in runs)
            self._number = max([self._number, *(run["number"] for run in runs)])
            namespace = self.shell.user_ns
            made: set[str] = set()
            for run in runs:
                made = (made - {*run["removed"]}) | run["bound"].keys()
            known = {name for name in restored if name in namespace and name in made}
            self._names = [name for name in namespace if name in known]
            self._identities = [_identity(namespace[name]) for name in self._names]
            self._state_of = None
            self._states = generator_states()
            for under_way in self._open:
                under_way.adopted = True


def _record(number: int, *, outcome: str, source: str = "", **facts: Any) -> Record:
    return {
        "number": number,
        "source": source,
        "outcome": outcome,
        "seconds": 0.0,
        "cell_id": None,
        "bound": {},
        "removed": [],
        "before": {},
        "after": {},
        "effects": [],
        "inputs": [],
        "random": {},
        **facts,
    }


def _differences(
    names: list[str], identities: list[int], names_now: list[str], identities_now: list[int]
) -> tuple[list[str], list[str]]:
    """Return the names that have another object now, and those that are gone."""
    count = len(names)
    if names_now[:count] == names:
        if identities_now[:count] == identities:
            return names_now[count:], []
        other = map(operator.ne, identities, identities_now)
        return [*itertools.compress(names, other), *names_now[count:]], []
    # A thread may bind a name between the two looks.
    before = dict(zip(names, identities, strict=False))
    now = dict(zip(names_now, identities_now, strict=False))
    changed = [name for name, identity in now.items() if before.get(name) != identity]
    return changed, [name for name in before if name not in now]


def _cannot_change(value: Any, namespace: Mapping[str, Any]) -> bool:
    """Whether running a cell that names `value` leaves it as it is: an installed library's code."""
    if type(value) is FunctionType and value.__globals__ is namespace:
        code = value.__code__
        plain = not any(hasattr(constant, "co_names") for constant in code.co_consts)
        return plain and not (value.__closure__ or value.__defaults__ or value.__kwdefaults__)
    kind = kind_of(value)
    return kind == "atom" or (kind.startswith("code:") and not kind.startswith("code:__main__."))


def _marks(namespace: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    budget = MAX_NODES
    for name in names:
        value = namespace.get(name, _MISSING)
        if value is _MISSING:
            continue
        size = len(value) if type(value) in (list, tuple, dict, set, frozenset) else 1
        if size <= budget:
            budget -= size
            if mark := fingerprint(value):
                found[name] = mark
    return found
