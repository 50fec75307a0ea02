"""The stand-ins for NVML and for the driver's checkpoints, compiled once a session."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from emulators.checkpoint import stub_cuda as cuda_stub
from emulators.nvml import stub_nvml


def _built(build: Callable[..., Path | None], folder: Path, *, old: bool = False) -> Path:
    if not sys.platform.startswith("linux"):
        pytest.skip("the stand-ins for the NVIDIA driver's libraries are built for Linux only")
    libraries = build(folder, old=old)
    if libraries is None:
        pytest.skip("no C compiler (cc) to build the stand-ins for the driver's libraries with")
    return libraries


@pytest.fixture(scope="session")
def stub_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _built(stub_nvml.build, tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def old_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _built(stub_nvml.build, tmp_path_factory.mktemp("nvml_old"), old=True)


@pytest.fixture
def nvml(stub_library: Path, tmp_path: Path) -> Iterator[Any]:
    stub = stub_nvml.StubNvml(stub_library, tmp_path)
    yield stub
    stub.close()


@pytest.fixture
def old_nvml(old_library: Path, tmp_path: Path) -> Iterator[Any]:
    stub = stub_nvml.StubNvml(old_library, tmp_path)
    yield stub
    stub.close()


@pytest.fixture(scope="session")
def stub_cuda() -> ModuleType:
    return cuda_stub


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _built(cuda_stub.build, tmp_path_factory.mktemp("cuda"))


@pytest.fixture(scope="session")
def old_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _built(cuda_stub.build, tmp_path_factory.mktemp("cuda_old"), old=True)


@pytest.fixture
def stub(libraries: Path, tmp_path: Path) -> Iterator[Any]:
    made = cuda_stub.StubCuda(libraries, tmp_path)
    yield made
    made.close()
