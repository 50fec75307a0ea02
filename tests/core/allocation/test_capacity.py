from __future__ import annotations

from dataclasses import replace

import pytest
from allocation_cluster import bound, claim, gpu, lease, suspended, view

from jupyter_gpu_predict.core.allocation.capacity import (
    check_satisfiable,
    largest_gpu_bytes,
    matches,
    needed_bytes,
    takes_new_leases,
)
from jupyter_gpu_predict.core.allocation.ledger import Ledger
from jupyter_gpu_predict.core.model import MIB, KernelView, LeaseState, RiskLevel
from jupyter_gpu_predict.errors import UnsatisfiableError


def test_free_is_what_neither_leases_nor_others_nor_migrations_hold():
    kernels = [
        bound("a", "G0", 100),
        bound("grown", "G0", 50, used=80),
        suspended("away", "G0", 300),
        KernelView("stuck", lease("stuck", "G0", 200, LeaseState.SUSPENDED, resident_bytes=7)),
        replace(
            bound("moving", "G0", 60),
            migrating=True,
            target_gpu_uuid="G1",
            target_bytes=60 * MIB,
        ),
        KernelView("over", lease("over", "G0", 500, LeaseState.RELEASED)),
    ]
    gpus = [gpu(0, foreign_bytes=10 * MIB), gpu(1), gpu(2, lost=True)]
    assert Ledger(view(gpus, kernels)).free == {
        "G0": (512 - 10 - 100 - 80 - 60) * MIB - 7,
        "G1": (512 - 60) * MIB,
        "G2": 0,
    }


def test_a_claim_is_never_less_than_the_state_it_brings_back():
    assert needed_bytes(suspended("a", "G0", 300), claim("a", 100)) == 300 * MIB
    assert needed_bytes(bound("a", "G0", 300), claim("a", 400)) == 400 * MIB
    # Just suspended: the last sample still shows the memory in use.
    late = replace(suspended("a", "G0", 300), used_bytes=300 * MIB)
    assert needed_bytes(late, claim("a", 100)) == 300 * MIB


def test_affinity_is_a_uuid_or_a_part_of_a_name():
    h100 = replace(gpu(0), name="NVIDIA H100 80GB")
    assert all(matches(h100, a) for a in (None, "h100", "NVIDIA", "g0"))
    assert not matches(h100, "A100")
    assert not matches(h100, "G1")


@pytest.mark.parametrize(
    "changes", [{"cordoned": True}, {"lost": True}, {"risk": RiskLevel.CRITICAL}]
)
def test_a_closed_gpu_takes_no_new_leases(changes):
    assert takes_new_leases(gpu(0, risk=RiskLevel.WARNING))
    assert not takes_new_leases(gpu(0, **changes))


def test_what_no_gpu_can_hold_is_refused_with_the_largest():
    gpus = [gpu(0), gpu(1, 1024, cordoned=True), gpu(2, 4096, lost=True)]
    assert largest_gpu_bytes(gpus) == 1024 * MIB
    check_satisfiable(claim("a", 1024), gpus)
    with pytest.raises(UnsatisfiableError, match=r"1\.5 GiB is more.*\(1 GiB\)"):
        check_satisfiable(claim("a", 1536), gpus)
    with pytest.raises(UnsatisfiableError, match=r"for 'G0' has \(512 MiB\)"):
        check_satisfiable(claim("a", 600, affinity="G0"), gpus)
    with pytest.raises(UnsatisfiableError, match="no GPU is called 'H100'"):
        check_satisfiable(claim("a", 1, affinity="H100"), gpus)
    with pytest.raises(UnsatisfiableError, match="no GPU that answers"):
        check_satisfiable(claim("a", 1), [gpus[2]])
