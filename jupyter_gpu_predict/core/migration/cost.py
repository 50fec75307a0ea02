"""What it costs to suspend, restore or move a kernel, and which rung of the ladder is cheapest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from typing import Any

from ...errors import BadInputError, RefusedError
from ..model import MIB, Rung
from ..sizes import format_bytes

LEARNING_RATE = 0.3
"""Weight of the newest measurement in the exponential average; about the last six count."""

MIN_LEARN_BYTES = MIB
"""Smaller transfers measure their fixed cost, not a bandwidth, and teach nothing."""


class Transfer(str, Enum):
    """Kinds of work whose speed is measured; `CHECKPOINT` and `RESUME` are the driver's."""

    SUSPEND = "suspend"
    RESTORE = "restore"
    CAPTURE = "capture"
    LOAD = "load"
    CHECKPOINT = "checkpoint"
    RESUME = "resume"
    LAUNCH = "launch"
    HELPER = "helper"


_TIMES = (Transfer.LAUNCH, Transfer.HELPER)
"""Kinds that take their time whatever the bytes."""


@dataclass(frozen=True, slots=True)
class Bandwidths:
    """Measured speeds in bytes per second, and the seconds a standby process takes to be ready.

    `suspend` and `restore` move device memory to the host and back; `capture` writes a snapshot and
    `load` reads it in a fresh process; `checkpoint` is the driver's way out and `resume` its way
    back. `switch_s` is the pause while a kernel's ports are switched, `helper_s` what either way of
    the driver takes besides the copy. `measured` names what is no longer a default. The defaults
    are from a machine with 2 cores: first-touch copies at 1.2 GB/s, 967 MB captured in 0.95 s and
    loaded in 0.53 s, ports switched in 0.17 s; the driver's 1 GB/s either way, its helper's 1 s and
    a launch of 3 s (process, torch and the user's modules) are guesses until measured.
    """

    suspend_bytes_per_s: float = 1.2e9
    restore_bytes_per_s: float = 1.2e9
    capture_bytes_per_s: float = 1.0e9
    load_bytes_per_s: float = 1.8e9
    checkpoint_bytes_per_s: float = 1.0e9
    resume_bytes_per_s: float = 1.0e9
    launch_s: float = 3.0
    switch_s: float = 0.17
    helper_s: float = 1.0
    measured: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return them as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Bandwidths:
        """Return what `to_json` gave; what is unknown or no positive number keeps its default."""
        numbers = {
            f.name: float(data[f.name])
            for f in fields(cls)
            if f.name != "measured" and _is_speed(data.get(f.name))
        }
        known = [kind.value for kind in Transfer if _field(kind) in numbers]
        measured = tuple(name for name in data.get("measured", ()) if name in known)
        return cls(**numbers, measured=measured)


