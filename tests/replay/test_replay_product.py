"""The product's own policy in a replay: what it knows, and when it is asked."""

import math
from dataclasses import replace

import pytest
from replay_cases import delays, replayed, workload

from jupyter_gpu_predict.core.allocation.policy import decide
from jupyter_gpu_predict.core.model import PolicySettings
from jupyter_gpu_predict.core.plans import Plan, Queue
from jupyter_gpu_predict.errors import ConflictError
from jupyter_gpu_predict.replay.machine import Costs
from jupyter_gpu_predict.replay.policies.product import BEGIN_S, Product

AT_ONCE = PolicySettings(grace_period_s=0.0)
HALTS = replace(AT_ONCE, preempt=True)


def test_it_holds_until_another_needs_it_and_takes_the_least_recent():
    load = workload([(0, 10), (200, 10)], [(0, 20), (180, 10)], [(50, 10)])
    outcome = replayed(load, Product(AT_ONCE), gpus=2)
    found = delays(outcome)
    assert found[2, 0] == 4
    assert found[1, 1] == 0
    assert outcome.beside_s == 0


def test_the_grace_period_is_seen():
    load = workload([(0, 100), (500, 10)], [(101, 10)])
    found = delays(replayed(load, Product(PolicySettings(grace_period_s=5.0))))
    # Idle from 102 s on; asked for at 101 s.
    assert found[1, 0] == 102 + 5 - 101 + 4


def test_without_preemption_a_running_burst_is_let_be():
    load = workload([(0, 1000)], [(100, 10)])
    outcome = replayed(load, Product(AT_ONCE))
    assert outcome.halts == 0
    assert delays(outcome)[1, 0] == 1002 - 100 + 2


def test_with_preemption_a_long_burst_makes_way_and_goes_on():
    load = workload([(0, 1000)], [(100, 10)])
    outcome = replayed(load, Product(HALTS))
    assert outcome.halts == 1
    assert delays(outcome) == {(1, 0): 4, (0, 0): 2 + 2 + 2 + 10 + 2}


def test_the_minimum_between_switches_is_waited_for_without_an_event():
    """Nothing happens at 60 s but that the burst has had its minimum."""
    found = delays(replayed(workload([(0, 1000)], [(30, 10)]), Product(HALTS)))
    assert found[1, 0] == pytest.approx(62 - 30 + 4, abs=1.0)


def test_a_burst_on_its_way_is_not_halted_however_long_that_takes():
    load = workload(*[[(float(i), 3000)] for i in range(6)])
    costs = Costs(100.0, 100.0, 100.0, 200.0)
    assert replayed(load, Product(HALTS), costs=costs).halts > 0


def test_state_in_the_host_goes_to_a_gpu_that_is_free_and_pays_for_the_move():
    """Evicted from the first GPU, which is busy again, while the other has fallen free."""
    load = workload([(0, 10), (300, 10)], [(1, 200)], [(50, 900)])
    outcome = replayed(load, Product(AT_ONCE), gpus=2)
    assert outcome.moves == 1
    assert delays(outcome)[0, 1] == 4 + 2


class Probing(Product):
    """Also asks each second, as the live loop does: in between nothing may be there to do."""

    probes = 0

    def decide(self, sim):
        asked_anyway = self._changed or self._moving or sim.now_s >= self._again_s
        if self._claims and not asked_anyway:
            self.probes += 1
            plan = decide(self._view())
            assert {type(a) for a in plan.actions} <= {Queue}, (sim.now_s, plan)
        super().decide(sim)
        if self._claims:
            sim.wake(math.floor(sim.now_s) + 1.0)


@pytest.mark.parametrize("preempt", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_what_is_not_asked_would_have_changed_nothing(preempt, shared):
    own = [[(17.0 * i, 90.0 + 40 * i), (120.0, 400.0 - 60 * i)] for i in range(5)]
    policy = Probing(PolicySettings(preempt=preempt))
    replayed(workload(*own, gib=35), policy, 2, shared=shared)
    assert policy.probes > 100


def test_what_it_is_told_of_duties_can_be_wrong():
    seen = []

    class Telling(Product):
        def _view(self):
            view = super()._view()
            seen.extend(k.duty for k in view.kernels)
            assert view.now_s >= BEGIN_S
            return view

    replayed(workload([(0, 5)], duty=0.3), Telling(duty_factor=2.0), shared=True)
    assert set(seen) == {0.6}


def test_a_claim_that_is_never_granted_ends_the_replay(monkeypatch):
    """The product looks again each minute, for ever."""
    idle = Plan(0.0, ())
    monkeypatch.setattr("jupyter_gpu_predict.replay.policies.product.decide", lambda _: idle)
    with pytest.raises(ConflictError, match="wait for ever"):
        replayed(workload([(0, 10)]), Product(AT_ONCE))
