from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.core.model import CellRun, Outcome
from jupyter_gpu_predict.core.trace.cells import cell_history, idle_gaps
from jupyter_gpu_predict.core.trace.digest import source_digest
from jupyter_gpu_predict.core.trace.quantile import quantile, quantiles
from jupyter_gpu_predict.errors import BadInputError

BASE = CellRun("k", None, "c", "d", 0, 1, 10, 5, "torch", 0, 1.0, Outcome.OK)


def test_durations_and_peaks_are_kept_by_digest() -> None:
    history = cell_history(
        [
            BASE,
            replace(BASE, start_s=10, end_s=13, peak_bytes=30),
            replace(BASE, start_s=20, end_s=25, peak_bytes=20),
            replace(BASE, digest="other", end_s=8, peak_bytes=0),
        ]
    )
    assert history.expected_duration_s("d") == 3
    assert history.expected_duration_s("other") == 8
    assert history.expected_duration_s("never ran") is None
    peak = history.expected_peak_bytes("d")
    assert peak is not None
    assert (peak.low, peak.mid, peak.high) == (12, 20, 28)
    assert history.expected_peak_bytes("never ran") is None
    assert history.by_digest["other"].gpu_share == 0


def test_runs_that_ended_early_count_only_where_nothing_else_is_known() -> None:
    cut = replace(BASE, end_s=100, outcome=Outcome.INTERRUPTED)
    assert cell_history([BASE, cut]).expected_duration_s("d") == 1
    assert cell_history([cut]).expected_duration_s("d") == 100
    assert cell_history([replace(BASE, outcome=Outcome.REFUSED)]).by_digest == {}


def test_gaps_are_those_in_which_no_cell_ran() -> None:
    runs = [
        replace(BASE, start_s=50, end_s=60),
        replace(BASE, start_s=0, end_s=20),
        replace(BASE, start_s=5, end_s=10),
        replace(BASE, start_s=70, end_s=3),
        replace(BASE, start_s=75, end_s=80),
    ]
    assert idle_gaps(runs) == (30, 10, 5)
    assert idle_gaps([]) == ()
    with pytest.raises(BadInputError):
        idle_gaps([replace(BASE, start_s=float("nan"))])


def test_a_digest_does_not_see_trailing_blanks_or_line_ends() -> None:
    assert source_digest("a = 1\nb = 2") == source_digest("a = 1  \r\nb = 2\t\r\n\n")
    assert len(source_digest("")) == 32
    assert source_digest("\ud800") != source_digest("")


@given(st.text(), st.text())
def test_sources_that_differ_have_other_digests(a: str, b: str) -> None:
    def plain(text: str) -> list[str]:
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return "\n".join(line.rstrip() for line in lines).rstrip("\n").split("\n")

    assert (source_digest(a) == source_digest(b)) == (plain(a) == plain(b))
    assert source_digest("  " + a.lstrip() + "x") != source_digest(a.lstrip() + "x")


@given(st.lists(st.floats(0, 1e15), min_size=1))
def test_quantiles_are_ordered_and_within_the_values(values: list[float]) -> None:
    found = quantiles(values)
    assert min(values) <= found.low <= found.mid <= found.high <= max(values)


def test_a_quantile_interpolates_and_needs_values() -> None:
    assert quantile([1, 2, 3, 4], 0.5) == 2.5
    assert quantile([7], 0.9) == 7
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)
