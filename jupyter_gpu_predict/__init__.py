"""Forecast, bind, reclaim and migrate GPUs for interactive Jupyter kernels.

This module holds Jupyter's and IPython's hooks only and imports nothing heavy: it is loaded in
every kernel.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ._version import __version__

__all__ = ["__version__", "load_ipython_extension"]


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    # By name, so that what runs in a kernel does not reach the server, not even on paper.
    app = import_module(".server.app", __name__).GpuPredict
    return [{"module": "jupyter_gpu_predict", "app": app}]


def load_ipython_extension(shell: Any) -> None:
    """Give `shell` the `%gpu` magics; without our server they show this machine's GPUs only."""
    from .kernel.magics import register

    register(shell, getattr(getattr(shell, "kernel", None), "_gpu_predict_agent", None))
