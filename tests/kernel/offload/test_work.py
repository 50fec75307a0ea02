"""User code at work in threads and tasks is named; idle helpers are not."""

from __future__ import annotations

import asyncio
import pathlib
import queue
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import jupyter_gpu_predict
from jupyter_gpu_predict.kernel.offload import tasks_at_work, threads_at_work


def test_idle_helpers_of_the_standard_library_do_not_count():
    waiting = queue.Queue()
    timer = threading.Timer(60, print)
    getter = threading.Thread(target=waiting.get, name="getter")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(abs, range(4)))
        timer.start()
        getter.start()
        try:
            assert threads_at_work() == ()
        finally:
            timer.cancel()
            waiting.put(None)
            timer.join()
            getter.join()


def test_user_code_counts_wherever_it_waits():
    done = threading.Event()

    def wait_inside():
        done.wait()

    with ThreadPoolExecutor(1, thread_name_prefix="pool") as pool:
        pool.submit(wait_inside)
        thread = threading.Thread(target=wait_inside, name="mine")
        thread.start()
        try:
            while len(threads_at_work()) < 2:
                time.sleep(0.001)
            named = sorted(threads_at_work())
        finally:
            done.set()
            thread.join()
    assert "'mine' is at work in wait_inside" in named[0]
    assert "'pool_0' is at work in wait_inside" in named[1]


def test_a_function_without_python_frames_counts_in_an_executor():
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(time.sleep, 0.3)
        while not future.running():
            time.sleep(0.001)
        time.sleep(0.05)
        assert any("run by an executor" in s for s in threads_at_work())


def test_tasks_of_the_user_are_named_also_behind_wait_for():
    async def train_forever():
        await asyncio.sleep(60)

    async def main():
        loop = asyncio.get_running_loop()
        assert tasks_at_work(loop) == ()
        user = asyncio.create_task(asyncio.wait_for(train_forever(), 60), name="fit")
        idle = asyncio.create_task(asyncio.sleep(60), name="idle")
        await asyncio.sleep(0.01)
        named = tasks_at_work(loop)
        user.cancel()
        idle.cancel()
        return named

    named = asyncio.run(main())
    assert len(named) == 1
    assert named[0].startswith("asyncio task ")
    assert "is at work in" in named[0]
    assert "train_forever" in named[0]


KERNEL_PROBE = """
import sys, threading, time
sys.path.insert(0, FOLDER)
from concurrent.futures import ThreadPoolExecutor
from jupyter_gpu_predict.kernel.offload import threads_at_work
pool = ThreadPoolExecutor(1); pool.submit(abs, 1).result()
found = []
control = threading.Thread(target=lambda: found.append(threads_at_work()))
idle = threads_at_work()
def spin():
    while not stop: time.sleep(0.001)
stop = []
t = threading.Thread(target=spin, name="spin"); t.start(); busy = threads_at_work()
stop.append(1); t.join()
control.start(); control.join()
print(idle, [b for b in busy], ["MainThread" in f for f in found[0]])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the kernel link is for POSIX")
def test_a_real_kernels_own_threads_do_not_count():
    manager = pytest.importorskip("jupyter_client.manager")
    folder = str(pathlib.Path(jupyter_gpu_predict.__file__).parent.parent)
    km, kc = manager.start_new_kernel(kernel_name="python3")
    try:
        printed = []
        kc.execute_interactive(
            KERNEL_PROBE.replace("FOLDER", repr(folder)),
            timeout=60,
            output_hook=lambda m: printed.append(m["content"].get("text", "")),
        )
    finally:
        kc.stop_channels()
        km.shutdown_kernel(now=True)
    text = "".join(printed)
    assert text == "() [\"thread 'spin' is at work in spin (__main__)\"] [True]\n"
