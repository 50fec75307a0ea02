"""One kernel's suspension and resumption, step by step, and what follows a helper's death."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..core.model import Rung
from ..errors import CheckpointFailedError, CheckpointRefusedError
from .cuda_checkpoint_facts import Look, look_from_json
from .cuda_checkpoint_gate import (
    Refusal,
    Traits,
    full_map,
    not_my_pids,
    refuse_resume,
    refuse_suspend,
)
from .cuda_checkpoint_record import CheckpointRecord, HeldProcess
from .cuda_checkpoint_steps import (
    FREE_STATES,
    SENTENCES,
    Goal,
    ProcessState,
    goal_after_interruption,
    reached,
)
from .cuda_checkpoint_talk import Helper, HelperDiedError, Means

_ROUNDS = 3
"""Times that the tree is looked through for processes that came to use CUDA meanwhile."""

_HELPERS = 2
"""Helpers that may die while a kernel is brought back, before it is left to a later attempt."""

_CheckpointError = CheckpointRefusedError | CheckpointFailedError


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an operation went.

    Attributes
    ----------
    bytes
        Device memory that was moved.
    left_bytes
        Device memory that NVML still shows for the processes after a suspension; 0 if all is well.
    seconds
        Time in the driver by step, e.g. ``{"lock": 0.1, "checkpoint": 2.3}``.
    flaky
        Answers, e.g. ``"not_supported"``, that the driver took back at the next call.
    """

    record: CheckpointRecord
    bytes: int = 0
    left_bytes: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    flaky: tuple[str, ...] = ()


