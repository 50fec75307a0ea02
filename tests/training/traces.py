"""A trace store whose notebooks use a GPU in a way that can be learned."""

from __future__ import annotations

import random
from pathlib import Path

from jupyter_gpu_predict.core.model import CellRun, Outcome
from jupyter_gpu_predict.store.trace_store import Store

GIB = 1 << 30


def rhythmic_runs(notebook: str, *, seed: int, runs: int = 45) -> list[CellRun]:
    """Return bursts of three short cells with 30 s of rest between them: not what chance does."""
    chance = random.Random(seed)
    t, made = 1_700_000_000.0 + 10_000 * seed, []
    for i in range(runs):
        t += 30 + chance.uniform(-2, 2) if i % 3 == 0 else 1
        length = 6 + chance.uniform(0, 3)
        made.append(
            CellRun(
                f"kernel-{notebook}",
                notebook,
                f"c{i % 3}",
                f"digest{i % 3}",
                t,
                t + length,
                2 * GIB,
                GIB,
                "torch",
                0,
                length,
                Outcome.OK,
            )
        )
        t += length
    return made


def rhythmic_store(folder: Path, notebooks: int = 16) -> str:
    """Fill a trace store and return its URL."""
    url = f"sqlite:///{folder / 'traces.db'}"
    with Store(url) as store:
        for seed in range(notebooks):
            for run in rhythmic_runs(f"n{seed}.ipynb", seed=seed):
                store.add_cell_run(run)
    return url
