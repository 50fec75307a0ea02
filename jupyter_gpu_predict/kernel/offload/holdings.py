"""What this process holds of a device: every living storage, found once."""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ...errors import BadInputError
from . import simulated
from .exports import export_reason
from .graph import node_types, saved_tensors
from .loaded import loaded_torch
from .region import Ranges


@dataclass(frozen=True, slots=True)
class Skipped:
    """Memory that is left alone: why, how many bytes, and whether it is on the device."""

    reason: str
    nbytes: int
    on_device: bool


@dataclass(frozen=True, slots=True)
class Holdings:
    """Living storages of one device; `storages` are torch ``UntypedStorage`` objects.

    `used_bytes` is all device memory found, also what must stay. Suspended storages are host
    memory and not counted. `graphs` is the number of living CUDA graphs, `addresses` where the
    device memory lies, in order.
    """

    storages: tuple[Any, ...] = ()
    used_bytes: int = 0
    skipped: tuple[Skipped, ...] = ()
    graphs: int = 0
    addresses: tuple[int, ...] = ()

    def unseen_bytes(self, blocks: Sequence[tuple[int, int]]) -> int:
        """Return the bytes of an allocator's blocks in which no storage was found."""
        found = self.addresses
        missed = 0
        for start, nbytes in blocks:
            place = bisect_left(found, start)
            if place == len(found) or found[place] >= start + nbytes:
                missed += nbytes
        return missed

    @property
    def movable_bytes(self) -> int:
        """Bytes that can be taken back."""
        return sum(s.nbytes() for s in self.storages)


def scan(device: str) -> Holdings:
    """Find every storage of `device` that lives in this process.

    Each storage is counted once, however many tensors and views share it. The garbage collector
    does not show tensors held only by C++ code that is not reachable from a tensor, a module or an
    autograd graph; such memory is not counted, and `Holdings.unseen_bytes` tells how much it is.

    Parameters
    ----------
    device
        ``"simulated"``, or a type of device that torch has an allocator for, such as ``"cuda"``.

    Raises
    ------
    BadInputError
        If torch has no such device.
    """
    torch = loaded_torch()
    if device != "simulated":
        check_device(torch, device)
    if torch is None:
        return Holdings()
    with torch._C.DisableTorchFunction(), torch.no_grad():
        search = _Search(torch, device)
        search.run()
    return search.result()


def check_device(torch: Any, device: str) -> None:
    """Refuse a type of device whose memory cannot be accounted for; ``"cuda"`` is known unloaded.

    Raises
    ------
    BadInputError
        If it is unknown, or has no calls for its memory.
    """
    module = None if torch is None else getattr(torch, device, None)
    if device != "cuda" and not all(hasattr(module, name) for name in _CALLS):
        raise BadInputError(
            f"device {device!r} is neither 'simulated' nor one whose memory torch gives account of"
        )


_NODE = "node of an autograd graph"
_CALLS = ("device_count", "empty_cache", "is_initialized", "memory_snapshot", "synchronize")


