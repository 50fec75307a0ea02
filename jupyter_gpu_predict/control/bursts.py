"""How much of a GPU a kernel's present burst of cells has had."""

from __future__ import annotations

from dataclasses import dataclass

GAP_S = 60.0
"""Cells with less than this between them are one burst."""


@dataclass
class Burst:
    """Cells that follow each other closely, and the seconds for which they have run.

    A burst that is suspended in the middle of a cell gains nothing until it is resumed.
    """

    had_s: float = 0.0
    since_s: float | None = None
    halted: bool = False
    ended_s: float = -GAP_S

    def cell_started(self, now_s: float) -> None:
        """Note that a cell runs."""
        if self.since_s is None and not self.halted:
            self._go_on_or_anew(now_s)
            self.since_s = now_s

    def cell_ended(self, start_s: float, end_s: float) -> None:
        """Note that a cell has run; short ones are told of only now."""
        if self.since_s is not None:
            self.had_s += max(0.0, end_s - self.since_s)
        elif not self.halted:
            self._go_on_or_anew(start_s)
            self.had_s += max(0.0, end_s - start_s)
        self.since_s, self.halted, self.ended_s = None, False, end_s

    def halt(self, now_s: float) -> None:
        """Note that the running cell was suspended in its middle."""
        if self.since_s is not None:
            self.had_s += max(0.0, now_s - self.since_s)
        self.since_s, self.halted = None, True

    def go_on(self, now_s: float) -> None:
        """Note that it was resumed."""
        if self.halted:
            self.since_s, self.halted = now_s, False

    def attained_s(self, now_s: float) -> float:
        """Return the seconds that the burst has had, 0 when it is over."""
        if self.since_s is not None:
            return self.had_s + max(0.0, now_s - self.since_s)
        return self.had_s if self.halted or now_s - self.ended_s < GAP_S else 0.0

    def _go_on_or_anew(self, start_s: float) -> None:
        if start_s - self.ended_s >= GAP_S:
            self.had_s = 0.0
