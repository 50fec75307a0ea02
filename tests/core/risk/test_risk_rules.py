from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_gpu_predict.core.model import GpuHealth, GpuStatus, RiskLevel, XidEvent
from jupyter_gpu_predict.core.risk import RECOVERY_ACTIONS, RiskRules, assess
from jupyter_gpu_predict.core.risk.tables import HARD_XIDS, IGNORED_XIDS, SOFT_XIDS
from jupyter_gpu_predict.errors import BadInputError

NOW = 1.8e9
REMAP_PENDING = (
    "A row remap or page retirement waits for a reset of the GPU "
    "(source: remap and retirement pending flags)."
)
RANK = {RiskLevel.NONE: 0, RiskLevel.WARNING: 1, RiskLevel.CRITICAL: 2}


def gpu(lost: bool = False, **health: Any) -> GpuStatus:
    return GpuStatus("GPU-0", 0, "A GPU", 1 << 30, False, health=GpuHealth(**health), lost=lost)


def level(now: GpuStatus, before: GpuStatus | None = None, **rules: float) -> RiskLevel:
    return assess("GPU-0", now, before, NOW, RiskRules(**rules)).level


def xid(code: int, age_s: float = 1.0) -> XidEvent:
    return XidEvent(code, NOW - age_s)


HARD: list[dict[str, Any]] = [
    {"ecc_uncontained": 1},
    {"remap_failed": True},
    {"recovery_action": "gpu_reset"},
    {"recovery_action": "drain_and_reset"},
    {"recovery_action": "system_reboot"},
    *({"xids": (xid(code),)} for code in sorted(HARD_XIDS)),
]
SOFT: list[dict[str, Any]] = [
    {"ecc_uncorrected": 4},
    {"remap_pending": True},
    {"thermal_slowdown": True},
    {"power_brake": True},
    {"temperature_c": 90.0, "temperature_limit_c": 90.0},
    {"query_s": 5.0},
    {"recovery_action": "drain_p2p"},
    {"recovery_action": "action 99"},
    {"xids": (xid(94),)},
    {"xids": (xid(999),)},
]
NOTHING: list[dict[str, Any]] = [
    {},
    {"ecc_corrected": 10**9},
    {"remapped_rows": 40, "remap_pending": False, "remap_failed": False},
    {"retired_pages": 12},
    {"recovery_action": "none"},
    {"temperature_c": 89.0, "temperature_limit_c": 90.0},
    {"temperature_c": 150.0},
    {"pcie_replays": 10**6},
    {"query_s": 0.05},
    {"ecc_uncorrected": 0, "ecc_uncontained": 0},
    *({"xids": (xid(code),) * 3} for code in sorted(IGNORED_XIDS)),
]


def test_the_tables_hold_the_codes_of_the_catalogue() -> None:
    assert set(HARD_XIDS) == {48, 62, 64, 79, 95, 119, 120, 140}
    assert set(SOFT_XIDS) == {94}
    assert set(IGNORED_XIDS) == {13, 31, 43, 45, 63, 68, 109}
    # The position is the number that the driver tells.
    assert list(RECOVERY_ACTIONS)[4] == "drain_and_reset"


@pytest.mark.parametrize("health", HARD)
def test_hard_evidence_is_critical(health: dict[str, Any]) -> None:
    risk = assess("GPU-0", gpu(**health), None, NOW)
    assert risk.level is RiskLevel.CRITICAL
    assert len(risk.evidence) == 1
    assert "(source: " in risk.evidence[0]


@pytest.mark.parametrize("health", SOFT)
def test_soft_evidence_is_a_warning(health: dict[str, Any]) -> None:
    risk = assess("GPU-0", gpu(**health), gpu(**health), NOW)
    assert risk.level is RiskLevel.WARNING
    assert len(risk.evidence) == 1
    assert "(source: " in risk.evidence[0]


@pytest.mark.parametrize("health", NOTHING)
def test_what_is_no_evidence(health: dict[str, Any]) -> None:
    risk = assess("GPU-0", gpu(**health), gpu(), NOW)
    assert (risk.level, risk.evidence) == (RiskLevel.NONE, ())


def test_evidence_is_in_sentences_with_hard_evidence_first() -> None:
    now = gpu(remap_pending=True, ecc_uncontained=2, xids=(xid(79), xid(79)))
    risk = assess("GPU-0", now, None, NOW)
    assert risk.gpu_uuid == "GPU-0"
    assert risk.horizon_s == RiskRules().horizon_s
    assert risk.evidence == (
        "2 uncontained ECC errors since the driver was loaded (source: uncontained ECC count).",
        "XID 79, 2 times: the GPU fell off the bus (source: XID events).",
        REMAP_PENDING,
    )


def test_uncorrectable_errors_are_critical_while_they_grow() -> None:
    four, five = gpu(ecc_uncorrected=4), gpu(ecc_uncorrected=5)
    assert level(five, four) is RiskLevel.CRITICAL
    assert level(five, five) is RiskLevel.WARNING
    assert level(four, five) is RiskLevel.WARNING
    assert level(five, gpu()) is RiskLevel.WARNING


def test_a_lost_gpu_is_critical_and_only_once() -> None:
    before = replace(gpu(), used_bytes=1, temperature_c=40.0, power_w=1.0)
    risk = assess("GPU-0", gpu(lost=True), before, NOW)
    assert risk.level is RiskLevel.CRITICAL
    assert risk.evidence == ("The GPU no longer answers (source: device queries).",)


