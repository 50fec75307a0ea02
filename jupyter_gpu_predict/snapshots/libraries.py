"""Which libraries a snapshot was made with, and what differs where it is restored."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
from collections.abc import Iterable, Mapping


def versions(kinds: Iterable[type]) -> dict[str, str]:
    """Return the versions of the libraries that define these types, as far as they tell."""
    found = {}
    for name in sorted(set(filter(None, map(_package, kinds)))):
        version = getattr(sys.modules.get(name), "__dict__", {}).get("__version__")
        if isinstance(version, str) and name not in sys.stdlib_module_names:
            found[name] = version
    return found


def absolute_paths(paths: Iterable[object]) -> list[str]:
    """Return paths as absolute ones, less what has none: the working directory may be gone."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            if isinstance(path, str):
                found.append(os.path.abspath(path))
    return found


def _package(kind: type) -> str | None:
    try:
        # A metaclass of the user's may answer for attributes as it likes.
        module = type.__getattribute__(kind, "__module__")
    except Exception:
        return None
    return str(module).partition(".")[0]


def differences(saved: Mapping[str, str]) -> tuple[str, ...]:
    """Return a sentence for each library that is missing here or has another version."""
    sentences = []
    for name, version in saved.items():
        here = _version(name)
        if here is None:
            sentences.append(f"{name} was {version}; it is not installed here")
        elif here != version:
            sentences.append(f"{name} was {version}, here it is {here}")
    return tuple(sentences)


def _version(name: str) -> str | None:
    module = sys.modules.get(name)
    version = vars(module).get("__version__") if module is not None else None
    if isinstance(version, str):
        return version
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
    for distribution in importlib.metadata.packages_distributions().get(name, ()):
        return importlib.metadata.version(distribution)
    return None