def learn(bandwidths: Bandwidths, kind: Transfer, bytes: int, seconds: float) -> Bandwidths:  # noqa: A002
    """Return the bandwidths after a measurement: the first replaces the default.

    Parameters
    ----------
    bytes
        Bytes moved; not looked at for `Transfer.LAUNCH` and `Transfer.HELPER`.
    seconds
        Time it took.

    Raises
    ------
    BadInputError
        If `bytes` is negative or `seconds` not a positive, finite number.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise BadInputError(f"{kind.value}: {seconds} s is no duration; measure a positive time")
    if bytes < 0:
        raise BadInputError(f"{kind.value}: {bytes} bytes cannot be moved; give 0 or more")
    if kind not in _TIMES and bytes < MIN_LEARN_BYTES:
        return bandwidths
    field, value = _field(kind), seconds if kind in _TIMES else bytes / seconds
    known = kind.value in bandwidths.measured
    former: float = getattr(bandwidths, field)
    changes: dict[str, float] = {
        field: former + LEARNING_RATE * (value - former) if known else value
    }
    measured = bandwidths.measured if known else (*bandwidths.measured, kind.value)
    return replace(bandwidths, measured=measured, **changes)


def _field(kind: Transfer) -> str:
    return f"{kind.value}_s" if kind in _TIMES else f"{kind.value}_bytes_per_s"


def _is_speed(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def suspend_s(bandwidths: Bandwidths, device_bytes: int) -> float:
    """Return the predicted time to take device memory back in place."""
    return device_bytes / bandwidths.suspend_bytes_per_s


def restore_s(bandwidths: Bandwidths, device_bytes: int) -> float:
    """Return the predicted time to bring device memory back in place."""
    return device_bytes / bandwidths.restore_bytes_per_s


def resume_s(bandwidths: Bandwidths, device_bytes: int) -> float:
    """Return the predicted time until the driver has brought device memory back."""
    return device_bytes / bandwidths.resume_bytes_per_s + bandwidths.helper_s


def checkpoint_s(bandwidths: Bandwidths, device_bytes: int) -> float:
    """Return the predicted time of a driver checkpoint and its way back."""
    out_s = device_bytes / bandwidths.checkpoint_bytes_per_s + bandwidths.helper_s
    return out_s + resume_s(bandwidths, device_bytes)


def relaunch_s(bandwidths: Bandwidths, state_bytes: int) -> float:
    """Return the predicted interruption by a relaunch.

    The standby process starts while the kernel still works, so its launch does not interrupt: what
    does is capture, load and the switch. `state_bytes` is the whole snapshot.
    """
    capture = state_bytes / bandwidths.capture_bytes_per_s
    return capture + state_bytes / bandwidths.load_bytes_per_s + bandwidths.switch_s


@dataclass(frozen=True, slots=True)
class Ability:
    """What can be done with a kernel now.

    `why_not_in_place` and `why_not_checkpoint` and `why_not_relaunch` name the obstacle, ``None``
    where there is none. A driver checkpoint is off until it is proven on the machine.
    """

    why_not_in_place: str | None = None
    why_not_checkpoint: str | None = "not proven on this machine"
    why_not_relaunch: str | None = None


@dataclass(frozen=True, slots=True)
class RungChoice:
    """The cheapest possible rung.

    `cost_s` is the predicted interruption, `worth_it` whether the predicted gain exceeds it.
    """

    rung: Rung
    cost_s: float
    worth_it: bool
    reason: str


def choose_rung(
    bandwidths: Bandwidths,
    *,
    device_bytes: int,
    to_other_gpu: bool,
    process_bytes: int | None = None,
    state_bytes: int = 0,
    ability: Ability | None = None,
    gain_s: float | None = None,
) -> RungChoice:
    """Return the possible rung with the least predicted cost, the lower one among equals.

    Parameters
    ----------
    device_bytes
        Device memory of the kernel.
    to_other_gpu
        Whether the kernel is to go to another GPU, by the driver or by a relaunch; if not, it is
        to be suspended where it is, in place or by the driver.
    process_bytes
        All that its processes have on the GPU, contexts too, which is what the driver moves; by
        default `device_bytes`.
    state_bytes
        Size of a whole snapshot of it.
    gain_s
        Predicted gain in seconds; ``None`` when it has to be done whatever it costs.

    Raises
    ------
    RefusedError
        If no rung is possible; the message says why for each.
    """
    can = ability or Ability()
    whole = max(device_bytes, process_bytes or 0)
    by_driver = Rung.DRIVER_CHECKPOINT, can.why_not_checkpoint, checkpoint_s(bandwidths, whole)
    in_place_s = suspend_s(bandwidths, device_bytes) + restore_s(bandwidths, device_bytes)
    # Rungs in ladder order: `min` keeps the first of equals.
    ladder: tuple[tuple[Rung, str | None, float], ...] = (
        (by_driver, (Rung.RELAUNCH, can.why_not_relaunch, relaunch_s(bandwidths, state_bytes)))
        if to_other_gpu
        else ((Rung.IN_PLACE, can.why_not_in_place, in_place_s), by_driver)
    )
    possible = [(rung, cost_s) for rung, why, cost_s in ladder if why is None]
    if not possible:
        obstacles = "; ".join(f"{_words(rung)}: {why}" for rung, why, _ in ladder)
        raise RefusedError(f"no way to take the kernel off its GPU ({obstacles})")
    rung, cost_s = min(possible, key=lambda p: p[1])
    reason = f"{_words(rung)}, {cost_s:.2f} s predicted for {format_bytes(device_bytes)}"
    if gain_s is not None:
        reason += f", {gain_s:.2f} s to gain"
    others = [f"{_words(r)}: {why or f'{s:.2f} s'}" for r, why, s in ladder if r is not rung]
    reason += f" ({'; '.join(others)})"
    return RungChoice(rung, cost_s, gain_s is None or gain_s > cost_s, reason)


def _words(rung: Rung) -> str:
    return rung.value.replace("_", " ")
