"""From a GPU's health signals to its risk, by rules.

Base rates set the levels (1e-4 to 8e-4 failures per GPU-day): at those a good detector is wrong
more often than right, so a warning only earns a cheap snapshot and hard evidence alone is critical.
Counts of corrected errors do not rank risk and are never evidence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import BadInputError
from ..model import GpuStatus, RiskLevel
from .tables import HARD_XIDS, IGNORED_XIDS, RECOVERY_ACTIONS, SOFT_XIDS, RiskRules


@dataclass(frozen=True, slots=True)
class Risk:
    """A GPU's chance of failing within `horizon_s`, with its evidence in plain sentences."""

    gpu_uuid: str
    level: RiskLevel
    horizon_s: float
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """One piece of evidence: what was seen, and the counter that says so."""

    level: RiskLevel
    fact: str
    source: str


_ORDER = {RiskLevel.CRITICAL: 0, RiskLevel.WARNING: 1, RiskLevel.NONE: 2}
_DEFAULT_RULES = RiskRules()


def _critical(fact: str, source: str) -> Finding:
    return Finding(RiskLevel.CRITICAL, fact, source)


def _warning(fact: str, source: str) -> Finding:
    return Finding(RiskLevel.WARNING, fact, source)


def assess(
    gpu_uuid: str,
    now: GpuStatus,
    before: GpuStatus | None,
    now_s: float,
    rules: RiskRules = _DEFAULT_RULES,
) -> Risk:
    """Return the risk of a GPU from its present and an earlier status.

    Parameters
    ----------
    gpu_uuid
        GPU that is assessed.
    now, before
        Its present status, and the one that growth is measured from (``None``: nothing has grown).
    now_s
        Point in time that the age of XIDs is measured at, in seconds since the epoch.
    rules
        Thresholds.

    Returns
    -------
    Risk
        The highest level of all findings, with every finding's sentence, hard evidence first. A
        value of ``None`` is never evidence; that readings have vanished since `before` is.

    Raises
    ------
    BadInputError
        If a status is of another GPU.
    """
    for status in (now, before):
        if status is not None and status.uuid != gpu_uuid:
            raise BadInputError(
                f"The risk of GPU {gpu_uuid!r} cannot be assessed from the status of GPU "
                f"{status.uuid!r}: pass the status of the same GPU."
            )
    findings = sorted(
        (
            *_memory(now, before),
            *_xids(now, now_s, rules),
            *_driver(now),
            *_answers(now, before, rules),
            *_surroundings(now, before, rules),
        ),
        key=lambda finding: _ORDER[finding.level],
    )
    level = findings[0].level if findings else RiskLevel.NONE
    evidence = tuple(f"{finding.fact} (source: {finding.source})." for finding in findings)
    return Risk(gpu_uuid, level, rules.horizon_s, evidence)


def _memory(now: GpuStatus, before: GpuStatus | None) -> Iterator[Finding]:
    health = now.health
    if health.ecc_uncontained:
        noun = _count(health.ecc_uncontained, "uncontained ECC error")
        yield _critical(f"{noun} since the driver was loaded", "uncontained ECC count")
    if health.ecc_uncorrected:
        source = "volatile uncorrectable ECC count"
        was = before.health.ecc_uncorrected if before is not None else None
        if was is not None and health.ecc_uncorrected > was:
            yield _critical(
                f"Uncorrectable ECC errors grew from {was} to {health.ecc_uncorrected}", source
            )
        else:
            noun = _count(health.ecc_uncorrected, "uncorrectable ECC error")
            yield _warning(f"{noun} since the driver was loaded, not growing", source)
    if health.remap_failed:
        yield _critical(
            "A row of memory could not be remapped, the GPU is to be replaced",
            "row-remap failure flag",
        )
    if health.remap_pending:
        yield _warning(
            "A row remap or page retirement waits for a reset of the GPU",
            "remap and retirement pending flags",
        )


def _xids(now: GpuStatus, now_s: float, rules: RiskRules) -> Iterator[Finding]:
    counts: dict[int, int] = {}
    for event in now.health.xids:
        if event.code not in IGNORED_XIDS and now_s - event.t_s <= rules.xid_age_s:
            counts[event.code] = counts.get(event.code, 0) + 1
    for code, times in sorted(counts.items()):
        seen = f"XID {code}" if times == 1 else f"XID {code}, {times} times"
        if code in HARD_XIDS:
            yield _critical(f"{seen}: {HARD_XIDS[code]}", "XID events")
        elif code in SOFT_XIDS:
            yield _warning(f"{seen}: {SOFT_XIDS[code]}", "XID events")
        else:
            yield _warning(
                f"{seen}: not one of the XIDs known to be the application's own", "XID events"
            )


def _driver(now: GpuStatus) -> Iterator[Finding]:
    action = now.health.recovery_action
    if action is None:
        return
    # A newer driver may ask for an action without a name here; that it asks is worth a snapshot.
    level = RECOVERY_ACTIONS.get(action, RiskLevel.WARNING)
    if level is not RiskLevel.NONE:
        asked = action.replace("_", " ")
        yield Finding(level, f"The driver asks for {asked!r}", "GPU recovery action")


def _answers(now: GpuStatus, before: GpuStatus | None, rules: RiskRules) -> Iterator[Finding]:
    query_s = now.health.query_s
    if query_s is not None and query_s >= rules.slow_query_s:
        yield _warning(
            f"The GPU took {query_s:.1f} s to answer, where {rules.slow_query_s:g} s is slow",
            "duration of the health query",
        )
    if now.lost:
        yield _critical("The GPU no longer answers", "device queries")
        return
    if before is None or before.lost:
        return
    held, gone = _readings(before), _readings(now)
    missing = [name for name, value in held.items() if value is not None and gone[name] is None]
    if len(missing) >= 2:
        stayed = any(value is not None for value in gone.values())
        yield Finding(
            RiskLevel.WARNING if stayed else RiskLevel.CRITICAL,
            f"The GPU stopped reporting its {', '.join(missing)}",
            "readings that vanished since the earlier status",
        )


def _readings(status: GpuStatus) -> dict[str, float | None]:
    return {
        "memory": status.used_bytes,
        "utilization": status.utilization,
        "temperature": status.temperature_c,
        "power": status.power_w,
    }


def _surroundings(now: GpuStatus, before: GpuStatus | None, rules: RiskRules) -> Iterator[Finding]:
    health = now.health
    temperature = health.temperature_c if health.temperature_c is not None else now.temperature_c
    limit = health.temperature_limit_c
    if temperature is not None and limit is not None and temperature >= limit:
        yield _warning(
            f"The GPU is at {temperature:g} °C, its limit is {limit:g} °C",
            "temperature and slowdown threshold",
        )
    if health.thermal_slowdown:
        yield _warning(
            "The GPU lowers its clocks because it is too hot", "reasons for lower clocks"
        )
    if health.power_brake:
        yield _warning(
            "The power supply makes the GPU lower its clocks", "reasons for lower clocks"
        )
    was = before.health.pcie_replays if before is not None else None
    replays = health.pcie_replays
    if replays is not None and was is not None and replays - was >= rules.pcie_replays:
        yield _warning(f"PCIe replays grew from {was} to {replays}", "PCIe replay counter")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
