"""Who is whose partner when two graphs are walked together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Partners:
    """Who is whose partner, and the way back; the journal undoes a guess."""

    forth: dict[Any, Any] = field(default_factory=dict)
    back: dict[Any, Any] = field(default_factory=dict)
    journal: list[tuple[Any, Any]] = field(default_factory=list)

    def meet(self, one: Any, other: Any) -> bool | None:
        """Return ``True`` if both are partners, ``None`` if both were free, ``False`` if not."""
        if one in self.forth or other in self.back:
            return bool(self.forth.get(one) == other and self.back.get(other) == one)
        self.forth[one] = other
        self.back[other] = one
        self.journal.append((one, other))
        return None

    def undo(self, length: int) -> None:
        """Part those who met since the journal had this length."""
        while len(self.journal) > length:
            one, other = self.journal.pop()
            del self.forth[one], self.back[other]
