"""Digests of long memory, read in pieces: nothing is copied whole, wherever it lies."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from .buffers import raw_memory

PIECE_BYTES = 4 << 20
"""Longest copy that is made of memory which does not lie in one piece or on this machine."""


def plain_digest(data: Any) -> bytes:
    """Return the digest of an object's bytes.

    SHA-256, as processors have instructions for it; it is twice as fast as BLAKE2 there.
    """
    return sha256(data).digest()[:16]


def array_digest(numpy: Any, array: Any) -> bytes:
    """Return the digest of the values of a numpy array without objects, in C order."""
    if array.flags.c_contiguous:
        return plain_digest(raw_memory(array.__array_interface__["data"][0], array.nbytes))
    hasher = sha256()
    for piece in _array_pieces(array):
        whole = numpy.ascontiguousarray(piece)
        hasher.update(raw_memory(whole.__array_interface__["data"][0], whole.nbytes))
    return hasher.digest()[:16]


def tensor_digest(tensor: Any) -> bytes:
    """Return the digest of the values of a strided torch tensor on any device."""
    hasher = sha256()
    for piece in _tensor_pieces(tensor):
        host = piece.cpu().resolve_conj().resolve_neg().contiguous()
        hasher.update(raw_memory(host.data_ptr(), host.numel() * host.element_size()))
    return hasher.digest()[:16]


def _array_pieces(array: Any) -> Iterator[Any]:
    """Yield parts of an array in C order, each in one piece or short."""
    if array.nbytes <= PIECE_BYTES or array.flags.c_contiguous:
        yield array
        return
    rows = PIECE_BYTES * array.shape[0] // array.nbytes
    if rows == 0:
        for part in array:
            yield from _array_pieces(part)
        return
    for start in range(0, array.shape[0], rows):
        yield array[start : start + rows]


def _tensor_pieces(tensor: Any) -> Iterator[Any]:
    """Yield parts of a tensor in C order, each in one piece on this machine or short."""
    nbytes = tensor.numel() * tensor.element_size()
    here = tensor.device.type == "cpu" and tensor.is_contiguous()
    if nbytes <= PIECE_BYTES or (here and not (tensor.is_conj() or tensor.is_neg())):
        yield tensor
        return
    rows = PIECE_BYTES * tensor.shape[0] // nbytes
    for start in range(0, tensor.shape[0], rows or 1):
        if rows:
            yield tensor.narrow(0, start, min(rows, tensor.shape[0] - start))
        else:
            yield from _tensor_pieces(tensor[start])
