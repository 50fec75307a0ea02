"""One server for all tests of the border; each module ends the kernels that it started."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import SERVER_OPTIONS, Run, TestServer, event_loop, running


@pytest.fixture(scope="package")
def run() -> Iterator[Run[Any]]:
    with event_loop() as run_on_it:
        yield run_on_it


@pytest.fixture(scope="package")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("border")


@pytest.fixture(scope="package")
def server(server_folder: Path, run: Run[Any]) -> Iterator[TestServer]:
    with running(TestServer(server_folder, options=SERVER_OPTIONS), run) as process:
        yield process
