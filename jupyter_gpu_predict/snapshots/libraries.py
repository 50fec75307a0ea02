"""Which libraries a snapshot was made with, and what differs where it is restored."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable, Mapping


def versions(kinds: Iterable[type]) -> dict[str, str]:
    """Return the versions of the libraries that define these types, as far as they tell."""
    found = {}
    for name in sorted({str(kind.__module__).partition(".")[0] for kind in kinds}):
        version = vars(sys.modules[name]).get("__version__") if name in sys.modules else None
        if isinstance(version, str) and name not in sys.stdlib_module_names:
            found[name] = version
    return found


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
