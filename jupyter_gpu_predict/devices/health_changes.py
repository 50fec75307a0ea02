"""Checks changes of a simulated GPU's health before any of them is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..core.model import GpuHealth, XidEvent
from ..core.risk import RECOVERY_ACTIONS
from ..core.sizes import MAX_BYTES
from ..errors import BadInputError

_COUNTS = frozenset(
    {
        "ecc_corrected",
        "ecc_uncorrected",
        "ecc_uncontained",
        "remapped_rows",
        "retired_pages",
        "pcie_replays",
    }
)
_FLAGS = frozenset({"remap_pending", "remap_failed", "thermal_slowdown", "power_brake"})
_NUMBERS = frozenset({"temperature_c", "temperature_limit_c", "query_s"})
_EXTRA = ("lost", "xid")
_NAMES = (*(field.name for field in fields(GpuHealth)), *_EXTRA)


@dataclass(frozen=True, slots=True)
class ScriptedHealth:
    """Health of a simulated GPU, and whether it is lost."""

    health: GpuHealth
    lost: bool = False


def changed(
    state: ScriptedHealth, changes: Mapping[str, Any], clock: Callable[[], float]
) -> ScriptedHealth:
    """Return `state` with `changes` made.

    Parameters
    ----------
    state
        Health before.
    changes
        Fields of `GpuHealth` by name (``None``: the GPU does not say), ``lost`` (bool), and
        ``xid`` (int), which appends an XID event at the present time.
    clock
        Gives the present time in seconds since the epoch.

    Raises
    ------
    BadInputError
        If a field is unknown, or a value is of the wrong type, negative, infinite or not a number.
    """
    fresh: dict[str, Any] = {}
    lost = state.lost
    for name, value in changes.items():
        if name == "lost":
            lost = _flag(name, value)
        elif name == "xid":
            _count(name, value)
        elif name == "xids":
            fresh[name] = _xids(value)
        elif name not in _NAMES:
            raise BadInputError(
                f"A GPU's health has no field {name!r}: use one of {', '.join(sorted(_NAMES))}."
            )
        else:
            fresh[name] = None if value is None else _value(name, value)
    health = replace(state.health, **fresh)
    if "xid" in changes:
        event = XidEvent(changes["xid"], clock())
        health = replace(health, xids=(*health.xids, event))
    return ScriptedHealth(health, lost)


def _value(name: str, value: Any) -> Any:
    if name in _COUNTS:
        return _count(name, value)
    if name in _FLAGS:
        return _flag(name, value)
    if name in _NUMBERS:
        return _number(name, value)
    if not isinstance(value, str) or value not in RECOVERY_ACTIONS:
        raise BadInputError(
            f"Health field {name!r} cannot be {value!r}: use one of {', '.join(RECOVERY_ACTIONS)}."
        )
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadInputError(f"Health field {name!r} cannot be {value!r}: use true or false.")
    return value


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_BYTES:
        raise BadInputError(
            f"Health field {name!r} cannot be {value!r}: use a whole number that is not negative."
        )
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInputError(f"Health field {name!r} cannot be {value!r}: use a number.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < 0:
        raise BadInputError(
            f"Health field {name!r} cannot be {value!r}: use a finite number that is not negative."
        )
    return number


def _xids(value: Any) -> tuple[XidEvent, ...]:
    if not isinstance(value, list | tuple):
        raise BadInputError(
            f"Health field 'xids' cannot be {value!r}: use a list of objects "
            '{"code": 79, "t_s": 1.0e9}, or the field \'xid\' to append one.'
        )
    events = []
    for item in value:
        entry = item if isinstance(item, Mapping) else None
        if isinstance(item, XidEvent):
            entry = {"code": item.code, "t_s": item.t_s}
        if entry is None or set(entry) != {"code", "t_s"}:
            raise BadInputError(
                f"Health field 'xids' cannot hold {item!r}: each event is an object with the "
                "fields 'code' and 't_s'."
            )
        events.append(XidEvent(_count("code", entry["code"]), _number("t_s", entry["t_s"])))
    return tuple(events)
