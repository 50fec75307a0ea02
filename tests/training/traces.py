"""A trace store whose notebooks use a GPU in a way that can be learned."""

from __future__ import annotations

import json
import random
from pathlib import Path

from jupyter_gpu_predict.core.model import CellRun, Outcome
from jupyter_gpu_predict.core.trace.digest import source_digest
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


SOURCES = [f"x{i} = {i}" for i in range(12)]


def wandering_runs(notebook: str, *, seed: int, runs: int = 40) -> list[CellRun]:
    """Return runs of a user who skips every other cell and rests 3 s: not what most do."""
    chance = random.Random(seed)
    t, place, made = 1_700_000_000.0 + 10_000 * seed, 0, []
    for _ in range(runs):
        made.append(
            CellRun(
                f"kernel-{notebook}",
                notebook,
                f"c{place}",
                source_digest(SOURCES[place]),
                t,
                t + 1,
                0,
                0,
                "torch",
                0,
                0.0,
                Outcome.OK,
            )
        )  # fmt: skip
        t += 4 + chance.random()
        place = (place + 2) % len(SOURCES) if chance.random() < 0.9 else chance.randrange(12)
    return made


def wandering_store(folder: Path, notebooks: int = 12) -> str:
    """Fill a trace store, write the notebooks beside it, and return the store's URL."""
    url = f"sqlite:///{folder / 'traces.db'}"
    cells = [{"cell_type": "code", "id": f"c{i}", "source": s} for i, s in enumerate(SOURCES)]
    with Store(url) as store:
        for seed in range(notebooks):
            (folder / f"w{seed}.ipynb").write_text(json.dumps({"cells": cells}))
            for run in wandering_runs(f"w{seed}.ipynb", seed=seed):
                store.add_cell_run(run)
    return url
