"""A process on two emulated devices for the tests of one module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from emulators.accelerator import Devices, Worker


@pytest.fixture(scope="module")
def worker(accelerator: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    ledger = tmp_path_factory.mktemp("worker") / "ledger"
    with Worker(Devices(ledger, (1 << 30, 1 << 30))) as process:
        yield process
