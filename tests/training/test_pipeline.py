from __future__ import annotations

import json
from pathlib import Path

import pytest
from traces import rhythmic_runs, rhythmic_store

from jupyter_gpu_predict.cli import main
from jupyter_gpu_predict.errors import BadInputError
from jupyter_gpu_predict.store.trace_store import Store
from jupyter_gpu_predict.training.pipeline import (
    Trained,
    collect,
    held_out,
    train_demand,
    why_not_serve,
)
from jupyter_gpu_predict.training.registry import ModelRegistry


def trained(url: str, folder: Path, promote: bool = True) -> Trained:
    with Store(url) as store:
        return train_demand(store, ModelRegistry(folder), now_s=5.0, promote=promote)


def test_a_model_that_learned_something_serves_and_training_is_repeatable(tmp_path: Path) -> None:
    url = rhythmic_store(tmp_path)
    first = trained(url, tmp_path / "models")
    assert first.promoted, first.why
    assert first.version.owners == 16
    assert first.version.scores["brier"] < first.version.baseline["brier"]
    again = trained(url, tmp_path / "models", promote=False)
    assert again.version.version == 2
    assert not again.promoted
    registry = ModelRegistry(tmp_path / "models")
    assert registry.serving("demand") == 1
    one, two = (registry.read("demand", n) for n in (1, 2))
    assert one["at"] == two["at"]
    assert one["within"] == two["within"]
    assert one["about"]["data_hash"] == two["about"]["data_hash"]


def test_too_few_notebooks_are_refused(tmp_path: Path) -> None:
    url = rhythmic_store(tmp_path, notebooks=3)
    with pytest.raises(BadInputError, match="3 notebooks"):
        trained(url, tmp_path / "models")
    assert ModelRegistry(tmp_path / "models").versions("demand") == []


def test_a_notebook_is_one_owner_however_many_kernels_it_had(tmp_path: Path) -> None:
    url = rhythmic_store(tmp_path, notebooks=1)
    with Store(url) as store:
        for run in rhythmic_runs("n0.ipynb", seed=7, runs=9):
            store.add_cell_run(
                type(run)(
                    **{f: getattr(run, f) for f in run.__slots__ if f != "kernel_id"},
                    kernel_id="second",
                )
            )
        owners = [owner for owner, _ in collect(store)]
    assert owners == ["n0.ipynb", "n0.ipynb"]


def test_who_is_held_out_hangs_on_the_name_alone() -> None:
    owners = [f"n{i}" for i in range(40)]
    held = held_out(owners, 1)
    assert len(held) == 10
    assert held_out(list(reversed(owners)), 1) == held
    assert held_out(owners, 2) != held


def test_a_worse_model_does_not_serve() -> None:
    good = {"pinball": 0.1, "brier": 0.1, "coverage": 0.8}
    assert why_not_serve(good, good) is None
    assert "brier" in str(why_not_serve({**good, "brier": 0.2}, good))
    assert "long enough" in str(why_not_serve({}, {}))


def test_the_command_trains_lists_and_rolls_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, folder = rhythmic_store(tmp_path), str(tmp_path / "models")
    assert main(["train", "--traces", url, "--models", folder]) == 0
    out = capsys.readouterr().out
    assert "Trained demand 1" in out
    assert "serves now" in out
    assert main(["models", "--models", folder, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["serving"]
    assert row["version"] == 1
    assert main(["models", "--models", folder, "show", "demand", "1"]) == 0
    assert "data_hash" in capsys.readouterr().out
    assert main(["models", "--models", folder, "rollback"]) == 0
    assert "No learned model serves now" in capsys.readouterr().out
    assert main(["models", "--models", folder, "promote", "demand", "9"]) == 1
    assert "no such version" in capsys.readouterr().err
    assert main(["train", "--traces", f"sqlite:///{tmp_path}/none.db", "--models", folder]) == 1
    assert "no trace store" in capsys.readouterr().err
