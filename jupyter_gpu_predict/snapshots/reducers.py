"""Reduced forms for what the C pickler refuses or would save wrongly, chosen by type."""

from __future__ import annotations

import array
import contextvars
import functools
import io
import mmap
import re
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .arrays import (
    reduce_array,
    reduce_array_subclass,
    reduce_masked_array,
    reduce_pandas_block,
    reduces_plainly,
)
from .buffers import loaded
from .definitions import importable, reduce_cell, reduce_function
from .plain import Attributes
from .rebuild import Rebuild
from .register import find_registered
from .tensors import reduce_optimizer, reduce_storage, reduce_tensor, reduce_typed_storage
from .types_memory import (
    reduce_arrow_buffer,
    reduce_memoryview,
    reduce_mmap,
    reduce_std_array,
)
from .types_modules import find_module_handler
from .types_objects import (
    found_by_import,
    guards_attributes,
    reduce_context_variable,
    reduce_exception,
    reduce_file_handler,
    reduce_guarded,
    reduce_made_module,
    reduce_match,
    reduce_proxy,
    reduce_super,
    reduce_thread_local,
    reduce_weak_method,
)
from .types_trees import is_tree, reduce_tree
from .types_widgets import is_traits, reduce_traits

if TYPE_CHECKING:
    from .pickling import SnapshotPickler

Handler = Callable[["SnapshotPickler", Any], Any]


def find_handler(kind: type) -> Handler | None:
    """Return what reduces instances of `kind`, or ``None`` to leave them to the C pickler."""
    if (handler := find_registered(kind) or _EXACT.get(kind)) is not None:
        return handler
    if (reason := _refusal(kind)) is not None:
        return functools.partial(_refuse, reason)
    if (numpy := loaded("numpy")) is not None and issubclass(kind, numpy.ndarray):
        if kind is numpy.ndarray:
            return reduce_array
        if (masked := loaded("numpy.ma")) is not None and kind is masked.MaskedArray:
            return reduce_masked_array
        return reduce_array_subclass if reduces_plainly(numpy, kind) else None
    if numpy is not None and kind in (numpy.finfo, numpy.iinfo):
        return lambda pickler, limits: (type(limits), (limits.dtype,))
    if (arrow := loaded("pyarrow")) is not None and issubclass(kind, arrow.Buffer):
        return reduce_arrow_buffer
    module = kind.__module__ if isinstance(kind.__module__, str) else ""
    if module.startswith(_PANDAS_INTERNALS) and kind.__name__.endswith("Block"):
        return reduce_pandas_block
    if (torch := loaded("torch")) is not None:
        if issubclass(kind, torch.Tensor):
            return reduce_tensor
        if issubclass(kind, torch.optim.Optimizer):
            return reduce_optimizer
        if kind is torch.UntypedStorage:
            return reduce_storage
        if kind is torch.storage.TypedStorage:
            return reduce_typed_storage
        if (handler := find_module_handler(torch, kind)) is not None:
            return handler
    if (shells := loaded("IPython.core.interactiveshell")) is not None and issubclass(
        kind, shells.InteractiveShell
    ):
        return lambda pickler, obj: (Rebuild.shell, ())
    if _inherits(kind, "io", "TextIOBase") or kind.__name__ == "OutStream":
        return _reduce_stream
    if module == "dataclasses":
        return _reduce_sentinel
    if _inherits(kind, "logging", "FileHandler"):
        return reduce_file_handler
    if issubclass(kind, BaseException):
        return reduce_exception
    if is_tree(kind):
        return reduce_tree
    if is_traits(kind):
        return reduce_traits
    if guards_attributes(kind):
        return reduce_guarded
    return None


def _refuse(reason: str, pickler: SnapshotPickler, obj: Any) -> Any:
    pickler.refuse(obj, reason)


