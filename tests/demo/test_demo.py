"""The main job, whole, as `make demo` runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jupyter_gpu_predict.demo.facts import count


@pytest.mark.timeout(500)
def test_the_main_job_holds(tmp_path: Path) -> None:
    facts_file = tmp_path / "facts.json"
    ended = subprocess.run(
        [sys.executable, "-m", "jupyter_gpu_predict.cli", "demo", "--json", str(facts_file)],
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-3000:]
    facts = json.loads(facts_file.read_text())
    assert facts["simulated"] is True
    assert facts["gpus"] == 2
    assert facts["kernels"] >= 3
    assert facts["prebind_hits"] >= 1
    assert facts["reclaims"] >= 2
    assert facts["restores"] >= 2
    assert facts["migrations"] >= 1
    assert facts["state_equal"] == facts["state_checked"] > 20
    assert facts["kernels_lost"] == facts["cells_failed"] == 0
    assert sum(facts["forecast_models"].values()) == facts["forecasts"]


def test_facts_are_counted_from_events_and_shortfalls_are_said() -> None:
    events = [
        {"kind": "bound", "origin": "cell", "waited_s": 2.0},
        {"kind": "bound", "origin": "cell", "waited_s": 0.01},
        {"kind": "bound", "origin": "rest", "waited_s": 9.0},
        {"kind": "claim"},
        {"kind": "reclaimed", "bytes": 10},
        {"kind": "reclaimed", "bytes": 5},
        {"kind": "forecast", "model": "prophet"},
    ]
    facts = count(
        events, simulated=True, gpus=2, kernels=1, cells=2, state_checked=30, state_equal=29,
        kernels_lost=0, cells_failed=0, wall_s=1.0,
    )  # fmt: skip
    assert (facts.claims.total, facts.claims.waited, facts.claims.max_wait_s) == (1, 1, 2.0)
    assert (facts.reclaims, facts.reclaimed_bytes) == (2, 15)
    assert facts.forecast_models == {"prophet": 1}
    said = " ".join(facts.shortfalls())
    for part in ("pre-bind", "0 restores", "migrated", "1 pieces of state differ"):
        assert part in said
