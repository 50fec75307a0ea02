"""Energy that GPUs have used, and what their standing empty has saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

MAX_GAP_S = 120.0
"""Readings further apart say how much energy was used, but not in what state the GPU was."""

LEARNING_RATE = 0.1
"""Weight of the newest span in the average of a GPU's idle draw."""


@dataclass(frozen=True, slots=True)
class PowerReading:
    """What a GPU says of its energy at one moment.

    `energy_j` is its total energy counter in joules (NVML: since the driver was loaded), `power_w`
    its draw now; ``None`` is "the device does not say". `kernels` counts those that hold memory of
    it, `busy` says whether one of them, or anybody else, is at work on it.
    """

    gpu_uuid: str
    t_s: float
    energy_j: float | None
    power_w: float | None
    kernels: int
    busy: bool


@dataclass(frozen=True, slots=True)
class GpuPower:
    """The energy account of one GPU.

    `used_j` is the energy used since the first reading, `empty_j` the part of it used while the GPU
    stood empty, `empty_s` for how long it did. `idle_power_w` is what the GPU itself draws while
    kernels hold its memory and nobody works, ``None`` until that has been seen; `idle_source` says
    what it was measured by. `saved_j` is what the GPU would have used more, had it stood idle with
    kernels instead of empty: ``None`` where its idle draw is unknown. It is below 0 where a GPU
    draws more empty than idle. `resets` counts how often its counter began anew: the energy between
    the last reading before and the reset is missing. `estimated_j` is the part of `used_j` that
    rests on the draw at both ends of a span, for want of a counter.
    """

    gpu_uuid: str
    used_j: float = 0.0
    empty_s: float = 0.0
    empty_j: float = 0.0
    idle_power_w: float | None = None
    idle_source: str = ""
    resets: int = 0
    estimated_j: float = 0.0

    @property
    def saved_j(self) -> float | None:
        """Joules saved by standing empty, against its own idle draw."""
        if self.idle_power_w is None:
            return None
        return self.idle_power_w * self.empty_s - self.empty_j


@dataclass(frozen=True, slots=True)
class PowerReport:
    """The energy accounts of all GPUs from `since_s` to `until_s`, in joules.

    `saved_j` sums over the GPUs whose idle draw is known; `unknown` names those that stood empty
    and whose idle draw is not.
    """

    since_s: float
    until_s: float
    gpus: tuple[GpuPower, ...]

    @property
    def used_j(self) -> float:
        """Energy used by all GPUs."""
        return math.fsum(g.used_j for g in self.gpus)

    @property
    def saved_j(self) -> float:
        """Energy saved by GPUs that stood empty."""
        return math.fsum(g.saved_j or 0.0 for g in self.gpus)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Uuids of GPUs that stood empty, at a saving nobody can tell yet."""
        return tuple(g.gpu_uuid for g in self.gpus if g.empty_s > 0 and g.saved_j is None)


@dataclass(frozen=True, slots=True)
class PowerAccounts:
    """What is kept between readings; a new one is returned by :meth:`read`."""

    accounts: Mapping[str, GpuPower] = field(default_factory=dict)
    last: Mapping[str, PowerReading] = field(default_factory=dict)
    since_s: float | None = None
    until_s: float = 0.0

    def read(self, reading: PowerReading) -> PowerAccounts:
        """Return the accounts after a reading; one older than the GPU's last is left out."""
        uuid = reading.gpu_uuid
        former = self.last.get(uuid)
        account = self.accounts.get(uuid, GpuPower(uuid))
        if former is not None:
            if reading.t_s <= former.t_s:
                return self
            account = _after(account, former, reading)
        return PowerAccounts(
            {**self.accounts, uuid: account},
            {**self.last, uuid: reading},
            reading.t_s if self.since_s is None else min(self.since_s, reading.t_s),
            max(self.until_s, reading.t_s),
        )

    def report(self) -> PowerReport:
        """Return the accounts of all GPUs, by uuid."""
        gpus = tuple(self.accounts[u] for u in sorted(self.accounts))
        return PowerReport(self.since_s or 0.0, self.until_s, gpus)


def _after(account: GpuPower, former: PowerReading, reading: PowerReading) -> GpuPower:
    span_s = reading.t_s - former.t_s
    used_j, counted, reset = _energy_j(former, reading, span_s)
    account = replace(account, resets=account.resets + reset)
    if used_j is None:
        return account
    account = replace(
        account,
        used_j=account.used_j + used_j,
        estimated_j=account.estimated_j + (0.0 if counted else used_j),
    )
    if span_s > MAX_GAP_S or reset:
        return account
    if former.kernels == reading.kernels == 0 and not (former.busy or reading.busy):
        return replace(account, empty_s=account.empty_s + span_s, empty_j=account.empty_j + used_j)
    if former.kernels > 0 and reading.kernels > 0 and not (former.busy or reading.busy):
        return _learn_idle(account, used_j / span_s, counted=counted)
    return account


def _energy_j(
    former: PowerReading, reading: PowerReading, span_s: float
) -> tuple[float | None, bool, bool]:
    """Return the energy used in a span, whether a counter says so, and whether that began anew."""
    before, now = former.energy_j, reading.energy_j
    if before is not None and now is not None:
        # A counter that went back began at 0 when the driver was loaded anew.
        return (now, True, True) if now < before else (now - before, True, False)
    if former.power_w is None or reading.power_w is None or span_s > MAX_GAP_S:
        return None, False, False
    return (former.power_w + reading.power_w) / 2 * span_s, False, False


def _learn_idle(account: GpuPower, power_w: float, *, counted: bool) -> GpuPower:
    known = account.idle_power_w
    source = "its energy counter" if counted else "its power readings"
    if known is None or source != account.idle_source:
        # What a counter says replaces what samples said, and the other way round.
        return replace(account, idle_power_w=power_w, idle_source=source)
    return replace(account, idle_power_w=known + LEARNING_RATE * (power_w - known))
