"""Compiles the native part once for each source, torch, Python and compiler."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "src"
NAME = "emulated_accelerator_native"
LIBRARY = f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Werror")


class NoCompilerError(RuntimeError):
    """There is no C++ compiler, or the installed torch is too old, so nothing can be built."""


def build(cache: Path | None = None) -> Path:
    """Return the library, compiled now unless `cache` has it already."""
    import torch

    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise NoCompilerError(
            "no C++ compiler (c++, g++) to build the emulated accelerator with; install one"
        )
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").exists():
        raise NoCompilerError(
            f"no Python.h in {headers} to build the emulated accelerator with; "
            "install Python's development files"
        )
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 12):
        raise NoCompilerError(
            f"the emulated accelerator needs torch 2.12, this is {torch.__version__}; upgrade torch"
        )
    root = cache or Path(os.environ.get("EMULATED_ACCELERATOR_CACHE") or HERE / "build")
    surroundings = _surroundings(compiler)
    library = root / _digest(surroundings, *sorted(SOURCE.iterdir())) / LIBRARY
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(compiler, headers, library, surroundings)
    return library


def _surroundings(compiler: str) -> bytes:
    import torch

    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    return version + "\0".join([torch.__version__, sys.version, *FLAGS]).encode()


def _digest(surroundings: bytes, *paths: Path) -> str:
    digest = hashlib.sha256(surroundings)
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: str, headers: Path, library: Path, surroundings: bytes) -> None:
    import torch

    base = Path(torch.__file__).parent
    flags = [
        *FLAGS,
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        *("-isystem", str(base / "include")),
        *("-isystem", str(base / "include" / "torch" / "csrc" / "api" / "include")),
        *("-isystem", str(headers)),
    ]

    def one(source: Path) -> Path:
        # An object is made anew when its source or any header changed.
        inputs = [source, *sorted(SOURCE.glob("*.h*"))]
        target = library.parents[1] / f"{source.stem}-{_digest(surroundings, *inputs)}.o"
        if not target.exists():
            part = target.with_suffix(".part")
            _run([compiler, *flags, "-c", str(source), "-o", str(part)])
            part.replace(target)
        return target

    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
        objects = list(pool.map(one, sorted(SOURCE.glob("*.cpp"))))
    part = library.with_suffix(".part")
    libraries = base / "lib"
    link = ["-shared", f"-L{libraries}", f"-Wl,-rpath,{libraries}"]
    link += ["-ltorch_python", "-ltorch_cpu", "-lc10"]
    _run([compiler, *map(str, objects), *link, "-o", str(part)])
    part.replace(library)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-8000:]}")
