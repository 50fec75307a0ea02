"""What counts as measured and as seen before a save leaves a variable out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recompute_sessions import Session

from jupyter_gpu_predict.kernel.omit import Omitter
from jupyter_gpu_predict.snapshots.omission import Omission
from jupyter_gpu_predict.snapshots.recompute.evidence import MAX_SEEN, Sightings, Speeds
from jupyter_gpu_predict.snapshots.recompute.planner import deterministic
from jupyter_gpu_predict.snapshots.report import CaptureReport

MiB = 1 << 20


def test_a_speed_counts_only_for_what_is_not_larger_and_the_highest_counts() -> None:
    speeds = Speeds()
    assert speeds.bytes_per_s(1) == 0
    speeds.loaded(10**9, 1.0)
    assert speeds.bytes_per_s(1) == 0
    speeds.saved(1000, 1.0)
    assert speeds.bytes_per_s(1001) == 0
    speeds.saved(10**6, 0.5)
    speeds.saved(10**6, 5.0)
    assert speeds.bytes_per_s(10**6) == pytest.approx(1 / (1 / 2e6 + 1 / 1e9))
    assert speeds.bytes_per_s(10**6 + 1) == 0
    for useless in ((0, 1.0), (10**12, 0.0)):
        speeds.saved(*useless)
    assert speeds.bytes_per_s(10**6 + 1) == 0


SEEN = st.tuples(
    st.sampled_from("PQ"), st.frozensets(st.integers(0, 4), min_size=1), st.sampled_from("ab")
)


@given(st.lists(SEEN))
def test_what_was_seen_is_proof_only_if_all_agree_and_two_processes_share_no_run(
    seen: list[tuple[str, frozenset[int], str]],
) -> None:
    sightings = Sightings("P")
    sightings.adopt([], -1)
    for number, (process, runs, found) in enumerate(seen):
        if process != sightings.process:
            other = Sightings(process)
            other.adopt(json.loads(json.dumps(sightings.plain())), -1)
            sightings = other
        proof = deterministic(sightings.see("plan", runs, found))
        former = seen[:number]
        agree = all(digest == found for _, _, digest in former)
        apart = any(p != process and numbers.isdisjoint(runs) for p, numbers, _ in former)
        assert proof == (agree and apart)
    assert not deterministic(sightings.see("other", {99}, "a"))


def test_a_digest_that_differed_once_is_never_forgotten_behind_others() -> None:
    sightings = Sightings("here")
    sightings.see("plan", {0}, "b")
    other = Sightings("there")
    other.adopt(sightings.plain(), 0)
    for number in range(1, 3 * MAX_SEEN):
        assert not deterministic(other.see("plan", {number}, "a"))


class Saving:
    """A session whose store takes ten seconds for a mebibyte."""

    def __init__(self) -> None:
        self.session = Session()
        self.omitter = Omitter()
        report = CaptureReport("i", "n", (), (), 100 * MiB, 100 * MiB, 1000.0, 1000.0)
        self.omitter.saved("there", report)

    def run(self, *sources: str) -> Saving:
        self.session.run(*sources)
        assert not self.session.failed
        return self

    def in_another_process(self) -> Saving:
        """Go on as a process does that restored this one's snapshot."""
        sightings = Sightings(f"after {self.omitter.sightings.process}")
        runs = self.session.cells.records()
        sightings.adopt(self.omitter.sightings.plain(), max(run["number"] for run in runs))
        self.omitter.sightings = sightings
        return self

    def left_out(self, *alone: str, nbytes: int = MiB, folder: str = "there") -> list[str]:
        return sorted(self.omissions(*alone, nbytes=nbytes, folder=folder))

    def omissions(self, *alone: str, nbytes: int, folder: str) -> dict[str, Omission]:
        session = self.session
        return self.omitter.choose(
            session.namespace,
            folder,
            session.cells.records(),
            dict.fromkeys(alone, nbytes),
            session.names(),
        )


MAKE = "x = [k * 2 for k in range(n)]"


def test_it_takes_runs_on_the_same_inputs_in_two_processes() -> None:
    saving = Saving().run("n = 300", MAKE)
    assert saving.left_out("x") == []
    assert saving.left_out("x") == []
    saving.run("n = 400", MAKE)
    assert saving.left_out("x") == []
    saving.run("n = 300", MAKE)
    assert saving.left_out("x") == []
    saving.in_another_process()
    assert saving.left_out("x") == []
    saving.run(MAKE)
    assert saving.left_out("x") == ["x"]
    [omission] = saving.omissions("x", nbytes=MiB, folder="there").values()
    assert omission.needs == ("n",)


def test_without_a_measure_of_this_store_or_of_so_much_nothing_is_left_out() -> None:
    saving = Saving().run("n = 300", MAKE)
    assert saving.left_out("x") == []
    saving.in_another_process().run(MAKE)
    assert saving.left_out("x", folder="elsewhere") == []
    assert saving.left_out("x", nbytes=101 * MiB) == []
    assert saving.left_out("x", nbytes=1) == []
    assert saving.left_out("x") == ["x"]


def test_a_save_that_found_its_bytes_in_the_store_is_no_measure() -> None:
    saving = Saving().run("n = 300", MAKE)
    for written, expected in ((1 * MiB, []), (60 * MiB, ["x"])):
        report = CaptureReport("i", "n", (), (), written, 100 * MiB, 600.0, 600.0)
        saving.omitter.saved("elsewhere", report)
        saving.left_out("x", folder="elsewhere")
        saving.in_another_process().run(MAKE)
        assert saving.left_out("x", folder="elsewhere") == expected


def test_another_digest_of_the_same_cells_is_the_end_of_it() -> None:
    saving = Saving().run("n = 300", MAKE)
    saving.left_out("x")
    saving.session.namespace["x"][0] = "changed behind the back of the cells"
    assert saving.left_out("x") == []
    for _ in range(3):
        saving.in_another_process().run(MAKE)
        assert saving.left_out("x") == []


def test_what_one_of_them_needs_is_made_again_with_it_and_must_be_seen_too() -> None:
    after = "y = [k + 1 for k in x]"
    saving = Saving().run("n = 300", MAKE, after)
    assert saving.left_out("x", "y") == []
    saving.in_another_process().run(after)
    assert saving.left_out("x", "y") == []
    saving.run(MAKE, after)
    assert saving.left_out("x", "y") == ["x", "y"]


def test_a_file_that_was_read_may_be_another_by_then(tmp_path: Path) -> None:
    saving = Saving().run("n = 300")
    runs = saving.session.cells.runs
    for _ in range(3):
        saving.run(MAKE)
        runs[-1]["inputs"] = [[str(tmp_path / "read.txt"), 1, 1]]
        assert saving.left_out("x") == []


def test_what_needs_an_object_of_any_class_is_stored() -> None:
    saving = Saving().run("class Own: pass", "own = Own(); own.n = 300")
    for _ in range(3):
        saving.run("x = [k * 2 for k in range(own.n)]")
        assert saving.left_out("x") == []
