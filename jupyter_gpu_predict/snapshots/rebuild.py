"""The other side of the reducers: what a stream may call while it is loaded."""

from __future__ import annotations

import builtins
import functools
import importlib
import io
import marshal
import pickle
import sys
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import SnapshotError
from .arrays import RebuildArrays
from .definitions import RebuildDefinitions
from .register import RebuildRegistered
from .tensors import RebuildTensors
from .types_memory import RebuildMemory
from .types_modules import RebuildModules
from .types_objects import RebuildObjects
from .types_trees import RebuildTrees
from .types_widgets import RebuildTraits


class Rebuild(
    RebuildArrays,
    RebuildTensors,
    RebuildModules,
    RebuildMemory,
    RebuildObjects,
    RebuildTraits,
    RebuildTrees,
    RebuildRegistered,
    RebuildDefinitions,
):
    """Makes objects again in one process.

    Parameters
    ----------
    namespace
        The dictionary that functions of the session get as their globals.
    buffers
        The owners of memory, already filled, by their number; what is used once is taken out.
    read_again
        Returns such memory once more.
    """

    def __init__(
        self,
        namespace: dict[str, Any],
        buffers: dict[int, Any],
        read_again: Callable[[int], Any],
    ) -> None:
        self.namespace = namespace
        self.buffers = buffers
        self.read_again = read_again
        self.definitions: dict[int, type] = {}
        self.faults: dict[int, str] = {}
        self.present: dict[int, type] = {}
        self.made: set[type] = set()

    def define(self, index: int, cls: type) -> type:
        """Enter a class of the session."""
        return self.definitions.setdefault(index, cls)

    def find(self, module: str, name: str, elsewhere: Callable[[str, str], Any]) -> Any:
        """Return a class, function or one of the methods of `Rebuild` by name."""
        if module.startswith(_PACKAGE):
            kind, _, method = name.partition(".")
            if kind.startswith("Rebuild"):
                return getattr(self, method)
        if module == "__main__" and name in self.namespace:
            return self.namespace[name]
        return elsewhere(module, name)

    def get_namespace(self) -> dict[str, Any]:
        """Return the namespace itself."""
        return self.namespace

    def get_builtins(self) -> dict[str, Any]:
        """Return the dictionary of the builtins."""
        return vars(builtins)

    def module(self, name: str) -> types.ModuleType:
        """Import a module by name."""
        return importlib.import_module(name)

    def main_module(self) -> types.ModuleType:
        """Return the session's own module."""
        return sys.modules["__main__"]

    def attribute(self, module: str, name: str) -> Any:
        """Return a module's attribute."""
        return getattr(importlib.import_module(module), name)

    def shell(self) -> Any:
        """Return the running IPython shell."""
        from IPython import get_ipython

        shell = get_ipython()
        if shell is None:
            raise SnapshotError("there is no IPython shell here; restore it in a kernel")
        return shell

    def standard_stream(self, name: str) -> Any:
        """Return one of this process's standard streams."""
        return getattr(sys, name)

    def code(self, data: bytes) -> types.CodeType:
        """Return a code object."""
        code: types.CodeType = marshal.loads(data)  # noqa: S302
        return code

    def dead_reference(self) -> Any:
        """Return a weak reference whose object is gone."""

        class Gone:
            pass

        return weakref.ref(Gone())

    def lru_cache(self, function: Any, maxsize: int | None, typed: bool) -> Any:
        """Return a cached function with an empty cache."""
        return functools.lru_cache(maxsize=maxsize, typed=typed)(function)

    def type_variable(self, kind: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Return a type variable of the session."""
        variable = kind(*arguments, **keywords)
        variable.__module__ = "__main__"
        return variable

    def undill(self, data: bytes) -> Any:
        """Return an object that dill saved."""
        import dill

        return dill.loads(data)


class SnapshotUnpickler(pickle.Unpickler):
    """Reads one stream; `load` is called once for each object that was dumped."""

    def __init__(
        self, file: io.BufferedIOBase, rebuild: Rebuild, exported: Iterable[Any] = ()
    ) -> None:
        super().__init__(file, buffers=exported)
        self._rebuild = rebuild
        self.load()  # the namespace, which every stream carries at its head

    def find_class(self, module: str, name: str) -> Any:
        """Return a class, function or one of the methods of `Rebuild` by name."""
        return self._rebuild.find(module, name, super().find_class)


_PACKAGE = __name__.rpartition(".")[0] + "."
