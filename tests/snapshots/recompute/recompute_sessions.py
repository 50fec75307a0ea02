"""Sessions of cells, run and recorded in this process, and their variables made again."""

from __future__ import annotations

import builtins
import copy
import types
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from jupyter_gpu_predict.kernel.cell_runs import CellRuns
from jupyter_gpu_predict.kernel.recompute import Recomputed, recompute
from jupyter_gpu_predict.snapshots.report import RestoredVariable, RestoreReport
from jupyter_gpu_predict.snapshots.tombstone import Tombstone


class Session:
    """A namespace in which cells run as in a kernel, each recorded."""

    def __init__(self) -> None:
        self.namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
        self.shell = SimpleNamespace(
            user_ns=self.namespace,
            user_ns_hidden=dict(self.namespace),
            compile=SimpleNamespace(flags=0),
            last_execution_result=None,
        )
        self.cells = CellRuns(self.shell)
        self.failed: dict[str, Exception] = {}

    def run(self, *sources: str) -> Session:
        for source in sources:
            self.cells.begin(source, None)
            outcome = "error"
            try:
                exec(compile(source, "<cell>", "exec"), self.namespace)
                outcome = "ok"
            except Exception as error:
                self.failed[source] = error
            finally:
                self.cells.end(outcome)
        return self

    def names(self) -> list[str]:
        return [name for name in self.namespace if not name.startswith("__")]

    def make_again(self, *lost: str, watch: Callable[[Fresh], object] | None = None) -> Fresh:
        """Return a fresh session in which all but `lost` are there, and those made again."""
        return Fresh(self, lost, watch)


class Fresh:
    """What a kernel has after a restore with recompute."""

    def __init__(
        self, saved: Session, lost: tuple[str, ...], watch: Callable[[Fresh], object] | None
    ) -> None:
        self.namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
        kept = {n: saved.namespace[n] for n in saved.names() if n not in lost}
        self.namespace.update(copy.deepcopy(kept, self._as_they_are(kept)))
        variables = []
        for name in saved.names():
            if name in lost:
                self.namespace[name] = Tombstone(name, "thing", "no way to save it")
            status = "tombstone" if name in lost else "restored"
            variables.append(RestoredVariable(name, "thing", status, None, None))
        self.before = dict(self.namespace)
        if watch is not None:
            watch(self)
        report = RestoreReport("id", "name", tuple(variables), {}, (), 0, 0.0)
        shell = SimpleNamespace(user_ns=self.namespace, compile=SimpleNamespace(flags=0))
        agent: Any = SimpleNamespace(shell=shell)
        records = saved.cells.records()
        self.outcomes = {o.name: o for o in recompute(agent, report, records)}

    def _as_they_are(self, kept: dict[str, Any]) -> dict[int, Any]:
        """Return what modules and functions are in this session, for deepcopy."""
        known: dict[int, Any] = {}
        for value in kept.values():
            if isinstance(value, types.ModuleType):
                known[id(value)] = value
            elif isinstance(value, types.FunctionType) and value.__closure__ is None:
                known[id(value)] = types.FunctionType(
                    value.__code__, self.namespace, value.__name__, value.__defaults__
                )
        return known

    def __getitem__(self, name: str) -> Recomputed:
        return self.outcomes[name]

    def untouched(self, *but: str) -> bool:
        """Whether every name but those is what it was before, the very object."""
        same = self.namespace.keys() == self.before.keys()
        return same and all(self.namespace[n] is v for n, v in self.before.items() if n not in but)
