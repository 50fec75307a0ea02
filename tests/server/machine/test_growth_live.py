"""A cell that ran out of memory on an emulated GPU: run once more, or told what it lacked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from emulators.accelerator import NoCompilerError
from emulators.machine import EmulatedMachine
from live_server import Run, TestServer

from jupyter_gpu_predict.demo.client import API, Notebook

# Whichever test comes first builds the accelerator.
pytestmark = pytest.mark.timeout(600)

MIB = 1 << 20
READY = "import torch; small = torch.ones(1, device='emu')"
HOLD = (
    "%gpu need 150MiB\nimport torch; held = torch.ones(150 << 20, dtype=torch.uint8, device='emu')"
)
BIG = "big = torch.ones(200 << 20, dtype=torch.uint8, device='emu')\nprint(big.numel() >> 20)"
PRINTS = "print('begun')\n" + BIG


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedMachine]:
    try:
        made = EmulatedMachine(tmp_path_factory.mktemp("machine"), gpus=1, capacity=256 * MIB)
    except NoCompilerError as error:
        pytest.skip(str(error))
    yield made
    made.close()


@pytest.fixture
def pair(server: TestServer, run: Run[Any]) -> Iterator[tuple[Notebook, Notebook]]:
    """A notebook that holds 150 MiB and is idle, and one that has begun to use the GPU."""

    async def opened() -> tuple[Notebook, Notebook]:
        return await server.opened(code=HOLD), await server.opened(code=READY)

    async def ended() -> None:
        for notebook in made:
            await server.end(notebook)

    made = run(opened())
    yield made
    run(ended())


def test_a_cell_that_left_no_trace_is_run_once_more(
    server: TestServer, run: Run[Any], machine: EmulatedMachine, pair: tuple[Notebook, Notebook]
) -> None:
    async def story() -> None:
        holder, grower = pair
        done = await grower.run(BIG)
        assert done.status == "ok", done.text
        assert done.text == "200\n"
        assert done.reply is not None
        number = done.reply["execution_count"]
        assert (await server.kernel(holder))["state"] == "suspended"
        look = await grower.run("print(len(In), In[-2].startswith('big'))")
        assert look.text == f"{number + 2} True\n"
        assert look.reply is not None
        assert look.reply["execution_count"] == number + 1

    run(story())


def test_one_that_has_printed_is_told_to_run_again(
    server: TestServer, run: Run[Any], machine: EmulatedMachine, pair: tuple[Notebook, Notebook]
) -> None:
    async def story() -> None:
        _, grower = pair
        done = await grower.run(PRINTS)
        assert done.status == "error"
        assert sum(m["msg_type"] == "stream" for m in done.messages) == 1
        assert "OutOfMemoryError" in done.text
        assert "which is there now: run the cell again" in done.text
        assert "because it printed" in done.text
        again = await grower.run(PRINTS)
        assert again.text == "begun\n200\n"

    run(story())


def test_what_is_held_by_another_is_named_and_the_kernel_lives(
    server: TestServer, run: Run[Any], machine: EmulatedMachine, pair: tuple[Notebook, Notebook]
) -> None:
    async def story() -> None:
        holder, grower = pair
        await server.post(f"{API}/kernels/{holder.kernel_id}/pin")
        done = await grower.run(PRINTS)
        assert done.status == "error"
        assert "OutOfMemoryError" in done.text
        lacked = done.text.partition("would have needed 200")[2]
        assert "pinned" in lacked, done.text
        assert "there now" not in done.text
        assert (await grower.run("print(small.item())")).text == "1.0\n"

    run(story())
