"""Arrays and tensors of a snapshot as a safetensors file, without unpickling anything.

The format is that of https://huggingface.co/docs/safetensors: the length of a header, the header
as JSON, and the bytes of the tensors one after the other. It is written from the snapshot's chunks
as they are read, so that no more than one tensor is in memory.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from .dense import Dense, rebuild_method
from .describe import Describer, module_attribute, module_parts
from .graph import ATOMS
from .nodes import Call, Global, Pairs
from .opened import Cancelled, Opened, Progress

_DTYPES = {
    "b1": "BOOL",
    "u1": "U8",
    "i1": "I8",
    "u2": "U16",
    "i2": "I16",
    "u4": "U32",
    "i4": "I32",
    "u8": "U64",
    "i8": "I64",
    "f2": "F16",
    "f4": "F32",
    "f8": "F64",
    "c8": "C64",
}
_TORCH = {
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
}
_NOT_WRITTEN = frozenset({"complex32", "complex128", "float8_e4m3fnuz", "float8_e5m2fnuz"})
_DEFINITIONS = frozenset({"make_class", "enum_class", "function"})
_TABLES = ("pandas.", "polars.", "pyarrow.")
_MAX_DEPTH = 200
_ALIGN = 8


@dataclass(slots=True)
class Found:
    """The tensors of some variables under their names, and what was left out or copied."""

    tensors: dict[str, Dense] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)


def find_tensors(describer: Describer, roots: dict[str, Any]) -> Found:
    """Return the tensors below some variables.

    A variable that is a tensor goes by its name; in a container or object its path follows after
    dots, in a torch module as in its ``state_dict``.
    """
    found = Found()
    first: dict[Any, str] = {}
    memory: dict[Any, list[tuple[str, int, int]]] = {}
    for name, root in roots.items():
        count = len(found.tensors) + len(found.aliases) + len(found.notes)
        for place, dense in _walk(describer, name, root, found.notes):
            kind = dtype_name(dense)
            if kind is None:
                found.notes.append(f"{place} was left out: safetensors has no dtype {dense.dtype}")
                continue
            path = _free(place, found)
            where = (dense.memory.identity, dense.memory.offset, dense.shape, dense.strides, kind)
            if where in first:
                found.aliases[path] = first[where]
                continue
            first[where] = path
            found.tensors[path] = dense
            low, high = _extent(dense)
            users = memory.setdefault(dense.memory.identity, [])
            other = next((n for n, start, end in users if low < end and start < high), None)
            if other is not None:
                found.notes.append(f"{path} shares memory with {other} and was copied")
            users.append((path, low, high))
        if count == len(found.tensors) + len(found.aliases) + len(found.notes):
            found.without.append(name)
    return found


def write_tensors(
    opened: Opened,
    found: Found,
    file: BinaryIO,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> int:
    """Write tensors to a file in the format of safetensors and return the bytes written."""
    # Wide items first, as other writers do, so that everything is aligned.
    order = sorted(found.tensors, key=lambda name: (-found.tensors[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **found.aliases}}
    start = 0
    for name in order:
        dense = found.tensors[name]
        end = start + dense.nbytes
        offsets = [start, end]
        header[name] = {
            "dtype": dtype_name(dense),
            "shape": list(dense.shape),
            "data_offsets": offsets,
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    file.write(struct.pack("<Q", len(text)) + text)
    done = 0
    for name in order:
        opened.ask(cancelled, "export")
        data = contiguous(opened, found.tensors[name])
        file.write(data)
        done += len(data)
        if progress is not None:
            progress(done, start)
    return 8 + len(text) + start


def dtype_name(dense: Dense) -> str | None:
    """Return safetensors' name of a dtype, ``None`` if it has none."""
    if dense.library == "torch":
        if dense.dtype in _TORCH:
            return _TORCH[dense.dtype]
        if dense.dtype in _NOT_WRITTEN:
            return None
    return _DTYPES.get(dense.code[1:])


