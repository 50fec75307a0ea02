"""Arrays and tensors as a stream describes them: which memory, and which part of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .nodes import Call, Global

_PACKAGE = __name__.rpartition(".inspect")[0] + "."
_MAX_DEPTH = 64

TORCH_DTYPES = {
    "float32": ("<f4", 4),
    "float64": ("<f8", 8),
    "float16": ("<f2", 2),
    "bfloat16": ("<u2", 2),
    "int8": ("|i1", 1),
    "int16": ("<i2", 2),
    "int32": ("<i4", 4),
    "int64": ("<i8", 8),
    "uint8": ("|u1", 1),
    "uint16": ("<u2", 2),
    "uint32": ("<u4", 4),
    "uint64": ("<u8", 8),
    "bool": ("|b1", 1),
    "complex32": ("<u4", 4),
    "complex64": ("<c8", 8),
    "complex128": ("<c16", 16),
    "float8_e4m3fn": ("|u1", 1),
    "float8_e5m2": ("|u1", 1),
    "float8_e4m3fnuz": ("|u1", 1),
    "float8_e5m2fnuz": ("|u1", 1),
    "float8_e8m0fnu": ("|u1", 1),
}
"""torch's dtypes, each with a dtype of numpy for bytes of that size."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A piece of memory: a numbered buffer of the snapshot, or bytes within a stream."""

    index: int | None
    data: Any
    offset: int = 0
    device: str = "cpu"

    @property
    def identity(self) -> tuple[str, int]:
        """Equal for the same memory."""
        return ("buffer", self.index) if self.index is not None else ("stream", id(self.data))

    def at(self, offset: int) -> Memory:
        """Return the memory from `offset` on."""
        return Memory(self.index, self.data, self.offset + offset, self.device)