class KernelCheckpoint:
    """Carries out operations on one kernel; `lock` is to be held during each of them."""

    def __init__(
        self, record: CheckpointRecord, means: Means, keep: Callable[[CheckpointRecord], None]
    ) -> None:
        self.record = record
        self.lock = asyncio.Lock()
        self._means = means
        self._keep_outside = keep

    def drop(self) -> None:
        """Give no record out any more: the kernel has ended."""
        self._keep_outside = _keep_nothing

    async def look(self, root: int) -> Look:
        """Return what a helper sees of the tree below `root`; changes nothing."""
        try:
            async with self._means.helper() as helper:
                return await self._look(helper, root, [p.pid for p in self.record.processes])
        except HelperDiedError as error:
            text = f"Kernel {self.record.kernel_id}: {error}"
            raise CheckpointFailedError(
                text, error.why, Rung.IN_PLACE.value, held=self.record.may_hold
            ) from error

    async def suspend(
        self, root: int, lock_timeout_s: float, traits: Traits, *, to_other_gpu: bool
    ) -> Outcome:
        """See `cuda_checkpoint.CudaCheckpoint.suspend`."""
        if self.record.may_hold:
            await self.recover()
            if self.record.suspended:
                return Outcome(self.record)
        self._keep(replace(self.record, goal=Goal.RUNNING, settled=True, processes=()))
        run = _Run(self, lock_timeout_s)
        try:
            async with self._means.helper() as helper:
                look = await self._look(helper, root, ())
                run.driver_version = look.driver_version
                refusal = refuse_suspend(look, self.record, traits, to_other_gpu=to_other_gpu)
                if refusal is not None:
                    raise _refused(refusal)
                for _ in range(_ROUNDS):
                    self._begin(look)
                    end = await run.reach(helper, Goal.SUSPENDED)
                    if not end["ok"]:
                        break
                    look = await self._look(helper, root, run.pids)
                    if all(p.state is ProcessState.CHECKPOINTED for p in look.processes):
                        break
                else:
                    end = await run.reach(helper, Goal.RUNNING)
                    end |= {"undone": end["ok"], "ok": False, "why": "new_processes"}
        except HelperDiedError as error:
            await self._undo(run, error)
            raise self._died_suspending(error) from error
        if not end["ok"]:
            raise self._not_suspended(run, end, Rung.RELAUNCH if to_other_gpu else Rung.IN_PLACE)
        self._keep(replace(self.record, settled=True).with_success(run.driver_version, "suspend"))
        if not self.record.suspended:
            text = "The kernel's processes ended while the driver was suspending them."
            raise CheckpointFailedError(text, "gone", Rung.RELAUNCH.value, held=False)
        left = sum(look.bytes_of(pid) or 0 for pid in run.pids)
        return Outcome(self.record, self.record.bytes, left, run.seconds, run.flaky)

    async def resume(self, gpu_map: Mapping[str, str] | None) -> Outcome:
        """See `cuda_checkpoint.CudaCheckpoint.resume`."""
        if not self.record.may_hold:
            return Outcome(self.record)
        run = _Run(self)
        died = HelperDiedError("died", "")
        for _ in range(_HELPERS):
            try:
                async with self._means.helper() as helper:
                    return await self._resume_with(helper, run, gpu_map)
            except HelperDiedError as error:
                died = error
            if died.why == "undead":
                break
        self._keep(self.record.with_failure(run.driver_version, _operation(gpu_map), died.why))
        text = f"The kernel was not resumed: {died} Try again, or restart the kernel."
        raise CheckpointFailedError(text, died.why, Rung.RELAUNCH.value, held=True) from died

    async def recover(self) -> CheckpointRecord:
        """See `cuda_checkpoint.CudaCheckpoint.recover`."""
        if not self.record.may_hold or self.record.suspended:
            return self.record
        run = _Run(self)
        try:
            async with self._means.helper() as helper:
                look = await self._refresh(helper)
                run.driver_version = look.driver_version
                states = [p.state for p in self.record.processes]
                room = refuse_resume(look, self.record, None) is None
                goal = goal_after_interruption(self.record.goal, states, room=room)
                if goal is Goal.SUSPENDED and not reached(states, goal):
                    end = await run.reach(helper, goal)
                    if not end["ok"]:
                        raise self._not_suspended(run, end, Rung.RELAUNCH)
        except HelperDiedError as error:
            # A process may not answer because another one is locked: release them one by one.
            await self._undo(run, error)
            after: CheckpointRecord = self.record
            if after.may_hold:
                raise self._died_suspending(error) from error
            return after
        if goal is Goal.SUSPENDED:
            self._keep(replace(self.record, goal=goal, settled=True))
        elif states:
            await self.resume(None)
        return self.record

    # ------------------------------------------------------------- parts of them

    async def _resume_with(
        self, helper: Helper, run: _Run, gpu_map: Mapping[str, str] | None
    ) -> Outcome:
        look = await self._refresh(helper)
        run.driver_version = look.driver_version
        if not self.record.processes:
            text = "The kernel's processes have ended; there is nothing to resume."
            raise CheckpointFailedError(text, "gone", Rung.RELAUNCH.value, held=False)
        whole = full_map(gpu_map, look, self.record) if gpu_map else None
        if isinstance(whole, Refusal):
            raise _refused(whole)
        refusal = refuse_resume(look, self.record, whole)
        if refusal is not None:
            raise _refused(refusal)
        size = self.record.bytes
        self._keep(replace(self.record, goal=Goal.RUNNING, settled=False))
        end = await run.reach(helper, Goal.RUNNING, gpu_map=whole)
        if not end["ok"]:
            raise self._not_resumed(run, end, gpu_map)
        record = replace(self.record, settled=True, processes=())
        self._keep(record.with_success(run.driver_version, _operation(gpu_map)))
        return Outcome(self.record, size, 0, run.seconds, run.flaky)

    async def _undo(self, run: _Run, died: HelperDiedError) -> None:
        """Release the kernel after the death of a helper that was suspending it."""
        record = self.record.with_failure(run.driver_version, "suspend", died.why)
        self._keep(replace(record, goal=Goal.RUNNING))
        for _ in range(_HELPERS):
            if not self.record.may_hold or died.why == "undead":
                return
            states = [p.state for p in self.record.processes]
            try:
                async with self._means.helper() as helper:
                    end = await run.reach(
                        helper,
                        Goal.RUNNING,
                        one_by_one=ProcessState.CHECKPOINTED not in states,
                    )
            except HelperDiedError as error:
                died = error
                continue
            if end["ok"]:
                self._keep(replace(self.record, settled=True, processes=()))
                return

    def _not_suspended(self, run: _Run, end: Mapping[str, Any], fallback: Rung) -> _CheckpointError:
        why = str(end["why"])
        record = self.record.with_failure(run.driver_version, "suspend", why)
        said = f"The kernel was not suspended{_at(end)}: {SENTENCES.get(why, why)}"
        if end["undone"]:
            self._keep(replace(record, goal=Goal.RUNNING, settled=True, processes=()))
            text = f"{said}. It was undone; the kernel goes on."
            return CheckpointRefusedError(text, why, fallback.value)
        self._keep(replace(record, goal=Goal.RUNNING))
        text = f"{said}; undoing that failed too. Try to resume it, or restart the kernel."
        return CheckpointFailedError(text, why, Rung.RELAUNCH.value, held=True)

    def _not_resumed(
        self, run: _Run, end: Mapping[str, Any], gpu_map: Mapping[str, str] | None
    ) -> _CheckpointError:
        why = str(end["why"])
        record = self.record.with_failure(run.driver_version, _operation(gpu_map), why)
        if end["undone"]:
            record = replace(record, goal=Goal.SUSPENDED, settled=True)
        self._keep(record)
        state = "is wholly suspended, as before" if end["undone"] else "may be held in part"
        own = ", on its own GPU" if gpu_map else ""
        text = (
            f"The kernel was not resumed{_at(end)}: {SENTENCES.get(why, why)}. It {state}. Try "
            f"again{own}, or restart the kernel."
        )
        return CheckpointFailedError(text, why, Rung.RELAUNCH.value, held=True)

    def _died_suspending(self, died: HelperDiedError) -> _CheckpointError:
        if not self.record.may_hold:
            text = f"The kernel was not suspended: {died} What was begun was undone; it goes on."
            return CheckpointRefusedError(text, died.why, Rung.IN_PLACE.value)
        text = f"The kernel was not suspended: {died} Undoing that failed; try to resume it."
        return CheckpointFailedError(text, died.why, Rung.RELAUNCH.value, held=True)

    # ------------------------------------------------------------- helper and record

    async def _look(self, helper: Helper, root: int | None, known: Iterable[int]) -> Look:
        order = {"do": "look", "root": root, "known": list(known)}
        end = await helper.ask(order, first_s=self._means.limits.look_s)
        return look_from_json(end["look"])

    async def _refresh(self, helper: Helper) -> Look:
        """Bring the record up to date with the driver; without a driver it stays as it is."""
        record = self.record
        look = await self._look(helper, None, [p.pid for p in record.processes])
        gone, states = not_my_pids(look.processes, record), {p.pid: p.state for p in look.processes}
        living = tuple(p for p in record.processes if p.pid not in gone)
        if look.no_driver is None:
            living = tuple(replace(p, state=states[p.pid]) for p in living)
        self._keep(replace(record, processes=living, settled=record.settled or not living))
        return look

    def _begin(self, look: Look) -> None:
        """Write down what is about to be touched, before it is."""
        known = {p.pid: p for p in self.record.processes}
        found = tuple(
            replace(known[p.pid], state=p.state)
            if p.pid in known
            else HeldProcess(p.pid, p.started, p.state, look.gpus_of(p.pid))
            for p in look.processes
        )
        self._keep(replace(self.record, goal=Goal.SUSPENDED, settled=False, processes=found))

    def _keep(self, record: CheckpointRecord) -> None:
        if record != self.record:
            # What could not be kept is not so: nothing was touched yet.
            self._keep_outside(record)
            self.record = record

    def hear(self, event: Mapping[str, Any]) -> None:
        """Note the state that an event of the helper tells."""
        if event["event"] == "state":
            state = ProcessState(event["state"])
            self._keep(self.record.with_state(int(event["pid"]), state))

    async def order(
        self,
        helper: Helper,
        goal: Goal,
        *,
        lock_timeout_s: float,
        gpu_map: Mapping[str, str] | None,
        one_by_one: bool,
        hear: Callable[[Mapping[str, Any]], None],
    ) -> dict[str, Any]:
        """Have the helper bring the record's processes to `goal`, each call within its limit."""
        limits, processes = self._means.limits, list(self.record.processes)
        sizes = {p.pid: sum(p.gpus.values()) for p in processes}
        if one_by_one:
            # Held ones first: one that runs may not answer before they are released.
            processes.sort(key=lambda p: p.state in FREE_STATES)

        def limit_s(event: Mapping[str, Any]) -> float:
            step = str(event["step"]) if event["event"] == "begin" else "state"
            return limits.of_step(step, lock_timeout_s, sizes.get(event.get("pid", 0), 0))

        return await helper.ask(
            {
                "do": "reach",
                "goal": goal.value,
                "processes": [[p.pid, p.started] for p in processes],
                "lock_timeout_ms": max(1, round(lock_timeout_s * 1000)),
                "gpu_map": gpu_map,
                "one_by_one": one_by_one,
                "wait_s": limits.of_step("restore", 0.0, max(sizes.values(), default=0)),
            },
            first_s=limits.state_s,
            hear=hear,
            limit_s=limit_s,
        )


