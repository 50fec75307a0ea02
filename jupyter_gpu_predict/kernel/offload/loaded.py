"""The user's torch, if there is one."""

from __future__ import annotations

import sys
from typing import Any

_known: Any = None


def loaded_torch() -> Any:
    """Return the torch module the user has imported, ``None`` if there is none or it is half in.

    Where the user takes it out of `sys.modules`, what it made lives on, so it is still returned.
    """
    global _known
    torch = sys.modules.get("torch")
    if torch is None:
        return _known
    spec = getattr(torch, "__spec__", None)
    if spec is None or getattr(spec, "_initializing", False):
        return None
    if not hasattr(torch, "UntypedStorage"):
        return None
    _known = torch
    return torch
