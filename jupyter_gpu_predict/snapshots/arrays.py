"""numpy arrays: owners of memory written once, views rebuilt over the same memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .buffers import IN_BAND_BYTES, loaded, raw_memory
from .types_memory import address_of, plain_owner

if TYPE_CHECKING:
    from .pickling import Context, SnapshotPickler


_View = tuple[Any, int, Any, Any, bool]
"""What makes a view of memory: dtype, offset in bytes, shape, strides, whether it is writeable."""


def reduce_array(pickler: SnapshotPickler, array: Any) -> Any:
    """Reduce an exact ``numpy.ndarray`` to its owner's memory or to a view of what owns it."""
    numpy = loaded("numpy")
    if pickler.context.is_detached(array):
        return _reduce_owner(pickler, numpy, array)
    found = _find_owner(pickler, numpy, array)
    if found is None:
        return _reduce_owner(pickler, numpy, array)
    kind, owner, offset = found
    view = (array.dtype, offset, array.shape, array.strides, array.flags.writeable)
    return _REBUILDERS[kind], (owner, view)


def reduce_array_subclass(pickler: SnapshotPickler, array: Any) -> Any:
    """Reduce a subclass of ``numpy.ndarray``, such as a memory map, with what it shares."""
    numpy = loaded("numpy")
    if array.dtype.hasobject and array.dtype != object:
        return NotImplemented
    found = _find_owner(pickler, numpy, array)
    if found is None:
        plain = _plain(pickler.context, array)
        order = _order(array)
        strides = array.strides if order else _c_strides(array)
        found = ("array", plain, 0)
    else:
        strides = array.strides
    kind, owner, offset = found
    view = (array.dtype, offset, array.shape, strides, array.flags.writeable)
    state = dict(vars(array)) if hasattr(array, "__dict__") else {}
    fill = RebuildArrays.fill_subclass
    return RebuildArrays.array_subclass, (type(array), kind, owner, view), state, None, None, fill


def reduce_masked_array(pickler: SnapshotPickler, array: Any) -> Any:
    """Reduce an exact ``numpy.ma.MaskedArray`` to its data, which may be shared, and its mask."""
    state = {
        "fill_value": array._fill_value,
        "_hardmask": array._hardmask,
        "_sharedmask": array._sharedmask,
    }
    arguments = (array.data, array._mask if array._mask is not _no_mask() else None)
    return RebuildArrays.masked_array, arguments, state, None, None, RebuildArrays.fill_masked


def _find_owner(pickler: SnapshotPickler, numpy: Any, array: Any) -> tuple[str, Any, int] | None:
    """Return kind and owner of the memory and where in it the array begins; ``None`` if itself."""
    context = pickler.context
    root, inside = _root(numpy, array), False
    low, high = _bounds(numpy, array)
    address = array.__array_interface__["data"][0]
    if root is not array:
        start = root.__array_interface__["data"][0]
        inside = start <= low and high <= start + root.nbytes and bool(_order(root))
        if type(root) is not numpy.ndarray and not reduces_plainly(numpy, type(root)):
            pickler.note(f"sharing lost: its memory belongs to a {type(root).__name__}")
        if root.dtype.hasobject:
            if inside and root.dtype == object and array.dtype == object:
                return "object", _plain(context, root), address - start
            pickler.note("sharing lost: a view of an array of objects was saved apart")
            return None
    torch = loaded("torch")
    if torch is not None and isinstance(root.base, torch.Tensor):
        storage = context.canonical_storage(root.base.untyped_storage())
        start = storage.data_ptr()
        if start <= low and high <= start + storage.nbytes():
            return "storage", storage, address - start
    if (owner := plain_owner(root.base)) is not None:
        start = address_of(owner)
        if start <= low and high <= start + memoryview(owner).nbytes:
            return "memory", owner, address - start
    if root is not array and inside:
        return "array", _plain(context, root), address - start
    if root is array and root.base is not None and array.nbytes:
        kind = type(root.base.obj if isinstance(root.base, memoryview) else root.base)
        if array.flags.writeable or not str(kind.__module__).startswith(_IMMUTABLE):
            pickler.note(f"sharing lost: its memory belongs to a {kind.__name__}")
    return None


