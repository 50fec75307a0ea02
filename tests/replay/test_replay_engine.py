from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_cases import delays, replayed, workload

from jupyter_gpu_predict.errors import BadInputError, ConflictError
from jupyter_gpu_predict.replay.machine import Costs, at_speed
from jupyter_gpu_predict.replay.policies import choose, entrants
from jupyter_gpu_predict.replay.policies.classic import (
    Exclusive,
    Fifo,
    Histogram,
    IdleTimeout,
    Lru,
    OnDemand,
    Reservation,
    Sjf,
)
from jupyter_gpu_predict.replay.policies.preempting import LeastAttained, ShortestRemaining
from jupyter_gpu_predict.replay.policies.product import Product

LONG = [(0, 1000)]


def test_fifo_serves_in_turn_and_sjf_the_shortest():
    load = workload(LONG, [(1, 100)], [(2, 10)])
    assert delays(replayed(load, Fifo())) == {(0, 0): 0, (1, 0): 999, (2, 0): 1098}
    assert delays(replayed(load, Sjf())) == {(0, 0): 0, (2, 0): 998, (1, 0): 1009}


def test_the_loop_is_closed():
    """A burst that was late puts off what follows, and its thought is kept."""
    load = workload([(0, 100)], [(0, 10), (5, 10)])
    assert delays(replayed(load, Fifo()))[1, 1] == 0


def test_switches_take_their_time():
    load = workload([(0, 10), (100, 10)], [(50, 10)])
    outcome = replayed(load, Lru(), costs=Costs(1.0, 3.0, 7.0))
    # First bind; suspend and bind for the other, which then is over for nothing; restore.
    assert delays(outcome) == {(0, 0): 1, (1, 0): 3 + 1, (0, 1): 7}
    assert outcome.switch_s == 1 + 3 + 1 + 7
    assert outcome.evictions == 1


def test_lru_takes_from_who_has_been_idle_longest():
    load = workload([(0, 10), (200, 10)], [(0, 20), (180, 10)], [(50, 10)])
    found = delays(replayed(load, Lru(), gpus=2))
    assert found[0, 1] > found[1, 1] == 0


def test_reservation_keeps_to_the_end():
    load = workload([(0, 10), (500, 10)], [(5, 10)])
    outcome = replayed(load, Reservation())
    assert delays(outcome)[1, 0] == 12 + 500 + 10 - 5 + 2
    assert outcome.beside_s == 500
    assert outcome.idle_held_s == 500


def test_an_idle_timeout_gives_after_its_time_and_under_pressure_at_once():
    load = workload([(0, 10), (500, 10)], [(20, 10)])
    late = delays(replayed(load, IdleTimeout(100.0)))[1, 0]
    assert late == 12 + 100 - 20 + 2 + 2
    assert delays(replayed(load, IdleTimeout(100.0, pressure=True)))[1, 0] == 4


def test_on_demand_pays_for_each_burst():
    outcome = replayed(workload([(0, 10), (50, 10), (50, 10)]), OnDemand())
    assert delays(outcome) == {(0, 0): 2, (0, 1): 2, (0, 2): 2}
    assert outcome.evictions == 2


def test_the_histogram_brings_back_ahead_of_a_regular_return():
    regular = [(0, 30)] + [(1800, 30)] * 30
    outcome = replayed(workload(regular), Histogram())
    assert outcome.brought_back > 10
    assert delays(outcome)[0, 30] == 0
    assert outcome.idle_held_s < 30 * 1800
    assert outcome.wrongly == 0


def test_what_was_brought_back_for_nothing_is_counted():
    returns = [(0, 30)] + [(1800, 30)] * 20 + [(3 * 3600, 30)]
    outcome = replayed(workload(returns), Histogram())
    assert outcome.wrongly == 1


def test_las_halts_the_long_for_the_short_and_loses_no_work():
    load = workload(LONG, [(100, 10)])
    outcome = replayed(load, LeastAttained())
    assert delays(outcome) == {(1, 0): 4, (0, 0): 2 + 2 + 2 + 10 + 2}
    assert outcome.halts == 1
    young = workload(LONG, [(30, 10)])
    assert delays(replayed(young, LeastAttained()))[1, 0] == 2 + 60 - 30 + 4


