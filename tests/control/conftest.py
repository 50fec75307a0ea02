from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from loop_stage import Stage

Story = Callable[[Stage], Coroutine[Any, Any, None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., None]:
    """Return a function that plays a story on a stage of its own."""

    def run(story: Story, **more: Any) -> None:
        async def whole() -> None:
            stage = Stage(tmp_path, **more)
            await stage.turn()
            try:
                await story(stage)
            finally:
                await stage.loop.close()
                stage.store.close()

        asyncio.run(whole())

    return run