def test_vanished_readings_are_evidence_and_missing_ones_are_not() -> None:
    before = replace(gpu(), used_bytes=1, temperature_c=40.0, power_w=1.0)
    assert level(gpu(), before) is RiskLevel.CRITICAL
    assert level(replace(gpu(), used_bytes=1), before) is RiskLevel.WARNING
    assert level(replace(before, power_w=None), before) is RiskLevel.NONE
    assert level(gpu(), None) is RiskLevel.NONE
    assert level(gpu(), gpu()) is RiskLevel.NONE
    assert level(gpu(), replace(before, lost=True)) is RiskLevel.NONE


def test_replays_count_when_they_grow_fast() -> None:
    before = gpu(pcie_replays=100)
    assert level(gpu(pcie_replays=110), before) is RiskLevel.WARNING
    assert level(gpu(pcie_replays=109), before) is RiskLevel.NONE
    assert level(gpu(pcie_replays=0), before) is RiskLevel.NONE
    assert level(gpu(pcie_replays=109), before, pcie_replays=9) is RiskLevel.WARNING


def test_xids_age_out() -> None:
    now = gpu(xids=(xid(79, age_s=101.0),))
    assert level(now, xid_age_s=101.0) is RiskLevel.CRITICAL
    assert level(now, xid_age_s=100.0) is RiskLevel.NONE
    assert level(gpu(xids=(xid(79, age_s=-3600.0),)), xid_age_s=100.0) is RiskLevel.CRITICAL


def test_a_status_of_another_gpu_is_refused() -> None:
    other = replace(gpu(), uuid="GPU-1")
    with pytest.raises(BadInputError, match="'GPU-1'"):
        assess("GPU-0", other, None, NOW)
    with pytest.raises(BadInputError, match="'GPU-1'"):
        assess("GPU-0", gpu(), other, NOW)


healths = st.builds(
    GpuHealth,
    ecc_corrected=st.none() | st.integers(0, 9),
    ecc_uncorrected=st.none() | st.integers(0, 9),
    ecc_uncontained=st.none() | st.integers(0, 2),
    remapped_rows=st.none() | st.integers(0, 9),
    remap_pending=st.none() | st.booleans(),
    remap_failed=st.none() | st.booleans(),
    retired_pages=st.none() | st.integers(0, 99),
    xids=st.lists(st.builds(xid, st.integers(1, 160), st.floats(-10, 200_000)), max_size=4).map(
        tuple
    ),
    recovery_action=st.none() | st.sampled_from([*RECOVERY_ACTIONS, "action 42"]),
    thermal_slowdown=st.none() | st.booleans(),
    power_brake=st.none() | st.booleans(),
    temperature_c=st.none() | st.floats(0, 120),
    temperature_limit_c=st.none() | st.floats(60, 100),
    pcie_replays=st.none() | st.integers(0, 100),
    query_s=st.none() | st.floats(0, 3),
)
statuses = st.builds(
    GpuStatus,
    uuid=st.just("GPU-0"),
    index=st.just(0),
    name=st.just("A GPU"),
    total_bytes=st.just(1 << 30),
    simulated=st.booleans(),
    used_bytes=st.none() | st.integers(0, 9),
    utilization=st.none() | st.floats(0, 1),
    temperature_c=st.none() | st.floats(0, 120),
    power_w=st.none() | st.floats(0, 700),
    health=healths,
    lost=st.booleans(),
)


@settings(deadline=None)
@given(statuses, st.none() | statuses, st.sampled_from([*HARD, {"lost": True}]))
def test_hard_evidence_on_top_is_always_critical(
    now: GpuStatus, before: GpuStatus | None, hard: dict[str, Any]
) -> None:
    extra = dict(hard)
    worse = replace(now, lost=extra.pop("lost", False) or now.lost)
    extra["xids"] = (*now.health.xids, *extra.get("xids", ()))
    worse = replace(worse, health=replace(now.health, **extra))
    assert level(worse, before) is RiskLevel.CRITICAL


@settings(deadline=None)
@given(statuses, st.none() | statuses, st.sampled_from([*SOFT, *HARD]))
def test_evidence_never_lowers_the_level(
    now: GpuStatus, before: GpuStatus | None, evidence: dict[str, Any]
) -> None:
    extra = dict(evidence)
    if "recovery_action" in extra and now.health.recovery_action not in {None, "none"}:
        return  # it would take the place of other evidence
    extra["xids"] = (*now.health.xids, *extra.get("xids", ()))
    if "ecc_uncorrected" in extra:
        extra["ecc_uncorrected"] += now.health.ecc_uncorrected or 0
    if "temperature_limit_c" in extra:
        extra["temperature_c"] = max(90.0, now.health.temperature_c or 0.0)
        if now.health.temperature_limit_c is not None:
            extra["temperature_limit_c"] = min(90.0, now.health.temperature_limit_c)
    worse = replace(now, health=replace(now.health, **extra))
    assert RANK[level(worse, before)] >= RANK[level(now, before)]


@settings(deadline=None)
@given(statuses, st.none() | statuses)
def test_every_level_has_its_evidence(now: GpuStatus, before: GpuStatus | None) -> None:
    risk = assess("GPU-0", now, before, NOW)
    assert (risk.level is RiskLevel.NONE) == (risk.evidence == ())


@settings(deadline=None)
@given(statuses, st.sampled_from([field.name for field in fields(GpuHealth)]))
def test_a_missing_value_is_never_evidence(now: GpuStatus, name: str) -> None:
    empty = () if name == "xids" else None
    silent = replace(now, health=replace(now.health, **{name: empty}))
    if name == "temperature_c" and now.temperature_c is not None:
        return  # the GPU's own temperature then takes its place
    assert RANK[level(silent)] <= RANK[level(now)]
