"""Sizes in bytes as people write and read them."""

from __future__ import annotations

import re
from fractions import Fraction

from ..errors import BadInputError

MAX_BYTES = (1 << 63) - 1
"""Largest size that fits the signed 64-bit integers of databases and device libraries."""

_DECIMAL = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "pb": 10**15}
_BINARY = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40, "pib": 1 << 50}
_UNITS = _DECIMAL | _BINARY
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)[ \t]*([A-Za-z]+)", re.ASCII)
_MAX_CHARACTERS = 64
_HELP = 'write a number and a unit, for example "512 MiB", "12GiB" or "1.5GB"'


def parse_bytes(text: str) -> int:
    """Return the bytes that `text` means, rounded up to a whole byte.

    Parameters
    ----------
    text
        A non-negative decimal number and a unit: ``B``, ``kB``, ``MB``, ``GB``, ``TB``, ``PB``
        (powers of 1000) or ``KiB``, ``MiB``, ``GiB``, ``TiB``, ``PiB`` (powers of 1024). Case and
        the blank between them do not matter.

    Raises
    ------
    BadInputError
        If the unit is missing or unknown, or the number is negative, not a number, infinite or
        more than `MAX_BYTES`.
    """
    if not isinstance(text, str):
        raise BadInputError(f"A size must be text with a unit, not {text!r}: {_HELP}.")
    stripped = text.strip()
    shown = repr(stripped if len(stripped) <= _MAX_CHARACTERS else stripped[:_MAX_CHARACTERS] + "…")
    if len(stripped) > _MAX_CHARACTERS:
        raise BadInputError(f"Size {shown} is longer than {_MAX_CHARACTERS} characters: {_HELP}.")
    match = _SIZE.fullmatch(stripped)
    if match is None:
        raise BadInputError(f"Size {shown} {_fault(stripped)}: {_HELP}.")
    number, unit = match.groups()
    factor = _UNITS.get(unit.lower())
    if factor is None:
        raise BadInputError(f"Size {shown} has the unknown unit {unit!r}: {_HELP}.")
    # Floats would turn 9007199254740993 B into its even neighbour.
    size = -(-(Fraction(number) * factor) // 1)
    if size > MAX_BYTES:
        raise BadInputError(f"Size {shown} is more than {MAX_BYTES} bytes: {_HELP}.")
    return int(size)


def _fault(text: str) -> str:
    """Say in words why `text` is not a size."""
    if not text:
        return "is empty"
    if text.startswith("-"):
        return "is negative"
    number = text.lstrip("+")
    if re.match(r"(nan|inf)", number, re.IGNORECASE):
        return "is not a finite number"
    if re.fullmatch(r"[0-9.]+", number, re.ASCII):
        return "has no unit"
    return "is not a size"


def format_bytes(n: int) -> str:
    """Return `n` bytes in the largest IEC unit that keeps the figure at 1 or more.

    Figures carry at most two decimals, so that ``parse_bytes(format_bytes(n))`` is within half a
    percent of `n`, and equal to it for whole multiples of a unit.
    """
    if n < 0:
        return "-" + format_bytes(-n)
    if n < 1 << 10:
        return f"{n} B"
    for name, factor in (("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)):
        # 1023.999 MiB would be shown as "1024 MiB": it goes one unit up.
        if round(n / factor, 2) < 1024:
            return f"{_figure(n / factor)} {name}"
    return f"{_figure(n / (1 << 50))} PiB"


def _figure(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
