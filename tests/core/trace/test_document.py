from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.core.model import CellRun, Outcome
from jupyter_gpu_predict.core.trace.digest import source_digest
from jupyter_gpu_predict.core.trace.document import MAX_READ, MAX_TRAIL, follow, read_document
from jupyter_gpu_predict.core.trace.source import GpuUse
from jupyter_gpu_predict.errors import BadInputError


def ran(source: str, at_s: float, cell_id: str | None = None, kernel: str = "k") -> CellRun:
    digest = source_digest(source)
    return CellRun(
        kernel, "a.ipynb", cell_id, digest, at_s, at_s + 1, 0, 0, "none", 0, 0, Outcome.OK
    )


def test_names_that_hold_things_of_the_gpu_are_followed_down_the_notebook() -> None:
    sources = [
        "import torch\ndef train(net):\n    net(x.cuda()).backward()",
        "model = Net()",
        "model.to(device)",
        "x = np.ones(3)",
        "train(model)",
        "print(x)",
        "model = None",
        "print(model)",
    ]
    document = read_document((str(i), source) for i, source in enumerate(sources))
    assert [cell.reading.gpu.value for cell in document.cells] == [
        "library", "none", "moves", "none", "reads", "none", "none", "none",
    ]  # fmt: skip
    assert document.notes == ()


def test_a_trail_finds_cells_by_id_and_knows_which_were_edited() -> None:
    document = read_document([("a", "x = 1"), ("b", "y = 2"), ("c", "z = 3")])
    runs = [ran("x = 1", 0, "a"), ran("y = 1", 5, "b"), ran("gone", 10, "d")]
    found = follow(document, runs)
    assert found.positions == (0, 1)
    assert found.edited == {1}
    assert found.unplaced == 1
    assert not found.failed
    again = replace(ran("y = 2", 20, "b"), outcome=Outcome.ERROR)
    refused = replace(ran("z = 3", 30, "c"), outcome=Outcome.REFUSED)
    later = follow(document, [*runs, again, refused])
    assert later.positions == (0, 1, 1)
    assert later.edited == frozenset()
    assert later.failed


def test_cells_without_ids_are_found_by_source_and_the_nearest_below_counts() -> None:
    document = read_document([(None, "a"), (None, "same"), (None, "b"), (None, "same")])
    assert "without an id" in document.notes[0]
    runs = [ran(s, i) for i, s in enumerate(["same", "b", "same", "same", "a"])]
    assert follow(document, runs).positions == (1, 2, 3, 3, 0)


def test_an_id_that_two_cells_share_says_nothing() -> None:
    document = read_document([("a", "x"), ("a", "y")])
    assert follow(document, [ran("y", 0, "a")]).positions == (1,)


def test_earlier_sessions_are_moves_and_never_cross_from_kernel_to_kernel() -> None:
    document = read_document([("a", "x"), ("b", "y"), ("c", "z")])
    earlier = [
        ran("x", 0, "a", "one"),
        ran("x", 1, "a", "two"),
        ran("y", 2, "b", "one"),
        ran("z", 3, "c", "two"),
        ran("z", 4, "c", "one"),
    ]
    found = follow(document, [], earlier)
    assert sorted(found.earlier) == [(0, 1), (0, 2), (1, 2)]
    assert found.positions == ()


def test_of_a_huge_notebook_the_cells_around_the_last_run_are_read() -> None:
    cells = [(str(i), f"x{i} = x.cuda()") for i in range(10_000)]
    document = read_document(cells, around=7000)
    read = [i for i, cell in enumerate(document.cells) if cell.reading.gpu is GpuUse.MOVES]
    assert len(read) == MAX_READ
    assert read[0] < 7000 < read[-1]
    assert "of 10000 code cells" in document.notes[0]
    runs = [ran(f"x{i} = x.cuda()", i, str(i)) for i in range(3 * MAX_TRAIL)]
    assert follow(document, runs).positions == tuple(range(2 * MAX_TRAIL, 3 * MAX_TRAIL))


def test_binary_garbage_is_a_cell_and_said_to_be_one() -> None:
    document = read_document([("a", "\x00\x01\ud800"), ("b", "x = 1")])
    assert "1 of 2 code cells are no Python" in document.notes[0]


def test_malformed_runs_are_refused_by_name() -> None:
    document = read_document([("a", "x")])
    with pytest.raises(BadInputError, match="start_s"):
        follow(document, [replace(ran("x", 0), start_s=float("nan"))])


@given(
    st.lists(st.tuples(st.none() | st.sampled_from("abc"), st.sampled_from("xyz")), max_size=8),
    st.lists(st.tuples(st.none() | st.sampled_from("abcd"), st.sampled_from("wxyz")), max_size=12),
)
def test_every_run_is_placed_or_counted(
    cells: list[tuple[str | None, str]], runs: list[tuple[str | None, str]]
) -> None:
    document = read_document(cells)
    made = [ran(source, i, cell_id) for i, (cell_id, source) in enumerate(runs)]
    found = follow(document, made, made)
    assert found.size == len(cells)
    assert len(found.positions) + found.unplaced == len(runs)
    assert all(0 <= place < len(cells) for place in found.positions)
    assert found.edited <= set(found.positions)
