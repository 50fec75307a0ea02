"""Checks at the border: what comes in is right, or refused with nothing changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..core.model import GpuHealth, PolicySettings
from ..errors import BadInputError

PRIORITIES = {"low": -1, "normal": 0, "high": 1}
MAX_NAME = 128
LARGEST_BYTES = 1 << 62
HEALTH_FIELDS = {*GpuHealth.__dataclass_fields__, "lost", "xid"}
"""What can be scripted: each health value, the loss of the GPU, an XID that occurs now."""

_COUNTS = {"max_moves": 64, "autosave_keep": 1000}
_SHARES = {"prebind_threshold", "max_duty"}
_FACTORS = {"preempt_factor": 1000.0}
_SHOWN = 60


def known_fields(body: Mapping[str, Any], allowed: set[str]) -> None:
    """Refuse fields nobody knows, which are usually misspelt ones."""
    unknown = sorted(set(body) - allowed)
    if unknown:
        raise BadInputError(
            f"unknown field {_shown(unknown[0])}; known: {', '.join(sorted(allowed)) or 'none'}"
        )


def size_bytes(value: Any, name: str = "bytes") -> int:
    """Return a number of bytes greater than zero."""
    size = _number(value, name, "bytes")
    if not 0 < size <= LARGEST_BYTES or size != int(size):
        raise BadInputError(f"{name} must be a whole number of bytes above 0, not {_shown(value)}")
    return int(size)


def seconds(value: Any, name: str, largest: float = 86400.0 * 7) -> float:
    """Return a number of seconds, 0 or more."""
    duration = _number(value, name, "seconds")
    if not 0 <= duration <= largest:
        raise BadInputError(f"{name} must lie between 0 and {largest:g} s, not {_shown(value)}")
    return float(duration)


def share(value: Any, name: str) -> float:
    """Return a number between 0 and 1."""
    part = _number(value, name, "0 to 1")
    if not 0 <= part <= 1:
        raise BadInputError(f"{name} must lie between 0 and 1, not {_shown(value)}")
    return float(part)


def factor(value: Any, name: str) -> float:
    """Return a number of times, 1 or more."""
    times, largest = _number(value, name, "times"), _FACTORS[name]
    if not 1 <= times <= largest:
        raise BadInputError(f"{name} must lie between 1 and {largest:g}, not {_shown(value)}")
    return float(times)


def boolean(value: Any, name: str) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise BadInputError(f"{name} must be true or false, not {_shown(value)}")
    return value


def priority(value: Any) -> int:
    """Return a priority given as a word or as -1, 0, 1."""
    if isinstance(value, str) and value in PRIORITIES:
        return PRIORITIES[value]
    if isinstance(value, bool) or not isinstance(value, int) or value not in (-1, 0, 1):
        raise BadInputError(f"priority must be low, normal or high, not {_shown(value)}")
    return value


def text(value: Any, name: str) -> str:
    """Return a short text that can stand in a message or a path."""
    if not isinstance(value, str):
        raise BadInputError(f"{name} must be a text, not {_shown(value)}")
    if not value or len(value) > MAX_NAME:
        raise BadInputError(f"{name} must have 1 to {MAX_NAME} characters, not {len(value)}")
    if ".." in value or "/" in value or "\\" in value or not value.isprintable():
        raise BadInputError(
            f"{name} {_shown(value)} must not contain '/', '\\', '..' or control characters"
        )
    return value


def health(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a health script; the backend checks their values."""
    known_fields(body, HEALTH_FIELDS)
    if not body:
        raise BadInputError("the body is empty: give at least one health value")
    return dict(body)


def count(value: Any, name: str) -> int:
    """Return a small whole number above zero."""
    largest = _COUNTS[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise BadInputError(
            f"{name} must be a whole number from 1 to {largest}, not {_shown(value)}"
        )
    return value


def names(value: Any, name: str) -> tuple[str, ...]:
    """Return names of variables; an empty list is all of them."""
    if not isinstance(value, list) or not all(isinstance(n, str) for n in value):
        raise BadInputError(f"{name} must be a list of names, not {_shown(value)}")
    wrong = next((n for n in value if not n.isidentifier()), None)
    if wrong is not None:
        raise BadInputError(f"{name} must be a list of names, and {_shown(wrong)} is none")
    return tuple(value)


def policy(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes to the policy's settings, each checked."""
    defaults = PolicySettings()
    known_fields(body, set(PolicySettings.__dataclass_fields__))
    changes: dict[str, Any] = {}
    for name, value in body.items():
        if isinstance(getattr(defaults, name), bool):
            changes[name] = boolean(value, name)
        elif name.endswith("_bytes"):
            changes[name] = 0 if value == 0 and value is not False else size_bytes(value, name)
        elif name in _COUNTS:
            changes[name] = count(value, name)
        elif name in _SHARES:
            changes[name] = share(value, name)
        elif name in _FACTORS:
            changes[name] = factor(value, name)
        else:
            changes[name] = seconds(value, name)
    return changes


def _number(value: Any, name: str, of: str) -> int | float:
    """Return a finite number; whole ones may be too large for a float, and stay whole."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInputError(f"{name} must be a number ({of}), not {_shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInputError(f"{name} must be a finite number ({of}), not {value!r}")
    return value


def _shown(value: Any) -> str:
    try:
        shown = repr(value)
    except (RecursionError, ValueError):  # nested deeply, or more digits than Python writes out
        return f"this {type(value).__name__}"
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
