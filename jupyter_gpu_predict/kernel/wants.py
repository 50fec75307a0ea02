"""What a cell wants of the GPU, told before it runs."""

from __future__ import annotations

import ast
import re
import sys
import threading
from typing import TYPE_CHECKING, Any

from ..core.trace.digest import source_digest
from .needs import Need, stated_in

if TYPE_CHECKING:
    from .agent import Agent

_MENTIONS = re.compile(
    r"\b(torch|cuda|cupy|jax|tensorflow|keras|cudf|cuml|numba|triton|transformers|lightning|xgboost)\b"
)


class Wants:
    """Reads it off the cell's source, the figures of earlier runs, and what the user stated."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    def bytes(
        self, code: str, args: tuple[Any, ...], kwargs: dict[str, Any], stated: int
    ) -> int | None:
        """Return the bytes to claim before `code` runs, or ``None`` to run it at once."""
        agent = self.agent
        if threading.current_thread() is agent.kernel.control_thread:
            return None
        expressions = kwargs.get("user_expressions") or (args[1] if len(args) > 1 else None)
        resident = agent.recorder.used_bytes
        if agent.lease.checkpointed:
            # Even a cell that names no library: any of its objects may be on the GPU.
            if not expressions and not self._runs(code):
                return None
            return max(agent.suspended_bytes + resident, self.expected(code), stated, 1)
        if agent.suspended:
            if not expressions and not self._runs(code):
                return None
            return max(agent.suspended_bytes + resident, self.expected(code), stated)
        if not stated and "torch" not in sys.modules and not _MENTIONS.search(code):
            return None
        expected = max(self.expected(code), stated)
        lease = agent.lease
        capped = agent.cap.bytes is not None and agent.cap.bytes <= max(lease.bytes, resident)
        if expected > lease.bytes or lease.gpu_uuid is None:
            return max(expected, resident, 1) if self._runs(code) else None
        if capped and self._runs(code):
            # All that nobody holds was given to others: claimed, this cell gets its share of it.
            # Its lease stays whole, and is not waited for if it was cut meanwhile.
            return max(expected, resident, 1)
        return None

    def expected(self, code: str) -> int:
        """Return the peak of the cell's earlier runs, in bytes."""
        return self.agent.peaks.get(source_digest(code), 0)

    def stated_by(self, code: str) -> Need:
        """Return what the cell states in itself, or else what the user stated before."""
        need = stated_in(code) if "%gpu" in code else None
        return self.agent.stated if need is None else need

    def _runs(self, code: str) -> bool:
        """Whether `code` is something that runs; a syntax error must not wait for a GPU."""
        try:
            return bool(ast.parse(self.agent.shell.transform_cell(code)).body)
        except Exception:
            return False
