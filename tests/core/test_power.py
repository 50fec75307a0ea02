from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.core.power import MAX_GAP_S, PowerAccounts, PowerReading


def told(*readings: tuple, uuid: str = "G0") -> PowerAccounts:
    """Accounts after readings (seconds, joules, watts, kernels, busy)."""
    accounts = PowerAccounts()
    for t_s, energy_j, power_w, kernels, busy in readings:
        accounts = accounts.read(PowerReading(uuid, t_s, energy_j, power_w, kernels, busy))
    return accounts


def account(*readings: tuple):
    (only,) = told(*readings).report().gpus
    return only


def test_energy_saved_is_against_the_gpus_own_idle_draw():
    accounts = told(
        (0, 1_000.0, None, 1, True),
        (10, 5_000.0, None, 1, True),  # 400 W at work
        (20, 6_200.0, None, 1, False),
        (30, 7_200.0, None, 1, False),  # 100 W idle with a kernel
        (40, 8_000.0, None, 0, False),
        (100, 9_800.0, None, 0, False),  # 30 W empty
    )
    report = accounts.report()
    (gpu,) = report.gpus
    assert (gpu.idle_power_w, gpu.idle_source) == (100.0, "its energy counter")
    assert (gpu.empty_s, gpu.empty_j) == (60.0, 1_800.0)
    assert (report.used_j, report.saved_j) == (8_800.0, 60 * 70.0)
    assert (report.since_s, report.until_s, report.unknown) == (0, 100, ())


def test_without_an_idle_draw_nothing_is_claimed_to_be_saved():
    report = told((0, 0.0, None, 0, False), (60, 1_800.0, None, 0, False)).report()
    assert report.gpus[0].saved_j is None
    assert (report.saved_j, report.unknown) == (0.0, ("G0",))


def test_a_counter_that_begins_anew_counts_from_there():
    gpu = account(
        (0, 9_000.0, None, 0, False), (10, 500.0, None, 0, False), (20, 800.0, None, 0, False)
    )
    assert (gpu.used_j, gpu.resets, gpu.empty_s, gpu.empty_j) == (800.0, 1, 10.0, 300.0)


def test_without_a_counter_power_readings_serve_and_are_named():
    gpu = account((0, None, 100.0, 1, False), (10, None, 140.0, 1, False))
    assert (gpu.used_j, gpu.estimated_j) == (1_200.0, 1_200.0)
    assert (gpu.idle_power_w, gpu.idle_source) == (120.0, "its power readings")
    gpu = account((0, None, 100.0, 1, False), (10, None, None, 1, False))
    assert (gpu.used_j, gpu.idle_power_w) == (0.0, None)


def test_after_a_long_gap_the_energy_counts_and_the_state_does_not():
    gap_s = MAX_GAP_S + 1
    gpu = account((0, 0.0, None, 0, False), (gap_s, 3_000.0, None, 0, False))
    assert (gpu.used_j, gpu.empty_s) == (3_000.0, 0.0)
    gpu = account((0, None, 50.0, 0, False), (gap_s, None, 50.0, 0, False))
    assert gpu.used_j == 0.0, "two samples say nothing about hours between them"


@pytest.mark.parametrize(
    "other", [(10, 900.0, None, 1, False), (10, 900.0, None, 0, True)], ids=["kernel", "work"]
)
def test_a_span_in_two_states_is_neither_empty_nor_idle(other):
    gpu = account((0, 0.0, None, 0, False), other)
    assert (gpu.empty_s, gpu.idle_power_w, gpu.used_j) == (0.0, None, 900.0)


def test_a_reading_out_of_order_is_left_out():
    accounts = told((10, 100.0, None, 0, False), (20, 200.0, None, 0, False))
    assert accounts.read(PowerReading("G0", 15, 150.0, None, 0, False)) == accounts


def test_gpus_have_accounts_of_their_own():
    accounts = told((0, 0.0, None, 1, False), (10, 500.0, None, 1, False))
    for t_s, energy_j in ((0.0, 7_000.0), (10.0, 7_100.0)):
        accounts = accounts.read(PowerReading("G1", t_s, energy_j, None, 0, False))
    assert [(g.gpu_uuid, g.used_j) for g in accounts.report().gpus] == [
        ("G0", 500.0),
        ("G1", 100.0),
    ]


STEPS = st.tuples(
    st.floats(0.1, 300.0), st.floats(0.0, 500.0), st.integers(0, 2), st.booleans(), st.booleans()
)


@given(st.lists(STEPS, min_size=1, max_size=30))
def test_used_energy_is_what_the_counter_went_up_by_and_empty_time_is_part_of_all(steps):
    t_s = energy_j = 0.0
    accounts = told((0.0, 0.0, None, 0, False))
    total_j = 0.0
    for span_s, draw_w, kernels, busy, reset in steps:
        t_s += span_s
        energy_j = (0.0 if reset else energy_j) + draw_w * span_s
        former = accounts.last["G0"].energy_j
        total_j += energy_j if energy_j < former else energy_j - former
        accounts = accounts.read(PowerReading("G0", t_s, energy_j, None, kernels, busy))
    (gpu,) = accounts.report().gpus
    assert gpu.used_j == pytest.approx(total_j)
    assert 0.0 <= gpu.empty_s <= t_s * (1 + 1e-9)
    assert gpu.empty_j <= gpu.used_j * (1 + 1e-9)
