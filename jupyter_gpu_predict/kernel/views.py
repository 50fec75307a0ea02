"""Results of `%gpu`: plain data with a readable face."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any


class GpuResult:
    """What a `%gpu` command returns: a small table, with the data behind it in `data`."""

    def __init__(
        self,
        title: str,
        columns: Sequence[str] = (),
        rows: Sequence[Sequence[object]] = (),
        *,
        notes: Sequence[str] = (),
        data: Any = None,
    ) -> None:
        self.title = title
        self.columns = list(columns)
        self.rows = [[str(cell) for cell in row] for row in rows]
        self.notes = list(notes)
        self.data = data

    def __repr__(self) -> str:
        lines = [self.title]
        if self.rows:
            table = [self.columns, *self.rows]
            widths = [max(len(row[i]) for row in table) for i in range(len(self.columns))]
            lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
                      for row in table]  # fmt: skip
        return "\n".join(lines + self.notes)

    def _repr_html_(self) -> str:
        def cells(tag: str, row: Sequence[str]) -> str:
            return "".join(f"<{tag} style='text-align:left'>{html.escape(c)}</{tag}>" for c in row)

        parts = [f"<b>{html.escape(self.title)}</b>"]
        if self.rows:
            body = "".join(f"<tr>{cells('td', row)}</tr>" for row in self.rows)
            parts.append(
                f"<table><thead><tr>{cells('th', self.columns)}</tr></thead>"
                f"<tbody>{body}</tbody></table>"
            )
        parts += [f"<div>{html.escape(note)}</div>" for note in self.notes]
        return "".join(parts)
