"""What this process holds of a device: every living storage, found once."""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any

from ...errors import BadInputError
from . import accelerator, simulated
from .exports import export_reason
from .graph import is_node_type, saved_tensors
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


_CALLS = ("device_count", "empty_cache", "is_initialized", "memory_snapshot", "synchronize")


class _Search:
    """One walk over the process; a class because tensors lead to further tensors."""

    def __init__(self, torch: Any, device: str) -> None:
        self.torch = torch
        self.base = torch._C.TensorBase
        simulating = device == "simulated"
        self.is_here = simulated.is_here if simulating else partial(accelerator.is_here, device)
        self.host_reason = simulated.host_reason if simulating else accelerator.host_reason
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
        roles = (self.base, torch.UntypedStorage, torch.TypedStorage, torch.jit.ScriptModule)
        graph_type = getattr(torch.cuda, "CUDAGraph", None)
        objects = _objects()
        classes = list(map(type, objects))
        kinds: dict[type, Any] = {}
        for cls in set(classes):
            mro = cls.__mro__
            role = next((r for r in roles if r in mro), None)
            if role is None and graph_type is not None and graph_type in mro:
                role = graph_type
            if role is None and is_node_type(cls):
                role = "node"
            if role is not None:
                kinds[cls] = role
        found = list(compress(objects, map(kinds.__contains__, classes)))
        del objects, classes
        nodes: list[Any] = []
        for obj in found:
            role = kinds[type(obj)]
            if role is self.base:
                self.add_tensor(obj, nodes)
            elif role is torch.UntypedStorage:
                self.add_storage(obj)
            elif role is torch.TypedStorage:
                self.add_storage(obj._untyped_storage)
            elif role == "node":
                nodes.append(obj)
            elif role is graph_type:
                self.graphs += 1
            else:
                for tensor in script_tensors(torch, obj):
                    self.add_tensor(tensor, nodes)
        for tensor in saved_tensors(nodes, self.base):
            self.add_tensor(tensor, [])

    def add_tensor(self, tensor: Any, nodes: list[Any]) -> None:
        try:
            self.add_storage(self._untyped(tensor))
        except (NotImplementedError, RuntimeError, ValueError):
            # No storage of its own: sparse, opaque, a wrapper around others, uninitialised.
            for part in self.parts(tensor):
                self.add_tensor(part, nodes)
        if self._leaf(tensor) or self._retains(tensor):
            grad = self._grad(tensor)
            if grad is not None:
                self.add_tensor(grad, nodes)
        if not self._leaf(tensor):
            nodes.append(self._grad_fn(tensor))

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
        if identity not in self.storages and self.is_here(storage) and storage.nbytes():
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
            reason = self.host_reason(storage)
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
