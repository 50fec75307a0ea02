"""The pickler: C speed for what it knows, reducers for what it does not, a reason for the rest."""

from __future__ import annotations

import copyreg
import importlib.util
import io
import pickle
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from ..errors import SnapshotError
from .buffers import BufferTable, loaded, raw_memory
from .definitions import reduce_class
from .rebuild import Rebuild
from .reducers import Handler, find_handler

PROTOCOL = 5


class CannotSave(SnapshotError):  # noqa: N818
    """One object inside a variable has no saved form; `culprit` is that object."""

    def __init__(self, culprit: Any, reason: str) -> None:
        super().__init__(reason)
        self.culprit = culprit


class Context:
    """What all streams of one capture share: the namespace, its classes and the memory table.

    Parameters
    ----------
    namespace
        The dictionary that functions of the session have as their globals.
    """

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace = namespace
        own_name = namespace.get("__name__")
        names = {"__main__", own_name} if isinstance(own_name, str) else {"__main__"}
        self.main_names: frozenset[str] = frozenset(names)
        self.buffers = BufferTable()
        self.classes: list[type] = []
        self.bad_classes: dict[int, str] = {}
        self.aliases: dict[int, tuple[Any, int]] = {}
        self.array_ranges: dict[int, tuple[int, int, Any]] = {}
        self.storage_ranges: dict[int, tuple[int, int, Any]] = {}
        self.handlers: dict[type, Handler | None] = {}
        self._class_indices: dict[int, int] = {}
        self._storages: dict[int, Any] = {}
        self._kept: list[Any] = []
        self._detached: dict[int, Any] = {}
        self._detached_ids: set[int] = set()
        self._sentinels: dict[int, tuple[str, str]] | None = None

    def class_index(self, cls: type) -> int:
        """Return the number of a class of the session, giving it one if it has none."""
        index = self._class_indices.get(id(cls))
        if index is None:
            index = self._class_indices[id(cls)] = len(self.classes)
            self.classes.append(cls)
        return index

    def classes_named(self, path: str, module: str | None) -> list[type]:
        """Return the session's classes that a qualified name may mean."""
        found: Any = None
        if module in self.main_names:
            first, *rest = path.split(".")
            found = self.namespace.get(first)
            for part in rest:
                found = getattr(found, part, None)
        known = [c for c in self.classes if c.__qualname__ == path and c.__module__ == module]
        if isinstance(found, type) and found not in known and found.__module__ in self.main_names:
            known.append(found)
        return known

    def keep(self, obj: Any) -> Any:
        """Keep a temporary alive, so that its ``id`` stays its own, and return it."""
        self._kept.append(obj)
        return obj

    def canonical_storage(self, storage: Any) -> Any:
        """Return one Python object for each torch storage, whichever tensor it came from."""
        return self._storages.setdefault(storage._cdata, storage)

    def detached(self, values: Any) -> Any:
        """Return `values` in memory that nothing else in the snapshot refers to."""
        found = self._detached.get(id(values))
        if found is None:
            numpy = loaded("numpy")
            if numpy is not None and type(values) is numpy.ndarray:
                # A view object of its own is enough: it is written as if it owned its memory.
                found = values.view()
                self._detached_ids.add(id(found))
            else:
                found = values.copy() if hasattr(values, "copy") else values
            self._detached[id(values)] = self.keep(found)
            self.keep(values)
        return found

    def is_detached(self, array: Any) -> bool:
        """Tell whether `array` is to be written as if it owned its memory."""
        return id(array) in self._detached_ids

    def sentinel(self, obj: Any) -> tuple[str, str] | None:
        """Return module and name of a marker such as ``dataclasses.MISSING``."""
        if self._sentinels is None:
            self._sentinels = _find_sentinels(self.main_names)
        return self._sentinels.get(id(obj))

    def find_aliases(self) -> set[int]:
        """Find torch storages over memory that a numpy array owns; return the newly found."""
        found = set()
        arrays = sorted(self.array_ranges.values(), key=lambda entry: entry[:2])
        for key, (address, nbytes, storage) in self.storage_ranges.items():
            if key in self.aliases or nbytes == 0 or storage.resizable():
                continue
            for start, length, root in arrays:
                if start <= address and address + nbytes <= start + length:
                    self.aliases[key] = (root, address - start)
                    found.add(key)
                    break
        return found


class _NamespaceMark:
    """Written in place of the namespace's dictionary at the head of every stream."""

    def __reduce__(self) -> Any:
        return Rebuild.get_namespace, ()


