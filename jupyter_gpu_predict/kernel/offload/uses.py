"""When each storage was last used, as far as the source of the cells tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .loaded import loaded_torch
from .reach import Reach
from .words import values_named, words

MOST_WORDS = 20_000


class UseLog:
    """Which cell last named each word.

    What a cell names it may use; a storage counts as used by the last cell that named something
    from which it can be reached. One that no cell has named so is taken to be cold.
    """

    def __init__(self) -> None:
        self.cell = 0
        self._last: dict[str, int] = {}

    def note(self, source: str) -> None:
        """Note that a cell of this source runs now."""
        self.cell += 1
        for word in words(source):
            # The order of the dictionary is that of the last use.
            self._last.pop(word, None)
            self._last[word] = self.cell
        while len(self._last) > MOST_WORDS:
            del self._last[next(iter(self._last))]

    def by_storage(self, namespace: Mapping[str, Any]) -> dict[int, int]:
        """Return the number of the cell that last used each storage, by its ``_cdata``."""
        torch = loaded_torch()
        if torch is None:
            return {}
        with torch._C.DisableTorchFunction():
            reach = Reach(torch)
            found: dict[int, int] = {}
            for word, cell in reversed(list(self._last.items())):
                if word in namespace:
                    for storage in reach.storages([namespace[word]]):
                        found.setdefault(storage, cell)
        return found

    def next_values(self, source: str, namespace: Mapping[str, Any]) -> list[Any]:
        """Return the values that a cell of this source is likely to touch."""
        return values_named(source, namespace)
