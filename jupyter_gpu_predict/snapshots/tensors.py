"""torch tensors: storages written once, views, parameters and gradients rebuilt over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .arrays import as_bytes
from .buffers import IN_BAND_BYTES, loaded, raw_memory
from .types_memory import owner_at

if TYPE_CHECKING:
    from .pickling import SnapshotPickler

_MAX_GRAPH_NODES = 10_000


def reduce_tensor(pickler: SnapshotPickler, tensor: Any) -> Any:
    """Reduce a strided tensor to a view of its storage; other layouts go torch's own way."""
    torch = loaded("torch")
    if tensor.is_nested:
        return NotImplemented
    if not tensor.is_leaf:
        node = _spent_node(tensor)
        if node is None:
            pickler.refuse(
                tensor,
                f"it is part of a live autograd graph ({tensor.grad_fn.name()}); "
                "call .detach() on it, or snapshot after backward()",
            )
        detached = pickler.context.keep(tensor.detach())
        return RebuildTensors.spent_tensor, (detached, tensor.grad_fn.name())
    kind = type(tensor)
    plain = (
        kind in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and _has_memory(tensor.device.type)
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
    )
    extras = _extras(tensor)
    if not plain:
        return _reduce_other(tensor, extras)
    storage = pickler.context.canonical_storage(tensor.untyped_storage())
    where = (tensor.storage_offset(), tuple(tensor.size()), tuple(tensor.stride()))
    arguments = (kind, storage, tensor.dtype, where, tensor.requires_grad)
    if not extras:
        return RebuildTensors.tensor, arguments
    return RebuildTensors.tensor, arguments, extras, None, None, RebuildTensors.fill_tensor


def reduce_storage(pickler: SnapshotPickler, storage: Any) -> Any:
    """Reduce an untyped storage to its bytes and the device it lives on."""
    context = pickler.context
    storage = context.canonical_storage(storage)
    pickler.used_storages.add(storage._cdata)
    alias = context.aliases.get(storage._cdata)
    if alias is not None:
        root, offset = alias
        return RebuildTensors.storage_over_array, (root, offset, storage.nbytes())
    device, nbytes = str(storage.device), int(storage.nbytes())
    if storage.device.type == "cpu":
        if nbytes and not storage.resizable():
            found = owner_at(context, storage)
            if found is not None:
                return RebuildTensors.storage_over_array, (*found, nbytes)
        context.storage_ranges[storage._cdata] = (storage.data_ptr(), nbytes, storage)
    elif not _has_memory(storage.device.type):
        pickler.refuse(storage, f"its memory is on device {device}, which cannot be read here")
    if nbytes <= IN_BAND_BYTES:
        return RebuildTensors.small_storage, (bytes(read_storage(storage)), device)
    index = pickler.buffer_from(
        storage, nbytes, {"kind": "torch", "nbytes": nbytes}, lambda: read_storage(storage)
    )
    return RebuildTensors.storage, (index, device)


def reduce_typed_storage(pickler: SnapshotPickler, storage: Any) -> Any:
    """Reduce a typed storage so that its bytes are shared with every tensor over them."""
    untyped = pickler.context.canonical_storage(storage._untyped_storage)
    return RebuildTensors.typed_storage, (untyped, storage.dtype)


def reduce_optimizer(pickler: SnapshotPickler, optimizer: Any) -> Any:
    """Reduce an optimizer with what its own pickling drops: hooks and the scheduler's wrapper."""
    own = optimizer.__getstate__()
    rest = {k: v for k, v in vars(optimizer).items() if not isinstance(own, dict) or k not in own}
    fill = RebuildTensors.fill_optimizer
    return RebuildTensors.optimizer, (type(optimizer),), (own, rest), None, None, fill


def read_storage(storage: Any) -> memoryview:
    """Return the bytes of a storage, copied to the host where it is on a device.

    What was taken back from a device lies on the host already (`kernel.offload`), and is read there
    even if the device is lost.
    """
    if storage.device.type != "cpu":
        region = getattr(storage, "_jupyter_gpu_region", None)
        if region is None or not region.holds(storage.data_ptr()):
            storage = storage.cpu()
    memory = raw_memory(storage.data_ptr(), storage.nbytes())
    if memory.nbytes:
        carrier: Any = memory.obj
        carrier._owner = storage  # a host copy has to live as long as the view of it
    return memory


def _has_memory(device_type: str) -> bool:
    """Whether torch has an allocator for that type of device, whose memory it copies."""
    return device_type == "cpu" or hasattr(
        getattr(loaded("torch"), device_type, None), "memory_allocated"
    )


def _reduce_other(tensor: Any, extras: dict[str, Any]) -> Any:
    function, arguments, *rest = tensor.__reduce_ex__(5)
    if rest or "grad" not in extras:
        return (function, arguments, *rest)
    state = {"grad": extras["grad"]}
    return function, arguments, state, None, None, RebuildTensors.fill_tensor


