"""The energy of the GPUs as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from ..control.loop import ControlLoop

ASSUMPTION = (
    "saved_j is what the GPUs that stood empty would have used more, had each of them drawn what "
    "that same GPU drew while kernels held its memory and none was at work; it is unknown until "
    "that has been seen, and a move's own energy is part of used_j"
)
SIMULATED = "the GPUs are simulated: they use no energy of their own, so none is told"


def power_model(loop: ControlLoop) -> dict[str, Any]:
    """Return the energy used since the server started, in joules, and what empty GPUs saved."""
    report = loop.facts.power.report()
    statuses = {s.parent or s.uuid: s for s in loop.statuses}
    return {
        "simulated": loop.backend.simulated,
        "since_s": report.since_s,
        "until_s": report.until_s,
        "used_j": report.used_j,
        "saved_j": report.saved_j,
        "power_w": _sum(s.power_w for s in statuses.values()),
        "assumption": SIMULATED if loop.backend.simulated else ASSUMPTION,
        "unknown": list(report.unknown),
        "unmeasured": [
            uuid
            for uuid, s in statuses.items()
            if not s.simulated and s.energy_j is None and s.power_w is None
        ],
        "gpus": [{**asdict(account), "saved_j": account.saved_j} for account in report.gpus],
    }


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