class SnapshotPickler(pickle.Pickler):
    """Writes one stream; objects that several ``dump`` calls meet are written once.

    Parameters
    ----------
    careful
        Ask each object for its reduced form here rather than in C: slower, but a failure is known
        by its object and dill gets its chance.
    inline
        Numbers of the session's classes that are written in this stream; others are referred to.

    Raises
    ------
    CannotSave
        From ``dump``, naming the object and the reason.
    """

    def __init__(
        self,
        file: io.BytesIO,
        context: Context,
        *,
        careful: bool = False,
        inline: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__(file, protocol=PROTOCOL)
        self.context = context
        self.careful = careful
        self.inline = inline
        self.used_buffers: set[int] = set()
        self.used_storages: set[int] = set()
        self.used_classes: set[int] = set()
        self.notes: list[str] = []
        self._seed()

    def _seed(self) -> None:
        # Exact dictionaries never reach `reducer_override`. So that the namespace itself is
        # referred to and not copied, it takes the place of a mark in the memo.
        mark = _NamespaceMark()
        self.dump(mark)
        memo = self.memo.copy()
        index, _ = memo.pop(id(mark))
        memo[id(self.context.namespace)] = (index, self.context.namespace)
        self.memo = memo

    def reducer_override(self, obj: Any) -> Any:
        """Return the reduced form of `obj`, or leave it to the C pickler."""
        kind = type(obj)
        handlers = self.context.handlers
        try:
            handler = handlers[kind]
        except KeyError:
            handler = handlers[kind] = find_handler(kind)
        if handler is not None:
            value = handler(self, obj)
            if value is not NotImplemented:
                return value
        elif isinstance(obj, type):
            return reduce_class(self, obj)
        if self.careful and not isinstance(obj, (type, types.FunctionType)):
            return self._reduce_carefully(obj)
        return NotImplemented

    def _reduce_carefully(self, obj: Any) -> Any:
        try:
            reduce = copyreg.dispatch_table.get(type(obj))
            return reduce(obj) if reduce is not None else obj.__reduce_ex__(PROTOCOL)
        except RecursionError:
            raise
        except Exception as error:
            return self._reduce_with_dill(obj, error)

    def _reduce_with_dill(self, obj: Any, error: Exception) -> Any:
        dill = _find_dill()
        reason = _sentence(error)
        if dill is None:
            raise CannotSave(obj, reason) from error
        try:
            return Rebuild.undill, (dill.dumps(obj, protocol=PROTOCOL),)
        except Exception as second:
            raise CannotSave(obj, reason) from second

    def refuse(self, obj: Any, reason: str) -> NoReturn:
        """End this stream because of `obj`."""
        raise CannotSave(obj, reason)

    def note(self, text: str) -> None:
        """Add a remark to the report of the variable being written."""
        if text not in self.notes:
            self.notes.append(text)

    def buffer(self, owner: Any, nbytes: int, spec: Mapping[str, Any], address: int) -> int:
        """Enter host memory into the table and return its number."""
        return self.buffer_from(owner, nbytes, spec, lambda: raw_memory(address, nbytes))

    def buffer_from(
        self, owner: Any, nbytes: int, spec: Mapping[str, Any], read: Callable[[], memoryview]
    ) -> int:
        """Enter memory into the table that `read` returns when it is to be written."""
        index = self.context.buffers.add(owner, nbytes, spec, read)
        self.used_buffers.add(index)
        return index


def _sentence(error: BaseException) -> str:
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text[:300]}"


def _find_dill() -> Any:
    dill = loaded("dill")
    if dill is None and importlib.util.find_spec("dill") is not None:
        dill = importlib.import_module("dill")
        # On import dill changes the pickler of the whole process; the user did not ask for that.
        dill.extend(False)
    return dill


def _find_sentinels(main_names: frozenset[str]) -> dict[int, tuple[str, str]]:
    import dataclasses

    kinds = {object, *(type(v) for k, v in vars(dataclasses).items() if k in _DATACLASS_MARKS)}
    found = {}
    for name, module in list(sys.modules.items()):
        if name in main_names or not isinstance(module, types.ModuleType):
            continue
        for key, value in list(vars(module).items()):
            if type(value) in kinds and id(value) not in found:
                found[id(value)] = (name, key)
    return found


_DATACLASS_MARKS = frozenset(
    {"MISSING", "KW_ONLY", "_FIELD", "_FIELD_CLASSVAR", "_FIELD_INITVAR", "_HAS_DEFAULT_FACTORY"}
)
