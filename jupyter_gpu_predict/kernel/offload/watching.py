"""What is watched while some storage waits in host memory, and only then.

torch marks a suspended CPU storage as one that cannot be resized, and notes by the same mark which
memory numpy has got to see. So numpy's views are noted here, and a storage that is resized is
brought back first.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from .exports import tracked
from .region import in_host_copy

_WRAPS = "_jupyter_gpu_wraps"
_MISSING = object()


class Owner(Protocol):
    """Who has storages in host memory."""

    def bring_back(self, storage: Any) -> None:
        """Bring back that storage if it is one of its own."""


_owners: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(torch: Any, owner: Owner, on: bool) -> None:
    """Start or end watching for `owner`."""
    if on:
        _owners.add(owner)
        _wrap(torch.Tensor, "numpy", _numpy(torch))
        for cls, name in _resizers(torch):
            _wrap(cls, name, _resizing)
        return
    _owners.discard(owner)
    if not _owners:
        for cls, name in ((torch.Tensor, "numpy"), *_resizers(torch)):
            _unwrap(cls, name)


def _resizers(torch: Any) -> tuple[tuple[Any, str], ...]:
    return (
        (torch.Tensor, "resize_"),
        (torch.Tensor, "resize_as_"),
        (torch.UntypedStorage, "resize_"),
    )


def _numpy(torch: Any) -> Callable[[Any], Any]:
    return lambda inner: tracked(torch, inner, "shared with numpy while suspended")


def _resizing(inner: Any) -> Any:
    @functools.wraps(inner)
    def wrapper(of: Any, *args: Any, **kwargs: Any) -> Any:
        for owner in list(_owners):
            _bring_back(owner, of)
        return inner(of, *args, **kwargs)

    return wrapper


def _bring_back(owner: Owner, of: Any) -> None:
    try:
        storage = of.untyped_storage() if hasattr(of, "untyped_storage") else of
        suspended = in_host_copy(storage.data_ptr())
    except (NotImplementedError, RuntimeError, ValueError):
        return  # it has no memory
    if suspended:
        owner.bring_back(storage)


def _wrap(cls: Any, name: str, make: Callable[[Any], Any]) -> None:
    own = cls.__dict__.get(name)
    if hasattr(own, _WRAPS):
        return
    wrapper = make(getattr(cls, name))
    setattr(wrapper, _WRAPS, own)
    setattr(cls, name, wrapper)


def _unwrap(cls: Any, name: str) -> None:
    wrapped = getattr(cls.__dict__.get(name), _WRAPS, _MISSING)
    if wrapped is None:
        delattr(cls, name)
    elif wrapped is not _MISSING:
        setattr(cls, name, wrapped)
