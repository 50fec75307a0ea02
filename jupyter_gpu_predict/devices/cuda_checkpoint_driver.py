"""The driver's checkpoint calls, through ``cuda.core`` or straight from ``libcuda``.

``cuda.core.checkpoint`` is used where it is installed (the extra ``checkpoint``). The driver's own
library is the other way: it is on every machine that has a GPU, its six calls are part of its
stable binary interface, and so kernels can be checkpointed where nothing was installed for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Protocol

from .cuda_checkpoint_steps import DRIVER_STATES, ProcessState

OK = 0
NOT_SUPPORTED = 801
ILLEGAL_STATE = 401
UNKNOWN_ERROR = 999
MIN_CUDA = 12080
"""First CUDA of a driver that has the calls, as ``cuDriverGetVersion`` writes 12.8."""

MIN_BINDINGS = {12: (12, 8, 0), 13: (13, 0, 2)}
"""First ``cuda-bindings`` of each major version that has them right."""

_CODES = {
    "CUDA_ERROR_INVALID_VALUE": 1,
    "CUDA_ERROR_OUT_OF_MEMORY": 2,
    "CUDA_ERROR_NOT_INITIALIZED": 3,
    "CUDA_ERROR_NO_DEVICE": 100,
    "CUDA_ERROR_INVALID_DEVICE": 101,
    "CUDA_ERROR_OPERATING_SYSTEM": 304,
    "CUDA_ERROR_ILLEGAL_STATE": 401,
    "CUDA_ERROR_NOT_FOUND": 500,
    "CUDA_ERROR_NOT_READY": 600,
    "CUDA_ERROR_NOT_PERMITTED": 800,
    "CUDA_ERROR_NOT_SUPPORTED": 801,
}
_NUMBERED = re.compile(r"Unknown CUDA checkpoint process state: (\d+)")


class NoDriverError(Exception):
    """The calls cannot be made; `why` names the reason and the text says it."""

    def __init__(self, why: str, message: str) -> None:
        super().__init__(message)
        self.why = why


class DriverError(Exception):
    """The driver answered a call with the ``CUresult`` number `code`."""

    def __init__(self, code: int) -> None:
        super().__init__(f"CUDA error {code}")
        self.code = code


class Driver(Protocol):
    """The checkpoint calls; each raises `DriverError`."""

    way: str
    version: str
    """What makes the calls and in which version, for people."""

    cuda: int
    """CUDA version of the driver, as 13000."""

    def start(self) -> None:
        """Initialise CUDA in this process; a restore needs that without persistence mode."""

    def state(self, pid: int) -> ProcessState:
        """Return the state of a process."""

    def lock(self, pid: int, timeout_ms: int) -> None:
        """Keep the process from further CUDA calls once its work has come to a stop."""

    def checkpoint(self, pid: int) -> None:
        """Bring the device memory of a locked process to its host memory."""

    def restore(self, pid: int, gpu_map: Mapping[str, str] | None) -> None:
        """Bring it back, to other GPUs if a map of all of them is given."""

    def unlock(self, pid: int) -> None:
        """Let the process go on."""


class _Uuid(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_ubyte * 16),)


class _GpuPair(ctypes.Structure):
    _fields_ = (("old", _Uuid), ("new", _Uuid))


class _LockArgs(ctypes.Structure):
    _fields_ = (
        ("timeout_ms", ctypes.c_uint),
        ("reserved0", ctypes.c_uint),
        ("reserved1", ctypes.c_uint64 * 7),
    )


class _RestoreArgs(ctypes.Structure):
    _fields_ = (
        ("pairs", ctypes.POINTER(_GpuPair)),
        ("count", ctypes.c_uint),
        ("reserved", ctypes.c_ubyte * (64 - ctypes.sizeof(ctypes.c_void_p) - 4)),
    )


class LibraryDriver:
    """The calls of ``libcuda.so.1`` itself.

    Raises
    ------
    NoDriverError
        If there is no such library, or it is too old.
    """

    way = "libcuda"

    def __init__(self, name: str = "libcuda.so.1") -> None:
        try:
            self._library = ctypes.CDLL(name)
        except OSError as error:
            raise NoDriverError("no_driver", f"{name} could not be loaded: {error}.") from error
        number = ctypes.c_int(0)
        self._call("cuDriverGetVersion", ctypes.byref(number))
        self.cuda = number.value
        self.version = f"libcuda of CUDA {self.cuda // 1000}.{self.cuda % 1000 // 10}"
        if not hasattr(self._library, "cuCheckpointProcessGetState"):
            raise NoDriverError("driver_version", f"{self.version} has no checkpoint calls.")

    def start(self) -> None:
        """Call ``cuInit``."""
        self._call("cuInit", ctypes.c_uint(0))

    def state(self, pid: int) -> ProcessState:
        """Return the state of a process."""
        number = ctypes.c_int(-1)
        self._call("cuCheckpointProcessGetState", ctypes.c_int(pid), ctypes.byref(number))
        return state_of(number.value)

    def lock(self, pid: int, timeout_ms: int) -> None:
        """Lock a process."""
        args = _LockArgs(timeout_ms=timeout_ms)
        self._call("cuCheckpointProcessLock", ctypes.c_int(pid), ctypes.byref(args))

    def checkpoint(self, pid: int) -> None:
        """Checkpoint a locked process."""
        self._call("cuCheckpointProcessCheckpoint", ctypes.c_int(pid), None)

    def restore(self, pid: int, gpu_map: Mapping[str, str] | None) -> None:
        """Restore a checkpointed process."""
        if not gpu_map:
            self._call("cuCheckpointProcessRestore", ctypes.c_int(pid), None)
            return
        pairs = (_GpuPair * len(gpu_map))()
        for pair, (old, new) in zip(pairs, gpu_map.items(), strict=True):
            pair.old.bytes[:] = uuid_bytes(old)
            pair.new.bytes[:] = uuid_bytes(new)
        args = _RestoreArgs(pairs=pairs, count=len(pairs))
        self._call("cuCheckpointProcessRestore", ctypes.c_int(pid), ctypes.byref(args))

    def unlock(self, pid: int) -> None:
        """Unlock a process."""
        self._call("cuCheckpointProcessUnlock", ctypes.c_int(pid), None)

    def _call(self, name: str, *args: Any) -> None:
        function = getattr(self._library, name, None)
        code = NOT_SUPPORTED if function is None else int(function(*args))
        if code != OK:
            raise DriverError(code)


class CoreDriver:
    """The calls of ``cuda.core.checkpoint``.

    Raises
    ------
    NoDriverError
        If it is not installed, or it or the driver is too old.
    """

    way = "cuda.core"

    def __init__(self) -> None:
        try:
            core, bindings, driver = map(
                import_module, ("cuda.core", "cuda.bindings", "cuda.bindings.driver")
            )
            # An attribute and no module of that name: wheels keep one for each CUDA.
            checkpoint = core.checkpoint
        except (ImportError, AttributeError) as error:
            raise NoDriverError(
                "bindings_version",
                f"cuda.core.checkpoint could not be imported ({error}); "
                "pip install 'jupyter-gpu-predict[checkpoint]'.",
            ) from error
        found = str(bindings.__version__)
        numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:3])
        least = MIN_BINDINGS.get(numbers[0])
        if numbers[0] < min(MIN_BINDINGS) or (least is not None and numbers < least):
            raise NoDriverError(
                "bindings_version",
                f"cuda-bindings {found} has no checkpoint calls that work; "
                "pip install -U cuda-core cuda-bindings.",
            )
        self.version = f"cuda.core {core.__version__}, cuda-bindings {found}"
        self._driver, self._process = driver, checkpoint.Process
        try:
            code, self.cuda = driver.cuDriverGetVersion()
        except Exception as error:
            raise NoDriverError("no_driver", f"libcuda could not be loaded: {error}.") from error
        if int(code) != OK:
            raise NoDriverError("no_driver", f"libcuda does not tell its version: {int(code)}.")

    def start(self) -> None:
        """Call ``cuInit``."""
        (code,) = self._driver.cuInit(0)
        if int(code) != OK:
            raise DriverError(int(code))

    def state(self, pid: int) -> ProcessState:
        """Return the state of a process."""
        try:
            return ProcessState(self._call(lambda: self._process(pid).state))
        except _UnnamedStateError as error:
            return state_of(error.number)

    def lock(self, pid: int, timeout_ms: int) -> None:
        """Lock a process."""
        self._call(lambda: self._process(pid).lock(timeout_ms))

    def checkpoint(self, pid: int) -> None:
        """Checkpoint a locked process."""
        self._call(lambda: self._process(pid).checkpoint())

    def restore(self, pid: int, gpu_map: Mapping[str, str] | None) -> None:
        """Restore a checkpointed process."""
        pairs = {_bare(old): _bare(new) for old, new in (gpu_map or {}).items()} or None
        self._call(lambda: self._process(pid).restore(pairs))

    def unlock(self, pid: int) -> None:
        """Unlock a process."""
        self._call(lambda: self._process(pid).unlock())

    def _call(self, call: Callable[[], Any]) -> Any:
        """Make a call; its errors come as text that begins with the driver's name for them."""
        try:
            return call()
        except Exception as error:
            text = str(error)
            numbered = _NUMBERED.search(text)
            if numbered:
                raise _UnnamedStateError(int(numbered.group(1))) from error
            for name, code in _CODES.items():
                if text.startswith(name):
                    raise DriverError(code) from error
            if "not supported by the installed NVIDIA driver" in text:
                raise DriverError(NOT_SUPPORTED) from error
            raise DriverError(UNKNOWN_ERROR) from error


