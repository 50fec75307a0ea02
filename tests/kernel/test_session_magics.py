"""`%gpu snapshot`, `snapshots` and `restore` in real kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_bench import Bench
from live_server import Run

from jupyter_gpu_predict.demo.client import API, Notebook
from jupyter_gpu_predict.errors import BadInputError
from jupyter_gpu_predict.kernel.session_magics import _variables, parse_restore

PATIENT = """
import jupyter_gpu_predict.kernel.views as views
views.BAR_AFTER_S *= 100
"""
SLOW = """
import jupyter_gpu_predict.kernel.views as views
views.BAR_AFTER_S = views.BAR_EVERY_S = 0.0
"""
INTERRUPTED = """
def interrupted(self, done, total): raise KeyboardInterrupt
shown, views.Bar.__call__ = views.Bar.__call__, interrupted
"""


@pytest.fixture(scope="module")
def notebook(bench: Bench, run: Run[Any]) -> Iterator[Notebook]:
    opened = run(bench.server.open("sessions.ipynb"))
    yield opened
    run(bench.close(opened))


def test_named_snapshots_are_undo_points_and_keep_the_history_of_now(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    async def scenario() -> None:
        await bench.say(notebook, "import random; x = [1]; random.seed(3)")
        await bench.say(notebook, "%gpu snapshot one")
        drawn = await bench.say(notebook, "x.append(2); new = 'kept'; random.random()")
        await bench.say(notebook, "%gpu snapshot two")
        before = await notebook.run("x.append(3)")
        await bench.say(notebook, "%gpu restore one")
        after = await notebook.run("x, new, 'append(3)' in In[-3]")
        assert after.text == "([1], 'kept', True)"
        assert after.reply["execution_count"] == before.reply["execution_count"] + 2
        assert await bench.say(notebook, "random.random()") == drawn
        await bench.say(notebook, "%gpu restore two")
        assert await bench.say(notebook, "x") == "[1, 2]"

    run(scenario())


def test_only_the_named_variables_come_back_and_nothing_around_them(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    async def scenario() -> None:
        await bench.say(notebook, "import os; a = [1]; b = [a, 2]; c = 3; os.environ['E'] = '1'")
        await bench.say(notebook, "%gpu snapshot with spaces")
        await bench.say(notebook, "a = b = c = None; os.environ['E'] = '2'")
        shown = await bench.say(notebook, "%gpu restore with spaces --only a,b")
        assert "2 of 2 variables restored" in shown
        assert (
            await bench.say(notebook, "a, b[0] is a, c, os.environ['E']")
            == "([1], True, None, '2')"
        )
        wrong = await notebook.run("%gpu restore with spaces --only c,nobody")
        assert wrong.status == "error"
        assert "nobody" in wrong.text
        assert (await notebook.run("c is None")).text == "True"

    run(scenario())


def test_what_was_not_saved_is_made_again_when_asked_and_named_otherwise(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    async def scenario() -> None:
        await bench.say(notebook, "n = 3")
        await bench.say(notebook, "counted = iter(k for k in range(n))")
        saved = await bench.say(notebook, "%gpu snapshot partly")
        assert "counted" in saved
        await bench.say(notebook, "del counted, n")
        named = await bench.say(notebook, "%gpu restore partly")
        assert "counted" in named
        assert "tombstone" in named
        assert (await notebook.run("next(counted)")).status == "error"
        again = await bench.say(notebook, "%gpu restore partly --recompute")
        assert "recomputed" in again
        assert await bench.say(notebook, "list(counted)") == "[0, 1, 2]"

    run(scenario())


def test_what_a_snapshot_cannot_carry_is_said_and_does_not_stop_it(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    async def scenario() -> None:
        await bench.say(
            notebook, "import subprocess, signal; p = subprocess.Popen(['sleep', '600']).pid"
        )
        saved = await bench.say(notebook, "%gpu snapshot bound")
        assert "not carried: child process" in saved
        await bench.say(notebook, "os.kill(p, signal.SIGKILL); os.waitpid(p, 0)")
        assert "not carried: child process" in await bench.say(notebook, "%gpu restore bound")

    run(scenario())


def test_large_outputs_are_left_out_and_small_ones_are_not(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    async def scenario() -> None:
        await notebook.run("import numpy as np; np.random.rand(2 << 20)")
        await bench.say(notebook, "%gpu snapshot lean")
        (lean,) = [s for s in await bench.server.get(f"{API}/snapshots") if s["name"] == "lean"]
        assert lean["bytes"] < 8 << 20
        await notebook.run("held = np.random.rand(2 << 20); held")
        await bench.say(notebook, "%gpu snapshot full")
        (full,) = [s for s in await bench.server.get(f"{API}/snapshots") if s["name"] == "full"]
        assert 16 << 20 <= full["bytes"] < 24 << 20
        await bench.say(notebook, "del held; Out.clear()")

    run(scenario())


def test_long_work_shows_a_bar_that_is_updated_and_short_work_shows_none(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    async def scenario() -> None:
        # Whatever this machine takes for it, it is less than the time from which a bar is shown.
        await bench.say(notebook, PATIENT)
        quick = await notebook.run("%gpu snapshot quick")
        assert [o["output_type"] for o in quick.outputs] == ["execute_result"]
        await bench.say(notebook, SLOW)
        for line, what in (("%gpu snapshot slow", "Saving 'slow'"),
                           ("%gpu restore slow", "Restoring 'slow'")):  # fmt: skip
            done = await notebook.run(line)
            kinds = [m["msg_type"] for m in done.messages]
            assert kinds.count("display_data") == 1
            first = next(m for m in done.messages if m["msg_type"] == "display_data")
            last = [m for m in done.messages if m["msg_type"] == "update_display_data"][-1]
            assert first["content"]["data"]["text/plain"].startswith(what)
            assert "<progress" in first["content"]["data"]["text/html"]
            assert last["content"]["transient"] == first["content"]["transient"]
            assert "100%" in last["content"]["data"]["text/plain"]

    run(scenario())


def test_an_interrupt_leaves_the_store_and_the_session_as_they_were(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    async def scenario() -> None:
        await bench.say(notebook, "y = 'saved'")
        await bench.say(notebook, "%gpu snapshot whole")
        await bench.say(notebook, SLOW + INTERRUPTED + "y = 'now'")
        before = await bench.server.get(f"{API}/snapshots")
        for line in ("%gpu snapshot broken", "%gpu restore whole"):
            stopped = await notebook.run(line)
            assert stopped.status == "error"
            assert stopped.reply["ename"] == "KeyboardInterrupt"
        assert await bench.server.get(f"{API}/snapshots") == before
        assert await bench.say(notebook, "views.Bar.__call__ = shown; y") == "'now'"
        await bench.say(notebook, "%gpu restore whole")
        assert await bench.say(notebook, "y") == "'saved'"

    run(scenario())


def test_what_differs_from_where_it_was_made_is_said_first() -> None:
    report = {
        "variables": [
            {"name": "x", "type_name": "int", "status": "restored", "reason": None},
            {"name": "y", "type_name": "generator", "status": "tombstone", "reason": "it runs"},
        ],
        "differences": ["numpy was 2.3.1, here it is 2.2.0"],
        "notes": ["y: it runs", "extension a could not be restored"],
    }
    lines = repr(_variables("Restored 'z'", report, "restored")).splitlines()
    assert lines[0].endswith("numpy was 2.3.1, here it is 2.2.0")
    assert lines[1] == "Restored 'z'; 1 of 2 variables restored"
    assert lines[3].split() == ["y", "generator", "tombstone", "it", "runs"]
    assert lines[4:] == ["extension a could not be restored"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("mine", ("mine", (), False)),
        ("my model 3 --only a,b", ("my model 3", ("a", "b"), False)),
        ("mine --only=a , --recompute", None),
        ("mine --recompute --only a --only b", ("mine", ("a", "b"), True)),
        ("--only a", None),
        ("", None),
        ("mine --only", None),
        ("mine --only ,", None),
        ("mine --recomputed", None),
        ("mine --recompute=1", None),
        ("mine --only 'a", None),
    ],
)
def test_the_words_of_a_restore(words: str, expected: Any) -> None:
    if expected is None:
        with pytest.raises(BadInputError, match="%gpu restore"):
            parse_restore(words)
    else:
        assert parse_restore(words) == expected


@given(st.text(max_size=40) | st.text(alphabet="ab ,-='\"only", max_size=40))
def test_any_words_are_understood_or_refused(words: str) -> None:
    try:
        name, only, _ = parse_restore(words)
    except BadInputError:
        return
    assert name == name.strip() != ""
    assert all(n.strip() == n != "" for n in only)