def _plain(context: Context, root: Any) -> Any:
    """Return one exact array for the memory of `root`."""
    numpy = loaded("numpy")
    if type(root) is numpy.ndarray:
        return root
    if not isinstance(root, numpy.ndarray):
        return root
    known = vars(context).setdefault("plain_arrays", {})
    if id(root) not in known:
        known[id(root)] = context.detached(root.view(numpy.ndarray))
        context.keep(root)
    return known[id(root)]


def reduce_pandas_block(pickler: SnapshotPickler, block: Any) -> Any:
    """Reduce a pandas block with memory of its own.

    Frames that share a block's memory know it by reference counts that no pickle carries; sharing
    the memory again without them would let a write to one frame change the other.
    """
    function, (values, *rest) = block.__reduce__()
    values = pickler.context.detached(values)
    return function, (values, *rest)


def _reduce_owner(pickler: SnapshotPickler, numpy: Any, array: Any) -> Any:
    if array.dtype.hasobject:
        return _reduce_objects(pickler, numpy, array)
    context = pickler.context
    dtype, writeable = array.dtype, bool(array.flags.writeable)
    order = _order(array)
    if not order:
        # Overlapping or gapped memory has no plain owner: keep the values.
        array, order = context.keep(numpy.ascontiguousarray(array)), "C"
    if array.nbytes <= IN_BAND_BYTES:
        return RebuildArrays.small_array, (array.tobytes("A"), dtype, array.shape, order, writeable)
    address, nbytes = array.__array_interface__["data"][0], int(array.nbytes)
    context.array_ranges[id(array)] = (address, nbytes, array)
    if dtype.metadata is None and dtype.names is None and numpy.dtype(dtype.str) == dtype:
        spec = {"dtype": dtype.str, "shape": list(array.shape), "order": order}
        index = pickler.buffer(array, nbytes, {"kind": "numpy", **spec}, address)
        return RebuildArrays.array, (index, writeable)
    spec = {"dtype": "|u1", "shape": [nbytes], "order": "C"}
    index = pickler.buffer(array, nbytes, {"kind": "numpy", **spec}, address)
    view = (dtype, 0, array.shape, array.strides, writeable)
    return RebuildArrays.odd_array, (index, view)


def _reduce_objects(pickler: SnapshotPickler, numpy: Any, array: Any) -> Any:
    order = _order(array)
    if array.dtype != object or not order:
        return NotImplemented
    # The memory is there before the objects, which may hold views of it.
    version, shape, dtype, fortran, items = array.__reduce__()[2]
    state = (version, shape, dtype, fortran, items)
    fill = RebuildArrays.fill_objects
    writeable = bool(array.flags.writeable)
    return RebuildArrays.object_array, (shape, order), (state, writeable), None, None, fill


def reduces_plainly(numpy: Any, kind: type) -> bool:
    """Tell whether a subclass of ``numpy.ndarray`` leaves pickling to numpy."""
    own: Any = kind
    plain: Any = numpy.ndarray
    names = ("__reduce__", "__reduce_ex__", "__setstate__")
    return all(getattr(own, name) is getattr(plain, name) for name in names)


def _root(numpy: Any, array: Any) -> Any:
    root = array
    while True:
        base = root.base
        if type(base).__name__ == "DummyArray" and base is not None:
            base = base.base  # numpy.lib.stride_tricks keeps the real base one step away
        if isinstance(base, memoryview) and isinstance(base.obj, numpy.ndarray):
            base = base.obj
        if not isinstance(base, numpy.ndarray):
            return root
        root = base


def _no_mask() -> Any:
    return loaded("numpy").ma.nomask


