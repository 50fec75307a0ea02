"""What the tests on real kernels share."""

from __future__ import annotations

import pytest
from kernel_bench import Bench

from jupyter_gpu_predict.demo.client import ServerProcess


@pytest.fixture(scope="module")
def bench(server: ServerProcess) -> Bench:
    """Return handles on the kernels of the module's server."""
    return Bench(server)
