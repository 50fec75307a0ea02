"""Something to be done right after the user's import of a library."""

from __future__ import annotations

import importlib.machinery
import logging
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)


def after_import(name: str, then: Callable[[ModuleType], None]) -> None:
    """Call `then` with the module `name`: now, or right at the end of the user's import of it."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if module is not None and spec is not None and not getattr(spec, "_initializing", False):
        then(module)
    else:
        sys.meta_path.insert(0, _Watcher(name, then))


class _Watcher:
    """Import hook that takes itself away once the module is there."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.then = then
        self._looking = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.name or self._looking:
            return None
        self._looking = True
        try:
            for finder in list(sys.meta_path):
                find = getattr(finder, "find_spec", None)
                spec = find(name, path, target) if find and finder is not self else None
                if spec is not None:
                    self._watch(spec)
                    return spec  # type: ignore[no-any-return]
        finally:
            self._looking = False
        return None

    def _watch(self, spec: importlib.machinery.ModuleSpec) -> None:
        loader: Any = spec.loader
        others = vars(loader).get("exec_module")
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            # Gone before the module runs, so that the user meets its own loader.
            if others is None:
                vars(loader).pop("exec_module", None)
            else:
                loader.exec_module = others
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            try:
                self.then(module)
            except Exception:
                # A fault of ours must not fail the user's import.
                log.exception("gpu-predict: the import of %s was not followed up", self.name)

        loader.exec_module = exec_module
