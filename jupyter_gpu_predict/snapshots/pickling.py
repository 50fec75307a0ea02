"""The pickler: C speed for what it knows, reducers for what it does not, a reason for the rest."""

from __future__ import annotations

import builtins
import copyreg
import importlib.util
import pickle
import sys
import types
import weakref
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

from ..errors import SnapshotError
from .buffers import IN_BAND_BYTES, BufferTable, Source, loaded, raw_memory
from .definitions import reduce_class
from .identity import has_identity, is_constant_kind
from .plain import HOOKS, MAKE, Attributes, attributes_of, is_plain
from .rebuild import Rebuild
from .reducers import Handler, find_handler
from .streams import Stream

PROTOCOL = 5


class CannotSave(SnapshotError):  # noqa: N818
    """One object inside a variable has no saved form; `culprit` is that object."""

    def __init__(self, culprit: Any, reason: str) -> None:
        super().__init__(reason)
        self.culprit = culprit


class SharedObject(BaseException):
    """An object that another stream has too; raised through the pickler, so not an `Exception`."""


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
        self.kinds: dict[type, tuple[Handler | None, bool]] = {}
        self.plain: dict[type, tuple[tuple[type], Attributes | None]] = {}
        self.elsewhere: Callable[[], Iterator[Container[int]]] | None = None
        self.head: tuple[bytes, dict[int, Any]] | None = None
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


class _BuiltinsMark:
    """Written in place of the dictionary of the builtins, which ``exec`` puts into a namespace."""

    def __reduce__(self) -> Any:
        return Rebuild.get_builtins, ()


