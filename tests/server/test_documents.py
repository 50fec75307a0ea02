from __future__ import annotations

import asyncio
import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tornado.web import HTTPError

from jupyter_gpu_predict.core.trace.digest import normalised_digest, source_digest
from jupyter_gpu_predict.core.trace.document import MAX_READ
from jupyter_gpu_predict.core.trace.source import GpuUse
from jupyter_gpu_predict.errors import BadInputError
from jupyter_gpu_predict.server import documents
from jupyter_gpu_predict.server.connection import Sent, _cell_of, queue_of
from jupyter_gpu_predict.server.documents import Documents
from jupyter_gpu_predict.server.notebook_text import code_cells

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def code(source: Any, **more: Any) -> dict[str, Any]:
    return {"cell_type": "code", "source": source, "outputs": [], **more}


@settings(max_examples=60)
@given(
    st.dictionaries(st.text(max_size=5).filter(lambda k: k != "cells"), JSON, max_size=4),
    st.lists(st.tuples(st.none() | st.text(max_size=4), st.text(max_size=20)), max_size=5),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_cells_are_those_of_the_json(
    more: dict[str, Any], cells: list[tuple[str | None, str]], indent: int | None, first: bool
) -> None:
    made = [code(s) if i is None else code(s.splitlines(True), id=i) for i, s in cells]
    between = [item for cell in made for item in (cell, {"cell_type": "markdown"})]
    whole = {"cells": between, **more} if first else {**more, "cells": between}
    found = code_cells(json.dumps(whole, indent=indent))
    assert [(i, s) for i, s in found] == [(i, s) for i, s in cells]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"cells"', '{"cells": 3}', '{"cells": [1]}', '{"cells": [{}', "{" * 100_000,
     '{"cells": [{"cell_type": "code", "source": 3}]}', '{"worksheets": []}', "\0\1binary",
     '{"cells": ' + "[" * 100_000],
)  # fmt: skip
def test_what_is_no_notebook_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="no notebook of format 4"):
        code_cells(text)


class Contents:
    """A contents manager of one notebook, which notes what is asked of it and in which thread."""

    def __init__(self) -> None:
        self.sources = ["a = 1", "b = 2"]
        self.version = 0
        self.size: int | None = 100
        self.fails: Exception | None = None
        self.asked: list[tuple[str, bool, str | None]] = []
        self.threads: set[int] = set()

    def get(self, path: str, content: bool = True, **how: Any) -> dict[str, Any]:
        self.asked.append((path, content, how.get("type")))
        self.threads.add(threading.get_ident())
        if self.fails is not None:
            raise self.fails
        cells = [code(s, id=f"c{i}") for i, s in enumerate(self.sources)]
        model = {"last_modified": self.version, "size": self.size, "content": None}
        if content:
            notebook = {"cells": cells}
            model["content"] = json.dumps(notebook) if how["type"] == "file" else notebook
        return model

    def save(self, *sources: str) -> None:
        self.sources, self.version = list(sources), self.version + 1


class AsyncContents(Contents):
    """The same one, as a server of today has it."""

    async def get(self, *args: Any, **more: Any) -> dict[str, Any]:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().get(*args, **more)


class Sessions:
    path: str | None = "n.ipynb"

    async def get_session(self, **_: Any) -> dict[str, Any]:
        if self.path is None:
            raise HTTPError(404)
        return {"path": self.path}


class Server:
    def __init__(self, contents: Contents) -> None:
        self.now = 1000.0
        self.contents, self.sessions = contents, Sessions()
        managers = SimpleNamespace(contents_manager=contents, session_manager=self.sessions)
        self.documents = Documents(managers, clock=lambda: self.now)

    async def look(self, later_s: float = 10.0, last_cell: str | None = None) -> Any:
        self.now += later_s
        return await self.documents.saved("k", None, used_s=self.now, last_cell=last_cell)


@pytest.mark.parametrize("kind", [Contents, AsyncContents])
def test_a_notebook_is_read_once_for_each_time_it_is_saved(kind: type[Contents]) -> None:
    async def scenario() -> None:
        server = Server(contents := kind())
        seen = await server.look()
        assert [c.digest for c in seen.document.cells] == [
            source_digest(s) for s in ("a = 1", "b = 2")
        ]
        assert list(seen.lines) == ["a = 1", "b = 2"]
        assert await server.look() is seen
        assert await server.look(1.0) is seen
        assert contents.asked == [
            ("n.ipynb", False, None), ("n.ipynb", True, "file"), ("n.ipynb", False, None)
        ]  # fmt: skip
        contents.save("  a = 2  # more\nc()", "b = 2")
        changed = await server.look()
        assert list(changed.lines) == ["a = 2  # more", "b = 2"]
        # What a cell was before an edit is still known to be alike.
        assert changed.normalised[source_digest("a = 1")] == normalised_digest("a = 9")
        main = threading.get_ident()
        assert (main in contents.threads) == (kind is AsyncContents)
        await server.documents.close()

    asyncio.run(scenario())