def _c_strides(array: Any) -> tuple[int, ...]:
    strides, step = [], array.itemsize
    for length in reversed(array.shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


def _order(array: Any) -> str:
    if array.flags.c_contiguous:
        return "C"
    return "F" if array.flags.f_contiguous else ""


def _bounds(numpy: Any, array: Any) -> tuple[int, int]:
    library = getattr(numpy.lib, "array_utils", numpy)
    low, high = library.byte_bounds(array)
    return int(low), int(high)


def as_bytes(root: Any) -> Any:
    """Return the memory of a contiguous array as a writable one-dimensional ``uint8`` array."""
    import numpy as np

    torch = loaded("torch")
    if torch is not None and isinstance(root, torch.UntypedStorage):
        return torch.empty(0, dtype=torch.uint8, device="cpu").set_(root).numpy()
    if not isinstance(root, np.ndarray):
        return np.frombuffer(root, np.uint8)
    frozen = not root.flags.writeable
    if frozen and root.flags.owndata:
        root.flags.writeable = True
    try:
        return (root if root.flags.c_contiguous else root.T).reshape(-1).view(np.uint8)
    finally:
        if frozen and root.flags.owndata:
            root.flags.writeable = False


class RebuildArrays:
    """What a stream calls to make arrays again; part of `Rebuild`."""

    buffers: dict[int, Any]

    def small_array(self, data: bytes, dtype: Any, shape: Any, order: Any, writeable: bool) -> Any:
        """Return an array that owns a copy of `data`."""
        import numpy as np

        array = np.empty(shape, dtype, order)
        raw_memory(array.__array_interface__["data"][0], array.nbytes)[:] = data
        array.flags.writeable = writeable
        return array

    def array(self, index: int, writeable: bool) -> Any:
        """Return the array that was allocated for buffer `index`."""
        array = self.buffers[index]
        array.flags.writeable = writeable
        return array

    def odd_array(self, index: int, view: _View) -> Any:
        """Return an array of a structured or otherwise special dtype over buffer `index`."""
        return self.array_view(self.buffers[index], view)

    def array_view(self, root: Any, view: _View) -> Any:
        """Return a view over the memory of `root`."""
        return _view(as_bytes(root), view)

    def array_over_memory(self, owner: Any, view: _View) -> Any:
        """Return an array over the memory of a bytearray, an array, a map or an arrow buffer."""
        import numpy as np

        return _view(np.frombuffer(owner, np.uint8), view)

    def object_array(self, shape: Any, order: Any) -> Any:
        """Return an array of objects that are still to come."""
        import numpy as np

        return np.empty(shape, object, order or "C")

    def fill_objects(self, array: Any, state: tuple[Any, bool]) -> None:
        """Put the objects into an array and lock it if it was."""
        import numpy as np

        values: Any = np.empty(0, object)
        values.__setstate__(state[0])
        array[...] = values
        array.flags.writeable = state[1]

    def object_view(self, root: Any, view: _View) -> Any:
        """Return a view of an array of objects."""
        import numpy as np

        _, offset, shape, strides, writeable = view
        flat = root.reshape(-1) if root.flags.c_contiguous else root.T.reshape(-1)
        first = flat[offset // flat.itemsize :]
        return np.lib.stride_tricks.as_strided(first, shape, strides, writeable=writeable)

    def array_subclass(self, cls: Any, kind: str, owner: Any, view: _View) -> Any:
        """Return an array of a class of its own over memory that others may share."""
        plain = getattr(self, _REBUILDERS[kind].__name__)(owner, view)
        array = plain.view(cls)
        if array.dtype != view[0] or type(array.dtype) is not type(view[0]):
            array.dtype = view[0]
        return array

    def fill_subclass(self, array: Any, attributes: dict[str, Any]) -> None:
        """Give an array of a class of its own its attributes."""
        vars(array).update(attributes)

    def masked_array(self, data: Any, mask: Any) -> Any:
        """Return a masked array over `data` and `mask`."""
        import numpy as np

        return np.ma.MaskedArray(data, np.ma.nomask if mask is None else mask, copy=False)

    def fill_masked(self, array: Any, attributes: dict[str, Any]) -> None:
        """Give a masked array its fill value and how it shares its mask."""
        vars(array).update({k: v for k, v in attributes.items() if k != "fill_value"})
        array._fill_value = attributes["fill_value"]

    def array_over_storage(self, storage: Any, view: _View) -> Any:
        """Return an array over the memory of a torch storage."""
        import torch

        whole = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage).numpy()
        return _view(whole, view)


def _view(memory: Any, view: _View) -> Any:
    import numpy as np

    dtype, offset, shape, strides, writeable = view
    array = np.ndarray(shape, dtype, memory, offset, strides)
    array.flags.writeable = writeable
    return array


_REBUILDERS: dict[str, Any] = {
    "array": RebuildArrays.array_view,
    "object": RebuildArrays.object_view,
    "storage": RebuildArrays.array_over_storage,
    "memory": RebuildArrays.array_over_memory,
}
_IMMUTABLE = ("builtins", "pyarrow", "polars")
"""Where owners of memory come from that nobody writes to, so that a copy is as good."""
