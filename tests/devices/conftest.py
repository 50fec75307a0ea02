from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "emulators" / "nvml" / "stub_nvml.py"


@pytest.fixture(scope="session")
def stub_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stub_nvml", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _build(module: ModuleType, folder: Path, *, old: bool) -> Path:
    if not sys.platform.startswith("linux"):
        pytest.skip("the stub NVML library is built for Linux only")
    library = module.build(folder, old=old)
    if library is None:
        pytest.skip("no C compiler (cc) to build the stub NVML library with")
    return library


@pytest.fixture(scope="session")
def stub_library(stub_module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(stub_module, tmp_path_factory.mktemp("nvml"), old=False)


@pytest.fixture(scope="session")
def old_library(stub_module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(stub_module, tmp_path_factory.mktemp("nvml_old"), old=True)


@pytest.fixture
def nvml(stub_module: ModuleType, stub_library: Path, tmp_path: Path) -> Iterator[Any]:
    stub = stub_module.StubNvml(stub_library, tmp_path)
    yield stub
    stub.close()


@pytest.fixture
def old_nvml(stub_module: ModuleType, old_library: Path, tmp_path: Path) -> Iterator[Any]:
    stub = stub_module.StubNvml(old_library, tmp_path)
    yield stub
    stub.close()
