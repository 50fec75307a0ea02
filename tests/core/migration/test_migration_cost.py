from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.core.migration.cost import (
    LEARNING_RATE,
    Ability,
    Bandwidths,
    Transfer,
    checkpoint_s,
    choose_rung,
    learn,
    relaunch_s,
    restore_s,
    resume_s,
    suspend_s,
)
from jupyter_gpu_predict.core.model import GIB, MIB, Rung
from jupyter_gpu_predict.errors import BadInputError, RefusedError


def test_the_first_measurement_replaces_the_default_and_later_ones_are_averaged():
    once = learn(Bandwidths(), Transfer.RESTORE, 4 * GIB, 2.0)
    assert once.restore_bytes_per_s == 2 * GIB
    assert once.measured == ("restore",)
    twice = learn(once, Transfer.RESTORE, 4 * GIB, 1.0)
    assert twice.restore_bytes_per_s == pytest.approx(2 * GIB * (1 + LEARNING_RATE))
    assert twice.measured == ("restore",)
    assert twice.suspend_bytes_per_s == Bandwidths().suspend_bytes_per_s


def test_small_transfers_teach_nothing_and_a_launch_teaches_seconds():
    assert learn(Bandwidths(), Transfer.SUSPEND, MIB - 1, 1.0) == Bandwidths()
    assert learn(Bandwidths(), Transfer.LAUNCH, 0, 1.5).launch_s == 1.5
    assert learn(Bandwidths(), Transfer.HELPER, 0, 0.5).helper_s == 0.5


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_impossible_measurements_are_refused(seconds):
    with pytest.raises(BadInputError, match="no duration"):
        learn(Bandwidths(), Transfer.CAPTURE, GIB, seconds)
    with pytest.raises(BadInputError, match="-1 bytes"):
        learn(Bandwidths(), Transfer.CAPTURE, -1, 1.0)


@given(
    st.sampled_from(list(Transfer)),
    st.lists(st.tuples(st.integers(MIB, 1 << 40), st.floats(1e-3, 1e4)), min_size=1),
)
def test_an_average_stays_within_what_was_measured(kind, samples):
    bandwidths = Bandwidths()
    for size, seconds in samples:
        bandwidths = learn(bandwidths, kind, size, seconds)
    if kind in (Transfer.LAUNCH, Transfer.HELPER):
        values, got = [s for _, s in samples], getattr(bandwidths, f"{kind.value}_s")
    else:
        values = [n / s for n, s in samples]
        got = getattr(bandwidths, f"{kind.value}_bytes_per_s")
    assert min(values) * (1 - 1e-9) <= got <= max(values) * (1 + 1e-9)


def test_costs_are_bytes_over_bandwidth():
    speeds = Bandwidths(1e9, 2e9, 4e9, 8e9, 1e9, 2e9, launch_s=9.0, switch_s=0.5, helper_s=0.25)
    assert suspend_s(speeds, 10**9) == 1.0
    assert restore_s(speeds, 10**9) == 0.5
    assert resume_s(speeds, 10**9) == 0.75
    assert checkpoint_s(speeds, 10**9) == 1.25 + 0.75
    assert relaunch_s(speeds, 8 * 10**9) == 2.0 + 1.0 + 0.5


def test_in_place_is_the_rung_for_a_reclaim_and_relaunch_for_a_move():
    here = choose_rung(Bandwidths(), device_bytes=1200 * 10**6, to_other_gpu=False)
    assert here.rung is Rung.IN_PLACE
    assert here.reason == (
        "in place, 2.00 s predicted for 1.12 GiB (driver checkpoint: not proven on this machine)"
    )
    away = choose_rung(Bandwidths(), device_bytes=MIB, state_bytes=2 * MIB, to_other_gpu=True)
    assert away.rung is Rung.RELAUNCH


def test_a_proven_checkpoint_is_taken_where_it_is_cheaper():
    fast = Bandwidths(checkpoint_bytes_per_s=1e12, resume_bytes_per_s=1e12, helper_s=0.1)
    can = Ability(why_not_checkpoint=None)
    for other in (False, True):
        choice = choose_rung(
            fast, device_bytes=GIB, state_bytes=2 * GIB, to_other_gpu=other, ability=can
        )
        assert choice.rung is Rung.DRIVER_CHECKPOINT
    assert "(relaunch: 3.51 s)" in choice.reason


def test_what_the_driver_moves_besides_counts_against_it():
    speeds = Bandwidths(checkpoint_bytes_per_s=2e9, resume_bytes_per_s=2e9, helper_s=0.1)
    can = Ability(why_not_checkpoint=None)
    sizes = {"device_bytes": 10**9, "to_other_gpu": False, "ability": can}
    assert choose_rung(speeds, **sizes).rung is Rung.DRIVER_CHECKPOINT
    assert choose_rung(speeds, **sizes, process_bytes=2 * 10**9).rung is Rung.IN_PLACE


def test_without_an_agent_only_the_driver_is_left():
    can = Ability(why_not_in_place="it has no agent", why_not_checkpoint=None)
    choice = choose_rung(Bandwidths(), device_bytes=GIB, to_other_gpu=False, ability=can)
    assert choice.rung is Rung.DRIVER_CHECKPOINT
    assert "in place: it has no agent" in choice.reason


def test_a_move_that_costs_more_than_it_gains_is_not_worth_it():
    sizes = {"device_bytes": GIB, "state_bytes": GIB, "to_other_gpu": True}
    cost_s = choose_rung(Bandwidths(), **sizes).cost_s
    assert choose_rung(Bandwidths(), **sizes, gain_s=cost_s + 1).worth_it
    assert not choose_rung(Bandwidths(), **sizes, gain_s=cost_s).worth_it


def test_with_no_way_left_the_reasons_are_named():
    can = Ability(why_not_in_place="a CUDA graph is alive", why_not_relaunch="it has no agent")
    for other, said in ((False, "a CUDA graph is alive"), (True, "it has no agent")):
        with pytest.raises(RefusedError, match=said) as caught:
            choose_rung(Bandwidths(), device_bytes=1, to_other_gpu=other, ability=can)
        assert "not proven" in str(caught.value)


def test_bandwidths_come_back_as_they_were_kept():
    known = learn(learn(Bandwidths(), Transfer.RESUME, GIB, 0.5), Transfer.HELPER, 0, 0.7)
    assert Bandwidths.from_json(known.to_json()) == known


@pytest.mark.parametrize("value", [None, "fast", True, -1.0, 0, math.nan, math.inf])
def test_speeds_that_cannot_be_keep_their_default(value):
    kept = {"resume_bytes_per_s": value, "measured": ["resume", "nonsense"], "later": 1}
    assert Bandwidths.from_json(kept) == Bandwidths()
