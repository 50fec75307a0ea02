"""Where no cell runs, every claim that some GPU can hold is granted in the end.

Kernels have one priority here: an idle kernel of a higher one is never suspended, by rule.
"""

from __future__ import annotations

from dataclasses import replace

from allocation_cluster import NOW, Cluster, bound, claim, gpu, suspended, waiting
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_gpu_predict.core.model import MIB, KernelView


@st.composite
def quiet_clusters(draw) -> Cluster:
    """Kernels that hold, are suspended or have nothing, within capacity; some of them wait."""
    totals = draw(st.lists(st.sampled_from([256, 512, 1024]), min_size=1, max_size=3))
    cluster = Cluster([gpu(i, total) for i, total in enumerate(totals)])
    largest = max(totals)
    free = list(totals)
    for i in range(draw(st.integers(1, 7))):
        kernel_id, place = f"k{i}", draw(st.integers(0, len(totals) - 1))
        kind = draw(st.sampled_from(["bound", "suspended", "none"]))
        changes = {
            "movable": True,
            "last_used_s": draw(st.sampled_from([100.0, 300.0, NOW])),
        }
        size = draw(st.integers(0, totals[place]))
        if kind == "bound":
            size = min(size, free[place])
            free[place] -= size
            used = draw(st.integers(0, size))
            k = bound(kernel_id, f"G{place}", size, used=used, **changes)
        elif kind == "suspended":
            k = suspended(kernel_id, f"G{place}", size, **changes)
        else:
            k = KernelView(kernel_id, None, **changes)
        if draw(st.booleans()):
            k = waiting(k)
            wish = claim(
                kernel_id,
                draw(st.integers(0, largest)),
                made_s=draw(st.sampled_from([700.0, 800.0, 900.0])),
                priority=draw(st.sampled_from([0, 0, 1])),
                deadline_s=1e9,
            )
            cluster.claims[wish.claim_id] = wish
        cluster.kernels[kernel_id] = k
    for k in list(cluster.kernels.values()):
        if k.lease is not None:
            cluster.change(k.kernel_id, lease=replace(k.lease, epoch=cluster.next_epoch()))
    return cluster


@given(quiet_clusters())
@settings(max_examples=150, deadline=None)
def test_every_claim_is_granted_in_the_end(cluster):
    wanted = set(cluster.claims)
    for _ in range(12 * (len(wanted) + 1)):
        cluster.step()
        for k in list(cluster.kernels.values()):
            if k.migrating:
                cluster.end_migration(k.kernel_id, commit=True)
            elif k.busy and not k.waiting:
                used = k.lease.bytes
                cluster.change(k.kernel_id, busy=False, used_bytes=used, last_used_s=cluster.now_s)
        if not cluster.claims:
            break
        cluster.now_s += 6.0
    assert not cluster.claims
    assert not cluster.refused
    assert set(cluster.granted) == wanted


def test_two_that_hold_and_wait_are_served_one_after_the_other():
    cluster = Cluster([gpu(0)])
    for kernel_id in ("early", "late"):
        k = waiting(bound(kernel_id, "G0", 256))
        cluster.kernels[kernel_id] = replace(k, lease=replace(k.lease, epoch=cluster.next_epoch()))
    for kernel_id, made_s in (("early", 800.0), ("late", 900.0)):
        wish = claim(kernel_id, 512, made_s=made_s)
        cluster.claims[wish.claim_id] = wish

    cluster.step()
    assert cluster.granted == ["c-early"]
    assert cluster.kernels["late"].suspended_bytes == 256 * MIB

    cluster.now_s += 1.0
    cluster.change("early", busy=False, last_used_s=cluster.now_s)
    cluster.step()
    assert cluster.granted == ["c-early"], "the grace period of what just ran is respected"
    cluster.now_s += 6.0
    cluster.step()
    assert cluster.granted == ["c-early", "c-late"]
    assert cluster.kernels["late"].used_bytes == 256 * MIB
