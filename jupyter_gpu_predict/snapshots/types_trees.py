"""scikit-learn's trees: they copy the arrays that they are given, so none of those is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .buffers import IN_BAND_BYTES

if TYPE_CHECKING:
    from .pickling import SnapshotPickler


def is_tree(kind: type) -> bool:
    """Tell whether a class is that of a fitted tree's nodes."""
    return (kind.__module__, kind.__name__) == ("sklearn.tree._tree", "Tree")


def reduce_tree(pickler: SnapshotPickler, tree: Any) -> Any:
    """Reduce a tree to its state, whose long arrays are memory for one use."""
    context = pickler.context
    known: dict[int, Any] = vars(context).setdefault("trees", {})
    if id(tree) not in known:
        # Each call makes new arrays, and each of them would be memory of its own.
        known[id(tree)] = context.keep(tree).__reduce__()
    function, arguments, state = known[id(tree)]
    spent = {name: _spent(pickler, value) for name, value in state.items()}
    return function, arguments, spent, None, None, RebuildTrees.fill_tree


def _spent(pickler: SnapshotPickler, value: Any) -> Any:
    if getattr(value, "nbytes", 0) <= IN_BAND_BYTES or not value.flags.c_contiguous:
        return value
    address, nbytes = value.__array_interface__["data"][0], int(value.nbytes)
    spec = {"kind": "numpy", "dtype": "|u1", "shape": [nbytes], "order": "C"}
    return _Spent(pickler.buffer(value, nbytes, spec, address), value.dtype, value.shape)


class _Spent:
    """Memory that is let go once it has been looked at."""

    def __init__(self, index: int, dtype: Any, shape: tuple[int, ...]) -> None:
        self.index, self.dtype, self.shape = index, dtype, shape

    def __reduce__(self) -> Any:
        return RebuildTrees.spent, (self.index, self.dtype, self.shape)


class RebuildTrees:
    """What a stream calls to make trees again; part of `Rebuild`."""

    buffers: dict[int, Any]
    read_again: Callable[[int], Any]

    def spent(self, index: int, dtype: Any, shape: tuple[int, ...]) -> _Spent:
        """Return what stands for an array until its tree copies it."""
        return _Spent(index, dtype, shape)

    def fill_tree(self, tree: Any, state: dict[str, Any]) -> None:
        """Give a tree its state and let go of the memory that this was in."""
        tree.__setstate__({name: self._array(value) for name, value in state.items()})

    def _array(self, value: Any) -> Any:
        if type(value) is not _Spent:
            return value
        memory = self.buffers.pop(value.index, None)
        # A stream in which something else failed is loaded once more.
        memory = self.read_again(value.index) if memory is None else memory
        return memory.view(value.dtype).reshape(value.shape)