_REFUSED = (
    ("types", "GeneratorType", "a generator's place in its code cannot be saved"),
    ("types", "CoroutineType", "a coroutine's place in its code cannot be saved"),
    ("types", "AsyncGeneratorType", "a generator's place in its code cannot be saved"),
    ("types", "FrameType", "a frame of running code cannot be saved"),
    ("types", "TracebackType", "a traceback holds frames of running code"),
    ("threading", "Thread", "a thread lives in its process"),
    ("_thread", "lock", "a lock that is held cannot be saved; release it"),
    ("socket", "socket", "an open socket lives in its process; connect again"),
    ("ssl", "SSLContext", "an SSL context cannot be saved; create it again"),
    ("subprocess", "Popen", "a child process belongs to the process that started it"),
    ("multiprocessing.process", "BaseProcess", "a child process belongs to its parent"),
    ("multiprocessing.pool", "Pool", "its worker processes belong to this process"),
    ("concurrent.futures", "Executor", "its workers belong to this process; create it again"),
    ("concurrent.futures", "Future", "its result is still to come from a worker of this process"),
    ("asyncio", "Future", "it belongs to the event loop of this process"),
    ("asyncio", "AbstractEventLoop", "the event loop belongs to this process"),
    ("sqlite3", "Connection", "a database connection lives in its process; connect again"),
    ("sqlite3", "Cursor", "a database connection lives in its process; connect again"),
    ("tempfile", "TemporaryDirectory", "the directory is removed with the process that made it"),
    ("tempfile", "_TemporaryFileWrapper", "the file is removed with the process that made it"),
    ("io", "IOBase", "an open file belongs to its process; open it again"),
    ("contextvars", "Token", "a context variable's values belong to running code"),
    ("weakref", "finalize", "a finalizer belongs to the process that registered it"),
    ("comm.base_comm", "BaseComm", "an open comm belongs to its kernel"),
    ("zmq", "Socket", "an open socket lives in its process; connect again"),
)
_PANDAS_INTERNALS = ("pandas._libs.internals", "pandas.core.internals")
_MEMORY_FILES = (io.BytesIO, io.StringIO)


def _refusal(kind: type) -> str | None:
    if issubclass(kind, _MEMORY_FILES) or _inherits(kind, "io", "TextIOBase"):
        return None
    for module, name, reason in _REFUSED:
        if name != "lock" and _inherits(kind, module, name):
            return reason
    return None


def _inherits(kind: type, module: str, name: str) -> bool:
    base = getattr(loaded(module), name, None)
    return isinstance(base, type) and issubclass(kind, base)


# --------------------------------------------------------------------------- standard library


def _reduce_module(pickler: SnapshotPickler, module: types.ModuleType) -> Any:
    name = module.__name__
    if name in pickler.context.main_names:
        return Rebuild.main_module, ()
    for known, candidate in ((name, sys.modules.get(name)), *sys.modules.items()):
        if candidate is module and found_by_import(module):
            return Rebuild.module, (known,)
    return reduce_made_module(pickler, module)


def _reduce_lock(pickler: SnapshotPickler, lock: Any) -> Any:
    if lock.locked():
        pickler.refuse(lock, "a lock that is held cannot be saved; release it")
    return threading.Lock, ()


def _reduce_rlock(pickler: SnapshotPickler, lock: Any) -> Any:
    if "owner=0" not in repr(lock):
        pickler.refuse(lock, "a lock that is held cannot be saved; release it")
    return threading.RLock, ()


def _reduce_code(pickler: SnapshotPickler, code: types.CodeType) -> Any:
    import marshal

    return Rebuild.code, (marshal.dumps(code),)


def _reduce_mapping_proxy(pickler: SnapshotPickler, proxy: Any) -> Any:
    return types.MappingProxyType, (proxy | {},)


def _reduce_property(pickler: SnapshotPickler, prop: Any) -> Any:
    return type(prop), (prop.fget, prop.fset, prop.fdel, prop.__doc__)


def _reduce_wrapper(pickler: SnapshotPickler, wrapper: Any) -> Any:
    return type(wrapper), (wrapper.__func__,)


def _reduce_method(pickler: SnapshotPickler, method: Any) -> Any:
    owner, function = method.__self__, method.__func__
    name = getattr(function, "__name__", "")
    # Looked up on the class, so that no descriptor of the user runs; what hides the method in the
    # instance, or is no attribute of the class at all, is bound again by hand.
    classes = owner.__mro__ if isinstance(owner, type) else type(owner).__mro__
    found = next((vars(c)[name] for c in classes if name in vars(c)), None)
    hidden = not isinstance(owner, type) and name in getattr(owner, "__dict__", ())
    if not hidden and getattr(found, "__func__", found) is function:
        return getattr, (owner, name)
    return types.MethodType, (function, owner)