class _UnnamedStateError(Exception):
    """cuda.core has no name for a state that newer drivers have."""

    def __init__(self, number: int) -> None:
        super().__init__(str(number))
        self.number = number


def open_driver(way: str = "auto") -> Driver:
    """Return the calls by `way`: ``"cuda.core"``, ``"libcuda"``, or the first that is possible.

    Raises
    ------
    NoDriverError
        If the calls cannot be made by it.
    """
    driver: Driver | None = None
    if way != "libcuda":
        try:
            driver = CoreDriver()
        except NoDriverError:
            if way == "cuda.core":
                raise
    if driver is None:
        driver = LibraryDriver()
    if driver.cuda < MIN_CUDA:
        raise NoDriverError(
            "driver_version",
            f"The NVIDIA driver goes up to CUDA {driver.cuda // 1000}.{driver.cuda % 1000 // 10}; "
            "checkpoints need 12.8 (driver 570, better 575 or later). Update the driver.",
        )
    # Without it only a restore fails, and then the driver says so itself.
    with contextlib.suppress(DriverError):
        driver.start()
    return driver


def state_of(number: int) -> ProcessState:
    """Return the state with this ``CUprocessState`` number."""
    known = 0 <= number < len(DRIVER_STATES)
    return DRIVER_STATES[number] if known else ProcessState.UNKNOWN


def uuid_bytes(uuid: str) -> bytes:
    """Return the 16 bytes of a GPU's uuid, written as NVML does: ``GPU-8f4022ba-…``."""
    return bytes.fromhex(_bare(uuid).replace("-", ""))


def _bare(uuid: str) -> str:
    return uuid.removeprefix("GPU-")
