"""What it costs to suspend, restore or move a kernel, and which rung of the ladder is cheapest."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from ...errors import BadInputError, RefusedError
from ..model import MIB, Rung
from ..sizes import format_bytes

LEARNING_RATE = 0.3
"""Weight of the newest measurement in the exponential average; about the last six count."""

MIN_LEARN_BYTES = MIB
"""Smaller transfers measure their fixed cost, not a bandwidth, and teach nothing."""


class Transfer(str, Enum):
    """Kinds of work whose speed is measured."""

    SUSPEND = "suspend"
    RESTORE = "restore"
    CAPTURE = "capture"
    LOAD = "load"
    CHECKPOINT = "checkpoint"
    LAUNCH = "launch"


@dataclass(frozen=True, slots=True)
class Bandwidths:
    """Measured speeds in bytes per second, and the seconds a standby process takes to be ready.

    `suspend` and `restore` move device memory to the host and back; `capture` writes a snapshot and
    `load` reads it in a fresh process; `checkpoint` is the driver's, one way. `switch_s` is the
    pause while a kernel's ports are switched. `measured` names what is no longer a default. The
    defaults are from a machine with 2 cores: first-touch copies at 1.2 GB/s, 967 MB captured in
    0.95 s and loaded in 0.53 s, ports switched in 0.17 s; a driver checkpoint of about 1 GB/s and
    a launch of 3 s (process, torch and the user's modules) are guesses until measured.
    """

    suspend_bytes_per_s: float = 1.2e9
    restore_bytes_per_s: float = 1.2e9
    capture_bytes_per_s: float = 1.0e9
    load_bytes_per_s: float = 1.8e9
    checkpoint_bytes_per_s: float = 1.0e9
    launch_s: float = 3.0
    switch_s: float = 0.17
    measured: tuple[str, ...] = ()


def learn(bandwidths: Bandwidths, kind: Transfer, bytes: int, seconds: float) -> Bandwidths:  # noqa: A002
    """Return the bandwidths after a measurement: the first replaces the default.

    Parameters
    ----------
    bytes
        Bytes moved; not looked at for `Transfer.LAUNCH`.
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
    if kind is Transfer.LAUNCH:
        field, value = "launch_s", seconds
    else:
        if bytes < MIN_LEARN_BYTES:
            return bandwidths
        field, value = f"{kind.value}_bytes_per_s", bytes / seconds
    known = kind.value in bandwidths.measured
    former: float = getattr(bandwidths, field)
    changes: dict[str, float] = {
        field: former + LEARNING_RATE * (value - former) if known else value
    }
    measured = bandwidths.measured if known else (*bandwidths.measured, kind.value)
    return replace(bandwidths, measured=measured, **changes)


def suspend_s(bandwidths: Bandwidths, device_bytes: int) -> float:
    """Return the predicted time to take device memory back in place."""
    return device_bytes / bandwidths.suspend_bytes_per_s


def restore_s(bandwidths: Bandwidths, device_bytes: int) -> float:
    """Return the predicted time to bring device memory back in place."""
    return device_bytes / bandwidths.restore_bytes_per_s


def checkpoint_s(bandwidths: Bandwidths, device_bytes: int) -> float:
    """Return the predicted time of a driver checkpoint and its restore."""
    return 2 * device_bytes / bandwidths.checkpoint_bytes_per_s


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
    why_not_checkpoint: str | None = "a driver checkpoint is not proven on this machine"
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
    state_bytes: int,
    to_other_gpu: bool,
    ability: Ability | None = None,
    gain_s: float | None = None,
) -> RungChoice:
    """Return the possible rung with the least predicted cost, the lower one among equals.

    Parameters
    ----------
    device_bytes
        Device memory of the kernel.
    state_bytes
        Size of a whole snapshot of it.
    to_other_gpu
        Whether the kernel is to go to another GPU; in place it can only be suspended.
    gain_s
        Predicted gain in seconds; ``None`` when it has to be done whatever it costs.

    Raises
    ------
    RefusedError
        If no rung is possible; the message says why for each.
    """
    can = ability or Ability()
    why_in_place = (
        "its process is tied to its GPU"
        if to_other_gpu and can.why_not_in_place is None
        else can.why_not_in_place
    )
    in_place_s = suspend_s(bandwidths, device_bytes) + restore_s(bandwidths, device_bytes)
    # Rungs in ladder order: `min` keeps the first of equals.
    ladder: tuple[tuple[Rung, str | None, float], ...] = (
        (Rung.IN_PLACE, why_in_place, in_place_s),
        (Rung.DRIVER_CHECKPOINT, can.why_not_checkpoint, checkpoint_s(bandwidths, device_bytes)),
        (Rung.RELAUNCH, can.why_not_relaunch, relaunch_s(bandwidths, state_bytes)),
    )
    possible = [(rung, cost_s) for rung, why, cost_s in ladder if why is None]
    obstacles = "; ".join(f"{_words(rung)}: {why}" for rung, why, _ in ladder if why is not None)
    if not possible:
        raise RefusedError(f"no way to take the kernel off its GPU ({obstacles})")
    rung, cost_s = min(possible, key=lambda p: p[1])
    reason = f"{_words(rung)}, {cost_s:.2f} s predicted for {format_bytes(device_bytes)}"
    if gain_s is not None:
        reason += f", {gain_s:.2f} s to gain"
    if obstacles:
        reason += f" ({obstacles})"
    return RungChoice(rung, cost_s, gain_s is None or gain_s > cost_s, reason)


def _words(rung: Rung) -> str:
    return rung.value.replace("_", " ")