def test_predicted_srpt_lets_a_burst_finish_that_is_nearly_over():
    load = workload([(0, 100)], [(90, 100)])
    exact = ShortestRemaining(error=1.0)
    assert replayed(load, exact).halts == 0
    assert replayed(workload(LONG, [(90, 100)]), exact).halts == 1


def test_bursts_share_a_gpu_at_full_speed_until_their_duties_sum_to_more():
    both = workload([(0, 100)], [(0, 100)], duty=0.5)
    assert set(replayed(both, Product(), shared=True).delay_s) == {2}
    crowd = workload([(0, 100)], [(50, 100)], duty=1.0)
    # The first has 50 s alone, then both go at half speed until it is over.
    found = delays(replayed(crowd, Product(), shared=True, costs=Costs(0, 0, 0, 0)))
    assert found == {(0, 0): 50, (1, 0): 50}


def test_a_fixed_speed_of_sharing_applies_to_any_duty():
    both = workload([(0, 55)], [(0, 55)], duty=0.0)
    machine = {"shared": True, "speed": at_speed(0.55), "costs": Costs(0, 0, 0, 0)}
    assert replayed(both, Product(), **machine).delay_s == pytest.approx([45, 45])


class Starving(Exclusive):
    def decide(self, sim):
        """Serve nobody."""


class Greedy(Exclusive):
    def room(self, sim, book):
        return sim.gpus[0]


def test_a_policy_that_starves_or_overbooks_is_refused():
    with pytest.raises(ConflictError, match="wait for ever"):
        replayed(workload(LONG), Starving())
    with pytest.raises(ConflictError, match="bytes free"):
        replayed(workload(LONG, LONG), Greedy())


def test_a_notebook_without_bursts_is_over_at_once():
    assert replayed(workload([], LONG), Lru()).end_s == 1002


def test_policies_are_chosen_by_name():
    assert [e.name for e in choose("LAS; product")] == ["LAS", "product"]
    assert len(choose("all")) == len(entrants()) >= 15
    with pytest.raises(BadInputError, match=r"Best.*known: FIFO"):
        choose("Best")


bursts = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 900)), min_size=0, max_size=4)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(bursts, min_size=1, max_size=5).filter(any),
    st.integers(1, 2),
    st.sampled_from(sorted(entrants())),
)
def test_every_policy_does_every_burst_within_what_there_is(loads, gpus, name):
    entrant = entrants()[name]
    load = workload(*loads, duty=0.6, gib=30)
    outcome = replayed(load, entrant.make(), gpus, shared=entrant.shared)
    again = replayed(load, entrant.make(), gpus, shared=entrant.shared)
    assert outcome == again, "the same workload gave two outcomes"
    work_s = sum(w for own in loads for _, w in own)
    assert sum(outcome.work_s) == work_s
    if not entrant.shared:
        assert outcome.end_s * gpus >= work_s


def test_nobody_does_better_in_all_than_a_clairvoyant_on_one_gpu():
    load = workload(*([(7 * i, 100 + i), (300, 50)] for i in range(5)))
    best = sum(replayed(load, Sjf()).delay_s)
    for make in (Lru, OnDemand, Reservation, partial(Product)):
        assert sum(replayed(load, make()).delay_s) > best


def test_a_burst_that_outlasts_its_prediction_is_halted_without_another_event():
    """Predicted at 72 s, it has run for longer than twice the other's 100 s at 200 s."""
    policy = ShortestRemaining(error=1.0)
    begin = policy.begin

    def wrong(sim):
        begin(sim)
        policy._factor = [[0.002], [1.0]]

    policy.begin = wrong
    outcome = replayed(workload([(0, 36_000)], [(75, 100)]), policy)
    assert outcome.halts == 1
    assert delays(outcome)[1, 0] == pytest.approx(202 - 75 + 4, abs=1.0)
