"""What a cell names, told from its source alone."""

from __future__ import annotations

import pytest

from jupyter_gpu_predict.kernel.offload.words import values_named

torch = pytest.importorskip("torch")


class Odd:
    def __init__(self) -> None:
        self.own = ["own"]

    @property
    def made(self) -> object:
        raise AssertionError("no code of the user's runs")

    def __getattr__(self, name: str) -> object:
        raise AssertionError("no code of the user's runs")


A, B, C = ["a0", "a1"], {"x": ["bx"], 2: ["b2"]}, ("c",)
ODD = Odd()
SPACE = {"a": A, "b": B, "c": C, "odd": ODD}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a", [A]),
        ("y = a[1] + 1", ["a1"]),
        ("a[-1]", ["a1"]),
        ("a[7]", [A]),
        ("a[i]", [A]),
        ("a[0]; a", [A]),
        ("a[0], len(a)", [A]),
        ("b['x'][0]", ["bx"]),
        ("b[2]", [["b2"]]),
        ("b.get('x')", [B]),
        ("odd.own", [["own"]]),
        ("odd.made", [ODD]),
        ("odd.absent.more", [ODD]),
        ("def f():\n    return a[0]", ["a0"]),
        ("%time a[0]", [A]),
        ("%%timeit\nb", [B]),
        ("exec('c')", [C]),
        ("lambda a: 1", [A]),
        ("nothing here", []),
        ("a[1] = c", ["a1", C]),
    ],
)
def test_what_a_source_names(source: str, expected: list[object]) -> None:
    assert values_named(source, SPACE) == expected


def test_a_part_of_a_module_of_torchs() -> None:
    model = torch.nn.ModuleDict({"body": torch.nn.Linear(2, 2)})
    model.head = torch.nn.Linear(2, 2)
    space = {"model": model}
    assert values_named("model.head(x)", space) == [model.head]
    assert values_named("model.head.weight.sum()", space) == [model.head.weight]
    assert values_named("model.forward(x)", space) == [model]
    assert values_named("model(x)", space) == [model]
