from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.core.trace.digest import normalised_digest
from jupyter_gpu_predict.core.trace.source import (
    MAX_SOURCE,
    CellKind,
    GpuUse,
    read_source,
)

TRAINING = """\
%%time
import torch
for epoch in range(20):
    for x in DataLoader(data, batch_size=64):
        loss = model(x.to(device))
        loss.backward()  # learn
"""


@pytest.mark.parametrize(
    ("source", "use"),
    [
        ("import numpy", GpuUse.NONE),
        ("print(torch.cuda.is_available())", GpuUse.NONE),
        ("import torch", GpuUse.LIBRARY),
        ("from numba import cuda", GpuUse.LIBRARY),
        ("from numba import njit", GpuUse.NONE),
        ("x = torch.zeros(3)", GpuUse.LIBRARY),
        ("model.to(device)", GpuUse.MOVES),
        ("model.to(config.device)", GpuUse.MOVES),
        ("x = x.to('cuda:1')", GpuUse.MOVES),
        ("frame.to('csv')", GpuUse.NONE),
        ("x = x.cuda()", GpuUse.MOVES),
        ("m = xgboost.XGBClassifier(device='cuda')", GpuUse.MOVES),
        ("m = xgboost.XGBClassifier(device='cpu')", GpuUse.NONE),
        ("import keras\nmodel.fit(x, y)", GpuUse.TRAINS),
        ("forest.fit(x, y)", GpuUse.NONE),
        (TRAINING, GpuUse.TRAINS),
        ("import torch\nthis is no Python\nx.cuda()", GpuUse.MOVES),
        ("%%bash\nimport torch", GpuUse.NONE),
    ],
)
def test_how_a_source_speaks_of_the_gpu(source: str, use: GpuUse) -> None:
    assert read_source(source).gpu is use


def test_what_a_training_cell_says() -> None:
    found = read_source(TRAINING)
    assert found.read_by == "syntax"
    assert found.imports == found.gpu_libraries == {"torch"}
    assert (found.epochs, found.batch_size, found.loops) == (20, 64, 2)
    assert found.magics == ("%%time",)
    assert found.reads == {"DataLoader", "data", "model", "device", "loss", "x"}
    assert found.writes == {"epoch", "x", "loss"}
    assert found.moved == {"x"}


def test_names_inside_functions_are_those_of_the_notebook() -> None:
    found = read_source(
        "def f(a):\n    global g\n    g = a + h\n    local = len(g)\n    return local"
    )
    assert found.reads == {"g", "h"}
    assert found.writes == {"f", "g"}


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("", CellKind.EMPTY),
        ("# only words", CellKind.EMPTY),
        ("import os\ndef f(): pass", CellKind.DEFINES),
        ("print(1)\nplt.plot(x).show()\ndf.head()", CellKind.SHOWS),
        ("x = 1\nprint(x)", CellKind.WORKS),
        ("!pip install torch", CellKind.WORKS),
        ("x ==", CellKind.WORKS),
    ],
)
def test_what_a_cell_is_for(source: str, kind: CellKind) -> None:
    assert read_source(source).kind is kind


def test_magics_and_shell_lines_do_not_hide_the_python_around_them() -> None:
    found = read_source("files = !ls\n%time model.fit(x, epochs=3)\nfor i in a:\n    !echo {i}\nq?")
    assert found.read_by == "syntax"
    assert found.magics == ("!", "%time", "!")
    assert found.writes == {"files", "i"}
    assert found.epochs == 3


@pytest.mark.parametrize(
    "source",
    [
        "\0",
        "\ud800",
        "(" * 20_000,
        "x = " + "-" * 30_000 + "1",
        "'\\d'",
        "x" * (MAX_SOURCE + 1),
        "\\'" * 25_000,
        " " * MAX_SOURCE + "!",
        "a, " * 16_000 + "= !",
        "epochs = " + "9" * 5000,
    ],
)
def test_no_source_is_too_strange(source: str) -> None:
    assert read_source(source).gpu is GpuUse.NONE
    assert len(normalised_digest(source)) == 32


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_nothing_raises(source: str) -> None:
    found = read_source(source)
    assert found.read_by in {"syntax", "words"}
    assert len(normalised_digest(source)) == 32


@given(st.integers(0, 10**30), st.floats(0, 1e300), st.from_regex(r"[a-z ]*", fullmatch=True))
def test_constants_comments_and_layout_do_not_count(whole: int, number: float, text: str) -> None:
    one = f"lr = {number!r}  # {text}\nfit(model, {whole},\n    name='{text}')"
    other = 'lr=1\n\n\nfit( model , 2, name = """a\nb""" )'
    assert normalised_digest(one) == normalised_digest(other)
    assert normalised_digest(one) != normalised_digest(other.replace("model", "modes"))


def test_fstrings_are_constants_in_every_version_of_python() -> None:
    assert normalised_digest("print(f'{a} of {b}')") == normalised_digest("print('')")
    assert normalised_digest("rb'x' + Rb\"y\"") == normalised_digest("'' + ''")
