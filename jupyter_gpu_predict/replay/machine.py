"""What notebooks share in a replay: GPUs, what switches cost, and how sharing slows bursts down.

By default bursts that share a GPU go at full speed while their duties sum to at most 1, and in
proportion below that: a stated model, in which kernels take turns and lose nothing by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ..core.model import GIB


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that a switch takes.

    The defaults are those of the replays that the project's bars were set by; `move_s` is what a
    kernel whose state is not with the driver takes to another GPU, a suspend and a restore.
    """

    bind_s: float = 2.0
    suspend_s: float = 2.0
    restore_s: float = 2.0
    move_s: float = 4.0


FREE = Costs(0.0, 0.0, 0.0, 0.0)


def by_duty(duties: Sequence[float]) -> float:
    """Return the speed of bursts that share a GPU: 1 until their duties sum to more."""
    return 1.0 / max(1.0, sum(duties))


def at_speed(speed: float) -> Callable[[Sequence[float]], float]:
    """Return a model in which bursts that share a GPU go at `speed`, whatever their duties."""
    return partial(_fixed, speed)


def _fixed(speed: float, duties: Sequence[float]) -> float:
    return speed if len(duties) > 1 else 1.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What the notebooks share.

    With `shared`, kernels share GPUs by memory; else each kernel wants a whole one. `speed` gives
    the speed of bursts on one GPU from their duties.
    """

    gpus: int
    shared: bool = False
    gpu_bytes: int = 80 * GIB
    costs: Costs = Costs()
    speed: Callable[[Sequence[float]], float] = by_duty
