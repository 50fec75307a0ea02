"""What tests of several folders share: a server with simulated GPUs, the emulated accelerator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulators.accelerator import NoCompilerError, build
from live_server import SERVER_OPTIONS, Run, TestServer, event_loop, running


@pytest.fixture(scope="session")
def accelerator() -> None:
    """Build the emulated accelerator, or skip where that cannot be."""
    try:
        build()
    except NoCompilerError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def run() -> Iterator[Run[Any]]:
    """Run a coroutine on an event loop that lasts as long as the module's server.

    Websockets opened in one test are read on in the next one.
    """
    with event_loop() as run_on_it:
        yield run_on_it


@pytest.fixture(scope="module")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the module's server; its notebooks live in ``root``."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server_options() -> dict[str, object]:
    """Options of the module's server beyond `SERVER_OPTIONS`; a module may override this."""
    return {}


@pytest.fixture(scope="module")
def server(
    server_folder: Path, server_options: dict[str, object], run: Run[Any]
) -> Iterator[TestServer]:
    """Start a server with two simulated GPUs of 512 MiB and stop it after the module's tests."""
    process = TestServer(server_folder, options={**SERVER_OPTIONS, **server_options})
    with running(process, run):
        yield process
