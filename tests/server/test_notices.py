"""What kernels say of their claims is checked: they are other people's programs."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from jupyter_gpu_predict.core.model import Claim
from jupyter_gpu_predict.kernel.messages import ClaimMessage
from jupyter_gpu_predict.server.notices import Notices

NOW, STARTED = 1000.0, 400.0


def claims_of(**said: Any) -> list[Claim]:
    taken: list[Claim] = []
    record = SimpleNamespace(kernel_id="k", priority=0, present_priority=1, started_s=STARTED)
    loop = SimpleNamespace(kernels={"k": record}, clock=lambda: NOW, claim=taken.append)
    message = ClaimMessage(claim_id="c", bytes=1, deadline_s=NOW + 60, made_s=NOW - 1)
    fleet: Any = SimpleNamespace(loop=loop)
    Notices(fleet).take("k", "gpu_claim", {**message.content(), **said})
    return taken


def test_a_claim_is_as_old_as_it_says() -> None:
    assert [c.made_s for c in claims_of()] == [NOW - 1]


@pytest.mark.parametrize(
    ("said", "taken"), [("cell", "cell"), ("growth", "growth"), ("preempted", "cell")]
)
def test_only_claims_of_cells_come_from_kernels(said: str, taken: str) -> None:
    assert [c.origin for c in claims_of(origin=said)] == [taken]


def test_a_running_cell_asks_for_more_as_urgently_as_it_first_claimed() -> None:
    assert [c.priority for c in claims_of(origin="growth")] == [1]
    assert [c.priority for c in claims_of()] == [0]


@pytest.mark.parametrize(("said", "taken"), [(0.0, STARTED), (NOW + 900, NOW), (STARTED, STARTED)])
def test_it_is_no_older_than_its_kernel_and_not_from_the_future(said: float, taken: float) -> None:
    assert [c.made_s for c in claims_of(made_s=said)] == [taken]


@pytest.mark.parametrize("field", ["made_s", "deadline_s"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0, "soon", None, True])
def test_what_is_no_time_is_refused(
    field: str, wrong: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert claims_of(**{field: wrong}) == []
    assert field in caplog.text
