from __future__ import annotations

from collections.abc import Iterator

import pytest

from jupyter_gpu_predict.kernel import observer


@pytest.fixture(autouse=True, scope="module")
def _no_hook() -> Iterator[None]:
    """Leave this process without an audit hook, which could never be taken away again."""
    patch = pytest.MonkeyPatch()
    patch.setattr(observer, "_installed", True)
    yield
    patch.undo()
