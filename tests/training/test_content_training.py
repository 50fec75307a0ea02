from __future__ import annotations

import json
from pathlib import Path

import pytest
from traces import SOURCES, rhythmic_store, wandering_runs, wandering_store

from jupyter_gpu_predict.cli import main
from jupyter_gpu_predict.control.model_file import shipped_content
from jupyter_gpu_predict.core.forecast.content import ContentModel
from jupyter_gpu_predict.core.trace.document import Document, read_document
from jupyter_gpu_predict.errors import BadInputError
from jupyter_gpu_predict.store.trace_store import Store
from jupyter_gpu_predict.training.content import (
    collect_moves,
    content_scores,
    fit_content,
    train_content,
    why_not_serve,
)
from jupyter_gpu_predict.training.registry import ModelRegistry

DOCUMENT = read_document((f"c{i}", source) for i, source in enumerate(SOURCES))


def read(path: str) -> Document | None:
    return DOCUMENT if path.startswith("w") else None


def test_habits_of_a_site_beat_the_shipped_weights_and_serve(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path / "models")
    with Store(wandering_store(tmp_path)) as store:
        done = train_content(store, read, registry, now_s=5.0)
        again = train_content(store, read, registry, now_s=6.0, promote=False)
    assert done.promoted, done.why
    assert registry.serving("content") == 1
    scores, baseline = done.version.scores, done.version.baseline
    assert scores["top1"] > 0.8 > baseline["top1"]
    assert scores["log_loss"] < baseline["log_loss"]
    assert scores["delay_log_loss"] < baseline["delay_log_loss"]
    one, two = (registry.read("content", n) for n in (1, 2))
    assert one["next_cell"] == two["next_cell"]
    assert one["about"]["data_hash"] == two["about"]["data_hash"]
    assert not again.promoted
    # What a server would read of it is that very model.
    assert ContentModel.from_record(one).to_record() == {k: one[k] for k in one if k != "about"}


def test_a_notebook_that_is_gone_teaches_nothing(tmp_path: Path) -> None:
    url = wandering_store(tmp_path, notebooks=3)
    with Store(url) as store:
        for run in wandering_runs("gone.ipynb", seed=99):
            store.add_cell_run(run)
        assert sorted(collect_moves(store, read)) == ["w0.ipynb", "w1.ipynb", "w2.ipynb"]
        with pytest.raises(BadInputError, match="3 notebooks that can be read"):
            train_content(store, read, ModelRegistry(tmp_path / "models"), now_s=5.0)
    assert ModelRegistry(tmp_path / "models").kinds() == []


def test_a_model_of_other_habits_does_not_serve(tmp_path: Path) -> None:
    with Store(wandering_store(tmp_path, notebooks=4)) as store:
        moves = collect_moves(store, read)
    odd = fit_content(moves)
    on_by_one = {
        "w0.ipynb": [(t, (t.positions[-1] + 1) % 12, m, g) for t, _, m, g in moves["w0.ipynb"]]
    }
    why = why_not_serve(
        content_scores(odd, on_by_one), content_scores(shipped_content(), on_by_one)
    )
    assert why is not None
    assert "top1" in why
    good = {"top1": 0.7, "log_loss": 1.0, "delay_log_loss": 1.0}
    assert why_not_serve(good, good) is None
    for metric, worse in (("top1", 0.6), ("log_loss", 1.1), ("delay_log_loss", 1.1)):
        assert metric in str(why_not_serve({**good, metric: worse}, good))


def test_the_command_trains_what_can_be_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, models = wandering_store(tmp_path), str(tmp_path / "models")
    more = ["--models", models, "--notebooks", str(tmp_path)]
    assert main(["train", "--traces", url, "--json", *more]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [m["kind"] for m in said["trained"]] == ["content"]
    assert said["trained"][0]["promoted"]
    assert any("used a GPU" in why for why in said["not_trained"])
    assert main(["models", "--models", models]) == 0
    out = capsys.readouterr().out
    assert "content 1" in out
    assert "delay_log_loss" in out
    # From another folder no notebook is found, and none outside of it is read.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    more[-1] = str(elsewhere)
    assert main(["train", "--traces", url, *more]) == 1
    assert "are needed" in capsys.readouterr().err
    folder = tmp_path / "rhythm"
    folder.mkdir()
    assert main(["train", "--traces", rhythmic_store(folder), *more]) == 0
    out = capsys.readouterr().out
    assert "Trained demand 1" in out
    assert "Not trained: training: 0 moves" in " ".join(out.split())
