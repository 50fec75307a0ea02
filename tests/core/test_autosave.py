"""When a kernel is saved without being asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jupyter_gpu_predict.core.allocation.policy import decide
from jupyter_gpu_predict.core.autosave import automatic_name, save_before
from jupyter_gpu_predict.core.model import (
    ClusterView,
    GpuView,
    KernelView,
    PolicySettings,
    RiskLevel,
)
from jupyter_gpu_predict.core.plans import TakeSnapshot

NOW = 10_000.0
CHANGED = KernelView("kernel", None, changed_s=NOW - 601, last_used_s=NOW - 601)


def saves(kernel: KernelView, risk: RiskLevel = RiskLevel.NONE, **settings: Any) -> list[str]:
    view = ClusterView(
        NOW,
        (GpuView("G0", 0, "GPU", 1 << 30, risk=risk),),
        (kernel,),
        settings=PolicySettings(**settings),
    )
    return [a.cause for a in decide(view).actions if isinstance(a, TakeSnapshot)]


def test_a_kernel_that_changed_and_lay_idle_is_saved_whether_it_has_a_gpu_or_not() -> None:
    assert saves(CHANGED) == ["idle"]
    assert saves(CHANGED, autosave_idle_s=602) == []
    assert saves(replace(CHANGED, changed_s=None)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"busy": True},
        {"waiting": True, "busy": True},
        {"queued_runs": 1},
        {"migrating": True},
        {"has_agent": False},
        {"savable": False},
    ],
)
def test_it_is_left_alone_while_something_is_going_on(change: dict[str, Any]) -> None:
    assert saves(replace(CHANGED, **change)) == []


def test_it_can_be_turned_off() -> None:
    assert saves(CHANGED, autosave=False) == []
    assert saves(CHANGED, autosave_idle_s=0) == []


@pytest.mark.parametrize(
    ("expected_s", "pause_s", "saved"),
    [(299.0, 0.0, False), (300.0, 0.0, True), (300.0, 2.9, True), (300.0, 3.1, False)],
)
def test_a_long_cell_is_preceded_by_a_snapshot_that_costs_little_of_it(
    expected_s: float, pause_s: float, saved: bool
) -> None:
    assert save_before(expected_s, 300.0, pause_s) is saved
    assert save_before(expected_s, 0.0, pause_s) is False


def test_a_pause_nobody_notices_is_always_fine() -> None:
    assert save_before(1.0, 1.0, 0.15)
    assert not save_before(1.0, 1.0, 0.16)


def test_names_are_plain_whatever_the_notebook_is_called() -> None:
    assert automatic_name("folder/my model.ipynb", "k") == "auto-my model"
    assert automatic_name(None, "0123456789") == "auto-01234567"
    odd = automatic_name("..\\x/" + "é\n..\0" * 60 + ".ipynb", "k")
    assert odd.isprintable()
    assert ".." not in odd
    assert len(odd) <= 100
