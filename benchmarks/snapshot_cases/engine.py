"""The engine of this project."""

from __future__ import annotations

import time
from typing import Any

KEY = bytes(range(32))


class Engine:
    """Captures into a store of its own under the path."""

    incremental, importable = True, False

    def prepare(self) -> None:
        """Import what is needed."""
        import jupyter_gpu_predict.snapshots.restore
        import jupyter_gpu_predict.snapshots.stores  # noqa: F401
        from jupyter_gpu_predict.snapshots.chunks import load_hashes

        load_hashes()

    def save(self, main: dict[str, Any], path: str) -> dict[str, float]:
        """Save until durable."""
        from jupyter_gpu_predict.snapshots import capture
        from jupyter_gpu_predict.snapshots.stores import open_store

        report = capture(
            main, open_store(path), KEY, name="bench", now_s=time.time(), kernel_id="bench"
        )
        return {"bytes": report.bytes_written}

    def load(self, path: str, main: dict[str, Any]) -> None:
        """Load what was saved last."""
        from jupyter_gpu_predict.snapshots import restore
        from jupyter_gpu_predict.snapshots.stores import open_store

        store = open_store(path)
        restore(store, store.find("bench"), KEY, main)


def largest_group(path: str) -> int:
    """Return the bytes of the latest snapshot's largest stream of pickles."""
    from jupyter_gpu_predict.snapshots.stores import open_store

    store = open_store(path)
    groups = store.read(store.find("bench"))["manifest"]["groups"]
    return max((int(group["nbytes"]) for group in groups), default=0)


def is_tombstone(value: object) -> bool:
    from jupyter_gpu_predict.snapshots import Tombstone

    return type(value) is Tombstone
