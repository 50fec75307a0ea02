from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from jupyter_gpu_predict.snapshots import capture, open_store, restore

ROOT = Path(__file__).resolve().parents[2]
KEY = bytes(range(32))


@pytest.fixture
def folder(tmp_path):
    return open_store(tmp_path / "snapshots")


@pytest.fixture
def save(folder):
    """Run code in a namespace of its own and snapshot it; return namespace and report."""

    def run(code="", *, name="one", extra=None, hidden=(), key=KEY, **variables):
        namespace = dict(types.ModuleType("__main__").__dict__, **variables)
        exec(code, namespace)
        report = capture(
            namespace,
            folder,
            key,
            name=name,
            now_s=1.7e9,
            kernel_id="k",
            extra=extra,
            digests=True,
            hidden=hidden,
        )
        return namespace, report

    return run


@pytest.fixture
def load(folder):
    """Restore a snapshot into a new namespace; return namespace and report."""

    def run(snapshot_id, *, key=KEY, check=True, **variables):
        namespace = dict(types.ModuleType("__main__").__dict__, **variables)
        return namespace, restore(folder, snapshot_id, key, namespace, check=check)

    return run


@pytest.fixture(scope="session")
def python():
    """Run code in a fresh process and return what it printed as JSON."""

    def run(code, *arguments, check=True, **environment):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if not check:
            return done
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
