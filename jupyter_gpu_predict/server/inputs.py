"""Checks at the border: what comes in is right, or refused with nothing changed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ..core.model import PolicySettings
from ..errors import BadInputError

PRIORITIES = {"low": -1, "normal": 0, "high": 1}
_NAME = re.compile(r"[^\x00-\x1f\x7f/\\]+")
MAX_NAME = 128


def known_fields(body: Mapping[str, Any], allowed: set[str]) -> None:
    """Refuse fields nobody knows, which are usually misspelt ones."""
    unknown = sorted(set(body) - allowed)
    if unknown:
        raise BadInputError(
            f"unknown field {unknown[0]!r}; known: {', '.join(sorted(allowed)) or 'none'}"
        )


def size_bytes(value: Any, name: str = "bytes") -> int:
    """Return a number of bytes greater than zero."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInputError(f"{name} must be a number of bytes, not {value!r}")
    if not math.isfinite(value) or value <= 0 or value != int(value) or value > 2**62:
        raise BadInputError(f"{name} must be a whole number of bytes above 0, not {value!r}")
    return int(value)


def seconds(value: Any, name: str, largest: float = 86400.0 * 7) -> float:
    """Return a number of seconds, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInputError(f"{name} must be a number of seconds, not {value!r}")
    if not math.isfinite(value) or not 0 <= value <= largest:
        raise BadInputError(f"{name} must lie between 0 and {largest:g} s, not {value!r}")
    return float(value)


def boolean(value: Any, name: str) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise BadInputError(f"{name} must be true or false, not {value!r}")
    return value


def priority(value: Any) -> int:
    """Return a priority given as a word or as -1, 0, 1."""
    if isinstance(value, str) and value in PRIORITIES:
        return PRIORITIES[value]
    if isinstance(value, bool) or not isinstance(value, int) or value not in (-1, 0, 1):
        raise BadInputError(f"priority must be low, normal or high, not {value!r}")
    return value


def text(value: Any, name: str) -> str:
    """Return a short text that can stand in a message or a path."""
    if not isinstance(value, str):
        raise BadInputError(f"{name} must be a text, not {value!r}")
    if not value or len(value) > MAX_NAME:
        raise BadInputError(f"{name} must have 1 to {MAX_NAME} characters, not {len(value)}")
    if ".." in value or not _NAME.fullmatch(value):
        raise BadInputError(
            f"{name} {value!r} must not contain '/', '\\', '..' or control characters"
        )
    return value


def health(value: Any) -> dict[str, Any]:
    """Return the body of a health script as a mapping; the backend checks its fields."""
    if not isinstance(value, dict) or not value:
        raise BadInputError("the body must be an object with at least one health value")
    return value


def policy(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes to the policy's settings, each checked."""
    defaults = PolicySettings()
    known_fields(body, set(PolicySettings.__dataclass_fields__))
    changes: dict[str, Any] = {}
    for name, value in body.items():
        default = getattr(defaults, name)
        if isinstance(default, bool):
            changes[name] = boolean(value, name)
        elif name == "headroom_bytes":
            changes[name] = 0 if value == 0 and value is not False else size_bytes(value, name)
        elif name in {"prebind_threshold", "max_duty"}:
            share = seconds(value, name, 10.0)
            if share > 1:
                raise BadInputError(f"{name} must lie between 0 and 1, not {value!r}")
            changes[name] = share
        else:
            changes[name] = seconds(value, name)
    return changes