def _extras(tensor: Any) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    if tensor.grad is not None:
        extras["grad"] = tensor.grad
    if vars(tensor):
        extras["dict"] = dict(vars(tensor))
    for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        if hooks := getattr(tensor, name, None):
            extras[name] = hooks
    return extras


def _spent_node(tensor: Any) -> Any:
    """Return a node of the graph whose saved tensors are gone, or ``None`` if it is still alive.

    After ``backward()`` without ``retain_graph`` no second one can run: what remains of the
    tensor is its value and its name.
    """
    stack = [tensor.grad_fn]
    seen: set[Any] = set()
    while stack and len(seen) < _MAX_GRAPH_NODES:
        node = stack.pop()
        if node is None or node in seen:
            continue
        if getattr(type(node), "_is_spent", False):
            return node  # it came out of a snapshot as what it is here
        seen.add(node)
        for name in dir(node):
            if name.startswith("_saved_") or name == "saved_tensors":
                try:
                    getattr(node, name)
                except RuntimeError:
                    return node
        stack.extend(following for following, _ in node.next_functions)
    return None


class RebuildTensors:
    """What a stream calls to make tensors again; part of `Rebuild`."""

    buffers: dict[int, Any]

    def storage(self, index: int, device: str) -> Any:
        """Return the storage that was allocated for buffer `index`, on `device`."""
        storage = self.buffers[index]
        return storage if device == "cpu" else _on_device(storage, device)

    def small_storage(self, data: bytes, device: str) -> Any:
        """Return a new storage that holds `data`."""
        import torch

        storage = torch.UntypedStorage(len(data))
        raw_memory(storage.data_ptr(), len(data))[:] = data
        return storage if device == "cpu" else _on_device(storage, device)

    def storage_over_array(self, root: Any, offset: int, nbytes: int) -> Any:
        """Return a storage over the memory of a numpy array."""
        import torch

        return torch.from_numpy(as_bytes(root)[offset : offset + nbytes]).untyped_storage()

    def typed_storage(self, storage: Any, dtype: Any) -> Any:
        """Return a typed storage over `storage`."""
        import torch

        return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)

    def tensor(
        self, kind: Any, storage: Any, dtype: Any, where: tuple[Any, ...], requires_grad: bool
    ) -> Any:
        """Return a tensor or parameter that views `storage` at offset, size and stride."""
        import torch

        tensor = torch.empty(0, dtype=dtype, device=storage.device)
        tensor.set_(storage, *where)
        if kind is torch.nn.Parameter:
            return torch.nn.Parameter(tensor, requires_grad=requires_grad)
        return tensor.requires_grad_(True) if requires_grad else tensor

    def fill_tensor(self, tensor: Any, extras: dict[str, Any]) -> None:
        """Give a tensor its gradient, attributes and hooks."""
        if "grad" in extras:
            tensor.grad = extras["grad"]
        vars(tensor).update(extras.get("dict", {}))
        for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            if name in extras:
                setattr(tensor, name, extras[name])

    def spent_tensor(self, value: Any, name: str) -> Any:
        """Return `value` as the result of a graph whose backward pass has already run."""
        import torch

        def forward(ctx: Any, anchor: Any, value: Any) -> Any:
            return value

        def backward(ctx: Any, *grads: Any) -> Any:
            raise RuntimeError(
                "Trying to backward through the graph a second time (or directly access saved "
                "tensors after they have already been freed)."
            )

        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        spent: Any = type("Spent", (torch.autograd.Function,), members)
        # A printed tensor shows this name; it should read as it did before.
        spent._backward_cls.__name__ = name
        spent._backward_cls._is_spent = True
        with torch.enable_grad():
            return spent.apply(torch.zeros((), requires_grad=True, device="cpu"), value)

    def optimizer(self, kind: Any) -> Any:
        """Return an empty optimizer whose class's ``step`` is wrapped as by its constructor."""
        optimizer = kind.__new__(kind)
        if hasattr(optimizer, "_patch_step_function"):
            optimizer._patch_step_function()
        return optimizer

    def fill_optimizer(self, optimizer: Any, state: tuple[Any, dict[str, Any]]) -> None:
        """Give an optimizer its parameter groups, state, hooks and scheduler wrapper."""
        own, rest = state
        defaults = own.get("defaults") if isinstance(own, dict) else None
        before = dict(defaults) if defaults is not None else {}
        optimizer.__setstate__(own)
        if defaults is not None:  # where torch fills in what older versions did not know
            defaults.clear()
            defaults.update(before)
        vars(optimizer).update(rest)


def _on_device(storage: Any, device: str) -> Any:
    import torch

    host = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
    return host.to(device, copy=True).untyped_storage()