def _reduce_weakref(pickler: SnapshotPickler, ref: Any) -> Any:
    target = ref()
    return (Rebuild.dead_reference, ()) if target is None else (weakref.ref, (target,))


def _reduce_weak_mapping(pickler: SnapshotPickler, mapping: Any) -> Any:
    return type(mapping), (), None, None, iter(list(mapping.items()))


def _reduce_weak_set(pickler: SnapshotPickler, weak: Any) -> Any:
    return type(weak), (list(weak),)


def _reduce_lru_cache(pickler: SnapshotPickler, wrapper: Any) -> Any:
    if importable(wrapper, pickler.context.main_names):
        return NotImplemented
    parameters = wrapper.cache_parameters()
    state = {k: v for k, v in vars(wrapper).items() if k not in ("__wrapped__", "cache_parameters")}
    arguments = (wrapper.__wrapped__, parameters["maxsize"], parameters["typed"])
    return Rebuild.lru_cache, arguments, state


def _reduce_type_variable(pickler: SnapshotPickler, variable: Any) -> Any:
    if importable_variable(pickler, variable):
        return NotImplemented
    kind, name = type(variable), variable.__name__
    if kind is typing.NewType:
        return typing.NewType, (name, variable.__supertype__)
    keywords = {"bound": variable.__bound__} if getattr(variable, "__bound__", None) else {}
    for key in ("covariant", "contravariant"):
        if getattr(variable, f"__{key}__", False):
            keywords[key] = True
    constraints = getattr(variable, "__constraints__", ())
    return Rebuild.type_variable, (kind, (name, *constraints), keywords)


def importable_variable(pickler: SnapshotPickler, variable: Any) -> bool:
    """Tell whether a type variable is found by name in an imported module."""
    module = getattr(variable, "__module__", None)
    if module in pickler.context.main_names:
        return False
    return getattr(sys.modules.get(module or ""), variable.__name__, None) is variable


def _reduce_sentinel(pickler: SnapshotPickler, obj: Any) -> Any:
    found = pickler.context.sentinel(obj)
    return NotImplemented if found is None else (Rebuild.attribute, found)


_STREAM_NAMES = ("stdout", "stderr", "stdin", "__stdout__", "__stderr__", "__stdin__")


def _reduce_stream(pickler: SnapshotPickler, stream: Any) -> Any:
    for name in _STREAM_NAMES:
        if getattr(sys, name, None) is stream:
            return Rebuild.standard_stream, (name,)
    if isinstance(stream, _MEMORY_FILES):
        return NotImplemented
    return pickler.refuse(stream, "an open file belongs to its process; open it again")


_EXACT: dict[type, Handler] = {
    types.FunctionType: reduce_function,
    types.CellType: reduce_cell,
    types.ModuleType: _reduce_module,
    types.CodeType: _reduce_code,
    types.MappingProxyType: _reduce_mapping_proxy,
    types.MethodType: _reduce_method,
    type(threading.Lock()): _reduce_lock,
    type(threading.RLock()): _reduce_rlock,
    memoryview: reduce_memoryview,
    array.array: reduce_std_array,
    mmap.mmap: reduce_mmap,
    property: _reduce_property,
    staticmethod: _reduce_wrapper,
    classmethod: _reduce_wrapper,
    weakref.ref: _reduce_weakref,
    weakref.ProxyType: reduce_proxy,
    weakref.CallableProxyType: reduce_proxy,
    weakref.WeakMethod: reduce_weak_method,
    super: reduce_super,
    re.Match: reduce_match,
    contextvars.ContextVar: reduce_context_variable,
    threading.local: reduce_thread_local,
    weakref.WeakKeyDictionary: _reduce_weak_mapping,
    weakref.WeakValueDictionary: _reduce_weak_mapping,
    weakref.WeakSet: _reduce_weak_set,
    type(functools.lru_cache(maxsize=1)(len)): _reduce_lru_cache,
    object: _reduce_sentinel,
    Attributes: lambda pickler, setter: (Rebuild.attributes, (setter.kind,)),
    **{
        getattr(typing, name): _reduce_type_variable
        for name in ("TypeVar", "ParamSpec", "TypeVarTuple", "NewType")
        if hasattr(typing, name)
    },
}