@dataclass(frozen=True, slots=True)
class Dense:
    """An array or tensor: a part of a memory, strides counted in bytes.

    `dtype` is written as numpy's (``"<f4"``) or as a name of `TORCH_DTYPES`; `code` is numpy's
    dtype for bytes of that size. `described` is a numpy dtype as the stream has it, `cls` a class
    of its own.
    """

    library: str
    memory: Memory
    dtype: str
    code: str
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    writeable: bool | None = None
    described: Any = None
    cls: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes of its items."""
        return math.prod(self.shape) * self.itemsize


def rebuild_method(value: Any) -> str | None:
    """Return the name of the method of `Rebuild` that a call or a name means, if it is one."""
    function = value.function if type(value) is Call else value
    if type(function) is Global and function.module.startswith(_PACKAGE):
        kind, _, method = function.name.partition(".")
        if kind.startswith("Rebuild") and method:
            return method
    return None


def find_dense(value: Any, buffers: Mapping[int, Mapping[str, Any]]) -> Dense | None:
    """Return the array or tensor that `value` describes; ``None`` if it is none or of objects."""
    try:
        return _dense(value, buffers, 0)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError):
        return None


def _dense(value: Any, buffers: Mapping[int, Mapping[str, Any]], depth: int) -> Dense | None:
    if type(value) is not Call or depth > _MAX_DEPTH:
        return None
    arguments = value.arguments
    method = rebuild_method(value)
    if method is None:
        # How numpy pickles what it exports as a buffer.
        name = value.function.name if type(value.function) is Global else ""
        if name != "_frombuffer":
            return None
        memory = find_memory(arguments[0], buffers)
        return None if memory is None else _contiguous(memory, *map(_plain, arguments[1:4]))
    if method in ("same", "spent_tensor"):
        return _dense(arguments[0], buffers, depth + 1)
    if method == "tensor":
        return _tensor(arguments, buffers)
    if method == "array":
        spec = buffers[arguments[0]]
        if spec["kind"] != "numpy":
            return None
        memory = Memory(arguments[0], None)
        found = _contiguous(memory, spec["dtype"], spec["shape"], spec["order"])
        return None if found is None else replace(found, writeable=arguments[1])
    if method == "small_array":
        data, dtype, shape, order, writeable = arguments
        found = _contiguous(Memory(None, data), _plain(dtype), shape, order)
        if found is not None:
            found = replace(found, writeable=writeable, described=dtype)
        return found
    if method in ("odd_array", "array_view", "array_over_storage", "array_over_memory"):
        cls, (owner, view) = None, arguments
    elif method == "array_subclass":
        cls, kind, owner, view = arguments
        if kind == "object":
            return None
    else:
        return None
    memory = Memory(owner, None) if method == "odd_array" else find_memory(owner, buffers)
    dtype, offset, shape, strides, writeable = view
    code = dtype_code(dtype)
    if memory is None or code is None:
        return None
    return Dense(
        "numpy",
        memory.at(offset),
        code,
        code,
        _itemsize(code),
        tuple(shape),
        tuple(strides),
        writeable,
        dtype,
        cls,
    )


def _tensor(arguments: Any, buffers: Mapping[int, Mapping[str, Any]]) -> Dense | None:
    _, storage, dtype, (offset, size, stride), _ = arguments
    memory = find_memory(storage, buffers)
    if memory is None or type(dtype) is not Global or dtype.name not in TORCH_DTYPES:
        return None
    code, width = TORCH_DTYPES[dtype.name]
    strides = tuple(step * width for step in stride)
    start = memory.at(offset * width)
    return Dense("torch", start, dtype.name, code, width, tuple(size), strides)


def find_memory(
    value: Any, buffers: Mapping[int, Mapping[str, Any]], depth: int = 0
) -> Memory | None:
    """Return the memory that an owner of memory has; ``None`` if it is not known to have one."""
    if isinstance(value, (bytes, bytearray)):
        return Memory(None, value)
    if type(value) is Call and value.how in ("buffer", "read-only"):
        (inner,) = value.arguments
        return Memory(inner, None) if value.how == "buffer" else find_memory(inner, buffers, depth)
    method = rebuild_method(value) if type(value) is Call else None
    if method is None or depth > _MAX_DEPTH:
        return None
    arguments = value.arguments
    if method == "storage":
        return Memory(arguments[0], None, device=str(arguments[1]))
    if method == "small_storage":
        return Memory(None, arguments[0], device=str(arguments[1]))
    if method in ("small_array", "small_map", "small_arrow_buffer"):
        return Memory(None, arguments[0])
    if method in ("array", "odd_array", "std_array", "map", "arrow_buffer"):
        return Memory(arguments[0], None) if arguments[0] in buffers else None
    if method in ("same", "typed_storage"):
        return find_memory(arguments[0], buffers, depth + 1)
    if method == "storage_over_array":
        found = find_memory(arguments[0], buffers, depth + 1)
        return None if found is None else found.at(arguments[1])
    dense = _dense(value, buffers, depth + 1)
    return None if dense is None else dense.memory


def dtype_code(value: Any) -> str | None:
    """Return numpy's code of a pickled dtype, e.g. ``"<f8"``, without units and fields."""
    if type(value) is str:
        return value
    if type(value) is not Call or type(value.function) is not Global:
        return None
    function = value.function
    if function.module != "numpy" or not function.name.endswith("dtype"):
        return None
    kind = value.arguments[0]
    if type(kind) is Global and value.states:
        kind = f"V{value.states[0][1][5]}"  # records of a class; its size is in the state
    if type(kind) is not str or kind[:1] not in "biufcmMSUV?" or not kind[1:].isdigit():
        return None
    state: Any = value.states[0][1] if value.states else (3, "|")
    order = state[1] if state[1] in ("<", ">") else "|"
    return order + kind


def _plain(value: Any) -> Any:
    """Return a dtype as numpy's code, and anything else as it is."""
    return dtype_code(value) if type(value) is Call else value


def _itemsize(code: str) -> int:
    count = int(code[2:].partition("[")[0])
    return count * 4 if code[1] == "U" else count


def _contiguous(memory: Memory, code: str | None, shape: Any, order: str) -> Dense | None:
    if code is None:
        return None
    width = _itemsize(code)
    strides, step = [], width
    for length in reversed(shape) if order == "C" else shape:
        strides.append(step)
        step *= max(length, 1)
    if order == "C":
        strides.reverse()
    return Dense("numpy", memory, code, code, width, tuple(shape), tuple(strides))


_WORDS = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex"}


def dtype_word(dense: Dense) -> str:
    """Return a dtype as people write it, e.g. ``"float32"``."""
    if dense.library == "torch":
        return dense.dtype
    order, kind, size = dense.dtype[0], dense.dtype[1], dense.dtype[2:]
    if kind == "V":
        return f"record of {size} bytes"
    if kind not in _WORDS:
        return dense.dtype
    word = "bool" if kind == "b" else f"{_WORDS[kind]}{int(size) * 8}"
    return f"{word} (big-endian)" if order == ">" else word
