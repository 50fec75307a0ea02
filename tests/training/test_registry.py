from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from jupyter_gpu_predict.errors import ConflictError, ModelFileError, NotFoundError
from jupyter_gpu_predict.training.registry import ModelRegistry, ModelVersion


def about(made_s: float = 1.0) -> ModelVersion:
    return ModelVersion("demand", 0, made_s, 1, "abc", 100, 5, {"brier": 0.1}, {"brier": 0.2})


def test_versions_count_up_and_serve_only_when_told(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path / "models")
    assert registry.serving("demand") is None
    assert registry.serving_path("demand") is None
    first, second = (registry.add({"x": i}, about(i)) for i in range(2))
    assert [v.version for v in registry.versions("demand")] == [1, 2]
    assert registry.kinds() == ["demand"]
    assert registry.serving("demand") is None
    registry.promote("demand", first.version)
    registry.promote("demand", second.version)
    assert registry.serving("demand") == 2
    path = registry.serving_path("demand")
    assert path is not None
    assert json.loads(path.read_text())["x"] == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert registry.rollback("demand") == 1
    assert registry.serving("demand") == 1
    assert registry.rollback("demand") is None
    with pytest.raises(ConflictError, match="no version serves"):
        registry.rollback("demand")


def test_the_number_of_a_deleted_version_is_not_used_again(tmp_path: Path) -> None:
    """A worker that has read it would go on with it."""
    registry = ModelRegistry(tmp_path)
    for i in range(2):
        registry.add({"x": i}, about())
        registry.promote("demand", i + 1)
    (tmp_path / "demand" / "0002.json").unlink()
    path = registry.serving_path("demand")
    assert path is not None, "the one before it serves"
    assert path.name == "0001.json"
    assert registry.add({"x": 2}, about()).version == 3


def test_promoting_twice_leaves_the_way_back(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path)
    for i in range(2):
        registry.add({"x": i}, about())
    for number in (1, 2, 2, 1):
        registry.promote("demand", number)
    assert registry.rollback("demand") == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe garbage"])
def test_a_damaged_version_is_refused_and_hides_no_other(tmp_path: Path, content: bytes) -> None:
    registry = ModelRegistry(tmp_path)
    for _ in range(2):
        registry.add({}, about())
    registry.promote("demand", 1)
    (tmp_path / "demand" / "0002.json").write_bytes(content)
    with pytest.raises(ModelFileError, match="demand 2"):
        registry.promote("demand", 2)
    assert registry.serving("demand") == 1
    assert [v.version for v in registry.versions("demand")] == [1]
    with pytest.raises(NotFoundError, match="there are: 1, 2"):
        registry.promote("demand", 7)


def test_a_damaged_list_of_what_serves_means_nothing_serves(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path)
    registry.add({}, about())
    registry.promote("demand", 1)
    (tmp_path / "demand" / "serving.json").write_text("{")
    assert registry.serving("demand") is None
    registry.promote("demand", 1)
    assert registry.serving("demand") == 1
