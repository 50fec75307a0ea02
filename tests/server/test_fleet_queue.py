"""What a kernel owes an answer to, as its websockets see it."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest

from jupyter_gpu_predict.control.records import KernelRecord
from jupyter_gpu_predict.server.connection import Sent
from jupyter_gpu_predict.server.fleet import Fleet


class Tabs:
    """As much of a fleet as counts requests; `woken` counts how often the loop was."""

    def __init__(self) -> None:
        port: Any = SimpleNamespace(has_agent=True)
        self.now, self.woken = 100.0, 0
        self.record = KernelRecord("k", "python3", None, port, 0.0)
        self.sent: OrderedDict[str, Sent] = OrderedDict()
        self.fleet: Any = object.__new__(Fleet)
        self.fleet._unanswered = {"k": {"tab": self.sent}}
        self.fleet.loop = SimpleNamespace(
            kernels={"k": self.record}, clock=lambda: self.now, wake=self._wake
        )

    def _wake(self) -> None:
        self.woken += 1

    def send(self, msg_id: str, kind: str = "execute_request") -> float | None:
        self.now += 1
        self.sent[msg_id] = Sent(kind, None, None, self.now)
        self.fleet.queue_changed("k")
        return self.record.unanswered_s

    def answer(self, msg_id: str) -> float | None:
        self.now += 1
        del self.sent[msg_id]
        self.fleet.queue_changed("k")
        return self.record.unanswered_s


def test_it_is_since_the_first_cell_that_was_not_answered() -> None:
    tabs = Tabs()
    assert tabs.send("1") == 101.0
    assert tabs.send("2") == 101.0
    assert (tabs.record.queued_runs, tabs.woken) == (1, 1)
    assert tabs.answer("1") == 101.0
    assert tabs.answer("2") is None
    assert tabs.send("3") == 105.0


def test_once_the_driver_has_the_kernel_it_is_since_the_first_one_after_that() -> None:
    tabs = Tabs()
    tabs.send("1")
    tabs.record.held_by_driver(1, 0, now_s=101.5)
    assert tabs.record.unanswered_s == 101.0
    assert tabs.send("2") == 102.0
    assert tabs.send("3") == 102.0
    assert tabs.woken >= 2
    # Its answer to the first went to a tab that is closed.
    assert tabs.answer("2") == 102.0


@pytest.mark.parametrize("kind", ["inspect_request", "complete_request"])
def test_only_cells_count(kind: str) -> None:
    assert Tabs().send("1", kind) is None
