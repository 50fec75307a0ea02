"""Which variables a save leaves out, since running their cells again is so much cheaper."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..snapshots.digest_bounded import digest_in
from ..snapshots.omission import Omission
from ..snapshots.recompute.evidence import Sightings, Speeds, mark_of, runs_of
from ..snapshots.recompute.graph import History
from ..snapshots.recompute.planner import WORTH_IT, Plan, better_recomputed, plan
from ..snapshots.recompute.runs import read_runs
from .marks import fingerprint

if TYPE_CHECKING:
    from ..snapshots.report import CaptureReport, RestoreReport


class Omitter:
    """What one session has seen of its stores and of the cells that make large variables."""

    def __init__(self) -> None:
        self._speeds: dict[str, Speeds] = {}
        self.sightings = Sightings(uuid.uuid4().hex)

    def saved(self, folder: str, report: CaptureReport) -> None:
        """Take note of how long a save took.

        One that found most of its bytes in the store says nothing of what it takes to store them.
        """
        written, total = report.bytes_written, report.total_bytes
        if 0 < total <= 2 * written:
            self._at(folder).saved(written, report.writing_s * min(1.0, written / total))

    def loaded(self, folder: str, report: RestoreReport) -> None:
        """Take note of how long a restore took."""
        self._at(folder).loaded(report.bytes_read, report.reading_s)

    def _at(self, folder: str) -> Speeds:
        return self._speeds.setdefault(folder, Speeds())

    def choose(
        self,
        namespace: Mapping[str, Any],
        folder: str,
        records: Iterable[Mapping[str, Any]],
        alone: Mapping[str, int],
        stored: Collection[str],
    ) -> dict[str, Omission]:
        """Return what to leave out of a save.

        A variable is left out if storing and loading it takes at least ten times as long as its
        cells, and if these gave the same digest each time they were seen to run on the same inputs,
        in two processes at least.

        Parameters
        ----------
        alone
            The bytes of each variable that shares nothing with another.
        stored
            All variables that can be stored.
        """
        speeds = self._at(folder)
        speed = {n: s for n, nbytes in alone.items() if (s := speeds.bytes_per_s(nbytes)) > 0}
        if not speed:
            return {}
        history = History(read_runs(records))
        plans = _plans(history, {n: alone[n] / s for n, s in speed.items()}, namespace, stored)
        found = {}
        for name, again in plans.items():
            taken = digest_in(namespace, namespace[name])
            seen = self.sightings.see(mark_of(history, again), runs_of(history, again), taken)
            if better_recomputed(alone[name], speed[name], again.seconds, seen):
                reason = _said(again.seconds, alone[name] / speed[name])
                needs = {fed for rerun in again.reruns for fed in rerun.fed}
                found[name] = Omission(taken, reason, tuple(sorted(needs)))
        return found


def _plans(
    history: History,
    store_s: Mapping[str, float],
    namespace: Mapping[str, Any],
    stored: Collection[str],
) -> dict[str, Plan]:
    """Return plans for what is made so much faster than stored; none needs another of them.

    Parameters
    ----------
    store_s
        The variables in question, with how long storing and loading each takes.
    """
    marks = {n: fingerprint(namespace[n]) for n in stored if n in namespace}
    open_ = set(store_s)
    while True:
        there = {n: mark for n, mark in marks.items() if n not in open_}
        plans = {n: p for n in open_ if (p := _safe_plan(history, n, there)) is not None}
        plans = {n: p for n, p in plans.items() if p.seconds * WORTH_IT <= store_s[n]}
        if len(plans) == len(open_):
            return plans
        # What will be stored is there for the others.
        open_ = set(plans)


def _safe_plan(history: History, name: str, there: Mapping[str, str]) -> Plan | None:
    """Return the plan for a variable, if it can be relied upon."""
    found = plan(history, name, there)
    if isinstance(found, str) or history.kind(name) not in ("data", "atom"):
        return None
    if any(history.steps[rerun.index].run.inputs for rerun in found.reruns):
        return None  # a file that it read may be another by then, or be gone
    return found


def _said(again_s: float, store_s: float) -> str:
    return (
        f"left out, since its cells take {again_s:.2g} s and storing it {store_s:.2g} s; "
        "%gpu restore runs them again"
    )
