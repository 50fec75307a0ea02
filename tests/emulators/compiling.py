"""Compiles the C stand-ins for the NVIDIA driver's libraries."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

FLAGS = (
    *("-shared", "-fPIC", "-O1", "-D_GNU_SOURCE"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-format-truncation", "-Wno-unused-function"),
)


def compile_library(target: Path, sources: Sequence[Path], *options: str) -> bool:
    """Compile `sources` into `target`; ``False`` if there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return False
    command = [compiler, *FLAGS, *options, "-o", target, *sources]
    subprocess.run(command, check=True, timeout=120)
    return True
