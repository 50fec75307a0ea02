"""numpy arrays: owners of memory written once, views rebuilt over the same memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .buffers import IN_BAND_BYTES, loaded, raw_memory

if TYPE_CHECKING:
    from .pickling import SnapshotPickler


_View = tuple[Any, int, Any, Any, bool]
"""What makes a view of memory: dtype, offset in bytes, shape, strides, whether it is writeable."""


def reduce_array(pickler: SnapshotPickler, array: Any) -> Any:
    """Reduce an exact ``numpy.ndarray`` to its owner's memory or to a view of another array."""
    numpy = loaded("numpy")
    if pickler.context.is_detached(array):
        return _reduce_owner(pickler, numpy, array)
    root = _root(numpy, array)
    if root is not array and not root.dtype.hasobject:
        start = root.__array_interface__["data"][0]
        low, high = _bounds(numpy, array)
        if start <= low and high <= start + root.nbytes and _order(root):
            offset = array.__array_interface__["data"][0] - start
            view = (array.dtype, offset, array.shape, array.strides, array.flags.writeable)
            return RebuildArrays.array_view, (root, view)
    if root is not array and root.dtype.hasobject:
        pickler.note("sharing lost: a view of an array of objects was saved apart")
    torch = loaded("torch")
    if torch is not None and isinstance(root.base, torch.Tensor) and not root.dtype.hasobject:
        storage = pickler.context.canonical_storage(root.base.untyped_storage())
        offset = array.__array_interface__["data"][0] - storage.data_ptr()
        low, high = _bounds(numpy, array)
        if storage.data_ptr() <= low and high <= storage.data_ptr() + storage.nbytes():
            view = (array.dtype, offset, array.shape, array.strides, array.flags.writeable)
            return RebuildArrays.array_over_storage, (storage, view)
    owner = array.base.obj if isinstance(array.base, memoryview) else array.base
    if root is array and owner is not None and not isinstance(owner, bytes):
        pickler.note(f"sharing lost: its memory belongs to a {type(owner).__name__}")
    return _reduce_owner(pickler, numpy, array)


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
        return NotImplemented
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


def _root(numpy: Any, array: Any) -> Any:
    root = array
    while True:
        base = root.base
        if type(base).__name__ == "DummyArray" and base is not None:
            base = base.base  # numpy.lib.stride_tricks keeps the real base one step away
        if type(base) is not numpy.ndarray:
            return root
        root = base


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
