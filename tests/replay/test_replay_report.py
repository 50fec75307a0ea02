import argparse
import json

import numpy as np
import pytest
from replay_cases import workload

from jupyter_gpu_predict.cli import console_for_people
from jupyter_gpu_predict.errors import BadInputError
from jupyter_gpu_predict.replay import report
from jupyter_gpu_predict.replay.cli import add_parser, run
from jupyter_gpu_predict.replay.engine import Outcome
from jupyter_gpu_predict.replay.figures import UNITS, difference, figures, paired, ratio
from jupyter_gpu_predict.replay.machine import Machine
from jupyter_gpu_predict.replay.policies import choose


def command(*words):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(dest="command"))
    return run(parser.parse_args(["replay", *map(str, words)]), console_for_people())


def test_figures_are_what_they_say():
    outcome = Outcome(
        book=[0, 0], number=[0, 1], delay_s=[0.0, 240.0], work_s=[1.0, 2400.0], switch_s=24.01
    )
    found = figures(outcome)
    assert found["mean"] == 120
    assert found["XS"] == 0.05
    assert found["long slowdown"] == 1.1
    assert found["no delay"] == 0.5
    assert found["switching / work"] == pytest.approx(0.01)
    assert list(found) == list(UNITS)


def test_intervals_are_of_pairs():
    theirs = np.arange(1.0, 31.0)
    found = paired(2 * theirs, theirs, ratio)
    assert (found.value, found.low, found.high) == (2, 2, 2)
    noisy = paired(theirs + np.tile([1.0, -1.0], 15), theirs, difference)
    assert noisy.low < 0 < noisy.high
    assert noisy.value == pytest.approx(0)
    assert paired([np.nan, 4.0], [1.0, 2.0], ratio).value == 2


def test_the_same_bursts_for_each_policy_in_one_process_or_two():
    def draw(notebooks, seed):
        return workload(*([(seed + i, 50 + 10 * i), (20, 30)] for i in range(notebooks)))

    each = [
        report.replay(draw, 4, Machine(2), choose("LRU under pressure; product"), 3, workers=n)
        for n in (1, 2)
    ]
    assert repr(each[0].values) == repr(each[1].values)
    assert each[0].of("product", "bursts") == [8, 8, 8]


def test_capacity_is_the_load_up_to_which_the_bar_holds():
    def draw(notebooks, seed):
        return workload(*([(0, 20)] for _ in range(notebooks)))

    (fifo,) = choose("FIFO, clairvoyant")
    found = report.capacity(draw, Machine(2), fifo, 1, [2, 4, 6])
    assert found == {5.0: 1.0, 30.0: 2.0}


def test_the_command_replays_a_file_and_writes_rows(tmp_path, capsys):
    trace = tmp_path / "t.csv"
    lines = [f"s{i},{5 * k},{1 + k % 3},1" for i in range(3) for k in range(20)]
    trace.write_text("session,start_min,dur_min,num_gpu\n" + "\n".join(lines) + "\n")
    rows = tmp_path / "rows.json"
    names = "FIFO, clairvoyant; LRU under pressure; product"
    status = command(
        trace, "--gpus", 1, "--notebooks", 3, "--seeds", 2, "--policy", names, "--json", rows
    )
    assert status == 0
    told = capsys.readouterr().out
    assert "3 sessions, 60 bursts" in told
    assert "LRU under pressure" in told
    found = json.loads(rows.read_text())
    assert {tuple(row) for row in found} == {("case", "method", "metric", "value", "unit")}
    mean = {row["method"]: row["value"] for row in found if row["metric"] == "mean"}
    assert mean["product"] >= mean["FIFO, clairvoyant"] > 0


def test_plots_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    words = ("--generate", "--gpus", 1, "--notebooks", 2, "--seeds", 1, "--policy", "LAS")
    for name, begin in (("a.png", b"\x89PNG"), ("a.html", b"<!doctype html>")):
        command(*words, "--plot", tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begin)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "nothing to replay"),
        (("--generate", "--policy", "Best"), "no policy 'Best'"),
        (("--generate", "--switch", -1), "a switch takes"),
        (("--generate", "--sharing-speed", 0), "a speed lies"),
        (("missing.csv",), "No such file"),
        (("--generate", "--plot", "a.txt"), "PNG or HTML"),
    ],
)
def test_what_cannot_be_replayed_is_refused(words, told, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match=told):
        command(*words, "--gpus", 1, "--notebooks", 1, "--seeds", 1)
