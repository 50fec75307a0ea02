"""Memory of the standard library: memoryviews, arrays, memory maps and what is laid over them.

A memory map of a file is a handle on that file, so it is saved by the file's path, size and time
of change, and opened again; where the file is gone or has changed it becomes a tombstone, as its
contents are no longer those that were saved. Maps without a file, of deleted files, and private
(copy on write) maps are saved by value.
"""

from __future__ import annotations

import array
import ctypes
import importlib
import mmap
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import SnapshotError
from .buffers import IN_BAND_BYTES, loaded, raw_memory

if TYPE_CHECKING:
    from .pickling import Context, SnapshotPickler

KINDS = frozenset({"array", "mmap", "arrow"})
"""Kinds of buffers that `allocate_memory` makes."""

_PLAIN_OWNERS = (bytes, bytearray, array.array, mmap.mmap)
_PYBUF_FULL_RO = 0x11C
_PASSING_FILES = ("/dev/shm/", "/dev/zero", "/memfd:", "/SYSV")  # noqa: S108


class _PyBuffer(ctypes.Structure):
    """Py_buffer of Include/pybuffer.h."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def address_of(obj: Any) -> int:
    """Return the address of the first byte of an object that has the buffer interface."""
    view = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(
        ctypes.py_object(obj), ctypes.byref(view), ctypes.c_int(_PYBUF_FULL_RO)
    )
    try:
        return int(view.buf or 0)
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))


def plain_owner(base: Any) -> Any:
    """Return the object whose memory a numpy array with that ``base`` is laid over, or ``None``."""
    owner = base.obj if isinstance(base, memoryview) else base
    if isinstance(owner, (*_PLAIN_OWNERS, ctypes.Array)):
        return owner
    arrow = loaded("pyarrow")
    return owner if arrow is not None and isinstance(owner, arrow.Buffer) else None


def owner_at(context: Context, storage: Any) -> tuple[Any, int] | None:
    """Return the variable whose memory a torch storage lies in, as torch keeps no reference."""
    address, nbytes = storage.data_ptr(), storage.nbytes()
    known = vars(context).setdefault("plain_ranges", [])
    torch = loaded("torch")
    if not known:
        for value in list(context.namespace.values()):
            if type(value) in (bytearray, array.array, mmap.mmap):
                try:
                    known.append((address_of(value), memoryview(value).nbytes, value))
                except ValueError:
                    continue  # a closed map
            elif torch is not None and isinstance(value, torch.Tensor):
                known.extend(_storage_range(context, value))
        known.sort(key=lambda entry: -entry[1])
        known.append((0, 0, None))
    for start, length, owner in known:
        if owner is storage:
            return None
        if length and start <= address and address + nbytes <= start + length:
            return owner, address - start
    return None


def _storage_range(context: Context, tensor: Any) -> list[tuple[int, int, Any]]:
    try:
        storage = context.canonical_storage(tensor.untyped_storage())
        if storage.device.type == "cpu":
            return [(storage.data_ptr(), storage.nbytes(), storage)]
    except (RuntimeError, NotImplementedError):
        pass  # a layout without a storage
    return []


# --------------------------------------------------------------------------- memoryviews


def reduce_memoryview(pickler: SnapshotPickler, view: memoryview) -> Any:
    """Reduce a memoryview to the object that it looks into and the part of it."""
    try:
        owner: Any = view.obj
    except ValueError:
        pickler.refuse(view, "a released memoryview refers to nothing; delete it")
    start = address_of(view) - address_of(owner) if owner is not None else -1
    whole = memoryview(owner) if owner is not None else view
    layout = (view.format, view.shape, view.strides)
    if start == 0 and layout == (whole.format, whole.shape, whole.strides):
        return RebuildMemory.whole_view, (owner, view.readonly)
    plain = len(view.format) == 1 and whole.c_contiguous and start >= 0
    if plain and view.c_contiguous:
        part = (start, view.nbytes, view.format, view.shape, view.readonly)
        return RebuildMemory.view_part, (owner, part)
    if plain and view.ndim == 1 and len(view):
        step, rest = divmod(view.strides[0], view.itemsize)  # type: ignore[index]
        first, odd = divmod(start, view.itemsize)
        if rest == odd == 0 and whole.nbytes % view.itemsize == 0:
            return RebuildMemory.view_steps, (
                owner,
                (first, step, len(view), view.format, view.readonly),
            )
    return pickler.refuse(
        view, "a memoryview of this layout cannot be saved; keep a numpy array instead"
    )


# --------------------------------------------------------------------------- arrays and maps


def reduce_std_array(pickler: SnapshotPickler, values: Any) -> Any:
    """Reduce an ``array.array``; a large one is written apart and not copied."""
    nbytes = values.itemsize * len(values)
    if nbytes <= IN_BAND_BYTES or values.typecode in "uw":
        return NotImplemented
    address = values.buffer_info()[0]
    pickler.context.array_ranges[id(values)] = (address, nbytes, values)
    spec = {"kind": "array", "typecode": values.typecode, "nbytes": nbytes}
    index = pickler.buffer(values, nbytes, spec, address)
    return RebuildMemory.std_array, (index,)


class _Mapping(NamedTuple):
    """One line of /proc/self/maps."""

    start: int
    end: int
    shared: bool
    path: str


def reduce_mmap(pickler: SnapshotPickler, mapped: mmap.mmap) -> Any:
    """Reduce a memory map: of a file by the file, else by value."""
    if mapped.closed:
        pickler.refuse(mapped, "a closed memory map refers to nothing; delete it")
    address, nbytes = address_of(mapped), len(mapped)
    place = _mapping_at(address)
    if place is None:
        pickler.refuse(
            mapped, "what it maps cannot be found out on this system; map the file again"
        )
    found = re.search(r"access=(\w+).*offset=(\d+)", repr(mapped))
    access = found[1] if found else "ACCESS_DEFAULT"
    if place.shared and place.path and not _passing(place.path):
        if access != "ACCESS_READ":
            mapped.flush()
        status = os.stat(place.path)
        offset = int(found[2]) if found else 0
        known = (status.st_size, status.st_mtime_ns)
        part = (nbytes, offset, mapped.tell())
        return RebuildMemory.file_map, (place.path, known, access, part)
    if place.path and not place.path.startswith("/dev/zero"):
        pickler.note(f"its memory was mapped from {place.path}; it comes back as plain memory")
    pickler.context.array_ranges[id(mapped)] = (address, nbytes, mapped)
    if nbytes <= IN_BAND_BYTES:
        return RebuildMemory.small_map, (mapped[:], mapped.tell())
    if place.shared:
        # Whoever else has it mapped, and a forked process is one of them, may write to it.
        data = pickler.context.keep(bytearray(raw_memory(address, nbytes)))
        spec = {"kind": "mmap", "nbytes": nbytes}
        index = pickler.buffer_from(mapped, nbytes, spec, lambda: memoryview(data))
    else:
        index = pickler.buffer(mapped, nbytes, {"kind": "mmap", "nbytes": nbytes}, address)
    return RebuildMemory.map, (index, mapped.tell())


def _passing(path: str) -> bool:
    return path.endswith(" (deleted)") or path.startswith(_PASSING_FILES)


def _mapping_at(address: int) -> _Mapping | None:
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                place, permissions, _, _, _, *path = line.rstrip("\n").split(maxsplit=5)
                start, end = (int(number, 16) for number in place.split("-"))
                if start <= address < end:
                    return _Mapping(start, end, permissions[3] == "s", path[0] if path else "")
    except OSError:
        return None
    return None


# --------------------------------------------------------------------------- pyarrow


def reduce_arrow_buffer(pickler: SnapshotPickler, buffer: Any) -> Any:
    """Reduce a pyarrow buffer; wrappers of the same memory are written as one."""
    if not buffer.is_cpu:
        pickler.refuse(buffer, "its memory is on a device, which pyarrow does not save")
    nbytes, address = int(buffer.size), int(buffer.address)
    known = vars(pickler.context).setdefault("arrow_buffers", {})
    first = known.setdefault((address, nbytes), pickler.context.keep(buffer))
    if first is not buffer:
        return RebuildMemory.same, (first,)
    if nbytes <= IN_BAND_BYTES:
        return RebuildMemory.small_arrow_buffer, (buffer.to_pybytes(),)
    index = pickler.buffer(buffer, nbytes, {"kind": "arrow", "nbytes": nbytes}, address)
    return RebuildMemory.arrow_buffer, (index,)


# --------------------------------------------------------------------------- the other side


def allocate_memory(spec: Mapping[str, Any]) -> tuple[Any, memoryview]:
    """Return new memory of one of `KINDS` and the view that is to be filled."""
    nbytes = spec["nbytes"]
    if spec["kind"] == "arrow":
        pa = importlib.import_module("pyarrow")

        buffer = pa.allocate_buffer(nbytes)
        return buffer, raw_memory(buffer.address, nbytes)
    owner: Any
    if spec["kind"] == "mmap":
        owner = mmap.mmap(-1, nbytes)
    else:
        one = array.array(spec["typecode"], [0])
        if nbytes % one.itemsize:
            raise SnapshotError(
                f"an array of type {spec['typecode']!r} has items of another size on this machine; "
                "restore it on a machine like the one it was saved on"
            )
        owner = one * (nbytes // one.itemsize)
    # Not a view that Python counts: it would keep the owner from being resized.
    return owner, raw_memory(address_of(owner), nbytes)


class RebuildMemory:
    """What a stream calls to make memory of the standard library again; part of `Rebuild`."""

    buffers: dict[int, Any]

    def whole_view(self, owner: Any, readonly: bool) -> memoryview:
        """Return a view of all of `owner`."""
        return _locked(memoryview(owner), readonly)

    def view_part(self, owner: Any, part: tuple[Any, ...]) -> memoryview:
        """Return a view of some bytes of `owner`, read as items of a format."""
        start, nbytes, code, shape, readonly = part
        view = memoryview(owner).cast("B")[start : start + nbytes]
        if code != "B" or len(shape) != 1:
            view = view.cast(code, list(shape)) if shape else view.cast(code, [])
        return _locked(view, readonly)

    def view_steps(self, owner: Any, steps: tuple[Any, ...]) -> memoryview:
        """Return a view of every n-th item of `owner`."""
        first, step, count, code, readonly = steps
        view = memoryview(owner).cast("B").cast(code)
        stop = first + step * count
        return _locked(view[first : stop if stop >= 0 else None : step], readonly)

    def std_array(self, index: int) -> Any:
        """Return the ``array.array`` that was allocated for buffer `index`."""
        return self.buffers[index]

    def map(self, index: int, position: int) -> mmap.mmap:
        """Return the memory map that was allocated for buffer `index`."""
        mapped: mmap.mmap = self.buffers[index]
        mapped.seek(position)
        return mapped

    def small_map(self, data: bytes, position: int) -> mmap.mmap:
        """Return a new memory map that holds `data`."""
        mapped = mmap.mmap(-1, len(data))
        mapped[:] = data
        mapped.seek(position)
        return mapped

    def file_map(
        self, path: str, known: tuple[int, int], access: str, part: tuple[int, int, int]
    ) -> mmap.mmap:
        """Map a file again that is as it was."""
        try:
            status = os.stat(path)
        except OSError as error:
            raise SnapshotError(
                f"the file {path} that it maps cannot be opened ({error.strerror}); "
                "bring the file back and restore again"
            ) from error
        if (status.st_size, status.st_mtime_ns) != known:
            raise SnapshotError(
                f"the file {path} that it maps has changed since; map it again to use it as it is"
            )
        nbytes, offset, position = part
        mode = os.O_RDONLY if access in ("ACCESS_READ", "ACCESS_COPY") else os.O_RDWR
        descriptor = os.open(path, mode)
        try:
            kind = mmap.ACCESS_READ if access == "ACCESS_READ" else mmap.ACCESS_WRITE
            mapped = mmap.mmap(descriptor, nbytes, access=kind, offset=offset)
        finally:
            os.close(descriptor)
        mapped.seek(position)
        return mapped

    def arrow_buffer(self, index: int) -> Any:
        """Return the pyarrow buffer that was allocated for buffer `index`."""
        return self.buffers[index]

    def small_arrow_buffer(self, data: bytes) -> Any:
        """Return a pyarrow buffer over `data`."""
        pa = importlib.import_module("pyarrow")

        return pa.py_buffer(data)

    def same(self, obj: Any) -> Any:
        """Return what it is given: several objects were one."""
        return obj


def _locked(view: memoryview, readonly: bool) -> memoryview:
    return view.toreadonly() if readonly and not view.readonly else view