class _Search:
    """One walk over the process; a class because tensors lead to further tensors."""

    def __init__(self, torch: Any, device: str) -> None:
        self.torch = torch
        self.base = torch._C.TensorBase
        simulating = device == "simulated"
        mine = "cpu" if simulating else device
        # Once for each device: a device's type is slower to be had than all else of a tensor.
        self.is_here = cache(lambda device: device.type == mine)
        self.host_reason = simulated.host_reason if simulating else None
        self.storages: dict[int, Any] = {}
        self.skipped: list[Skipped] = []
        self.graphs = 0
        self._opaque: set[int] = set()
        self._untyped = self.base.untyped_storage
        self._leaf = self.base.is_leaf.__get__
        self._grad = self.base.grad.__get__
        self._retains = self.base.retains_grad.__get__
        self._grad_fn = self.base.grad_fn.__get__
        self._layout = self.base.layout.__get__

    def run(self) -> None:
        torch = self.torch
        kinds = self._kinds()
        nodes: list[Any] = []
        for obj in _instances(_objects(), kinds):
            role = kinds[type(obj)]
            if role is self.base:
                self.add_tensor(obj, nodes)
            elif role is torch.UntypedStorage:
                self.add_storage(obj)
            elif role is torch.TypedStorage:
                self.add_storage(obj._untyped_storage)
            elif role is torch.jit.ScriptModule:
                for tensor in script_tensors(torch, obj):
                    self.add_tensor(tensor, nodes)
            elif role is _NODE:
                nodes.append(obj)
            else:
                self.graphs += 1
        for tensor in saved_tensors(nodes, self.base):
            self.add_tensor(tensor, [])

    def _kinds(self) -> dict[type, Any]:
        """Return every class whose objects can hold memory, and by which of its bases they do."""
        torch = self.torch
        roles = [self.base, torch.UntypedStorage, torch.TypedStorage, torch.jit.ScriptModule]
        if (graph := getattr(torch.cuda, "CUDAGraph", None)) is not None:
            roles.append(graph)
        # Asking torch's classes for theirs is quicker than asking a million objects for theirs.
        kinds: dict[type, Any] = {}
        todo = [*((cls, _NODE) for cls in node_types()), *((cls, cls) for cls in roles)]
        while todo:
            cls, role = todo.pop()
            if cls not in kinds:
                kinds[cls] = role
                todo += ((below, role) for below in type.__subclasses__(cls))
        return kinds

    def add_tensor(self, tensor: Any, nodes: list[Any]) -> None:
        try:
            self.add_storage(self._untyped(tensor))
        except (NotImplementedError, RuntimeError, ValueError):
            # No storage of its own: sparse, opaque, a wrapper around others, uninitialised.
            for part in self.parts(tensor):
                self.add_tensor(part, nodes)
        if not self._leaf(tensor):
            nodes.append(self._grad_fn(tensor))
            if not self._retains(tensor):
                return
        grad = self._grad(tensor)
        if grad is not None:
            self.add_tensor(grad, nodes)

    def parts(self, tensor: Any) -> Iterator[Any]:
        """Yield the tensors that a tensor without storage consists of; name what has none."""
        torch, layout = self.torch, self._layout(tensor)
        if layout is torch.sparse_coo:
            names: tuple[str, ...] = ("_indices", "_values")
        elif layout in {torch.sparse_csr, torch.sparse_bsr}:
            names = ("crow_indices", "col_indices", "values")
        elif layout in {torch.sparse_csc, torch.sparse_bsc}:
            names = ("ccol_indices", "row_indices", "values")
        else:
            names = ()
            if layout is torch._mkldnn and id(tensor) not in self._opaque:
                self._opaque.add(id(tensor))
                nbytes = tensor.numel() * tensor.element_size()
                self.skipped.append(
                    Skipped("in oneDNN's own format, which has no storage", nbytes, False)
                )
        for name in names:
            yield getattr(self.base, name)(tensor)

    def add_storage(self, storage: Any) -> None:
        identity = storage._cdata
        if identity not in self.storages and self.is_here(storage.device) and storage.nbytes():
            self.storages[identity] = storage

    def result(self) -> Holdings:
        movable, used, addresses = [], 0, []
        suspended = Ranges()
        for storage in self.storages.values():
            nbytes = storage.nbytes()
            try:
                address = storage.data_ptr()
            except RuntimeError:
                # The storage of a wrapper around other tensors: a size, but no memory.
                continue
            if not address:
                continue
            if suspended.hold(address):
                reason = export_reason(storage)
                if reason is not None:
                    self.skipped.append(Skipped(reason, nbytes, False))
                continue
            reason = None if self.host_reason is None else self.host_reason(storage)
            if reason is not None:
                self.skipped.append(Skipped(reason, nbytes, False))
                continue
            used += nbytes
            addresses.append(address)
            reason = export_reason(storage)
            if reason is None:
                movable.append(storage)
            else:
                self.skipped.append(Skipped(reason, nbytes, True))
        addresses.sort()
        return Holdings(tuple(movable), used, tuple(self.skipped), self.graphs, tuple(addresses))


def script_tensors(torch: Any, module: Any) -> Iterable[Any]:
    """Return the parameters and buffers of one TorchScript module, which live in C++."""
    inner = module.__dict__.get("_c")
    if inner is None:
        return []
    both = (torch._C.ParameterDict(inner), torch._C.BufferDict(inner))
    return [tensor for group in both for _, tensor in group.items()]


def _instances(objects: list[Any], classes: Collection[type]) -> list[Any]:
    """Return the objects of just these classes, of which there may be few among millions."""
    try:
        return [o for o in objects if type(o) in classes]
    except TypeError:
        # Some class of the user's has a metaclass that made it unhashable.
        known = set(map(id, classes))
        return [o for o in objects if id(type(o)) in known]


def _objects() -> list[Any]:
    """Return all objects the garbage collector knows, frozen ones included."""
    objects = gc.get_objects()
    if not gc.get_freeze_count():
        return objects
    # Frozen objects are not listed, but what refers to them leads there.
    seen = {id(o): o for o in objects}
    fresh = list(seen.values())
    while fresh:
        fresh = list({id(o): o for o in gc.get_referents(*fresh) if id(o) not in seen}.values())
        fresh = [o for o in fresh if gc.is_tracked(o)]
        seen.update((id(o), o) for o in fresh)
    return list(seen.values())
