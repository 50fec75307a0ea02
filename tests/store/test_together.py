from __future__ import annotations

import threading
from pathlib import Path

import pytest

from jupyter_gpu_predict.errors import BadInputError
from jupyter_gpu_predict.store.trace_store import Store


def kinds(store: Store) -> list[str]:
    return [event["kind"] for event in store.events()]


def test_all_is_written_or_nothing(tmp_path: Path) -> None:
    with Store(f"sqlite:///{tmp_path / 'state.db'}") as store:

        def both() -> None:
            store.add_event(1.0, "first", {})
            store.add_event(2.0, "first", {})

        store.together(both)
        assert kinds(store) == ["first", "first"]

        def half() -> None:
            store.add_event(3.0, "second", {})
            store.add_event(4.0, "second", {"x": float("nan")})

        with pytest.raises(BadInputError):
            store.together(half)
        assert kinds(store) == ["first", "first"]
        store.add_event(5.0, "third", {})
        assert kinds(store) == ["first", "first", "third"]


def test_other_threads_write_on_their_own(tmp_path: Path) -> None:
    with Store(f"sqlite:///{tmp_path / 'state.db'}") as store:
        other = threading.Thread(target=store.add_event, args=(9.0, "other", {}))

        def work() -> None:
            if not other.is_alive():
                other.start()
            store.add_event(1.0, "mine", {})
            raise BadInputError("stop")

        with pytest.raises(BadInputError, match="stop"):
            store.together(work)
        other.join(60)
        assert kinds(store) == ["other"]
