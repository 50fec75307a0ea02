"""Some of the random sequences; `random_sequences.py` runs as many as one likes."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulators.machine import random_sequences

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("accelerator")]


def test_nothing_is_lost_and_no_gpu_holds_more_than_it_has(tmp_path: Path) -> None:
    # This seed has a move, and a checkpoint whose helper is killed.
    result = random_sequences.run(
        tmp_path, sequences=2, seed=50, kernels=3, gpus=2, driver_share=0.03
    )
    assert result["faults"] == []
    assert (result["lost_bytes"], result["dead_kernels"], result["capacity_violations"]) == (
        0,
        0,
        0,
    )
    assert result["looks_at_the_ledger"] > 3
    assert result["bytes_compared"] > 50 << 20
    assert set(result["done"]) >= {
        "helper killed in lock",
        "move",
        "partial reclaim",
        "reclaim",
        "restore",
        "train",
    }
