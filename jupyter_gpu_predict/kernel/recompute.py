"""Make variables that a snapshot could not save again, by running their cells again.

The cells run in the user's namespace, since what they define must go on following it, but inside a
transaction: each sees the variables as they were when it first ran, and at the end every name is
back where it was. Only the variables that were asked for change, and only if all went well.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import io
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ..snapshots.digest_bounded import digest_in
from ..snapshots.recompute.graph import History
from ..snapshots.recompute.magics import without_needs
from ..snapshots.recompute.planner import Plan, Rerun, plan, title
from ..snapshots.recompute.runs import CellRun, read_runs
from ..snapshots.report import RestoreReport
from ..snapshots.tombstone import Tombstone
from . import observer
from .generators import generators_as_they_are, set_generator_states
from .marks import fingerprint

if TYPE_CHECKING:
    from .agent import Agent

Status = Literal["recomputed", "mismatch", "failed", "not offered"]

_MAX_VISITED = 100_000
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Recomputed:
    """What became of one variable.

    Only with ``"recomputed"`` does it have a value again; `reason` then says what differs, such as
    sharing with another variable that is gone. With ``"mismatch"`` its cells gave another value
    than they first did. `seconds` is what its cells took.
    """

    name: str
    status: Status
    reason: str | None
    digest: str | None = None
    seconds: float = 0.0


def records_for_snapshot(agent: Agent) -> list[dict[str, Any]]:
    """Return this session's cell runs as plain data, for a snapshot's ``extra["cells"]``."""
    return agent.recorder.cell_runs.records()


def adopt_records(
    agent: Agent,
    report: RestoreReport,
    records: Iterable[Mapping[str, Any]],
    outcomes: Iterable[Recomputed] = (),
) -> None:
    """Let this session go on from the cell runs of a snapshot that was restored whole."""
    names = {v.name for v in report.variables if v.status == "restored"}
    names |= {o.name for o in outcomes if o.status == "recomputed"}
    agent.recorder.cell_runs.adopt(records, names)


def recompute(
    agent: Agent,
    restore_report: RestoreReport,
    records: Iterable[Mapping[str, Any]],
    only: Collection[str] | None = None,
    digests: Mapping[str, str] | None = None,
) -> list[Recomputed]:
    """Make what was not restored again, as far as the recorded cells allow.

    To be called between cells, right after the restore.

    Parameters
    ----------
    agent
        The kernel's agent.
    restore_report
        What was restored; its tombstones are what is to be made.
    records
        The cell runs of the snapshot, as `records_for_snapshot` returned them.
    only
        The variables to make, all tombstones by default.
    digests
        What is known of their values when they were saved, besides what the report says.
    """
    namespace = agent.shell.user_ns
    known: dict[str, str] = {v.name: v.digest for v in restore_report.variables if v.digest}
    known.update(digests or {})
    lost = [v.name for v in restore_report.variables if v.status == "tombstone"]
    wanted = [name for name in lost if only is None or name in only]
    available = {
        v.name: fingerprint(namespace[v.name])
        for v in restore_report.variables
        if v.status == "restored" and type(namespace.get(v.name, _MISSING)) not in _NOT_THERE
    }
    if not wanted:
        return []
    try:
        history = History(read_runs(records))
    except ValueError as error:
        return [Recomputed(name, "not offered", str(error)) for name in wanted]
    plans = {name: plan(history, name, available) for name in wanted}
    replay = _Replay(agent.shell, history)
    replay.run([p for p in plans.values() if isinstance(p, Plan)])
    outcomes = []
    for name, found in plans.items():
        if isinstance(found, str):
            outcomes.append(Recomputed(name, "not offered", found))
        else:
            outcomes.append(_adopt(namespace, found, replay, known.get(name, "")))
    return [_with_losses(outcome, plans[outcome.name], replay) for outcome in outcomes]


_NOT_THERE = (Tombstone, type(_MISSING))


def _adopt(namespace: dict[str, Any], found: Plan, replay: _Replay, expected: str) -> Recomputed:
    """Put a value that was made again into the namespace, if it is the right one."""
    name = found.name
    for rerun in found.reruns:
        fault = replay.faults.get(rerun.index)
        if fault is not None:
            return Recomputed(name, fault.status, fault.reason)
    if found.binding not in replay.made:
        return Recomputed(name, "mismatch", "its cells no longer make it")
    value = replay.made[found.binding]
    seconds = sum(replay.seconds[r.index] for r in found.reruns)
    now: str | None = None
    if expected:
        now = digest_in(namespace, value)
        if now != expected:
            reason = "its cells gave another value than the one that was there"
            return Recomputed(name, "mismatch", reason, now, seconds)
    namespace[name] = value
    return Recomputed(name, "recomputed", None, now, seconds)


def _with_losses(outcome: Recomputed, found: Plan | str, replay: _Replay) -> Recomputed:
    """Say with which variables a value does not share any more what it shared."""
    if outcome.status != "recomputed" or isinstance(found, str):
        return outcome
    apart = replay.apart_from(replay.made[found.binding], found)
    if not apart:
        return outcome
    return replace(outcome, reason=f"it has its own copy of what it shared with {', '.join(apart)}")


@dataclass(frozen=True, slots=True)
class _Fault:
    status: Status
    reason: str


@dataclass
class _Replay:
    """Runs cells again and keeps what they make, by binding."""

    shell: Any
    history: History
    made: dict[int, Any] = field(default_factory=dict)
    faults: dict[int, _Fault] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)

    def run(self, plans: list[Plan]) -> None:
        """Run all that the plans need, each cell once, and leave the namespace as it was."""
        reruns = {rerun.index: rerun for found in plans for rerun in found.reruns}
        self._stale = {
            index: fault
            for index in reruns
            if (fault := _stale_input(self.history.steps[index].run)) is not None
        }
        namespace = self.shell.user_ns
        with generators_as_they_are(), _bindings_kept(namespace):
            kept = dict(namespace)
            for index in sorted(reruns):
                self._one(reruns[index], namespace, kept)

    def _one(self, rerun: Rerun, namespace: dict[str, Any], kept: Mapping[str, Any]) -> None:
        if (fault := self._stale.get(rerun.index)) is not None:
            self.faults[rerun.index] = fault
            return
        run = self.history.steps[rerun.index].run
        for number in rerun.replayed.values():
            if number not in self.made:
                self.faults[rerun.index] = self._cause(number)
                return
        namespace.update({name: kept[name] for name in rerun.fed})
        namespace.update({name: self.made[n] for name, n in rerun.replayed.items()})
        for name in rerun.absent:
            namespace.pop(name, None)
        watch = observer.Watch(namespace, block=True)
        started = time.perf_counter()
        try:
            set_generator_states(run.random)
            with observer.watching(watch), _muted():
                exec(self._compiled(run.source), namespace)  # noqa: S102 - it is the user's cell
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            self._fail(rerun, run, "failed", f"failed when it ran again: {why}")
            return
        except SystemExit:
            self._fail(rerun, run, "failed", "ended itself when it ran again")
            return
        self.seconds[rerun.index] = time.perf_counter() - started
        if watch.effects:
            self._fail(rerun, run, "failed", f"now {next(iter(watch.effects))}")
            return
        missing = [name for name in rerun.makes if name not in namespace]
        differs = [
            name
            for name in (*rerun.makes, *rerun.fed, *rerun.replayed)
            if name in run.after
            and name in namespace
            and fingerprint(namespace[name]) not in (run.after[name], "")
        ]
        if missing or differs:
            what = ", ".join((missing or differs)[:3])
            self._fail(rerun, run, "mismatch", f"gave another {what} than when it first ran")
            return
        for name, number in rerun.makes.items():
            self.made[number] = namespace[name]

    def _compiled(self, source: str) -> Any:
        cache = getattr(self.shell.compile, "cache", None)
        source = without_needs(source)
        file = cache(source) if cache is not None else "<cell run again>"
        flags = getattr(self.shell.compile, "flags", 0)
        return compile(ast.parse(source), file, "exec", flags, dont_inherit=True)

    def _fail(self, rerun: Rerun, run: CellRun, status: Status, what: str) -> None:
        self.faults[rerun.index] = _Fault(status, f"the cell {title(run.source)} {what}")

    def _cause(self, number: int) -> _Fault:
        for index in self.history.bindings[number].chain:
            if index in self.faults:
                return self.faults[index]
        return _Fault("failed", f"{self.history.bindings[number].name} was not made again")

    def apart_from(self, value: Any, found: Plan) -> list[str]:
        """Return the variables that were made along the way, stay as they were, and are in `value`.

        What of `value` was the object of another variable in the saved session is now its own.
        """
        own: dict[int, str] = {}
        for rerun in found.reruns:
            for number in rerun.makes.values():
                binding = self.history.bindings[number]
                if (
                    binding.kind in ("data", "other")
                    and number in self.made
                    and self.history.current.get(binding.name) == number
                    and self.shell.user_ns.get(binding.name) is not self.made[number]
                    and self.made[number] is not value
                ):
                    own[id(self.made[number])] = binding.name
        return sorted(_reached(value, own, self.shell.user_ns)) if own else []


def _reached(value: Any, wanted: Mapping[int, str], namespace: Mapping[str, Any]) -> set[str]:
    """Return which of the `wanted` objects, by id, can be reached from `value`."""
    found: set[str] = set()
    seen = {id(namespace)}
    waiting = [value]
    while waiting and len(seen) < _MAX_VISITED:
        current = waiting.pop()
        if id(current) in seen or isinstance(current, type | type(ast)):
            continue
        seen.add(id(current))
        if (name := wanted.get(id(current))) is not None:
            found.add(name)
        waiting.extend(gc.get_referents(current))
    return found


@contextlib.contextmanager
def _bindings_kept(namespace: dict[str, Any]) -> Iterator[None]:
    """Bind every name as before when the block ends, however it ends."""
    before = dict(namespace)
    try:
        yield
    finally:
        for name in [name for name in namespace if name not in before]:
            del namespace[name]
        namespace.update(before)


class _Mute(io.TextIOBase):
    """A stream that swallows what this thread writes and lets others through."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() == self._thread:
            return len(text)
        return int(self._inner.write(text) or 0)


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    out, err = _Mute(sys.stdout), _Mute(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


def _stale_input(run: CellRun) -> _Fault | None:
    for recorded in run.inputs:
        now = observer.stat_input(recorded.path)
        if now != (recorded.path, recorded.mtime_ns, recorded.nbytes):
            what = "is gone" if now[2] < 0 else "has changed"
            return _Fault(
                "not offered",
                f"it needs the cell {title(run.source)} again, but the file {recorded.path!r} "
                f"which it read {what} since",
            )
    return None
