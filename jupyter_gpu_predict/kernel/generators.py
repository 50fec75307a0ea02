"""The states of the random generators that a cell may use without naming them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

_MT19937_WORDS = 624
"""A Mersenne twister that was just seeded is at the end of its block."""


def generator_states() -> dict[str, Any]:
    """Return the state of each global generator of a loaded library, as plain data."""
    found: dict[str, Any] = {}
    random = sys.modules.get("random")
    if random is not None:
        found["random"] = random.getstate()
    numpy = sys.modules.get("numpy.random.mtrand")
    if numpy is not None:
        state = numpy._rand.get_state(legacy=True)
        if state[0] == "MT19937":
            found["numpy"] = (state[0], state[1].tobytes(), *state[2:])
    torch = sys.modules.get("torch")
    # While torch is being imported it is there only in part.
    if torch is not None and hasattr(torch, "default_generator"):
        found["torch"] = torch.default_generator.get_state().numpy().tobytes()
        if (device := _device_in_use(torch)) is not None:
            states = getattr(torch, device).get_rng_state_all()
            found[f"torch.{device}"] = tuple(state.numpy().tobytes() for state in states)
    return found


def _device_in_use(torch: Any) -> str | None:
    """Return the type of the devices whose generators are there, ``None`` without."""
    accelerator = getattr(torch, "accelerator", None)
    device = None if accelerator is None else accelerator.current_accelerator()
    if device is None:
        return None
    module: Any = getattr(torch, device.type, None)
    # Apple's has one generator only, and no such functions.
    if not hasattr(module, "get_rng_state_all") or not module.is_initialized():
        return None
    return str(device.type)


def unused_since_import(name: str, state: Any) -> bool:
    """Whether a generator whose library was loaded only now gave no random numbers yet.

    One that was seeded since counts as unused too: what it gives is known.
    """
    if name == "random":
        return bool(state[1][-1] == _MT19937_WORDS)
    if name == "numpy":
        # The generator that numpy makes on import stands one word before the end.
        return bool(state[2] in (_MT19937_WORDS - 1, _MT19937_WORDS) and not state[3])
    if name.startswith("torch"):
        import torch

        device = name.partition(".")[2] or "cpu"
        new = torch.Generator(device).get_state().numpy().tobytes()
        return all(one == new for one in (state if device != "cpu" else (state,)))
    return False


def set_generator_states(states: Mapping[str, Any]) -> None:
    """Set what `generator_states` returned; the libraries must be loaded."""
    for name, state in states.items():
        if name == "random":
            import random

            random.setstate(state)
        elif name == "numpy":
            import numpy as np

            key = np.frombuffer(state[1], dtype=np.uint32)
            np.random.set_state((state[0], key, *state[2:]))
        elif name == "torch":
            import torch

            torch.default_generator.set_state(_tensor(state))
        elif name.startswith("torch."):
            import torch

            module = getattr(torch, name.partition(".")[2])
            module.set_rng_state_all([_tensor(value) for value in state])


@contextlib.contextmanager
def generators_as_they_are() -> Iterator[None]:
    """Let the code inside use the generators, and nobody notice."""
    states = generator_states()
    try:
        yield
    finally:
        set_generator_states(states)


def _tensor(data: bytes) -> Any:
    import torch

    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
