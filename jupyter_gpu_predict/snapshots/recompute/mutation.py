"""Which variables a cell run may have changed in place, and which may share objects afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from .calls import only_reads, reads_itself, volatile
from .runs import CellRun
from .uses import RESULT, Analysis, Call, Uses

Code = tuple[int, str]
"""A function of a cell: the cell's place in the history, and the function's name."""

_MAX_DEPTH = 8


class Names(Protocol):
    """What is known of the names before the cell."""

    def kind(self, name: str) -> str:
        """Return the kind of what `name` stands for, ``""`` if it is unbound."""

    def code(self, name: str) -> frozenset[Code]:
        """Return the functions that using `name` may run."""

    def body(self, code: Code) -> Sequence[Uses]:
        """Return what a function does."""


@dataclass(frozen=True)
class Mutation:
    """What a run may have done: changed `names`, let each group of `groups` share objects."""

    names: frozenset[str]
    groups: tuple[frozenset[str], ...]
    fault: str = ""


def find_mutation(
    units: Sequence[Uses], analysis: Analysis, names: Names, run: CellRun
) -> Mutation:
    """Return what a run may have changed in place.

    Parameters
    ----------
    units
        What the cell does itself, first, and what each function does that it may run.
    analysis
        Of the cell.
    names
        What is known of the names before the run.
    run
        The run, whose fingerprints tell that some of them are unchanged after all.
    """
    search = _Search(analysis, names, run)
    changed: set[str] = set()
    groups: list[frozenset[str]] = []
    leaks: set[str] = set()
    for uses in units:
        own = search.groups(uses)
        changed |= search.changed(uses, own)
        inside = uses.local | {RESULT}
        for group in own:
            outer = group - inside
            groups.append(outer)
            if uses is not units[0] and group & inside:
                leaks |= outer
    if leaks:
        # A function that keeps or returns something global ties it to what it was given.
        handed = {name for uses in units for call in uses.calls for name in call.args}
        groups.append(frozenset(leaks | handed | analysis.now.writes))
    whole = _merge(frozenset(n for n in group if search.shares(n)) for group in groups)
    for group in whole:
        if group & changed:
            changed |= group
    stored = {name for uses in units for name in uses.stores - uses.local}
    found = frozenset(
        name
        for name in changed
        if search.kind(name) in ("data", "other")
        or (name in stored and search.kind(name).startswith("code:"))
    )
    return Mutation(found, tuple(whole), search.fault(units, stored))


class _Search:
    def __init__(self, analysis: Analysis, names: Names, run: CellRun) -> None:
        self.analysis = analysis
        self.names = names
        self.run = run

    def kind(self, name: str) -> str:
        """Return the kind before the run, or after it for a name that is new."""
        return self.names.kind(name) or self.run.bound.get(name, "")

    def shares(self, name: str) -> bool:
        """Whether two names could have something changeable in common through this one."""
        kinds = {self.names.kind(name), self.run.bound.get(name, "")}
        return bool(kinds & {"data", "other"})

    def groups(self, uses: Uses) -> list[frozenset[str]]:
        """Return the names of a stretch of code that may share objects; locals count as any."""
        inside = uses.local | set(uses.params) | {RESULT}
        return _merge(
            frozenset(n for n in join if n in inside or self._may_share(n)) for join in uses.joins
        )

    def _may_share(self, name: str) -> bool:
        # A name without a kind is the variable of a comprehension.
        return self.shares(name) or not self.kind(name)

    def changed(self, uses: Uses, groups: Iterable[frozenset[str]], depth: int = 0) -> set[str]:
        """Return the names, local ones too, whose objects are perhaps changed."""
        hard = set(uses.stores)
        soft = set(uses.iterates)
        for call in uses.calls:
            handed, touched = self._call(call, uses, depth)
            hard |= handed
            soft |= touched
        found = set(hard)
        for group in groups:
            if group & hard:
                found |= group
            elif group & soft:
                found |= {name for name in group if self.names.kind(name) == "other"}
        return found | {name for name in soft if self.names.kind(name) == "other"}

    def _call(self, call: Call, uses: Uses, depth: int) -> tuple[set[str], set[str]]:
        """Return what a call may change whatever it is, and what only if it is no plain data."""
        root, args = call.root, set(call.args)
        local = root in uses.local
        dotted = "" if local else self.dotted(call)
        if dotted:
            runs = any(self.kind(a).startswith("code:") for a in args)
            if call.plain and not runs and only_reads(dotted):
                return set(), args
            if not call.path and not self._changes_params(root, depth):
                return set(), args
            return args, set()
        if not root:
            return args, set()
        if local or self.kind(root) == "data":
            last = call.path.rpartition(".")[2]
            if call.plain and call.path and reads_itself(last):
                return set(), args | {root}
        if not call.path and root in self.analysis.code_names:
            return (args, set()) if self._changes_params(root, depth) else (set(), args)
        return args | {root}, set()

    def dotted(self, call: Call) -> str:
        """Return the full name of what is called, as far as it is known."""
        kind = self.kind(call.root)
        if not kind:
            own = call.root in self.analysis.now.writes
            full = "" if own or not call.root else f"builtins.{call.root}"
        else:
            prefix, _, full = kind.partition(":")
            full = full if prefix in ("module", "code") else ""
        return f"{full}.{call.path}" if full and call.path else full

    def _changes_params(self, name: str, depth: int) -> bool:
        """Whether the user's function or class of that name may change what it is given."""
        bodies = self._bodies(name)
        if not bodies or depth >= _MAX_DEPTH:
            return True
        for uses in bodies:
            inside = frozenset(uses.params)
            changed = self.changed(uses, self.groups(uses), depth + 1)
            if changed & inside:
                return True
        return False

    def _bodies(self, name: str) -> list[Uses]:
        """Return what runs when `name` is called, empty if that is not known."""
        makers = {f"{name}.{m}" for m in ("__init__", "__post_init__", "__new__")}
        own = self.analysis.later
        if name in own:
            if own.get(name):
                return list(own[name])
            return [uses for key in makers for uses in own.get(key, ())]
        found: list[Uses] = []
        for code in self.names.code(name):
            kind = self.kind(name).rpartition(".")[2]
            if code[1] == kind or code[1] in {m.replace(name, kind, 1) for m in makers}:
                found += self.names.body(code)
        return found

    def fault(self, units: Sequence[Uses], stored: set[str]) -> str:
        """Return why what the cell does cannot be had twice."""
        for name in sorted(stored):
            if (kind := self.kind(name)).startswith("module:"):
                return f"it changes the module {kind.partition(':')[2]}"
        for uses in units:
            for call in uses.calls:
                dotted = "" if call.root in uses.local else self.dotted(call)
                if dotted and volatile(dotted, given=call.given):
                    return f"it calls {dotted}(), which gives another answer each time"
        return ""


def _merge(groups: Iterable[frozenset[str]]) -> list[frozenset[str]]:
    """Return the groups with those that have a name in common made one."""
    owner: dict[str, set[str]] = {}
    for group in groups:
        whole = set(group)
        for name in group:
            if (other := owner.get(name)) is not None and other is not whole:
                whole |= other
        for name in whole:
            owner[name] = whole
    # One name alone may share too: what it stands for before with what it stands for afterwards.
    return [frozenset(g) for g in {id(g): g for g in owner.values()}.values()]
