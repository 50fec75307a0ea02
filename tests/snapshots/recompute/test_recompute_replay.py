"""Running cells again leaves no trace but what was asked for."""

from __future__ import annotations

import threading

import pytest
from recompute_sessions import Session

from jupyter_gpu_predict.errors import RefusedError
from jupyter_gpu_predict.kernel.observer import Watch


def test_an_interrupt_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    session = Session().run("a = [1]", "b = 1", "a = 2; raised = Own(); w = iter([b])")
    assert list(session.failed) == ["a = 2; raised = Own(); w = iter([b])"]

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(builtins, "Own", lambda: None, raising=False)
    session.run("a = 2; raised = Own(); w = iter([b])")
    monkeypatch.setattr(builtins, "Own", interrupt)
    seen = []
    with pytest.raises(KeyboardInterrupt):
        session.make_again("w", watch=seen.append)
    [fresh] = seen
    assert fresh.untouched()


def test_a_cell_that_both_makes_and_fails_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    monkeypatch.setattr(builtins, "check", lambda: None, raising=False)
    session = Session().run("w = iter([1]); check()", "v = [w]", "u = iter([3])")
    monkeypatch.setattr(builtins, "check", lambda: 1 / 0)
    fresh = session.make_again("w", "v", "u")
    assert [fresh[n].status for n in "wvu"] == ["failed", "failed", "recomputed"]
    assert "ZeroDivisionError" in str(fresh["v"].reason)
    assert fresh.untouched("u")


def test_variables_made_together_share_again() -> None:
    fresh = Session().run("a = iter([1, 2])", "b = [a]").make_again("a", "b")
    assert fresh["b"].reason is None
    assert fresh.namespace["b"][0] is fresh.namespace["a"]


def test_only_the_thread_that_runs_the_cells_is_stopped() -> None:
    watch: list[Watch] = []
    ready, go = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def other() -> None:
        ready.set()
        go.wait(10)
        try:
            watch[0].note("wrote a file")
        except RefusedError as error:
            raised.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    assert ready.wait(10)
    watch.append(Watch({}, block=True))
    go.set()
    thread.join()
    assert (raised, dict(watch[0].effects)) == ([], {})
    with pytest.raises(RefusedError, match="wrote a file; it did not do so before"):
        watch[0].note("wrote a file")
