"""The user's torch, if there is one."""

from __future__ import annotations

import sys
from typing import Any


def loaded_torch() -> Any:
    """Return the torch module the user has imported, ``None`` if there is none or it is half in."""
    torch = sys.modules.get("torch")
    spec = getattr(torch, "__spec__", None)
    if torch is None or spec is None or getattr(spec, "_initializing", False):
        return None
    return torch if hasattr(torch, "UntypedStorage") else None
