"""The module that is ``torch.emu`` once the accelerator is loaded: what ``torch.cuda`` is for CUDA.

Everything here is emulated; `get_device_name` says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch._utils import _get_device_index
from torch.accelerator import current_device_index as current_device
from torch.accelerator import (
    empty_cache,
    max_memory_allocated,
    max_memory_reserved,
    memory_allocated,
    memory_reserved,
    memory_stats,
    reset_accumulated_memory_stats,
    reset_peak_memory_stats,
    set_stream,
)
from torch.accelerator import set_device_index as set_device

__all__ = [
    "Event",
    "Stream",
    "current_device",
    "current_stream",
    "default_generator",
    "device",
    "device_count",
    "empty_cache",
    "get_amp_supported_dtype",
    "get_device_name",
    "get_device_properties",
    "get_per_process_memory_fraction",
    "get_rng_state",
    "get_rng_state_all",
    "init",
    "initial_seed",
    "is_available",
    "is_bf16_supported",
    "is_initialized",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "memory_snapshot",
    "memory_stats",
    "reset_accumulated_memory_stats",
    "reset_peak_memory_stats",
    "seed_all",
    "set_device",
    "set_device_lost",
    "set_per_process_memory_fraction",
    "set_rng_state",
    "set_rng_state_all",
    "set_stream",
    "storage_at",
    "stream",
    "synchronize",
]
native: Any = None
"""The compiled part; `load` puts it here."""

Device = torch.device | str | int | None


def _index(device: Device) -> int:
    return int(_get_device_index(device, optional=True))


def device_count() -> int:
    """Return how many devices this process sees."""
    return int(native.device_count())


def is_available() -> bool:
    """Return whether there is a device."""
    return device_count() > 0


def is_initialized() -> bool:
    """Return whether this process has used a device."""
    return bool(native.is_used()) and not _is_in_bad_fork()


def init() -> None:
    """Create the context on the current device, as ``torch.cuda.init`` does."""
    native.create_context(current_device())


def _lazy_call(call: Callable[[], Any], **_: Any) -> None:
    call()


def _is_in_bad_fork() -> bool:
    return bool(native.in_forked_child())


class device(contextlib.AbstractContextManager["device"]):
    """Make a device the current one for a while."""

    def __init__(self, device: Device) -> None:
        self.idx = _index(device)

    def __enter__(self) -> device:
        self._before = torch._C._accelerator_exchangeDevice(self.idx)
        return self

    def __exit__(self, *_: object) -> None:
        torch._C._accelerator_maybeExchangeDevice(self._before)


def synchronize(device: Device = None) -> None:
    """Return at once: work is done when a call returns. Fails on a lost device."""
    torch.accelerator.synchronize(_index(device))


def get_device_name(device: Device = None) -> str:
    """Return a name that says what this is."""
    return f"Emulated accelerator {_index(device)} (host memory, no GPU)"


def get_device_properties(device: Device = None) -> SimpleNamespace:
    """Return name and size."""
    index = _index(device)
    return SimpleNamespace(name=get_device_name(index), total_memory=mem_get_info(index)[1])


class Stream(torch.Stream):
    """A stream of a device; it orders nothing, because nothing runs later."""

    def __new__(cls, device: Device = None, priority: int = 0, **known: Any) -> Stream:
        """Make a stream, or wrap one given by its numbers."""
        if known:
            return super().__new__(cls, **known)  # type: ignore[no-any-return]
        return super().__new__(cls, torch.device("emu", _index(device)), priority=priority)  # type: ignore[no-any-return]


class Event:
    """An event; making one gives a ``torch.Event``, which takes no classes derived from it."""

    def __new__(cls, enable_timing: bool = False, **_: Any) -> torch.Event:  # type: ignore[misc]
        """Make an event."""
        return torch.Event("emu", enable_timing=enable_timing)


def current_stream(device: Device = None) -> torch.Stream:
    """Return the current stream of a device."""
    return torch.accelerator.current_stream(_index(device))


def stream(stream: torch.Stream | None) -> contextlib.AbstractContextManager[Any]:
    """Make a stream the current one for a while."""
    return contextlib.nullcontext() if stream is None else stream


def mem_get_info(device: Device = None) -> tuple[int, int]:
    """Return free and total bytes; what other processes hold is not free."""
    return torch.accelerator.get_memory_info(_index(device))


def memory_snapshot() -> list[dict[str, Any]]:
    """Return every segment with its blocks, shaped as by ``torch.cuda.memory_snapshot``."""
    return native.memory_snapshot()  # type: ignore[no-any-return]


def set_per_process_memory_fraction(fraction: float, device: Device = None) -> None:
    """Let this process reserve no more than a fraction of a device's capacity."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"the memory fraction {fraction} is not between 0 and 1; give one that is")
    native.set_memory_fraction(_index(device), float(fraction))


def get_per_process_memory_fraction(device: Device = None) -> float:
    """Return what `set_per_process_memory_fraction` was last told."""
    return float(native.memory_fraction(_index(device)))


def set_device_lost(device: Device = None, lost: bool = True) -> None:
    """Let a device fall off the bus, for all processes, or bring it back."""
    native.set_lost(_index(device), lost)


def storage_at(address: int, nbytes: int, device: Device = None) -> torch.UntypedStorage:
    """Return a device storage over host memory that the caller keeps alive.

    Swapping it with a device tensor's storage (`_swap_data_ptr_`) moves the tensor to that memory.
    """
    return torch._C._construct_storage_from_data_pointer(  # type: ignore[no-any-return]
        address, torch.device("emu", _index(device)), nbytes
    )


def default_generator(device: Device = None) -> torch.Generator:
    """Return the generator that a device's random operators draw from."""
    return native.default_generator(_index(device))  # type: ignore[no-any-return]


def get_rng_state(device: Device = "emu") -> torch.Tensor:
    """Return the state of a device's generator as a CPU byte tensor."""
    return default_generator(device).get_state()


def set_rng_state(new_state: torch.Tensor, device: Device = "emu") -> None:
    """Set the state of a device's generator."""
    default_generator(device).set_state(new_state)


def get_rng_state_all() -> list[torch.Tensor]:
    """Return the state of every device's generator."""
    return [get_rng_state(i) for i in range(device_count())]


def set_rng_state_all(new_states: Iterable[torch.Tensor]) -> None:
    """Set the state of every device's generator."""
    for i, state in enumerate(new_states):
        set_rng_state(state, i)


def manual_seed(seed: int) -> None:
    """Seed the current device's generator."""
    default_generator().manual_seed(int(seed))


def manual_seed_all(seed: int) -> None:
    """Seed every device's generator."""
    for i in range(device_count()):
        default_generator(i).manual_seed(int(seed))


def seed_all() -> None:
    """Seed every device's generator alike with a number from the system."""
    manual_seed_all(torch.Generator().seed())


def initial_seed() -> int:
    """Return the seed of the current device's generator."""
    return default_generator().initial_seed()


def get_amp_supported_dtype() -> list[torch.dtype]:
    """Return what autocast may lower to."""
    return [torch.float16, torch.bfloat16]


def is_bf16_supported() -> bool:
    """Return ``True``; the CPU's kernels know it."""
    return True
