from __future__ import annotations

import threading

import pytest

from jupyter_gpu_predict.devices.patience import NoAnswerYetError, PatientCall


def test_a_result_and_an_error_come_back() -> None:
    call: PatientCall[int] = PatientCall("test")
    call.start(lambda: 7)
    assert call.wait(10.0) == 7
    call.start(lambda: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        call.wait(10.0)
    call.start(lambda: 8)
    assert call.wait(10.0) == 8


def test_a_call_that_hangs_is_made_once_and_answers_later() -> None:
    release, starts = threading.Event(), []
    call: PatientCall[str] = PatientCall("test")

    def slow() -> str:
        starts.append(1)
        release.wait(30.0)
        return "late"

    for _ in range(3):
        call.start(slow)
        with pytest.raises(NoAnswerYetError):
            call.wait(0.0)
        assert call.hangs
    release.set()
    assert call.wait(10.0) == "late"
    assert not call.hangs
    assert starts == [1]
