"""Memory that another library got hold of, which must therefore stay where it is.

torch hands out addresses through DLPack, ``__cuda_array_interface__`` and CUDA IPC, and keeps no
note of it. The notes are made here, on the storage object itself, which torch keeps for as long as
the memory lives.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..imports import after_import
from .loaded import loaded_torch

_ATTRIBUTE = "_jupyter_gpu_exports"
_READERS = ("IPython", "jedi", "inspect", "pydoc", "unittest")

_untracked: list[str] = []
_hooked: list[ModuleType] = []
_marks = 0
_awaited = False


def install_export_tracking() -> None:
    """Start to note exports: now if torch is loaded, else right after the user's import of it.

    Calling it again is cheap and changes nothing. Exports made before are not known.
    """
    global _awaited
    torch = loaded_torch()
    if torch is not None:
        _hook(torch)
    elif not _awaited:
        _awaited = True
        after_import("torch", _hook)


def export_reason(storage: Any) -> str | None:
    """Return why `storage` must stay where it is, ``None`` if nobody else holds its address."""
    if _untracked:
        return _untracked[0]
    if not _marks:
        return None
    marks = getattr(storage, _ATTRIBUTE, None)
    if not marks:
        return None
    alive = [m for m in marks if m[1] is None or not m[1].expired()]
    if len(alive) != len(marks):
        setattr(storage, _ATTRIBUTE, alive)
    return alive[0][0] if alive else None


def _mark(storage: Any, reason: str, holder: Any = None) -> None:
    global _marks
    marks = getattr(storage, _ATTRIBUTE, None) or []
    setattr(storage, _ATTRIBUTE, [*marks, (reason, holder)])
    _marks += 1


def _hook(torch: Any) -> None:
    if any(m is torch for m in _hooked):
        return
    _hooked.append(torch)
    tensor = torch.Tensor
    tensor.__dlpack__ = tracked(torch, tensor.__dlpack__)
    legacy = tracked(torch, torch.utils.dlpack.to_dlpack)
    if getattr(torch, "to_dlpack", None) is torch.utils.dlpack.to_dlpack:
        torch.to_dlpack = legacy
    torch.utils.dlpack.to_dlpack = legacy

    interface = tensor.__dict__.get("__cuda_array_interface__")
    if isinstance(interface, property) and interface.fget is not None:
        tensor.__cuda_array_interface__ = property(
            _cuda_array(interface.fget), doc=interface.__doc__
        )
    table = tensor.__dict__.get("__dlpack_c_exchange_api__")
    if table is not None:
        tensor.__dlpack_c_exchange_api__ = _ExchangeTable(table)
    share = getattr(torch.UntypedStorage, "_share_cuda_", None)
    if share is not None:
        torch.UntypedStorage._share_cuda_ = _shared_by_ipc(share)


def tracked(
    torch: Any, export: Callable[..., Any], reason: str = "exported by DLPack"
) -> Callable[..., Any]:
    """Wrap an export so that the storage is marked for as long as the other side lives."""

    @functools.wraps(export)
    def wrapper(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if (
            not isinstance(tensor, torch.Tensor)
            or torch.overrides.has_torch_function_unary(tensor)
            or tensor.layout is not torch.strided
            or tensor.requires_grad
            or kwargs.get("copy") is True
        ):
            return export(tensor, *args, **kwargs)
        # The other side holds the tensor object that is exported. Exporting a fresh alias tells
        # its life apart from that of the user's own tensor.
        alias = tensor.detach()
        handed_out = export(alias, *args, **kwargs)
        holder = torch._C._WeakTensorRef(alias)
        del alias
        owner = getattr(handed_out, "base", None)
        if holder.expired() and isinstance(owner, torch.Tensor):
            holder = torch._C._WeakTensorRef(owner)
        # An alias that is gone already was replaced inside torch; then nothing tells when the
        # other side lets go, and the mark stays.
        _mark(tensor.untyped_storage(), reason, None if holder.expired() else holder)
        return handed_out

    return wrapper


def _cuda_array(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(read)
    def wrapper(tensor: Any) -> Any:
        interface = read(tensor)
        if isinstance(interface, dict):
            _mark(tensor.untyped_storage(), "exported by __cuda_array_interface__")
        return interface

    return wrapper


def _shared_by_ipc(share: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(share)
    def _share_cuda_(storage: Any, *args: Any, **kwargs: Any) -> Any:
        handle = share(storage, *args, **kwargs)
        _mark(storage, "shared with another process by CUDA IPC")
        return handle

    return _share_cuda_


class _ExchangeTable:
    """Stand-in for torch's C table of DLPack functions.

    Exports made through the table cannot be seen one by one, so its use is noted instead.
    """

    def __init__(self, table: Any) -> None:
        self._table = table

    def __get__(self, tensor: Any, owner: type | None = None) -> Any:
        reader = str(sys._getframe(1).f_globals.get("__name__") or "")
        if reader.partition(".")[0] not in _READERS and not _untracked:
            _untracked.append(
                "may be exported: a library took torch's table of DLPack functions, "
                "whose use cannot be followed"
            )
        bind = getattr(type(self._table), "__get__", None)
        return bind(self._table, tensor, owner) if bind is not None else self._table
