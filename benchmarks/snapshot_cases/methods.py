"""The ways of saving a namespace to one file, all until the bytes are durable."""

from __future__ import annotations

import os
import pickle
import types
from typing import Any, Protocol

from .engine import Engine
from .measure import bytes_under, fsync_path


class Method(Protocol):
    """Saves `__main__`'s namespace under `path` and loads it into another process's."""

    incremental: bool
    """Whether a second save goes to the same path and writes what changed."""
    importable: bool
    """Whether the session's classes must come from a module."""

    def prepare(self) -> None:
        """Import what the method needs, so that it is not timed."""

    def save(self, main: dict[str, Any], path: str) -> dict[str, float]:
        """Save; return ``bytes`` written and whatever else there is to tell."""

    def load(self, path: str, main: dict[str, Any]) -> None:
        """Load what was saved last."""


class Dill:
    """The whole session, by dill's own call for that."""

    incremental = importable = False

    def prepare(self) -> None:
        """Import what is needed."""
        import dill  # noqa: F401

    def save(self, main: dict[str, Any], path: str) -> dict[str, float]:
        """Save until durable."""
        import dill

        dill.dump_module(path)
        fsync_path(path)
        return {"bytes": os.path.getsize(path)}

    def load(self, path: str, main: dict[str, Any]) -> None:
        """Load what was saved last."""
        import dill

        dill.load_module(path)


class Cloudpickle:
    """A dictionary of the session's variables."""

    incremental = importable = False

    def prepare(self) -> None:
        """Import what is needed."""
        import cloudpickle  # noqa: F401

    def save(self, main: dict[str, Any], path: str) -> dict[str, float]:
        """Save until durable."""
        import cloudpickle

        with open(path, "wb") as file:
            cloudpickle.dump(variables(main), file, protocol=5)
            return durable(file)

    def load(self, path: str, main: dict[str, Any]) -> None:
        """Load what was saved last."""
        with open(path, "rb") as file:
            main.update(pickle.load(file))


class Pickle:
    """The standard library's C pickler over the same graph, its classes importable."""

    incremental, importable = False, True

    def prepare(self) -> None:
        """Import nothing: it is there."""

    def save(self, main: dict[str, Any], path: str) -> dict[str, float]:
        """Save until durable."""
        with open(path, "wb") as file:
            pickle.dump(variables(main, modules=False), file, protocol=5)
            return durable(file)

    def load(self, path: str, main: dict[str, Any]) -> None:
        """Load what was saved last."""
        with open(path, "rb") as file:
            main.update(pickle.load(file))


class TorchSave:
    """One `torch.save` of all variables but modules, the session's classes importable."""

    incremental, importable = False, True

    def prepare(self) -> None:
        """Import what is needed."""
        import torch  # noqa: F401

    def save(self, main: dict[str, Any], path: str) -> dict[str, float]:
        """Save until durable."""
        import torch

        with open(path, "wb") as file:
            torch.save(variables(main, modules=False), file)
            return durable(file)

    def load(self, path: str, main: dict[str, Any]) -> None:
        """Load what was saved last."""
        import torch

        main.update(torch.load(path, weights_only=False))
        # Modules are what it could not save; a user would import them again.
        main.setdefault("torch", torch)


def variables(main: dict[str, Any], *, modules: bool = True) -> dict[str, Any]:
    """Return what is the session's in `__main__`."""
    return {
        name: value
        for name, value in main.items()
        if not name.startswith("__") and (modules or not isinstance(value, types.ModuleType))
    }


def durable(file: Any) -> dict[str, float]:
    file.flush()
    os.fsync(file.fileno())
    return {"bytes": bytes_under(file.name)}


METHODS: dict[str, Method] = {
    "snapshot": Engine(),
    "dill": Dill(),
    "cloudpickle": Cloudpickle(),
    "pickle": Pickle(),
    "torch.save": TorchSave(),
}
"""Methods that save a namespace; Kishu and the plain write have ways of their own."""
