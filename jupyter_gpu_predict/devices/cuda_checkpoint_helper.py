"""The process that calls the driver, so that a call which hangs can be ended with it.

Each line of its input is a JSON object that asks for one thing, answered by lines of JSON, the
last of them with ``"event": "end"``:

``{"do": "look", "root": PID, "known": [PID, …]}``
    Tell the machine's and the processes' state.
``{"do": "reach", "goal": "suspended", "processes": [[PID, STARTED], …], …}``
    Bring all the processes there, or else back; before each call to the driver a ``begin`` line
    says which one, for whoever watches the time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .cuda_checkpoint_driver import (
    ILLEGAL_STATE,
    NOT_SUPPORTED,
    OK,
    Driver,
    DriverError,
    NoDriverError,
    open_driver,
)
from .cuda_checkpoint_facts import PAUSE_S, TRIES, look_around, read_state, start_ticks
from .cuda_checkpoint_steps import (
    Goal,
    ProcessState,
    Step,
    next_step,
    obstacle,
    reached,
    reason_of,
)

Tell = Callable[[dict[str, Any]], None]


class StepFailedError(Exception):
    """A call that failed for good, or an obstacle that no call takes away."""

    def __init__(self, why: str, pid: int | None, step: Step | None = None, code: int = OK) -> None:
        super().__init__(why)
        self.why, self.pid, self.step, self.code = why, pid, step, code


@dataclass(frozen=True, slots=True)
class Order:
    """What to reach for which processes; `processes` are pids with their start in ticks.

    `one_by_one` brings each process back by itself, without asking for the states of the others:
    a driver may not answer for one process while another, which talks to it, is locked. `wait_s`
    is how long a call that another helper began is waited for.
    """

    goal: Goal
    processes: tuple[tuple[int, int], ...]
    lock_timeout_ms: int = 10_000
    gpu_map: Mapping[str, str] | None = None
    one_by_one: bool = False
    wait_s: float = 300.0


class Reaching:
    """Carries out an `Order`, and leaves the processes as they were where that fails.

    Parameters
    ----------
    tell
        Is given each event; that it raises ``OSError`` means that nobody listens any more.
    started
        Returns when a pid started, or ``None``.
    """

    def __init__(
        self,
        driver: Driver,
        order: Order,
        tell: Tell,
        *,
        started: Callable[[int], int | None] = start_ticks,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._driver = driver
        self._order = order
        self._tell_server = tell
        self._started = started
        self._pause_s = pause_s
        self._alone = False
        self._waited_s = 0.0
        self._told: dict[int, ProcessState] = {}
        self._flaky: set[str] = set()

    def run(self) -> dict[str, Any]:
        """Do it and return the last event."""
        failure: StepFailedError | None = None
        undone = False
        try:
            if self._order.one_by_one:
                for process in self._order.processes:
                    self._advance(self._order.goal, (process,), release=True)
            else:
                self._advance(self._order.goal, self._order.processes)
        except StepFailedError as error:
            failure, undone = error, self._go_back(error)
        end: dict[str, Any] = {
            "event": "end",
            "ok": failure is None,
            "undone": undone,
            "states": {pid: state.value for pid, state in self._told.items()},
            "flaky": sorted(self._flaky),
        }
        if failure is not None:
            step = None if failure.step is None else failure.step.value
            end |= {"why": failure.why, "pid": failure.pid, "step": step, "code": failure.code}
        return end

    def _go_back(self, failure: StepFailedError) -> bool:
        """Return to what was before; return whether everything is there."""
        processes = self._order.processes
        if self._order.goal is Goal.RUNNING:
            # Back to suspended only from a failed restore: nothing was unlocked before the last
            # one was restored, so nothing has run.
            if failure.step is not Step.RESTORE or not self._was_suspended:
                return False
            back = Goal.SUSPENDED
        else:
            back = Goal.RUNNING
        try:
            self._advance(back, processes, release=back is Goal.RUNNING)
        except StepFailedError:
            return False
        return True

    @property
    def _was_suspended(self) -> bool:
        return ProcessState.RUNNING not in self._told.values()

    def _advance(
        self, goal: Goal, processes: Sequence[tuple[int, int]], *, release: bool = False
    ) -> None:
        """Make one call after the other; with `release` a process that fails stops no other."""
        tries: Counter[tuple[Step, int]] = Counter()
        given_up: dict[int, StepFailedError] = {}
        while True:
            states = {pid: self._state(pid, started) for pid, started in processes}
            if self._alone and self._suspending and goal is Goal.SUSPENDED:
                raise StepFailedError("server_gone", None)
            stuck = obstacle(states)
            if stuck is not None and goal is Goal.SUSPENDED:
                raise StepFailedError(stuck[1].value, stuck[0])
            step = next_step({p: s for p, s in states.items() if p not in given_up}, goal)
            if step is None:
                break
            try:
                self._take(step, tries)
            except StepFailedError as error:
                if not release and error.step is not Step.UNLOCK:
                    raise
                given_up[step[1]] = error
        for failure in given_up.values():
            raise failure
        if stuck is not None:
            raise StepFailedError(stuck[1].value, stuck[0])
        if not reached(states.values(), goal):
            raise StepFailedError("no_effect", None)

    def _take(self, step: tuple[Step, int], tries: Counter[tuple[Step, int]]) -> None:
        what, pid = step
        if what is Step.WAIT:
            if self._waited_s >= self._order.wait_s:
                raise StepFailedError("busy", pid, what)
            time.sleep(self._pause_s)
            self._waited_s += self._pause_s
            return
        # Also a call that answers success must have changed something by its third time.
        tries[step] += 1
        if tries[step] > TRIES:
            raise StepFailedError("no_effect", pid, what)
        code = self._call(what, pid)
        if code == OK or self._is_gone(pid):
            return
        if code in (ILLEGAL_STATE, NOT_SUPPORTED) and tries[step] < TRIES:
            self._flaky.add(reason_of(code, what))
            time.sleep(self._pause_s * tries[step])
            return
        raise StepFailedError(reason_of(code, what), pid, what, code)

    def _call(self, step: Step, pid: int) -> int:
        self._tell({"event": "begin", "pid": pid, "step": step.value})
        if self._alone and step in (Step.LOCK, Step.CHECKPOINT) and self._suspending:
            raise StepFailedError("server_gone", pid)
        began, code = time.perf_counter(), OK
        try:
            if step is Step.LOCK:
                self._driver.lock(pid, self._order.lock_timeout_ms)
            elif step is Step.CHECKPOINT:
                self._driver.checkpoint(pid)
            elif step is Step.RESTORE:
                self._driver.restore(pid, self._order.gpu_map)
            else:
                self._driver.unlock(pid)
        except DriverError as error:
            code = error.code
        seconds = time.perf_counter() - began
        self._tell(
            {"event": "step", "pid": pid, "step": step.value, "code": code, "seconds": seconds}
        )
        return code

    @property
    def _suspending(self) -> bool:
        return self._order.goal is Goal.SUSPENDED

    def _state(self, pid: int, started: int) -> ProcessState:
        if self._started(pid) != started:
            state = ProcessState.GONE
        else:
            self._tell({"event": "begin", "pid": pid, "step": "state"})
            state, _ = read_state(self._driver, pid, pause_s=self._pause_s)
            if state is ProcessState.UNKNOWN and self._is_gone(pid):
                state = ProcessState.GONE
        if self._told.get(pid) is not state:
            self._told[pid] = state
            self._tell({"event": "state", "pid": pid, "state": state.value})
        return state

    def _is_gone(self, pid: int) -> bool:
        return self._started(pid) != dict(self._order.processes).get(pid)

    def _tell(self, event: dict[str, Any]) -> None:
        """Tell the server; without one, what was begun is brought to where a kernel can go on."""
        if self._alone:
            return
        try:
            self._tell_server(event)
        except OSError:
            self._alone = True


def main() -> None:
    """Answer orders until the input ends."""
    # What a library prints must not get between the lines.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(event: dict[str, Any]) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    driver: Driver | None = None
    no_driver: tuple[str, str] | None = None
    try:
        driver = open_driver(sys.argv[1] if len(sys.argv) > 1 else "auto")
    except NoDriverError as error:
        no_driver = (error.why, str(error))
    say({"event": "ready"})
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "look":
            look = look_around(driver, no_driver, order["root"], order["known"])
            end: dict[str, Any] = {"event": "end", "ok": True, "look": asdict(look)}
        elif driver is None:
            end = {"event": "end", "ok": False, "undone": False, "why": "no_driver", "states": {}}
        else:
            end = Reaching(driver, order_from_json(order), say).run()
        try:
            say(end)
        except OSError:
            # Nobody listens; a second failure while Python closes the pipe would be printed.
            os._exit(0)


def order_from_json(data: Mapping[str, Any]) -> Order:
    """Return the order that stands in a line of the input."""
    return Order(
        goal=Goal(data["goal"]),
        processes=tuple((int(pid), int(started)) for pid, started in data["processes"]),
        lock_timeout_ms=int(data["lock_timeout_ms"]),
        gpu_map=data["gpu_map"],
        one_by_one=bool(data["one_by_one"]),
        wait_s=float(data["wait_s"]),
    )


if __name__ == "__main__":
    main()
