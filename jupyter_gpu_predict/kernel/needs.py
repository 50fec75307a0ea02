"""The `need` command of `%gpu`, read both by the gate before a cell and by the magic in it."""

from __future__ import annotations

import argparse
import re
import shlex
from dataclasses import dataclass

from ..core.sizes import parse_bytes
from ..errors import BadInputError

PRIORITIES = {"low": -1, "normal": 0, "high": 1}
_LINE = re.compile(r"^[ \t]*%%?gpu[ \t]+need[ \t]+(?P<words>.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Need:
    """What the user stated."""

    bytes: int = 0
    priority: int = 0
    affinity: str | None = None
    critical: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise BadInputError(
            f"%gpu need: {message}; "
            "usage: %gpu need SIZE [--priority low|normal|high] [--prefer GPU] [--critical]"
        )


def _parser() -> _Parser:
    parser = _Parser(prog="%gpu need", add_help=False)
    parser.add_argument("size", nargs="+")
    parser.add_argument("--priority", choices=sorted(PRIORITIES), default="normal")
    parser.add_argument("--prefer")
    parser.add_argument("--critical", action="store_true")
    return parser


def parse_need(words: str) -> Need:
    """Return what ``SIZE [--priority P] [--prefer GPU] [--critical]`` says.

    Raises
    ------
    BadInputError
        If it says nothing sensible, e.g. a size without its unit.
    """
    try:
        split = shlex.split(words)
    except ValueError as error:
        raise BadInputError(f"%gpu need {words!r}: {error}") from None
    if split and re.match(r"-[\d.]", split[0]):
        raise BadInputError(f"%gpu need: a size must be above 0, not {split[0]!r}")
    options = _parser().parse_args(split)
    size = parse_bytes(" ".join(options.size))
    if size <= 0:
        raise BadInputError(f"%gpu need: a size must be above 0, not {' '.join(options.size)!r}")
    return Need(size, PRIORITIES[options.priority], options.prefer, options.critical)


def stated_in(code: str) -> Need | None:
    """Return the need that a cell states in itself; a malformed one is the magic's to refuse."""
    found = _LINE.search(code)
    if found is None:
        return None
    try:
        return parse_need(found["words"])
    except BadInputError:
        return None
