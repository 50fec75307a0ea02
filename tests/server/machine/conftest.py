"""A Jupyter server on a machine with two emulated GPUs of 256 MiB, real kernels on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulators.accelerator import NoCompilerError
from emulators.machine import EmulatedMachine
from live_server import SERVER_OPTIONS, Run, TestServer, running


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedMachine]:
    try:
        made = EmulatedMachine(tmp_path_factory.mktemp("machine"), poison=True)
    except NoCompilerError as error:
        pytest.skip(str(error))
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(
    server_folder: Path,
    server_options: dict[str, object],
    machine: EmulatedMachine,
    run: Run[Any],
) -> Iterator[TestServer]:
    options = {**SERVER_OPTIONS, **machine.OPTIONS, **server_options}
    process = TestServer(server_folder, options=options, env=machine.variables)
    with running(process, run):
        yield process