class SnapshotPickler(pickle.Pickler):
    """Writes one stream; objects that several ``dump`` calls meet are written once.

    Parameters
    ----------
    careful
        Ask each object for its reduced form here rather than in C: slower, but a failure is known
        by its object and dill gets its chance.
    inline
        Numbers of the session's classes that are written in this stream; others are referred to.

    Attributes
    ----------
    met
        Every instance that came by and may be known elsewhere too.
    out_of_band
        Numbers of the buffers that objects exported (PEP 574), in their order in the stream.

    Raises
    ------
    CannotSave
        From ``dump``, naming the object and the reason.
    """

    def __init__(
        self,
        file: Stream,
        context: Context,
        *,
        careful: bool = False,
        inline: frozenset[int] = frozenset(),
    ) -> None:
        used, out_of_band = set[int](), list[int]()
        export = partial(_export, context.buffers, used, out_of_band)
        super().__init__(file, protocol=PROTOCOL, buffer_callback=export)
        self.context = context
        self.careful = careful
        self.inline = inline
        self.used_buffers = used
        self.used_storages: set[int] = set()
        self.used_classes: set[int] = set()
        self.out_of_band = out_of_band
        self.met: list[Any] = []
        self.notes: list[str] = []
        self.elsewhere: Container[int] = frozenset()
        self._others = context.elsewhere() if context.elsewhere is not None else iter(())
        self._seed(file)
        if not careful and context.elsewhere is None:
            self.reducer_override = _quick(self)  # type: ignore[assignment,method-assign]

    def _seed(self, file: Stream) -> None:
        # Exact dictionaries never reach `reducer_override`. So that the namespace itself and the
        # builtins are referred to and not copied, they take the place of marks in the memo.
        head = self.context.head
        if head is None:
            marks = (_NamespaceMark(), _BuiltinsMark())
            self.dump(marks)
            memo = self.memo.copy()
            for mark, meant in zip(marks, (self.context.namespace, vars(builtins)), strict=True):
                index, _ = memo.pop(id(mark))
                memo[id(meant)] = (index, meant)
            head = self.context.head = (file.getvalue(), memo)
        else:
            file.write(head[0])
        self.memo = head[1]

    def reducer_override(self, obj: Any) -> Any:
        """Return the reduced form of `obj`, or leave it to the C pickler."""
        kinds = self.context.kinds
        try:
            handler, constant = kinds[type(obj)]
        except KeyError:
            handler, constant = kinds[type(obj)] = _look_up(type(obj))
            if kinds[type(obj)] is _PLAIN and is_plain(type(obj)):
                self.context.plain[type(obj)] = (type(obj),), attributes_of(type(obj))
        if not constant:
            self.elsewhere = next(self._others, self.elsewhere)
            if id(obj) in self.elsewhere and has_identity(self.context, obj):
                raise SharedObject(id(obj))
            self.met.append(obj)
        if handler is not None:
            value = handler(self, obj)
            if value is not NotImplemented:
                return value
        elif constant and isinstance(obj, type):
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
        reason = sentence(error)
        if dill is None:
            raise CannotSave(obj, reason) from error
        try:
            return Rebuild.undill, (dill.dumps(obj, protocol=PROTOCOL),)
        except Exception as second:
            raise CannotSave(obj, reason) from second

    def keep_to_itself(self) -> None:
        """Take no object for another stream's any more."""
        self.elsewhere, self._others = frozenset(), iter(())

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
        device = getattr(getattr(owner, "device", None), "type", "cpu") != "cpu"
        index = self.context.buffers.add(Source(owner, nbytes, spec, read, device))
        self.used_buffers.add(index)
        return index

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Write inside the block without remembering anything of it."""
        lists: tuple[list[Any], ...] = (self.out_of_band, self.met, self.notes)
        lengths = [len(one) for one in lists]
        # Whose objects these are is what is asked; none is refused for being another's.
        self.keep_to_itself()
        sets: tuple[set[int], ...] = (self.used_buffers, self.used_storages, self.used_classes)
        former = [set(one) for one in sets]
        self.fast = True
        try:
            yield
        finally:
            self.fast = False
            for one, length in zip(lists, lengths, strict=True):
                del one[length:]
            for used, content in zip(sets, former, strict=True):
                used.intersection_update(content)


def _look_up(kind: type) -> tuple[Handler | None, bool]:
    found = find_handler(kind), is_constant_kind(kind)
    return _PLAIN if found == _PLAIN else found


_PLAIN: tuple[Handler | None, bool] = (None, False)


def _quick(pickler: SnapshotPickler) -> Callable[[Any], Any]:
    """Return a `reducer_override` for plain instances, which leaves all others to the pickler's.

    It runs once for every instance, where each step is a tenth of what pickling it takes. What
    ``object.__reduce_ex__`` would return of most it returns itself, in a third of the time.
    """
    known, plain, make = pickler.context.kinds.get, pickler.context.plain.get, MAKE
    meet = pickler.met.append
    # A strong reference would make a circle that keeps what was met until the next collection.
    otherwise = weakref.WeakMethod(pickler.reducer_override)

    def reduce(obj: Any) -> Any:
        kind = type(obj)
        found = plain(kind)
        if found is not None:
            state = obj.__dict__
            if HOOKS.isdisjoint(state):
                meet(obj)
                return make, found[0], state or None, None, None, found[1]
        if known(kind) is _PLAIN:
            meet(obj)
            return NotImplemented
        method: Any = otherwise()
        return method(obj)

    return reduce


def _export(
    buffers: BufferTable, used: set[int], out_of_band: list[int], exported: pickle.PickleBuffer
) -> bool:
    """Take memory that an object exports; a true answer leaves it in the stream."""
    try:
        if memoryview(exported).nbytes <= IN_BAND_BYTES:
            return True
        index = buffers.add_exported(exported)
    except BufferError:
        return True  # gapped memory, which only its own reduction can copy
    used.add(index)
    out_of_band.append(index)
    return False


def sentence(error: BaseException) -> str:
    """Return type and message of an error, also of one whose message cannot be had."""
    try:
        text = str(error).strip() or "no message"
    except Exception:
        text = "no message"
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
