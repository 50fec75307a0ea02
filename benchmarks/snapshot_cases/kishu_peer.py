"""Kishu, driven by its own hooks in an IPython shell, without a notebook server."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .measure import fsync_path, peak_mb, reset_peak, resident_mb, settle
from .session import Session

HEAD = "head"


class Kishu:
    """A shell whose cells Kishu commits; `seconds` and `extra_mb` are of its hooks alone."""

    def __init__(self, path: str, session_number: int) -> None:
        os.makedirs(path, exist_ok=True)
        os.environ["KISHU_PATH_ROOT"] = path
        os.environ["ENV_KISHU_TEST_MODE"] = "true"
        import nbformat
        from IPython.core.interactiveshell import InteractiveShell
        from kishu.jupyterint import KishuForJupyter
        from kishu.notebook_id import NotebookId

        self.path = Path(path)
        notebook = self.path / "notebook.ipynb"
        if not notebook.exists():
            nbformat.write(nbformat.v4.new_notebook(), notebook)
        self.shell = InteractiveShell.instance()
        self.kishu = KishuForJupyter(
            notebook_id=NotebookId("key", notebook, "kernel"), ip=self.shell
        )
        self.seconds = self.extra_mb = 0.0
        self.kishu.pre_run_cell = self._metered(self.kishu.pre_run_cell)
        self.kishu.post_run_cell = self._metered(self.kishu.post_run_cell)
        self.kishu.install_kishu_hooks()
        self.kishu.set_session_id(session_number)

    def _metered(self, hook: Callable[[Any], None]) -> Callable[[Any], None]:
        def run(info: Any) -> None:
            reset_peak()
            before, start = resident_mb(), time.perf_counter()
            try:
                hook(info)
            finally:
                self.seconds += time.perf_counter() - start
                self.extra_mb = max(self.extra_mb, peak_mb() - before)

        return run

    def run(self, cells: tuple[str, ...]) -> dict[str, float]:
        """Run cells; return what committing them took until durable."""
        self.seconds = self.extra_mb = 0.0
        before = self._stored()
        for cell in cells:
            result = self.shell.run_cell(cell, store_history=True)
            result.raise_error()
        start = time.perf_counter()
        fsync_path(self.kishu.database_path())
        self.seconds += time.perf_counter() - start
        head = self.kishu._kishu_branch.get_head().commit_id
        (self.path / HEAD).write_text(head)
        return {
            "s": self.seconds,
            "bytes": self._stored() - before,
            "extra_mb": self.extra_mb,
        }

    def _stored(self) -> int:
        return sum(f.stat().st_size for f in self.path.glob("*kishudb*"))


def save(session: Session, classes: str, path: str) -> dict[str, Any]:
    """Build and change the session in cells; return its metrics and its values."""
    with _silent():
        kishu = Kishu(path, 1)
        settle()
        # In a cell of its own, a class did not come back with Kishu 0.3.4: it re-runs cells that
        # use the class without running that one.
        first = kishu.run((f"{classes}\n{session.cells[0]}", *session.cells[1:]))
        found: dict[str, Any] = {
            "save_s": first["s"],
            "save_bytes": first["bytes"],
            "save_extra_mb": first["extra_mb"],
        }
        settle()
        same = kishu.run(("1 + 1",))
        found |= {"no_change_s": same["s"], "no_change_bytes": same["bytes"]}
        for change in session.changes:
            settle()
            second = kishu.run((change.cell,))
            found |= {f"{change.label}_s": second["s"], f"{change.label}_bytes": second["bytes"]}
    return found | {"namespace": kishu.shell.user_ns}


def load(path: str) -> tuple[Callable[[], None], dict[str, Any]]:
    """Return what restores the last commit, to be timed, and the namespace it restores into."""
    with _silent():
        kishu = Kishu(path, 2)
    head = (Path(path) / HEAD).read_text()

    def checkout() -> None:
        with _silent():
            kishu.kishu.checkout(head, skip_notebook=True)

    return checkout, kishu.shell.user_ns


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield
