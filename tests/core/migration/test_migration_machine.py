from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.core.migration.machine import (
    RULES,
    Migration,
    MigrationEvent,
    MigrationState,
    Undo,
    advance,
    request,
    undo_steps,
)
from jupyter_gpu_predict.core.model import Lease, LeaseState, Rung
from jupyter_gpu_predict.errors import ConflictError

LEASE = Lease("k", "G0", 100, LeaseState.BOUND, 3, 0.0)
FORWARD = [
    MigrationEvent.STANDBY_READY,
    MigrationEvent.STATE_CAPTURED,
    MigrationEvent.STATE_VERIFIED,
    MigrationEvent.PORTS_SWITCHED,
    MigrationEvent.OLD_GONE,
]


def requested(running=(), former: Lease = LEASE, target: str = "G1") -> Migration:
    return request(
        running,
        migration_id="m1",
        former=former,
        target_gpu_uuid=target,
        rung=Rung.RELAUNCH,
        now_s=1.0,
        reason="G0 is likely to fail soon",
    )


def at(state: MigrationState) -> Migration:
    migration = requested()
    if state is MigrationState.ABORTED:
        return advance(migration, MigrationEvent.ABORT, now_s=2.0)
    for event in FORWARD:
        if migration.state is state:
            break
        migration = advance(migration, event, now_s=2.0)
    return migration


def test_a_migration_goes_through_its_steps():
    migration = at(MigrationState.DONE)
    assert (migration.state, migration.over, migration.former) == (MigrationState.DONE, True, LEASE)


@pytest.mark.parametrize("state", list(MigrationState))
@pytest.mark.parametrize("event", list(MigrationEvent))
def test_what_is_not_in_the_table_is_refused_by_name(state, event):
    migration = at(state)
    assert migration.state is state
    if (state, event) in RULES:
        assert advance(migration, event, now_s=3.0).since_s == 3.0
    else:
        with pytest.raises(ConflictError, match=rf"{event.value}.*{state.value}"):
            advance(migration, event, now_s=3.0)


def test_it_can_be_aborted_up_to_the_switch_and_says_why():
    for state in (MigrationState.REQUESTED, MigrationState.STANDBY, MigrationState.VERIFIED):
        aborted = advance(at(state), MigrationEvent.ABORT, now_s=3.0, reason="the disk is full")
        assert aborted.over
        assert aborted.reason == "the disk is full"
    for state in (MigrationState.SWITCHED, MigrationState.DONE):
        with pytest.raises(ConflictError):
            advance(at(state), MigrationEvent.ABORT, now_s=3.0)


def test_a_kernel_has_one_migration_at_a_time():
    with pytest.raises(ConflictError, match="moving to G1 already"):
        requested([requested()])
    assert requested([at(MigrationState.ABORTED), at(MigrationState.DONE)])
    other = Lease("other", "G0", 100, LeaseState.BOUND, 4, 0.0)
    assert requested([requested()], former=other)


def test_a_lease_that_cannot_move_is_refused():
    over = Lease("k", "G0", 100, LeaseState.RELEASED, 3, 0.0)
    with pytest.raises(ConflictError, match="released"):
        requested(former=over)
    with pytest.raises(ConflictError, match="on G0 already"):
        requested(target="G0")


def test_an_abort_frees_the_user_first_and_puts_back_all_that_was_begun():
    assert set(undo_steps(MigrationState.STANDBY)) == set(Undo)
    assert undo_steps(MigrationState.CAPTURED)[0] is Undo.RESUME_SOURCE
    before_hold = undo_steps(MigrationState.REQUESTED)
    assert Undo.RELEASE_HELD_MESSAGES not in before_hold
    assert Undo.FREE_TARGET in before_hold
    for state in (MigrationState.SWITCHED, MigrationState.DONE, MigrationState.ABORTED):
        assert undo_steps(state) == ()


def test_whatever_can_be_aborted_can_be_undone():
    abortable = {state for state, event in RULES if event is MigrationEvent.ABORT}
    assert abortable == {state for state in MigrationState if undo_steps(state)}


@given(st.lists(st.sampled_from(list(MigrationEvent))))
def test_steps_are_taken_in_order_and_never_back(events):
    order = list(MigrationState)
    migration = requested()
    for event in events:
        before = migration
        try:
            migration = advance(migration, event, now_s=2.0)
        except ConflictError:
            assert migration == before
            continue
        assert not before.over
        if migration.state is not MigrationState.ABORTED:
            assert order.index(migration.state) == order.index(before.state) + 1
