"""The source that puts the agent into a kernel, whatever its environment.

It runs as one silent execute right after launch: arguments and environment variables do not reach
kernels behind a shell wrapper, `env -i` or `python -I`, and would leak into the user's processes.
The package is loaded from its folder, under its own name, without touching `sys.path`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent

_TEMPLATE = """
def _gpu_predict_boot(folder, config):
    import importlib.util, json, os, sys
    name = "jupyter_gpu_predict"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder])
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    from importlib import import_module
    import_module(name + ".kernel.agent").start(get_ipython(), json.loads(config))
try:
    _gpu_predict_boot({folder!r}, {config!r})
finally:
    del _gpu_predict_boot
"""


def boot_code(config: dict[str, Any]) -> str:
    """Return the source to execute silently in a Python kernel, with `config` for the agent."""
    return _TEMPLATE.format(folder=str(PACKAGE), config=json.dumps(config))
