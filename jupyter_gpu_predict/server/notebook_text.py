"""The code cells of a notebook file, without holding up other threads for its outputs.

`json.loads` keeps the interpreter to itself for as long as it takes, tens of milliseconds and more
for a notebook full of plots; decoding cell by cell lets others in between.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import BadInputError

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()

Cell = tuple[str | None, str]
"""A code cell's id, ``None`` in formats older than 4.5, and its source."""


def code_cells(text: str) -> list[Cell]:
    """Return the code cells of a notebook of format 4, given as the text of its file.

    Raises
    ------
    BadInputError
        If it is no such notebook.
    """
    try:
        return [found for cell in _cells(text) if (found := code_cell(cell)) is not None]
    except (ValueError, IndexError, RecursionError) as error:
        raise BadInputError(f"it is no notebook of format 4: {error}") from error


def code_cell(cell: Any) -> Cell | None:
    """Return a cell of a notebook if it is a code cell.

    Raises
    ------
    ValueError
        If it is no cell.
    """
    if not isinstance(cell, Mapping):
        raise ValueError("a cell is no object")
    if cell.get("cell_type") != "code":
        return None
    source, cell_id = cell.get("source", ""), cell.get("id")
    if isinstance(source, list):
        source = "".join(map(str, source))
    if not isinstance(source, str):
        raise ValueError("a cell's source is no text")
    return (cell_id if isinstance(cell_id, str) else None), source


def _cells(text: str) -> Iterator[Any]:
    at = _expect(text, 0, "{")
    while True:
        key, at = _DECODER.raw_decode(text, _skip(text, at))
        at = _expect(text, at, ":")
        if key == "cells":
            yield from _items(text, at)
            return
        _, at = _DECODER.raw_decode(text, _skip(text, at))
        if text[_skip(text, at)] == "}":
            raise ValueError("it has no cells")
        at = _expect(text, at, ",")


def _items(text: str, at: int) -> Iterator[Any]:
    at = _expect(text, at, "[")
    if text[_skip(text, at)] == "]":
        return
    while True:
        item, at = _DECODER.raw_decode(text, _skip(text, at))
        yield item
        if text[_skip(text, at)] == "]":
            return
        at = _expect(text, at, ",")


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _expect(text: str, at: int, mark: str) -> int:
    at = _skip(text, at)
    if text[at] != mark:
        raise ValueError(f"{text[at]!r} at character {at} where {mark!r} should be")
    return at + 1
