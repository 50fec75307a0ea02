from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jupyter_gpu_predict.snapshots import busy_reasons
from jupyter_gpu_predict.snapshots.ties import ties


class _Shell:
    pass


@pytest.fixture
def gate():
    gate = threading.Event()
    yield gate
    gate.set()


def _mine(reasons, word):
    return [r for r in reasons if word in r]


def test_a_users_thread_is_named(gate):
    thread = threading.Thread(target=gate.wait, name="my-loader", daemon=True)
    thread.start()
    assert _mine(busy_reasons(), "my-loader")
    gate.set()
    thread.join()
    assert not _mine(busy_reasons(), "my-loader")


def test_executors_count_only_while_they_work(gate):
    with ThreadPoolExecutor(1, thread_name_prefix="my-pool") as pool:
        pool.submit(int).result()
        for _ in range(100):
            if not _mine(busy_reasons(), "my-pool"):
                break
        assert not _mine(busy_reasons(), "my-pool")
        started = threading.Event()
        pool.submit(lambda: (started.set(), gate.wait()))
        started.wait()
        assert _mine(busy_reasons(), "my-pool")
        gate.set()


def test_progress_monitors_do_not_count():
    tqdm = pytest.importorskip("tqdm")
    bar = tqdm.tqdm(range(2), disable=False, file=open("/dev/null", "w"))  # noqa: SIM115
    try:
        assert any(t.name == "tqdm_monitor" or "TMonitor" in repr(t) for t in threading.enumerate())
        assert not _mine(busy_reasons(), "onitor")
    finally:
        bar.close()
        bar.fp.close()
        bar.monitor.exit()
        type(bar).monitor = None


def test_pending_tasks_are_named():
    async def background():
        await asyncio.sleep(60)

    async def main():
        task = asyncio.create_task(background(), name="my-task")
        await asyncio.sleep(0)
        found = busy_reasons()
        outside = await asyncio.to_thread(busy_reasons, asyncio.get_running_loop())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return found, outside, busy_reasons()

    found, outside, after = asyncio.run(main())
    assert _mine(found, "my-task")
    assert _mine(found, "background")
    assert _mine(outside, "my-task")
    assert not _mine(after, "my-task")


def test_child_processes_are_named():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert _mine(ties(_Shell()), f"child process {child.pid}")
    finally:
        child.communicate(b"\n")
    assert not _mine(ties(_Shell()), f"child process {child.pid}")


def test_signal_handlers_and_timers_are_named():
    former = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        assert _mine(ties(_Shell()), "SIGUSR1")
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert not _mine(ties(_Shell()), "SIGUSR1")
    signal.setitimer(signal.ITIMER_PROF, 1000)
    try:
        assert _mine(ties(_Shell()), "timer")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
