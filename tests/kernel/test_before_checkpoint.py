"""What a kernel answers when the driver is about to take its memory between cells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lone_kernel import Kernel

THREAD = """
import threading
goes_on = threading.Event()
def train():
    while not goes_on.wait(0.01):
        pass
thread = threading.Thread(target=train, name="train")
thread.start()
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    lone = Kernel(tmp_path)
    yield lone
    lone.close()


def tell(kernel: Kernel, epoch: int) -> dict[str, Any]:
    return kernel.ask(
        "gpu_bind_request", gpu_uuid="SIM-GPU-0", epoch=epoch, bytes=0, checkpointed=True
    )


def test_one_with_work_that_would_be_frozen_refuses_and_stays_as_it_is(kernel: Kernel) -> None:
    kernel.run(THREAD)
    answer = tell(kernel, 5)
    assert (answer["status"], answer["code"]) == ("error", "refused")
    assert "thread 'train' is at work" in answer["reason"]
    # It has not taken the epoch, so what comes with an older one is not stale.
    assert kernel.ask("gpu_describe_request")["epoch"] == 0
    kernel.run("goes_on.set()\nthread.join()")
    assert tell(kernel, 6)["status"] == "ok"
    assert kernel.ask("gpu_describe_request")["epoch"] == 6


def test_one_that_runs_a_cell_refuses_at_once(kernel: Kernel, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    waits = f"import os, time\nwhile not os.path.exists({str(flag)!r}): time.sleep(0.01)"
    sent = kernel.client.execute(f"print('runs', flush=True)\n{waits}")
    while True:
        message = kernel.client.get_iopub_msg(timeout=60)
        if message["msg_type"] == "stream":
            break
    answer = tell(kernel, 5)
    assert (answer["status"], answer["code"]) == ("error", "refused")
    assert "running a cell" in answer["reason"]
    flag.touch()
    while kernel.client.get_shell_msg(timeout=60)["parent_header"].get("msg_id") != sent:
        pass
    assert tell(kernel, 6)["status"] == "ok"
