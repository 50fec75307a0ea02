from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.core.allocation.lease import (
    RULES,
    LeaseEvent,
    advance,
    check_epoch,
    open_lease,
    resize,
)
from jupyter_gpu_predict.core.model import Lease, LeaseState
from jupyter_gpu_predict.errors import BadInputError, ConflictError, StaleEpochError


def opened(event: LeaseEvent = LeaseEvent.BIND, **changes) -> Lease:
    known = {"kernel_id": "k", "gpu_uuid": "G0", "bytes": 100, "epoch": 5, "now_s": 10.0}
    return open_lease(event, **{**known, **changes})


def test_a_reservation_is_bound_suspended_resumed_and_released():
    reserved = opened(LeaseEvent.RESERVE, expires_s=40.0)
    assert (reserved.state, reserved.expires_s) == (LeaseState.RESERVED, 40.0)

    bound = advance(reserved, LeaseEvent.BIND, now_s=11.0, epoch=6, gpu_uuid="G1", bytes=200)
    assert (bound.state, bound.gpu_uuid, bound.bytes, bound.expires_s) == (
        LeaseState.BOUND,
        "G1",
        200,
        None,
    )
    suspended = advance(bound, LeaseEvent.SUSPEND, now_s=12.0, epoch=7, resident_bytes=30)
    assert suspended.held_bytes == 30
    back = advance(suspended, LeaseEvent.RESUME, now_s=13.0, epoch=8)
    assert (back.held_bytes, back.resident_bytes, back.since_s) == (200, 0, 13.0)
    assert advance(back, LeaseEvent.RELEASE, now_s=14.0).held_bytes == 0


@pytest.mark.parametrize("state", list(LeaseState))
@pytest.mark.parametrize("event", list(LeaseEvent))
def test_what_is_not_in_the_table_is_refused_by_name(state, event):
    lease = Lease("k", "G0", 100, state, 5, 0.0)
    former = Lease("k", "G0", 100, LeaseState.BOUND, 4, 0.0)
    if (state, event) in RULES:
        after = advance(lease, event, now_s=1.0, epoch=6, former=former)
        assert after.epoch == 6
    else:
        with pytest.raises(ConflictError, match=f"{event.value}.*{state.value}"):
            advance(lease, event, now_s=1.0, epoch=6, former=former)


def test_a_released_lease_is_final_and_a_new_one_needs_a_newer_epoch():
    over = advance(opened(), LeaseEvent.RELEASE, now_s=11.0)
    assert not [event for state, event in RULES if state is LeaseState.RELEASED]
    with pytest.raises(StaleEpochError, match="does not exceed"):
        opened(previous=over, epoch=5)
    assert opened(previous=over, epoch=6).state is LeaseState.BOUND
    with pytest.raises(ConflictError, match="already has a lease"):
        opened(previous=opened(), epoch=6)
    with pytest.raises(ConflictError, match="needs one"):
        opened(LeaseEvent.SUSPEND)


def test_grants_need_a_greater_epoch():
    with pytest.raises(BadInputError, match="needs a new epoch"):
        advance(opened(), LeaseEvent.SUSPEND, now_s=11.0)
    for epoch in (4, 5):
        with pytest.raises(StaleEpochError):
            advance(opened(), LeaseEvent.SUSPEND, now_s=11.0, epoch=epoch)


def test_commands_with_another_epoch_are_refused():
    lease = opened()
    check_epoch(lease, 5)
    with pytest.raises(StaleEpochError, match=r"epoch 4.*epoch 5"):
        advance(lease, LeaseEvent.RELEASE, now_s=11.0, command_epoch=4)
    with pytest.raises(ConflictError, match="has not reached") as caught:
        check_epoch(lease, 6)
    assert not isinstance(caught.value, StaleEpochError)


def test_suspended_state_does_not_change_gpu_without_a_migration():
    suspended = advance(opened(), LeaseEvent.SUSPEND, now_s=11.0, epoch=6)
    with pytest.raises(ConflictError, match="from G0 to G1; migrate it"):
        advance(suspended, LeaseEvent.RESUME, now_s=12.0, epoch=7, gpu_uuid="G1")


@pytest.mark.parametrize("event", [LeaseEvent.BIND, LeaseEvent.RESERVE])
def test_an_aborted_migration_puts_the_lease_back(event):
    former = opened(event, expires_s=40.0)
    moving = advance(former, LeaseEvent.BEGIN_MIGRATION, now_s=20.0)
    assert moving.held_bytes == 100
    back = advance(moving, LeaseEvent.ABORT_MIGRATION, now_s=former.since_s, former=former)
    assert back == former


def test_a_suspended_lease_moves_without_holding_more():
    former = advance(opened(), LeaseEvent.SUSPEND, now_s=11.0, epoch=6, resident_bytes=30)
    moving = advance(former, LeaseEvent.BEGIN_MIGRATION, now_s=12.0)
    assert moving.held_bytes == 30
    back = advance(moving, LeaseEvent.ABORT_MIGRATION, now_s=11.0, former=former)
    assert back == former
    moved = advance(
        moving, LeaseEvent.COMMIT_MIGRATION, now_s=13.0, epoch=7, gpu_uuid="G1", former=former
    )
    assert (moved.state, moved.gpu_uuid, moved.bytes) == (LeaseState.SUSPENDED, "G1", 100)
    assert moved.held_bytes == 0


def test_the_end_of_a_migration_needs_the_lease_from_before():
    moving = advance(opened(), LeaseEvent.BEGIN_MIGRATION, now_s=12.0)
    for former in (None, moving, opened(kernel_id="other")):
        with pytest.raises(BadInputError):
            advance(moving, LeaseEvent.ABORT_MIGRATION, now_s=13.0, former=former)


def test_resize_keeps_all_but_the_size():
    lease = opened()
    assert resize(lease, 40) == Lease("k", "G0", 40, LeaseState.BOUND, 5, 10.0)
    with pytest.raises(ConflictError):
        resize(advance(lease, LeaseEvent.RELEASE, now_s=11.0), 40)
    with pytest.raises(BadInputError, match="-1 bytes"):
        resize(lease, -1)


@given(st.lists(st.tuples(st.sampled_from(list(LeaseEvent)), st.sampled_from(["G0", "G1"]))))
def test_epochs_only_grow_and_a_refused_event_changes_nothing(history):
    lease, former, epoch = opened(), None, 5
    for event, uuid in history:
        epoch += 1
        before = lease
        try:
            lease = advance(
                lease, event, now_s=float(epoch), epoch=epoch, gpu_uuid=uuid, former=former
            )
        except (ConflictError, BadInputError):
            assert lease == before
            continue
        assert lease.epoch > before.epoch
        assert before.state is not LeaseState.RELEASED
        if event is LeaseEvent.BEGIN_MIGRATION:
            former = before
        if lease.gpu_uuid != before.gpu_uuid:
            assert before.state is not LeaseState.SUSPENDED