class _Run:
    """The orders of one operation, and what came of them."""

    def __init__(self, kernel: KernelCheckpoint, lock_timeout_s: float = 10.0) -> None:
        self._kernel, self._lock_timeout_s = kernel, lock_timeout_s
        self.driver_version = ""
        self.seconds: dict[str, float] = {}
        self.flaky: tuple[str, ...] = ()

    @property
    def pids(self) -> list[int]:
        return [p.pid for p in self._kernel.record.processes]

    async def reach(
        self,
        helper: Helper,
        goal: Goal,
        *,
        gpu_map: Mapping[str, str] | None = None,
        one_by_one: bool = False,
    ) -> dict[str, Any]:
        end = await self._kernel.order(
            helper,
            goal,
            lock_timeout_s=self._lock_timeout_s,
            gpu_map=gpu_map,
            one_by_one=one_by_one,
            hear=self._hear,
        )
        self.flaky = tuple(sorted({*self.flaky, *end.get("flaky", ())}))
        return end

    def _hear(self, event: Mapping[str, Any]) -> None:
        self._kernel.hear(event)
        if event["event"] == "step":
            step = str(event["step"])
            self.seconds[step] = self.seconds.get(step, 0.0) + float(event["seconds"])


def _keep_nothing(record: CheckpointRecord) -> None:
    """Let a record of a kernel that has ended go."""


def _refused(refusal: Refusal) -> CheckpointRefusedError:
    return CheckpointRefusedError(refusal.message, refusal.why, refusal.fallback.value)


def _operation(gpu_map: Mapping[str, str] | None) -> str:
    return "move" if gpu_map else "resume"


def _at(end: Mapping[str, Any]) -> str:
    return f" ({end['step']} of process {end['pid']})" if end.get("step") else ""
