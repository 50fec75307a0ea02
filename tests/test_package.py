"""What the package is made of: light to import, whole when built."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import jupyter_gpu_predict

PROJECT = Path(jupyter_gpu_predict.__file__).parent.parent
CONFIG = "jupyter_gpu_predict.json"
HEAVY = ("torch", "numpy", "pandas", "prophet", "sqlalchemy", "tornado", "zmq", "traitlets",
         "jupyter_server", "jupyter_client", "IPython", "rich", "psutil", "asyncio")  # fmt: skip


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that `code` loads in a fresh interpreter."""
    probe = (
        "import sys\n"
        f"sys.path.insert(0, {str(PROJECT)!r})\n"
        "before = set(sys.modules)\n"
        f"{code}\n"
        "import json\n"
        "print(json.dumps(sorted({n.partition('.')[0] for n in set(sys.modules) - before})))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_the_package_imports_nothing_heavy() -> None:
    loaded = modules_after("import jupyter_gpu_predict")
    assert "jupyter_gpu_predict" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_what_runs_in_a_kernel_is_the_standard_library() -> None:
    loaded = modules_after("import jupyter_gpu_predict.kernel.agent")
    ours = loaded - set(sys.stdlib_module_names)
    assert ours == {"jupyter_gpu_predict"}


def test_the_command_line_starts_without_the_server() -> None:
    loaded = modules_after("import jupyter_gpu_predict.cli")
    assert loaded.isdisjoint(set(HEAVY) - {"asyncio"})


def test_torch_comes_only_with_an_extra() -> None:
    wanted = importlib.metadata.requires("jupyter-gpu-predict") or []
    torch = [line for line in wanted if line.startswith("torch")]
    assert torch
    assert all("extra ==" in line for line in torch)
    base = {line.partition(">")[0] for line in wanted if "extra ==" not in line}
    assert {"ipykernel", "jupyter-server", "prophet", "dill"} <= base


def test_the_command_and_the_provisioner_are_entry_points() -> None:
    points = importlib.metadata.distribution("jupyter-gpu-predict").entry_points
    found = {point.name: point.load() for point in points}
    assert found["jupyter-gpu"].__module__ == "jupyter_gpu_predict.cli"
    assert found["gpu-provisioner"].__name__ == "GpuProvisioner"


@pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None,
    reason="hatchling, which builds the wheel, is not installed here",
)
def test_the_wheel_is_whole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    for name in ("jupyter_gpu_predict", "etc"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        config = next(n for n in names if n.endswith("jupyter_server_config.d/" + CONFIG))
        enabled = json.loads(archive.read(config))
    assert config.split("/", 1)[1].startswith("data/etc/jupyter/")
    assert enabled["ServerApp"]["jpserver_extensions"] == {"jupyter_gpu_predict": True}
    for file in (PROJECT / "jupyter_gpu_predict").rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            assert file.relative_to(PROJECT).as_posix() in names
    suffixes = {Path(n).name for n in names}
    assert "gpu_event.v1.yaml" in suffixes
    assert "0001_initial.py" in suffixes
