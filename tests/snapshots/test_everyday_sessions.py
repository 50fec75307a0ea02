"""Each everyday session is saved in a real kernel, killed, and used in a fresh one."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from everyday_kernels import Zygote, go_through, sessions

SESSIONS = {session.name: session for session in sessions()}


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory):
    """Run the selected sessions, two at a time; a test waits for its own."""
    folder = tmp_path_factory.mktemp("everyday")
    selected = [
        item.callspec.params["name"]
        for item in request.session.items
        if getattr(item, "function", None) is test_session_goes_on_in_a_fresh_kernel
    ]
    before, after = Zygote(folder, 1), Zygote(folder, 2)

    def start(number, name):
        own = folder / str(number)
        own.mkdir()
        return pool.submit(lambda: asyncio.run(go_through(SESSIONS[name], before, after, own)))

    try:
        with ThreadPoolExecutor(2) as pool:
            yield {name: start(number, name) for number, name in enumerate(selected)}
            pool.shutdown(cancel_futures=True)
    finally:
        before.close()
        after.close()


def test_there_are_enough_sessions():
    assert len(SESSIONS) >= 60


@pytest.mark.parametrize("name", SESSIONS)
def test_session_goes_on_in_a_fresh_kernel(outcomes, name):
    assert outcomes[name].result() == []
