"""The server's dill, lent to kernels whose environment has none."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType


@contextlib.contextmanager
def borrowed_dill(folder: str) -> Iterator[None]:
    """Let a kernel without dill use the server's inside the block; nothing of it stays behind.

    dill imports itself by its own name, so it cannot live under another one.
    """
    if "dill" in sys.modules or not Path(folder, "dill").is_dir():
        yield
        return
    if not _lent and importlib.util.find_spec("dill") is not None:
        yield
        return
    try:
        if _lent:
            sys.modules.update(_lent)
        else:
            _load_dill(Path(folder, "dill"))
        yield
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] == "dill"]:
            _lent[name] = sys.modules.pop(name)


_lent: dict[str, ModuleType] = {}


def _load_dill(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        "dill", str(folder / "__init__.py"), submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["dill"] = module
    spec.loader.exec_module(module)
    # On import dill changes the pickler of the whole process; the user did not ask for that.
    module.extend(False)