def contiguous(opened: Opened, dense: Dense) -> memoryview:
    """Return the bytes of an array's items in C order, little-endian."""
    nbytes = dense.nbytes
    if nbytes == 0:
        return memoryview(b"")
    low, high = _extent(dense)
    if dense.memory.index is None:
        data = memoryview(dense.memory.data)[low:high]
    else:
        entry = opened.buffers[dense.memory.index]
        data = opened.read({**entry, "offset": entry["offset"] + low, "nbytes": high - low})
    if dense.strides == _c_strides(dense) and dense.code[0] != ">":
        return data
    import numpy as np

    view = np.ndarray(
        dense.shape, dense.code, data, dense.memory.offset - low, strides=dense.strides
    )
    plain = np.ascontiguousarray(view.astype(view.dtype.newbyteorder("<"), copy=False))
    return memoryview(plain.reshape(-1).view(np.uint8))


def _extent(dense: Dense) -> tuple[int, int]:
    """Return the range of a memory's bytes that an array looks at."""
    steps = [(n - 1) * s for n, s in zip(dense.shape, dense.strides, strict=True)]
    start = dense.memory.offset
    low = start + sum(step for step in steps if step < 0)
    return low, start + sum(step for step in steps if step > 0) + dense.itemsize


def _c_strides(dense: Dense) -> tuple[int, ...]:
    """Return the strides of a contiguous array, taking its own where a length of 1 hides them."""
    strides = []
    for place, length in enumerate(dense.shape):
        rest = math.prod(dense.shape[place + 1 :]) * dense.itemsize
        strides.append(dense.strides[place] if length == 1 else rest)
    return tuple(strides)


def _free(path: str, found: Found) -> str:
    """Return a name not yet given; keys such as ``1`` and ``"1"`` lead to the same one."""
    free, number = path, 2
    while free in found.tensors or free in found.aliases or free == "__metadata__":
        free, number = f"{path}~{number}", number + 1
    return free


def _walk(
    describer: Describer, name: str, root: Any, notes: list[str]
) -> Iterator[tuple[str, Dense]]:
    """Yield the arrays and tensors below a variable; what is met twice is followed once."""
    waiting: list[tuple[str, Any, int]] = [(name, root, 0)]
    followed: set[int] = set()
    while waiting:
        path, value, depth = waiting.pop()
        if type(value) in ATOMS or type(value) is Global:
            continue
        dense = describer.dense(value)
        if dense is not None:
            yield path, dense
            continue
        if id(value) in followed:
            continue
        followed.add(id(value))
        if type(value) is Call and describer.type_name(value).startswith(_TABLES):
            kind = describer.type_name(value)
            notes.append(f"{path} was left out: a {kind} goes into --format arrow")
            continue
        if depth > _MAX_DEPTH:
            notes.append(f"{path} was left out: it is nested too deeply")
            continue
        children = list(_named_children(describer, value))
        waiting += [(f"{path}.{label}", child, depth + 1) for label, child in reversed(children)]


def _named_children(describer: Describer, value: Any) -> Iterator[tuple[str, Any]]:
    parts = module_parts(value)
    if parts is not None:
        passing = module_attribute(value, "_non_persistent_buffers_set") or []
        for number, pairs in enumerate(parts):
            for place in range(0, len(pairs), 2):
                name = pairs[place]
                if not (number == 1 and name in list(passing)):
                    yield str(name), pairs[place + 1]
        return
    if type(value) is Pairs:
        for place in range(0, len(value), 2):
            key = value[place]
            label = str(key) if type(key) in ATOMS else str(place // 2)
            yield label, value[place + 1]
        return
    if rebuild_method(value) in _DEFINITIONS:
        return
    for number, (label, child) in enumerate(describer.children(value)):
        # Items of sets, and what is kept under a key that is an object, have no text of their own.
        yield str(number) if "…" in label else label.strip("[]()."), child
