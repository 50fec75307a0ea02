"""Lets ``import torch`` in any process find the emulated accelerator through PYTHONPATH alone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

NAME = "emulated_accelerator"


def autoload() -> None:
    """Load the package from the folder above, wherever that lies, and register the device."""
    if NAME not in sys.modules:
        folder = Path(__file__).resolve().parents[1]
        spec = importlib.util.spec_from_file_location(
            NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = module
        spec.loader.exec_module(module)
    sys.modules[NAME].autoload()