def test_a_kernel_that_nobody_uses_has_its_notebook_left_alone() -> None:
    async def scenario() -> None:
        server = Server(contents := AsyncContents())
        used_s = server.now
        await server.documents.saved("k", None, used_s=used_s, last_cell=None)
        asked = len(contents.asked)
        server.now += 10_000
        await server.documents.saved("k", None, used_s=used_s, last_cell=None)
        assert len(contents.asked) == asked
        server.now -= 10_000_000
        await server.documents.saved("k", None, used_s=used_s, last_cell=None)
        assert len(contents.asked) > asked, "a clock that was set back stops no looks"

    asyncio.run(scenario())


def test_what_fails_is_named_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        server = Server(contents := AsyncContents())
        for error, why in (
            (HTTPError(404, "No such file"), "n.ipynb cannot be read (No such file)"),
            (HTTPError(403, reason="Forbidden"), "n.ipynb cannot be read (Forbidden)"),
            (OSError("disk on fire"), "n.ipynb cannot be read (disk on fire)"),
            (KeyError(), "n.ipynb cannot be read (KeyError)"),
        ):
            contents.fails = error
            seen = await server.look()
            assert (len(seen.document), seen.document.notes) == (0, (why,))
        contents.fails = None
        assert len((await server.look()).document) == 2
        contents.save("x = 1")
        contents.size = documents.MAX_BYTES + 1
        assert "more than 64 MiB" in (await server.look()).document.notes[0]
        contents.size = None
        contents.save()
        assert (await server.look()).document.notes == ("it has no code cells",)
        server.sessions.path = None
        assert (await server.look()).document.notes == ("this kernel has none",)

    asyncio.run(scenario())
    assert "disk on fire" in caplog.text
    assert "No such file" not in caplog.text


def test_what_is_no_ipynb_is_read_as_the_notebook_that_it_makes() -> None:
    async def scenario() -> None:
        server = Server(contents := AsyncContents())
        server.sessions.path = "n.py"
        assert len((await server.look()).document) == 2
        assert contents.asked[-1] == ("n.py", True, "notebook")

    asyncio.run(scenario())


def test_a_slow_contents_manager_keeps_no_forecast_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PATIENCE_S", 0.01)

    async def scenario() -> None:
        gate = asyncio.Event()

        class Slow(AsyncContents):
            async def get(self, *args: Any, **more: Any) -> dict[str, Any]:  # type: ignore[override]
                await gate.wait()
                return await super().get(*args, **more)

        server = Server(Slow())
        assert (await server.look()).document.notes == ("it is not read yet",)
        gate.set()
        while not len((await server.look()).document):
            await asyncio.sleep(0)
        gate.clear()
        server.documents.forget("k")
        await server.look()
        await server.documents.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


def test_a_very_long_notebook_is_read_around_the_last_run() -> None:
    async def scenario() -> None:
        server = Server(contents := AsyncContents())
        contents.save(*[f"x{i}.to('cuda')" for i in range(2 * MAX_READ)])
        first = await server.look()
        end = f"c{2 * MAX_READ - 1}"
        later = await server.look(last_cell=end)
        ends = [[seen.document.cells[i].reading.gpu for i in (0, -1)] for seen in (first, later)]
        assert ends == [[GpuUse.MOVES, GpuUse.NONE], [GpuUse.NONE, GpuUse.MOVES]]

    asyncio.run(scenario())


def test_the_cell_of_a_request() -> None:
    content = {"code": "x = 1", "silent": False}
    digest = source_digest("x = 1")
    assert _cell_of({"cellId": "c1"}, content) == ("c1", digest)
    raw = (json.dumps(part).encode() for part in ({"cellId": "c1"}, content))
    assert _cell_of(*map(memoryview, raw)) == ("c1", digest)
    assert _cell_of({}, content) == (None, digest)
    assert _cell_of({"cellId": 3}, content) == (None, digest)
    assert _cell_of({}, {"code": "x", "silent": True}) is None
    for broken in (None, 3, [], {}, {"code": 3}, b"{", b'{"code": "\xff"}'):
        assert _cell_of({}, broken) is None
    assert _cell_of(None, content) is None
    assert _cell_of({}, b"[" * 100_000) is None
    assert _cell_of({"cellId": "c1"}, {"code": "x" * 60_000}) == ("c1", "")
    assert _cell_of(b"{}", b"[" * (1 << 20)) == (None, "")


def test_a_queue_is_in_the_order_in_which_all_tabs_sent() -> None:
    tabs = [
        {"a": Sent("execute_request", 1, None, 1.0), "b": Sent("execute_request", 3, None, 3.0)},
        {"c": Sent("execute_request", 2, None, 2.0), "d": Sent("inspect_request", 0, None, 0.0)},
    ]
    assert [sent.message for sent in queue_of(tabs)] == [1, 2, 3]
