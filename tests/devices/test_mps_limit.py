"""What a process may have of its GPU under MPS, read from how it was started."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from jupyter_gpu_predict.core.model import GIB, MIB
from jupyter_gpu_predict.devices.mps import (
    CONTEXT_BYTES,
    MEMORY_LIMIT,
    limit_bytes,
    limit_of,
    limits,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0=2048M", 2 * GIB),
        ("0=2G", 2 * GIB),
        ("1=1G, 0=512MB", 512 * MIB),
        ("0=1000", 1000),
        ("1=1G", None),
        ("0=lots", None),
        ("", None),
    ],
)
def test_the_limit_is_that_of_its_one_gpu(text: str, size: int | None) -> None:
    assert limit_bytes({MEMORY_LIMIT: text}) == size


def test_what_a_lease_was_limited_to_is_read_back() -> None:
    assert limit_bytes(limits(GIB, 8 * GIB, {})) == GIB + CONTEXT_BYTES
    assert limit_bytes({}) is None


def test_it_is_read_from_the_process_itself() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "input(1)"],
        env={**os.environ, MEMORY_LIMIT: "0=2G"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"1"
        assert limit_of(process.pid) == 2 * GIB
        process.communicate(b"\n")
    assert limit_of(process.pid) is None
    assert limit_of(None) is None
