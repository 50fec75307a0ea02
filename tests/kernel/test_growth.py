"""What a cell that ran out of memory lacked, and whether its source lets it run again."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from jupyter_gpu_predict.kernel.cell_runs import CellRuns
from jupyter_gpu_predict.kernel.growth import wanted_bytes, why_not_again

MIB = 1 << 20

CUDA = (
    "CUDA out of memory. Tried to allocate 2.25 GiB. GPU 0 has a total capacity of 8.00 GiB of "
    "which 1.00 GiB is free. Including non-PyTorch memory, this process has 5.00 GiB memory in use."
)


def test_the_wanted_bytes_are_those_of_the_allocators_message() -> None:
    wanted = wanted_bytes(CUDA)
    assert wanted is not None
    assert 0 <= wanted - 2.25 * 1024 * MIB <= 16 * MIB
    assert wanted_bytes("Emulated accelerator out of memory. Tried to allocate 512 bytes (a") == 512
    assert wanted_bytes("CUDA error: out of memory") is None


@pytest.mark.parametrize(
    "code",
    ["model.weight = 1", "a[0] += 1", "del d['x']", "setattr(m, 'x', 1)", "%time f()", "exec(s)"],
)
def test_a_source_that_may_change_what_was_there_is_not_run_again(code: str) -> None:
    assert why_not_again(code) is not None


def test_one_that_only_makes_something_new_may() -> None:
    assert why_not_again("x = f(y)\nz = x.weight[0]") is None


def shell(**names: Any) -> Any:
    return SimpleNamespace(
        user_ns=dict(names), user_ns_hidden={}, display_pub=object(), kernel=None,
        last_execution_result=None,
    )  # fmt: skip


CASES = {
    "nothing of before is named": ({}, "x = 1", None),
    "a small value that stays": ({"n": [1, 2]}, "x = n", None),
    "a small value that is changed": ({"n": [1, 2]}, "n.append(3)", "'n' may have changed"),
    "a name bound anew": ({"n": 1}, "n = 2", "it bound 'n' anew"),
    "a name taken away": ({"n": 1}, "del n", "it bound 'n' anew"),
    "an object nobody can see into": ({"n": object()}, "x = n", "'n' may have changed"),
    "random numbers": ({}, "import random; x = random.random()", "it drew random numbers"),
    "a file": ({}, "x = open('/dev/full', 'w').close()", "it wrote the file '/dev/full'"),
}


@pytest.mark.parametrize("case", CASES)
def test_only_what_is_provably_as_it_was_lets_a_cell_run_again(case: str) -> None:
    names, code, why = CASES[case]
    user = shell(**names)
    runs = CellRuns(user)
    runs.begin(code, None)
    try:
        exec(compile(code, "<cell>", "exec"), user.user_ns)
        user.user_ns.pop("__builtins__", None)
        assert runs.why_not_again() == why
    finally:
        runs.end("error")


def test_what_a_cell_made_before_it_failed_is_taken_away_and_nothing_else() -> None:
    user = shell(kept=1)
    runs = CellRuns(user)
    runs.begin("made = 2", None)
    user.user_ns["made"] = 2
    runs.unbind_new()
    runs.end("error")
    assert user.user_ns == {"kept": 1}


def test_a_cell_that_nobody_observed_or_that_is_not_alone_does_not_run_again() -> None:
    user = shell()
    runs = CellRuns(user)
    assert runs.why_not_again() == "it was not observed"
    runs.begin("x = 1", None)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert runs.why_not_again() is not None
    finally:
        stop.set()
        thread.join()
        runs.end("ok")
